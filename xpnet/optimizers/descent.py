"""Gradient descent: plain, with momentum, and by signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backend import Array
from ..core.ops import never_overflows
from ..core.settings import flag, setting
from ..errors import number
from ..schedules import rate
from .base import Optimizer, registry

__all__ = ["SGD", "Lion", "Momentum"]


@registry.register
class SGD(Optimizer):
    """Gradient descent  w' = w - lr g;  with momentum  v' = momentum v - lr g,  w' = w + v'.

    With `nesterov`  w' = w + momentum v' - lr g. As in Keras; PyTorch's v does not contain lr, so that the two
    differ when lr changes. `batch_size` of `fit` makes it full-batch, mini-batch or stochastic descent.

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
    """Descent along the moving average of the gradients, without bias correction.

    v' = beta v + (1 - beta) g,  w' = w - lr v'.  Unlike in `SGD(momentum=)`, v is an average and not a sum.

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


@registry.register
class Lion(Optimizer):
    """Lion: steps of one size, in the direction of the sign of a momentum.

    w' = w - lr sign(b1 m + (1 - b1) g),  m' = b2 m + (1 - b2) g

    Args:
        learning_rate: lr; the paper advises a third to a tenth of AdamW's. beta_1: b1 in (0, 1]. beta_2: b2 in
            [0, 1). The others: see `Optimizer`.

    X. Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023; as in Keras.

    >>> opt = Lion(0.5)
    >>> opt.update([1.0, 2.0], [3.0, -4.0], opt.init([1.0, 2.0]))[0].tolist()
    [0.5, 2.5]
    """

    learning_rate: Any = setting(rate, default=0.001)
    beta_1: float = setting(number, 0, 1, open_low=True, default=0.9)
    beta_2: float = setting(number, 0, 1, open_high=True, default=0.99)
    slots = ("mean",)

    @property
    def never_overflows(self) -> bool:
        """See `Optimizer`."""
        return never_overflows(self.beta_2, decay=self.decay)

    def formula(self, xp: Any) -> Callable[..., Any]:
        """Return the update of one element."""

        def at(w: Array, g: Array, m: Array, lr: Array) -> Any:
            step = lr * xp.sign(self.beta_1 * m + (1.0 - self.beta_1) * g)
            return w - step, self.beta_2 * m + (1.0 - self.beta_2) * g

        return at
