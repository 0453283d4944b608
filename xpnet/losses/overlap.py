"""Losses of overlap: how much of two sets, such as the pixels of a region, they have in common."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..core.ops import columns
from ..core.settings import setting
from ..errors import number
from ..kernels.context import Context
from .base import EPSILON, Loss, registry
from .targets import PROBABILITIES

__all__ = ["Dice", "Tversky"]


def _axes(name: str, value: Any) -> int | tuple[int, ...] | None:
    """Return None, one axis, or a tuple of them."""
    if isinstance(value, (tuple, list)):
        return tuple(number(name, a, integer=True) for a in value)
    return value if value is None else number(name, value, integer=True)


@registry.register
class Dice(Loss):
    """1 - 2 I / D, with I = sum(y p) and D = sum(y) + sum(p) + 1e-7;  d/dp = 2 (I / D - y) / D.

    The sums run over `axis`: by default over everything, the batch too, so that a batch has one value.

    Source: F. Milletari, N. Navab, S.-A. Ahmadi, "V-Net: Fully convolutional neural networks for volumetric
    medical image segmentation", 3DV 2016; they square the terms of D, which Keras and xpnet do not.

    Args:
        reduction, name, dtype: see `Loss`.
        axis: a number, several, or None for all: the axes of the sums, as (1, 2, 3) for images (batch, height,
            width, classes). The others are the rows.

    Targets are in [0, 1] and have the shape of the predictions, which are probabilities.

    >>> round(float(Dice(axis=-1)([[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]])), 4)
    0.3333
    """

    targets = PROBABILITIES
    argument_order = ("reduction", "name", "axis", "dtype")

    axis: Any = setting(_axes, default=None, kw_only=True)

    def terms(self, ctx: Context, y: Array, p: Array, weight: Any) -> tuple[Array, Array]:
        """Return the values of the rows and their derivative by p times `weight`."""
        xp = ctx.xp
        whole = xp.sum(y, axis=-1) + xp.sum(p, axis=-1) + EPSILON
        share = xp.sum(y * p, axis=-1) / whole
        slope = (columns(xp, share) - y) * columns(xp, 2.0 / whole * weight)
        return 1.0 - 2.0 * share, slope


@registry.register
class Tversky(Loss):
    """1 - I / D, with I = sum(y p), D = I + alpha sum(y (1 - p)) + beta sum((1 - y) p) + 1e-7.

    With dD = y - alpha y + beta (1 - y) it is d/dp = (I / D dD - y) / D. As in Keras' code, `alpha` weights false
    negatives, y (1 - p), and `beta` false positives, (1 - y) p. With 1/2 and 1/2 it is `Dice`.

    Source: S. S. M. Salehi, D. Erdogmus, A. Gholipour, "Tversky loss function for image segmentation using 3D
    fully convolutional deep networks", MLMI 2017; there alpha and beta are exchanged.

    Args:
        alpha, beta: >= 0. reduction, name, axis, dtype, and the targets: see `Dice`.

    >>> round(float(Tversky(alpha=1.0, beta=0.0, axis=-1)([[1.0, 1.0, 0.0]], [[1.0, 0.0, 1.0]])), 4)
    0.5
    """

    targets = PROBABILITIES
    argument_order = ("alpha", "beta", "reduction", "name", "axis", "dtype")

    alpha: float = setting(number, 0, default=0.5)
    beta: float = setting(number, 0, default=0.5)
    axis: Any = setting(_axes, default=None, kw_only=True)

    def terms(self, ctx: Context, y: Array, p: Array, weight: Any) -> tuple[Array, Array]:
        """Return the values of the rows and their derivative by p times `weight`."""
        xp, both = ctx.xp, y * p
        common = xp.sum(both, axis=-1)
        missed, extra = xp.sum(y - both, axis=-1), xp.sum(p - both, axis=-1)
        whole = common + self.alpha * missed + self.beta * extra + EPSILON
        share = common / whole
        growth = y * (1.0 - self.alpha - self.beta) + self.beta
        return 1.0 - share, (columns(xp, share) * growth - y) * columns(xp, weight / whole)
