"""Losses of real targets."""

from __future__ import annotations

import math
from typing import Any

from ..backend import Array
from ..core.ops import columns
from ..core.settings import setting
from ..errors import number
from ..kernels.context import Context
from .base import EPSILON, Elementwise, Loss, registry
from .targets import LIKE_OUTPUTS

__all__ = [
    "CosineSimilarity",
    "Huber",
    "LogCosh",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredError",
    "MeanSquaredLogarithmicError",
    "Quantile",
]


def _sign(xp: Any, a: Array) -> Array:
    """Return 1, -1 or 0; unlike `sign` of some libraries it does not wait for the device."""
    return xp.astype(a > 0, a.dtype) - xp.astype(a < 0, a.dtype)


@registry.register("mse")
class MeanSquaredError(Elementwise):
    """mean over units of (p - y)^2;  d/dp = 2 (p - y) / units. Half of it: the notes' E = (y - o)^2 / 2.

    Args:
        reduction, name, dtype: see `Loss`.
    """

    targets = LIKE_OUTPUTS

    def at(self, xp: Any, y: Array, p: Array) -> tuple[Array, Array]:
        """Return (p - y)^2 and 2 (p - y)."""
        difference = p - y
        return difference * difference, 2.0 * difference


@registry.register("mae")
class MeanAbsoluteError(Elementwise):
    """mean over units of |p - y|;  d/dp = sign(p - y) / units (0 where p = y).

    Args:
        reduction, name, dtype: see `Loss`.
    """

    targets = LIKE_OUTPUTS

    def at(self, xp: Any, y: Array, p: Array) -> tuple[Array, Array]:
        """Return |p - y| and sign(p - y)."""
        difference = p - y
        return xp.abs(difference), _sign(xp, difference)


@registry.register("mape")
class MeanAbsolutePercentageError(Elementwise):
    """100 times the mean over units of |p - y| / max(|y|, 1e-7);  d/dp = 100 sign(p - y) / max(|y|, 1e-7) / units.

    Args:
        reduction, name, dtype: see `Loss`.

    >>> round(float(MeanAbsolutePercentageError()([[2.0], [4.0]], [[1.0], [5.0]])), 4)
    37.5
    """

    targets = LIKE_OUTPUTS

    def at(self, xp: Any, y: Array, p: Array) -> tuple[Array, Array]:
        """Return 100 |p - y| / max(|y|, 1e-7) and its derivative."""
        size = xp.abs(y)
        scale = 100.0 / xp.maximum(size, xp.full_like(size, EPSILON))
        return xp.abs(p - y) * scale, _sign(xp, p - y) * scale


@registry.register("msle")
class MeanSquaredLogarithmicError(Elementwise):
    """mean over units of d^2, for d = log(1 + p) - log(1 + y);  d/dp = 2 d / (1 + p) / units.

    As in Keras, predictions and targets below 1e-7 are taken as 1e-7; there d/dp = 0.

    Args:
        reduction, name, dtype: see `Loss`.

    >>> round(float(MeanSquaredLogarithmicError()([[1.0]], [[3.0]])), 4)  # log(2)^2
    0.4805
    """

    targets = LIKE_OUTPUTS

    def at(self, xp: Any, y: Array, p: Array) -> tuple[Array, Array]:
        """Return (log(1 + p) - log(1 + y))^2 and its derivative."""
        least = xp.full_like(p, EPSILON)
        q = xp.maximum(p, least)
        d = xp.log1p(q) - xp.log1p(xp.maximum(y, least))
        return d * d, 2.0 * d / (1.0 + q) * xp.astype(p > least, p.dtype)


@registry.register
class Huber(Elementwise):
    """mean over units of d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2), for d = p - y.

    Source: P. J. Huber, "Robust estimation of a location parameter", Annals of Mathematical Statistics 35, 1964.

    Args:
        delta: > 0: larger errors count linearly. reduction, name, dtype: see `Loss`.

    >>> round(float(Huber()([[0.0], [0.0]], [[1.0], [3.0]])), 4)
    1.5
    """

    targets = LIKE_OUTPUTS
    delta: float = setting(number, 0, open_low=True, default=1.0)

    def at(self, xp: Any, y: Array, p: Array) -> tuple[Array, Array]:
        """Return c (d - c / 2) and c, which is d brought into [-delta, delta]."""
        d = p - y
        c = xp.minimum(xp.maximum(d, xp.full_like(d, -self.delta)), xp.full_like(d, self.delta))
        return c * (d - 0.5 * c), c


