"""Penalties on the weights: l1 * sum(|w|) + l2 * sum(w^2), as in Keras (no half, no mean)."""

from __future__ import annotations

from typing import Any

from .backend import Array, np
from .core.config import Configurable, Registry
from .core.settings import setting
from .errors import InvalidTypeError, UnknownNameError, number
from .kernels.context import enter

__all__ = ["L1", "L1L2", "L2", "Regularizer", "get"]


class Regularizer(Configurable):
    """The penalty l1 * sum(|w|) + l2 * sum(w^2); its gradient is l1 * sign(w) + 2 * l2 * w.

    The notes' penalty lambda / (2 m) * sum(w^2), where m is the number of samples, is `L2(lambda / (2 * m))`.
    """

    l1 = l2 = 0.0

    @np.errstate(all="ignore")
    def __call__(self, w: Array) -> Array:
        """Return the penalty of an array, 0-d.

        >>> from xpnet.backend import np
        >>> float(L2(0.5)(np.asarray([1.0, 2.0])))
        2.5
        """
        ctx, leave = enter(w)
        w, xp = ctx.asarray(w), ctx.xp
        return leave(self.l1 * xp.sum(xp.abs(w)) + self.l2 * xp.sum(w * w))


registry: Registry[Regularizer] = Registry("regularizer", Regularizer)


@registry.register
class L1(Regularizer):
    """l1 * sum(|w|).

    Args:
        l1: the factor, >= 0.
    """

    l1: float = setting(number, 0, default=0.01)


@registry.register
class L2(Regularizer):
    """l2 * sum(w^2); Krogh & Hertz define weight decay with half this factor.

    Args:
        l2: the factor, >= 0.
    """

    l2: float = setting(number, 0, default=0.01)


@registry.register
class L1L2(Regularizer):
    """l1 * sum(|w|) + l2 * sum(w^2).

    Args:
        l1, l2: the factors, >= 0.
    """

    l1: float = setting(number, 0, default=0.0)
    l2: float = setting(number, 0, default=0.0)


def get(identifier: Any) -> Regularizer | None:
    """Return a regularizer from a name or an object; None gives None.

    Raises:
        InvalidTypeError: a user-defined callable (xpnet needs l1 and l2 as numbers). UnknownNameError: "l1_l2".
    """
    if identifier is None:
        return None
    if isinstance(identifier, str) and identifier == "l1_l2":
        raise UnknownNameError(
            "the regularizer 'l1_l2' would have no factors (as in Keras 3, L1L2() penalizes nothing): pass "
            "L1L2(l1=0.01, l2=0.01); got 'l1_l2'"
        )
    if callable(identifier) and not isinstance(identifier, (Regularizer, type)):
        raise InvalidTypeError(f"a regularizer must be L1, L2 or L1L2; got {identifier!r}")
    return registry.get(identifier)
