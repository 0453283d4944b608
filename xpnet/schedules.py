"""Schedules: numbers that change from step to step, as functions of the age of an optimizer.

A schedule is one formula. The step computes it where it computes everything else, so that a recorded or captured
step follows it without any work on the host.
"""

from __future__ import annotations

import math
from typing import Any

from .backend import Array, np
from .core.config import Configurable, Registry
from .core.settings import flag, optional, setting
from .errors import InvalidTypeError, InvalidValueError, number, one_of

__all__ = [
    "CosLog4",
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "FlatCos",
    "InverseTimeDecay",
    "OneCycle",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "Schedule",
    "get",
    "rate",
]


class Schedule(Configurable):
    """Base class; a subclass defines `at`, and `bound` where it knows one.

    >>> class InverseTime(Schedule):
    ...     def at(self, xp, age):
    ...         return 1.0 / (1.0 + age)
    >>> InverseTime()(3)
    0.25
    """

    @property
    def bound(self) -> float:
        """A number that the schedule never exceeds; infinity if none is known."""
        return math.inf

    def at(self, xp: Any, age: Array) -> Array:
        """Return the value for the update that follows `age` others, a floating-point number, 0-d."""
        raise TypeError(f"{type(self).__name__} must define at(xp, age)")

    def __call__(self, step: int) -> float:
        """Return the value for the update after `step` others, as a Python number."""
        return float(self.at(np, np.asarray(number("step", step, 0, integer=True), np.float64)))


registry: Registry[Schedule] = Registry("schedule", Schedule)


@registry.register
class ExponentialDecay(Schedule):
    """r = r0 decay_rate^(age / decay_steps): as in Keras.

    Args:
        initial_learning_rate: r0, >= 0. decay_steps: updates, > 0. decay_rate: > 0.
        staircase: whether the exponent is rounded down to a whole number.
        name: a label.

    >>> round(ExponentialDecay(0.1, decay_steps=10, decay_rate=0.5)(20), 6)
    0.025
    """

    initial_learning_rate: float = setting(number, 0)
    decay_steps: float = setting(number, 0, open_low=True)
    decay_rate: float = setting(number, 0, open_low=True)
    staircase: bool = setting(flag, default=False)
    name: str = setting(default="ExponentialDecay")

    @property
    def bound(self) -> float:
        """See `Schedule`."""
        return self.initial_learning_rate if self.decay_rate <= 1.0 else math.inf

    def at(self, xp: Any, age: Array) -> Array:
        """See `Schedule`."""
        times = age / self.decay_steps
        times = xp.floor(times) if self.staircase else times
        return self.initial_learning_rate * xp.exp(times * math.log(self.decay_rate))


