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
from .updates import LARGEST_RATE, clip_factor, clip_parts, clip_values, update
from .updates import MAX_NORM as MAX_NORM  # what else bounds an update
from .updates import at_age as at_age
from .updates import averaged as averaged
from .updates import bias_correction as bias_correction
from .updates import if_due as if_due
from .updates import never_overflows as never_overflows

__all__ = [
    "activate",
    "affine",
    "clip_factor",
    "clip_parts",
    "clip_values",
    "confusion",
    "dropout",
    "hits",
    "join",
    "lookup",
    "normalize",
    "one_hot",
    "pack",
    "penalize",
    "product",
    "rescale",
    "row_total",
    "softmax_cross_entropy",
    "sum_rows",
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
        z = z + xp.expand_dims(bias, axis=-2)  # of one rank: JAX may be told to refuse others
    shape = z.shape
    y, back = ctx.ops.activate(ctx, z if rows is x else xp.reshape(z, (*x.shape[:-1], shape[-1])), activation)

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        dz = xp.reshape(back(dy), shape)
        grads = {"kernel": product(ctx, xp.matrix_transpose(rows), dz)}
        if bias is not None:
            grads["bias"] = xp.sum(dz, axis=-2)
        dx = xp.reshape(product(ctx, dz, xp.matrix_transpose(kernel)), x.shape) if want_dx else None
        return dx, grads

    return y, backward


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


def normalize(
    ctx: Any,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    axes: tuple[int, ...],
    epsilon: float,
    others: tuple[int, ...] | None = None,
    center: bool = True,
) -> tuple[Array, Array, Array, Backward]:
    """Return y = gamma * xh + beta with xh = (x - mean) / sqrt(var + epsilon); mean and (biased) var over `axes`.

    Args:
        x: the inputs. gamma, beta: broadcast with x; or None.
        others: the axes that gamma and beta do not have, over which their gradients add up; None: `axes`.
        center: whether the mean is subtracted. If not, var is the mean of the squares.

    With dxh = gamma * dy, and means over `axes` (S. Ioffe, C. Szegedy, ICML 2015, if `axes` are those of a batch):
    dx = (dxh - mean(dxh) - xh * mean(dxh * xh)) / sqrt(var + epsilon), without mean(dxh) if not `center`;
    dgamma = sum(dy * xh), dbeta = sum(dy) over `others`.

    Returns y, mean and var (which keep the reduced axes, of size 1) and the backward. With `others`, mean and var
    may be None: only statistics of batches are kept.
    """
    xp = ctx.xp
    others = axes if others is None else others
    mean = xp.mean(x, axis=axes, keepdims=True) if center else 0.0
    centred = x - mean if center else x
    var = xp.mean(centred * centred, axis=axes, keepdims=True)
    inverse = 1.0 / xp.sqrt(var + epsilon)
    xh = centred * inverse
    y = xh if gamma is None else xh * gamma
    y = y if beta is None else y + beta

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        grads = {}
        if gamma is not None:
            grads["gamma"] = xp.sum(dy * xh, axis=others)
        if beta is not None:
            grads["beta"] = xp.sum(dy, axis=others)
        if not want_dx:
            return None, grads
        dxh = dy if gamma is None else dy * gamma
        dx = dxh - xh * xp.mean(dxh * xh, axis=axes, keepdims=True)
        return (dx - xp.mean(dxh, axis=axes, keepdims=True) if center else dx) * inverse, grads

    return y, mean, var, backward


def one_hot(ctx: Any, labels: Array, classes: int, dtype: Any) -> Array:
    """Return labels as one-hot rows, shape labels.shape + (classes,); NaN for a label outside [0, classes)."""
    xp = ctx.xp
    every = xp.arange(classes, dtype=labels.dtype, device=ctx.backend.device)
    every = xp.reshape(every, (*(1,) * labels.ndim, classes))
    labels = xp.expand_dims(labels, axis=-1)
    hot = xp.astype(labels == every, dtype)
    return xp.where((labels >= 0) & (labels < classes), hot, xp.full_like(hot, math.nan))


def lookup(ctx: Any, table: Array, x: Array) -> tuple[Array, Callable[..., Array]]:
    """y = the rows x of a table, and the function from dy (and memory for the result) to the table's gradient.

    Args:
        table: shape (..., classes, size). x: class numbers, shape (..., n), in any real dtype; what is no integer
            from 0 to classes - 1 gives NaN.
    """
    xp, classes = ctx.xp, table.shape[-2]
    known = (x >= 0) & (x < classes) & (x == xp.floor(x))
    index = xp.astype(xp.where(known, x, xp.zeros_like(x)), xp.int32)
    if table.ndim == 2:
        y = xp.take(table, index, axis=0)
    else:
        every = xp.broadcast_to(xp.expand_dims(index, axis=-1), (*index.shape, table.shape[-1]))
        y = xp.take_along_axis(table, xp.astype(every, xp.int64), axis=-2)
    zero = xp.zeros_like(y[..., 0])
    y = y + xp.expand_dims(xp.where(known, zero, xp.full_like(zero, math.nan)), axis=-1)
    return y, lambda dy, out=None: ctx.ops.sum_rows(ctx, index, dy, classes, out)


def sum_rows(ctx: Any, index: Array, values: Array, count: int, out: Array | None = None) -> Array:
    """Return the sums of the rows that have the same index, shape (..., count, size).

    Args:
        index: int32, shape (..., n), each number from 0 to count - 1. values: shape (..., n, size).
        out: memory for the result, which a twin may use.

    By a product, for which n * count numbers are made.
    """
    hot = one_hot(ctx, index, count, values.dtype)
    return ctx.xp.matmul(ctx.xp.matrix_transpose(hot), values)


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
        more, slope = penalty(xp, w[..., start:stop], l1, l2)
        value = value + more
        parts += [g[..., done:start], g[..., start:stop] + slope]
        done = stop
    return value, xp.concat([*parts, g[..., done:]], axis=-1)


def penalty(xp: Any, a: Array, l1: float, l2: float) -> tuple[Array, Array]:
    """Return l1 sum(|a|) + l2 sum(a^2), 0-d, and its derivative  l1 sign(a) + 2 l2 a."""
    sign = xp.astype(a > 0, a.dtype) - xp.astype(a < 0, a.dtype)  # `xp.sign` waits for a GPU
    return l1 * xp.sum(xp.abs(a)) + l2 * xp.sum(a * a), l1 * sign + (2.0 * l2) * a


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


def over_rows(xp: Any, weight: Array, shape: tuple[int, ...]) -> Array:
    """Broadcast weights of the leading axes, such as (batch,), to a shape (batch, ...)."""
    while weight.ndim < len(shape):
        weight = xp.expand_dims(weight, axis=-1)
    return xp.broadcast_to(weight, shape)


def columns(xp: Any, weight: Any) -> Any:
    """Return per-row weights with a trailing axis of length 1; a number unchanged."""
    return weight if isinstance(weight, float) else xp.expand_dims(weight, axis=-1)
