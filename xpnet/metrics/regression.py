"""Metrics of real targets: errors, the coefficient of determination, similarity and correlation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..backend import Array
from ..core.ops import over_rows
from ..core.settings import setting
from ..errors import ShapeError, number, one_of
from ..kernels.context import Context
from .base import Count, Metric, for_outputs, ratio, registry, same_shape, unit_total

__all__ = [
    "ConcordanceCorrelation",
    "CosineSimilarity",
    "LogCoshError",
    "PearsonCorrelation",
    "R2Score",
    "RootMeanSquaredError",
]

EPSILON = 1e-7  # Keras' smallest denominator


@registry.register
class RootMeanSquaredError(Metric):
    """sqrt of the mean over rows and units of (p - y)^2. Args: name, dtype (see `Metric`).

    >>> float(RootMeanSquaredError()([[0.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]]))
    0.5
    """

    default_name = "root_mean_squared_error"
    direction = "min"
    unit_weights = True

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return the squared error of each unit."""
        d = p - same_shape(self, y, p, ctx.xp)
        return d * d

    def compute(self, xp: Any, *sums: Array) -> Array:
        """Return the root of the mean."""
        return xp.sqrt(ratio(xp, *sums))


@registry.register
class LogCoshError(Metric):
    """The mean over rows and units of log(cosh(p - y)). Args: name, dtype (see `Metric`).

    With d = |p - y| it is d + log1p(exp(-2 d)) - log(2), in which nothing overflows.

    >>> round(float(LogCoshError()([[0.0], [0.0]], [[1.0], [0.0]])), 4)
    0.2169
    """

    default_name = "logcosh"
    direction = "min"
    unit_weights = True

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return the loss of each unit."""
        d = ctx.xp.abs(p - same_shape(self, y, p, ctx.xp))
        return d + (ctx.xp.log1p(ctx.xp.exp(-2.0 * d)) - math.log(2.0))


class _AlongAxis(Metric):
    """Base class: the mean of a number computed along one axis of targets and predictions.

    Args:
        name, dtype: see `Metric`. axis: the axis of the predictions, which must have the batch first.
    """

    least = 1  # elements along the axis

    name: str = Metric.name
    dtype: str | None = Metric.dtype
    axis: int = setting(number, integer=True, default=-1)

    def for_shapes(self, targets: tuple[int, ...], outputs: tuple[int, ...]) -> Metric:
        """Return the metric if the axis exists and is long enough."""
        n = len(outputs)
        if not -n <= self.axis < n:
            raise ShapeError(f"axis must be in [{-n}, {n}) for outputs of {n} axes; got {self.axis}")
        if self.axis % n and outputs[self.axis] < self.least:
            raise ShapeError(
                f"{type(self).__name__} needs {self.least} or more numbers along axis {self.axis} (axis=0 is "
                f"that of the rows of a batch); got outputs of shape {outputs}"
            )
        return self

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return one number for each place of the other axes."""
        return self.along(ctx.xp, same_shape(self, y, p, ctx.xp), p)

    def along(self, xp: Any, y: Array, p: Array) -> Array:
        """Return one number for each place of the other axes."""
        raise TypeError(f"{type(self).__name__} must define along(xp, y, p)")

    def counts(self, ctx: Context, y: Array, p: Array, weight: Array | None) -> Sequence[Count]:
        """Return the sum over the other axes, and its weight."""
        if weight is not None and self.axis % p.ndim == 0:
            raise ShapeError(f"weights of rows need an axis other than that of the batch; got axis {self.axis}")
        return super().counts(ctx, y, p, weight)


