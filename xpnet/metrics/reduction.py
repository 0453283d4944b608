"""Means and sums of values, and the mean of a function of targets and predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import losses
from ..backend import Array
from ..core.config import plain, snake_case
from ..core.ops import over_rows
from ..errors import InvalidTypeError, ShapeError
from ..kernels.context import Context
from .base import Count, Metric, _leading, registry
from .of_loss import OfLoss

__all__ = ["Mean", "MeanMetricWrapper", "Sum"]


class _OfValues(Metric):
    """Base class: a metric of values that the caller computed, such as losses in your own training loop."""

    def update_state(self, values: Any, sample_weight: Any = None) -> None:  # type: ignore[override]
        """Add values: a number or an array of any shape.

        Args:
            values: shape () or (batch, ...). sample_weight: a number, or weights of the first axes of `values`.

        Raises:
            ShapeError: the weights do not fit the values.
        """

        def counts(ctx: Context) -> Sequence[Count]:
            x = ctx.asarray(values)
            if sample_weight is None:
                return self.of_values(ctx, x, None, 1)
            weight = ctx.asarray(sample_weight)
            axes = weight.ndim
            if axes:
                weight = _leading(ctx.xp, weight, tuple(x.shape), True)
            return self.of_values(ctx, x, over_rows(ctx.xp, weight, x.shape), axes)

        self._add(counts, values, sample_weight)

    def of_values(self, ctx: Context, x: Array, weight: Array | None, axes: int) -> Sequence[Count]:
        """Return the counts. Args: weight: in the shape of x, or None. axes: how many axes the caller's had."""
        raise TypeError(f"{type(self).__name__} must define of_values(ctx, x, weight, axes)")

    def for_shapes(self, targets: tuple[int, ...], outputs: tuple[int, ...]) -> Metric:
        """Raise: there are no targets."""
        raise InvalidTypeError(
            f"a metric of targets and predictions is needed here, such as MeanMetricWrapper(function); got "
            f"{type(self).__name__}, which takes values only"
        )


@registry.register
class Sum(_OfValues):
    """The sum of the values, each times its weight. Args: name, dtype (see `Metric`).

    >>> metric = Sum()
    >>> metric.update_state([1, 3, 5, 7], sample_weight=[1, 1, 0, 0])
    >>> float(metric(2.0))
    6.0
    """

    default_name = "sum"
    sums: Mapping[str, tuple[int, ...]] = {"total": ()}

    def of_values(self, ctx: Context, x: Array, weight: Array | None, axes: int) -> Sequence[Count]:
        """Return the sum."""
        return (ctx.ops.row_total(ctx, x, weight, 1.0),)

    def compute(self, xp: Any, *sums: Array) -> Array:
        """Return the sum."""
        return sums[0]


@registry.register
class Mean(_OfValues):
    """The mean of the values, weighted; 0 if all weights are 0. Args: name, dtype (see `Metric`).

    As in Keras, a call counts once per row: a number is one row. With a weight that is one number, the call counts
    as one row of that weight.

    >>> metric = Mean()
    >>> metric.update_state([1, 3, 5, 7], sample_weight=[1, 1, 0, 0])
    >>> float(metric.result())
    2.0
    """

    default_name = "mean"

    def of_values(self, ctx: Context, x: Array, weight: Array | None, axes: int) -> Sequence[Count]:
        """Return the sum over rows of the means of each row, and the weight of the rows."""
        rows = x.shape[0] if x.ndim and axes else 1
        scale = rows / max(math.prod(x.shape), 1)
        total = ctx.ops.row_total(ctx, x, weight, 1.0) * scale
        return total, 1.0 * rows if weight is None else ctx.ops.row_total(ctx, weight, None, 1.0) * scale


@registry.register
class MeanMetricWrapper(Metric):
    """The mean of a function of targets and predictions, or of a loss.

    Args:
        fn: `fn(y_true, y_pred, **kwargs)` in plain array API (operators, or functions of
            `y_pred.__array_namespace__()` or of the library), which returns values of shape (batch, ...); or a
            loss, or the name of one. name, dtype: see `Metric`. kwargs: arguments passed on to `fn`.

    A function can't be saved with a model: derive from `Metric` for that. The direction is `"min"` for a loss;
    for a function, set it: `metric.direction = "max"`.

    >>> metric = MeanMetricWrapper(lambda y, p, power: abs(y - p) ** power, power=3)
    >>> metric.update_state([[1.0], [2.0]], [[2.0], [0.0]])
    >>> float(metric.result())
    4.5
    """

    unit_weights = True

    def __init__(self, fn: Any, name: str | None = None, dtype: str | None = None, **kwargs: Any) -> None:
        if isinstance(fn, (str, losses.Loss)):
            fn = losses.get(fn)
        elif not callable(fn):
            raise InvalidTypeError(f"fn must be a function, a loss or the name of a loss; got {fn!r}")
        self.fn: Callable[..., Array] = fn
        self.kwargs = kwargs
        if isinstance(fn, losses.Loss):
            vars(self)["direction"] = "min"
        self.name, self.dtype = name, dtype  # type: ignore[assignment]
        self.__post_init__()

    @property
    def default_name(self) -> str:  # type: ignore[override]
        """The name of the function or the loss."""
        found = getattr(self.fn, "name", None) or getattr(self.fn, "__name__", type(self.fn).__name__)
        return snake_case(str(found))

    @property
    def parts(self) -> tuple[Any, ...]:
        """The function or the loss."""
        return (self.fn,)

    def counts(self, ctx: Context, y: Array, p: Array, weight: Array | None) -> Sequence[Count]:
        """Return the batch's sum and weight: those of `OfLoss` for a loss."""
        if isinstance(self.fn, losses.Loss):
            return OfLoss(self.fn).counts(ctx, y, p, weight)
        return super().counts(ctx, y, p, weight)

    def rows(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return the values of the function."""
        size = math.prod(p.shape)
        values = self.fn(ctx.xp.reshape(y, p.shape) if math.prod(y.shape) == size else y, p, **self.kwargs)
        if not getattr(values, "ndim", 0) or values.shape[0] != p.shape[0]:
            raise ShapeError(
                f"the function of MeanMetricWrapper must return values of shape ({p.shape[0]}, ...); got "
                f"{tuple(getattr(values, 'shape', ()))}"
            )
        return ctx.xp.astype(values, ctx.dtype, copy=False)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"fn": plain(self.fn), "name": self.name, "dtype": self.dtype, **plain(self.kwargs)}
