"""The shared operations: each body, in plain array API, defines what the operation computes.

Every operation takes `ctx` first (see `xpnet.kernels.context`) and gets memory only from `ctx.empty` and `into`.
`kernels/` may define a twin: a faster version for one library, with the same name and signature, tested against
the body.

`into` maps parameter names to views of the flat gradient that a twin may write to; it is empty where writing is
not allowed. The returned gradients count. Operations do not write to their arguments, except that a twin may
overwrite what the step no longer needs: the flag, the counters and the sums; the gradient, where it is modified;
and, in an optimizer, the weights and slots, if no update can overflow (`never_overflows`).
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
    """Return a b over the last two axes; under a mixed policy the factors are first rounded to 16 bits.

    a and b are rounded to `backend.narrow`; their products accumulate in the model's dtype.
    """
    if ctx.backend.narrow is None:
        return ctx.xp.matmul(a, b)
    return ctx.xp.matmul(_narrowed(ctx, a), _narrowed(ctx, b))


def _narrowed(ctx: Any, a: Array) -> Array:
    """Round float32 numbers to `backend.narrow`; return them as float32.

    If the library has no bfloat16, which keeps 8 of float32's 24 bits, this is c - (c - a) with c = (2^16 + 1) a
    (T. Dekker, "A floating-point technique for extending the available precision", 1971).
    """
    xp, narrow = ctx.xp, getattr(ctx.xp, ctx.backend.narrow, None)
    if narrow is not None:
        return xp.astype(xp.astype(a, narrow), a.dtype)
    c = 65537.0 * a
    return c - (c - a)


def affine(ctx: Any, x: Array, kernel: Array, bias: Array | None, activation: Any) -> tuple[Array, Backward]:
    """Return y = f(x W + b) and its backward.

    Args:
        x: shape (..., rows, in). kernel: (..., in, units). bias: (..., units) or None.
        activation: f, an `xpnet.activations.Activation`.

    With dz = f'(z) dy:  dW = x^T dz,  db = sum over rows of dz,  dx = dz W^T.
    """
    xp, product = ctx.xp, ctx.ops.product
    rows = x if x.ndim <= kernel.ndim else xp.reshape(x, (*kernel.shape[:-2], -1, x.shape[-1]))
    z = product(ctx, rows, kernel)
    if bias is not None:
        z = z + xp.expand_dims(bias, axis=-2)  # equal ranks: JAX can be set to refuse others
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
    """Return y = f(x) and the function from dy to dx = f'(x) dy. Args: activation: f, see `affine`."""
    xp = ctx.xp
    y = activation.forward(xp, x)
    return y, lambda dy: activation.backward(xp, dy, x, y)


def dropout(ctx: Any, x: Array, keep: Array, rate: float) -> tuple[Array, Callable[[Array], Array]]:
    """Return y = x / (1 - rate) where the boolean mask `keep` is set, else 0, and the function from dy to dx.

    dx = dy / (1 - rate) where `keep` is set, else 0. This "inverted" dropout (N. Srivastava et al., JMLR 15, 2014)
    preserves the mean, so inference needs no factor.
    """
    xp = ctx.xp
    mask = xp.astype(keep, x.dtype) * (1.0 / (1.0 - rate))
    return x * mask, lambda dy: dy * mask


