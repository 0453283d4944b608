"""Rectifiers: piecewise linear functions, and their exponential variants."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..core.settings import optional, setting
from ..errors import InvalidValueError, number
from .base import Activation, clip, registry

__all__ = ["Celu", "Elu", "LeakyReLU", "Linear", "ReLU", "ReLU6", "Selu", "Step", "Threshold"]


@registry.register
class Linear(Activation):
    """f(z) = z;  f' = 1."""

    def forward(self, xp: Any, z: Array) -> Array:
        """Return z."""
        return z

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da."""
        return da


@registry.register
class ReLU(Activation):
    """f(z) = max(z, 0);  f' = 1 for z > 0, else 0 (also at 0).

    With other settings: max_value for z >= max_value; z for threshold < z < max_value, where f' = 1;
    negative_slope (z - threshold) for z <= threshold, where f' = negative_slope.

    Args:
        negative_slope: the slope below the threshold. max_value: upper limit, >= 0; None means no limit.
        threshold: above it the slope is 1.

    At z = max_value the derivative is 0 (in Keras on PyTorch: 1).

    >>> ReLU(0.5, max_value=6.0, threshold=1.0)([-1.0, 1.0, 2.0, 9.0]).tolist()
    [-1.0, 0.0, 2.0, 6.0]
    """

    negative_slope: float = setting(number, default=0.0)
    max_value: float | None = setting(optional(number), 0, default=None)
    threshold: float = setting(number, default=0.0)

    def forward(self, xp: Any, z: Array) -> Array:
        """Return max(z, 0), or the function that the settings describe."""
        zeros = xp.zeros_like(z)
        if self._is_plain:
            return xp.maximum(z, zeros)
        low = self.negative_slope * (z - self.threshold) if self.negative_slope else zeros
        high = z if self.max_value is None else xp.minimum(z, xp.full_like(z, self.max_value))
        return xp.where(z <= self.threshold, low, high)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da where a > 0, which is where z > 0; or by the settings."""
        zeros = xp.zeros_like(da)
        if self._is_plain:
            return xp.where(a > 0, da, zeros)
        high = da if self.max_value is None else xp.where(z < self.max_value, da, zeros)
        return xp.where(z <= self.threshold, self.negative_slope * da if self.negative_slope else zeros, high)

    @property
    def _is_plain(self) -> bool:
        return not self.negative_slope and self.max_value is None and not self.threshold


@registry.register
class ReLU6(Activation):
    """f(z) = min(max(z, 0), 6);  f' = 1 for 0 < z < 6, else 0  (A. Krizhevsky, 2010)."""

    def forward(self, xp: Any, z: Array) -> Array:
        """Return min(max(z, 0), 6)."""
        return clip(xp, z, 0.0, 6.0)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da where 0 < a < 6."""
        return xp.where((a > 0) & (a < 6), da, xp.zeros_like(da))


@registry.register
class LeakyReLU(Activation):
    """f(z) = z for z > 0, else negative_slope * z;  f' = 1 or negative_slope (at 0: negative_slope).

    Args:
        negative_slope: 0.01 as in PyTorch (Keras has 0.2).
    """

    negative_slope: float = setting(number, default=0.01)

    def forward(self, xp: Any, z: Array) -> Array:
        """Return z or negative_slope * z."""
        return xp.where(z > 0, z, self.negative_slope * z)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da or negative_slope * da."""
        positive = (z if self.negative_slope < 0 else a) > 0  # without z, its memory can hold a
        return xp.where(positive, da, self.negative_slope * da)


