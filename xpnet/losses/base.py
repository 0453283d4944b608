"""The base classes of the losses: reductions, weights, axes and checks."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from ..backend import Array, floating, np, traced
from ..core.config import Configurable, Registry
from ..core.ops import columns, over_rows
from ..core.settings import part, setting
from ..errors import ShapeError, one_of
from ..kernels.context import Context, enter, numeric
from .targets import ANYTHING, Targets

__all__ = ["Elementwise", "Loss"]

EPSILON = 1e-7  # Keras' own: keeps logarithms and quotients finite
REDUCTIONS = ("sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none")


def _reduction(name: str, value: Any) -> str:
    return one_of(name, value or "none", REDUCTIONS)


def _first(cls: type, *names: str) -> int:
    """Return the place in the method resolution order of the first class that defines one of the names."""
    return next(i for i, base in enumerate(cls.__mro__) if not vars(base).keys().isdisjoint(names))


class Loss(Configurable):
    """Base class of the losses; subclasses define `targets` and `terms`.

    A loss reduces one axis (or several) of the predictions to a value. What remains are the rows: predictions of
    shape (batch, ..., units) have rows of shape (batch, ...).

    A subclass that overrides only `terms` is not fused with an activation, because the inherited `score_terms`
    compute another formula. One that overrides only `score_terms` does not inherit `terms`. The same holds for
    `at` and `at_scores` of `Elementwise`.

    Args:
        reduction: how the rows' values become one number: `"sum_over_batch_size"` or `"mean"` (the sum of
            value * weight, divided by the number of rows), `"sum"`, `"mean_with_sample_weight"` (divided by the
            sum of the weights), or `"none"` or None (no reduction: one value per row).
        name: the name of the loss. dtype: the precision of a call outside a model.

    Attributes:
        targets: the kind of targets (see `xpnet.losses.targets`). sparse: whether they are class numbers.
        fuses: the activation with which the loss is computed from scores, or None.
        axis: the axis of the predictions that the formula reduces; a tuple for several, None for all. In many
            losses it is a setting.

    >>> from xpnet.losses import MeanSquaredError
    >>> MeanSquaredError()([[0.0], [1.0]], [[1.0], [1.0]]).tolist()
    0.5
    """

    fuses: ClassVar[str | None] = None
    targets: ClassVar[Targets] = ANYTHING
    sparse: ClassVar[bool] = False
    axis = -1

    reduction: str = setting(_reduction, default="sum_over_batch_size", kw_only=True)
    name: str | None = setting(default=None, kw_only=True)
    dtype: str | None = part(floating, default=None, kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        plain, scores = _first(cls, "terms", "at"), _first(cls, "score_terms", "at_scores")
        if plain < scores:
            cls.fuses = None
        elif scores < plain:
            setattr(cls, "terms", Loss.terms)  # noqa: B010 - a method

    # What a subclass defines --------------------------------------------------------------------------

    def terms(self, ctx: Context, y: Array, p: Array, weight: Any) -> tuple[Array, Array]:
        """Return the rows' values, shape p.shape[:-1], and their derivative by p times `weight`.

        The axis that the formula reduces is the last one here, whatever `axis` is.

        Args:
            y: targets (see `target_shape`). p: predictions, shape (..., units).
            weight: of the rows, shape p.shape[:-1], or a number.

        A loss of scores may define `score_terms` instead.
        """
        if not self.takes_scores:
            raise TypeError(f"{type(self).__name__} must define terms(ctx, y, p, weight)")
        return self.score_terms(ctx, y, p, weight)[:2]

    def score_terms(self, ctx: Context, y: Array, z: Array, weight: Any) -> tuple[Array, Array, Array]:
        """Return the values, their derivative by the scores z, and a = f(z), where f is `fuses`."""
        raise TypeError(f"{type(self).__name__} can't be computed from scores")

    @property
    def takes_scores(self) -> bool:
        """Whether the predictions passed to `terms` are scores."""
        return bool(getattr(self, "from_logits", False))

    def counted_rows(self, ctx: Context, y: Array) -> Array | None:
        """Return which rows count, a boolean array; None if all do. The others are left out of means too."""
        return None

    def check(self, y: np.ndarray, shape: tuple[int, ...]) -> None:
        """Raise unless host targets are valid for outputs of `shape`, which includes the batch axis.

        Under `jax.jit`, `jax.grad` and `jax.vmap` the values of targets are unknown; zeros are checked instead.
        """
        self.value_shape(shape)
        self.targets.check(type(self).__name__, y, shape, self.axis)

    def check_weight(self, weight: tuple[int, ...], shape: tuple[int, ...]) -> None:
        """Raise unless weights of the shape `weight` fit outputs of `shape`, both with the batch axis."""
        rows, given = self.value_shape(shape), without_ones(weight)
        fits = len(given) <= len(rows) and given[:1] == rows[: len(given[:1])]
        if rows and not (fits and all(n in (1, r) for n, r in zip(given, rows))):
            further = f" or that of the outputs' leading axes, {rows}" if len(rows) > 1 else ""
            raise ShapeError(f"sample_weight must have shape {rows[:1]}{further}; got {weight}")
        if not rows and given[:1] not in ((), shape[:1]):
            raise ShapeError(f"sample_weight must have shape {shape[:1]}; got {weight}")

    def objection(self, p: np.ndarray) -> str | None:
        """Return why the loss of host predictions is not finite, or None if the reason is unknown."""
        return None

    # Shapes -------------------------------------------------------------------------------------------

    def target_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the targets for outputs of `shape`: the same, without classes if sparse."""
        return self.value_shape(shape) if self.sparse else shape

    def value_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the rows for outputs of `shape`, which includes the batch axis.

        Raises:
            ShapeError: the outputs have no such axis.
        """
        return tuple(shape[i] for i in range(len(shape)) if i not in reduced_axes(self.axis, len(shape)))

    def fused_activation(self, shape: tuple[int, ...]) -> str | None:
        """Return the activation to fuse with in a model with outputs of `shape`, or None."""
        return self.fuses if reduced_axes(self.axis, len(shape)) == (len(shape) - 1,) else None

    # What the training step calls ---------------------------------------------------------------------

    def value_and_slope(
        self, ctx: Context, y: Array, p: Array, weight: Array | None, fused: bool
    ) -> tuple[Array, Array, Array]:
        """Return the reduced loss, its derivative by p, and the prediction (p, or f(p) when `fused`)."""
        values, factor, dp, prediction = self._parts(ctx, y, p, weight, fused)
        weights, scale = (None, factor) if isinstance(factor, float) else (factor, 1.0)
        return ctx.ops.row_total(ctx, values, weights, scale), dp, prediction

    def row_values(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return the values of the rows, 0 for those that do not count."""
        y, p, _ = _reduced_last(ctx.xp, y, p, self.axis)
        return _where(ctx.xp, self.counted_rows(ctx, y), self.terms(ctx, y, p, 1.0)[0])

    def row_weights(self, ctx: Context, y: Array, p: Array, weight: Array | None) -> Array | None:
        """Return the weights of the rows, 0 for those that do not count; None if all are 1."""
        return _row_weights(ctx, self.counted_rows(ctx, y), self.value_shape(tuple(p.shape)), weight)

    def _parts(self, ctx: Context, y: Array, p: Array, weight: Array | None, fused: bool) -> Any:
        """Return the rows' values, their factors in the reduced loss, its derivative by p, and the prediction."""
        xp = ctx.xp
        moved, restore = p, None
        if self.axis != -1:
            y, moved, restore = _reduced_last(xp, y, p, self.axis)
        rows, counted = tuple(moved.shape[:-1]), self.counted_rows(ctx, y)
        factor = self._factor(ctx, counted, rows, weight)
        # one value for several weights, as of `Dice`, has their sum for its factor
        slope_factor = factor if rows or isinstance(factor, float) else xp.sum(factor)
        if fused:
            values, dp, prediction = self.score_terms(ctx, y, moved, slope_factor)
        else:
            found, prediction = self.terms(ctx, y, moved, slope_factor), p
            values, dp = found if type(found) is tuple else (found, None)
        if getattr(values, "shape", None) != rows or dp is None:
            raise ShapeError(
                f"{type(self).__name__} must return one value per row, shape {rows}, and the derivative by the "
                f"predictions; got {type(values).__name__} of shape {tuple(getattr(values, 'shape', ()))}"
            )
        if counted is not None:  # a weight of 0 is not enough where a value is not finite
            values, dp = _where(xp, counted, values), _where(xp, xp.expand_dims(counted, axis=-1), dp)
        return values, factor, dp if restore is None else restore(dp), prediction

    def _factor(self, ctx: Context, counted: Array | None, rows: tuple[int, ...], weight: Array | None) -> Any:
        """Return the factors of the rows' values in the reduced loss: an array, or one number."""
        mean = self.reduction not in ("sum", "none")
        if weight is None and counted is None:
            return 1.0 / max(math.prod(rows), 1) if mean else 1.0
        xp = ctx.xp
        weights: Any = _row_weights(ctx, counted, rows, weight)
        if not mean:
            return weights
        total: Any = math.prod(weights.shape)
        if self.reduction == "mean_with_sample_weight":
            total = xp.sum(weights)
        elif counted is not None:
            total = xp.sum(xp.astype(counted, ctx.dtype))
        if isinstance(total, int):
            return weights * (1.0 / max(total, 1))
        return weights / xp.where(total == 0, xp.ones_like(total), total)

    # What users call ----------------------------------------------------------------------------------

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Array:
        """Return the reduced loss (one value per row with reduction "none"), in the library of `y_pred`.

        Args:
            y_true: targets, shape (batch, ...), or class numbers (batch,) for a sparse loss.
            y_pred: predictions, shape (batch, ..., units); (batch,) is taken as (batch, 1).
            sample_weight: None, or an array of shape (batch,), (batch, 1) or of all leading axes (batch, ...).

        Raises:
            ShapeError: the shapes do not fit. InvalidValueError: labels are outside their range.
        """
        return self._evaluate(y_true, y_pred, sample_weight)[0]

    def value_and_grad(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tuple[Array, Array]:
        """Return the reduced loss and its derivative by `y_pred`, of the shape of `y_pred`.

        With reduction "none" it is the derivative of the sum of all values.
        """
        return self._evaluate(y_true, y_pred, sample_weight)

    @np.errstate(all="ignore")
    def _evaluate(self, y_true: Any, y_pred: Any, sample_weight: Any) -> tuple[Array, Array]:
        ctx, leave = enter(y_pred, y_true, sample_weight, dtype=self.dtype)
        p = ctx.asarray(y_pred)
        if p.ndim == 0:
            raise ShapeError(f"y_pred must have shape (batch, ...); got shape {tuple(p.shape)}")
        shape = tuple(p.shape)
        p = ctx.xp.expand_dims(p, axis=-1) if p.ndim == 1 else p
        # a traced array has a shape only, and zeros are valid targets of every loss
        self.check(np.zeros(y_true.shape) if traced(y_true) else numeric(y_true, "y_true"), tuple(p.shape))
        y = ctx.asarray(y_true, ctx.xp.int32 if self.sparse else None)
        y = ctx.xp.reshape(y, self.target_shape(tuple(p.shape)))
        weight = None if sample_weight is None else ctx.asarray(sample_weight)
        if weight is not None:
            self.check_weight(tuple(weight.shape), tuple(p.shape))
            weight = ctx.xp.reshape(weight, without_ones(tuple(weight.shape)))
        if self.reduction == "none":
            values, factor, dp, _ = self._parts(ctx, y, p, weight, fused=False)
            value = values * factor
        else:
            value, dp, _ = self.value_and_slope(ctx, y, p, weight, fused=False)
        return leave(value), leave(ctx.xp.reshape(dp, shape))


class Elementwise(Loss):
    """Base class of the losses that are the mean of a formula over the units; subclasses define `at`.

    >>> from xpnet.losses.targets import LIKE_OUTPUTS
    >>> class Squared(Elementwise):
    ...     targets = LIKE_OUTPUTS
    ...
    ...     def at(self, xp, y, p):
    ...         return (p - y) ** 2, 2.0 * (p - y)
    >>> value, grad = Squared().value_and_grad([[0.0, 1.0]], [[2.0, 1.0]])
    >>> value.tolist(), grad.tolist()
    (2.0, [[2.0, 0.0]])
    """

    def at(self, xp: Any, y: Array, p: Array) -> tuple[Array, Array]:
        """Return the loss of each unit and its derivative by the prediction p, both of the shape of y and p.

        It must be elementwise and must not branch on values: `xp.where` chooses.
        """
        raise TypeError(f"{type(self).__name__} must define at(xp, y, p)")

    def at_scores(self, xp: Any, y: Array, z: Array) -> tuple[Array, Array, Array]:
        """Return the loss of each unit, its derivative by the score z, and f(z), where f is `fuses`."""
        raise TypeError(f"{type(self).__name__} can't be computed from scores")

    def terms(self, ctx: Context, y: Array, p: Array, weight: Any) -> tuple[Array, Array]:
        """Return the means over the units, and their derivative by p times `weight`."""
        value, slope, *_ = (self.at_scores if self.takes_scores else self.at)(ctx.xp, y, p)
        return _over_units(ctx.xp, value, slope, weight)

    def score_terms(self, ctx: Context, y: Array, z: Array, weight: Any) -> tuple[Array, Array, Array]:
        """Return the means over the units, their derivative by z times `weight`, and f(z)."""
        value, slope, a = self.at_scores(ctx.xp, y, z)
        return *_over_units(ctx.xp, value, slope, weight), a


def _over_units(xp: Any, value: Array, slope: Array, weight: Any) -> tuple[Array, Array]:
    """Return the means over the last axis, and their derivative times the rows' `weight`."""
    return xp.mean(value, axis=-1), slope * (columns(xp, weight) * (1.0 / value.shape[-1]))


def reduced_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """Return the axes that `axis` (a number, several, or None for all) names, as numbers >= 0.

    Raises:
        ShapeError: there is no such axis.

    >>> reduced_axes(-1, 3), reduced_axes((1, -1), 3), reduced_axes(None, 2)
    ((2,), (1, 2), (0, 1))
    """
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, tuple) else (axis,)
    if not all(-ndim <= a < ndim for a in axes):
        raise ShapeError(f"axis must name axes of outputs with {ndim} axes; got {axis}")
    return tuple(a % ndim for a in axes)


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of row weights without trailing axes of size 1, which broadcast anyway.

    >>> without_ones((5, 1)), without_ones((1, 1)), without_ones((5, 1, 3))
    ((5,), (1,), (5, 1, 3))
    """
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _row_weights(
    ctx: Context, counted: Array | None, shape: tuple[int, ...], weight: Array | None
) -> Array | None:
    """Return the weights of rows of that shape, 0 for those that do not count; None if all are 1."""
    if weight is None:
        return None if counted is None else ctx.xp.astype(counted, ctx.dtype)
    return _where(ctx.xp, counted, over_rows(ctx.xp, weight, shape) if shape else weight)


def _where(xp: Any, counted: Array | None, a: Array) -> Array:
    """Return a, with 0 in the rows that do not count."""
    return a if counted is None else xp.where(counted, a, xp.zeros_like(a))


def _reduced_last(xp: Any, y: Array, p: Array, axis: Any) -> tuple[Array, Array, Any]:
    """Return targets and predictions with the reduced axes as the last one, and what undoes this for p."""
    if axis == -1:
        return y, p, lambda dp: dp
    axes = reduced_axes(axis, p.ndim)
    order = tuple(i for i in range(p.ndim) if i not in axes) + axes
    rows = tuple(p.shape[i] for i in order[: p.ndim - len(axes)])
    flat = (*rows, math.prod(p.shape[i] for i in axes))
    moved = tuple(p.shape[i] for i in order)
    back = tuple(order.index(i) for i in range(p.ndim))

    def last(a: Array) -> Array:
        return xp.reshape(xp.permute_dims(a, order), flat)

    def restore(dp: Array) -> Array:
        return xp.permute_dims(xp.reshape(dp, moved), back)

    return last(y) if y.ndim == p.ndim else y, last(p), restore


def clip(xp: Any, p: Array, high: float = 1.0 - EPSILON) -> tuple[Array, Array]:
    """Return p within [EPSILON, high], and 1 where it was there before, else 0."""
    q = xp.minimum(xp.maximum(p, xp.full_like(p, EPSILON)), xp.full_like(p, high))
    return q, xp.astype(q == p, p.dtype)


registry: Registry[Loss] = Registry("loss", Loss)
