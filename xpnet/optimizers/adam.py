"""Adaptive moments: `Adam` and `AdamW`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..core.ops import bias_correction, never_overflows
from ..core.settings import flag, setting
from ..errors import InvalidTypeError, number, one_of
from ..schedules import rate
from .base import Optimizer, registry

__all__ = ["Adam", "AdamW"]


@registry.register
class Adam(Optimizer):
    """Moving averages m of g and v of g^2, both corrected for their start at 0.

    m' = b1 m + (1 - b1) g,  v' = b2 v + (1 - b2) g^2,  c1 = 1 - b1^t,  c2 = 1 - b2^t,  t counts from 1

    Args:
        learning_rate: lr. beta_1, beta_2: b1, b2 in [0, 1). epsilon: >= 0.
        amsgrad: whether the largest v' so far takes the place of v' (S. Reddi et al., ICLR 2018).
        epsilon_on: `"root"` as in Keras,  w' = w - lr sqrt(c2)/c1 m' / (sqrt(v') + epsilon),  or `"corrected"`
            as in the notes, the paper's first form and PyTorch,  w' = w - lr (m'/c1) / (sqrt(v'/c2) + epsilon).
        The others: see `Optimizer`.

    D. Kingma, J. Ba, "Adam", ICLR 2015.
    """

    learning_rate: Any = setting(rate, default=0.001)
    beta_1: float = setting(number, 0, 1, open_high=True, default=0.9)
    beta_2: float = setting(number, 0, 1, open_high=True, default=0.999)
    epsilon: float = setting(number, 0, default=1e-7)
    amsgrad: bool = setting(flag, default=False)
    epsilon_on: str = setting(one_of, ("root", "corrected"), default="root")

    @property
    def slots(self) -> tuple[str, ...]:
        """The averages, and with `amsgrad` the largest average of the squares."""
        return ("mean", "mean_square", "largest") if self.amsgrad else ("mean", "mean_square")

    @property
    def known_as(self) -> str | None:
        """See `Optimizer`."""
        return None if self.amsgrad else "adam"

    @property
    def never_overflows(self) -> bool:
        """See `Optimizer`."""
        return never_overflows(max(self.beta_1, self.beta_2), self.epsilon, self.decay)

    def numbers(self, xp: Any, lr: Array, age: Array) -> tuple[Any, ...]:
        """Return the factor of m' / (sqrt(v') + small), and small.

        sqrt(v / c2) + epsilon = (sqrt(v) + epsilon sqrt(c2)) / sqrt(c2): one formula serves both forms.
        """
        root = xp.sqrt(bias_correction(xp, self.beta_2, age))
        small = self.epsilon * root if self.epsilon_on == "corrected" else self.epsilon
        return lr * root / bias_correction(xp, self.beta_1, age), small

    def formula(self, xp: Any) -> Callable[..., Any]:
        """Return the update of one element."""

        def at(w: Array, g: Array, m: Array, v: Array, *others: Any) -> Any:
            *largest, rate, small = others
            m = self.beta_1 * m + (1.0 - self.beta_1) * g
            v = self.beta_2 * v + (1.0 - self.beta_2) * (g * g)
            largest = [xp.maximum(v, top) for top in largest]
            return w - rate * (m / (xp.sqrt(*largest or [v]) + small)), m, v, *largest

        return at


def _needed(name: str, value: Any) -> Any:
    if value is None:
        raise InvalidTypeError("AdamW's weight_decay must be a finite number >= 0; got None")
    return rate(name, value)


@registry.register
class AdamW(Adam):
    """`Adam` with decoupled weight decay:  w' = w - lr weight_decay w - the update of `Adam`.

    Args:
        weight_decay: >= 0. The others: see `Adam`; with `epsilon_on="corrected"` it is PyTorch's.

    I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", ICLR 2019; as in Keras the decay is
    multiplied with the learning rate, and biases decay too (see `exclude_from_weight_decay`).
    """

    learning_rate: Any = setting(rate, default=0.001)
    weight_decay: Any = setting(_needed, default=0.004)
