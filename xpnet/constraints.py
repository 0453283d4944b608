"""Constraints on weights: each step ends by moving the new weights to where the constraint holds."""

from __future__ import annotations

from typing import Any

from .backend import Array, np
from .core.config import Configurable, Registry
from .core.settings import optional, setting
from .errors import InvalidTypeError, InvalidValueError, ShapeError, number
from .kernels.context import enter

__all__ = ["Constraint", "MaxNorm", "MinMaxNorm", "NonNeg", "UnitNorm", "get"]

EPSILON = 1e-7  # Keras' `backend.epsilon()`: in each division by a norm


class Constraint(Configurable):
    """Base class of constraints; a subclass defines `apply`.

    A layer's `kernel_constraint` and the like apply to a parameter after each update, as in Keras: not to initial
    values, and not to parameters that are not trained. An update that the guard rejects changes nothing.

    >>> from xpnet import setting
    >>> class AtMost(Constraint):
    ...     limit: float = setting(default=1.0)
    ...     def apply(self, xp, w):
    ...         return xp.minimum(w, xp.full_like(w, self.limit))
    >>> AtMost()([3.0, -0.5]).tolist()
    [1.0, -0.5]
    """

    def apply(self, xp: Any, w: Array) -> Array:
        """Return new weights for w, one parameter of a layer in its shape, without a branch on values."""
        raise TypeError(f"{type(self).__name__} must define apply(xp, w)")

    @np.errstate(all="ignore")
    def __call__(self, w: Any) -> Array:
        """Return the constrained weights, an array of the shape of w."""
        ctx, leave = enter(w)
        return leave(self.apply(ctx.xp, ctx.asarray(w)))


registry: Registry[Constraint] = Registry("constraint", Constraint)


def _axis(name: str, value: Any) -> int | tuple[int, ...]:
    """Check a setting that is an axis, or a sequence of axes."""
    if isinstance(value, (list, tuple)):
        return tuple(number(f"each axis of {name}", v, integer=True) for v in value)
    return number(name, value, integer=True)


def _norms(xp: Any, w: Array, axis: int | tuple[int, ...] | None) -> Array:
    """Return the Euclidean norms along the given axes, which remain with size 1."""
    axes = (axis,) if isinstance(axis, int) else axis or ()
    if not all(-w.ndim <= a < w.ndim for a in axes):
        raise ShapeError(f"axis must be an axis of the weights, of shape {tuple(w.shape)}; got {axis}")
    return xp.sqrt(xp.sum(w * w, axis=axis, keepdims=True))


@registry.register
class MaxNorm(Constraint):
    """w' = w min(n, max_value) / (n + 1e-7), with the norm n of w along an axis.

    N. Srivastava et al., "Dropout", JMLR 15, 2014. As in Keras, weights within the limit too shrink by a relative
    1e-7 / n at each step.

    Args:
        max_value: the largest norm, >= 0. axis: one or several axes of the weights: 0 for the weights of each unit
            of a dense kernel, shape (in, units); None for all axes.

    >>> [round(w, 4) for w in MaxNorm(1.0)([3.0, 4.0]).tolist()]
    [0.6, 0.8]
    """

    max_value: float = setting(number, 0, default=2.0)
    axis: Any = setting(optional(_axis), default=0)

    def apply(self, xp: Any, w: Array) -> Array:
        """See `Constraint`."""
        n = _norms(xp, w, self.axis)
        return w * (xp.minimum(n, xp.full_like(n, self.max_value)) / (EPSILON + n))


@registry.register
class MinMaxNorm(Constraint):
    """w' = w (rate min(max(n, min_value), max_value) + (1 - rate) n) / (n + 1e-7), with the norm n along an axis.

    Args:
        min_value, max_value: the smallest and the largest norm, >= 0.
        rate: how far each step goes towards them, in [0, 1]. axis: see `MaxNorm`.

    Raises:
        InvalidValueError: the smallest norm exceeds the largest.

    >>> [round(w, 4) for w in MinMaxNorm(0.0, 1.0, rate=0.5)([3.0, 4.0]).tolist()]
    [1.8, 2.4]
    """

    min_value: float = setting(number, 0, default=0.0)
    max_value: float = setting(number, 0, default=1.0)
    rate: float = setting(number, 0, 1, default=1.0)
    axis: Any = setting(optional(_axis), default=0)

    def check_settings(self) -> None:
        """Check that there is a norm between the two."""
        if self.max_value < self.min_value:
            raise InvalidValueError(
                f"max_value must be at least min_value, {self.min_value:g}; got {self.max_value:g}"
            )

    def apply(self, xp: Any, w: Array) -> Array:
        """See `Constraint`."""
        n = _norms(xp, w, self.axis)
        near = xp.minimum(xp.maximum(n, xp.full_like(n, self.min_value)), xp.full_like(n, self.max_value))
        return w * ((self.rate * near + (1.0 - self.rate) * n) / (EPSILON + n))


@registry.register
class NonNeg(Constraint):
    """w' = max(w, 0).

    >>> NonNeg()([-1.0, 2.0]).tolist()
    [0.0, 2.0]
    """

    def apply(self, xp: Any, w: Array) -> Array:
        """See `Constraint`."""
        return xp.maximum(w, xp.zeros_like(w))


@registry.register
class UnitNorm(Constraint):
    """w' = w / (n + 1e-7), with the norm n of w along an axis.

    Args:
        axis: see `MaxNorm`.

    >>> [round(w, 4) for w in UnitNorm()([3.0, 4.0]).tolist()]
    [0.6, 0.8]
    """

    axis: Any = setting(optional(_axis), default=0)

    def apply(self, xp: Any, w: Array) -> Array:
        """See `Constraint`."""
        return w / (EPSILON + _norms(xp, w, self.axis))


def get(identifier: Any) -> Constraint | None:
    """Return a constraint from a name or an object; None gives None.

    Raises:
        InvalidTypeError: a bare function, which a model file could not name. UnknownNameError: an unknown name.
    """
    if callable(identifier) and not isinstance(identifier, (Constraint, type)):
        raise InvalidTypeError(
            "a constraint must be one of xpnet.constraints, or a subclass of Constraint with `apply(xp, w)`; got "
            f"{identifier!r}"
        )
    return None if identifier is None else registry.get(identifier)
