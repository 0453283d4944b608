"""Schedules: numbers that change from step to step, as functions of the age of an optimizer.

A schedule is one formula. The step computes it where it computes everything else, so that a recorded or captured
step follows it without any work on the host.
"""

from __future__ import annotations

import math
from typing import Any

from .backend import Array, np
from .core.config import Configurable, Registry
from .core.settings import flag, setting
from .errors import number

__all__ = ["ExponentialDecay", "Schedule", "get", "rate"]


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
        name: what to call it.

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


get = registry.get


def rate(name: str, value: Any) -> Any:
    """Check a setting that is a number >= 0 or a schedule."""
    return get(value) if isinstance(value, (Schedule, dict)) else number(name, value, 0)
