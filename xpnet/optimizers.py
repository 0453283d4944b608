"""Optimizers, simplest first: a flat array of weights and one of gradients in, a flat array out.

The formulas stand in `xpnet.ops`, where a whole update of all weights is one operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .backend import Array, floating, library_of, np, traced
from .context import Context, enter
from .errors import InvalidTypeError, InvalidValueError, ShapeError, number, one_of
from .ops import never_overflows
from .registry import Configurable, Registry

__all__ = ["SGD", "Adam", "AdamW", "Momentum", "Optimizer", "OptimizerState", "RMSprop", "get"]


class OptimizerState(NamedTuple):
    """What an optimizer used alone carries from one update to the next: all arrays."""

    age: Array
    learning_rate: Array
    slots: tuple[Array, ...]


class Optimizer(Configurable):
    """Base class of the optimizers; subclasses define `apply` and name their `slots`.

    Args:
        learning_rate: a finite number >= 0; assign to `learning_rate` to change it between epochs.
        weight_decay: takes  learning_rate * weight_decay * w  away from all weights w, beside the update
            ("decoupled": I. Loshchilov, F. Hutter, ICLR 2019); None or 0: nothing.
        clipnorm: the largest norm of the gradient of a variable; a larger one is scaled down to it.
        clipvalue: the largest size of a single number of the gradient.
        global_clipnorm: the largest norm of the whole gradient  (R. Pascanu et al., ICML 2013).
        name, dtype: what to call it; the precision when used alone.

    At most one of `clipnorm`, `clipvalue` and `global_clipnorm` may be given; all are as in Keras.

    Raises:
        InvalidValueError: a number is out of range, or there are two ways to clip.
    """

    slots: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let a class that overrides the update say for itself that it never overflows."""
        super().__init_subclass__(**kwargs)
        for base in map(vars, cls.__mro__):
            if "never_overflows" in base:
                return
            if "apply" in base or "advance" in base:
                cls.never_overflows = False  # type: ignore[assignment, method-assign]
                return

    def __init__(
        self,
        learning_rate: float,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        name: str | None = None,
        dtype: str | None = None,
    ) -> None:
        self.learning_rate = learning_rate
        self.weight_decay = None if weight_decay is None else number("weight_decay", weight_decay, 0)
        clips = {"clipnorm": clipnorm, "clipvalue": clipvalue, "global_clipnorm": global_clipnorm}
        given = {key: value for key, value in clips.items() if value is not None}
        if len(given) > 1:
            raise InvalidValueError(f"give at most one of clipnorm, clipvalue and global_clipnorm; got {given}")
        clips.update((key, number(key, value, 0, open_low=True)) for key, value in given.items())
        self.clipnorm, self.clipvalue, self.global_clipnorm = clips.values()
        self.name, self.dtype = name, floating(dtype)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next steps."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._learning_rate = float(number("learning_rate", value, 0))

    @property
    def never_overflows(self) -> bool:
        """Whether all that is within the guard's limits gives finite weights now (see `xpnet.ops`)."""
        return False

    @property
    def decay(self) -> float:
        """The weight decay, 0 for none."""
        return self.weight_decay or 0.0

    def apply(
        self,
        ctx: Context,
        w: Array,
        g: Array,
        slots: tuple[Array, ...],
        lr: Array,
        age: Array,
        factor: Array | None = None,
    ) -> tuple[Array, tuple[Array, ...]]:
        """Return the new weights and slots, all of shape (..., size).

        Args:
            w, g: weights and gradient, shape (..., size). lr, age: 0-d; `age` counts updates from 1.
            factor: 0-d, on the device: g is to be multiplied with it. It is handed over only where there is one
                (with `global_clipnorm`, or under `mixed_float16`), so an optimizer that never meets one need not
                take it.
        """
        raise TypeError(f"{type(self).__name__} must define apply(ctx, w, g, slots, lr, age, factor=None)")

    def advance(
        self,
        ctx: Context,
        w: Array,
        g: Array,
        slots: tuple[Array, ...],
        lr: Array,
        age: Array,
        slices: Sequence[slice],
        factor: Array | None = None,
    ) -> tuple[Array, tuple[Array, ...]]:
        """Clip the gradient, then call `apply`. A step calls this method, with `apply`'s arguments and `slices`.

        Args:
            slices: where the variables lie, one after the other. factor: 0-d, what g is multiplied with before
                it is clipped.
        """
        if self.clipnorm is not None:
            g, factor = ctx.ops.clip_parts(ctx, g, self.clipnorm, factor, slices), None
        elif self.clipvalue is not None:
            g, factor = ctx.ops.clip_values(ctx, g, self.clipvalue, factor), None
        elif self.global_clipnorm is not None:
            factor = ctx.ops.clip_factor(ctx, g, self.global_clipnorm, factor)
        return self.apply(ctx, w, g, slots, lr, age, *(() if factor is None else (factor,)))

    @np.errstate(all="ignore")
    def init(self, theta: Any, layout: Any = None) -> OptimizerState:
        """Return the state before the first update of `theta`, shape (size,).

        Args:
            theta: the variable. layout: its parts (`xpnet.params.Layout`), of which `clipnorm` wants to know; None
                for one variable.
        """
        ctx, leave = enter(theta, dtype=self.dtype)
        w = ctx.asarray(theta)
        xp, zero = ctx.xp, ctx.backend.scalar(0.0)
        slots = tuple(leave(xp.zeros_like(w)) for _ in self.slots)
        return OptimizerState(leave(zero), leave(zero + self.learning_rate), slots)

    @np.errstate(all="ignore")
    def update(
        self, theta: Any, grad: Any, state: OptimizerState, layout: Any = None
    ) -> tuple[Array, OptimizerState]:
        """Return the variable after one step down `grad`, and the next state; nothing passed in is changed.

        Args:
            theta, grad: shape (size,), or two numbers. state: from `init` or the last `update`. layout: as for
                `init`.

        Raises:
            ShapeError: `grad` is not of the shape of `theta`.
        """
        ctx, leave = enter(theta, *filter(traced, (grad,)), dtype=self.dtype)
        w, g = ctx.backend.copy(ctx.asarray(theta)), ctx.asarray(grad)
        if w.shape != g.shape:
            raise ShapeError(f"the gradient must have the shape {tuple(w.shape)}; got {tuple(g.shape)}")
        age, lr = ctx.asarray(state.age) + 1.0, ctx.asarray(state.learning_rate)
        slots = tuple(ctx.backend.copy(ctx.asarray(s)) for s in state.slots)
        shape = w.shape
        w, g, *slots_in = (ctx.xp.reshape(a, shape or (1,)) for a in (w, g, *slots))
        slices = (slice(0, w.shape[-1]),) if layout is None else tuple(layout.slices.values())
        w, slots = self.advance(ctx, w, g, tuple(slots_in), lr, age, slices)
        w, *slots_out = (leave(ctx.xp.reshape(a, shape)) for a in (w, *slots))
        host_rate = state.learning_rate if library_of(state.learning_rate) is None else leave(lr)
        return w, OptimizerState(leave(age), host_rate, tuple(slots_out))


