"""The base class of the metrics: what adds up over batches, and what the sums come to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..backend import Array, floating, np, traced
from ..core.config import Configurable, Registry, overrides
from ..core.ops import over_rows
from ..core.settings import part, setting
from ..errors import InvalidTypeError, NotBuiltError, ShapeError
from ..kernels.context import Context, enter

__all__ = ["Metric", "Unweighted", "ratio", "weighted_total"]

Count = Array | float


class Metric(Configurable):
    """Base class of the metrics: named sums that add up over batches, and what they come to.

    A metric that is a mean over rows defines `rows` only. Any other declares its `sums`, and defines `counts`
    (what a batch adds to them, on the device) and `compute` (the result, from all of them).

    Args:
        name: the key in `History`; None takes the class's. dtype: the precision when used alone.

    Attributes:
        direction: `"min"` or `"max"`, which values are good ones (for `EarlyStopping`), None if unknown. A
            subclass that overrides `rows`, `counts`, `compute` or `for_shapes` inherits none.

    >>> class Largest(Metric):  # how often each output is the largest
    ...     sums = {"rows": (3,)}
    ...
    ...     def counts(self, ctx, y, p, weight):
    ...         best = ctx.ops.one_hot(ctx, ctx.xp.argmax(p, axis=-1), 3, p.dtype)
    ...         return (ctx.xp.sum(best, axis=0),)
    ...
    ...     def compute(self, xp, rows):
    ...         return rows / xp.sum(rows)
    >>> metric = Largest()
    >>> metric.update_state([0, 1, 1, 2], [[3.0, 1, 2], [3, 1, 2], [1, 1, 4], [5, 0, 1]])
    >>> metric.result().tolist()
    [0.75, 0.0, 0.25]
    """

    default_name = "metric"
    direction: ClassVar[str | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if any(overrides(cls, method, "direction") for method in ("rows", "counts", "compute", "for_shapes")):
            cls.direction = None

    name: str = setting(default=None, kw_only=True)
    dtype: str | None = part(floating, default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Begin without sums."""
        self.name = self.name or self.default_name
        self._sums: tuple[Count, ...] | None = None

    # What a subclass defines --------------------------------------------------------------------------

    @property
    def sums(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each sum, by name; often a class attribute."""
        return {"total": (), "weight": ()}

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return one number or boolean a row: shape p.shape[:-1]."""
        raise TypeError(f"{type(self).__name__} must define rows(ctx, y, p)")

    def counts(self, ctx: Context, y: Array, p: Array, weight: Array | None) -> Sequence[Count]:
        """Return what a batch adds to each of the sums, of its shape; Python numbers may be among them.

        Args:
            y: targets. p: predictions, shape (batch, ..., units). weight: of the rows, shape (batch,), or None.
        """
        values = ctx.xp.astype(self.rows(ctx, y, p), ctx.dtype, copy=False)
        if weight is None:
            return ctx.ops.row_total(ctx, values, None, 1.0), 1.0 * math.prod(values.shape)
        weight = over_rows(ctx.xp, weight, values.shape)
        return ctx.ops.row_total(ctx, values, weight, 1.0), ctx.ops.row_total(ctx, weight, None, 1.0)

    def compute(self, xp: Any, *sums: Array) -> Array:
        """Return the result from the sums over all batches: here the mean, 0 where all weights are 0, as in Keras.

        It runs on the host at the end of an epoch, with `xp` for NumPy, and in the library of the caller's arrays
        where the metric is used alone.
        """
        return ratio(xp, *sums)

    def for_shapes(self, targets: tuple[int, ...], outputs: tuple[int, ...]) -> Metric:
        """Return the metric that is meant for targets and outputs of these shapes (with the batch axis)."""
        return self

    # What the training step calls ---------------------------------------------------------------------

    def checked_counts(self, ctx: Context, y: Array, p: Array, weight: Array | None) -> list[Count]:
        """Return `counts`, of which the shapes are those of `sums`.

        Raises:
            ShapeError: they are not.
        """
        found = list(self.counts(ctx, y, p, weight))
        shapes, wanted = [_shape(count) for count in found], list(self.sums.values())
        if shapes != wanted:
            raise ShapeError(f"{type(self).__name__}.counts must return arrays of shapes {wanted}; got {shapes}")
        return [_floating(ctx, count) for count in found]

    @np.errstate(all="ignore")
    def result_shape(self) -> tuple[int, ...]:
        """Return the shape of the result: () for a number."""
        return np.shape(self.compute(np, *(np.zeros(shape) for shape in self.sums.values())))

    # What users call ----------------------------------------------------------------------------------

    @np.errstate(all="ignore")
    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch: targets and predictions, shape (batch, ...), and weights (batch,) or None.

        Raises:
            ShapeError: the shapes do not fit, or are not those of the batches before.
        """
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
        counts = metric.checked_counts(ctx, y, p, weight)
        batch = tuple(c if isinstance(c, (int, float)) else leave(c) for c in counts)
        before = self._sums
        if before is not None and list(map(_shape, before)) != list(map(_shape, batch)):
            raise ShapeError(
                f"metric {self.name!r} has sums of shapes {list(map(_shape, before))}: reset_state lets it begin "
                f"with other outputs; got {list(map(_shape, batch))}"
            )
        self._sums = batch if before is None else tuple(a + b for a, b in zip(before, batch))

    @np.errstate(all="ignore")
    def result(self) -> Array:
        """Return what all batches since the last reset come to, in the library of their predictions.

        Raises:
            NotBuiltError: there was no batch yet.
        """
        if self._sums is None:
            raise NotBuiltError(f"metric {self.name!r} has no result before update_state; got 0 batches")
        ctx, leave = enter(*self._sums, dtype=self.dtype)
        return leave(self.compute(ctx.xp, *map(ctx.asarray, self._sums)))

    def reset_state(self) -> None:
        """Forget all batches."""
        self._sums = None


class Unweighted:
    """A metric that counts each row once, whatever it weighs in the loss: one of `compile(metrics=...)`.

    Args:
        metric: whose sums and result it gives.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    @property
    def sums(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each sum, by name."""
        return self.metric.sums

    def checked_counts(self, ctx: Context, y: Array, p: Array, weight: Array | None) -> list[Count]:
        """Return what a batch adds to each of the sums, without its weights."""
        return self.metric.checked_counts(ctx, y, p, None)

    def compute(self, xp: Any, *sums: Array) -> Array:
        """Return the result (see `Metric.compute`)."""
        return self.metric.compute(xp, *sums)


def ratio(xp: Any, part: Array, whole: Array) -> Array:
    """Return part / whole, and 0 where the whole is 0, as in Keras."""
    return part / xp.where(whole == 0, xp.ones_like(whole), whole)


def weighted_total(ctx: Context, values: Array, weight: Array | None) -> Array:
    """Return sum(values * weight), 0-d.

    Args:
        values: numbers or booleans, shape (batch, ...). weight: of the rows, shape (batch,), or None for ones.
    """
    xp = ctx.xp
    values = xp.astype(values, ctx.dtype, copy=False)
    return ctx.ops.row_total(ctx, values, None if weight is None else over_rows(xp, weight, values.shape), 1.0)


def _floating(ctx: Context, count: Count) -> Count:
    """Return a count that can be added to the sums: hits may have been counted as integers."""
    if isinstance(count, (int, float)) or count.dtype == ctx.dtype:
        return count
    return count if ctx.xp.isdtype(count.dtype, "real floating") else ctx.xp.astype(count, ctx.dtype)


def _shape(count: Count) -> tuple[int, ...]:
    return tuple(getattr(count, "shape", ()))


registry: Registry[Metric] = Registry("metric", Metric)
