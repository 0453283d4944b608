"""Activation functions, each beside its derivative.

`forward(xp, z)` returns a = f(z); `backward(xp, da, z, a)` returns dz, the derivative's transpose times da.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from .backend import Array, np
from .core.config import Configurable, Registry
from .core.settings import setting
from .errors import InvalidTypeError, InvalidValueError, number
from .kernels.context import enter

__all__ = ["Activation", "LeakyReLU", "Linear", "ReLU", "Sigmoid", "Softmax", "Step", "Tanh", "get"]


class Activation(Configurable):
    """Base class of the activation functions, for arrays of any shape and library.

    >>> from xpnet.backend import np
    >>> f = get("tanh")
    >>> f(np.asarray([0.0])).tolist(), f.derivative(np.asarray([0.0])).tolist()
    ([0.0], [1.0])
    """

    @cached_property
    def name(self) -> str:
        """The name by which `get` finds it; for a class that is not registered, its full name."""
        own = f"{type(self).__module__}.{type(self).__qualname__}"  # never that of a class known here
        return next((k for k, cls in registry.classes.items() if cls is type(self) and k == k.lower()), own)

    def forward(self, xp: Any, z: Array) -> Array:
        """Return f(z)."""
        raise TypeError(f"{type(self).__name__} must define forward(xp, z)")

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return dz for the derivative da of something by a = f(z)."""
        raise TypeError(f"{type(self).__name__} must define backward(xp, da, z, a)")

    @np.errstate(all="ignore")
    def __call__(self, x: Any) -> Array:
        """Return f(x), in the library of x."""
        ctx, leave = enter(x)
        return leave(self.forward(ctx.xp, ctx.asarray(x)))

    @np.errstate(all="ignore")
    def derivative(self, x: Any) -> Array:
        """Return f'(x), in the library and shape of x (for softmax: the matrix da_i/dz_j)."""
        ctx, leave = enter(x)
        z = ctx.asarray(x)
        return leave(self.backward(ctx.xp, ctx.xp.ones_like(z), z, self.forward(ctx.xp, z)))


registry: Registry[Activation] = Registry("activation", Activation)


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
class Sigmoid(Activation):
    """f(z) = 1 / (1 + exp(-z));  f' = a (1 - a).

    With e = exp(-|z|), which never overflows: 1 / (1 + e) for z >= 0, e / (1 + e) for z < 0.
    """

    def forward(self, xp: Any, z: Array) -> Array:
        """Return the sigmoid."""
        e = xp.exp(-xp.abs(z))
        return xp.where(z >= 0, xp.ones_like(e), e) / (1.0 + e)

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


@registry.register("relu")
class ReLU(Activation):
    """f(z) = max(z, 0);  f' = 1 for z > 0, else 0 (also at 0)."""

    def forward(self, xp: Any, z: Array) -> Array:
        """Return max(z, 0)."""
        return xp.maximum(z, xp.zeros_like(z))

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return da where a > 0, which is where z > 0."""
        return xp.where(a > 0, da, xp.zeros_like(da))


@registry.register("leaky_relu")
class LeakyReLU(Activation):
    """f(z) = z for z > 0, else negative_slope * z;  f' = 1 or negative_slope (at 0: negative_slope).

    Args:
        negative_slope: 0.01 as in the notes and PyTorch (Keras has 0.2).
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
class Softmax(Activation):
    """f(z)_i = exp(z_i) / sum_j exp(z_j) along the last axis;  da_i/dz_j = a_i ((i = j) - a_j)."""

    def forward(self, xp: Any, z: Array) -> Array:
        """Return the softmax; the maximum is taken off first, so that nothing overflows."""
        e = xp.exp(z - xp.max(z, axis=-1, keepdims=True))
        return e / xp.sum(e, axis=-1, keepdims=True)

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return a * (da - sum(da * a))."""
        return a * (da - xp.sum(da * a, axis=-1, keepdims=True))

    @np.errstate(all="ignore")
    def derivative(self, x: Any) -> Array:
        """Return the matrix da_i/dz_j, shape x.shape + (classes,)."""
        ctx, leave = enter(x)
        xp = ctx.xp
        a = self.forward(xp, ctx.asarray(x))
        unit = xp.eye(a.shape[-1], dtype=a.dtype, device=ctx.backend.device)
        unit = xp.reshape(unit, (*(1,) * (a.ndim - 1), *unit.shape))
        column = xp.expand_dims(a, axis=-1)
        return leave(column * (unit - xp.expand_dims(a, axis=-2)))


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


def get(identifier: Any) -> Activation:
    """Return an activation from a name or an object; None is linear.

    Raises:
        UnknownNameError: no activation has that name. InvalidTypeError: it is a bare function.

    >>> get("relu").name, get(None).name
    ('relu', 'linear')
    """
    if callable(identifier) and not isinstance(identifier, (Activation, type)):
        raise InvalidTypeError(
            f"an activation needs its derivative too: derive from xpnet.activations.Activation; got {identifier!r}"
        )
    return registry.get("linear" if identifier is None else identifier)