class SGD(Optimizer):
    """w' = w - lr g; with momentum the classical form  v' = momentum v - lr g,  w' = w + v'.

    With `nesterov`  w' = w + momentum v' - lr g. As in Keras (PyTorch's v leaves out lr, which differs
    when lr changes). Full batch, stochastic or mini-batch descent: by `batch_size` of `fit`.

    Args:
        learning_rate: lr. momentum: in [0, 1]. nesterov: see above. The others: see `Optimizer`.

    >>> opt = SGD(0.1)
    >>> theta, state = opt.update([1.0, 2.0], [10.0, 0.0], opt.init([1.0, 2.0]))
    >>> theta.tolist()
    [0.0, 2.0]
    """

    def __init__(
        self,
        learning_rate: float = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        name: str | None = None,
        dtype: str | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, clipnorm, clipvalue, global_clipnorm, name, dtype)
        self.momentum, self.nesterov = momentum, bool(nesterov)

    @property
    def momentum(self) -> float:
        """The momentum; without it there is no velocity to keep."""
        return self._momentum

    @momentum.setter
    def momentum(self, value: float) -> None:
        self._momentum = float(number("momentum", value, 0, 1))
        self.slots = ("velocity",) if self._momentum else ()

    @property
    def never_overflows(self) -> bool:
        """See `Optimizer`."""
        return never_overflows(self.momentum, decay=self.decay)

    def apply(
        self,
        ctx: Context,
        w: Array,
        g: Array,
        slots: tuple[Array, ...],
        lr: Array,
        age: Array,
        factor: Array | None = None,
    ) -> tuple[Array, tuple[Array, ...]]:
        """See `xpnet.ops.sgd`."""
        return ctx.ops.sgd(ctx, w, g, slots, lr, self.momentum, self.nesterov, self.decay, factor)


class Momentum(Optimizer):
    """v' = beta v + (1 - beta) g,  w' = w - lr v': the moving average of the gradients, not bias-corrected.

    Not `SGD(momentum=)`, whose v is the sum of the past steps.

    Args:
        learning_rate: lr. beta: in [0, 1). The others: see `Optimizer`.
    """

    slots = ("average",)

    def __init__(
        self,
        learning_rate: float = 0.01,
        beta: float = 0.9,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        name: str | None = None,
        dtype: str | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, clipnorm, clipvalue, global_clipnorm, name, dtype)
        self.beta = number("beta", beta, 0, 1, open_high=True)

    @property
    def never_overflows(self) -> bool:
        """See `Optimizer`."""
        return never_overflows(self.beta, decay=self.decay)

    def apply(
        self,
        ctx: Context,
        w: Array,
        g: Array,
        slots: tuple[Array, ...],
        lr: Array,
        age: Array,
        factor: Array | None = None,
    ) -> tuple[Array, tuple[Array, ...]]:
        """See `xpnet.ops.momentum`."""
        return ctx.ops.momentum(ctx, w, g, slots, lr, self.beta, self.decay, factor)


