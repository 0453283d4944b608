"""Adafactor: Adam's second moment from the means of rows and columns."""

from __future__ import annotations

import math
from typing import Any

from ..backend import Array
from ..core.params import Variable
from ..core.settings import flag, setting
from ..errors import number
from ..kernels.context import Context
from ..schedules import rate
from .base import registry
from .variables import PerVariable, root_mean_square

__all__ = ["Adafactor"]


@registry.register
class Adafactor(PerVariable):
    """Gradients divided by the root of a mean square that is kept as one number for each row and column.

    For a matrix, with s = g^2 + epsilon_1, b = 1 - t^beta_2_decay, t counted from 1:
    r' = b r + (1 - b) mean of s over columns,  c' = b c + (1 - b) mean of s over rows,  v = r' c' / mean(r').
    For a vector  v' = b v + (1 - b) s.  Then, with RMS(a) = sqrt(mean(a^2)) over the variable,
    u = g / sqrt(v),  w' = w - min(lr, 1 / sqrt(t)) max(epsilon_2, RMS(w)) u / max(1, RMS(u) / clip_threshold).
    Variables of more axes are stacks of matrices in their last two axes.

    Args:
        learning_rate: lr. beta_2_decay: <= 0. epsilon_1: >= 0. epsilon_2: >= 0, the least size of a variable.
        clip_threshold: > 0, the largest RMS(u).
        relative_step: accepted as in Keras, where it changes nothing: the rate is min(lr, 1 / sqrt(t)) either way.
        The others: see `Optimizer`.

    N. Shazeer, M. Stern, "Adafactor: adaptive learning rates with sublinear memory cost", ICML 2018; as in Keras,
    which keeps no first moment. A kernel of shape (m, n) costs m + n numbers of memory (Keras: and m n for v).

    >>> opt = Adafactor(0.5)
    >>> [round(w, 4) for w in opt.update([1.0, 2.0], [3.0, -4.0], opt.init([1.0, 2.0]))[0].tolist()]
    [0.2094, 2.7906]
    """

    learning_rate: Any = setting(rate, default=0.001)
    beta_2_decay: float = setting(number, None, 0, default=-0.8)
    epsilon_1: float = setting(number, 0, default=1e-30)
    epsilon_2: float = setting(number, 0, default=1e-3)
    clip_threshold: float = setting(number, 0, open_low=True, default=1.0)
    relative_step: bool = setting(flag, default=True)
    slots = ("mean_squares",)

    def slot_size(self, name: str, variable: Variable) -> int:
        """Return the number of rows and columns of a matrix, or the size of a vector."""
        rows, columns = _sizes(variable)
        return rows + columns

    def update_variable(
        self,
        ctx: Context,
        variable: Variable,
        w: Array,
        g: Array,
        slots: tuple[Array, ...],
        lr: Array,
        age: Array,
    ) -> tuple[Array, tuple[Array, ...]]:
        """See `PerVariable`."""
        xp, (rows, _), lead = ctx.xp, _sizes(variable), tuple(w.shape[:-1])
        fresh = xp.exp(self.beta_2_decay * xp.log(age))  # 1 - b
        square = g * g + self.epsilon_1
        if rows:
            s = xp.reshape(square, (*lead, *variable.shape))
            means = [xp.reshape(xp.mean(s, axis=axis), (*lead, -1)) for axis in (-1, -2)]
            square = ctx.ops.join(ctx, means)
        v = (1.0 - fresh) * slots[0] + fresh * square
        if rows:
            r = xp.reshape(v[..., :rows], (*lead, *variable.shape[:-1], 1))
            c = xp.reshape(v[..., rows:], (*lead, *variable.shape[:-2], 1, variable.shape[-1]))
            root = xp.sqrt(r / xp.mean(r, axis=-2, keepdims=True)) * xp.sqrt(c)
            u = g / xp.reshape(root, tuple(g.shape))
        else:
            u = g / xp.sqrt(v)
        step = xp.minimum(lr, 1.0 / xp.sqrt(age)) * _at_least(xp, root_mean_square(xp, w), self.epsilon_2)
        return w - (step / _at_least(xp, root_mean_square(xp, u) / self.clip_threshold, 1.0)) * u, (v,)


def _sizes(variable: Variable) -> tuple[int, int]:
    """Return the numbers of rows and columns of the matrices in a variable; (0, size) for a vector."""
    shape = variable.shape
    if len(shape) < 2:
        return 0, variable.stop - variable.start
    return math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]


def _at_least(xp: Any, a: Array, low: float) -> Array:
    return xp.maximum(a, xp.full_like(a, low))
