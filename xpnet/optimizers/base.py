"""The base class of the optimizers: flat arrays of weights and gradients in, flat arrays out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from ..backend import Array, Backend, floating, library_of, np, traced
from ..core.config import Configurable, Registry
from ..core.params import Group, Variable, Variables
from ..core.settings import optional, part, setting
from ..errors import InvalidTypeError, InvalidValueError, ShapeError, number
from ..kernels.context import Context, enter
from ..schedules import Schedule, rate

__all__ = ["Optimizer", "OptimizerState", "get", "registry"]

_UPDATE = {"formula", "numbers", "apply", "apply_variables", "advance"}  # who overrides one answers for it


class OptimizerState(NamedTuple):
    """What an optimizer used alone carries from one update to the next: all arrays."""

    age: Array
    learning_rate: Array
    slots: tuple[Array, ...]


class Optimizer(Configurable):
    """Base class of the optimizers; a subclass names its `slots` and defines `formula`, and `numbers` if need be.

    Args:
        learning_rate: a finite number >= 0, or one of `xpnet.schedules`. It can be changed between any two steps.
        weight_decay: takes  learning_rate * weight_decay * w  away from all weights w, before the update
            ("decoupled": I. Loshchilov, F. Hutter, ICLR 2019); None or 0: nothing. It may be a schedule, too.
        clipnorm: the largest norm of the gradient of a variable; a larger one is scaled down to it.
        clipvalue: the largest size of a single number of the gradient.
        global_clipnorm: the largest norm of the whole gradient  (R. Pascanu et al., ICML 2013).
        name, dtype: what to call it; the precision when used alone.

    At most one of `clipnorm`, `clipvalue` and `global_clipnorm` may be given; all are as in Keras.

    Attributes:
        slots: the arrays that it keeps: names, or a dictionary of names and the values that they start at.
        scalar_slots: the names of those slots that are one number for all weights, 0-d.
        known_as: the name of the algorithm, for a machine that has a version of it written by hand.

    Raises:
        InvalidValueError: a number is out of range, or there are two ways to clip.

    >>> from xpnet import setting
    >>> class Sign(Optimizer):
    ...     learning_rate: float = setting(default=0.5)
    ...     def formula(self, xp):
    ...         return lambda w, g, lr: w - lr * xp.sign(g)
    >>> opt = Sign()
    >>> opt.update([1.0, 2.0], [3.0, -4.0], opt.init([1.0, 2.0]))[0].tolist()
    [0.5, 2.5]
    """

    learning_rate: Any = setting(rate)
    weight_decay: Any = setting(optional(rate), default=None, kw_only=True)
    clipnorm: float | None = setting(optional(number), 0, open_low=True, default=None, kw_only=True)
    clipvalue: float | None = setting(optional(number), 0, open_low=True, default=None, kw_only=True)
    global_clipnorm: float | None = setting(optional(number), 0, open_low=True, default=None, kw_only=True)
    name: str | None = setting(default=None, kw_only=True)
    dtype: str | None = part(floating, default=None, kw_only=True)

    slots: ClassVar[Any] = ()
    scalar_slots: ClassVar[Any] = ()
    known_as: ClassVar[Any] = None
    excluded = ()  # type: tuple[str, ...]  # see `exclude_from_weight_decay`

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let a class that overrides the update say for itself whether it overflows, and as what it is known."""
        super().__init_subclass__(**kwargs)
        for attribute, unknown in (("never_overflows", False), ("known_as", None)):
            for base in map(vars, cls.__mro__):
                if attribute in base:
                    break
                if _UPDATE & set(base):
                    setattr(cls, attribute, unknown)
                    break

    def check_settings(self) -> None:
        """Raise if there are two ways to clip."""
        clips = {name: getattr(self, name) for name in ("clipnorm", "clipvalue", "global_clipnorm")}
        given = {name: value for name, value in clips.items() if value is not None}
        if len(given) > 1:
            raise InvalidValueError(f"give at most one of clipnorm, clipvalue and global_clipnorm; got {given}")

    # What a subclass defines --------------------------------------------------------------------------

    def numbers(self, xp: Any, lr: Array, age: Array) -> tuple[Any, ...]:
        """Return the numbers that the formula takes, worked out once an update: 0-d arrays or Python numbers.

        Args:
            lr, age: 0-d: the learning rate; the updates, counted from 1.
        """
        return (lr,)

    def formula(self, xp: Any) -> Callable[..., Any]:
        """Return `at(w, g, *slots, *numbers) -> (w', *slots')`: elementwise, without a branch on values."""
        raise TypeError(f"{type(self).__name__} must define formula(xp)")

    @property
    def never_overflows(self) -> bool:
        """Whether all that is within the guard's limits gives finite weights now (see `xpnet.core.ops`)."""
        return False

    # What it may override instead ---------------------------------------------------------------------

    def apply(
        self,
        ctx: Context,
        w: Array,
        g: Array,
        slots: tuple[Array, ...],
        lr: Array,
        age: Array,
        factor: Array | None = None,
        decay: float | None = None,
    ) -> tuple[Array, tuple[Array, ...]]:
        """Return the new weights and slots, all of shape (..., size) or 0-d; by the formula, unless overridden.

        Args:
            w, g: weights and gradient, shape (..., size). lr, age: 0-d; `age` counts updates from 1.
            factor: 0-d, on the device: g is to be multiplied with it. decay: the weight decay of these weights,
                where it is not that of the optimizer.

        `factor` is handed over only where there is one (with `global_clipnorm`, or under `mixed_float16`), `decay`
        only where some weights are excluded from it: who never meets them need not take them.
        """
        decay = self.weight_decay or 0.0 if decay is None else decay
        return ctx.ops.update(ctx, self, w, g, slots, lr, age, decay, factor)

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
        """Return the new weights and slots; `apply`, once for each group of variables, unless overridden.

        Args:
            variables: which lie one after the other; see `apply` for the others.

        A 0-d slot gets the value that the last group gives.
        """
        groups = variables.groups(self.excluded if self.weight_decay else None)
        if factor is None and groups and groups[0] == (0, w.shape[-1], 1.0, True):  # the usual case, kept short
            return self.apply(ctx, w, g, slots, lr, age)
        if len(groups) < 2:
            return self._apply_group(ctx, w, g, slots, lr, age, factor, groups[0] if groups else Group(0, 0))
        given, results = [], []
        for group in groups:
            parts = [a[..., group.start : group.stop] if a.ndim else a for a in (w, g, *slots)]
            new, new_slots = self._apply_group(ctx, parts[0], parts[1], tuple(parts[2:]), lr, age, factor, group)
            given.append([parts[0], *parts[2:]])
            results.append([new, *new_slots])
        w, *kept = (_joined(ctx, *columns) for columns in zip((w, *slots), zip(*given), zip(*results)))
        return w, tuple(kept)

    def _apply_group(
        self,
        ctx: Context,
        w: Array,
        g: Array,
        slots: tuple[Array, ...],
        lr: Array,
        age: Array,
        factor: Array | None,
        group: Group,
    ) -> tuple[Array, tuple[Array, ...]]:
        rate = lr if group.lr_factor == 1.0 else lr * group.lr_factor
        more: dict[str, Any] = {} if group.decay or not self.weight_decay else {"decay": 0.0}
        if factor is not None:
            more["factor"] = factor
        return self.apply(ctx, w, g, slots, rate, age, **more)

    # What a step calls --------------------------------------------------------------------------------

    @property
    def has_own_update(self) -> bool:
        """Whether its class overrides what makes an update of the formula."""
        own = ("apply", "apply_variables", "advance")
        return any(getattr(type(self), name) is not getattr(Optimizer, name) for name in own)

    @property
    def decay(self) -> Any:
        """The weight decay, 0 for none, or its schedule."""
        return self.weight_decay or 0.0

    def rate_at(self, xp: Any, lr: Array, age: Array) -> Array:
        """Return the learning rate of the update after `age` others: lr, unless there is a schedule."""
        schedule = self.learning_rate
        return schedule.at(xp, age) if isinstance(schedule, Schedule) else lr

    @property
    def fixed_rate(self) -> float:
        """The learning rate as a number; 0 where a schedule gives it."""
        return 0.0 if isinstance(self.learning_rate, Schedule) else self.learning_rate

    def advance(
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
        """Clip the gradient, then call `apply_variables`. A step calls this method.

        Args:
            variables: which lie one after the other. factor: 0-d, what g is multiplied with before it is clipped.
                The others: see `apply`.
        """
        if self.clipnorm is not None:
            g, factor = ctx.ops.clip_parts(ctx, g, self.clipnorm, factor, variables.slices), None
        elif self.clipvalue is not None:
            g, factor = ctx.ops.clip_values(ctx, g, self.clipvalue, factor), None
        elif self.global_clipnorm is not None:
            factor = ctx.ops.clip_factor(ctx, g, self.global_clipnorm, factor)
        return self.apply_variables(ctx, w, g, slots, lr, age, variables, factor)

    def first_slots(self, backend: Backend, shape: tuple[int, ...]) -> tuple[Array, ...]:
        """Return the slots before the first update of weights of this shape, (..., size)."""
        values = self.slots if isinstance(self.slots, Mapping) else dict.fromkeys(self.slots, 0.0)
        shapes = self.slot_shapes(shape)
        return tuple(
            backend.zeros(size) if value == 0 else backend.zeros(size) + value
            for size, value in zip(shapes, values.values())
        )

    def slot_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the shapes of the slots for weights of this shape, (..., size)."""
        one = (*shape[:-1], 1) if len(shape) > 1 else ()  # a number for each model, if there is an axis of them
        return [one if name in self.scalar_slots else shape for name in self.slots]

    # What users call ----------------------------------------------------------------------------------

    def exclude_from_weight_decay(self, var_names: Sequence[str] = ()) -> None:
        """Take no weight decay from some variables: before `compile`, as in Keras before it is built.

        Args:
            var_names: regular expressions; a variable in whose path ("dense_1/bias") one is found is excluded.

        >>> from xpnet.optimizers import AdamW
        >>> opt = AdamW()
        >>> opt.exclude_from_weight_decay(["bias", "gamma", "beta"])
        >>> opt.get_config()["exclude_from_weight_decay"]
        ['bias', 'gamma', 'beta']
        """
        self.excluded = _patterns(var_names)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, and which variables are excluded from weight decay."""
        config = super().get_config()
        return {**config, "exclude_from_weight_decay": list(self.excluded)} if self.excluded else config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Optimizer:
        """Return a new optimizer from what `get_config` gave."""
        rest = {name: value for name, value in config.items() if name != "exclude_from_weight_decay"}
        optimizer = super().from_config(rest)
        if len(rest) < len(config):
            optimizer.exclude_from_weight_decay(config["exclude_from_weight_decay"])
        return optimizer

    @np.errstate(all="ignore")
    def init(self, theta: Any, layout: Any = None) -> OptimizerState:
        """Return the state before the first update of `theta`, shape (size,).

        Args:
            theta: the variable. layout: its parts (`xpnet.core.params.Layout`), of which `clipnorm` wants to know;
                None for one variable.
        """
        ctx, leave = enter(theta, dtype=self.dtype)
        w = ctx.asarray(theta)
        zero = ctx.backend.scalar(0.0)
        slots = tuple(map(leave, self.first_slots(ctx.backend, tuple(w.shape))))
        return OptimizerState(leave(zero), leave(self.rate_at(ctx.xp, zero + self.fixed_rate, zero)), slots)

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
        age = ctx.asarray(state.age)
        lr, age = self.rate_at(ctx.xp, ctx.asarray(state.learning_rate), age), age + 1.0
        slots = tuple(ctx.backend.copy(ctx.asarray(s)) for s in state.slots)
        shape = w.shape
        shapes = [shape, *self.slot_shapes(tuple(shape))]
        flat = shape or (1,)
        kinds = [flat, *self.slot_shapes(tuple(flat))]
        w, *slots_in = (ctx.xp.reshape(a, kind) for a, kind in zip((w, *slots), kinds))
        variables = Variables([Variable("", 0, flat[-1], (flat[-1],))]) if layout is None else layout.variables
        w, slots = self.advance(ctx, w, ctx.xp.reshape(g, flat), tuple(slots_in), lr, age, variables)
        w, *slots_out = (leave(ctx.xp.reshape(a, given)) for a, given in zip((w, *slots), shapes))
        host_rate = state.learning_rate if library_of(state.learning_rate) is None else leave(lr)
        return w, OptimizerState(leave(age), host_rate, tuple(slots_out))


def _patterns(given: Any) -> tuple[str, ...]:
    if isinstance(given, str) or not all(isinstance(pattern, str) for pattern in given):
        raise InvalidTypeError(f"var_names must be a list of strings; got {given!r}")
    for pattern in given:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InvalidValueError(f"var_names must be regular expressions ({error}); got {pattern!r}") from error
    return tuple(given)


def _joined(ctx: Context, flat: Array, given: Sequence[Array], results: Sequence[Array]) -> Array:
    """Return the results of the groups as one array: the flat one, if they have been or will be written to it."""
    if all(new is old for new, old in zip(results, given)):
        return flat
    return ctx.ops.join(ctx, results) if flat.ndim else results[-1]


registry: Registry[Optimizer] = Registry("optimizer", Optimizer)
get = registry.get
