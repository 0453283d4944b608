"""Losses as metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import losses
from ..backend import Array
from ..core.settings import part
from ..kernels.context import Context
from .base import Metric, registry

__all__ = ["OfLoss"]


@registry.register
class OfLoss(Metric):
    """The mean of a loss over the rows; the reduction of the loss is ignored.

    `metrics.get` makes one from a loss, or from the name of your own loss: `metrics=[losses.Huber(2.0)]`. As in
    Keras, there is also a metric class for each loss of xpnet: `metrics.MeanSquaredError()`. Rows that the loss
    does not count (`ignore_class`) are left out.

    Args:
        loss: a loss, or its name. name, dtype: see `Metric`.

    >>> metric = OfLoss("huber")
    >>> metric.update_state([[0.0], [0.0]], [[1.0], [3.0]])
    >>> metric.name, float(metric.result())
    ('huber', 1.5)
    """

    direction = "min"

    loss: losses.Loss = part(losses.get)

    @property
    def default_name(self) -> str:  # type: ignore[override]
        """The loss's name, or that of its class as an identifier."""
        return self.loss.name or losses.registry.identifier(type(self.loss))

    @property
    def parts(self) -> tuple[Any, ...]:
        """The loss."""
        return (self.loss,)

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return the loss of each row."""
        return self.loss.row_values(ctx, self._targets(ctx, y, p), p)

    def counts(self, ctx: Context, y: Array, p: Array, weight: Array | None) -> Sequence[Any]:
        """Return the sums of the rows' losses and of their weights."""
        values = self.rows(ctx, y, p)
        weight = self.loss.row_weights(ctx, self._targets(ctx, y, p), p, weight)
        weighed = 1.0 * math.prod(values.shape) if weight is None else ctx.ops.row_total(ctx, weight, None, 1.0)
        return ctx.ops.row_total(ctx, values, weight, 1.0), weighed

    def _targets(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return the targets in the shape and dtype that the loss takes."""
        xp, loss, shape = ctx.xp, self.loss, tuple(p.shape)
        loss.targets.check_shape(type(loss).__name__, tuple(y.shape), shape, loss.axis)
        y = xp.reshape(y, loss.target_shape(shape))
        return xp.astype(y, xp.int32 if loss.sparse else p.dtype, copy=False)
