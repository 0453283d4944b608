"""The fused operations: each body, in plain array API, is the definition of what it computes.

Every operation takes `ctx` first (see `xpnet.kernels.context`) and memory from nowhere but `ctx.empty` and `into`.
`kernels/` may hold a faster twin of the same name and signature for one library, tested against the body.

`into`: views of the flat gradient that a twin may write to, by parameter name; empty where it may not. What
is returned is the truth. No operation writes into its arguments, except that twins may use up what a step will
not need again: the flag, the counters and the sums; the gradient, where it is changed; and an optimizer's the
weights and slots it is given, where no update can overflow (`never_overflows`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..backend import Array
from ..errors import InvalidValueError

__all__ = [
    "activate",
    "affine",
    "batch_norm",
    "clip_factor",
    "clip_parts",
    "clip_values",
    "confusion",
    "dropout",
    "hits",
    "join",
    "one_hot",
    "pack",
    "penalize",
    "product",
    "rescale",
    "row_total",
    "softmax_cross_entropy",
    "tally",
    "update",
    "within_limits",
]

Backward = Callable[..., tuple[Array, dict[str, Array]]]


def product(ctx: Any, a: Array, b: Array) -> Array:
    """Return a b over the last two axes; under a mixed policy of the backend, from factors rounded to 16 bits.

    What is rounded: a and b to `backend.narrow`. What is not: their products, which add up in the model's dtype.
    """
    if ctx.backend.narrow is None:
        return ctx.xp.matmul(a, b)
    return ctx.xp.matmul(_narrowed(ctx, a), _narrowed(ctx, b))


def _narrowed(ctx: Any, a: Array) -> Array:
    """Return float32 numbers rounded to `backend.narrow`, in float32.

    Where the library has no bfloat16, which keeps 8 of float32's 24 bits: with c = (2^16 + 1) a it is
    c - (c - a)  (T. Dekker, "A floating-point technique for extending the available precision", 1971).
    """
    xp, narrow = ctx.xp, getattr(ctx.xp, ctx.backend.narrow, None)
    if narrow is not None:
        return xp.astype(xp.astype(a, narrow), a.dtype)
    c = 65537.0 * a
    return c - (c - a)


def affine(ctx: Any, x: Array, kernel: Array, bias: Array | None, activation: Any) -> tuple[Array, Backward]:
    """y = f(x W + b), and its backward.

    Args:
        x: shape (..., rows, in). kernel: (..., in, units). bias: (..., units) or None.
        activation: f, an `xpnet.activations.Activation`.

    With dz = f'(z) dy:  dW = x^T dz,  db = sum over rows of dz,  dx = dz W^T.
    """
    xp, product = ctx.xp, ctx.ops.product
    rows = x if x.ndim <= kernel.ndim else xp.reshape(x, (*kernel.shape[:-2], -1, x.shape[-1]))
    z = product(ctx, rows, kernel)
    if bias is not None:
        z = z + xp.expand_dims(bias, axis=-2)  # of one rank: JAX may be told to refuse others
    y, back = ctx.ops.activate(ctx, z, activation)
    out_shape = (*x.shape[:-1], kernel.shape[-1])

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        dz = back(xp.reshape(dy, z.shape))
        grads = {"kernel": product(ctx, xp.matrix_transpose(rows), dz)}
        if bias is not None:
            grads["bias"] = xp.sum(dz, axis=-2)
        dx = xp.reshape(product(ctx, dz, xp.matrix_transpose(kernel)), x.shape) if want_dx else None
        return dx, grads

    return (y if x.ndim <= kernel.ndim else xp.reshape(y, out_shape)), backward


def activate(ctx: Any, x: Array, activation: Any) -> tuple[Array, Callable[[Array], Array]]:
    """y = f(x), and the function from dy to dx = f'(x) dy. Args: activation: f, see `affine`."""
    xp = ctx.xp
    y = activation.forward(xp, x)
    return y, lambda dy: activation.backward(xp, dy, x, y)