def _numbers(name: str, value: Any) -> tuple[Any, ...]:
    """Check a setting that is a sequence of numbers."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise InvalidTypeError(f"{name} must be a list of numbers; got {value!r}")
    return tuple(number(f"each of {name}", v) for v in value)


def _falling(xp: Any, t: Array) -> Array:
    """Return half a cosine wave, which falls from 1 at t = 0 to 0 at t = 1."""
    return 0.5 * (1.0 + xp.cos(math.pi * t))


@registry.register
class PiecewiseConstantDecay(Schedule):
    """r = values[0] while age <= boundaries[0], then values[1] while age <= boundaries[1], and so on: as in Keras.

    Args:
        boundaries: ages, strictly increasing. values: rates, >= 0, one more than there are boundaries.
        name: a label.

    Raises:
        InvalidValueError: the boundaries do not increase, or the numbers of both do not match.

    >>> schedule = PiecewiseConstantDecay([10, 20], [0.1, 0.05, 0.01])
    >>> schedule(10), schedule(11), schedule(21)
    (0.1, 0.05, 0.01)
    """

    boundaries: Any = setting(_numbers)
    values: Any = setting(_numbers)
    name: str = setting(default="PiecewiseConstant")

    def check_settings(self) -> None:
        """Check that there is a rate >= 0 for each interval."""
        for value in self.values:
            number("each of values", value, 0)
        if any(b <= a for a, b in zip(self.boundaries, self.boundaries[1:])):
            raise InvalidValueError(f"boundaries must increase; got {self.boundaries}")
        if len(self.values) != len(self.boundaries) + 1:
            raise InvalidValueError(
                f"values must have one number more than boundaries, {len(self.boundaries) + 1}; got {self.values}"
            )

    @property
    def bound(self) -> float:
        """See `Schedule`."""
        return max(self.values)

    def at(self, xp: Any, age: Array) -> Array:
        """See `Schedule`."""
        result = xp.full_like(age, self.values[0])
        for boundary, value in zip(self.boundaries, self.values[1:]):
            result = xp.where(age > boundary, xp.full_like(age, value), result)
        return result


@registry.register
class PolynomialDecay(Schedule):
    """r = (r0 - r1) (1 - t)^power + r1, with t = age / decay_steps, at most 1: as in Keras.

    With `cycle`, the decay starts again whenever it ends, each time from a lower rate: decay_steps is then
    multiplied by the smallest whole number, at least 1, that makes t at most 1.

    Args:
        initial_learning_rate: r0, >= 0. decay_steps: updates, > 0. end_learning_rate: r1, >= 0. power: >= 0.
        cycle: see above. name: a label.

    >>> round(PolynomialDecay(0.1, 100, 0.02)(50), 6), PolynomialDecay(0.1, 100, 0.02)(200)
    (0.06, 0.02)
    """

    initial_learning_rate: float = setting(number, 0)
    decay_steps: float = setting(number, 0, open_low=True)
    end_learning_rate: float = setting(number, 0, default=0.0001)
    power: float = setting(number, 0, default=1.0)
    cycle: bool = setting(flag, default=False)
    name: str = setting(default="PolynomialDecay")

    @property
    def bound(self) -> float:
        """See `Schedule`."""
        return max(self.initial_learning_rate, self.end_learning_rate)

    def at(self, xp: Any, age: Array) -> Array:
        """See `Schedule`."""
        t, one = age / self.decay_steps, xp.ones_like(age)
        t = t / xp.maximum(-xp.floor(-t), one) if self.cycle else xp.minimum(t, one)
        first, last = self.initial_learning_rate, self.end_learning_rate
        return (first - last) * (1.0 - t) ** self.power + last


@registry.register
class InverseTimeDecay(Schedule):
    """r = r0 / (1 + decay_rate age / decay_steps): as in Keras.

    Args:
        initial_learning_rate: r0, >= 0. decay_steps: updates, > 0. decay_rate: >= 0.
        staircase: whether age / decay_steps is rounded down to a whole number. name: a label.

    >>> InverseTimeDecay(0.1, 10, 1.0)(10)
    0.05
    """

    initial_learning_rate: float = setting(number, 0)
    decay_steps: float = setting(number, 0, open_low=True)
    decay_rate: float = setting(number, 0)
    staircase: bool = setting(flag, default=False)
    name: str = setting(default="InverseTimeDecay")

    @property
    def bound(self) -> float:
        """See `Schedule`."""
        return self.initial_learning_rate

    def at(self, xp: Any, age: Array) -> Array:
        """See `Schedule`."""
        times = age / self.decay_steps
        times = xp.floor(times) if self.staircase else times
        return self.initial_learning_rate / (1.0 + self.decay_rate * times)


@registry.register
class CosineDecay(Schedule):
    """r = r1 ((1 - alpha) (1 + cos(pi t)) / 2 + alpha), with t = age / decay_steps, at most 1: as in Keras.

    Without warm-up r1 is the initial rate. With a `warmup_target`, the rate first rises from the initial rate to
    the target, linearly over `warmup_steps` updates; then r1 is the target, and t counts from the end of the rise.
    I. Loshchilov, F. Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017.

    Args:
        initial_learning_rate: >= 0. decay_steps: updates, > 0. alpha: the last rate as a share of r1, in [0, 1].
        name: a label. warmup_target: a rate >= 0, or None for no warm-up. warmup_steps: updates, >= 0.

    >>> schedule = CosineDecay(0.0, 100, warmup_target=0.1, warmup_steps=10)
    >>> schedule(5), schedule(10), schedule(110)
    (0.05, 0.1, 0.0)
    """

    initial_learning_rate: float = setting(number, 0)
    decay_steps: float = setting(number, 0, open_low=True)
    alpha: float = setting(number, 0, 1, default=0.0)
    name: str = setting(default="CosineDecay")
    warmup_target: float | None = setting(optional(number), 0, default=None)
    warmup_steps: float = setting(number, 0, default=0)

    @property
    def bound(self) -> float:
        """See `Schedule`."""
        return max(self.initial_learning_rate, self.warmup_target or 0.0)

    def at(self, xp: Any, age: Array) -> Array:
        """See `Schedule`."""
        first, top, rising = self.initial_learning_rate, self.warmup_target, self.warmup_steps
        top, rising = (first, 0) if top is None else (top, rising)
        t = xp.minimum((age - rising) / self.decay_steps, xp.ones_like(age))
        falling = top * ((1.0 - self.alpha) * _falling(xp, t) + self.alpha)
        return xp.where(age < rising, first + (top - first) * (age / rising), falling) if rising else falling


@registry.register
class CosineDecayRestarts(Schedule):
    """r = r0 ((1 - alpha) m_mul^i (1 + cos(pi t)) / 2 + alpha): a cosine decay that starts again, as in Keras.

    Period i, counted from 0, takes first_decay_steps t_mul^i updates; t rises from 0 to 1 within it.
    I. Loshchilov, F. Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017.

    Args:
        initial_learning_rate: r0, >= 0. first_decay_steps: updates of the first period, > 0.
        t_mul: factor from each period's length to the next one's, >= 1. m_mul: the same for the rate, > 0.
        alpha: the lowest rate as a share of r0, in [0, 1]. name: a label.

    >>> schedule = CosineDecayRestarts(0.1, 10, t_mul=2.0, m_mul=0.5)
    >>> [round(schedule(age), 6) for age in (0, 5, 10, 20, 30)]
    [0.1, 0.05, 0.05, 0.025, 0.025]
    """

    initial_learning_rate: float = setting(number, 0)
    first_decay_steps: float = setting(number, 0, open_low=True)
    t_mul: float = setting(number, 1, default=2.0)
    m_mul: float = setting(number, 0, open_low=True, default=1.0)
    alpha: float = setting(number, 0, 1, default=0.0)
    name: str = setting(default="SGDRDecay")

    @property
    def bound(self) -> float:
        """See `Schedule`."""
        return self.initial_learning_rate if self.m_mul <= 1.0 else math.inf

    def at(self, xp: Any, age: Array) -> Array:
        """See `Schedule`."""
        t, growth = age / self.first_decay_steps, self.t_mul
        if growth == 1.0:
            i = xp.floor(t)
            t = t - i
        else:  # rounding must not put the first update of a period at the end of the one before
            i = xp.floor(xp.log(1.0 + t * (growth - 1.0)) / math.log(growth) + 1e-6)
            t = (t - (growth**i - 1.0) / (growth - 1.0)) / growth**i
        return self.initial_learning_rate * ((1.0 - self.alpha) * self.m_mul**i * _falling(xp, t) + self.alpha)


@registry.register
class OneCycle(Schedule):
    """The rate rises from max_lr / div_factor to max_lr, then falls to max_lr / div_factor / final_div_factor.

    The rise ends at age pct_start total_steps - 1, the fall at age total_steps - 1; the last rate remains. With
    `three_phase` the rate falls to max_lr / div_factor in as many updates as it rose, and from there to the last
    rate. Arguments as in PyTorch's `OneCycleLR`, which also changes the momentum and raises after the last step.
    L. Smith, N. Topin, "Super-convergence: very fast training of neural networks using large learning rates",
    2018.

    Args:
        max_lr: >= 0. total_steps: updates, at least 1. pct_start: share of the rise, in [0, 1].
        anneal_strategy: `"cos"` (half a cosine wave) or `"linear"`: the form of each rise and fall.
        div_factor, final_div_factor: > 0. three_phase: see above.

    >>> schedule = OneCycle(1.0, 101, pct_start=11 / 101, anneal_strategy="linear", div_factor=10.0)
    >>> [round(schedule(age), 4) for age in (0, 5, 10, 55, 100)]
    [0.1, 0.55, 1.0, 0.5, 0.0]
    """

    max_lr: float = setting(number, 0)
    total_steps: int = setting(number, 1, integer=True)
    pct_start: float = setting(number, 0, 1, default=0.3)
    anneal_strategy: str = setting(one_of, ("cos", "linear"), default="cos")
    div_factor: float = setting(number, 0, open_low=True, default=25.0)
    final_div_factor: float = setting(number, 0, open_low=True, default=1e4)
    three_phase: bool = setting(flag, default=False)

    @property
    def bound(self) -> float:
        """See `Schedule`."""
        first = self.max_lr / self.div_factor
        return max(self.max_lr, first, first / self.final_div_factor)

    def at(self, xp: Any, age: Array) -> Array:
        """See `Schedule`."""
        first, rise = self.max_lr / self.div_factor, self.pct_start * self.total_steps
        phases = [(rise - 1.0, self.max_lr), (self.total_steps - 1.0, first / self.final_div_factor)]
        if self.three_phase:
            phases.insert(1, (2.0 * rise - 2.0, first))
        age = xp.minimum(age, xp.full_like(age, self.total_steps - 1.0))
        start, low, result = 0.0, first, xp.full_like(age, first)
        for end, high in phases:
            if end > start:
                t = (age - start) / (end - start)
                left = _falling(xp, t) if self.anneal_strategy == "cos" else 1.0 - t
                result = xp.where(age > start, high + (low - high) * left, result)
            start, low = end, high
        return result


@registry.register
class CosLog4(Schedule):
    """r = learning_rate (1 - cos(2 pi log2(1 + 15 t))) / 2, with t = age / steps, at most 1.

    Four waves, each twice as long as the one before: the rate starts and ends at 0.
    D. Holzmueller et al., "Better by default: strong pre-tuned MLPs and boosted trees on tabular data",
    NeurIPS 2024: the schedule coslog_4 of RealMLP.

    Args:
        learning_rate: the rate at the top of each wave, >= 0. steps: updates of the whole training, > 0.

    >>> [round(CosLog4(0.2, 15)(age), 6) for age in (0, 1, 3, 7, 15)]
    [0.0, 0.0, 0.0, 0.0, 0.0]
    """

    learning_rate: float = setting(number, 0)
    steps: float = setting(number, 0, open_low=True)

    @property
    def bound(self) -> float:
        """See `Schedule`."""
        return self.learning_rate

    def at(self, xp: Any, age: Array) -> Array:
        """See `Schedule`."""
        t = xp.minimum(age / self.steps, xp.ones_like(age))
        return 0.5 * self.learning_rate * (1.0 - xp.cos((2.0 * math.pi / math.log(2.0)) * xp.log1p(15.0 * t)))


@registry.register
class FlatCos(Schedule):
    """r = learning_rate (1 + cos(pi u)) / 2, with u = max(t - flat, 0) / (1 - flat) and t = min(age / steps, 1).

    The rate stays for the share `flat` of the steps, then falls to 0. With 0.5 it is the schedule flat_cos of
    RealMLP (D. Holzmueller et al., NeurIPS 2024), which uses it for weight decay.

    Args:
        learning_rate: >= 0. steps: updates of the whole training, > 0. flat: in [0, 1).

    >>> [round(FlatCos(0.2, 100)(age), 6) for age in (0, 50, 75, 100)]
    [0.2, 0.2, 0.1, 0.0]
    """

    learning_rate: float = setting(number, 0)
    steps: float = setting(number, 0, open_low=True)
    flat: float = setting(number, 0, 1, open_high=True, default=0.5)

    @property
    def bound(self) -> float:
        """See `Schedule`."""
        return self.learning_rate

    def at(self, xp: Any, age: Array) -> Array:
        """See `Schedule`."""
        t = xp.minimum(age / self.steps, xp.ones_like(age))
        return self.learning_rate * _falling(xp, xp.maximum(t - self.flat, xp.zeros_like(age)) / (1.0 - self.flat))


get = registry.get


def rate(name: str, value: Any) -> Any:
    """Check a setting that is a number >= 0 or a schedule."""
    return get(value) if isinstance(value, (Schedule, dict)) else number(name, value, 0)
