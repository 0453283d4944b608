"""Muon: momentum, made orthogonal."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from ..backend import Array
from ..core.params import Variable
from ..core.settings import flag, optional, setting
from ..errors import number
from ..kernels.context import Context
from ..schedules import rate
from .adam import Adam
from .base import patterns, registry
from .variables import PerVariable

__all__ = ["Muon"]


@registry.register
class Muon(PerVariable):
    """Momentum of which all singular values are brought near 1; for what is no hidden kernel, Adam.

    m' = momentum m + g,  x = g + momentum m' (without `nesterov` m'),  x = x / |x|, then `ns_steps` times
    A = x x^T,  x = a x + (b A + c A A) x,  and  w' = w - lr rms_rate sqrt(max(rows, columns)) x.
    Variables that do not have two axes, and excluded ones, take the step of `Adam` at the rate lr adam_lr_ratio.

    Args:
        learning_rate: lr. adam_beta_1, adam_beta_2, epsilon: of `Adam`.
        adam_weight_decay, weight_decay: decay of the variables that take Adam's step, and of the others; >= 0 or
            None. The rate of both is lr.
        exclude_layers: regular expressions; variables in whose path ("dense_1/kernel") one is found take Adam's
            step. The last layer should be among them. exclude_embeddings: whether paths with "embedding" do, too.
        muon_a, muon_b, muon_c: a, b, c. adam_lr_ratio: >= 0. momentum: in [0, 1). ns_steps: >= 1.
        nesterov: see above. rms_rate: > 0; None: the factor rms_rate sqrt(...) is 1.
        The others: see `Optimizer`.

    K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the factor by J. Liu et al.,
    arXiv:2502.16982. Names and defaults are Keras'; PyTorch and optax iterate in other precisions or with other
    factors.

    >>> opt = Muon(0.5)
    >>> [round(w, 4) for w in opt.update([1.0, 2.0], [3.0, -4.0], opt.init([1.0, 2.0]))[0].tolist()]
    [0.498, 2.496]
    """

    learning_rate: Any = setting(rate, default=0.001)
    adam_beta_1: float = setting(number, 0, 1, open_high=True, default=0.9)
    adam_beta_2: float = setting(number, 0, 1, open_high=True, default=0.999)
    adam_weight_decay: Any = setting(optional(rate), default=0.004)
    epsilon: float = setting(number, 0, default=1e-7)
    weight_decay: Any = setting(optional(rate), default=0.004)
    exclude_layers: Any = setting(patterns, default=())
    exclude_embeddings: bool = setting(flag, default=True)
    muon_a: float = setting(number, default=3.4445)
    muon_b: float = setting(number, default=-4.7750)
    muon_c: float = setting(number, default=2.0315)
    adam_lr_ratio: float = setting(number, 0, default=1.0)
    momentum: float = setting(number, 0, 1, open_high=True, default=0.95)
    ns_steps: int = setting(number, 1, integer=True, default=5)
    nesterov: bool = setting(flag, default=True)
    rms_rate: float | None = setting(optional(number), 0, open_low=True, default=0.2)
    slots = ("momentum", "mean_square")

    def uses_adam(self, variable: Variable) -> bool:
        """Return whether a variable takes the step of Adam."""
        path = variable.path
        embedding = self.exclude_embeddings and "embedding" in path.lower()
        return len(variable.shape) != 2 or embedding or any(re.search(p, path) for p in self.exclude_layers)

    def slot_size(self, name: str, variable: Variable) -> int:
        """Return the size of the variable; only Adam's step has a mean square."""
        kept = name == "momentum" or self.uses_adam(variable)
        return variable.stop - variable.start if kept else 0

    def decay_of(self, variable: Variable) -> Any:
        """See `PerVariable`."""
        return (self.adam_weight_decay if self.uses_adam(variable) else self.weight_decay) or 0.0

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
        if self.uses_adam(variable):
            adam = _adam(self.adam_beta_1, self.adam_beta_2, self.epsilon)
            return ctx.ops.update(ctx, adam, w, g, slots, lr * self.adam_lr_ratio, age)
        m = self.momentum * slots[0] + g
        x = g + self.momentum * m if self.nesterov else m
        x = self.orthogonal(ctx, ctx.xp.reshape(x, (*w.shape[:-1], *variable.shape)))
        scale = 1.0 if self.rms_rate is None else self.rms_rate * max(variable.shape) ** 0.5
        return w - (lr * scale) * ctx.xp.reshape(x, tuple(w.shape)), (m, slots[1])

    def orthogonal(self, ctx: Context, x: Array) -> Array:
        """Return matrices, shape (..., rows, columns), with their singular values brought near 1.

        An odd polynomial of degree 5 acts on each singular value; its coefficients make small values grow fast and
        end between about 0.7 and 1.2 (the Newton-Schulz iteration of the source).
        """
        xp, product, tall = ctx.xp, ctx.ops.product, x.shape[-2] > x.shape[-1]
        x = xp.matrix_transpose(x) if tall else x
        x = x / (xp.sqrt(xp.sum(x * x, axis=(-2, -1), keepdims=True)) + 1e-7)
        for _ in range(self.ns_steps):
            a = product(ctx, x, xp.matrix_transpose(x))
            x = self.muon_a * x + product(ctx, self.muon_b * a + self.muon_c * product(ctx, a, a), x)
        return xp.matrix_transpose(x) if tall else x


@lru_cache(maxsize=16)
def _adam(beta_1: float, beta_2: float, epsilon: float) -> Adam:
    return Adam(beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)
