"""Counts of right and wrong calls: precision, recall, the confusion matrix."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..backend import Array
from ..core.ops import over_rows
from ..core.settings import optional, setting
from ..errors import InvalidValueError, ShapeError, number
from ..kernels.context import Context
from .accuracy import class_numbers, positive
from .base import Metric, registry, weighted_total

__all__ = ["ConfusionMatrix", "Precision", "Recall"]


def _thresholds(name: str, value: Any) -> Any:
    if value is None or not isinstance(value, (list, tuple)):
        return optional(number)(name, value, 0, 1)
    if not value:
        raise InvalidValueError(f"{name} must be numbers in [0, 1], or None; got {value!r}")
    return tuple(number(name, t, 0, 1) for t in value)


class _OfCalls(Metric):
    """What precision and recall share: outputs are called positive if above a threshold and among the top k."""

    thresholds: Any = setting(_thresholds, default=None)
    top_k: int | None = setting(optional(number), 1, integer=True, default=None)
    class_id: int | None = setting(optional(number), 0, integer=True, default=None)

    @property
    def levels(self) -> tuple[float, ...]:
        """The thresholds as a tuple."""
        if self.thresholds is None:
            return (0.5,) if self.top_k is None else (-math.inf,)
        return self.thresholds if isinstance(self.thresholds, tuple) else (self.thresholds,)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result: a number for one threshold."""
        return () if len(self.levels) == 1 else (len(self.levels),)

    def sides(self, ctx: Context, y: Array, p: Array) -> tuple[list[Array], Array]:
        """Return whether each output is called positive, by threshold, and whether each is."""
        xp = ctx.xp
        if p.shape[-1] > 1 and y.shape != p.shape:
            y = ctx.ops.one_hot(ctx, class_numbers(ctx, y, p), p.shape[-1], p.dtype)
        actual, called = positive(ctx, y, p), [p > level for level in self.levels]
        if self.top_k is not None:
            # the place of each output when those of its row are sorted; the first of equal ones comes first
            place = xp.argsort(xp.argsort(-p, axis=-1, stable=True), axis=-1, stable=True)
            called = [c & (place < self.top_k) for c in called]
        if self.class_id is None:
            return called, actual
        if self.class_id >= p.shape[-1]:
            raise ShapeError(f"class_id must be less than the {p.shape[-1]} outputs; got {self.class_id}")
        one = slice(self.class_id, self.class_id + 1)
        return [c[..., one] for c in called], actual[..., one]

    def totals(self, ctx: Context, called: Sequence[Array], weight: Array | None) -> Array:
        """Return the weights that were called positive: a number, or one for each of several thresholds."""
        found = [weighted_total(ctx, c, weight) for c in called]
        return ctx.ops.join(ctx, [ctx.xp.reshape(a, (1,)) for a in found]) if self.shape else found[0]


@registry.register
class Precision(_OfCalls):
    """The share of outputs called positive that are: true positives / (true positives + false positives).

    All outputs count as one set, as in Keras ("micro average"). Targets are of the outputs' shape (above 0.5 is
    positive), or class numbers. The result is 0 where nothing is called positive.

    Args:
        thresholds: p > threshold is called positive: a number in [0, 1] (None: 0.5), or a list, for a result of
            shape (thresholds,). top_k: only the k largest outputs of a row are, whatever they are if thresholds is
            None. class_id: the only output that counts. name, dtype: see `Metric`.

    >>> metric = Precision()
    >>> metric.update_state([0, 1, 1, 0], [0.9, 0.8, 0.2, 0.4])
    >>> float(metric.result())
    0.5
    """

    default_name = "precision"
    direction = "max"

    @property
    def sums(self) -> Mapping[str, tuple[int, ...]]:
        """True positives, and all that is called positive."""
        return {"hits": self.shape, "called": self.shape}

    def counts(self, ctx: Context, y: Array, p: Array, weight: Array | None) -> Sequence[Array]:
        """Return the batch's sums."""
        called, actual = self.sides(ctx, y, p)
        return self.totals(ctx, [c & actual for c in called], weight), self.totals(ctx, called, weight)


@registry.register
class Recall(_OfCalls):
    """The share of positive outputs that are called so: true positives / (true positives + false negatives).

    Args:
        thresholds, top_k, class_id: see `Precision`. name, dtype: see `Metric`.

    >>> metric = Recall(thresholds=[0.1, 0.5])
    >>> metric.update_state([0, 1, 1, 0], [0.9, 0.8, 0.2, 0.4])
    >>> metric.result().tolist()
    [1.0, 0.5]
    """

    default_name = "recall"
    direction = "max"

    @property
    def sums(self) -> Mapping[str, tuple[int, ...]]:
        """True positives, and all that is positive."""
        return {"hits": self.shape, "actual": ()}

    def counts(self, ctx: Context, y: Array, p: Array, weight: Array | None) -> Sequence[Array]:
        """Return the batch's sums."""
        called, actual = self.sides(ctx, y, p)
        return self.totals(ctx, [c & actual for c in called], weight), weighted_total(ctx, actual, weight)


@registry.register
class ConfusionMatrix(Metric):
    """How many rows of each class (down) were found to be of each class (across); with weights, their sums.

    Targets are class numbers or one-hot; the largest output is the class found. One output has classes 0 and 1,
    with 0.5 between them. The result is an array of shape (classes, classes), in logs and history too.

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
        """Return the matrix with as many classes as there are outputs, if nobody said how many."""
        least = max(outputs[-1], 2)
        if self.num_classes is None:
            found = copy.copy(self)
            found.num_classes = least
            return found
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
