"""Adaptive moments: `Adam` and its variants."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..core.ops import bias_correction, never_overflows
from ..core.settings import flag, setting
from ..errors import InvalidTypeError, number, one_of
from ..schedules import rate
from .base import Optimizer, registry

__all__ = ["Adam", "AdamW", "Adamax", "Nadam"]


@registry.register
class Adam(Optimizer):
    """Adam: the moving averages m of g and v of g^2, both corrected for their start at 0.

    m' = b1 m + (1 - b1) g,  v' = b2 v + (1 - b2) g^2,  c1 = 1 - b1^t,  c2 = 1 - b2^t,  t counts from 1

    Args:
        learning_rate: lr. beta_1, beta_2: b1, b2 in [0, 1). epsilon: >= 0.
        amsgrad: whether to use the largest v' so far in place of v' (S. Reddi et al., ICLR 2018).
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


@registry.register
class Adamax(Optimizer):
    """Adam with the largest gradient in place of the root of the mean square.

    m' = b1 m + (1 - b1) g,  u' = max(b2 u, |g|),  w' = w - lr / (1 - b1^t) m' / (u' + epsilon),  t counts from 1

    Args:
        learning_rate: lr. beta_1, beta_2: b1, b2 in [0, 1). epsilon: >= 0. The others: see `Optimizer`.

    D. Kingma, J. Ba, "Adam", ICLR 2015, section 7.1; epsilon as in Keras (PyTorch: max(b2 u, |g| + epsilon)).

    >>> opt = Adamax(0.5)
    >>> [round(w, 4) for w in opt.update([1.0, 2.0], [3.0, -4.0], opt.init([1.0, 2.0]))[0].tolist()]
    [0.5, 2.5]
    """

    learning_rate: Any = setting(rate, default=0.001)
    beta_1: float = setting(number, 0, 1, open_high=True, default=0.9)
    beta_2: float = setting(number, 0, 1, open_high=True, default=0.999)
    epsilon: float = setting(number, 0, default=1e-7)
    slots = ("mean", "largest")

    @property
    def never_overflows(self) -> bool:
        """See `Optimizer`."""
        return never_overflows(max(self.beta_1, self.beta_2), self.epsilon, self.decay)

    def numbers(self, xp: Any, lr: Array, age: Array) -> tuple[Any, ...]:
        """Return the factor of m' / (u' + epsilon)."""
        return (lr / bias_correction(xp, self.beta_1, age),)

    def formula(self, xp: Any) -> Callable[..., Any]:
        """Return the update of one element."""

        def at(w: Array, g: Array, m: Array, u: Array, rate: Array) -> Any:
            m = self.beta_1 * m + (1.0 - self.beta_1) * g
            u = xp.maximum(self.beta_2 * u, xp.abs(g))
            return w - rate * (m / (u + self.epsilon)), m, u

        return at


@registry.register
class Nadam(Optimizer):
    """Adam with Nesterov's momentum.

    m' = b1 m + (1 - b1) g,  v' = b2 v + (1 - b2) g^2,  u_t = b1 (1 - 0.96^t / 2),  P_t = u_1 u_2 ... u_t,
    w' = w - lr (u_{t+1} m' / (1 - P_{t+1}) + (1 - u_t) g / (1 - P_t)) / (sqrt(v' / (1 - b2^t)) + epsilon)

    Args:
        learning_rate: lr. beta_1, beta_2: b1, b2 in [0, 1). epsilon: >= 0. The others: see `Optimizer`.

    T. Dozat, "Incorporating Nesterov momentum into Adam", ICLR workshop 2016; u_t as in Keras, and in PyTorch
    with `momentum_decay=1`.

    >>> opt = Nadam(0.5)
    >>> [round(w, 4) for w in opt.update([1.0, 2.0], [3.0, -4.0], opt.init([1.0, 2.0]))[0].tolist()]
    [0.4686, 2.5314]
    """

    learning_rate: Any = setting(rate, default=0.001)
    beta_1: float = setting(number, 0, 1, open_high=True, default=0.9)
    beta_2: float = setting(number, 0, 1, open_high=True, default=0.999)
    epsilon: float = setting(number, 0, default=1e-7)
    slots = ("mean", "mean_square")

    @property
    def never_overflows(self) -> bool:
        """See `Optimizer`."""
        return never_overflows(max(self.beta_1, self.beta_2), self.epsilon, self.decay)

    def numbers(self, xp: Any, lr: Array, age: Array) -> tuple[Any, ...]:
        """Return the factors of m' and g, divided by sqrt(v') + small, and small."""
        root = xp.sqrt(bias_correction(xp, self.beta_2, age))
        now, following = (self.beta_1 * (1.0 - 0.5 * xp.exp(math.log(0.96) * t)) for t in (age, age + 1.0))
        product = _product(xp, self.beta_1, age)
        for_m = lr * root * following / (1.0 - product * following)
        return for_m, lr * root * (1.0 - now) / (1.0 - product), self.epsilon * root

    def formula(self, xp: Any) -> Callable[..., Any]:
        """Return the update of one element."""

        def at(w: Array, g: Array, m: Array, v: Array, for_m: Array, for_g: Array, small: Array) -> Any:
            m = self.beta_1 * m + (1.0 - self.beta_1) * g
            v = self.beta_2 * v + (1.0 - self.beta_2) * (g * g)
            return w - (for_m * m + for_g * g) / (xp.sqrt(v) + small), m, v

        return at


# 1 / (n (1 - q^n)) for q = 0.96 and n = 50, 49, ..., 1; the terms behind are below the precision of float64
_SERIES = [1.0 / (n * (1.0 - 0.96**n)) for n in range(50, 0, -1)]


def _product(xp: Any, beta: float, age: Array) -> Array:
    """Return b^t (1 - q/2) (1 - q^2/2) ... (1 - q^t/2) for q = 0.96 and t = age, which need not be kept as a slot.

    Each logarithm is a power series; summed over the factors, the n-th powers are a geometric series:
    log(product) = t log(b) - S(q/2) + S(q^(t+1)/2),  S(x) = sum over n of x^n / (n (1 - q^n)).
    """
    if beta == 0:
        return xp.zeros_like(age)

    def series(x: Any) -> Any:
        total = 0.0
        for coefficient in _SERIES:
            total = (total + coefficient) * x
        return total

    return xp.exp(age * math.log(beta) - series(0.48) + series(0.48 * xp.exp(math.log(0.96) * age)))
