"""Layers that only change or declare shapes."""

from __future__ import annotations

import math
from typing import Any

from ..backend import Array, np
from ..core.settings import part, setting
from ..errors import InvalidTypeError, ShapeError, number
from ..kernels.context import Context
from .base import Stateless, registry, rows_of

__all__ = ["Flatten", "Input", "Permute", "RepeatVector", "Reshape"]


class _Reshaped(Stateless):
    """Base class: gives each row the output's shape, its elements in the same order; dx has the shape of x
    again."""

    def call(self, ctx: Context, x: Array) -> tuple[Array, Any]:
        """Return the reshaped input."""
        xp, shape = ctx.xp, x.shape
        first = x.ndim - len(self.input_shape or ())
        y = xp.reshape(x, (*shape[:first], *(self.output_shape or ())))
        return y, lambda dy: xp.reshape(dy, shape)


@registry.register
class Flatten(_Reshaped):
    """Turn (batch, a, b, ...) into (batch, a * b * ...). Args: name, dtype, trainable (see `Layer`).

    >>> Flatten()([[[1.0, 2.0], [3.0, 4.0]]]).tolist()
    [[1.0, 2.0, 3.0, 4.0]]
    """

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the flattened size."""
        return (math.prod(input_shape),)


def _integers(sizes: Any) -> tuple[int, ...]:
    """Return a tuple of integers. Raises: InvalidTypeError: it is none."""
    if not isinstance(sizes, (tuple, list)) or not all(
        isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in sizes
    ):
        raise InvalidTypeError(f"a tuple of integers is expected; got {sizes!r}")
    return tuple(int(n) for n in sizes)


@registry.register
class Reshape(_Reshaped):
    """Turn (batch, *input_shape) into (batch, *target_shape), the elements of a row in the same order.

    Args:
        target_shape: a tuple of positive integers without the batch axis; one of them may be -1, and follows from
            the number of elements. name, dtype, trainable: see `Layer`.

    Raises:
        InvalidTypeError: not a tuple of integers. ShapeError: the numbers of elements differ.

    >>> Reshape((2, -1))([[1.0, 2.0, 3.0, 4.0]]).tolist()
    [[[1.0, 2.0], [3.0, 4.0]]]
    """

    target_shape: tuple[int, ...] = part(_integers, fixed=True)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the target shape, the size -1 replaced."""
        size, target = math.prod(input_shape), self.target_shape
        known = math.prod(n for n in target if n != -1)
        if target.count(-1) == 1 and known > 0 and size % known == 0:
            target = tuple(size // known if n == -1 else n for n in target)
        if math.prod(target) != size or min(target, default=1) < 1:
            raise ShapeError(
                f"target_shape must have as many elements as the inputs, of shape {('batch', *input_shape)}; got "
                f"{self.target_shape}"
            )
        return target


@registry.register
class Permute(Stateless):
    """Exchange the axes of a row: axis i of the output (from 1, without the batch axis) is axis dims[i] of the
    input.

    Args:
        dims: a permutation of 1, 2, ..., n for inputs of n axes. name, dtype, trainable: see `Layer`.

    Raises:
        InvalidTypeError: not a tuple of integers. ShapeError: no permutation of the axes of the inputs.

    dx has the axes of x again: the inverse permutation.

    >>> Permute((2, 1))([[[1.0, 2.0], [3.0, 4.0]]]).tolist()
    [[[1.0, 3.0], [2.0, 4.0]]]
    """

    dims: tuple[int, ...] = part(_integers, fixed=True)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the exchanged sizes."""
        if sorted(self.dims) != list(range(1, len(input_shape) + 1)):
            raise ShapeError(
                f"dims must be a permutation of the axes 1 to {len(input_shape)} of inputs of shape "
                f"{('batch', *input_shape)}; got {self.dims}"
            )
        return tuple(input_shape[i - 1] for i in self.dims)

    def call(self, ctx: Context, x: Array) -> tuple[Array, Any]:
        """Return the input with its axes exchanged."""
        xp, first = ctx.xp, x.ndim - len(self.dims)
        axes = (*range(first), *(first + i - 1 for i in self.dims))
        back = tuple(axes.index(i) for i in range(x.ndim))
        return xp.permute_dims(x, axes), lambda dy: xp.permute_dims(dy, back)


@registry.register
class RepeatVector(Stateless):
    """Turn (batch, features) into (batch, n, features): each row n times.

    Args:
        n: how many times, at least 1. name, dtype, trainable: see `Layer`.

    Raises:
        InvalidValueError: n is not a positive integer. ShapeError: the inputs do not have shape (batch, features).

    dx is the sum of dy over the repetitions.

    >>> RepeatVector(2)([[1.0, 2.0]]).tolist()
    [[[1.0, 2.0], [1.0, 2.0]]]
    """

    n: int = setting(number, 1, integer=True, fixed=True)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (n, features)."""
        if len(input_shape) != 1:
            raise ShapeError(
                f"RepeatVector takes inputs of shape (batch, features); got {('batch', *input_shape)}"
            )
        return (self.n, *input_shape)

    def call(self, ctx: Context, x: Array) -> tuple[Array, Any]:
        """Return each row n times."""
        xp = ctx.xp
        return xp.repeat(xp.expand_dims(x, axis=-2), self.n, axis=-2), lambda dy: xp.sum(dy, axis=-2)


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
