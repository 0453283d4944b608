"""Cross-entropies: from probabilities, and from the scores ("logits") before the last activation."""

from __future__ import annotations

from typing import Any

from ..backend import Array, np
from ..core.ops import columns
from ..core.settings import flag, optional, setting
from ..errors import number
from ..kernels.context import Context
from .base import Elementwise, Loss, clip, registry
from .targets import CLASS_NUMBERS, ONE_HOT, PROBABILITIES

__all__ = ["BinaryCrossentropy", "CategoricalCrossentropy", "SparseCategoricalCrossentropy"]


class _Smoothed(Loss):
    """The settings of a cross-entropy whose targets are probabilities."""

    from_logits: bool = setting(flag, default=False)
    label_smoothing: float = setting(number, 0, 1, default=0.0)
    axis: int = setting(number, integer=True, default=-1, kw_only=True)

    def _smooth(self, y: Array, chance: float) -> Array:
        """Return y (1 - s) + s * chance, where chance is the probability of a uniform guess."""
        s = self.label_smoothing
        return y * (1.0 - s) + s * chance if s else y


@registry.register("bce")
class BinaryCrossentropy(_Smoothed, Elementwise):
    """mean over units of -(y log p + (1 - y) log(1 - p));  d/dp = (p - y) / (p (1 - p)) / units.

    Probabilities are clipped to [1e-7, 1 - 1e-7]; outside, d/dp = 0. From scores z, with p = sigmoid(z), it is
    dz = (p - y) / units, and nothing is clipped.

    Args:
        from_logits: whether predictions are scores. label_smoothing: s in [0, 1]: y becomes y (1 - s) + s / 2.
        axis: of the units. reduction, name, dtype: see `Loss`.

    Targets are in [0, 1] and have the shape of the predictions.

    >>> round(float(BinaryCrossentropy(from_logits=True)([[1.0], [0.0]], [[0.0], [0.0]])), 4)
    0.6931
    """

    fuses = "sigmoid"
    targets = PROBABILITIES

    def at(self, xp: Any, y: Array, p: Array) -> tuple[Array, Array]:
        """Return the cross-entropy of p and its derivative."""
        y = self._smooth(y, 0.5)
        q, inside = clip(xp, p)
        value = -(y * xp.log(q) + (1.0 - y) * xp.log(1.0 - q))
        return value, (q - y) / (q * (1.0 - q)) * inside

    def at_scores(self, xp: Any, y: Array, z: Array) -> tuple[Array, Array, Array]:
        """Return the cross-entropy of a = sigmoid(z), its derivative by z, a - y, and a.

        In the stable form |z| s + log(1 + exp(-|z|)): s is 1 - y for z >= 0, else y, and inf s = 0 for s = 0.
        """
        y = self._smooth(y, 0.5)
        size, positive = xp.abs(z), z >= 0
        e = xp.exp(-size)
        a = xp.where(positive, xp.ones_like(e), e) / (1.0 + e)
        share = xp.where(positive, 1.0 - y, y)
        return share * xp.where(share == 0, share, size) + xp.log1p(e), a - y, a