def dropout(ctx: Any, x: Array, keep: Array, rate: float) -> tuple[Array, Callable[[Array], Array]]:
    """y = x / (1 - rate) where the boolean mask `keep` is set, else 0; dx = dy / (1 - rate) there, else 0.

    "Inverted" dropout (N. Srivastava et al., JMLR 15, 2014): the mean is kept, so inference needs no factor.
    """
    xp = ctx.xp
    mask = xp.astype(keep, x.dtype) * (1.0 / (1.0 - rate))
    return x * mask, lambda dy: dy * mask


def batch_norm(
    ctx: Any, x: Array, gamma: Array | None, beta: Array | None, axes: tuple[int, ...], epsilon: float
) -> tuple[Array, Array, Array, Backward]:
    """y = gamma * xh + beta, xh = (x - mean) / sqrt(var + epsilon); mean and (biased) var over `axes`.

    S. Ioffe, C. Szegedy, ICML 2015. With n rows and dxh = gamma * dy:
    dx = (dxh - mean(dxh) - xh * mean(dxh * xh)) / sqrt(var + epsilon).

    Returns y, mean, var (without the reduced axes) and the backward.
    """
    xp = ctx.xp
    mean = xp.mean(x, axis=axes, keepdims=True)
    centred = x - mean
    var = xp.mean(centred * centred, axis=axes, keepdims=True)
    inverse = 1.0 / xp.sqrt(var + epsilon)
    xh = centred * inverse
    y = xh if gamma is None else xh * gamma
    y = y if beta is None else y + beta

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        grads = {}
        if gamma is not None:
            grads["gamma"] = xp.sum(dy * xh, axis=axes)
        if beta is not None:
            grads["beta"] = xp.sum(dy, axis=axes)
        if not want_dx:
            return None, grads
        dxh = dy if gamma is None else dy * gamma
        slope = xp.mean(dxh * xh, axis=axes, keepdims=True)
        return (dxh - xp.mean(dxh, axis=axes, keepdims=True) - xh * slope) * inverse, grads

    return y, xp.squeeze(mean, axis=axes), xp.squeeze(var, axis=axes), backward


def one_hot(ctx: Any, labels: Array, classes: int, dtype: Any) -> Array:
    """1 where the class is the label, else 0 (NaN for a label that is no class): labels.shape + (classes,)."""
    xp = ctx.xp
    every = xp.arange(classes, dtype=labels.dtype, device=ctx.backend.device)
    every = xp.reshape(every, (*(1,) * labels.ndim, classes))
    labels = xp.expand_dims(labels, axis=-1)
    hot = xp.astype(labels == every, dtype)
    return xp.where((labels >= 0) & (labels < classes), hot, xp.full_like(hot, math.nan))


def softmax_cross_entropy(ctx: Any, z: Array, target: Array, weight: Any) -> tuple[Array, Array, Array]:
    """Return -sum(t * log(a)) over the last axis, its derivative by z times `weight`, and a = softmax(z).

    Args:
        z: scores, shape (..., classes). target: t, probabilities of the same shape or integer labels (...); one
            that is no class gives NaN. weight: shape (...), or a number.

    With log(a) = z - max - log(sum(exp(z - max))) nothing overflows;  dz = a * sum(t) - t, which is a - t
    where t sums to one. A score of -inf gives a = 0, and costs nothing where t is 0 (0 log 0 = 0); with a score of
    +inf the softmax is NaN.
    """
    xp = ctx.xp
    sparse = target.ndim < z.ndim
    t = one_hot(ctx, target, z.shape[-1], z.dtype) if sparse else target
    shifted = z - xp.max(z, axis=-1, keepdims=True)
    e = xp.exp(shifted)
    total = xp.sum(e, axis=-1, keepdims=True)
    a = e / total
    values = -xp.sum(t * xp.where(t == 0, t, shifted - xp.log(total)), axis=-1)
    dz = a - t if sparse else a * xp.sum(t, axis=-1, keepdims=True) - t
    return values, dz * columns(xp, weight), a


def hits(ctx: Any, p: Array, target: Array) -> Array:
    """Return 1 where the first of the largest numbers of a row is at the target, else 0, in the dtype of p.

    Args:
        p: shape (..., classes). target: class numbers, shape (...).
    """
    xp = ctx.xp
    best = xp.argmax(p, axis=-1)
    return xp.astype(best == xp.astype(target, best.dtype), p.dtype)


