"""Smooth functions that are not bounded."""

from __future__ import annotations

import math
from typing import Any

from ..backend import Array
from ..core.settings import flag, setting
from ..core.special import erf
from ..errors import number
from .base import Activation, clip, log_1p_exp, logistic, registry

__all__ = ["Exponential", "Gelu", "LogSigmoid", "Mish", "Silu", "Softplus", "SparsePlus", "Squareplus"]


@registry.register
class Exponential(Activation):
    """f(z) = f'(z) = exp(z). It overflows: in float32 for z > 88.7, in float64 for z > 709.7."""

    def forward(self, xp: Any, z: Array) -> Array:
        """Return exp(z)."""
        return xp.exp(z)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da * a."""
        return da * a


@registry.register
class Gelu(Activation):
    """f(z) = z Phi(z), where Phi is the normal distribution (1 + erf(z / sqrt(2))) / 2;  f' = Phi(z) + z Phi'(z).

    D. Hendrycks, K. Gimpel, "Gaussian error linear units", 2016.

    Args:
        approximate: whether to take Phi(z) = (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)), which changes f by less than
            5e-4, with u = sqrt(2 / pi) (z + 0.044715 z^3). Then Phi'(z) = 2 u' e / (1 + e)^2, e = exp(-|2 u|).

    How exact erf is: see `xpnet.core.special`.

    >>> [round(a, 4) for a in Gelu()([-1.0, 0.0, 2.0]).tolist()]
    [-0.1587, 0.0, 1.9545]
    """

    approximate: bool = setting(flag, default=False)

    def forward(self, xp: Any, z: Array) -> Array:
        """Return z Phi(z)."""
        if self.approximate:
            return z * logistic(xp, _twice_u(z))
        return 0.5 * z * (1.0 + erf(xp, z / math.sqrt(2)))

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da (Phi(z) + z Phi'(z))."""
        if not self.approximate:
            density = xp.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
            return da * (0.5 * (1.0 + erf(xp, z / math.sqrt(2))) + z * density)
        v, slope = _twice_u(z), math.sqrt(8 / math.pi) * (1.0 + 3 * 0.044715 * z * z)
        e = xp.exp(-xp.abs(v))
        return da * (logistic(xp, v) + z * slope * (e / ((1.0 + e) * (1.0 + e))))


def _twice_u(z: Array) -> Array:
    return math.sqrt(8 / math.pi) * (z + 0.044715 * z * z * z)


@registry.register("swish")
class Silu(Activation):
    """f(z) = z s with s = 1 / (1 + exp(-z)), also called swish;  f' = s + a (1 - s).

    S. Elfwing, E. Uchibe, K. Doya, 2017; P. Ramachandran, B. Zoph, Q. Le, 2017.
    """

    def forward(self, xp: Any, z: Array) -> Array:
        """Return z s."""
        return z * logistic(xp, z)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da (s + a (1 - s))."""
        s = logistic(xp, z)
        return da * (s + a * (1.0 - s))


@registry.register
class Softplus(Activation):
    """f(z) = log(1 + exp(z));  f' = 1 / (1 + exp(-z)) = 1 - exp(-a).

    PyTorch returns z for z > 20, which differs by less than 2.1e-9.
    """

    def forward(self, xp: Any, z: Array) -> Array:
        """Return log(1 + exp(z))."""
        return log_1p_exp(xp, z)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da (1 - exp(-a))."""
        return -da * xp.expm1(-a)


@registry.register
class LogSigmoid(Activation):
    """f(z) = log(1 / (1 + exp(-z))) = -log(1 + exp(-z));  f' = 1 / (1 + exp(z)) = 1 - exp(a)."""

    def forward(self, xp: Any, z: Array) -> Array:
        """Return -log(1 + exp(-z))."""
        return -log_1p_exp(xp, -z)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da (1 - exp(a))."""
        return -da * xp.expm1(a)


@registry.register
class Mish(Activation):
    """f(z) = z t with t = tanh(p), p = log(1 + exp(z));  f' = t + z (1 - t^2) (1 - exp(-p))  (D. Misra, 2019)."""

    def forward(self, xp: Any, z: Array) -> Array:
        """Return z tanh(log(1 + exp(z)))."""
        return z * xp.tanh(log_1p_exp(xp, z))

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da (t + z (1 - t^2) (1 - exp(-p)))."""
        p = log_1p_exp(xp, z)
        t = xp.tanh(p)
        return da * (t - z * (1.0 - t * t) * xp.expm1(-p))


@registry.register
class Squareplus(Activation):
    """f(z) = (z + sqrt(z^2 + b)) / 2;  f' = (1 + z / sqrt(z^2 + b)) / 2 = a^2 / (a^2 + b / 4).

    J. T. Barron, "Squareplus", 2021. Where z < 0, that sum cancels; f = b / (2 s) with s = |z| + sqrt(z^2 + b).

    Args:
        b: > 0; the width of the bend at 0.

    >>> Squareplus()([-1e4, 0.0]).tolist()
    [9.999999747378752e-05, 1.0]
    """

    b: float = setting(number, 0, open_low=True, default=4.0)

    def forward(self, xp: Any, z: Array) -> Array:
        """Return (z + sqrt(z^2 + b)) / 2."""
        s = xp.abs(z) + xp.sqrt(z * z + self.b)
        return xp.where(z >= 0, 0.5 * s, (0.5 * self.b) / s)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da a^2 / (a^2 + b / 4)."""
        square = a * a
        return da * (square / (square + 0.25 * self.b))


@registry.register
class SparsePlus(Activation):
    """f(z) = 0 for z <= -1, z for z >= 1, between them (z + 1)^2 / 4;  f' = (z + 1) / 2 from 0 to 1."""

    def forward(self, xp: Any, z: Array) -> Array:
        """Return the function, with s = max(z + 1, 0)."""
        s = xp.maximum(z + 1.0, xp.zeros_like(z))
        return xp.where(z >= 1, z, 0.25 * s * s)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da (z + 1) / 2, the factor being from 0 to 1."""
        return da * clip(xp, 0.5 * z + 0.5, 0.0, 1.0)
