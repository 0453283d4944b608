"""What metrics of positive calls share: weights by score and truth, and the four counts at each threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..backend import Array
from ..core.ops import over_rows
from ..core.settings import optional
from ..errors import InvalidValueError, ShapeError, number
from ..kernels.context import Context
from .accuracy import class_numbers, positive
from .base import Metric

__all__ = ["Calls", "Thresholds", "four_counts", "grid", "threshold_list"]


class Calls(Metric):
    """Base class of the metrics of positive calls: an output is called positive if its score is above a threshold.

    The sums are the weights of the outputs by interval of scores (a bin) and by truth, so that a batch costs the
    same for any number of thresholds: each output adds to one bin, not to a count per threshold. Bin b holds the
    outputs whose score is above exactly b thresholds.

    Targets are of the outputs' shape (above 0.5 is positive) or class numbers.

    Memory for a batch of n outputs and T thresholds: 4 n sqrt(2 T) numbers without a CUDA kernel, instead of n T.
    """

    unit_weights = True

    @property
    def levels(self) -> Sequence[float]:
        """The thresholds, in ascending order."""
        raise TypeError(f"{type(self).__name__} must define levels")

    @property
    def sums(self) -> Mapping[str, tuple[int, ...]]:
        """The weights by bin (first axis), of negative and of positive outputs."""
        return {"bins": (len(self.levels) + 1, 2)}

    def bins(self, xp: Any, p: Array) -> Array:
        """Return how many thresholds are below each score, int32."""
        found = xp.zeros_like(p, dtype=xp.int32)
        for level in self.levels:
            found = found + xp.astype(p > level, xp.int32)
        return found

    def sides(self, ctx: Context, y: Array, p: Array) -> tuple[Array, Array]:
        """Return the score of each output, and whether it is positive."""
        if p.shape[-1] > 1 and y.shape != p.shape:
            y = ctx.ops.one_hot(ctx, class_numbers(ctx, y, p), p.shape[-1], p.dtype)
        return p, positive(ctx, y, p)

    def one_class(self, a: Array, class_id: int | None) -> Array:
        """Return the outputs of one class, shape (..., 1); all of them for None."""
        if class_id is None:
            return a
        if class_id >= a.shape[-1]:
            raise ShapeError(f"class_id must be less than the {a.shape[-1]} outputs; got {class_id}")
        return a[..., class_id : class_id + 1]

    def counts(self, ctx: Context, y: Array, p: Array, weight: Array | None) -> Sequence[Array]:
        """Return the batch's weights by bin and truth."""
        xp = ctx.xp
        scores, actual = self.sides(ctx, y, p)
        if weight is not None:
            weight = self.one_class(over_rows(xp, weight, p.shape), getattr(self, "class_id", None))
        return (self.histogram(ctx, self.bins(xp, scores), actual, weight),)

    def histogram(self, ctx: Context, bins: Array, actual: Array, weight: Array | None) -> Array:
        """Return the sums of the weights by bin and truth, shape (..., bins, 2) as `sums` say.

        With k = 2 bin + truth and c = ceil(sqrt(number of values of k)) it is the confusion matrix of k // c and
        k % c, which has about as many elements as k has values.
        """
        xp, shape = ctx.xp, next(iter(self.sums.values()))
        kinds = shape[-2] * shape[-1]
        root = math.isqrt(kinds - 1) + 1
        k = 2 * bins + xp.astype(actual, xp.int32)
        k, weight = _by_label(xp, k, shape[:-2]), None if weight is None else _by_label(xp, weight, shape[:-2])
        found = ctx.ops.confusion(ctx, k // root, k % root, weight, root)
        return xp.reshape(xp.reshape(found, (*shape[:-2], root * root))[..., :kinds], shape)


def _by_label(xp: Any, a: Array, labels: tuple[int, ...]) -> Array:
    """Return numbers of shape (..., units) as (n,), or as (units, n) if `labels` is (units,)."""
    if labels in ((), (1,)):
        return xp.reshape(a, (*labels, -1))
    flat = xp.reshape(xp.matrix_transpose(xp.reshape(a, (-1, *labels))), (-1,))
    return xp.reshape(flat, (*labels, -1))


def four_counts(xp: Any, bins: Array) -> tuple[Array, Array, Array, Array]:
    """Return true and false positives, false and true negatives at each threshold, shape (..., T).

    Args:
        bins: weights by bin and truth, shape (..., T + 1, 2).
    """
    above = xp.flip(xp.cumulative_sum(xp.flip(bins, axis=-2), axis=-2), axis=-2)  # in this bin or a higher one
    called, all_of = above[..., 1:, :], above[..., :1, :]
    rest = all_of - called
    return called[..., 1], called[..., 0], rest[..., 1], rest[..., 0]


def threshold_list(name: str, value: Any) -> Any:
    """Check thresholds: None, a number in [0, 1], or a list of such numbers."""
    if value is None or not isinstance(value, (list, tuple)):
        return optional(number)(name, value, 0, 1)
    if not value:
        raise InvalidValueError(f"{name} must be numbers in [0, 1], or None; got {value!r}")
    return tuple(number(name, t, 0, 1) for t in value)


class Thresholds(Calls):
    """Base class of the metrics with one result for each of a few thresholds, in the order of the caller."""

    thresholds: Any

    @property
    def given(self) -> tuple[float, ...]:
        """The thresholds as a tuple."""
        if self.thresholds is None:
            return (0.5,)
        return self.thresholds if isinstance(self.thresholds, tuple) else (self.thresholds,)

    @property
    def levels(self) -> Sequence[float]:
        """The thresholds, in ascending order."""
        return sorted(self.given)

    def at_thresholds(self, xp: Any, tp: Array, fp: Array, fn: Array, tn: Array) -> Array:
        """Return the result for each threshold, from the counts at each of them."""
        raise TypeError(f"{type(self).__name__} must define at_thresholds(xp, tp, fp, fn, tn)")

    def compute(self, xp: Any, *sums: Array) -> Array:
        """Return the result: a number for one threshold, else shape (thresholds,)."""
        found, given, levels = self.at_thresholds(xp, *four_counts(xp, sums[0])), self.given, list(self.levels)
        if len(given) == 1:
            return found[0]
        return xp.stack([found[levels.index(level)] for level in given])


def grid(xp: Any, p: Array, count: int) -> Array:
    """Return how many of `count` thresholds, evenly spaced from 0 to 1, are below each score in [0, 1], int32.

    ceil((count - 1) p), as in Keras; scores below 0 or above 1 count as 0 and 1, NaN as 0.
    """
    p = xp.where(p > 0, p, xp.zeros_like(p))
    p = xp.where(p < 1, p, xp.ones_like(p))
    return xp.astype(xp.ceil(p * (count - 1.0)), xp.int32)
