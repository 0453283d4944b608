"""Gradient descent, plain and with momentum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..core.ops import never_overflows
from ..core.settings import flag, setting
from ..errors import number
from ..schedules import rate
from .base import Optimizer, registry

__all__ = ["SGD", "Momentum"]


@registry.register
class SGD(Optimizer):
    """w' = w - lr g; with momentum the classical form  v' = momentum v - lr g,  w' = w + v'.

    With `nesterov`  w' = w + momentum v' - lr g. As in Keras (PyTorch's v leaves out lr, which differs when lr
    changes). Full batch, stochastic or mini-batch descent: by `batch_size` of `fit`.

    Args:
        learning_rate: lr. momentum: in [0, 1]. nesterov: see above. The others: see `Optimizer`.

    B. Polyak, 1964; I. Sutskever et al., "On the importance of initialization and momentum in deep learning",
    ICML 2013.

    >>> opt = SGD(0.1)
    >>> theta, state = opt.update([1.0, 2.0], [10.0, 0.0], opt.init([1.0, 2.0]))
    >>> theta.tolist()
    [0.0, 2.0]
    """

    learning_rate: Any = setting(rate, default=0.01)
    momentum: float = setting(number, 0, 1, default=0.0)
    nesterov: bool = setting(flag, default=False)

    @property
    def slots(self) -> tuple[str, ...]:
        """The velocity, if there is momentum."""
        return ("velocity",) if self.momentum else ()

    @property
    def never_overflows(self) -> bool:
        """See `Optimizer`."""
        return never_overflows(self.momentum, decay=self.decay)

    def formula(self, xp: Any) -> Callable[..., Any]:
        """Return the plain form, the classical one, or Nesterov's."""

        def plain(w: Array, g: Array, lr: Array) -> Array:
            return w - lr * g

        def classical(w: Array, g: Array, v: Array, lr: Array) -> Any:
            v = self.momentum * v - lr * g
            return w + v, v

        def nesterov(w: Array, g: Array, v: Array, lr: Array) -> Any:
            step = lr * g
            v = self.momentum * v - step
            return w - step + self.momentum * v, v

        return plain if not self.momentum else nesterov if self.nesterov else classical


@registry.register
class Momentum(Optimizer):
    """v' = beta v + (1 - beta) g,  w' = w - lr v': the moving average of the gradients, not bias-corrected.

    Not `SGD(momentum=)`, whose v is the sum of the past steps.

    Args:
        learning_rate: lr. beta: in [0, 1). The others: see `Optimizer`.
    """

    learning_rate: Any = setting(rate, default=0.01)
    beta: float = setting(number, 0, 1, open_high=True, default=0.9)
    slots = ("average",)

    @property
    def never_overflows(self) -> bool:
        """See `Optimizer`."""
        return never_overflows(self.beta, decay=self.decay)

    def formula(self, xp: Any) -> Callable[..., Any]:
        """Return the update of one element."""

        def at(w: Array, g: Array, v: Array, lr: Array) -> Any:
            v = self.beta * v + (1.0 - self.beta) * g
            return w - lr * v, v

        return at
