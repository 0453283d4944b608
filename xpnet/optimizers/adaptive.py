"""A learning rate for each weight, from the squares of its past gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..core.ops import never_overflows
from ..core.settings import flag, setting
from ..errors import number, one_of
from ..schedules import rate
from .base import Optimizer, registry

__all__ = ["Adadelta", "Adagrad", "RMSprop"]


@registry.register
class Adadelta(Optimizer):
    """Adadelta: steps in the unit of the weights, from the mean squares of gradients and of past steps.

    a' = rho a + (1 - rho) g^2,  s = sqrt((d + epsilon) / (a' + epsilon)) g,  d' = rho d + (1 - rho) s^2,
    w' = w - lr s

    Args:
        learning_rate: lr; 1 in the paper. rho: in [0, 1). epsilon: >= 0. The others: see `Optimizer`.

    M. Zeiler, arXiv:1212.5701, 2012; the default rate is Keras', which is small for this method.

    >>> opt = Adadelta(1.0, rho=0.0, epsilon=1.0)
    >>> opt.update([1.0], [0.0], opt.init([1.0]))[0].tolist()
    [1.0]
    """

    learning_rate: Any = setting(rate, default=0.001)
    rho: float = setting(number, 0, 1, open_high=True, default=0.95)
    epsilon: float = setting(number, 0, default=1e-7)
    slots = ("mean_square", "mean_square_step")

    @property
    def never_overflows(self) -> bool:
        """See `Optimizer`.

        Let D = d + epsilon, A = a + epsilon, M the largest A so far. By induction D <= 2 M^(1 - rho) A^rho:
        if D <= A', then D' <= (1 + rho) A', else D' <= (1 + rho - rho A / A') D <= (A' / A)^rho D. So for
        rho >= 0.5, epsilon >= 1e-10 and |g| <= 1e18 no d exceeds 2e36, and no s 1e30.
        """
        return self.rho >= 0.5 and never_overflows(self.rho, self.epsilon, self.decay)

    def formula(self, xp: Any) -> Callable[..., Any]:
        """Return the update of one element."""

        def at(w: Array, g: Array, a: Array, d: Array, lr: Array) -> Any:
            a = self.rho * a + (1.0 - self.rho) * (g * g)
            step = xp.sqrt((d + self.epsilon) / (a + self.epsilon)) * g
            return w - lr * step, a, self.rho * d + (1.0 - self.rho) * (step * step)

        return at


@registry.register
class Adagrad(Optimizer):
    """Adagrad: each weight's rate falls with the sum of its squared gradients.

    a' = a + g^2,  w' = w - lr g / sqrt(a' + epsilon)

    Args:
        learning_rate: lr. initial_accumulator_value: the start value of a, >= 0. epsilon: >= 0.
        The others: see `Optimizer`.

    J. Duchi, E. Hazan, Y. Singer, JMLR 12, 2011; epsilon as in Keras.
    """

    learning_rate: Any = setting(rate, default=0.001)
    initial_accumulator_value: float = setting(number, 0, default=0.1)
    epsilon: float = setting(number, 0, default=1e-7)

    @property
    def slots(self) -> dict[str, float]:
        """The sum of squares."""
        return {"accumulator": self.initial_accumulator_value}

    @property
    def never_overflows(self) -> bool:
        """See `Optimizer`. If the sum of squares becomes infinite, the weights do not change any more."""
        return never_overflows(0.0, self.epsilon, self.decay)

    def formula(self, xp: Any) -> Callable[..., Any]:
        """Return the update of one element."""

        def at(w: Array, g: Array, a: Array, lr: Array) -> Any:
            a = a + g * g
            return w - lr * (g / xp.sqrt(a + self.epsilon)), a

        return at


@registry.register
class RMSprop(Optimizer):
    """RMSprop: the gradient divided by the root of its mean square.

    s' = rho s + (1 - rho) g^2,  w' = w - lr g / sqrt(s' + epsilon)

    With `momentum`  v' = momentum v + lr g / sqrt(s' + epsilon),  w' = w - v'. If `centered`, s' - a'^2 replaces
    s', with the average gradient  a' = rho a + (1 - rho) g  (A. Graves, arXiv:1308.0850).

    Args:
        learning_rate: lr. rho: in [0, 1). momentum: in [0, 1]. epsilon: >= 0. centered: see above.
        epsilon_on: `"square"` as in Keras, sqrt(s' + epsilon), or `"root"` as in the notes and PyTorch,
            sqrt(s') + epsilon.
        The others: see `Optimizer`.

    G. Hinton, lecture 6e, 2012.
    """

    learning_rate: Any = setting(rate, default=0.001)
    rho: float = setting(number, 0, 1, open_high=True, default=0.9)
    momentum: float = setting(number, 0, 1, default=0.0)
    epsilon: float = setting(number, 0, default=1e-7)
    centered: bool = setting(flag, default=False)
    epsilon_on: str = setting(one_of, ("square", "root"), default="square")

    @property
    def slots(self) -> tuple[str, ...]:
        """The average of the squares; with momentum the velocity; if centered the average gradient."""
        return "mean_square", *(["velocity"] if self.momentum else ()), *(["mean"] if self.centered else ())

    @property
    def never_overflows(self) -> bool:
        """See `Optimizer`."""
        return never_overflows(max(self.rho, self.momentum), self.epsilon, self.decay)

    def formula(self, xp: Any) -> Callable[..., Any]:
        """Return the update of one element."""
        rho, epsilon, inside = self.rho, self.epsilon, self.epsilon_on == "square"

        def at(w: Array, g: Array, s: Array, *others: Array) -> Any:
            *more, lr = others
            s = rho * s + (1.0 - rho) * (g * g)
            square = s
            if self.centered:
                more[-1] = rho * more[-1] + (1.0 - rho) * g
                square = xp.maximum(s - more[-1] * more[-1], xp.zeros_like(s))  # rounding may make it negative
            ratio = g / (xp.sqrt(square + epsilon) if inside else xp.sqrt(square) + epsilon)
            if not self.momentum:
                return w - lr * ratio, s, *more
            more[0] = self.momentum * more[0] + lr * ratio
            return w - more[0], s, *more

        return at
