"""Layers that only change or declare shapes."""

from __future__ import annotations

import math
from typing import Any

from ..backend import Array
from ..core.settings import part
from ..errors import ShapeError
from ..kernels.context import Context
from .base import Stateless, registry, rows_of

__all__ = ["Flatten", "Input"]


@registry.register
class Flatten(Stateless):
    """Turn (batch, a, b, ...) into (batch, a * b * ...). Args: name, dtype, trainable (see `Layer`).

    >>> Flatten()([[[1.0, 2.0], [3.0, 4.0]]]).tolist()
    [[1.0, 2.0, 3.0, 4.0]]
    """

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the flattened size."""
        return (math.prod(input_shape),)

    def call(self, ctx: Context, x: Array) -> tuple[Array, Any]:
        """Return the reshaped input; dx has its shape again."""
        xp, shape = ctx.xp, x.shape
        batch_axis = x.ndim - len(self.input_shape or ())
        y = xp.reshape(x, (*shape[:batch_axis], *(self.output_shape or ())))
        return y, lambda dy: xp.reshape(dy, shape)


@registry.register
class Input(Stateless):
    """Declare the shape of the inputs, so that a model is built at construction.

    Args:
        shape: without the batch axis; a leading None is accepted. name, dtype, trainable: see `Layer`.

    Raises:
        ShapeError: the shape is not made of positive integers, or an input has another shape.
    """

    shape: tuple[int, ...] = part(rows_of, fixed=True)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Check the shape of the inputs."""
        if input_shape != self.shape:
            raise ShapeError(f"the inputs must have shape {('batch', *self.shape)}; got {('batch', *input_shape)}")
        return input_shape

    def call(self, ctx: Context, x: Array) -> tuple[Array, Any]:
        """Return x."""
        return x, lambda dy: dy
