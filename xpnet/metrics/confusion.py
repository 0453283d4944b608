"""Counts of right and wrong calls: the four counts, precision, recall, the confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..backend import Array
from ..core.ops import over_rows
from ..core.settings import optional, setting
from ..errors import ShapeError, number
from ..kernels.context import Context
from .accuracy import class_numbers, positive
from .base import Metric, for_outputs, ratio, registry
from .thresholds import Thresholds, threshold_list

__all__ = [
    "ConfusionMatrix",
    "FalseNegatives",
    "FalsePositives",
    "Precision",
    "Recall",
    "TrueNegatives",
    "TruePositives",
]


@registry.register
class TruePositives(Thresholds):
    """The number of positive outputs that are called positive; with weights, the sum of their weights.

    Args:
        thresholds: p > threshold is called positive: a number in [0, 1] (None: 0.5), or a list, for a result of
            shape (thresholds,). name, dtype: see `Metric`.

    Targets are of the outputs' shape (above 0.5 is positive) or class numbers.

    >>> metric = TruePositives()
    >>> metric.update_state([0, 1, 1, 1], [0.9, 0.8, 0.2, 0.7])
    >>> float(metric.result())
    2.0
    """

    default_name = "true_positives"
    direction = "max"
    thresholds: Any = setting(threshold_list, default=None)

    def at_thresholds(self, xp: Any, tp: Array, fp: Array, fn: Array, tn: Array) -> Array:
        """Return the true positives."""
        return tp


@registry.register
class FalsePositives(TruePositives):
    """The number of negative outputs that are called positive; with weights, the sum of their weights.

    Args:
        thresholds, name, dtype: see `TruePositives`.

    >>> float(FalsePositives()([0, 1, 1, 1], [0.9, 0.8, 0.2, 0.7]))
    1.0
    """

    default_name = "false_positives"
    direction = "min"

    def at_thresholds(self, xp: Any, tp: Array, fp: Array, fn: Array, tn: Array) -> Array:
        """Return the false positives."""
        return fp


@registry.register
class FalseNegatives(TruePositives):
    """The number of positive outputs that are not called positive; with weights, the sum of their weights.

    Args:
        thresholds, name, dtype: see `TruePositives`.

    >>> float(FalseNegatives()([0, 1, 1, 1], [0.9, 0.8, 0.2, 0.7]))
    1.0
    """

    default_name = "false_negatives"
    direction = "min"

    def at_thresholds(self, xp: Any, tp: Array, fp: Array, fn: Array, tn: Array) -> Array:
        """Return the false negatives."""
        return fn


@registry.register
class TrueNegatives(TruePositives):
    """The number of negative outputs that are not called positive; with weights, the sum of their weights.

    Args:
        thresholds, name, dtype: see `TruePositives`.

    >>> TrueNegatives([0.1, 0.95])([0, 1, 1, 1], [0.9, 0.8, 0.2, 0.7]).tolist()
    [0.0, 1.0]
    """

    default_name = "true_negatives"
    direction = "max"

    def at_thresholds(self, xp: Any, tp: Array, fp: Array, fn: Array, tn: Array) -> Array:
        """Return the true negatives."""
        return tn


class _TopK(Thresholds):
    """Base class of precision and recall: calls may be limited to the top k outputs and to one class."""

    thresholds: Any = setting(threshold_list, default=None)
    top_k: int | None = setting(optional(number), 1, integer=True, default=None)
    class_id: int | None = setting(optional(number), 0, integer=True, default=None)

    @property
    def given(self) -> tuple[float, ...]:
        """The thresholds as a tuple."""
        return (-math.inf,) if self.thresholds is None and self.top_k is not None else super().given

    def sides(self, ctx: Context, y: Array, p: Array) -> tuple[Array, Array]:
        """Return the score of each output, -inf outside of the top k, and whether it is positive."""
        xp = ctx.xp
        scores, actual = super().sides(ctx, y, p)
        if self.top_k is not None:
            # the rank of each output in its row; of equal outputs the first comes first
            place = xp.argsort(xp.argsort(-p, axis=-1, stable=True), axis=-1, stable=True)
            scores = xp.where(place < self.top_k, scores, xp.full_like(scores, -math.inf))
        return self.one_class(scores, self.class_id), self.one_class(actual, self.class_id)


@registry.register
class Precision(_TopK):
    """The share of outputs called positive that are positive: tp / (tp + fp).

    All outputs are counted together, as in Keras ("micro average"). Targets are of the outputs' shape (above 0.5
    is positive) or class numbers. The result is 0 where no output is called positive.

    Args:
        thresholds: p > threshold is called positive: a number in [0, 1] (None: 0.5), or a list, for a result of
            shape (thresholds,). top_k: only the k largest outputs of a row can be called positive; if thresholds
            is None, all of them are. class_id: the only output that counts. name, dtype: see `Metric`.

    >>> metric = Precision()
    >>> metric.update_state([0, 1, 1, 0], [0.9, 0.8, 0.2, 0.4])
    >>> float(metric.result())
    0.5
    """

    default_name = "precision"
    direction = "max"

    def at_thresholds(self, xp: Any, tp: Array, fp: Array, fn: Array, tn: Array) -> Array:
        """Return tp / (tp + fp)."""
        return ratio(xp, tp, tp + fp)


@registry.register
class Recall(_TopK):
    """The share of positive outputs that are called positive: tp / (tp + fn); 0 where no output is positive.

    Args:
        thresholds, top_k, class_id: see `Precision`. name, dtype: see `Metric`.

    >>> metric = Recall(thresholds=[0.1, 0.5])
    >>> metric.update_state([0, 1, 1, 0], [0.9, 0.8, 0.2, 0.4])
    >>> metric.result().tolist()
    [1.0, 0.5]
    """

    default_name = "recall"
    direction = "max"

    def at_thresholds(self, xp: Any, tp: Array, fp: Array, fn: Array, tn: Array) -> Array:
        """Return tp / (tp + fn)."""
        return ratio(xp, tp, tp + fn)


@registry.register
class ConfusionMatrix(Metric):
    """The number of rows of each class (first axis) that were predicted as each class (second axis).

    With weights, their sums. Targets are class numbers or one-hot; the predicted class is that of the largest
    output. One output has the classes 0 and 1, with the threshold 0.5. The result is an array of shape (classes,
    classes), also in logs and history.

    Args:
        num_classes: at least the number of outputs; None takes that number (2 for one output).
        name, dtype: see `Metric`.

    >>> metric = ConfusionMatrix()
    >>> metric.update_state([0, 1, 1], [[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    >>> metric.result().tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    """

    default_name = "confusion_matrix"

    num_classes: int | None = setting(optional(number), 2, integer=True, default=None)

    @property
    def sums(self) -> Mapping[str, tuple[int, ...]]:
        """The matrix."""
        return {"matrix": (self.num_classes or 0,) * 2}

    def for_shapes(self, targets: tuple[int, ...], outputs: tuple[int, ...]) -> Metric:
        """Return the matrix with a class per output, unless `num_classes` is given."""
        least = max(outputs[-1], 2)
        if self.num_classes is None:
            return for_outputs(self, num_classes=least)
        if self.num_classes < least:
            raise ShapeError(f"num_classes must be >= {least} for {outputs[-1]} outputs; got {self.num_classes}")
        return self

    def counts(self, ctx: Context, y: Array, p: Array, weight: Array | None) -> Sequence[Array]:
        """Return the batch's matrix."""
        xp = ctx.xp
        if p.shape[-1] == 1:
            target, found = positive(ctx, y, p)[..., 0], p[..., 0] > 0.5
        else:
            found = xp.argmax(p, axis=-1)
            target = xp.argmax(y, axis=-1) if y.shape == p.shape else class_numbers(ctx, y, p)
        weight = None if weight is None else xp.reshape(over_rows(xp, weight, found.shape), (-1,))
        pair = (xp.astype(xp.reshape(a, (-1,)), xp.int32, copy=False) for a in (target, found))
        return (ctx.ops.confusion(ctx, *pair, weight, self.num_classes),)

    def compute(self, xp: Any, *sums: Array) -> Array:
        """Return the matrix."""
        return sums[0]
