"""Losses of classes: from probabilities, and from the scores ("logits") before the last activation."""

from __future__ import annotations

from typing import Any

from ..backend import Array, np
from ..core.ops import columns
from ..core.settings import flag, setting
from ..errors import number
from ..kernels.context import Context
from .base import Elementwise, Loss, registry
from .targets import CLASS_NUMBERS, ONE_HOT, PROBABILITIES, SIGNS

__all__ = [
    "BinaryCrossentropy",
    "CategoricalCrossentropy",
    "PerceptronCriterion",
    "SparseCategoricalCrossentropy",
]

EPSILON = 1e-7  # probabilities are clipped to [EPSILON, 1 - EPSILON]


class _Smoothed(Loss):
    """The settings of a cross-entropy whose targets are probabilities."""

    from_logits: bool = setting(flag, default=False)
    label_smoothing: float = setting(number, 0, 1, default=0.0)

    def _smooth(self, y: Array, chance: float) -> Array:
        """Return y (1 - s) + s * chance, where chance is that of a blind guess."""
        s = self.label_smoothing
        return y * (1.0 - s) + s * chance if s else y


@registry.register("bce")
class BinaryCrossentropy(_Smoothed, Elementwise):
    """mean over units of -(y log p + (1 - y) log(1 - p));  d/dp = (p - y) / (p (1 - p)) / units.

    Probabilities are clipped to [1e-7, 1 - 1e-7] (there d/dp = 0); from scores z, with p = sigmoid(z),
    dz = (p - y) / units.

    Args:
        from_logits: whether predictions are scores. label_smoothing: s in [0, 1]: y becomes y (1 - s) + s / 2.
        reduction, name, dtype: see `Loss`.
    """

    fuses = "sigmoid"
    targets = PROBABILITIES

    def at(self, xp: Any, y: Array, p: Array) -> tuple[Array, Array]:
        """Return the cross-entropy of p and its derivative."""
        y = self._smooth(y, 0.5)
        q, inside = _clip(xp, p)
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


@registry.register("perceptron")
class PerceptronCriterion(Elementwise):
    """mean over units of max(0, -y z), for scores z and targets y of +-1 (0 is taken as -1).

    Its derivative is -y where y z < 0, else 0; at z = 0, where any number between is a subgradient, it is -1 for
    y = 1 and 0 for y = -1. So dz = step(z) - t with t in {0, 1}, and one step of SGD is the perceptron rule
    w += rate (t - step(w x)) x (F. Rosenblatt 1958). A model that ends in `"step"` gives it its scores.

    Args:
        reduction, name, dtype: see `Loss`.
    """

    fuses = "step"
    targets = SIGNS

    @property
    def takes_scores(self) -> bool:
        """Always."""
        return True

    def at_scores(self, xp: Any, y: Array, z: Array) -> tuple[Array, Array, Array]:
        """Return max(0, -y z), its derivative by z, and step(z)."""
        t, a = xp.astype(y > 0, z.dtype), xp.astype(z > 0, z.dtype)
        return xp.maximum(xp.zeros_like(z), (1.0 - 2.0 * t) * z), a - t, a


class _OverClasses(Loss):
    """A cross-entropy over classes, of which each row has one: fuses with softmax.

    Probabilities are divided by their sum, then clipped.
    """

    fuses = "softmax"
    from_logits: bool = setting(flag, default=False)

    def _prepared(self, y: Array) -> Array:
        return y

    def score_terms(self, ctx: Context, y: Array, z: Array, weight: Any) -> tuple[Array, Array, Array]:
        """Return the cross-entropy of softmax(z), its derivative by z, and softmax(z)."""
        return ctx.ops.softmax_cross_entropy(ctx, z, self._prepared(y), weight)

    def terms(self, ctx: Context, y: Array, p: Array, weight: Any) -> tuple[Array, Array]:
        """Return the cross-entropy of p (or of softmax(p) with from_logits) and its derivative by p.

        It is -sum(y log q) with q = clip(p / s), s = sum(p).  dq = -y / q;  dp = (dq - sum(dq * p / s)) / s.
        """
        if self.from_logits:
            return _OverClasses.score_terms(self, ctx, y, p, weight)[:2]
        xp, y = ctx.xp, self._prepared(y)
        y = ctx.ops.one_hot(ctx, y, p.shape[-1], p.dtype) if self.sparse else y
        s = xp.sum(p, axis=-1, keepdims=True)
        share = p / s
        q, inside = _clip(xp, share)
        dq = -(y / q) * inside
        slope = (dq - xp.sum(dq * share, axis=-1, keepdims=True)) / s
        return -xp.sum(y * xp.log(q), axis=-1), slope * columns(xp, weight)

    def objection(self, p: np.ndarray) -> str | None:
        """Look for rows that are no probabilities."""
        wrong = p[(p < 0).any(axis=-1) | ~(np.abs(p.sum(axis=-1) - 1) < 0.01)]
        if self.from_logits or not wrong.size:
            return None
        return (
            "the predictions are not probabilities: let the model end in 'softmax', or in no activation with "
            f"from_logits=True (a row of them is {wrong[0].tolist()})"
        )


@registry.register
class CategoricalCrossentropy(_Smoothed, _OverClasses):
    """-sum over classes of y log p, with one-hot (or soft) targets y;  d/dp = -y / p.

    Probabilities are first divided by their sum, then clipped to [1e-7, 1 - 1e-7], as in Keras; from scores z,
    with p = softmax(z), dz = p - y.

    Args:
        from_logits: whether predictions are scores. label_smoothing: s in [0, 1]: y becomes y (1 - s) + s / C.
        reduction, name, dtype: see `Loss`.
    """

    targets = ONE_HOT

    def _prepared(self, y: Array) -> Array:
        return self._smooth(y, 1.0 / y.shape[-1])


@registry.register
class SparseCategoricalCrossentropy(_OverClasses):
    """-log p[y], with targets y the numbers 0..C-1 of the classes;  d/dp = -1 / p[y] at y, else 0.

    Probabilities are treated as in `CategoricalCrossentropy`.

    Args:
        from_logits: whether predictions are scores. reduction, name, dtype: see `Loss`.
    """

    targets = CLASS_NUMBERS
    sparse = True


def _clip(xp: Any, p: Array) -> tuple[Array, Array]:
    """Return p within [EPSILON, 1 - EPSILON], and 1 where it was there before, else 0."""
    low, high = xp.full_like(p, EPSILON), xp.full_like(p, 1.0 - EPSILON)
    q = xp.minimum(xp.maximum(p, low), high)
    return q, xp.astype(q == p, p.dtype)
