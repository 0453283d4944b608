"""Shrinkage functions, which move numbers toward 0."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..core.settings import setting
from ..errors import number
from .base import Activation, clip, registry

__all__ = ["HardShrink", "SoftShrink", "TanhShrink"]


@registry.register
class SoftShrink(Activation):
    """f(z) = z - threshold for z > threshold, z + threshold for z < -threshold, else 0;  f' = 1 where f is not 0.

    Args:
        threshold: >= 0.

    >>> SoftShrink()([-2.0, 0.25, 1.0]).tolist()
    [-1.5, 0.0, 0.5]
    """

    threshold: float = setting(number, 0, default=0.5)

    def forward(self, xp: Any, z: Array) -> Array:
        """Return z - min(max(z, -threshold), threshold)."""
        return z - clip(xp, z, -self.threshold, self.threshold)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da where a is not 0."""
        return xp.where(a != 0, da, xp.zeros_like(da))


@registry.register
class HardShrink(Activation):
    """f(z) = z for |z| > threshold, else 0;  f' = 1 where f is not 0.

    Args:
        threshold: >= 0.

    >>> HardShrink()([-2.0, 0.25, 1.0]).tolist()
    [-2.0, 0.0, 1.0]
    """

    threshold: float = setting(number, 0, default=0.5)

    def forward(self, xp: Any, z: Array) -> Array:
        """Return z or 0."""
        return xp.where(xp.abs(z) <= self.threshold, xp.zeros_like(z), z)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da where a is not 0."""
        return xp.where(a != 0, da, xp.zeros_like(da))


@registry.register
class TanhShrink(Activation):
    """f(z) = z - tanh(z);  f' = tanh(z)^2."""

    def forward(self, xp: Any, z: Array) -> Array:
        """Return z - tanh(z)."""
        return z - xp.tanh(z)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da tanh(z)^2."""
        t = xp.tanh(z)
        return da * (t * t)
