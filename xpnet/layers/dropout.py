"""Dropout."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..core.settings import setting
from ..errors import number
from ..kernels.context import Context
from .base import Stateless, registry

__all__ = ["Dropout"]


@registry.register
class Dropout(Stateless):
    """In training, set each input to 0 with probability `rate` and divide the others by 1 - rate.

    The masks are functions of the model's seed, the layer's position and the step (see `xpnet.core.random`),
    bit-equal on every backend. Outside training y = x.

    Args:
        rate: in [0, 1). name, dtype, trainable: see `Layer`.

    Raises:
        InvalidValueError: rate is outside [0, 1).

    >>> Dropout(0.5)([[1.0, 2.0]]).tolist()
    [[1.0, 2.0]]
    """

    rate: float = setting(number, 0, 1, open_high=True)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Declare the mask."""
        if self.rate:
            self.add_draw("keep", input_shape, self.rate)
        return input_shape

    def call(self, ctx: Context, x: Array) -> tuple[Array, Any]:
        """Return the masked and rescaled input."""
        if not (ctx.training and self.draws):
            return x, lambda dy: dy
        return ctx.ops.dropout(ctx, x, ctx.draw("keep"), self.draws[0].rate)  # the rate of the mask