class RMSprop(Optimizer):
    """s' = rho s + (1 - rho) g^2,  w' = w - lr g / sqrt(s' + epsilon).

    Args:
        learning_rate: lr. rho: in [0, 1). epsilon: >= 0.
        epsilon_on: `"square"` as in Keras, sqrt(s' + epsilon), or `"root"` as in the notes and PyTorch,
            sqrt(s') + epsilon.
        The others: see `Optimizer`.
    """

    slots = ("mean_square",)

    def __init__(
        self,
        learning_rate: float = 0.001,
        rho: float = 0.9,
        epsilon: float = 1e-7,
        epsilon_on: str = "square",
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        name: str | None = None,
        dtype: str | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, clipnorm, clipvalue, global_clipnorm, name, dtype)
        self.rho = number("rho", rho, 0, 1, open_high=True)
        self.epsilon = number("epsilon", epsilon, 0)
        self.epsilon_on = one_of("epsilon_on", epsilon_on, ("square", "root"))

    @property
    def never_overflows(self) -> bool:
        """See `Optimizer`."""
        return never_overflows(self.rho, self.epsilon, self.decay)

    def apply(
        self,
        ctx: Context,
        w: Array,
        g: Array,
        slots: tuple[Array, ...],
        lr: Array,
        age: Array,
        factor: Array | None = None,
    ) -> tuple[Array, tuple[Array, ...]]:
        """See `xpnet.ops.rmsprop`."""
        inside = self.epsilon_on == "square"
        return ctx.ops.rmsprop(ctx, w, g, slots, lr, self.rho, self.epsilon, inside, self.decay, factor)


class Adam(Optimizer):
    """Moving averages m of g and v of g^2, both corrected for their start at 0.

    m' = b1 m + (1 - b1) g,  v' = b2 v + (1 - b2) g^2,  c1 = 1 - b1^t,  c2 = 1 - b2^t

    Args:
        learning_rate: lr. beta_1, beta_2: b1, b2 in [0, 1). epsilon: >= 0.
        epsilon_on: `"root"` as in Keras,  w' = w - lr sqrt(c2)/c1 m' / (sqrt(v') + epsilon),  or `"corrected"`
            as in the notes, the paper's first form and PyTorch,  w' = w - lr (m'/c1) / (sqrt(v'/c2) + epsilon).
        The others: see `Optimizer`.

    D. Kingma, J. Ba, "Adam", ICLR 2015.
    """

    slots = ("mean", "mean_square")

    def __init__(
        self,
        learning_rate: float = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        epsilon_on: str = "root",
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        name: str | None = None,
        dtype: str | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, clipnorm, clipvalue, global_clipnorm, name, dtype)
        self.beta_1 = number("beta_1", beta_1, 0, 1, open_high=True)
        self.beta_2 = number("beta_2", beta_2, 0, 1, open_high=True)
        self.epsilon = number("epsilon", epsilon, 0)
        self.epsilon_on = one_of("epsilon_on", epsilon_on, ("root", "corrected"))

    @property
    def never_overflows(self) -> bool:
        """See `Optimizer`."""
        return never_overflows(max(self.beta_1, self.beta_2), self.epsilon, self.decay)

    def apply(
        self,
        ctx: Context,
        w: Array,
        g: Array,
        slots: tuple[Array, ...],
        lr: Array,
        age: Array,
        factor: Array | None = None,
    ) -> tuple[Array, tuple[Array, ...]]:
        """See `xpnet.ops.adam`."""
        numbers = (self.beta_1, self.beta_2, self.epsilon, self.epsilon_on == "corrected", self.decay)
        return ctx.ops.adam(ctx, w, g, slots, lr, age, *numbers, factor)


class AdamW(Adam):
    """`Adam` with decoupled weight decay:  w' = w - lr weight_decay w - the update of `Adam`.

    Args:
        weight_decay: >= 0. The others: see `Adam`; with `epsilon_on="corrected"` it is PyTorch's.

    I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", ICLR 2019; as in Keras the decay is
    multiplied with the learning rate, and biases decay too.
    """

    def __init__(
        self,
        learning_rate: float = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        epsilon_on: str = "root",
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        name: str | None = None,
        dtype: str | None = None,
    ) -> None:
        if weight_decay is None:
            raise InvalidTypeError("AdamW's weight_decay must be a finite number >= 0; got None")
        super().__init__(
            learning_rate, beta_1, beta_2, epsilon, epsilon_on, weight_decay, clipnorm, clipvalue, global_clipnorm,
            name, dtype,
        )  # fmt: skip


registry: Registry[Optimizer] = Registry("optimizer", Optimizer)
registry.add(SGD, Momentum, RMSprop, Adam, AdamW)
get = registry.get
