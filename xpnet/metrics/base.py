"""The base class of the metrics: sums over batches, and the result computed from them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from ..backend import Array, floating, np, traced
from ..core.config import Configurable, Registry, overrides
from ..core.ops import over_rows
from ..core.settings import part, setting
from ..errors import InvalidTypeError, NotBuiltError, ShapeError
from ..kernels.context import Context, enter

__all__ = ["Metric", "Unweighted", "for_outputs", "ratio", "same_shape", "unit_total", "weighted_total"]

Count = Array | float
M = TypeVar("M", bound="Metric")


def text(name: str, value: Any) -> Any:
    """Check that a setting is a string or None."""
    if value is None or isinstance(value, str):
        return value
    raise InvalidTypeError(f"{name} must be a string or None; got {value!r}")


class Metric(Configurable):
    """Base class of the metrics: named sums that add up over batches, and the result computed from them.

    A metric that is a mean defines `rows` only. Any other metric declares its `sums` and defines `counts` (what a
    batch adds to them, computed on the device) and `compute` (the result).

    Args:
        name: the key in `History`; None takes the default name of the class. dtype: the precision of the result
            when the metric is used alone; None takes that of the arrays.

    Attributes:
        direction: `"min"` or `"max"`, the better values (for `EarlyStopping`), or None if unknown. A subclass
            that overrides `rows`, `counts`, `compute` or `for_shapes` does not inherit it.
        unit_weights: whether weights may also be one per output, of the shape of the predictions.
        parts: objects of the user that compute in `counts`, such as a loss.

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
    unit_weights: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if any(overrides(cls, method, "direction") for method in ("rows", "counts", "compute", "for_shapes")):
            cls.direction = None

    name: str = setting(text, default=None, kw_only=True)
    dtype: str | None = part(floating, default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Begin without sums."""
        self.name = self.name or self.default_name
        self._sums: tuple[Count, ...] | None = None
        self._precision: str | None = None

    # What a subclass defines --------------------------------------------------------------------------

    @property
    def sums(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each sum, by name; often a class attribute."""
        return {"total": (), "weight": ()}

    @property
    def parts(self) -> tuple[Any, ...]:
        """The user's objects that compute in `counts`."""
        return ()

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return one number or boolean per row, shape p.shape[:-1], or per output, shape p.shape."""
        raise TypeError(f"{type(self).__name__} must define rows(ctx, y, p)")

    def counts(self, ctx: Context, y: Array, p: Array, weight: Array | None) -> Sequence[Count]:
        """Return what a batch adds to each sum, in the shape of that sum; Python numbers are allowed.

        Args:
            y: targets. p: predictions, shape (batch, ..., units). weight: weights of the first axes of p, shape
                (batch,), (batch, ...) or, with `unit_weights`, (batch, ..., units); None for ones.
        """
        values = ctx.xp.astype(self.rows(ctx, y, p), ctx.dtype, copy=False)
        if weight is None:
            return ctx.ops.row_total(ctx, values, None, 1.0), 1.0 * math.prod(values.shape)
        if weight.ndim > values.ndim:
            raise ShapeError(f"sample_weight must have one number per row; got shape {tuple(weight.shape)}")
        weight = over_rows(ctx.xp, weight, values.shape)
        return ctx.ops.row_total(ctx, values, weight, 1.0), ctx.ops.row_total(ctx, weight, None, 1.0)

    def compute(self, xp: Any, *sums: Array) -> Array:
        """Return the result from the sums over all batches: here the mean, 0 where all weights are 0, as in Keras.

        At the end of an epoch it runs on the host, with NumPy as `xp`. For a metric used alone it runs in the
        library of the caller's arrays.
        """
        return ratio(xp, *sums)

    def for_shapes(self, targets: tuple[int, ...], outputs: tuple[int, ...]) -> Metric:
        """Return the metric to use for targets and outputs of these shapes (with the batch axis)."""
        return self

    # What the training step calls ---------------------------------------------------------------------

    def checked_counts(self, ctx: Context, y: Array, p: Array, weight: Array | None) -> list[Count]:
        """Return `counts` after checking their shapes, and that of the weights.

        Raises:
            ShapeError: the counts do not have the shapes of `sums`, or the weights do not fit the predictions.
        """
        if weight is not None and weight.shape != p.shape[:1]:
            weight = _leading(ctx.xp, weight, tuple(p.shape), self.unit_weights)
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

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch.

        Args:
            y_true: targets, shape (batch, ...). y_pred: predictions, shape (batch, ..., units); (batch,) is taken
                as (batch, 1). sample_weight: one number, or weights of the first axes of the predictions, such as
                (batch,) or (batch, 1); None for ones.

        Raises:
            ShapeError: the shapes do not fit, or differ from those of earlier batches.
        """

        def counts(ctx: Context) -> Sequence[Count]:
            p, y = ctx.asarray(y_pred), ctx.asarray(y_true)
            p = ctx.xp.expand_dims(p, axis=-1) if p.ndim == 1 else p
            weight = None if sample_weight is None else ctx.asarray(sample_weight)
            if p.ndim == 0 or y.shape[:1] != p.shape[:1]:
                raise ShapeError(f"y_true must have {tuple(p.shape)[:1]} rows as y_pred has; got {tuple(y.shape)}")
            return self.for_shapes(tuple(y.shape), tuple(p.shape)).checked_counts(ctx, y, p, weight)

        self._add(counts, y_pred, y_true, sample_weight)

    @np.errstate(all="ignore")
    def _add(self, counts: Callable[[Context], Sequence[Count]], *given: Any) -> None:
        """Add the counts of a batch to the sums, in float64 where the library has it. Args: given: its arrays."""
        if any(map(traced, given)):
            raise InvalidTypeError(
                "a metric keeps its sums, which is not possible inside of jax.jit, jax.grad and jax.vmap: call "
                "update_state with what they return; got a traced array"
            )
        ctx, leave = enter(*given, dtype=self.dtype)
        wide = ctx.xp.float64 if ctx.backend.wide else ctx.dtype
        batch = tuple(c if isinstance(c, (int, float)) else leave(ctx.asarray(c, wide)) for c in counts(ctx))
        before = self._sums
        if before is not None and list(map(_shape, before)) != list(map(_shape, batch)):
            raise ShapeError(
                f"metric {self.name!r} has sums of shapes {list(map(_shape, before))}: call reset_state before "
                f"batches of another shape; got {list(map(_shape, batch))}"
            )
        self._sums = batch if before is None else tuple(a + b for a, b in zip(before, batch))
        self._precision = ctx.backend.dtype_name

    @np.errstate(all="ignore")
    def result(self) -> Array:
        """Return the result over all batches since the last reset, in the library of the predictions.

        Raises:
            NotBuiltError: there was no batch yet.
        """
        if self._sums is None:
            raise NotBuiltError(f"metric {self.name!r} has no result before update_state; got 0 batches")
        ctx, leave = enter(*self._sums)
        result = self.compute(ctx.xp, *map(ctx.asarray, self._sums))
        return leave(ctx.asarray(result, getattr(ctx.xp, self._precision or "float32")))

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        """Add a batch (see `update_state`) and return the result over all batches."""
        self.update_state(*args, **kwargs)
        return self.result()

    def reset_state(self) -> None:
        """Forget all batches."""
        self._sums = None


class Unweighted:
    """A metric without the weights of samples and classes: one of `compile(metrics=...)`.

    Args:
        metric: the metric that computes.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    @property
    def sums(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each sum, by name."""
        return self.metric.sums

    def checked_counts(self, ctx: Context, y: Array, p: Array, weight: Array | None) -> list[Count]:
        """Return what a batch adds to each sum, without its weights."""
        return self.metric.checked_counts(ctx, y, p, None)

    def compute(self, xp: Any, *sums: Array) -> Array:
        """Return the result (see `Metric.compute`)."""
        return self.metric.compute(xp, *sums)


def ratio(xp: Any, part: Array, whole: Array) -> Array:
    """Return part / whole, and 0 where the whole is 0, as in Keras."""
    empty = whole == 0
    return xp.where(empty, xp.zeros_like(part), part / xp.where(empty, xp.ones_like(whole), whole))


def for_outputs(metric: M, **sizes: Any) -> M:
    """Return a copy of a metric that has these attributes, for `for_shapes`."""
    found = copy.copy(metric)
    vars(found).update(sizes)
    return found


def same_shape(metric: Metric, y: Array, p: Array, xp: Any) -> Array:
    """Return targets in the shape of the predictions: (n,) fits (n, 1).

    Raises:
        ShapeError: they have another shape.
    """
    if y.shape != p.shape and not (p.shape[-1] == 1 and y.shape == p.shape[:-1]):
        raise ShapeError(
            f"{type(metric).__name__} takes targets of the outputs' shape {tuple(p.shape)}; got {tuple(y.shape)}"
        )
    return xp.reshape(y, p.shape)


def weighted_total(ctx: Context, values: Array, weight: Array | None) -> Array:
    """Return sum(values * weight), 0-d.

    Args:
        values: numbers or booleans, shape (batch, ...). weight: of the first axes, or None for ones.
    """
    xp = ctx.xp
    values = xp.astype(values, ctx.dtype, copy=False)
    return ctx.ops.row_total(ctx, values, None if weight is None else over_rows(xp, weight, values.shape), 1.0)


def unit_total(ctx: Context, values: Array, weight: Array | None) -> Array:
    """Return sum(values * weight) over all axes but the last, shape (units,). Args: see `weighted_total`."""
    values = values if weight is None else values * over_rows(ctx.xp, weight, values.shape)
    return ctx.xp.sum(values, axis=tuple(range(values.ndim - 1)))


def _leading(xp: Any, weight: Array, shape: tuple[int, ...], units: bool) -> Array:
    """Return weights in the shape of the first axes of the predictions, whose shape is `shape`.

    Args:
        weight: broadcasts to `shape` from the left: () or (batch, 1), for example. units: whether there may be one
            weight per output.
    """
    given = tuple(weight.shape)
    sizes = given + (1,) * (len(shape) - len(given))
    last = len(sizes)
    while last > 1 and sizes[last - 1] == 1:
        last -= 1
    if any(n not in (1, m) for n, m in zip(sizes, shape)) or last > len(shape) - (not units):
        raise ShapeError(f"sample_weight must have shape {shape[:1]}; got {given}")
    return xp.broadcast_to(xp.reshape(weight, sizes[:last]), shape[:last])


def _floating(ctx: Context, count: Count) -> Count:
    """Return a count in a floating dtype."""
    if isinstance(count, (int, float)) or count.dtype == ctx.dtype:
        return count
    return count if ctx.xp.isdtype(count.dtype, "real floating") else ctx.xp.astype(count, ctx.dtype)


def _shape(count: Count) -> tuple[int, ...]:
    return tuple(getattr(count, "shape", ()))


registry: Registry[Metric] = Registry("metric", Metric)
