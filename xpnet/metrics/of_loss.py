"""Losses as metrics."""

from __future__ import annotations

from typing import Any

from .. import losses
from ..backend import Array
from ..core.config import snake_case
from ..core.settings import part
from ..kernels.context import Context
from .base import Metric, registry

__all__ = ["OfLoss"]


@registry.register
class OfLoss(Metric):
    """The mean over rows of a loss; its reduction is ignored.

    `metrics.get` makes one of a loss, or of the name of a loss of your own: `metrics=[losses.Huber(2.0)]`. As in
    Keras, there is also a metric class for each loss of xpnet: `metrics.MeanSquaredError()`.

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
        """The loss's name, or its class's as an identifier."""
        return self.loss.name or snake_case(type(self.loss).__name__)

    @property
    def parts(self) -> tuple[Any, ...]:
        """The loss."""
        return (self.loss,)

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return the loss of each row."""
        xp, loss, shape = ctx.xp, self.loss, tuple(p.shape)
        loss.targets.check_shape(type(loss).__name__, tuple(y.shape), shape)
        y = xp.reshape(y, loss.target_shape(shape))
        y = xp.astype(y, xp.int32 if loss.sparse else p.dtype, copy=False)
        return loss.terms(ctx, y, p, 1.0)[0]
