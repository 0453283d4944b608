"""A layer that penalizes its outputs."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..core.ops import penalty
from ..core.settings import setting
from ..errors import number
from ..kernels.context import Context
from .base import Backward, Layer, registry

__all__ = ["ActivityRegularization"]


@registry.register
class ActivityRegularization(Layer):
    """y = x, and the objective grows by (l1 sum(|y|) + l2 sum(y^2)) / rows, where rows is the size of the batch.

    As in Keras, sample weights do not apply to it, and it is part of the loss in `evaluate` too. User-defined
    layers add terms of their own with `ctx.add_loss`.

    Args:
        l1, l2: the factors, >= 0. name, dtype, trainable: see `Layer`.

    Raises:
        InvalidValueError: a factor is negative.

    dx = dy + (l1 sign(y) + 2 l2 y) / rows.

    >>> ActivityRegularization(l2=0.1)([[1.0, 2.0]]).tolist()
    [[1.0, 2.0]]
    """

    l1: float = setting(number, 0, default=0.0)
    l2: float = setting(number, 0, default=0.0)

    def forward(self, ctx: Context, params: dict[str, Array], x: Array) -> tuple[Array, Backward]:
        """Return x, and the derivative of the penalty with dy."""

        def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
            return (dy if want_dx else None), {}

        def at(ctx: Context, y: Array) -> tuple[Array, Array]:
            return penalty(ctx.xp, y, self.l1, self.l2)

        return x, self.penalize_outputs(ctx, x, backward, at)
