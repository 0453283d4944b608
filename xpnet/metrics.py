"""Metrics: sums over rows that add up on the device, and what they come to."""

from __future__ import annotations

import math
from typing import Any

from .backend import Array, floating, np, traced
from .context import Context, enter
from .errors import InvalidTypeError, NotBuiltError, ShapeError, number
from .registry import Configurable, Registry, overrides
from .settings import part, setting

__all__ = [
    "Accuracy",
    "BinaryAccuracy",
    "CategoricalAccuracy",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "SparseCategoricalAccuracy",
    "Unweighted",
    "get",
]


class Metric(Configurable):
    """Base class of the metrics that are means over rows; subclasses define `rows`.

    Args:
        name: the key in `History`; None takes the class's. dtype: the precision when used alone.

    Attributes:
        direction: `"min"` or `"max"`, which values are good ones (for `EarlyStopping`), None if unknown. A
            subclass that overrides `rows`, `measure` or `for_shapes` inherits none.

    >>> metric = BinaryAccuracy()
    >>> metric.update_state([0, 1, 1, 1], [0.2, 0.9, 0.4, 0.6])
    >>> float(metric.result())
    0.75
    """

    default_name = "metric"
    direction: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if any(overrides(cls, method, "direction") for method in ("rows", "measure", "for_shapes")):
            cls.direction = None

    name: str = setting(default=None, kw_only=True)
    dtype: str | None = part(floating, default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Begin without sums."""
        self.name = self.name or self.default_name
        self._sums: tuple[Array, Array | float] | None = None

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return one number a row: shape p.shape[:-1]."""
        raise TypeError(f"{type(self).__name__} must define rows(ctx, y, p)")

    def measure(self, ctx: Context, y: Array, p: Array, weight: Array | None) -> tuple[Array, Array | float]:
        """Return this batch's (sum of value * weight, sum of weight): what adds up over batches.

        Without weights the second is the number of values, a Python number.
        """
        xp, values = ctx.xp, self.rows(ctx, y, p)
        if weight is None:
            return ctx.ops.row_total(ctx, values, None, 1.0), float(math.prod(values.shape))
        while weight.ndim < values.ndim:
            weight = xp.expand_dims(weight, axis=-1)
        weight = xp.broadcast_to(weight, values.shape)
        return ctx.ops.row_total(ctx, values, weight, 1.0), ctx.ops.row_total(ctx, weight, None, 1.0)

    def for_shapes(self, targets: tuple[int, ...], outputs: tuple[int, ...]) -> Metric:
        """Return the metric that is meant for targets and outputs of these shapes (with the batch axis)."""
        return self

    @np.errstate(all="ignore")
    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch: targets and predictions, shape (batch, ...), and weights (batch,) or None."""
        if any(map(traced, (y_true, y_pred, sample_weight))):
            raise InvalidTypeError(
                "a metric keeps its sums, which is not possible inside of jax.jit, jax.grad and jax.vmap: call "
                "update_state with what they return; got a traced array"
            )
        ctx, leave = enter(y_pred, y_true, sample_weight, dtype=self.dtype)
        p, y = ctx.asarray(y_pred), ctx.asarray(y_true)
        p = ctx.xp.expand_dims(p, axis=-1) if p.ndim == 1 else p
        weight = None if sample_weight is None else ctx.asarray(sample_weight)
        if p.ndim == 0 or y.shape[:1] != p.shape[:1]:
            raise ShapeError(f"y_true must have {tuple(p.shape)[:1]} rows as y_pred has; got {tuple(y.shape)}")
        if weight is not None and (weight.ndim > p.ndim - 1 or weight.shape != p.shape[: weight.ndim]):
            raise ShapeError(f"sample_weight must have shape {tuple(p.shape)[:1]}; got {tuple(weight.shape)}")
        metric = self.for_shapes(tuple(y.shape), tuple(p.shape))
        total, count = metric.measure(ctx, y, p, weight)
        batch = leave(total), count if isinstance(count, float) else leave(count)
        old = self._sums
        self._sums = batch if old is None else (old[0] + batch[0], old[1] + batch[1])

    @np.errstate(all="ignore")
    def result(self) -> Array:
        """Return the mean over all rows since the last reset, 0-d; 0 where all weights are 0, as in Keras.

        Raises:
            NotBuiltError: there was no batch yet.
        """
        if self._sums is None:
            raise NotBuiltError(f"metric {self.name!r} has no result before update_state; got 0 batches")
        ctx, leave = enter(*self._sums, dtype=self.dtype)
        total, weight = map(ctx.asarray, self._sums)
        return leave(total / ctx.xp.where(weight == 0, ctx.xp.ones_like(weight), weight))

    def reset_state(self) -> None:
        """Forget all batches."""
        self._sums = None


class MeanSquaredError(Metric):
    """mean of (p - y)^2 over units and rows. Args: name, dtype (see `Metric`)."""

    default_name = "mse"
    direction = "min"

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return mean((p - y)^2) of each row."""
        difference = p - _like(ctx, y, p)
        return ctx.xp.mean(difference * difference, axis=-1)


class MeanAbsoluteError(Metric):
    """mean of |p - y| over units and rows. Args: name, dtype (see `Metric`)."""

    default_name = "mae"
    direction = "min"

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return mean(|p - y|) of each row."""
        return ctx.xp.mean(ctx.xp.abs(p - _like(ctx, y, p)), axis=-1)


class BinaryAccuracy(Metric):
    """Share of outputs on the right side of the threshold; targets -1 count as 0.

    Args:
        threshold: p > threshold is class 1. name, dtype: see `Metric`.
    """

    default_name = "binary_accuracy"
    direction = "max"

    threshold: float = setting(number, default=0.5)

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return the share of hits of each row."""
        xp = ctx.xp
        hits = (p > self.threshold) == (_like(ctx, y, p) > 0.5)
        return xp.mean(xp.astype(hits, p.dtype), axis=-1)


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


class SparseCategoricalAccuracy(Metric):
    """Share of rows whose largest output is the target's: class numbers. Args: name, dtype."""

    default_name = "sparse_categorical_accuracy"
    direction = "max"

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return 1 for a hit, else 0."""
        rows = tuple(p.shape[:-1])
        if tuple(y.shape) not in (rows, (*rows, 1)):
            raise ShapeError(f"class numbers must have shape {rows}; got {tuple(y.shape)}")
        return ctx.ops.hits(ctx, p, ctx.xp.reshape(y, rows))


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


class Unweighted:
    """A metric that counts each row once, whatever it weighs in the loss: one of `compile(metrics=...)`.

    Args:
        metric: whose sums it gives.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    def measure(self, ctx: Context, y: Array, p: Array, weight: Array | None) -> tuple[Array, Array | float]:
        """Return this batch's sums, without its weights (see `Metric.measure`)."""
        return self.metric.measure(ctx, y, p, None)


def _like(ctx: Context, y: Array, p: Array) -> Array:
    """Return targets in the shape and dtype of the outputs: (n,) fits (n, 1)."""
    if y.shape != p.shape and not (p.shape[-1] == 1 and y.shape == p.shape[:-1]):
        raise ShapeError(f"targets must have the outputs' shape {tuple(p.shape)}; got {tuple(y.shape)}")
    return ctx.xp.astype(ctx.xp.reshape(y, p.shape), p.dtype, copy=False)


registry: Registry[Metric] = Registry("metric", Metric)
registry.add(
    Accuracy, BinaryAccuracy, CategoricalAccuracy, MeanAbsoluteError, MeanSquaredError, SparseCategoricalAccuracy,
    acc=Accuracy, mse=MeanSquaredError, mae=MeanAbsoluteError,
)  # fmt: skip


def get(identifier: Any) -> Metric:
    """Return a metric from a name or an object; a name becomes its key in the history.

    Raises:
        UnknownNameError: no metric has that name. InvalidTypeError: it is a bare function.
    """
    if callable(identifier) and not isinstance(identifier, (Metric, type)):
        raise InvalidTypeError(f"a metric must derive from xpnet.metrics.Metric; got {identifier!r}")
    metric = registry.get(identifier)
    if isinstance(identifier, str):
        metric.name = identifier
    return metric
