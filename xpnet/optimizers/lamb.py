"""Layer-wise adaptive moments: an optimizer that is not elementwise."""

from __future__ import annotations

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
    """Adam's step, for each variable as long as the variable:  w' = w - lr |w|/|r| r.

    m' = b1 m + (1 - b1) g,  v' = b2 v + (1 - b2) g^2,  r = (m' / c1) / (sqrt(v' / c2) + epsilon),
    c1 = 1 - b1^t,  c2 = 1 - b2^t. The factor |w|/|r| is 1 where one of the norms is 0.

    Args:
        learning_rate: lr. beta_1, beta_2: b1, b2 in [0, 1). epsilon: >= 0. The others: see `Optimizer`.

    Y. You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", ICLR 2020; as in
    Keras the decay is taken from the weights first and is no part of r.
    """

    learning_rate: Any = setting(rate, default=0.001)
    beta_1: float = setting(number, 0, 1, open_high=True, default=0.9)
    beta_2: float = setting(number, 0, 1, open_high=True, default=0.999)
    epsilon: float = setting(number, 0, default=1e-7)
    slots = ("mean", "mean_square")

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
        xp = ctx.xp
        g = g if factor is None else g * factor
        m = self.beta_1 * slots[0] + (1.0 - self.beta_1) * g
        v = self.beta_2 * slots[1] + (1.0 - self.beta_2) * (g * g)
        c1, c2 = (bias_correction(xp, beta, age) for beta in (self.beta_1, self.beta_2))
        r = (m / c1) / (xp.sqrt(v / c2) + self.epsilon)
        parts = []
        for variable in variables:
            where = slice(variable.start, variable.stop)
            rate = lr if variable.lr_factor == 1.0 else lr * variable.lr_factor
            part = w[..., where]
            if self.decay and variable.decays(self.excluded):
                part = part - (rate * at_age(xp, self.decay, age)) * part
            parts.append(part - rate * _ratio(xp, part, r[..., where]) * r[..., where])
        return (ctx.ops.join(ctx, parts) if parts else w), (m, v)


def _ratio(xp: Any, w: Array, r: Array) -> Array:
    """Return |w|/|r|, 1 where one of them is 0; for arrays (..., size) the shape is (..., 1), else ()."""
    long, short = (
        xp.sqrt(xp.sum(a * a, axis=-1)) for a in (w, r)
    )  # vecdot is a product, which not every graph takes
    one = xp.ones_like(long)
    both = (long > 0) & (short > 0)
    ratio = xp.where(both, long / xp.where(both, short, one), one)
    return xp.expand_dims(ratio, axis=-1) if w.ndim > 1 else ratio