@registry.register
class CosineSimilarity(_AlongAxis):
    """The mean over rows of sum(y p) / (|y| |p|), between -1 and 1; norms are at least 1e-7.

    The loss of this name is its negative.

    Args:
        name, dtype: see `Metric`. axis: along which the sums run.

    >>> float(CosineSimilarity()([[0.0, 2.0], [1.0, 0.0]], [[0.0, 3.0], [0.0, 1.0]]))
    0.5
    """

    default_name = "cosine_similarity"
    direction = "max"

    def along(self, xp: Any, y: Array, p: Array) -> Array:
        """Return the cosines."""
        norms = [xp.sqrt(xp.sum(a * a, axis=self.axis, keepdims=True)) for a in (y, p)]
        y, p = (a / xp.maximum(norm, xp.full_like(norm, EPSILON)) for a, norm in zip((y, p), norms))
        return xp.sum(y * p, axis=self.axis)


@registry.register
class PearsonCorrelation(_AlongAxis):
    """The mean over rows of Pearson's correlation of targets and outputs: cov(y, p) / (std(y) std(p)).

    Args:
        name, dtype: see `Metric`. axis: along which means, variances and covariance are taken. With axis=0 they
            are those of each batch, and the result is the mean over batches, as in Keras.

    The result is NaN if a row is constant.

    >>> metric = PearsonCorrelation()
    >>> metric.update_state([[0, 1, 0.5], [1, 1, 0.2]], [[0.1, 0.9, 0.5], [1, 0.9, 0.2]])
    >>> round(float(metric.result()), 4)
    0.9967
    """

    default_name = "pearson_correlation"
    direction = "max"
    least = 2

    def along(self, xp: Any, y: Array, p: Array) -> Array:
        """Return the correlations."""
        _, _, var_y, var_p, cov = _moments(xp, y, p, self.axis)
        return cov / xp.sqrt(var_y * var_p)


@registry.register
class ConcordanceCorrelation(_AlongAxis):
    """The mean over rows of 2 cov(y, p) / (var(y) + var(p) + (mean(y) - mean(p))^2 + 1e-7).

    Source: L. Lin, "A concordance correlation coefficient to evaluate reproducibility", Biometrics 45, 1989.

    Args:
        name, dtype: see `Metric`. axis: as for `PearsonCorrelation`.

    >>> metric = ConcordanceCorrelation()
    >>> metric.update_state([[0, 1, 0.5], [1, 1, 0.2]], [[0.1, 0.9, 0.5], [1, 0.9, 0.2]])
    >>> round(float(metric.result()), 4)
    0.9816
    """

    default_name = "concordance_correlation"
    direction = "max"
    least = 2

    def along(self, xp: Any, y: Array, p: Array) -> Array:
        """Return the coefficients."""
        mean_y, mean_p, var_y, var_p, cov = _moments(xp, y, p, self.axis)
        return 2.0 * cov / (var_y + var_p + (mean_y - mean_p) ** 2 + EPSILON)


def _moments(xp: Any, y: Array, p: Array, axis: int) -> tuple[Array, Array, Array, Array, Array]:
    """Return mean(y), mean(p), var(y), var(p) and cov(y, p) along an axis, from differences to the means."""
    means = [xp.mean(a, axis=axis, keepdims=True) for a in (y, p)]
    dy, dp = y - means[0], p - means[1]
    mean_y, mean_p = (xp.squeeze(m, axis=axis) for m in means)
    var_y, var_p, cov = (xp.mean(a, axis=axis) for a in (dy * dy, dp * dp, dy * dp))
    return mean_y, mean_p, var_y, var_p, cov


def _aggregation(name: str, value: Any) -> Any:
    return value if value is None else one_of(name, value, ("uniform_average", "variance_weighted_average"))


