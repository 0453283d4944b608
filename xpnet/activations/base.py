"""The base class of the activation functions, and what their formulas share."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from ..backend import Array, np
from ..core.config import Configurable, Registry
from ..core.settings import setting
from ..errors import number
from ..kernels.context import enter

__all__ = ["Activation", "AlongAxis", "clip", "log_1p_exp", "logistic", "registry"]


class Activation(Configurable):
    """Base class of the activation functions, for arrays of any shape and library.

    A subclass defines `forward` and `backward`. If both are elementwise, they are compiled into the passes over
    memory that a step makes.

    >>> class Cube(Activation):
    ...     def forward(self, xp, z):
    ...         return z * z * z
    ...     def backward(self, xp, da, z, a):
    ...         return da * 3.0 * z * z
    >>> from xpnet.backend import np
    >>> f = Cube()
    >>> f(np.asarray([2.0])).tolist(), f.derivative(np.asarray([2.0])).tolist()
    ([8.0], [12.0])
    """

    @cached_property
    def name(self) -> str:
        """The name by which `get` finds it; for a class that is not registered, its full name."""
        own = f"{type(self).__module__}.{type(self).__qualname__}"  # never that of a class known here
        return next((k for k, cls in registry.classes.items() if cls is type(self) and k == k.lower()), own)

    def forward(self, xp: Any, z: Array) -> Array:
        """Return a = f(z)."""
        raise TypeError(f"{type(self).__name__} must define forward(xp, z)")

    def backward(self, xp: Any, da: Array, z: Array, a: Array) -> Array:
        """Return dz for the derivative da of something by a = f(z)."""
        raise TypeError(f"{type(self).__name__} must define backward(xp, da, z, a)")

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of f(z) for a z of this shape, batch axis included."""
        return input_shape

    @np.errstate(all="ignore")
    def __call__(self, x: Any, *args: Any, **settings: Any) -> Array:
        """Return f(x), in the library of x.

        Args:
            x: an array, a list or a number. args, settings: of the function, for this call only.

        >>> from xpnet.activations import relu
        >>> relu([-1.0, 9.0], max_value=6.0).tolist()
        [0.0, 6.0]
        """
        if args or settings:
            return type(self)(*args, **settings)(x)
        ctx, leave = enter(x)
        return leave(self.forward(ctx.xp, ctx.asarray(x)))

    @np.errstate(all="ignore")
    def derivative(self, x: Any) -> Array:
        """Return f'(x), in the library and shape of x."""
        ctx, leave = enter(x)
        z = ctx.asarray(x)
        return leave(self.backward(ctx.xp, ctx.xp.ones_like(z), z, self.forward(ctx.xp, z)))


registry: Registry[Activation] = Registry("activation", Activation)


class AlongAxis(Activation):
    """Base class of the functions of all elements along an axis.

    Args:
        axis: counted in the whole array with its batch axis; -1 is the last one.
    """

    axis: int = setting(number, integer=True, default=-1)

    @np.errstate(all="ignore")
    def derivative(self, x: Any) -> Array:
        """Return the matrices da_i/dz_j: the shape of x without the axis, then (outputs, inputs) along it."""
        ctx, leave = enter(x)
        xp, z = ctx.xp, ctx.asarray(x)
        a = self.forward(xp, z)
        new = 0 if self.axis < 0 else -1  # the position of an axis of outputs: `axis` keeps its meaning
        shape = [1] * (a.ndim + 1)
        shape[new] = shape[self.axis] = size = a.shape[self.axis]
        unit = xp.reshape(xp.eye(size, dtype=a.dtype, device=ctx.backend.device), tuple(shape))
        rows = self.backward(xp, unit, xp.expand_dims(z, axis=new), xp.expand_dims(a, axis=new))
        return leave(xp.moveaxis(rows, (new, self.axis), (-2, -1)))


def logistic(xp: Any, z: Array) -> Array:
    """Return 1 / (1 + exp(-z)).

    With e = exp(-|z|), which never overflows: 1 / (1 + e) for z >= 0, e / (1 + e) for z < 0.
    """
    e = xp.exp(-xp.abs(z))
    return xp.where(z >= 0, xp.ones_like(e), e) / (1.0 + e)


def log_1p_exp(xp: Any, z: Array) -> Array:
    """Return log(1 + exp(z)), as max(z, 0) + log(1 + exp(-|z|)), in which nothing overflows."""
    return xp.maximum(z, xp.zeros_like(z)) + xp.log1p(xp.exp(-xp.abs(z)))


def clip(xp: Any, z: Array, low: float, high: float) -> Array:
    """Return z between two limits."""
    return xp.minimum(xp.maximum(z, xp.full_like(z, low)), xp.full_like(z, high))
