"""Losses: each value beside its derivative.

A loss gives, for every row, a value and the derivative by the prediction, in one function (`terms`). From
scores ("logits") cross-entropies are stable and dz = a - y exactly; a model that ends in softmax or sigmoid
is joined with its cross-entropy (`fuses`), so that its scores are used.
"""

from __future__ import annotations

import math
from typing import Any

from .backend import Array, floating, np, traced
from .context import Context, enter, numeric
from .errors import InvalidTypeError, InvalidValueError, ShapeError, number, one_of
from .ops import columns
from .registry import Configurable, Registry, overrides
from .settings import flag, part, setting

__all__ = [
    "BinaryCrossentropy",
    "CategoricalCrossentropy",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "PerceptronCriterion",
    "SparseCategoricalCrossentropy",
    "get",
]

REDUCTIONS = ("sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none")
EPSILON = 1e-7  # probabilities are clipped to [EPSILON, 1 - EPSILON]


def _reduction(name: str, value: Any) -> str:
    return one_of(name, value or "none", REDUCTIONS)


class Loss(Configurable):
    """Base class of the losses; subclasses define `terms`.

    A subclass that overrides `terms` only is not joined with an activation: the `score_terms` that it inherits
    are those of another formula. One that overrides `score_terms` only inherits no `terms`.

    Args:
        reduction: over the rows: `"sum_over_batch_size"` (or `"mean"`: sum of value * weight, divided by the
            number of rows), `"sum"`, `"mean_with_sample_weight"` (divided by the sum of the weights), or
            `"none"` (or None: one value a row).
        name: what to call it. dtype: the precision when used alone.

    >>> MeanSquaredError()([[0.0], [1.0]], [[1.0], [1.0]]).tolist()
    0.5
    """

    fuses: str | None = None  # the activation with which it is computed from scores
    sparse = False  # whether targets are class numbers

    reduction: str = setting(_reduction, default="sum_over_batch_size", kw_only=True)
    name: str | None = setting(default=None, kw_only=True)
    dtype: str | None = part(floating, default=None, kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if overrides(cls, "terms", "score_terms"):
            cls.fuses = None
        elif overrides(cls, "score_terms", "terms"):
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

    def objection(self, p: np.ndarray) -> str | None:
        """Return what is wrong with host predictions whose loss is not finite; None where nothing is known."""
        return None

    # What the training step calls ---------------------------------------------------------------------

    def measure(
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
            rows = 1.0 if weight is None else _rows(ctx, weight, p)
            values, dp = self.terms(ctx, y, p, rows)
            value = values * rows
        else:
            value, dp, _ = self.measure(ctx, y, p, weight, fused=False)
        return leave(value), leave(ctx.xp.reshape(dp, shape))

    def target_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the targets that `terms` takes: the outputs', without classes if sparse."""
        return shape[:-1] if self.sparse else shape

    def _factor(self, ctx: Context, p: Array, weight: Array | None) -> Any:
        rows = math.prod(p.shape[:-1])
        mean = 1.0 if self.reduction == "sum" else 1.0 / max(rows, 1)
        if weight is None:
            return mean
        weights = _rows(ctx, weight, p)
        if self.reduction == "mean_with_sample_weight":
            total = ctx.xp.sum(weights)
            return weights / ctx.xp.where(total == 0, ctx.xp.ones_like(total), total)
        return weights * mean

    def _same_shape(self, y: np.ndarray, shape: tuple[int, ...]) -> None:
        if y.shape != shape and not (shape[-1] == 1 and y.shape == shape[:-1]):
            raise ShapeError(
                f"{type(self).__name__} takes targets of the outputs' shape {shape}"
                f"{f' or {shape[:-1]}' if shape[-1] == 1 else ''}; got {y.shape}"
            )


def _rows(ctx: Context, weight: Array, p: Array) -> Array:
    """Return weights (batch,) as weights of p's rows, shape p.shape[:-1]."""
    xp = ctx.xp
    while weight.ndim < p.ndim - 1:
        weight = xp.expand_dims(weight, axis=-1)
    return xp.broadcast_to(weight, p.shape[:-1])


class MeanSquaredError(Loss):
    """mean over units of (p - y)^2;  d/dp = 2 (p - y) / units. Half of it: the notes' E = (y - o)^2 / 2.

    Args:
        reduction, name, dtype: see `Loss`.
    """

    def check(self, y: np.ndarray, shape: tuple[int, ...]) -> None:
        """Compare the shapes."""
        self._same_shape(y, shape)

    def terms(self, ctx: Context, y: Array, p: Array, weight: Any) -> tuple[Array, Array]:
        """Return mean((p - y)^2) and 2 (p - y) / units."""
        difference = p - y
        slope = difference * (columns(ctx.xp, weight) * (2.0 / p.shape[-1]))
        return ctx.xp.mean(difference * difference, axis=-1), slope


class MeanAbsoluteError(Loss):
    """mean over units of |p - y|;  d/dp = sign(p - y) / units (0 where p = y).

    Args:
        reduction, name, dtype: see `Loss`.
    """

    def check(self, y: np.ndarray, shape: tuple[int, ...]) -> None:
        """Compare the shapes."""
        self._same_shape(y, shape)

    def terms(self, ctx: Context, y: Array, p: Array, weight: Any) -> tuple[Array, Array]:
        """Return mean(|p - y|) and sign(p - y) / units."""
        xp, difference = ctx.xp, p - y
        # not `sign`, for which some libraries wait for the device
        sign = xp.astype(difference > 0, p.dtype) - xp.astype(difference < 0, p.dtype)
        slope = sign * (columns(ctx.xp, weight) * (1.0 / p.shape[-1]))
        return xp.mean(xp.abs(difference), axis=-1), slope


class _CrossEntropy(Loss):
    """What the cross-entropies of probabilities share: scores or not, and smoothed targets."""

    from_logits: bool = setting(flag, default=False)
    label_smoothing: float = setting(number, 0, 1, default=0.0)

    def _smooth(self, y: Array, chance: float) -> Array:
        """Return y (1 - s) + s * chance, where chance is that of a blind guess."""
        s = self.label_smoothing
        return y * (1.0 - s) + s * chance if s else y


class BinaryCrossentropy(_CrossEntropy):
    """mean over units of -(y log p + (1 - y) log(1 - p));  d/dp = (p - y) / (p (1 - p)) / units.

    Probabilities are clipped to [1e-7, 1 - 1e-7] (there d/dp = 0); from scores z, with p = sigmoid(z),
    dz = (p - y) / units.

    Args:
        from_logits: whether predictions are scores. label_smoothing: s in [0, 1]: y becomes y (1 - s) + s / 2.
        reduction, name, dtype: see `Loss`.
    """

    fuses = "sigmoid"

    def check(self, y: np.ndarray, shape: tuple[int, ...]) -> None:
        """Compare the shapes; targets are probabilities."""
        self._same_shape(y, shape)
        _in_unit_interval(type(self).__name__, y)

    def score_terms(self, ctx: Context, y: Array, z: Array, weight: Any) -> tuple[Array, Array, Array]:
        """Return the cross-entropy of sigmoid(z), its derivative by z, and sigmoid(z)."""
        return ctx.ops.sigmoid_cross_entropy(ctx, z, self._smooth(y, 0.5), weight)

    def terms(self, ctx: Context, y: Array, p: Array, weight: Any) -> tuple[Array, Array]:
        """Return the cross-entropy of p (or of sigmoid(p) with from_logits) and its derivative by p."""
        if self.from_logits:
            return BinaryCrossentropy.score_terms(self, ctx, y, p, weight)[:2]
        xp, y = ctx.xp, self._smooth(y, 0.5)
        q, inside = _clip(xp, p)
        values = -xp.mean(y * xp.log(q) + (1.0 - y) * xp.log(1.0 - q), axis=-1)
        slope = (q - y) / (q * (1.0 - q)) * inside
        return values, slope * (columns(ctx.xp, weight) * (1.0 / p.shape[-1]))


class _OfShares:
    """What the losses share that divide the predictions of a row by their sum."""

    from_logits: bool

    def objection(self, p: np.ndarray) -> str | None:
        """Look for rows that are no probabilities."""
        wrong = p[(p < 0).any(axis=-1) | ~(np.abs(p.sum(axis=-1) - 1) < 0.01)]
        if self.from_logits or not wrong.size:
            return None
        return (
            "the predictions are not probabilities: let the model end in 'softmax', or in no activation with "
            f"from_logits=True (a row of them is {wrong[0].tolist()})"
        )


class CategoricalCrossentropy(_OfShares, _CrossEntropy):
    """-sum over classes of y log p, with one-hot (or soft) targets y;  d/dp = -y / p.

    Probabilities are first divided by their sum, then clipped to [1e-7, 1 - 1e-7], as in Keras; from scores z,
    with p = softmax(z), dz = p - y.

    Args:
        from_logits: whether predictions are scores. label_smoothing: s in [0, 1]: y becomes y (1 - s) + s / C.
        reduction, name, dtype: see `Loss`.
    """

    fuses = "softmax"

    def check(self, y: np.ndarray, shape: tuple[int, ...]) -> None:
        """Compare the shapes; targets are probabilities."""
        _several_classes(type(self).__name__, shape)
        if y.shape != shape:
            raise ShapeError(
                f"{type(self).__name__} takes one-hot targets of shape {shape} (for class numbers there is "
                f"'sparse_categorical_crossentropy'); got {y.shape}"
            )
        _in_unit_interval(type(self).__name__, y)

    def score_terms(self, ctx: Context, y: Array, z: Array, weight: Any) -> tuple[Array, Array, Array]:
        """Return the cross-entropy of softmax(z), its derivative by z, and softmax(z)."""
        return ctx.ops.softmax_cross_entropy(ctx, z, self._smooth(y, 1.0 / y.shape[-1]), weight)

    def terms(self, ctx: Context, y: Array, p: Array, weight: Any) -> tuple[Array, Array]:
        """Return the cross-entropy of p (or of softmax(p) with from_logits) and its derivative by p."""
        if self.from_logits:
            return CategoricalCrossentropy.score_terms(self, ctx, y, p, weight)[:2]
        return _cross_entropy(ctx, self._smooth(y, 1.0 / y.shape[-1]), p, weight)


class SparseCategoricalCrossentropy(_OfShares, Loss):
    """-log p[y], with targets y the numbers 0..C-1 of the classes;  d/dp = -1 / p[y] at y, else 0.

    Probabilities are treated as in `CategoricalCrossentropy`.

    Args:
        from_logits: whether predictions are scores. reduction, name, dtype: see `Loss`.
    """

    fuses = "softmax"
    sparse = True

    from_logits: bool = setting(flag, default=False)

    def check(self, y: np.ndarray, shape: tuple[int, ...]) -> None:
        """Compare the shapes; targets are whole numbers from 0 to C - 1."""
        _several_classes(type(self).__name__, shape)
        if y.shape not in (shape[:-1], (*shape[:-1], 1)):
            raise ShapeError(
                f"{type(self).__name__} takes class numbers of shape {shape[:-1]} (for one-hot targets there is "
                f"'categorical_crossentropy'); got {y.shape}"
            )
        _check_labels(type(self).__name__, y, shape[-1])

    def score_terms(self, ctx: Context, y: Array, z: Array, weight: Any) -> tuple[Array, Array, Array]:
        """Return the cross-entropy of softmax(z), its derivative by z, and softmax(z)."""
        return ctx.ops.softmax_cross_entropy(ctx, z, y, weight)

    def terms(self, ctx: Context, y: Array, p: Array, weight: Any) -> tuple[Array, Array]:
        """Return the cross-entropy of p (or of softmax(p) with from_logits) and its derivative by p."""
        if self.from_logits:
            return SparseCategoricalCrossentropy.score_terms(self, ctx, y, p, weight)[:2]
        return _cross_entropy(ctx, ctx.ops.one_hot(ctx, y, p.shape[-1], p.dtype), p, weight)


class PerceptronCriterion(Loss):
    """mean over units of max(0, -y z), for scores z and targets y of +-1 (0 is taken as -1).

    Its derivative is -y where y z < 0, else 0; at z = 0, where any number between is a subgradient, it is -1 for
    y = 1 and 0 for y = -1. So dz = step(z) - t with t in {0, 1}, and one step of SGD is the perceptron rule
    w += rate (t - step(w x)) x (F. Rosenblatt 1958). A model that ends in `"step"` gives it its scores.

    Args:
        reduction, name, dtype: see `Loss`.
    """

    fuses = "step"

    @property
    def takes_scores(self) -> bool:
        """Always."""
        return True

    def check(self, y: np.ndarray, shape: tuple[int, ...]) -> None:
        """Compare the shapes; targets are -1 (or 0) and 1."""
        self._same_shape(y, shape)
        wrong = y[~np.isin(y, (-1, 0, 1))]
        if wrong.size:
            raise InvalidValueError(
                f"PerceptronCriterion takes targets -1 (or 0) and 1; got {wrong.flat[0].item()!r}"
            )

    def score_terms(self, ctx: Context, y: Array, z: Array, weight: Any) -> tuple[Array, Array, Array]:
        """Return the criterion, its derivative by z, and step(z)."""
        xp = ctx.xp
        t, a = xp.astype(y > 0, z.dtype), xp.astype(z > 0, z.dtype)
        values = xp.mean(xp.maximum(xp.zeros_like(z), (1.0 - 2.0 * t) * z), axis=-1)
        return values, (a - t) * (columns(ctx.xp, weight) * (1.0 / z.shape[-1])), a


def _cross_entropy(ctx: Context, y: Array, p: Array, weight: Any) -> tuple[Array, Array]:
    """-sum(y log q), q = clip(p / sum(p)).  dq = -y / q;  dp = (dq - sum(dq * p / s)) / s, s = sum(p)."""
    xp = ctx.xp
    s = xp.sum(p, axis=-1, keepdims=True)
    share = p / s
    q, inside = _clip(xp, share)
    dq = -(y / q) * inside
    slope = (dq - xp.sum(dq * share, axis=-1, keepdims=True)) / s
    return -xp.sum(y * xp.log(q), axis=-1), slope * columns(ctx.xp, weight)


def _clip(xp: Any, p: Array) -> tuple[Array, Array]:
    """Return p within [EPSILON, 1 - EPSILON], and 1 where it was there before, else 0."""
    low, high = xp.full_like(p, EPSILON), xp.full_like(p, 1.0 - EPSILON)
    q = xp.minimum(xp.maximum(p, low), high)
    return q, xp.astype(q == p, p.dtype)


def _several_classes(who: str, shape: tuple[int, ...]) -> None:
    if shape[-1] < 2:
        raise ShapeError(
            f"{who} needs an output for each of two or more classes (for one output there is "
            f"'binary_crossentropy'); got outputs of shape {shape}"
        )


def _in_unit_interval(who: str, y: np.ndarray) -> None:
    wrong = y[~((y >= 0) & (y <= 1))]
    if wrong.size:
        raise InvalidValueError(f"{who} takes targets in [0, 1]; got {wrong.flat[0].item()!r}")


def _check_labels(who: str, y: np.ndarray, classes: int) -> None:
    wrong = (
        y[~((y >= 0) & (y < classes) & (y == np.floor(y)))] if y.dtype.kind == "f" else y[(y < 0) | (y >= classes)]
    )
    if wrong.size:
        raise InvalidValueError(
            f"{who} takes labels that are whole numbers from 0 to {classes - 1}; got {wrong.flat[0].item()!r}"
        )


registry: Registry[Loss] = Registry("loss", Loss)
registry.add(
    BinaryCrossentropy, CategoricalCrossentropy, MeanAbsoluteError, MeanSquaredError, PerceptronCriterion,
    SparseCategoricalCrossentropy,
    mse=MeanSquaredError, mae=MeanAbsoluteError, bce=BinaryCrossentropy, perceptron=PerceptronCriterion,
)  # fmt: skip


def get(identifier: Any) -> Loss:
    """Return a loss from a name or an object.

    Raises:
        UnknownNameError: no loss has that name. InvalidTypeError: it is a bare function.
    """
    if callable(identifier) and not isinstance(identifier, (Loss, type)):
        raise InvalidTypeError(
            f"a loss needs its derivative too: derive from xpnet.losses.Loss and define terms; got {identifier!r}"
        )
    return registry.get(identifier)
