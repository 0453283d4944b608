"""Losses of margins: how far scores are on the right side of a threshold."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..core.ops import columns
from ..kernels.context import Context
from .base import Elementwise, Loss, registry
from .targets import ONE_HOT, SIGNS

__all__ = ["CategoricalHinge", "Hinge", "PerceptronCriterion", "SquaredHinge"]


@registry.register
class Hinge(Elementwise):
    """mean over units of max(0, 1 - y p), for scores p and targets y of +-1;  d/dp = -y / units where y p < 1.

    At y p = 1, where every number between is a subgradient, the derivative is 0. Targets may also be 0 and 1: 0 is
    taken as -1. Keras does so only in batches of which all targets are 0 or 1.

    Source: C. Cortes, V. Vapnik, "Support-vector networks", Machine Learning 20, 1995.

    Args:
        reduction, name, dtype: see `Loss`.

    >>> round(float(Hinge()([[1.0], [-1.0]], [[0.5], [0.5]])), 4)
    1.0
    """

    targets = SIGNS

    def at(self, xp: Any, y: Array, p: Array) -> tuple[Array, Array]:
        """Return max(0, 1 - y p) and -y where that is positive."""
        sign = 2.0 * xp.astype(y > 0, p.dtype) - 1.0
        margin = 1.0 - sign * p
        inside = xp.astype(margin > 0, p.dtype)
        return margin * inside, -sign * inside


@registry.register
class SquaredHinge(Elementwise):
    """mean over units of max(0, 1 - y p)^2;  d/dp = -2 y max(0, 1 - y p) / units.

    Args:
        reduction, name, dtype: see `Loss`. Scores p and targets y: see `Hinge`.

    >>> round(float(SquaredHinge()([[1.0], [-1.0]], [[0.5], [0.5]])), 4)
    1.25
    """

    targets = SIGNS

    def at(self, xp: Any, y: Array, p: Array) -> tuple[Array, Array]:
        """Return max(0, 1 - y p)^2 and its derivative."""
        sign = 2.0 * xp.astype(y > 0, p.dtype) - 1.0
        margin = 1.0 - sign * p
        margin = xp.maximum(margin, xp.zeros_like(margin))
        return margin * margin, -2.0 * sign * margin


@registry.register
class CategoricalHinge(Loss):
    """max(0, 1 + n - t) with t = sum(y p), the score of the class, and n = max((1 - y) p), the best of the others.

    Where the loss is positive, d/dp = (1 - y) h - y, with h one-hot at the first maximum; elsewhere it is 0. As in
    Keras, the class itself takes part in the maximum, with a score of 0.

    Source: K. Crammer, Y. Singer, "On the algorithmic implementation of multiclass kernel-based vector machines",
    JMLR 2, 2001.

    Args:
        reduction, name, dtype: see `Loss`. Targets are one-hot, in the shape of the scores p.

    >>> round(float(CategoricalHinge()([[0.0, 1.0]], [[0.75, 0.5]])), 4)
    1.25
    """

    targets = ONE_HOT

    def terms(self, ctx: Context, y: Array, p: Array, weight: Any) -> tuple[Array, Array]:
        """Return the losses of the rows and their derivative by p times `weight`."""
        xp, others = ctx.xp, (1.0 - y) * p
        value = 1.0 + xp.max(others, axis=-1) - xp.sum(y * p, axis=-1)
        inside = xp.astype(value > 0, p.dtype)
        best = xp.astype(xp.argmax(others, axis=-1), xp.int32)
        best = ctx.ops.one_hot(ctx, best, p.shape[-1], p.dtype)
        return value * inside, ((1.0 - y) * best - y) * columns(xp, inside * weight)


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