@registry.register
class R2Score(Metric):
    """The coefficient of determination of each unit, 1 - sum(w (y - p)^2) / sum(w (y - mean)^2), or its average.

    Args:
        class_aggregation: None (a result for each unit, shape (units,)), `"uniform_average"` or
            `"variance_weighted_average"`, weighted by sum(w (y - mean)^2).
        num_regressors: r: if not 0, the adjusted score 1 - (1 - score) (n - 1) / (n - r - 1), where n counts all
            targets of all units, as in Keras; not adjusted where n - r - 1 <= 0. name, dtype: see `Metric`.

    As in Keras, a unit whose targets are constant scores 0 (NaN if the predictions are exact), and the result is
    NaN if all weights are 0.

    The sum of squares is taken around a value near the batch's mean and moved to 0 in float64, so that float32
    targets far from 0 keep their digits. Where the library has no float64, this is done in pairs of float32
    numbers in training and evaluation; a metric used alone then loses digits.

    >>> metric = R2Score()
    >>> metric.update_state([[1.0], [4.0], [3.0]], [[2.0], [4.0], [4.0]])
    >>> round(float(metric.result()), 4)
    0.5714
    """

    default_name = "r2_score"
    direction = "max"
    unit_weights = True
    units = 0

    class_aggregation: str | None = setting(_aggregation, default="uniform_average")
    num_regressors: int = setting(number, 0, integer=True, default=0)

    @property
    def sums(self) -> Mapping[str, tuple[int, ...]]:
        """By unit: the weights; the summands of w y and w y^2; the squared errors; and the number of targets."""
        n = (self.units,)
        return {"weight": n, "first": (3, *n), "second": (5, *n), "errors": n, "targets": ()}

    def for_shapes(self, targets: tuple[int, ...], outputs: tuple[int, ...]) -> Metric:
        """Return the metric for this number of outputs."""
        return for_outputs(self, units=outputs[-1])

    def counts(self, ctx: Context, y: Array, p: Array, weight: Array | None) -> Sequence[Count]:
        """Return the batch's sums, with d = y - c, c a value near the mean of the batch, W the sum of weights.

        sum(w y) = W c + sum(w d);  sum(w y^2) = W c c + 2 c sum(w d) + sum(w d^2).
        """
        xp, y = ctx.xp, same_shape(self, y, p, ctx.xp)
        w = xp.ones_like(y) if weight is None else over_rows(xp, weight, y.shape)
        rows = math.prod(y.shape[:-1])
        c = unit_total(ctx, y, None) / max(rows, 1)
        d, e = y - c, y - p
        parts = [c, *(unit_total(ctx, a, None) for a in (w, w * d, w * d * d))]
        if ctx.backend.wide:
            parts = [xp.astype(a, xp.float64, copy=False) for a in parts]
        c, total, first, second = parts
        high, low = _product(xp, total, c)
        squares = (*_product(xp, high, c), low * c, 2.0 * c * first, second)
        errors = unit_total(ctx, w * e * e, None)
        return total, xp.stack([high, low, first]), xp.stack(squares), errors, 1.0 * math.prod(y.shape)

    def compute(self, xp: Any, *sums: Array) -> Array:
        """Return the scores, or their average."""
        weight, first, second, errors, n = sums
        first, second = (xp.sum(a, axis=0) for a in (first, second))
        total = second - first * (first / weight)
        score = 1.0 - errors / total
        score = xp.where(xp.isinf(score), xp.zeros_like(score), score)
        if self.class_aggregation == "uniform_average":
            score = xp.sum(score) / max(score.shape[0], 1)
        elif self.class_aggregation == "variance_weighted_average":
            score = xp.sum(total * score) / xp.sum(total)
        if not self.num_regressors:
            return score
        free = n - self.num_regressors - 1.0
        adjusted = 1.0 - (1.0 - score) * (n - 1.0) / xp.where(free > 0, free, xp.ones_like(free))
        return xp.where(free > 0, adjusted, score)


def _product(xp: Any, a: Array, b: Array) -> tuple[Array, Array]:
    """Return a b rounded, and what rounding lost of it: exact for float32 numbers.

    T. Dekker, "A floating-point technique for extending the available precision", Numerische Mathematik 18, 1971.
    """
    (a1, a2), (b1, b2) = ((t - (t - x), x - (t - (t - x))) for t, x in ((4097.0 * a, a), (4097.0 * b, b)))
    high = a * b
    return high, ((a1 * b1 - high) + a1 * b2 + a2 * b1) + a2 * b2