@registry.register
class Elu(Activation):
    """f(z) = z for z > 0, else alpha (exp(z) - 1);  f' = 1 or alpha exp(z) = a + alpha (at 0: alpha).

    D. Clevert, T. Unterthiner, S. Hochreiter, ICLR 2016.

    Args:
        alpha: f(z) approaches -alpha as z goes to minus infinity.

    >>> [round(a, 4) for a in Elu()([-1e4, -1.0, 2.0]).tolist()]
    [-1.0, -0.6321, 2.0]
    """

    alpha: float = setting(number, default=1.0)

    def forward(self, xp: Any, z: Array) -> Array:
        """Return max(z, 0) + alpha (exp(min(z, 0)) - 1)."""
        zeros = xp.zeros_like(z)
        return xp.maximum(z, zeros) + self.alpha * xp.expm1(xp.minimum(z, zeros))

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da or da (a + alpha)."""
        positive = (z if self.alpha < 0 else a) > 0  # without z, its memory can hold a
        return xp.where(positive, da, da * (a + self.alpha))


@registry.register
class Selu(Activation):
    """f(z) = scale z for z > 0, else scale alpha (exp(z) - 1);  f' = scale or a + scale alpha.

    scale = 1.05070098... and alpha = 1.67326324... keep mean 0 and variance 1 from layer to layer, with the
    initializer `"lecun_normal"` (G. Klambauer et al., NeurIPS 2017).
    """

    alpha, scale = 1.6732632423543772, 1.0507009873554805

    def forward(self, xp: Any, z: Array) -> Array:
        """Return scale max(z, 0) + scale alpha (exp(min(z, 0)) - 1)."""
        zeros = xp.zeros_like(z)
        return self.scale * xp.maximum(z, zeros) + (self.scale * self.alpha) * xp.expm1(xp.minimum(z, zeros))

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return scale da or da (a + scale alpha)."""
        return da * xp.where(a > 0, xp.full_like(a, self.scale), a + self.scale * self.alpha)


@registry.register
class Celu(Activation):
    """f(z) = z for z > 0, else alpha (exp(z / alpha) - 1);  f' = 1 or exp(z / alpha) = a / alpha + 1.

    J. T. Barron, "Continuously differentiable exponential linear units", 2017.

    Args:
        alpha: > 0; f(z) approaches -alpha as z goes to minus infinity.
    """

    alpha: float = setting(number, 0, open_low=True, default=1.0)

    def forward(self, xp: Any, z: Array) -> Array:
        """Return max(z, 0) + alpha (exp(min(z, 0) / alpha) - 1)."""
        zeros = xp.zeros_like(z)
        return xp.maximum(z, zeros) + self.alpha * xp.expm1(xp.minimum(z, zeros) / self.alpha)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da or da (a / alpha + 1)."""
        return xp.where(a > 0, da, da * (a / self.alpha + 1.0))


@registry.register
class Threshold(Activation):
    """f(z) = z for z > threshold, else default_value;  f' = 1 or 0 (at the threshold: 0).

    Args:
        threshold, default_value: numbers. Keras and PyTorch have no defaults; 1 and 0 are those of ONNX'
            ThresholdedRelu.

    >>> Threshold(1.0, -5.0)([0.5, 1.0, 2.0]).tolist()
    [-5.0, -5.0, 2.0]
    """

    threshold: float = setting(number, default=1.0)
    default_value: float = setting(number, default=0.0)

    def forward(self, xp: Any, z: Array) -> Array:
        """Return z or the default value."""
        return xp.where(z <= self.threshold, xp.full_like(z, self.default_value), z)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da or 0."""
        return xp.where(z <= self.threshold, xp.zeros_like(da), da)


@registry.register
class Step(Activation):
    """f(z) = 1 for z > 0, else 0 (also at 0): the perceptron's unit. It can't be trained through."""

    def forward(self, xp: Any, z: Array) -> Array:
        """Return 0 or 1."""
        return xp.astype(z > 0, z.dtype)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Raise: the derivative is 0 wherever it exists."""
        raise InvalidValueError(
            "a step unit can't be trained by gradient descent, its derivative being 0 almost everywhere: use "
            "the loss 'perceptron' right behind it, or an activation such as 'sigmoid'; got activation 'step'"
        )
