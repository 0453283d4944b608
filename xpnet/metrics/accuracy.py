"""Shares of hits."""

from __future__ import annotations

from ..backend import Array
from ..core.settings import setting
from ..errors import ShapeError, number
from ..kernels.context import Context
from .base import Metric, registry

__all__ = ["Accuracy", "BinaryAccuracy", "CategoricalAccuracy", "SparseCategoricalAccuracy"]


@registry.register
class BinaryAccuracy(Metric):
    """Share of outputs on the right side of the threshold; targets -1 count as 0.

    Args:
        threshold: p > threshold is class 1. name, dtype: see `Metric`.

    >>> metric = BinaryAccuracy()
    >>> metric.update_state([0, 1, 1, 1], [0.2, 0.9, 0.4, 0.6])
    >>> float(metric.result())
    0.75
    """

    default_name = "binary_accuracy"
    direction = "max"

    threshold: float = setting(number, default=0.5)

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return the share of hits of each row."""
        xp = ctx.xp
        hits = (p > self.threshold) == positive(ctx, y, p)
        return xp.mean(xp.astype(hits, p.dtype), axis=-1)


@registry.register
class CategoricalAccuracy(Metric):
    """Share of rows whose largest output is the target's: one-hot targets. Args: name, dtype."""

    default_name = "categorical_accuracy"
    direction = "max"

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return 1 for a hit, else 0."""
        xp = ctx.xp
        if y.shape != p.shape:
            raise ShapeError(
                f"one-hot targets must have the outputs' shape {tuple(p.shape)}; got {tuple(y.shape)}"
            )
        return xp.astype(xp.argmax(p, axis=-1) == xp.argmax(y, axis=-1), p.dtype)


@registry.register
class SparseCategoricalAccuracy(Metric):
    """Share of rows whose largest output is the target's: class numbers. Args: name, dtype."""

    default_name = "sparse_categorical_accuracy"
    direction = "max"

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return 1 for a hit, else 0."""
        return ctx.ops.hits(ctx, p, class_numbers(ctx, y, p))


@registry.register("acc")
class Accuracy(Metric):
    """Share of hits: binary, categorical or sparse, as the shapes say. Args: name, dtype (see `Metric`).

    One output: `BinaryAccuracy`. Several, and targets of the same shape: `CategoricalAccuracy`. Several, and
    one number a row: `SparseCategoricalAccuracy`.
    """

    default_name = "accuracy"
    direction = "max"

    def for_shapes(self, targets: tuple[int, ...], outputs: tuple[int, ...]) -> Metric:
        """Return the accuracy that fits."""
        if outputs[-1] == 1:
            return BinaryAccuracy(name=self.name, dtype=self.dtype)
        kind = CategoricalAccuracy if targets == outputs else SparseCategoricalAccuracy
        return kind(name=self.name, dtype=self.dtype)


def positive(ctx: Context, y: Array, p: Array) -> Array:
    """Return whether each target is 1 (not 0 or -1), in the shape of the outputs: (n,) fits (n, 1)."""
    if y.shape != p.shape and not (p.shape[-1] == 1 and y.shape == p.shape[:-1]):
        raise ShapeError(f"targets must have the outputs' shape {tuple(p.shape)}; got {tuple(y.shape)}")
    return ctx.xp.reshape(y, p.shape) > 0.5


def class_numbers(ctx: Context, y: Array, p: Array) -> Array:
    """Return class numbers of shape (batch, ...) or (batch, ..., 1) in the shape of the rows of p."""
    rows = tuple(p.shape[:-1])
    if tuple(y.shape) not in (rows, (*rows, 1)):
        raise ShapeError(f"class numbers must have shape {rows}; got {tuple(y.shape)}")
    return ctx.xp.reshape(y, rows)
