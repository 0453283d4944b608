"""Follow the regularized leader: an optimizer that sets weights to exactly 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..core.settings import setting
from ..errors import number
from ..schedules import rate
from .base import Optimizer, registry

__all__ = ["Ftrl"]


@registry.register
class Ftrl(Optimizer):
    """FTRL-Proximal: the weights that minimize a sum of the past linear losses, with L1 and L2 penalties.

    With p = -learning_rate_power, l1 and l2 the two strengths, s that of the shrinkage:
    n' = n + g^2,  z' = z + g + 2 s w - (n'^p - n^p) / lr w,
    w' = (clip(z', -l1, l1) - z') / ((n'^p + beta) / lr + 2 l2).  So w' = 0 where |z'| <= l1.

    Args:
        learning_rate: lr; 0 gives no finite weights. learning_rate_power: <= 0; 0 for a fixed rate.
        initial_accumulator_value: the start value of n, >= 0; with 0 the first gradients must not be 0.
        l1_regularization_strength, l2_regularization_strength: l1, l2 >= 0.
        l2_shrinkage_regularization_strength: s >= 0: an L2 penalty s w^2 on the loss. beta: >= 0.
        The others: see `Optimizer`.

    B. McMahan et al., "Ad click prediction: a view from the trenches", KDD 2013; as in Keras.

    >>> opt = Ftrl(0.5, l1_regularization_strength=1.0)
    >>> opt.update([0.0, 0.0], [0.5, -4.0], opt.init([0.0, 0.0]))[0].tolist()[0]
    0.0
    """

    learning_rate: Any = setting(rate, default=0.001)
    learning_rate_power: float = setting(number, None, 0, default=-0.5)
    initial_accumulator_value: float = setting(number, 0, default=0.1)
    l1_regularization_strength: float = setting(number, 0, default=0.0)
    l2_regularization_strength: float = setting(number, 0, default=0.0)
    l2_shrinkage_regularization_strength: float = setting(number, 0, default=0.0)
    beta: float = setting(number, 0, default=0.0)

    @property
    def slots(self) -> dict[str, float]:
        """The sum of squares n, and z."""
        return {"accumulator": self.initial_accumulator_value, "linear": 0.0}

    def numbers(self, xp: Any, lr: Array, age: Array) -> tuple[Any, ...]:
        """Return 1 / lr and what is added to n'^p / lr, both negative."""
        return -1.0 / lr, -self.beta / lr - 2.0 * self.l2_regularization_strength

    def formula(self, xp: Any) -> Callable[..., Any]:
        """Return the update of one element."""
        l1, shrink = self.l1_regularization_strength, 2.0 * self.l2_shrinkage_regularization_strength

        def power(n: Array) -> Array:
            return xp.sqrt(n) if self.learning_rate_power == -0.5 else xp.pow(n, -self.learning_rate_power)

        def at(w: Array, g: Array, n: Array, z: Array, inverse: Array, more: Array) -> Any:
            before, n = power(n), n + g * g
            after = power(n)
            z = z + (g + shrink * w if shrink else g) + (after - before) * inverse * w
            below = after * inverse + more
            if not l1:
                return z / below, n, z
            clipped = xp.minimum(xp.maximum(z, xp.full_like(z, -l1)), xp.full_like(z, l1))
            return (clipped - z) / -below, n, z

        return at