def batch_norm(
    ctx: Any, x: Array, gamma: Array | None, beta: Array | None, axes: tuple[int, ...], epsilon: float
) -> tuple[Array, Array, Array, Backward]:
    """Return y = gamma * xh + beta with xh = (x - mean) / sqrt(var + epsilon); mean and (biased) var over `axes`.

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
    """Return labels as one-hot rows, shape labels.shape + (classes,); NaN for a label outside [0, classes)."""
    xp = ctx.xp
    every = xp.arange(classes, dtype=labels.dtype, device=ctx.backend.device)
    every = xp.reshape(every, (*(1,) * labels.ndim, classes))
    labels = xp.expand_dims(labels, axis=-1)
    hot = xp.astype(labels == every, dtype)
    return xp.where((labels >= 0) & (labels < classes), hot, xp.full_like(hot, math.nan))


def softmax_cross_entropy(ctx: Any, z: Array, target: Array, weight: Any) -> tuple[Array, Array, Array]:
    """Return -sum(t * log(a)) over the last axis, its derivative by z times `weight`, and a = softmax(z).

    Args:
        z: scores, shape (..., classes). target: t, probabilities of the same shape or integer labels (...); an
            invalid label gives NaN. weight: shape (...), or a number.

    log(a) = z - max - log(sum(exp(z - max))), which can't overflow.  dz = a * sum(t) - t, which is a - t
    if t sums to one. A score of -inf gives a = 0 and adds nothing where t is 0 (0 log 0 = 0); a score of
    +inf makes the softmax NaN.
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
    """Return 1 for each row whose first maximum is at the target, else 0, in the dtype of p.

    Args:
        p: shape (..., classes). target: class numbers, shape (...).
    """
    xp = ctx.xp
    best = xp.argmax(p, axis=-1)
    return xp.astype(best == xp.astype(target, best.dtype), p.dtype)


def confusion(ctx: Any, target: Array, found: Array, weight: Array | None, classes: int) -> Array:
    """Return the confusion matrix: sums of row weights by (target, found), shape (classes, classes).

    Args:
        target, found: class numbers of the rows, int32, shape (n,); an invalid one makes all entries NaN.
        weight: shape (n,), or None for ones.
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

    Args:
        out: the flat array whose views were passed as `into`, and those views by path; or None.
    """
    return layout.pack(ctx.xp, parts)


def join(ctx: Any, parts: Sequence[Array]) -> Array:
    """Concatenate arrays of shape (..., size) along the last axis."""
    return ctx.xp.concat(list(parts), axis=-1)


def within_limits(ctx: Any, ok: Array, lr: Array, limit: float, flats: Sequence[Array], *others: Array) -> Array:
    """Return whether a step is accepted: a 0-d boolean array on the device.

    Args:
        ok: 0-d boolean, the result of earlier checks. lr: the learning rate, at most `LARGEST_RATE`.
        limit: upper bound of the norm of each flat array, shape (..., size). others: must be finite.

    The norms come from sums of squares; NaN and infinity fail the comparison.
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
    """Return step + 1 and age + 1, unchanged unless `ok`, and the sums plus a batch's, unchanged unless `counted`.

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
    """Return the sums plus those of a batch.

    Args:
        sums: shape (n,), or (2, n) with the rounding error of each sum in the second row.
        parts: pairs (value, factor) that together fill the n sums in order; a value is an array of any shape, or a
            number.

    The rounding error of t = s + a:  z = t - s,  e = (s - (t - z)) + (a - z)  (D. Knuth, "The art of computer
    programming", volume 2, section 4.2.2).
    """
    xp, old = ctx.xp, sums if sums.ndim == 1 else sums[0, ...]
    zero = xp.zeros_like(old[:1])  # adding it converts a value to the sums' dtype
    more = [zero + (a if isinstance(a, (int, float)) else xp.reshape(a, (-1,))) for a, _ in parts]
    more = ctx.ops.join(ctx, [a if factor == 1.0 else a * factor for a, (_, factor) in zip(more, parts)])
    if sums.ndim == 1:
        return sums + more
    lost = sums[1, ...]
    total = old + more
    part = total - old
    return xp.stack([total, lost + ((old - (total - part)) + (more - part))])


# Keras' values (`LossScaleOptimizer`); the largest scale keeps it finite
FIRST_SCALE, GOOD_STEPS, LARGEST_SCALE = 2.0**15, 2000.0, 2.0**24


