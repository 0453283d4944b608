"""Functions of all elements along an axis."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..errors import ShapeError
from .base import AlongAxis, logistic, registry

__all__ = ["Glu", "LogSoftmax", "Softmax", "Sparsemax"]


@registry.register
class Softmax(AlongAxis):
    """f(z)_i = exp(z_i) / sum_j exp(z_j);  da_i/dz_j = a_i ((i = j) - a_j).

    Args:
        axis: the axis to normalize, counted in the whole array with its batch axis.

    >>> Softmax(axis=0)([[0.0, 1.0], [0.0, 1.0]]).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """

    def forward(self, xp: Any, z: Array) -> Array:
        """Return the softmax; the maximum is subtracted first, so that nothing overflows."""
        e = xp.exp(z - xp.max(z, axis=self.axis, keepdims=True))
        return e / xp.sum(e, axis=self.axis, keepdims=True)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return a * (da - sum(da * a))."""
        return a * (da - xp.sum(da * a, axis=self.axis, keepdims=True))


@registry.register
class LogSoftmax(AlongAxis):
    """f(z)_i = z_i - log(sum_j exp(z_j));  da_i/dz_j = (i = j) - exp(a_j).

    Args:
        axis: the axis to normalize, counted in the whole array with its batch axis.
    """

    def forward(self, xp: Any, z: Array) -> Array:
        """Return the logarithm of the softmax; the maximum is subtracted first, so that nothing overflows."""
        shifted = z - xp.max(z, axis=self.axis, keepdims=True)
        return shifted - xp.log(xp.sum(xp.exp(shifted), axis=self.axis, keepdims=True))

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da - exp(a) * sum(da)."""
        return da - xp.exp(a) * xp.sum(da, axis=self.axis, keepdims=True)


@registry.register
class Sparsemax(AlongAxis):
    """f(z) = max(z - t, 0) with t such that the sum is 1: the probabilities nearest to z, many of them exactly 0.

    A. Martins, R. Astudillo, "From softmax to sparsemax", ICML 2016. With the scores in descending order, the
    support has as many elements as the largest k with 1 + k z_k > z_1 + ... + z_k, and t = (that sum - 1) / k. On
    the support, da_i/dz_j = (i = j) - 1/k; elsewhere 0.

    Args:
        axis: the axis to normalize, counted in the whole array with its batch axis.

    >>> Sparsemax()([[1.0, 0.5, -1.0]]).tolist()
    [[0.75, 0.25, 0.0]]
    """

    def forward(self, xp: Any, z: Array) -> Array:
        """Return max(z - t, 0); the maximum is subtracted first, so that t is as accurate as its part of z."""
        axis, shifted = self.axis, z - xp.max(z, axis=self.axis, keepdims=True)
        ordered = -xp.sort(-shifted, axis=axis)
        place = xp.cumulative_sum(xp.ones_like(z), axis=axis)
        supports = xp.astype(1.0 + place * ordered > xp.cumulative_sum(ordered, axis=axis), z.dtype)
        k = xp.sum(supports, axis=axis, keepdims=True)
        t = (xp.sum(supports * ordered, axis=axis, keepdims=True) - 1.0) / k
        return xp.maximum(shifted - t, xp.zeros_like(z))

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da - its mean over the support, and 0 elsewhere."""
        support = xp.astype(a > 0, a.dtype)
        k = xp.sum(support, axis=self.axis, keepdims=True)
        return support * (da - xp.sum(da * support, axis=self.axis, keepdims=True) / k)


@registry.register
class Glu(AlongAxis):
    """f(u, v) = u s with s = 1 / (1 + exp(-v)), where u and v are the halves of z;  df = s du + a (1 - s) dv.

    Y. Dauphin et al., "Language modeling with gated convolutional networks", ICML 2017. The result has half as
    many elements along the axis.

    Args:
        axis: the axis to halve, counted in the whole array with its batch axis.

    Raises:
        ShapeError: the length along the axis is odd.

    >>> Glu()([[3.0, 4.0, 0.0, 0.0]]).tolist()
    [[1.5, 2.0]]
    """

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape with half as many elements along the axis."""
        size = input_shape[self.axis]
        if size % 2:
            raise ShapeError(
                f"glu needs an even number of elements along axis {self.axis}; got {tuple(input_shape)}"
            )
        shape = list(input_shape)
        shape[self.axis] = size // 2
        return tuple(shape)

    def forward(self, xp: Any, z: Array) -> Array:
        """Return u s."""
        u, v = self._halves(z)
        return u * logistic(xp, v)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return (da s, da a (1 - s))."""
        s = logistic(xp, self._halves(z)[1])
        return xp.concat([da * s, da * a * (1.0 - s)], axis=self.axis)

    def _halves(self, z: Array) -> list[Array]:
        half = self.output_shape(z.shape)[self.axis]
        before: Any = (slice(None),) * (self.axis % z.ndim)
        return [z[(*before, part, ...)] for part in (slice(None, half), slice(half, None))]
