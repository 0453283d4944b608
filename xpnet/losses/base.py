"""The base classes of the losses: reductions, weights, shapes and checks stand here once."""

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

REDUCTIONS = ("sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none")


def _reduction(name: str, value: Any) -> str:
    return one_of(name, value or "none", REDUCTIONS)


def _first(cls: type, *names: str) -> int:
    """Return the place in the method resolution order of the first class that defines one of the names."""
    return next(i for i, base in enumerate(cls.__mro__) if not vars(base).keys().isdisjoint(names))


class Loss(Configurable):
    """Base class of the losses; subclasses define `targets` and `terms`.

    A subclass that overrides `terms` only is not joined with an activation: the `score_terms` that it inherits
    are those of another formula. One that overrides `score_terms` only inherits no `terms`. The same holds for
    `at` and `at_scores` of `Elementwise`.

    Args:
        reduction: over the rows: `"sum_over_batch_size"` (or `"mean"`: sum of value * weight, divided by the
            number of rows), `"sum"`, `"mean_with_sample_weight"` (divided by the sum of the weights), or
            `"none"` (or None: one value a row).
        name: what to call it. dtype: the precision when used alone.

    Attributes:
        targets: what it takes as targets (see `xpnet.losses.targets`). sparse: whether they are class numbers.
        fuses: the activation with which it is computed from scores, or None.

    >>> from xpnet.losses import MeanSquaredError
    >>> MeanSquaredError()([[0.0], [1.0]], [[1.0], [1.0]]).tolist()
    0.5
    """

    fuses: ClassVar[str | None] = None
    targets: ClassVar[Targets] = ANYTHING
    sparse: ClassVar[bool] = False

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

        Args:
            y: targets (see `target_shape`). p: predictions, shape (..., units).
            weight: of the rows, shape p.shape[:-1], or a number.

        From scores, `score_terms` will do.
        """
        if not self.takes_scores:
            raise TypeError(f"{type(self).__name__} must define terms(ctx, y, p, weight)")
        return self.score_terms(ctx, y, p, weight)[:2]

    def score_terms(self, ctx: Context, y: Array, z: Array, weight: Any) -> tuple[Array, Array, Array]:
        """Return the values, their derivative by the scores z, and a = f(z), f being `fuses`."""
        raise TypeError(f"{type(self).__name__} can't be computed from scores")

    @property
    def takes_scores(self) -> bool:
        """Whether the predictions that `terms` takes are scores."""
        return bool(getattr(self, "from_logits", False))

    def check(self, y: np.ndarray, shape: tuple[int, ...]) -> None:
        """Raise if host targets can't be meant for outputs of `shape`, which includes the batch axis.

        Under `jax.jit`, `jax.grad` and `jax.vmap`, where a target's numbers are not known, they are zeros.
        """
        self.targets.check(type(self).__name__, y, shape)

    def objection(self, p: np.ndarray) -> str | None:
        """Return what is wrong with host predictions whose loss is not finite; None where nothing is known."""
        return None

    # What the training step calls ---------------------------------------------------------------------

    def value_and_slope(
        self, ctx: Context, y: Array, p: Array, weight: Array | None, fused: bool
    ) -> tuple[Array, Array, Array]:
        """Return the reduced loss, its derivative by p, and the prediction (p, or f(p) when `fused`)."""
        factor = self._factor(ctx, p, weight)
        if fused:
            values, dp, prediction = self.score_terms(ctx, y, p, factor)
        else:
            (values, dp), prediction = self.terms(ctx, y, p, factor), p
        weights, scale = (None, factor) if isinstance(factor, float) else (factor, 1.0)
        return ctx.ops.row_total(ctx, values, weights, scale), dp, prediction

    # What users call ----------------------------------------------------------------------------------

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Array:
        """Return the reduced loss (one value a row with reduction "none"), in the library of `y_pred`.

        Args:
            y_true: targets, shape (batch, ...), or class numbers (batch,) for a sparse loss.
            y_pred: predictions, shape (batch, ..., units); (batch,) is taken as (batch, 1).
            sample_weight: shape (batch,) or None.

        Raises:
            ShapeError: the shapes do not fit. InvalidValueError: labels are outside their range.
        """
        return self._evaluate(y_true, y_pred, sample_weight)[0]

    def value_and_grad(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tuple[Array, Array]:
        """Return the reduced loss and its derivative by `y_pred`, of the shape of `y_pred`."""
        return self._evaluate(y_true, y_pred, sample_weight)

    @np.errstate(all="ignore")
    def _evaluate(self, y_true: Any, y_pred: Any, sample_weight: Any) -> tuple[Array, Array]:
        ctx, leave = enter(y_pred, y_true, sample_weight, dtype=self.dtype)
        p = ctx.asarray(y_pred)
        if p.ndim == 0:
            raise ShapeError(f"y_pred must have shape (batch, ...); got shape {tuple(p.shape)}")
        shape = tuple(p.shape)
        p = ctx.xp.expand_dims(p, axis=-1) if p.ndim == 1 else p
        # what is traced has a shape only, and zeros are targets of every loss
        self.check(np.zeros(y_true.shape) if traced(y_true) else numeric(y_true, "y_true"), tuple(p.shape))
        y = ctx.asarray(y_true, ctx.xp.int32 if self.sparse else None)
        y = ctx.xp.reshape(y, self.target_shape(tuple(p.shape)))
        weight = None if sample_weight is None else ctx.asarray(sample_weight)
        if weight is not None and (weight.ndim > p.ndim - 1 or weight.shape != p.shape[: weight.ndim]):
            raise ShapeError(f"sample_weight must have shape {shape[:1]}; got {tuple(weight.shape)}")
        if self.reduction == "none":
            rows = 1.0 if weight is None else over_rows(ctx.xp, weight, p.shape[:-1])
            values, dp = self.terms(ctx, y, p, rows)
            value = values * rows
        else:
            value, dp, _ = self.value_and_slope(ctx, y, p, weight, fused=False)
        return leave(value), leave(ctx.xp.reshape(dp, shape))

    def target_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the targets that `terms` takes: the outputs', without classes if sparse."""
        return shape[:-1] if self.sparse else shape

    def _factor(self, ctx: Context, p: Array, weight: Array | None) -> Any:
        rows = math.prod(p.shape[:-1])
        mean = 1.0 if self.reduction == "sum" else 1.0 / max(rows, 1)
        if weight is None:
            return mean
        weights = over_rows(ctx.xp, weight, p.shape[:-1])
        if self.reduction == "mean_with_sample_weight":
            total = ctx.xp.sum(weights)
            return weights / ctx.xp.where(total == 0, ctx.xp.ones_like(total), total)
        return weights * mean


class Elementwise(Loss):
    """Base class of the losses that are the mean over units of a formula; subclasses define `at`.

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
        """Return the loss of each unit, its derivative by the score z, and f(z), f being `fuses`."""
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


registry: Registry[Loss] = Registry("loss", Loss)
