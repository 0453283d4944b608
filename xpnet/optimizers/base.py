"""The base class of the optimizers. They map flat arrays of weights and gradients to new weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary, ref

from ..backend import Array, Backend, floating, library_of, np, traced
from ..core import ops
from ..core.config import Configurable, Registry
from ..core.params import Group, Variable, Variables
from ..core.settings import flag, optional, part, setting
from ..errors import InvalidTypeError, InvalidValueError, ShapeError, number
from ..kernels.context import Context, enter
from ..schedules import Schedule, rate

__all__ = ["Optimizer", "OptimizerState", "get", "registry"]

# A class that overrides one of these must itself say whether it overflows.
_UPDATE = {"formula", "numbers", "apply", "apply_variables", "advance"}
AVERAGE, SUM = "weights_average", "gradient_sum"  # the slots of `use_ema` and of `gradient_accumulation_steps`


class OptimizerState(NamedTuple):
    """The state of an optimizer used without a model, from one update to the next; all fields are arrays.

    Attributes:
        age: how often `update` was called. learning_rate: of the next update. slots: see `Optimizer.all_slots`.
    """

    age: Array
    learning_rate: Array
    slots: tuple[Array, ...]


class Optimizer(Configurable):
    """Base class of the optimizers; a subclass names its `slots` and defines `formula`, and often `numbers`.

    Args:
        learning_rate: a finite number >= 0, or one of `xpnet.schedules`. It can change between any two steps.
        weight_decay: subtracts  learning_rate * weight_decay * w  from all weights w before the update
            ("decoupled": I. Loshchilov, F. Hutter, ICLR 2019). It may be a schedule. None or 0: no decay.
        clipnorm: the largest norm of the gradient of one variable; a longer gradient is scaled down to it.
        clipvalue: the largest absolute value of one element of the gradient.
        global_clipnorm: the largest norm of the whole gradient  (R. Pascanu et al., ICML 2013).
        use_ema: whether to keep an exponential moving average of the weights, w after each update:
            e' = ema_momentum e + (1 - ema_momentum) w,  and e = w after the first update. `fit` ends by setting
            the weights to it (B. Polyak, A. Juditsky, SIAM J. Control Optim. 30, 1992).
        ema_momentum: in [0, 1]. ema_overwrite_frequency: every so many updates the weights become the average;
            None: only at the end of `fit`.
        gradient_accumulation_steps: n >= 2: the gradients of n steps are averaged and make one update, at the last
            of them. Weights and slots rest in between. Schedules still count steps. None: each step updates.
        name, dtype: a name; the precision of an optimizer used without a model.

    At most one of `clipnorm`, `clipvalue` and `global_clipnorm` may be given. All have the meaning of Keras.

    Attributes:
        slots: the arrays that the formula keeps: names, or a dictionary of names and start values.
        scalar_slots: the names of those slots that are one number for all weights, 0-d.
        known_as: the name of the algorithm, where a library has a hand-written version of it.
        full_batch: whether `fit` passes all rows at once.

    Raises:
        InvalidValueError: a number is out of range, or two ways to clip are given.

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
    use_ema: bool = setting(flag, default=False, kw_only=True)
    ema_momentum: float = setting(number, 0, 1, default=0.99, kw_only=True)
    ema_overwrite_frequency: int | None = setting(optional(number), 1, integer=True, default=None, kw_only=True)
    gradient_accumulation_steps: int | None = setting(
        optional(number), 2, integer=True, default=None, kw_only=True
    )
    name: str | None = setting(default=None, kw_only=True)
    dtype: str | None = part(floating, default=None, kw_only=True)

    slots: ClassVar[Any] = ()
    scalar_slots: ClassVar[Any] = ()
    known_as: ClassVar[Any] = None
    full_batch: ClassVar[bool] = False
    excluded = ()  # type: tuple[str, ...]  # see `exclude_from_weight_decay`

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Reset `never_overflows` and `known_as` in a class that overrides the update but not these."""
        super().__init_subclass__(**kwargs)
        for attribute, unknown in (("never_overflows", False), ("known_as", None)):
            for base in map(vars, cls.__mro__):
                if attribute in base:
                    break
                if _UPDATE & set(base):
                    setattr(cls, attribute, unknown)
                    break

    def check_settings(self) -> None:
        """Raise if two ways to clip are given."""
        clips = {name: getattr(self, name) for name in ("clipnorm", "clipvalue", "global_clipnorm")}
        given = {name: value for name, value in clips.items() if value is not None}
        if len(given) > 1:
            raise InvalidValueError(f"give at most one of clipnorm, clipvalue and global_clipnorm; got {given}")

    # What a subclass defines --------------------------------------------------------------------------

    def numbers(self, xp: Any, lr: Array, age: Array) -> tuple[Any, ...]:
        """Return the numbers that the formula takes, computed once per update: 0-d arrays or Python numbers.

        Args:
            lr, age: 0-d: the learning rate, and the number of this update, counted from 1.
        """
        return (lr,)

    def formula(self, xp: Any) -> Callable[..., Any]:
        """Return `at(w, g, *slots, *numbers) -> (w', *slots')`: elementwise, without a branch on values."""
        raise TypeError(f"{type(self).__name__} must define formula(xp)")

    @property
    def never_overflows(self) -> bool:
        """Whether all numbers within the guard's limits give finite weights (see `ops.never_overflows`)."""
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
        """Return the new weights and slots, of shape (..., size) or 0-d; by default as the formula defines them.

        Args:
            w, g: weights and gradient, shape (..., size). lr, age: 0-d; `age` counts updates from 1.
            factor: 0-d, on the device: multiply g by it. decay: the weight decay of these weights, if it differs
                from the optimizer's.

        `factor` is passed only with `global_clipnorm` or under `mixed_float16`, `decay` only if some weights are
        excluded from decay. An override that never meets them need not accept them.
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
        """Return the new weights and slots; by default call `apply` once for each group of variables.

        Args:
            variables: in the order of the flat array, without gaps. The others: see `apply`.

        A 0-d slot takes the value of the last group.
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
        """Whether its class overrides a method that makes an update from the formula."""
        own = ("apply", "apply_variables", "advance")
        return any(getattr(type(self), name) is not getattr(Optimizer, name) for name in own)

    @property
    def reads_age(self) -> bool:
        """Whether an update computes with the age outside of `ops.update`."""
        return self.has_own_update or self.gradient_accumulation_steps is not None

    @property
    def decay(self) -> Any:
        """The weight decay: a number, 0 for none, or a schedule."""
        return self.weight_decay or 0.0

    def rate_at(self, xp: Any, lr: Array, age: Array) -> Array:
        """Return the learning rate of the step after `age` others: lr, unless there is a schedule."""
        schedule = self.learning_rate
        return schedule.at(xp, age) if isinstance(schedule, Schedule) else lr

    @property
    def fixed_rate(self) -> float:
        """The learning rate as a number; 0 if it is a schedule."""
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
        """Accumulate and clip the gradient, call `apply_variables`, average the weights. A step calls this method.

        Args:
            slots: those of `all_slots`. age: 0-d: the number of this step, counted from 1.
            variables: in the order of the flat array. factor: 0-d: g is multiplied by it before it is clipped.
                The others: see `apply`.
        """
        if self.gradient_accumulation_steps is None and not self.use_ema:  # the usual case, kept short
            g, factor = self._clipped(ctx, g, variables, factor)
            return self.apply_variables(ctx, w, g, slots, lr, age, variables, factor)
        kept = dict(zip(self.all_slots, slots))
        if self.gradient_accumulation_steps is not None:
            total = kept[SUM] + (g if factor is None else g * factor)
            g, factor = total / self.gradient_accumulation_steps, None
            age = age / self.gradient_accumulation_steps  # a whole number at the steps that update
            kept[SUM] = ctx.xp.where(ctx.xp.floor(age) == age, ctx.xp.zeros_like(total), total)
        g, factor = self._clipped(ctx, g, variables, factor)
        advance = self._advance_own if self.has_own_update else self._advance_formula
        return advance(ctx, w, g, kept, lr, age, variables, factor)

    def _clipped(
        self, ctx: Context, g: Array, variables: Variables, factor: Array | None
    ) -> tuple[Array, Array | None]:
        """Return the clipped gradient, to be multiplied by the factor that is also returned."""
        if self.clipnorm is not None:
            return ctx.ops.clip_parts(ctx, g, self.clipnorm, factor, variables.slices), None
        if self.clipvalue is not None:
            return ctx.ops.clip_values(ctx, g, self.clipvalue, factor), None
        if self.global_clipnorm is not None:
            return g, ctx.ops.clip_factor(ctx, g, self.global_clipnorm, factor)
        return g, factor

    def _advance_formula(
        self, ctx: Context, w: Array, g: Array, kept: dict[str, Array], lr: Array, age: Array, *others: Any
    ) -> tuple[Array, tuple[Array, ...]]:
        """Update by the formula: `ops.update` averages the weights and leaves out steps that only accumulate."""
        names = [name for name in kept if name != SUM]
        w, new = self.apply_variables(ctx, w, g, tuple(kept[name] for name in names), lr, age, *others)
        return w, tuple({**kept, **dict(zip(names, new))}.values())

    def _advance_own(
        self, ctx: Context, w: Array, g: Array, kept: dict[str, Array], lr: Array, age: Array, *others: Any
    ) -> tuple[Array, tuple[Array, ...]]:
        """Update by an overridden method, then do the same on its results, which must not be deferred."""
        before, ctx.overwrite = ctx.overwrite, False
        old = tuple(kept[name] for name in self.slots)
        new, slots = self.apply_variables(ctx, w, g, old, lr, age, *others)
        ctx.overwrite = before
        new, *chosen = ops.if_due(ctx.xp, self, (new, *slots), (w, *old), age)
        kept.update(zip(self.slots, chosen))
        if self.use_ema:
            new, kept[AVERAGE] = ops.averaged(ctx.xp, self, new, kept[AVERAGE], age)
        return new, tuple(kept.values())

    # Slots --------------------------------------------------------------------------------------------

    @property
    def all_slots(self) -> dict[str, float | None]:
        """The names and start values of all arrays that it keeps; None: the value of the weights."""
        own = self.slots if isinstance(self.slots, Mapping) else dict.fromkeys(self.slots, 0.0)
        average = {AVERAGE: None} if self.use_ema else {}
        return {**own, **average, **({SUM: 0.0} if self.gradient_accumulation_steps else {})}

    def slot_sizes(self, variables: Variables) -> dict[str, int]:
        """Return the sizes of those slots that do not have the size of the weights, by name."""
        return {}

    def slot_shapes(self, shape: tuple[int, ...], variables: Variables | None = None) -> list[tuple[int, ...]]:
        """Return the shapes of all slots for weights of this shape, (..., size).

        Args:
            variables: the parts of the last axis; None: there is one.
        """
        lead = tuple(shape[:-1])
        sizes = self.slot_sizes(one_variable(shape) if variables is None else variables)
        found = {name: tuple(shape) for name in self.all_slots}
        found.update((name, (*lead, size)) for name, size in sizes.items() if shape)
        one = (*lead, 1) if lead else ()  # one number for each model
        return [one if name in self.scalar_slots else size for name, size in found.items()]

    def first_slots(
        self,
        backend: Backend,
        shape: tuple[int, ...],
        variables: Variables | None = None,
        weights: Array | None = None,
    ) -> tuple[Array, ...]:
        """Return all slots before the first update. Args: weights: None for 0. The others: see `slot_shapes`."""

        def first(size: tuple[int, ...], value: float | None) -> Array:
            if value is None and weights is not None:
                return backend.copy(weights)
            return backend.zeros(size) + value if value else backend.zeros(size)

        return tuple(map(first, self.slot_shapes(shape, variables), self.all_slots.values()))

    # What users call ----------------------------------------------------------------------------------

    @property
    def iterations(self) -> int:
        """The updates so far, in the model compiled with it; 0 without one (see `OptimizerState.age`)."""
        found = _sessions.get(self)
        session = None if found is None else found()
        if session is None or session.compiled is None or session.compiled.optimizer is not self:
            return 0
        return int(session.age) // (self.gradient_accumulation_steps or 1)

    def join(self, session: Any) -> None:
        """Remember the session of the model compiled with it."""
        _sessions[self] = ref(session)

    def finalize_variable_values(self, weights: Array, slots: Sequence[Array]) -> Array:
        """Return the weights that training ends with: their average with `use_ema`, else the given ones.

        Args:
            slots: those of `all_slots`; also `OptimizerState.slots`.
        """
        return dict(zip(self.all_slots, slots))[AVERAGE] if self.use_ema else weights

    def exclude_from_weight_decay(self, var_names: Sequence[str] = ()) -> None:
        """Exclude variables from weight decay; call it before `compile`.

        Args:
            var_names: regular expressions; they exclude the variables in whose path ("dense_1/bias") one is found.

        >>> from xpnet.optimizers import AdamW
        >>> opt = AdamW()
        >>> opt.exclude_from_weight_decay(["bias", "gamma", "beta"])
        >>> opt.get_config()["exclude_from_weight_decay"]
        ['bias', 'gamma', 'beta']
        """
        self.excluded = patterns("var_names", var_names)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, and the patterns that exclude variables from weight decay."""
        config = super().get_config()
        return {**config, "exclude_from_weight_decay": list(self.excluded)} if self.excluded else config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Optimizer:
        """Return a new optimizer from the result of `get_config`."""
        rest = {name: value for name, value in config.items() if name != "exclude_from_weight_decay"}
        optimizer = super().from_config(rest)
        if len(rest) < len(config):
            optimizer.exclude_from_weight_decay(config["exclude_from_weight_decay"])
        return optimizer

    @np.errstate(all="ignore")
    def init(self, theta: Any, layout: Any = None) -> OptimizerState:
        """Return the state before the first update of `theta`, shape (size,).

        Args:
            theta: the weights. layout: their parts (`xpnet.core.params.Layout`), for optimizers that treat each
                variable by itself; None: there is one variable.
        """
        ctx, leave = enter(theta, dtype=self.dtype)
        w = ctx.asarray(theta)
        zero = ctx.backend.scalar(0.0)
        variables = None if layout is None else layout.variables
        slots = tuple(map(leave, self.first_slots(ctx.backend, tuple(w.shape), variables, w)))
        return OptimizerState(leave(zero), leave(self.rate_at(ctx.xp, zero + self.fixed_rate, zero)), slots)

    @np.errstate(all="ignore")
    def update(
        self, theta: Any, grad: Any, state: OptimizerState, layout: Any = None
    ) -> tuple[Array, OptimizerState]:
        """Return the weights after one step, and the next state; the arguments do not change.

        Args:
            theta, grad: weights and gradient, shape (size,), or two numbers. state: the result of `init` or of the
                last `update`. layout: as for `init`.

        Raises:
            ShapeError: `grad` does not have the shape of `theta`.
        """
        ctx, leave = enter(theta, *filter(traced, (grad,)), dtype=self.dtype)
        w, g = ctx.backend.copy(ctx.asarray(theta)), ctx.asarray(grad)
        if w.shape != g.shape:
            raise ShapeError(f"the gradient must have the shape {tuple(w.shape)}; got {tuple(g.shape)}")
        age = ctx.asarray(state.age)
        lr, age = self.rate_at(ctx.xp, ctx.asarray(state.learning_rate), age), age + 1.0
        slots = tuple(ctx.backend.copy(ctx.asarray(s)) for s in state.slots)
        shape = w.shape
        flat = shape or (1,)
        variables = one_variable(tuple(flat)) if layout is None else layout.variables
        shapes, kinds = ([a, *self.slot_shapes(tuple(a), variables)] for a in (shape, flat))
        w, *slots_in = (ctx.xp.reshape(a, kind) for a, kind in zip((w, *slots), kinds))
        w, slots = self.advance(ctx, w, ctx.xp.reshape(g, flat), tuple(slots_in), lr, age, variables)
        w, *slots_out = (leave(ctx.xp.reshape(a, given)) for a, given in zip((w, *slots), shapes))
        host_rate = state.learning_rate if library_of(state.learning_rate) is None else leave(lr)
        return w, OptimizerState(leave(age), host_rate, tuple(slots_out))


def one_variable(shape: tuple[int, ...]) -> Variables:
    """Return weights of shape (..., size) as one variable of one axis."""
    size = shape[-1] if shape else 1
    return Variables([Variable("", 0, size, (size,))])


def patterns(name: str, given: Any) -> tuple[str, ...]:
    """Check an argument that is a list of regular expressions; None: no expression."""
    given = () if given is None else given
    if isinstance(given, str) or not all(isinstance(pattern, str) for pattern in given):
        raise InvalidTypeError(f"{name} must be a list of strings; got {given!r}")
    for pattern in given:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InvalidValueError(f"{name} must be regular expressions ({error}); got {pattern!r}") from error
    return tuple(given)


def _joined(ctx: Context, flat: Array, given: Sequence[Array], results: Sequence[Array]) -> Array:
    """Return the results of the groups as one array: the flat one, if they are (or will be) written there."""
    if all(new is old for new, old in zip(results, given)):
        return flat
    return ctx.ops.join(ctx, results) if flat.ndim else results[-1]


_sessions: WeakKeyDictionary[Optimizer, Any] = WeakKeyDictionary()
registry: Registry[Optimizer] = Registry("optimizer", Optimizer)
get = registry.get