@registry.register("logcosh")
class LogCosh(Elementwise):
    """mean over units of log(cosh(d)), for d = p - y;  d/dp = tanh(d) / units.

    It is about d^2 / 2 for small errors and |d| - log 2 for large ones. With t = tanh(d) it is computed as
    -log(1 - t^2) / 2 where t^2 < 1/2, which keeps small values exact, else as |d| + log(1 + exp(-2 |d|)) - log 2,
    which does not overflow.

    Args:
        reduction, name, dtype: see `Loss`.

    >>> round(float(LogCosh()([[0.0]], [[1.0]])), 4)
    0.4338
    """

    targets = LIKE_OUTPUTS

    def at(self, xp: Any, y: Array, p: Array) -> tuple[Array, Array]:
        """Return log(cosh(p - y)) and tanh(p - y)."""
        d = p - y
        slope, size = xp.tanh(d), xp.abs(d)
        square = slope * slope
        near = square < 0.5
        small = -0.5 * xp.log1p(-xp.where(near, square, xp.zeros_like(square)))
        return xp.where(near, small, size + xp.log1p(xp.exp(-2.0 * size)) - math.log(2.0)), slope


@registry.register("pinball")
class Quantile(Elementwise):
    """mean over units of q (y - p) where y > p, else (1 - q) (p - y): the "pinball" loss of the quantile q.

    d/dp = -q / units where y > p, (1 - q) / units where y < p, and 0 at y = p. Its expectation is least where p is
    the q-quantile of y: with q = 0.5, where it is half of `MeanAbsoluteError`, at the median.

    Source: R. Koenker, G. Bassett, "Regression quantiles", Econometrica 46, 1978; scikit-learn's
    `mean_pinball_loss`.

    Args:
        quantile: q in [0, 1]. reduction, name, dtype: see `Loss`.

    >>> round(float(Quantile(0.9)([[1.0], [1.0]], [[0.0], [2.0]])), 4)
    0.5
    """

    targets = LIKE_OUTPUTS
    quantile: float = setting(number, 0, 1, default=0.5)

    def at(self, xp: Any, y: Array, p: Array) -> tuple[Array, Array]:
        """Return the loss of each unit and its derivative."""
        d = p - y
        slope = (1.0 - self.quantile) * xp.astype(d > 0, d.dtype) - self.quantile * xp.astype(d < 0, d.dtype)
        return slope * d, slope


@registry.register
class CosineSimilarity(Loss):
    """-sum of y p / (|y| |p|) along an axis: -1 for vectors of one direction, 1 for opposite ones.

    With n = y / |y| and u = p / |p| it is d/dp = (u sum(n u) - n) / |p|. As in Keras, norms below 1e-7 are taken
    as 1e-7, so that the loss of a vector of zeros is 0.

    Args:
        axis: of the vectors. reduction, name, dtype: see `Loss`.

    >>> round(float(CosineSimilarity()([[3.0, 4.0]], [[4.0, 3.0]])), 4)
    -0.96
    """

    targets = LIKE_OUTPUTS
    axis: int = setting(number, integer=True, default=-1)

    def terms(self, ctx: Context, y: Array, p: Array, weight: Any) -> tuple[Array, Array]:
        """Return the values of the rows and their derivative by p times `weight`."""
        xp = ctx.xp
        n, u = (a * _inverse_norm(xp, a) for a in (y, p))
        inverse = _inverse_norm(xp, p)
        cosine = xp.sum(n * u, axis=-1)
        # a norm that is taken as 1e-7 does not depend on p
        turned = u * columns(xp, cosine) * xp.astype(inverse < 1.0 / EPSILON, p.dtype)
        return -cosine, (turned - n) * inverse * columns(xp, weight)


def _inverse_norm(xp: Any, a: Array) -> Array:
    """Return 1 / max(|a|, 1e-7) over the last axis, which remains with size 1."""
    norm = xp.sqrt(xp.sum(a * a, axis=-1, keepdims=True))
    return 1.0 / xp.maximum(norm, xp.full_like(norm, EPSILON))