def confusion(ctx: Any, target: Array, found: Array, weight: Array | None, classes: int) -> Array:
    """Return the sums of the weights of rows by class and predicted class, shape (..., classes, classes).

    Args:
        target, found: class numbers of the rows, int32, shape (..., n); one that is no class makes its matrix NaN.
        weight: shape (..., n), or None for ones.
    """
    xp = ctx.xp
    rows, columns = (one_hot(ctx, a, classes, ctx.dtype) for a in (target, found))
    rows = rows if weight is None else rows * xp.expand_dims(weight, axis=-1)
    return xp.matmul(xp.matrix_transpose(rows), columns)


def row_total(ctx: Any, values: Array, weight: Array | None, scale: float) -> Array:
    """Return scale * sum(values * weight), 0-d. Args: weight: the shape of `values`, or None for ones."""
    total = ctx.xp.sum(values if weight is None else values * weight)
    return total if scale == 1.0 else total * scale


def penalize(
    ctx: Any, w: Array, g: Array, segments: Sequence[tuple[int, int, float, float]]
) -> tuple[Array, Array]:
    """Return the penalty sum(l1 |w| + l2 w^2) over the segments, and g + its gradient l1 sign(w) + 2 l2 w."""
    xp, value, parts, done = ctx.xp, 0.0, [], 0
    for start, stop, l1, l2 in segments:
        part = w[..., start:stop]
        value = value + l1 * xp.sum(xp.abs(part)) + l2 * xp.sum(part * part)
        parts += [g[..., done:start], g[..., start:stop] + (l1 * xp.sign(part) + (2.0 * l2) * part)]
        done = stop
    return value, xp.concat([*parts, g[..., done:]], axis=-1)


def pack(ctx: Any, layout: Any, parts: dict[str, Array], out: tuple[Array, dict[str, Array]] | None) -> Array:
    """Return the gradients by path as one flat array, in the layout's order (see `xpnet.core.params`).

    `out` is the flat array whose views were offered as `into`, and those views by path; or None.
    """
    return layout.pack(ctx.xp, parts)


def join(ctx: Any, parts: Sequence[Array]) -> Array:
    """Return arrays of shape (..., size) as one, each behind the other."""
    return ctx.xp.concat(list(parts), axis=-1)


def within_limits(ctx: Any, ok: Array, lr: Array, limit: float, flats: Sequence[Array], *others: Array) -> Array:
    """Return whether a step may be taken: a 0-d boolean array, left on the device.

    Args:
        ok: 0-d boolean: whether all was well so far. lr: the learning rate, at most `LARGEST_RATE`.
        limit: of the norm of each of the flat arrays, shape (..., size). others: must be finite.

    By the sums of squares, which NaN and infinity spoil.
    """
    xp = ctx.xp
    result = ok & (lr <= LARGEST_RATE)
    for flat in flats:
        result = result & xp.all(xp.vecdot(flat, flat) <= limit * limit)
    for a in others:
        result = result & xp.all(xp.isfinite(a))
    return result


def tally(
    ctx: Any, ok: Array, counted: Array, step: Array, age: Array, sums: Array, parts: Sequence[Any]
) -> tuple[Array, Array, Array]:
    """Return step + 1 and age + 1, as they were unless `ok`, and the sums with a batch's added if it is `counted`.

    Args:
        ok, counted: 0-d boolean. step: see `next_count`. sums, parts: see `add_up`.
    """
    xp = ctx.xp
    return (
        xp.where(ok, next_count(xp, step), step),
        xp.where(ok, age + 1.0, age),
        xp.where(counted, add_up(ctx, sums, parts), sums),
    )


def next_count(xp: Any, step: Array) -> Array:
    """Return step + 1. Args: step: int64, 0-d; or its two words, uint32, shape (2,), the lower one first."""
    if step.ndim == 0:
        return step + 1
    low = step[0] + 1
    return xp.stack([low, step[1] + xp.astype(low == 0, step.dtype)])


