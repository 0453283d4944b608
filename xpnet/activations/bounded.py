"""Bounded functions (and hard SiLU, made of one): sigmoids, smooth and piecewise linear."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from .base import Activation, clip, logistic, registry

__all__ = ["HardSigmoid", "HardSilu", "HardTanh", "Sigmoid", "Softsign", "SparseSigmoid", "Tanh"]


@registry.register
class Sigmoid(Activation):
    """f(z) = 1 / (1 + exp(-z));  f' = a (1 - a)."""

    def forward(self, xp: Any, z: Array) -> Array:
        """Return the sigmoid."""
        return logistic(xp, z)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da * a (1 - a)."""
        return da * (a * (1.0 - a))


@registry.register
class Tanh(Activation):
    """f(z) = tanh(z);  f' = 1 - a^2."""

    def forward(self, xp: Any, z: Array) -> Array:
        """Return the hyperbolic tangent."""
        return xp.tanh(z)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da * (1 - a^2)."""
        return da * (1.0 - a * a)


@registry.register
class Softsign(Activation):
    """f(z) = z / (1 + |z|);  f' = 1 / (1 + |z|)^2."""

    def forward(self, xp: Any, z: Array) -> Array:
        """Return z / (1 + |z|)."""
        return z / (1.0 + xp.abs(z))

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da / (1 + |z|)^2."""
        size = 1.0 + xp.abs(z)
        return da / (size * size)


@registry.register
class HardSigmoid(Activation):
    """f(z) = z / 6 + 1 / 2, from 0 to 1;  f' = 1 / 6 for |z| < 3, else 0.

    As in Keras 3 and PyTorch. The slope of ONNX and of Keras 2 is 1 / 5.
    """

    def forward(self, xp: Any, z: Array) -> Array:
        """Return min(max(z / 6 + 1 / 2, 0), 1)."""
        return clip(xp, z / 6.0 + 0.5, 0.0, 1.0)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da / 6 where 0 < a < 1."""
        return xp.where((a > 0) & (a < 1), da / 6.0, xp.zeros_like(da))


@registry.register("hard_swish")
class HardSilu(Activation):
    """f(z) = z h with h = z / 6 + 1 / 2, from 0 to 1;  f' = 0 for z <= -3, 1 for z >= 3, else z / 3 + 1 / 2.

    Also called hard swish (A. Howard et al., "Searching for MobileNetV3", ICCV 2019).
    """

    def forward(self, xp: Any, z: Array) -> Array:
        """Return z h."""
        return z * clip(xp, z / 6.0 + 0.5, 0.0, 1.0)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da z / 3 + da / 2 for |z| < 3, else 0 or da."""
        return da * xp.where(xp.abs(z) < 3, z / 3.0 + 0.5, xp.astype(z > 0, z.dtype))


@registry.register
class HardTanh(Activation):
    """f(z) = min(max(z, -1), 1);  f' = 1 for |z| < 1, else 0 (also at the corners)."""

    def forward(self, xp: Any, z: Array) -> Array:
        """Return min(max(z, -1), 1)."""
        return clip(xp, z, -1.0, 1.0)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da where |a| < 1."""
        return xp.where(xp.abs(a) < 1, da, xp.zeros_like(da))


@registry.register
class SparseSigmoid(Activation):
    """f(z) = (z + 1) / 2, from 0 to 1;  f' = 1 / 2 for |z| < 1, else 0.

    The first output of sparsemax for the scores z and 0
    (M. Blondel, A. Martins, V. Niculae, AISTATS 2019).
    """

    def forward(self, xp: Any, z: Array) -> Array:
        """Return min(max((z + 1) / 2, 0), 1)."""
        return clip(xp, 0.5 * z + 0.5, 0.0, 1.0)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da / 2 where 0 < a < 1."""
        return xp.where((a > 0) & (a < 1), 0.5 * da, xp.zeros_like(da))
