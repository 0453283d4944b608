"""Focal cross-entropies, in which examples count less the better they are classified.

Source: T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollar, "Focal loss for dense object detection", ICCV 2017.
"""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..core.ops import columns
from ..core.settings import flag, setting
from ..errors import ShapeError, number
from ..kernels.context import Context
from .base import registry
from .classification import BinaryCrossentropy, _OverClasses, _Smoothed
from .targets import ONE_HOT

__all__ = ["BinaryFocalCrossentropy", "CategoricalFocalCrossentropy"]


def _factors(name: str, value: Any) -> float | tuple[float, ...]:
    """Return a number >= 0, or a tuple of them."""
    if isinstance(value, (tuple, list)):
        return tuple(float(number(name, a, 0)) for a in value)
    return float(number(name, value, 0))


def _power(xp: Any, m: Array, gamma: float) -> tuple[Array, Array]:
    """Return m^gamma and m^gamma / m, which is 0 at m = 0. Args: m: >= 0."""
    power = m**gamma
    return power, power / xp.where(m == 0, xp.ones_like(m), m)


@registry.register
class BinaryFocalCrossentropy(BinaryCrossentropy):
    """mean over units of w m^gamma H: the cross-entropy H times a power of m = y (1 - p) + (1 - y) p.

    d/dp = w (gamma m^(gamma - 1) (1 - 2 y) H + m^gamma dH/dp) / units. For y in {0, 1}, m is the probability of
    the wrong class. With gamma = 0 and w = 1 it is `BinaryCrossentropy`.

    Args:
        apply_class_balancing: whether w is alpha y + (1 - alpha) (1 - y); else it is 1.
        alpha: in [0, 1], the weight of class 1. gamma: >= 0, the focusing exponent.
        from_logits, label_smoothing, axis, reduction, name, dtype: see `BinaryCrossentropy`. From scores nothing
            is clipped; Keras clips the probabilities of scores too.

    >>> round(float(BinaryFocalCrossentropy(gamma=1.0)([[1.0]], [[0.5]])), 4)
    0.3466
    """

    apply_class_balancing: bool = setting(flag, default=False)
    alpha: float = setting(number, 0, 1, default=0.25)
    gamma: float = setting(number, 0, default=2.0)
    from_logits: bool = setting(flag, default=False, kw_only=True)
    label_smoothing: float = setting(number, 0, 1, default=0.0, kw_only=True)

    def at(self, xp: Any, y: Array, p: Array) -> tuple[Array, Array]:
        """Return the focal cross-entropy of p and its derivative."""
        value, slope = super().at(xp, y, p)
        return self._focused(xp, y, p, value, slope, 1.0)

    def at_scores(self, xp: Any, y: Array, z: Array) -> tuple[Array, Array, Array]:
        """Return the focal cross-entropy of a = sigmoid(z), its derivative by z, and a."""
        value, slope, a = super().at_scores(xp, y, z)
        return *self._focused(xp, y, a, value, slope, a * (1.0 - a)), a

    def _focused(self, xp: Any, y: Array, p: Array, value: Array, slope: Array, dp: Any) -> tuple[Array, Array]:
        """Return w m^gamma value, and its derivative. Args: slope, dp: derivatives of `value` and of p."""
        y = self._smooth(y, 0.5)
        power, lower = _power(xp, y * (1.0 - p) + (1.0 - y) * p, self.gamma)
        slope = self.gamma * lower * (1.0 - 2.0 * y) * dp * value + power * slope
        if not self.apply_class_balancing:
            return power * value, slope
        weight = self.alpha * y + (1.0 - self.alpha) * (1.0 - y)
        return weight * power * value, weight * slope


@registry.register
class CategoricalFocalCrossentropy(_Smoothed, _OverClasses):
    """-sum over classes of alpha (1 - p)^gamma y log p;  d/dp = alpha y (gamma m^(gamma - 1) log p - m^gamma / p).

    There m = 1 - p. Probabilities are treated as in `CategoricalCrossentropy`. From scores z, with p = softmax(z)
    and h = p d/dp, it is dz = h - p sum(h).

    Args:
        alpha: >= 0, the weight of all classes, or a list with one for each class. gamma: >= 0, the focusing
            exponent.
        from_logits, label_smoothing, axis, reduction, name, dtype: see `CategoricalCrossentropy`. From scores
            nothing is clipped; Keras clips the probabilities of scores too.

    >>> round(float(CategoricalFocalCrossentropy(1.0, gamma=1.0)([[0.0, 1.0]], [[0.5, 0.5]])), 4)
    0.3466
    """

    targets = ONE_HOT

    alpha: Any = setting(_factors, default=0.25)
    gamma: float = setting(number, 0, default=2.0)
    from_logits: bool = setting(flag, default=False, kw_only=True)
    label_smoothing: float = setting(number, 0, 1, default=0.0, kw_only=True)

    def _prepared(self, ctx: Context, y: Array, p: Array) -> Array:
        """Return the smoothed targets times alpha."""
        xp, alpha = ctx.xp, self.alpha
        if isinstance(alpha, tuple):
            if len(alpha) != p.shape[-1]:
                raise ShapeError(f"alpha must be a number or one for each of {p.shape[-1]} classes; got {alpha}")
            alpha = xp.concat([xp.full_like(y[..., :1], a) for a in alpha], axis=-1)
        return self._smooth(y, 1.0 / y.shape[-1]) * alpha

    def of_shares(self, ctx: Context, y: Array, q: Array) -> tuple[Array, Array]:
        """Return the focal cross-entropy of each class from its probability q, and the derivative by q."""
        power, lower = _power(ctx.xp, 1.0 - q, self.gamma)
        log = ctx.xp.log(q)
        return -y * power * log, y * (self.gamma * lower * log - power / q)

    def of_scores(self, ctx: Context, y: Array, z: Array, weight: Any) -> tuple[Array, Array, Array]:
        """Return the focal cross-entropy of a = softmax(z), its derivative by z, and a."""
        xp = ctx.xp
        shifted = z - xp.max(z, axis=-1, keepdims=True)
        e = xp.exp(shifted)
        total = xp.sum(e, axis=-1, keepdims=True)
        a = e / total
        log = xp.where(y == 0, y, shifted - xp.log(total))  # 0 log 0 = 0
        power, lower = _power(xp, 1.0 - a, self.gamma)
        h = y * (self.gamma * lower * a * log - power)
        dz = h - a * xp.sum(h, axis=-1, keepdims=True)
        return -xp.sum(y * power * log, axis=-1), dz * columns(xp, weight), a
