"""Losses of real targets."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..core.settings import setting
from ..errors import number
from .base import Elementwise, registry
from .targets import LIKE_OUTPUTS

__all__ = ["Huber", "MeanAbsoluteError", "MeanSquaredError"]


@registry.register("mse")
class MeanSquaredError(Elementwise):
    """mean over units of (p - y)^2;  d/dp = 2 (p - y) / units. Half of it: the notes' E = (y - o)^2 / 2.

    Args:
        reduction, name, dtype: see `Loss`.
    """

    targets = LIKE_OUTPUTS

    def at(self, xp: Any, y: Array, p: Array) -> tuple[Array, Array]:
        """Return (p - y)^2 and 2 (p - y)."""
        difference = p - y
        return difference * difference, 2.0 * difference


@registry.register("mae")
class MeanAbsoluteError(Elementwise):
    """mean over units of |p - y|;  d/dp = sign(p - y) / units (0 where p = y).

    Args:
        reduction, name, dtype: see `Loss`.
    """

    targets = LIKE_OUTPUTS

    def at(self, xp: Any, y: Array, p: Array) -> tuple[Array, Array]:
        """Return |p - y| and sign(p - y)."""
        difference = p - y
        # not `sign`: some libraries wait for the device there
        sign = xp.astype(difference > 0, p.dtype) - xp.astype(difference < 0, p.dtype)
        return xp.abs(difference), sign


@registry.register
class Huber(Elementwise):
    """mean over units of d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2), for d = p - y.

    Source: P. J. Huber, "Robust estimation of a location parameter", Annals of Mathematical Statistics 35, 1964.

    Args:
        delta: > 0: larger errors count linearly. reduction, name, dtype: see `Loss`.

    >>> Huber()([[0.0], [0.0]], [[1.0], [3.0]]).tolist()
    1.5
    """

    targets = LIKE_OUTPUTS
    delta: float = setting(number, 0, open_low=True, default=1.0)

    def at(self, xp: Any, y: Array, p: Array) -> tuple[Array, Array]:
        """Return c (d - c / 2) and c, which is d brought into [-delta, delta]."""
        d = p - y
        c = xp.minimum(xp.maximum(d, xp.full_like(d, -self.delta)), xp.full_like(d, self.delta))
        return c * (d - 0.5 * c), c
