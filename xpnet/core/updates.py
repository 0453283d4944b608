"""Bodies of the operations that clip a gradient and update weights, and what bounds an update (see `ops.py`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..backend import Array
from ..errors import InvalidValueError

__all__ = [
    "LARGEST_RATE",
    "MAX_NORM",
    "at_age",
    "averaged",
    "bias_correction",
    "clip_factor",
    "clip_parts",
    "clip_values",
    "if_due",
    "never_overflows",
    "update",
]


def clip_values(ctx: Any, g: Array, most: float, factor: Array | None) -> Array:
    """Return factor * g, each number of it brought into [-most, most]. Args: factor: 0-d, or None for 1."""
    xp = ctx.xp
    g = _scaled(g, factor)
    high = xp.full((), most, dtype=g.dtype, device=ctx.backend.device)
    return xp.minimum(xp.maximum(g, -high), high)


def clip_factor(ctx: Any, g: Array, most: float, factor: Array | None) -> Array:
    """Return the factor of g, shape (..., size), that brings the norm of factor * g down to at most `most`.

    It is  f min(1, most / |f g|), f being `factor` (0-d, or None for 1): R. Pascanu et al., "On the difficulty of
    training recurrent neural networks", ICML 2013. Its shape is that of `lr` where g has one dimension.
    """
    xp = ctx.xp
    norm = xp.sqrt(xp.vecdot(g, g))
    norm = xp.expand_dims(norm, axis=-1) if g.ndim > 1 else norm
    norm = _scaled(norm, factor)
    # not most / norm: there is nothing to divide by where g is 0
    shrink = most / xp.maximum(norm, xp.full_like(norm, most))
    return _scaled(shrink, factor)


def clip_parts(ctx: Any, g: Array, most: float, factor: Array | None, slices: Sequence[slice]) -> Array:
    """Return factor * g, the norm of each part of it brought down to `most` as in `clip_factor`.

    Args:
        slices: the parts, one after the other, that g consists of. factor: 0-d, or None for 1.
    """
    parts = (g[..., where] for where in slices)
    return ctx.xp.concat([part * clip_factor(ctx, part, most, factor) for part in parts], axis=-1)


def _scaled(a: Array, factor: Array | None) -> Array:
    return a if factor is None else a * factor


def update(
    ctx: Any,
    optimizer: Any,
    w: Array,
    g: Array,
    slots: tuple[Array, ...],
    lr: Array,
    age: Array,
    decay: Any = 0.0,
    factor: Array | None = None,
) -> tuple[Array, tuple[Array, ...]]:
    """Return the new weights and slots by the formula of an optimizer (see `xpnet.optimizers`).

    Args:
        optimizer: has `numbers(xp, lr, age)` and `formula(xp)`, which returns
            `at(w, g, *slots, *numbers) -> (w', *slots')`.
        w, g: weights and gradient, shape (..., size). slots: those of the formula, of the same shape or 0-d; with
            `use_ema` the average of the weights behind them.
        lr, age: 0-d; `age` counts updates from 1 (if the optimizer accumulates gradients, see `if_due`).
        decay: takes  lr decay w  away from the weights first ("decoupled weight decay": I. Loshchilov, F. Hutter,
            ICLR 2019); a number or a schedule.
        factor: 0-d and at most 1, or None: what the gradient is multiplied with first.
    """
    xp, count = ctx.xp, len(optimizer.slots)
    old, g = (w, *slots[:count]), _scaled(g, factor)
    w = w - (lr * at_age(xp, decay, age)) * w if decay else w
    numbers = optimizer.numbers(xp, lr, age)
    new = optimizer.formula(xp)(w, g, *slots[:count], *numbers)
    new = new if isinstance(new, (tuple, list)) else (new,)
    if len(new) != 1 + count:
        raise InvalidValueError(
            f"the formula of {type(optimizer).__name__} must return the weights and {count} slots; got "
            f"{len(new)} arrays"
        )
    w, *new = if_due(xp, optimizer, new, old, age)
    if len(slots) > count:
        w, average = averaged(xp, optimizer, w, slots[count], age)
        new.append(average)
    return w, tuple(new)


def if_due(xp: Any, optimizer: Any, new: Sequence[Array], old: Sequence[Array], age: Array) -> Sequence[Array]:
    """Return the new arrays at a step that updates, the old ones at a step that only accumulates its gradient.

    Args:
        age: 0-d: steps from 1, divided by `gradient_accumulation_steps`: a whole number at a step that updates.
    """
    if optimizer.gradient_accumulation_steps is None:
        return new
    due = xp.floor(age) == age
    return [xp.where(due, a, b) for a, b in zip(new, old)]


def averaged(xp: Any, optimizer: Any, w: Array, average: Array, age: Array) -> tuple[Array, Array]:
    """Return the weights and their moving average  e' = m e + (1 - m) w,  m = `ema_momentum`; first  e' = w.

    Every `ema_overwrite_frequency` updates w is e'. Args: average: e. age: see `if_due`.
    """
    updates, often = -xp.floor(-age), optimizer.ema_overwrite_frequency  # at least 1: the one under way counts
    momentum = optimizer.ema_momentum * xp.astype(updates > 1, age.dtype)
    average = momentum * average + (1.0 - momentum) * w
    if often is None:
        return w, average
    return xp.where(xp.floor(updates / often) * often == updates, average, w), average


# The guard's limits by precision: of the norm of the gradient, and of the weights. With LARGEST_RATE and
# `never_overflows` they keep every update and every moving average far from the largest number.
MAX_NORM = {"float32": 1e18, "float64": 1e150}
LARGEST_RATE = 1e6


def never_overflows(beta: float, epsilon: float = 1.0, decay: Any = 0.0) -> bool:
    """Return whether an optimizer with these numbers turns what is within `MAX_NORM` into finite numbers.

    The largest update is LARGEST_RATE * 1e18 / epsilon, the largest decay LARGEST_RATE * decay * 1e18, the largest
    average or sum 1e18^2 / (1 - beta). A `factor`, at most 1, makes none of them larger.
    """
    return beta <= 0.9999 and epsilon >= 1e-10 and getattr(decay, "bound", decay) <= 1e3


def at_age(xp: Any, value: Any, age: Array) -> Any:
    """Return a number, or what a schedule gives for the update of that age (which counts from 1)."""
    return value.at(xp, age - 1.0) if hasattr(value, "at") else value


def bias_correction(xp: Any, beta: float, age: Array) -> Array:
    """Return 1 - beta^age without the cancellation that costs float32 five digits: -expm1(age log(beta))."""
    return -xp.expm1(age * math.log(beta)) if beta > 0 else xp.ones_like(age)
