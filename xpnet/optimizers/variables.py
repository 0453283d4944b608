"""Base class of the optimizers that need the whole of a variable to update it."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

from ..backend import Array
from ..core.ops import at_age
from ..core.params import Variable, Variables
from ..kernels.context import Context
from .base import Optimizer

__all__ = ["PerVariable", "root_mean_square"]


class PerVariable(Optimizer):
    """An optimizer that updates one variable at a time.

    A subclass defines `update_variable`, and `slot_size` if a slot does not have the size of its variable.

    >>> class Normalized(PerVariable):
    ...     def update_variable(self, ctx, variable, w, g, slots, lr, age):
    ...         return w - lr * g / root_mean_square(ctx.xp, g), ()
    >>> opt = Normalized(0.5)
    >>> opt.update([1.0, 2.0], [3.0, -3.0], opt.init([1.0, 2.0]))[0].tolist()
    [0.5, 2.5]
    """

    def update_variable(
        self,
        ctx: Context,
        variable: Variable,
        w: Array,
        g: Array,
        slots: tuple[Array, ...],
        lr: Array,
        age: Array,
    ) -> tuple[Array, tuple[Array, ...]]:
        """Return the new weights and slots of one variable.

        Args:
            variable: its path and shape. w, g: shape (..., size); w has decayed already. slots: its part of each
                slot, shape (..., slot size). lr, age: 0-d: the rate of this variable; updates from 1.
        """
        raise TypeError(f"{type(self).__name__} must define update_variable")

    def slot_size(self, name: str, variable: Variable) -> int:
        """Return how many numbers a slot has for one variable."""
        return variable.stop - variable.start

    def decay_of(self, variable: Variable) -> Any:
        """Return the weight decay of one variable: a number or a schedule."""
        return self.decay

    def slot_sizes(self, variables: Variables) -> dict[str, int]:
        """See `Optimizer`."""
        return {name: sum(self.slot_size(name, v) for v in variables) for name in self.slots}

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
        """See `Optimizer`."""
        if not variables:
            return w, slots
        g = g if factor is None else g * factor
        sizes = ([self.slot_size(name, v) for v in variables] for name in self.slots)
        places = [[slice(*ends) for ends in pairwise(accumulate(column, initial=0))] for column in sizes]
        results = []
        for variable, *own in zip(variables, *places):
            where = slice(variable.start, variable.stop)
            rate = lr if variable.lr_factor == 1.0 else lr * variable.lr_factor
            part, decay = w[..., where], self.decay_of(variable)
            if decay and variable.decays(self.excluded):
                part = part - (rate * at_age(ctx.xp, decay, age)) * part
            parts = tuple(slot[..., place] for slot, place in zip(slots, own))
            new, kept = self.update_variable(ctx, variable, part, g[..., where], parts, rate, age)
            results.append((new, *kept))
        new, *kept_all = (ctx.ops.join(ctx, column) for column in zip(*results))
        return new, tuple(kept_all)


def root_mean_square(xp: Any, a: Array) -> Array:
    """Return sqrt(mean(a^2)) over the last axis, shape (..., 1)."""
    return xp.sqrt(xp.mean(a * a, axis=-1, keepdims=True))
