"""Accuracies: shares of right predictions."""

from __future__ import annotations

from typing import Any

from ..backend import Array, floating
from ..core.settings import flag, part, setting
from ..errors import ShapeError, number
from ..kernels.context import Context
from .base import Metric, registry, text

__all__ = [
    "Accuracy",
    "BinaryAccuracy",
    "CategoricalAccuracy",
    "SparseCategoricalAccuracy",
    "SparseTopKCategoricalAccuracy",
    "TopKCategoricalAccuracy",
]


@registry.register
class BinaryAccuracy(Metric):
    """The share of outputs on the right side of the threshold; targets -1 count as 0.

    Args:
        name, dtype: see `Metric`. threshold: p > threshold is class 1.

    Targets have the outputs' shape; (batch,) fits (batch, 1). In Keras, a target -1 is never matched.

    >>> metric = BinaryAccuracy()
    >>> metric.update_state([0, 1, 1, 1], [0.2, 0.9, 0.4, 0.6])
    >>> float(metric.result())
    0.75
    """

    default_name = "binary_accuracy"
    direction = "max"

    unit_weights = True

    name: str = Metric.name
    dtype: str | None = Metric.dtype
    threshold: float = setting(number, default=0.5)

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return 1 for each hit, else 0, shape p.shape."""
        return ctx.xp.astype((p > self.threshold) == positive(ctx, y, p), p.dtype)


@registry.register
class CategoricalAccuracy(Metric):
    """The share of rows whose largest output is that of the one-hot target. Args: name, dtype (see `Metric`)."""

    default_name = "categorical_accuracy"
    direction = "max"

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return 1 for a hit, else 0."""
        return ctx.ops.hits(ctx, p, _largest(ctx.xp, y, p))


@registry.register
class SparseCategoricalAccuracy(Metric):
    """The share of rows whose largest output is the class number's. Args: name, dtype (see `Metric`)."""

    default_name = "sparse_categorical_accuracy"
    direction = "max"

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return 1 for a hit, else 0."""
        return ctx.ops.hits(ctx, p, class_numbers(ctx, y, p))


@registry.register("acc")
class Accuracy(Metric):
    """The accuracy for the shapes: binary, categorical or sparse. Args: name, dtype (see `Metric`).

    One output: `BinaryAccuracy`. Several, and targets of the same shape: `CategoricalAccuracy`. Several, and
    one number per row: `SparseCategoricalAccuracy`. This is what Keras calls "accuracy"; its class `Accuracy`
    compares predictions with targets for equality instead.
    """

    default_name = "accuracy"
    direction = "max"

    def for_shapes(self, targets: tuple[int, ...], outputs: tuple[int, ...]) -> Metric:
        """Return the accuracy that fits."""
        if outputs[-1] == 1:
            return BinaryAccuracy(name=self.name, dtype=self.dtype)
        kind = CategoricalAccuracy if targets == outputs else SparseCategoricalAccuracy
        return kind(name=self.name, dtype=self.dtype)


@registry.register
class TopKCategoricalAccuracy(Metric):
    """The share of rows whose target is among the k largest outputs: fewer than k outputs are larger.

    Targets are one-hot. Outputs that equal the target's do not count against it, as in Keras.

    Args:
        k: >= 1. name, dtype: see `Metric`.

    >>> metric = TopKCategoricalAccuracy(k=2)
    >>> metric.update_state([[0, 0, 1], [0, 1, 0]], [[0.1, 0.9, 0.8], [0.5, 0.1, 0.4]])
    >>> float(metric.result())
    0.5
    """

    default_name = "top_k_categorical_accuracy"
    direction = "max"

    k: int = setting(number, 1, integer=True, default=5)

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return 1 for a hit, else 0."""
        return _in_top_k(ctx, _largest(ctx.xp, y, p), p, self.k)


@registry.register
class SparseTopKCategoricalAccuracy(Metric):
    """The share of rows whose target is among the k largest outputs. Targets are class numbers.

    Args:
        k: >= 1. name, dtype: see `Metric`. from_sorted_ids: whether the predictions are class numbers, best first,
            instead of scores.

    >>> float(SparseTopKCategoricalAccuracy(k=2)([2, 1], [[0.1, 0.9, 0.8], [0.5, 0.1, 0.4]]))
    0.5
    """

    default_name = "sparse_top_k_categorical_accuracy"
    direction = "max"

    k: int = setting(number, 1, integer=True, default=5)
    name: str = setting(text, default=None, kw_only=True)
    dtype: str | None = part(floating, default=None, kw_only=True)
    from_sorted_ids: bool = setting(flag, default=False)

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return 1 for a hit, else 0."""
        xp, labels = ctx.xp, class_numbers(ctx, y, p)
        if self.from_sorted_ids:
            hits = p[..., : self.k] == xp.astype(xp.expand_dims(labels, axis=-1), p.dtype)
            return xp.astype(xp.any(hits, axis=-1), p.dtype)
        return _in_top_k(ctx, labels, p, self.k)


def _in_top_k(ctx: Context, labels: Array, p: Array, k: int) -> Array:
    """Return 1 where fewer than k outputs of a row are larger than that of the label, else 0."""
    xp, units = ctx.xp, p.shape[-1]
    hot = ctx.ops.one_hot(ctx, labels, units, p.dtype)  # NaN for a label that is no class, which is no hit
    own = xp.sum(xp.where(hot == 0, hot, hot * p), axis=-1, keepdims=True)
    others = xp.sum(xp.astype(p <= own, p.dtype), axis=-1)
    return xp.astype(others > units - k, p.dtype)


def _largest(xp: Any, y: Array, p: Array) -> Array:
    """Return the class numbers of one-hot targets."""
    if y.shape != p.shape:
        raise ShapeError(f"one-hot targets must have the outputs' shape {tuple(p.shape)}; got {tuple(y.shape)}")
    return xp.argmax(y, axis=-1)


def positive(ctx: Context, y: Array, p: Array) -> Array:
    """Return whether each target is above 0.5, in the shape of the outputs: (n,) fits (n, 1)."""
    if y.shape != p.shape and not (p.shape[-1] == 1 and y.shape == p.shape[:-1]):
        raise ShapeError(f"targets must have the outputs' shape {tuple(p.shape)}; got {tuple(y.shape)}")
    return ctx.xp.reshape(y, p.shape) > 0.5


def class_numbers(ctx: Context, y: Array, p: Array) -> Array:
    """Return class numbers of shape (batch, ...) or (batch, ..., 1) in the shape of the rows of p."""
    rows = tuple(p.shape[:-1])
    if tuple(y.shape) not in (rows, (*rows, 1)):
        raise ShapeError(f"class numbers must have shape {rows}; got {tuple(y.shape)}")
    return ctx.xp.reshape(y, rows)