class _OverClasses(Loss):
    """A cross-entropy over classes, one of which is that of a row: fuses with softmax.

    Probabilities are divided by their sum, then clipped.
    """

    fuses = "softmax"
    from_logits: bool = setting(flag, default=False)

    def _prepared(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return the targets for predictions p of shape (..., classes), smoothed."""
        return y

    def score_terms(self, ctx: Context, y: Array, z: Array, weight: Any) -> tuple[Array, Array, Array]:
        """Return the cross-entropy of softmax(z), its derivative by z, and softmax(z)."""
        return self.of_scores(ctx, self._prepared(ctx, y, z), z, weight)

    def of_scores(self, ctx: Context, y: Array, z: Array, weight: Any) -> tuple[Array, Array, Array]:
        """Return the same for prepared targets."""
        return ctx.ops.softmax_cross_entropy(ctx, z, y, weight)

    def of_shares(self, ctx: Context, y: Array, q: Array) -> tuple[Array, Array]:
        """Return the loss of each class from its probability q, and the derivative by q."""
        return -(y * ctx.xp.log(q)), -(y / q)

    def terms(self, ctx: Context, y: Array, p: Array, weight: Any) -> tuple[Array, Array]:
        """Return the cross-entropy of p (or of softmax(p) with from_logits) and its derivative by p.

        With s = sum(p), q = clip(p / s) and dq the derivative by q:  dp = (dq - sum(dq * p / s)) / s.
        """
        xp, y = ctx.xp, self._prepared(ctx, y, p)
        if self.from_logits:  # not by `score_terms`, which a subclass may override together with this
            return self.of_scores(ctx, y, p, weight)[:2]
        y = ctx.ops.one_hot(ctx, y, p.shape[-1], p.dtype) if y.ndim < p.ndim else y
        s = xp.sum(p, axis=-1, keepdims=True)
        share = p / s
        q, inside = clip(xp, share)
        value, dq = self.of_shares(ctx, y, q)
        dq = dq * inside
        slope = (dq - xp.sum(dq * share, axis=-1, keepdims=True)) / s
        return xp.sum(value, axis=-1), slope * columns(xp, weight)

    def objection(self, p: np.ndarray) -> str | None:
        """Report rows that are not probabilities."""
        wrong = p[(p < 0).any(axis=-1) | ~(np.abs(p.sum(axis=-1) - 1) < 0.01)]
        if self.from_logits or not wrong.size or self.axis != -1:
            return None
        return (
            "the predictions are not probabilities: let the model end in 'softmax', or in no activation with "
            f"from_logits=True (a row of them is {wrong[0].tolist()})"
        )


@registry.register
class CategoricalCrossentropy(_Smoothed, _OverClasses):
    """-sum over classes of y log p, with one-hot (or soft) targets y;  d/dp = -y / p.

    Probabilities are first divided by their sum, then clipped to [1e-7, 1 - 1e-7], as in Keras. From scores z,
    with p = softmax(z), it is dz = p - y, and nothing is clipped.

    Args:
        from_logits: whether predictions are scores. label_smoothing: s in [0, 1]: y becomes y (1 - s) + s / C for
            C classes. axis: of the classes. reduction, name, dtype: see `Loss`.

    Targets are in [0, 1] and have the shape of the predictions.

    >>> round(float(CategoricalCrossentropy()([[0.0, 1.0]], [[0.5, 0.5]])), 4)
    0.6931
    """

    targets = ONE_HOT

    def _prepared(self, ctx: Context, y: Array, p: Array) -> Array:
        return self._smooth(y, 1.0 / y.shape[-1])


@registry.register
class SparseCategoricalCrossentropy(_OverClasses):
    """-log p[y], where the targets y are the numbers 0..C-1 of the classes;  d/dp = -1 / p[y] at y, else 0.

    Probabilities are treated as in `CategoricalCrossentropy`.

    Args:
        from_logits: whether predictions are scores.
        ignore_class: a label, such as -1 or 255, whose rows do not count: their value and derivative are 0, and
            means are taken over the other rows. None: every row counts.
        axis: of the classes. reduction, name, dtype: see `Loss`.
        label_smoothing: s in [0, 1]: the loss is (1 - s) of that of the label plus s of the mean over all
            classes, as in PyTorch's `cross_entropy`. Keras has no such argument.

    Targets have the shape of the predictions without the axis of the classes.

    >>> loss = SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    >>> round(float(loss([0, -1], [[0.0, 0.0], [5.0, 1.0]])), 4)
    0.6931
    """

    targets = CLASS_NUMBERS
    sparse = True

    argument_order = ("from_logits", "ignore_class", "reduction", "axis", "name", "dtype")

    ignore_class: int | None = setting(optional(number), integer=True, default=None)
    axis: int = setting(number, integer=True, default=-1, kw_only=True)
    label_smoothing: float = setting(number, 0, 1, default=0.0, kw_only=True)

    def check(self, y: np.ndarray, shape: tuple[int, ...]) -> None:
        """Raise unless all targets are labels, or `ignore_class`."""
        super().check(y if self.ignore_class is None else np.where(y == self.ignore_class, 0, y), shape)

    def counted_rows(self, ctx: Context, y: Array) -> Array | None:
        """Return which labels are not `ignore_class`."""
        return None if self.ignore_class is None else y != self.ignore_class

    def _prepared(self, ctx: Context, y: Array, p: Array) -> Array:
        counted, s = self.counted_rows(ctx, y), self.label_smoothing
        y = y if counted is None else ctx.xp.where(counted, y, ctx.xp.zeros_like(y))
        if not s:
            return y
        return ctx.ops.one_hot(ctx, y, p.shape[-1], p.dtype) * (1.0 - s) + s / p.shape[-1]
