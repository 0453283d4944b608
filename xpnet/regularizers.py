"""Penalties on the weights, and their gradients; factors as in Keras: no half, no mean."""

from __future__ import annotations

from typing import Any

from .backend import Array, np
from .core.config import Configurable, Registry
from .core.ops import penalty
from .core.settings import setting
from .errors import InvalidTypeError, ShapeError, UnknownNameError, number, one_of
from .kernels.context import Context, enter

__all__ = ["L1", "L1L2", "L2", "OrthogonalRegularizer", "Regularizer", "get"]

EPSILON = 1e-7  # Keras' `backend.epsilon()`: the smallest norm


class Regularizer(Configurable):
    """Base class of penalties; a subclass defines `at`: its value and its gradient.

    A subclass that sets only `l1` and `l2` is the penalty l1 * sum(|w|) + l2 * sum(w^2), with the gradient
    l1 * sign(w) + 2 * l2 * w. The notes' penalty lambda / (2 m) * sum(w^2), where m is the number of samples, is
    `L2(lambda / (2 * m))`.

    >>> from xpnet import setting
    >>> class Fourth(Regularizer):
    ...     factor: float = setting(default=0.5)
    ...     def at(self, ctx, w):
    ...         return self.factor * ctx.xp.sum(w**4), 4.0 * self.factor * w**3
    >>> float(Fourth()([1.0, 2.0]))
    8.5
    """

    l1 = l2 = 0.0

    def at(self, ctx: Context, w: Array) -> tuple[Array, Array]:
        """Return the penalty, 0-d, and its gradient, of the shape of w.

        Args:
            ctx: namespace and operations. w: one parameter of a layer, in its shape.
        """
        return penalty(ctx.xp, w, self.l1, self.l2)

    @property
    def has_own_formula(self) -> bool:
        """Whether the class overrides `at`: it is then more than the numbers l1 and l2."""
        return type(self).at is not Regularizer.at

    @np.errstate(all="ignore")
    def __call__(self, w: Array) -> Array:
        """Return the penalty of an array, 0-d.

        >>> from xpnet.backend import np
        >>> float(L2(0.5)(np.asarray([1.0, 2.0])))
        2.5
        """
        ctx, leave = enter(w)
        return leave(self.at(ctx, ctx.asarray(w))[0])


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


@registry.register
class OrthogonalRegularizer(Regularizer):
    """c * sum of |u_i . u_j| over i != j, with u_i = w_i / |w_i| for each of n rows, and c = factor / (n (n - 1)).

    It is 0 if the rows are orthogonal to each other. As in Keras the smallest norm is 1e-7; a single row has the
    penalty 0, where Keras gives NaN. Under a mixed policy the products are of factors rounded to 16 bits.

    With U the matrix of the u_i, and S = sign(U U^T) without its diagonal:  dU = 2 c S U,  and
    dw_i = (du_i - u_i (u_i . du_i)) / |w_i|.

    Args:
        factor: >= 0. mode: `"rows"`, or `"columns"`, whose w_i are the columns.

    Raises:
        ShapeError: the weights are no matrix.

    >>> round(float(OrthogonalRegularizer(0.5)([[1.0, 0.0], [3.0, 4.0]])), 6)
    0.3
    """

    factor: float = setting(number, 0, default=0.01)
    mode: str = setting(one_of, ("rows", "columns"), default="rows")

    def at(self, ctx: Context, w: Array) -> tuple[Array, Array]:
        """See `Regularizer`."""
        if w.ndim != 2:
            raise ShapeError(f"OrthogonalRegularizer takes weights of shape (in, out); got shape {tuple(w.shape)}")
        xp, by_columns = ctx.xp, self.mode == "columns"
        rows = xp.matrix_transpose(w) if by_columns else w
        n = rows.shape[0]
        norms = xp.sqrt(
            xp.maximum(xp.sum(rows * rows, axis=-1, keepdims=True), xp.full_like(rows[:, :1], EPSILON**2))
        )
        u = rows / norms
        c = self.factor / max(n * (n - 1), 1)
        p = ctx.ops.product(ctx, u, xp.matrix_transpose(u))
        p = p * (1.0 - xp.eye(n, dtype=p.dtype, device=ctx.backend.device))
        signs = xp.astype(p > 0, p.dtype) - xp.astype(p < 0, p.dtype)  # `sign` may wait for the device
        du = (2.0 * c) * ctx.ops.product(ctx, signs, u)
        slope = (du - u * xp.sum(u * du, axis=-1, keepdims=True)) / norms
        return c * xp.sum(xp.abs(p)), xp.matrix_transpose(slope) if by_columns else slope


def get(identifier: Any) -> Regularizer | None:
    """Return a regularizer from a name or an object; None gives None.

    Raises:
        InvalidTypeError: a bare function, which has no gradient. UnknownNameError: "l1_l2".
    """
    if identifier is None:
        return None
    if isinstance(identifier, str) and identifier == "l1_l2":
        raise UnknownNameError(
            "the regularizer 'l1_l2' would have no factors (as in Keras 3, L1L2() penalizes nothing): pass "
            "L1L2(l1=0.01, l2=0.01); got 'l1_l2'"
        )
    if callable(identifier) and not isinstance(identifier, (Regularizer, type)):
        raise InvalidTypeError(
            "a regularizer must be one of xpnet.regularizers, or a subclass of Regularizer with `at(ctx, w)`, "
            f"which returns the penalty and its gradient; got {identifier!r}"
        )
    return registry.get(identifier)