def rescale(
    ctx: Any, ok: Array, alive: Array, step: Array, scale: Array, streak: Array
) -> tuple[Array, Array, Array, Array]:
    """Return whether training continues, the step count, the loss scale and the number of good steps in a row.

    Args:
        ok: 0-d boolean: whether the step was accepted; if so, `step` already counts it.
        alive: whether a rejected step lets training continue: its gradient may have overflowed 16 bits.
        scale, streak: 0-d. Such a step halves the scale (down to 1); `GOOD_STEPS` good ones in a row double it.

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
    """Return factor * g clipped to [-most, most]. Args: factor: 0-d, or None for 1."""
    xp = ctx.xp
    g = _scaled(g, factor)
    high = xp.full((), most, dtype=g.dtype, device=ctx.backend.device)
    return xp.minimum(xp.maximum(g, -high), high)


def clip_factor(ctx: Any, g: Array, most: float, factor: Array | None) -> Array:
    """Return the factor of g, shape (..., size), that clips the norm of factor * g to `most`.

    f min(1, most / |f g|), where f is `factor` (0-d, or None for 1): R. Pascanu et al., "On the difficulty of
    training recurrent neural networks", ICML 2013. The result has the shape of `lr` if g has one dimension.
    """
    xp = ctx.xp
    norm = xp.sqrt(xp.vecdot(g, g))
    norm = xp.expand_dims(norm, axis=-1) if g.ndim > 1 else norm
    norm = _scaled(norm, factor)
    # not most / norm, which divides by zero if g is 0
    shrink = most / xp.maximum(norm, xp.full_like(norm, most))
    return _scaled(shrink, factor)


def clip_parts(ctx: Any, g: Array, most: float, factor: Array | None, slices: Sequence[slice]) -> Array:
    """Return factor * g with the norm of each part clipped to `most`, as in `clip_factor`.

    Args:
        slices: adjacent slices that make up g. factor: 0-d, or None for 1.
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
    """Return the new weights and slots of an optimizer's update (see `xpnet.optimizers`).

    Args:
        optimizer: has `numbers(xp, lr, age)` and `formula(xp)`, which returns
            `at(w, g, *slots, *numbers) -> (w', *slots')`.
        w, g: weights and gradient, shape (..., size). slots: the optimizer's slots, of the same shape or 0-d.
        lr, age: 0-d; `age` counts updates from 1.
        decay: first subtracts  lr decay w  from the weights ("decoupled weight decay": I. Loshchilov, F. Hutter,
            ICLR 2019); a number or a schedule.
        factor: 0-d and at most 1, or None: the gradient is first multiplied by it.
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


# The guard's limit of the norms of gradient and weights, by precision. With LARGEST_RATE and
# `never_overflows` it keeps every update and every moving average far from overflow.
MAX_NORM = {"float32": 1e18, "float64": 1e150}
LARGEST_RATE = 1e6


def never_overflows(beta: float, epsilon: float = 1.0, decay: Any = 0.0) -> bool:
    """Return whether an optimizer with these values maps norms within `MAX_NORM` to finite numbers.

    The largest update is LARGEST_RATE * 1e18 / epsilon, the largest decay LARGEST_RATE * decay * 1e18, the largest
    average or sum 1e18^2 / (1 - beta). A `factor`, at most 1, makes none of them larger.
    """
    return beta <= 0.9999 and epsilon >= 1e-10 and getattr(decay, "bound", decay) <= 1e3


def at_age(xp: Any, value: Any, age: Array) -> Any:
    """Return a number, or a schedule's value for the update of that age (which counts from 1)."""
    return value.at(xp, age - 1.0) if hasattr(value, "at") else value


def bias_correction(xp: Any, beta: float, age: Array) -> Array:
    """Return 1 - beta^age as -expm1(age log(beta)), without the cancellation that costs float32 five digits."""
    return -xp.expm1(age * math.log(beta)) if beta > 0 else xp.ones_like(age)


def over_rows(xp: Any, weight: Array, shape: tuple[int, ...]) -> Array:
    """Broadcast weights of the leading axes, such as (batch,), to a shape (batch, ...)."""
    while weight.ndim < len(shape):
        weight = xp.expand_dims(weight, axis=-1)
    return xp.broadcast_to(weight, shape)


def columns(xp: Any, weight: Any) -> Any:
    """Return per-row weights with a trailing axis of length 1; a number unchanged."""
    return weight if isinstance(weight, float) else xp.expand_dims(weight, axis=-1)
