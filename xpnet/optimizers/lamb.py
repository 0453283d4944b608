"""Layer-wise adaptive moments: steps as long as the variable, in Adam's direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..core.ops import at_age, bias_correction
from ..core.params import Variables
from ..core.settings import setting
from ..errors import number
from ..kernels.context import Context
from ..schedules import rate
from .base import Optimizer, registry

__all__ = ["Lamb"]


@registry.register
class Lamb(Optimizer):
    """Adam's direction, scaled for each variable to the norm of the variable:  w' = w - lr |w|/|r| r.

    m' = b1 m + (1 - b1) g,  v' = b2 v + (1 - b2) g^2,  r = (m' / c1) / (sqrt(v' / c2) + epsilon),
    c1 = 1 - b1^t,  c2 = 1 - b2^t. The factor |w|/|r| is 1 where one of the norms is 0.

    Args:
        learning_rate: lr. beta_1, beta_2: b1, b2 in [0, 1). epsilon: >= 0. The others: see `Optimizer`.

    Y. You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", ICLR 2020; as in
    Keras the weights decay first, and the decay is no part of r.

    >>> opt = Lamb(0.5)
    >>> [round(w, 4) for w in opt.update([3.0, 4.0], [1.0, -1.0], opt.init([3.0, 4.0]))[0].tolist()]
    [1.2322, 5.7678]
    """

    learning_rate: Any = setting(rate, default=0.001)
    beta_1: float = setting(number, 0, 1, open_high=True, default=0.9)
    beta_2: float = setting(number, 0, 1, open_high=True, default=0.999)
    epsilon: float = setting(number, 0, default=1e-7)
    slots = ("mean", "mean_square")

    def numbers(self, xp: Any, lr: Array, age: Array) -> tuple[Any, ...]:
        """Return sqrt(c2) / c1 and epsilon sqrt(c2), see `Adam.numbers`."""
        root = xp.sqrt(bias_correction(xp, self.beta_2, age))
        return root / bias_correction(xp, self.beta_1, age), self.epsilon * root

    def formula(self, xp: Any) -> Callable[..., Any]:
        """Return the direction r of one element, not its new weight, and the new slots."""

        def at(w: Array, g: Array, m: Array, v: Array, scale: Array, small: Array) -> Any:
            m = self.beta_1 * m + (1.0 - self.beta_1) * g
            v = self.beta_2 * v + (1.0 - self.beta_2) * (g * g)
            return scale * m / (xp.sqrt(v) + small), m, v

        return at

    def apply_variables(
        self,
        ctx: Context,
        w: Array,
        g: Array,
        slots: tuple[Array, ...],
        lr: Array,
        age: Array,
        variables: Variables,
        factor: Array | None = None,
    ) -> tuple[Array, tuple[Array, ...]]:
        """See `Optimizer`."""
        r, slots = ctx.ops.update(ctx, self, w, g, slots, lr, age, 0.0, factor)
        parts = []
        for variable in variables:
            where = slice(variable.start, variable.stop)
            rate = lr if variable.lr_factor == 1.0 else lr * variable.lr_factor
            part, direction = w[..., where], r[..., where]
            if self.decay and variable.decays(self.excluded):
                part = part - (rate * at_age(ctx.xp, self.decay, age)) * part
            parts.append(part - (rate * _ratio(ctx.xp, part, direction)) * direction)
        return (ctx.ops.join(ctx, parts) if parts else w), slots


def _ratio(xp: Any, w: Array, r: Array) -> Array:
    """Return |w|/|r|, 1 where one of them is 0; for arrays (..., size) the shape is (..., 1), else ()."""
    long, short = (
        xp.sqrt(xp.sum(a * a, axis=-1)) for a in (w, r)
    )  # no vecdot: a captured step on a GPU refuses library products
    one = xp.ones_like(long)
    both = (long > 0) & (short > 0)
    ratio = xp.where(both, long / xp.where(both, short, one), one)
    return xp.expand_dims(ratio, axis=-1) if w.ndim > 1 else ratio
