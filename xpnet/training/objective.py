"""What training minimizes, and its gradient: the order of a step up to the update is defined here, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..backend import Array
from ..kernels.context import Context
from ..losses import Loss
from .network import Network

__all__ = ["Batch", "Gradient", "Objective"]

Watch = Callable[[str, str, Array], None]


class Batch(NamedTuple):
    """What a step takes in: rows, targets, weights or None, and masks and noise by place."""

    x: Array
    y: Array
    weight: Array | None
    draws: dict[str, Array]


class Gradient(NamedTuple):
    """The derivative of the objective.

    Attributes:
        value: the objective, 0-d. flat: its derivative by the weights, to be multiplied by `factor` (0-d; None for
            1). prediction: the outputs.
    """

    value: Array
    flat: Array
    factor: Array | None
    prediction: Array


class Objective:
    """The loss of a batch plus the penalties on the weights and on the outputs of layers.

    Args:
        network, loss: of the model. A loss that fuses with the last activation starts from the scores before it.
    """

    def __init__(self, network: Network, loss: Loss) -> None:
        self.network, self.loss = network, loss
        activation = loss.fused_activation((1, *network.output_shape))
        self.units = network.score_units(activation) if activation else None
        self.layout = network.layout
        self.is_penalized = bool(self.layout.segments or self.layout.penalties)

    def value(self, ctx: Context, weights: Array, stats: Array, batch: Batch) -> tuple[Array, Array]:
        """Return the objective, 0-d, and the prediction."""
        y, _ = self.network.forward(ctx, weights, stats, batch.x, self.units)
        value, _, prediction = self.loss.value_and_slope(ctx, batch.y, y, batch.weight, self.units is not None)
        if self.is_penalized:
            value = value + self.layout.penalize(ctx, weights, ctx.xp.zeros_like(weights))[0]
        return _with_losses(ctx, value), prediction

    def gradient(
        self,
        ctx: Context,
        weights: Array,
        stats: Array,
        batch: Batch,
        scale: Array | None = None,
        watch: Watch | None = None,
    ) -> Gradient:
        """Return the objective and its derivative by the weights.

        Args:
            weights, stats: flat arrays. scale: 0-d: factor of the loss in the backward pass, so that small
                derivatives survive 16-bit products.
            watch: called with every output, the loss, the penalty and every derivative.
        """
        y, backward = self.network.forward(ctx, weights, stats, batch.x, self.units, watch)
        value, dy, prediction = self.loss.value_and_slope(ctx, batch.y, y, batch.weight, self.units is not None)
        if watch is not None:
            last = self.network.units[-1].key
            watch("loss", last, value)
            watch("gradient of the loss", last, dy)
            for own in ctx.losses:
                watch("penalty on outputs", last, own)
        factor = None if scale is None else 1.0 / scale
        ctx.loss_scale = scale
        g = backward(dy if scale is None else dy * scale)
        if self.is_penalized:
            if factor is not None:
                g, factor = g * factor, None
            penalty, g = self.layout.penalize(ctx, weights, g)
            if watch is not None:
                watch("penalty", last, penalty)
            value = value + penalty
        return Gradient(_with_losses(ctx, value) if ctx.losses else value, g, factor, prediction)


def _with_losses(ctx: Context, value: Array) -> Array:
    """Return the objective with what layers added to it."""
    for own in ctx.losses:
        value = value + own
    return value