def add_up(ctx: Any, sums: Array, parts: Sequence[tuple[Any, float]]) -> Array:
    """Return the sums with a batch's added.

    Args:
        sums: shape (n,), or (2, n) with what rounding has lost of each in the second row.
        parts: what is added to the sums, one part behind the other: pairs of an array of any shape (or a number)
            and the number by which it is multiplied first.

    What rounding loses:  t = s + a,  z = t - s,  e = (s - (t - z)) + (a - z)  (D. Knuth, "The art of computer
    programming", volume 2, section 4.2.2).
    """
    xp, old = ctx.xp, sums if sums.ndim == 1 else sums[0, ...]
    zero = xp.zeros_like(old[:1])  # to it all is added in the sums' dtype
    more = [zero + (a if isinstance(a, (int, float)) else xp.reshape(a, (-1,))) for a, _ in parts]
    more = ctx.ops.join(ctx, [a if factor == 1.0 else a * factor for a, (_, factor) in zip(more, parts)])
    if sums.ndim == 1:
        return sums + more
    lost = sums[1, ...]
    total = old + more
    part = total - old
    return xp.stack([total, lost + ((old - (total - part)) + (more - part))])


# Keras' numbers (`LossScaleOptimizer`), and a largest scale, so that none becomes infinite
FIRST_SCALE, GOOD_STEPS, LARGEST_SCALE = 2.0**15, 2000.0, 2.0**24


def rescale(
    ctx: Any, ok: Array, alive: Array, step: Array, scale: Array, streak: Array
) -> tuple[Array, Array, Array, Array]:
    """Return whether training goes on, the steps taken, the scale of the loss and the good steps in a row.

    Args:
        ok: 0-d boolean: whether the step was taken; if so, `step` counts it already.
        alive: whether a step that was not only costs itself: its gradient may have been too large for 16 bits.
        scale, streak: 0-d. A step that costs itself halves the scale (down to 1), `GOOD_STEPS` in a row double it.

    P. Micikevicius et al., "Mixed precision training", ICLR 2018.
    """
    xp = ctx.xp
    more = xp.where(ok, streak + 1.0, xp.zeros_like(streak))
    full = more >= GOOD_STEPS
    doubled = xp.where(full, xp.minimum(2.0 * scale, xp.full_like(scale, LARGEST_SCALE)), scale)
    halved = xp.maximum(0.5 * scale, xp.ones_like(scale))
    step = xp.where(ok | ~alive, step, next_count(xp, step))
    return ok | alive, step, xp.where(ok, doubled, halved), xp.where(full, xp.zeros_like(more), more)


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
        w, g: weights and gradient, shape (..., size). slots: what the optimizer keeps, of the same shape or 0-d.
        lr, age: 0-d; `age` counts updates from 1.
        decay: takes  lr decay w  away from the weights first ("decoupled weight decay": I. Loshchilov, F. Hutter,
            ICLR 2019); a number or a schedule.
        factor: 0-d and at most 1, or None: what the gradient is multiplied with first.
    """
    g = _scaled(g, factor)
    w = w - (lr * at_age(ctx.xp, decay, age)) * w if decay else w
    numbers = optimizer.numbers(ctx.xp, lr, age)
    new = optimizer.formula(ctx.xp)(w, g, *slots, *numbers)
    new = new if isinstance(new, (tuple, list)) else (new,)
    if len(new) != 1 + len(slots):
        raise InvalidValueError(
            f"the formula of {type(optimizer).__name__} must return the weights and {len(slots)} slots; got "
            f"{len(new)} arrays"
        )
    return new[0], tuple(new[1:])


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


def over_rows(xp: Any, weight: Array, shape: tuple[int, ...]) -> Array:
    """Return weights of the first axes, such as (batch,), broadcast to a shape (batch, ...)."""
    while weight.ndim < len(shape):
        weight = xp.expand_dims(weight, axis=-1)
    return xp.broadcast_to(weight, shape)


def columns(xp: Any, weight: Any) -> Any:
    """Return per-row weights so that they multiply rows of a last axis; a number as it is."""
    return weight if isinstance(weight, float) else xp.expand_dims(weight, axis=-1)
