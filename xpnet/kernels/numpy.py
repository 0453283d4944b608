"""NumPy twins: the same results with `out=`, in buffers that live from step to step.

Without an arena (`ctx.inplace` is False: inference, a part used alone) the bodies do the work.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ops

Array = np.ndarray

BLOCK = 1 << 15  # elements of an optimizer's pass that stay in the cache together
FLUSH = 64  # updates between two looks for numbers that are about to become subnormal


def affine(ctx: Any, x: Array, kernel: Array, bias: Array | None, activation: Any) -> Any:
    """Twin of `ops.affine`: gradients are written straight into the flat gradient."""
    if not ctx.inplace or x.ndim != 2 or kernel.ndim != 2:
        return ops.affine(ctx, x, kernel, bias, activation)
    z = np.matmul(x, kernel, out=ctx.empty((x.shape[0], kernel.shape[1])))
    if bias is not None:
        z += bias
    forward, backward_of = _ACTIVATIONS.get(activation.name, (None, None))
    y = activation.forward(np, z) if forward is None else forward(z)

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        if backward_of is None:
            dz = activation.backward(np, dy, z, y)
        else:
            dz = backward_of(ctx, dy, y)
        room = into["kernel"] if "kernel" in into else ctx.empty(kernel.shape)
        grads = {"kernel": np.matmul(x.T, dz, out=room)}
        if bias is not None:
            room = into["bias"] if "bias" in into else ctx.empty(bias.shape)
            grads["bias"] = np.add.reduce(dz, axis=0, out=room)
        return (np.matmul(dz, kernel.T, out=ctx.empty(x.shape)) if want_dx else None), grads

    return y, backward


# Activations whose derivative needs only their output: z's memory is used again for a = f(z).


def _relu(z: Array) -> Array:
    return np.maximum(z, 0.0, out=z)


def _relu_backward(ctx: Any, da: Array, a: Array) -> Array:
    keep = np.greater(a, 0.0, out=ctx.empty(a.shape, np.bool))
    return np.multiply(da, keep, out=ctx.empty(a.shape))


def _tanh(z: Array) -> Array:
    return np.tanh(z, out=z)


def _tanh_backward(ctx: Any, da: Array, a: Array) -> Array:
    slope = np.multiply(a, a, out=ctx.empty(a.shape))
    np.subtract(1.0, slope, out=slope)
    return np.multiply(slope, da, out=slope)


def _sigmoid_backward(ctx: Any, da: Array, a: Array) -> Array:
    slope = np.subtract(1.0, a, out=ctx.empty(a.shape))
    slope *= a
    return np.multiply(slope, da, out=slope)


def _sigmoid(z: Array) -> Array:
    e = np.exp(-np.abs(z))
    return np.divide(np.where(z >= 0, np.ones_like(e), e), e + 1.0, out=z)


_ACTIVATIONS = {
    "relu": (_relu, _relu_backward),
    "tanh": (_tanh, _tanh_backward),
    "sigmoid": (_sigmoid, _sigmoid_backward),
    "linear": (lambda z: z, lambda ctx, da, a: da),
}


def dropout(ctx: Any, x: Array, keep: Array, rate: float) -> Any:
    """Twin of `ops.dropout`."""
    if not ctx.inplace:
        return ops.dropout(ctx, x, keep, rate)
    scale = x.dtype.type(1.0 / (1.0 - rate))
    mask = np.multiply(keep, scale, out=ctx.empty(x.shape))
    y = np.multiply(x, mask, out=ctx.empty(x.shape))
    return y, lambda dy: np.multiply(dy, mask, out=ctx.empty(x.shape))


def softmax_cross_entropy(ctx: Any, z: Array, target: Array, weight: Any) -> tuple[Array, Array, Array]:
    """Twin of `ops.softmax_cross_entropy`, for class numbers; one-hot targets go to the body."""
    if not ctx.inplace or z.ndim != 2 or target.ndim != 1:
        return ops.softmax_cross_entropy(ctx, z, target, weight)
    rows = np.arange(z.shape[0])
    a = np.subtract(z, np.maximum.reduce(z, axis=-1, keepdims=True), out=ctx.empty(z.shape))
    picked = a[rows, target]
    np.exp(a, out=a)
    total = np.add.reduce(a, axis=-1, keepdims=True)
    a /= total
    dz = ctx.empty(z.shape)
    np.copyto(dz, a)
    dz[rows, target] -= 1.0
    dz *= weight if isinstance(weight, float) else weight[:, None]
    return np.log(total[:, 0]) - picked, dz, a


def pack(ctx: Any, layout: Any, parts: dict[str, Array], room: Any) -> Array:
    """Twin of `ops.pack`: copies only what is not in its place already."""
    if room is None:
        return ops.pack(ctx, layout, parts, room)
    flat, views = room
    for path, part in parts.items():
        if part is not views[path]:
            views[path][...] = part
    return flat


def penalize(ctx: Any, w: Array, g: Array, segments: Any) -> tuple[Any, Array]:
    """Twin of `ops.penalize`, in the gradient's own memory."""
    if not ctx.inplace or w.ndim != 1:
        return ops.penalize(ctx, w, g, segments)
    value = w.dtype.type(0.0)
    for start, stop, l1, l2 in segments:
        part, slope = w[start:stop], g[start:stop]
        if l1:
            value += w.dtype.type(l1) * np.add.reduce(np.abs(part))
            slope += l1 * np.sign(part)
        if l2:
            value += w.dtype.type(l2) * np.dot(part, part)
            slope += (2.0 * l2) * part
    return value, g


def finite(ctx: Any, *arrays: Array) -> Any:
    """Twin of `ops.finite`: a finite sum of squares shows it in one pass; otherwise look closely."""
    for a in arrays:
        if a.ndim == 0:
            sound = math.isfinite(a)
        else:
            flat = a if a.ndim == 1 else a.reshape(-1)
            sound = math.isfinite(np.dot(flat, flat))
            if not sound:
                ctx.calm[0] = None
                sound = np.isfinite(flat).all()
        if not sound:
            return np.False_
    return np.True_


# Optimizers. Where nothing in an update can overflow, it is done in place. Otherwise the body does it, which
# leaves weights and slots as they were, because the guard may hold the update back.


def _calm(ctx: Any, w: Array, g: Array, slots: Any, lr: Any, epsilon: float = 1.0, decay: float = 0.0) -> bool:
    """Return whether this update can't overflow.

    If the sums of squares of gradient (seen by `finite` in this step), weights and slots are finite, then no
    element is beyond 1.8e19 (float32), slots that are moving averages stay so, and with these bounds on rate,
    epsilon and decay no update is beyond 1e36.
    """
    if not (ctx.inplace and w.ndim == 1 and lr <= 1e6 and epsilon >= 1e-10 and decay <= 0.9999):
        return False
    if ctx.calm[0] is not w:
        ctx.calm[0] = w if all(math.isfinite(np.dot(a, a)) for a in (w, g, *slots)) else None
    return ctx.calm[0] is w


def sgd(ctx: Any, w: Array, g: Array, slots: Any, lr: Any, momentum: float, nesterov: bool) -> Any:
    """Twin of `ops.sgd`."""
    if not _calm(ctx, w, g, slots, lr, decay=momentum):
        return ops.sgd(ctx, w, g, slots, lr, momentum, nesterov)
    step = np.multiply(g, lr, out=ctx.empty(w.shape))
    if not slots:
        return np.subtract(w, step, out=w), ()
    (v,) = slots
    v *= momentum
    v -= step
    if nesterov:
        w -= step
        np.multiply(v, momentum, out=step)
        return np.add(w, step, out=w), slots
    return np.add(w, v, out=w), slots


def momentum(ctx: Any, w: Array, g: Array, slots: Any, lr: Any, beta: float) -> Any:
    """Twin of `ops.momentum`."""
    if not _calm(ctx, w, g, slots, lr):
        return ops.momentum(ctx, w, g, slots, lr, beta)
    (v,) = slots
    scratch = ctx.empty(w.shape)
    v *= beta
    v += np.multiply(g, 1.0 - beta, out=scratch)
    return np.subtract(w, np.multiply(v, lr, out=scratch), out=w), slots


def rmsprop(ctx: Any, w: Array, g: Array, slots: Any, lr: Any, rho: float, epsilon: float, inside: bool) -> Any:
    """Twin of `ops.rmsprop`, block by block."""
    if not _calm(ctx, w, g, slots, lr, epsilon, rho):
        return ops.rmsprop(ctx, w, g, slots, lr, rho, epsilon, inside)
    scratch = ctx.empty((min(w.size, BLOCK),))
    for wb, gb, s in _blocks(w, g, slots[0]):
        t = scratch[: wb.size]
        s *= rho
        np.multiply(gb, gb, out=t)
        t *= 1.0 - rho
        s += t
        if inside:
            np.add(s, epsilon, out=t)
            np.sqrt(t, out=t)
        else:
            np.sqrt(s, out=t)
            t += epsilon
        np.divide(gb, t, out=t)
        t *= lr
        wb -= t
    return w, slots


def adam(
    ctx: Any,
    w: Array,
    g: Array,
    slots: Any,
    lr: Any,
    age: Any,
    beta_1: float,
    beta_2: float,
    epsilon: float,
    corrected: bool,
) -> Any:
    """Twin of `ops.adam`, block by block."""
    if not _calm(ctx, w, g, slots, lr, epsilon, beta_2):
        return ops.adam(ctx, w, g, slots, lr, age, beta_1, beta_2, epsilon, corrected)
    root2 = math.sqrt(_bias_correction(beta_2, float(age)))
    rate = float(lr) * root2 / _bias_correction(beta_1, float(age))
    epsilon = epsilon * root2 if corrected else epsilon
    scratch = ctx.empty((min(w.size, BLOCK),))
    flush = age % FLUSH == 0
    for wb, gb, m, v in _blocks(w, g, *slots):
        t = scratch[: wb.size]
        if flush:
            _flush(m, t)
            _flush(v, t)
        m *= beta_1
        m += np.multiply(gb, 1.0 - beta_1, out=t)
        v *= beta_2
        np.multiply(gb, gb, out=t)
        t *= 1.0 - beta_2
        v += t
        np.sqrt(v, out=t)
        t += epsilon
        np.divide(m, t, out=t)
        t *= rate
        wb -= t
    return w, slots


def _flush(slot: Array, scratch: Array) -> None:
    """Set what is far too small to matter to 0.

    The average of a gradient that has become 0 (a pixel that is never set, a ReLU that is dead) decays into
    the subnormal numbers and, rounded, stays there; each operation on one takes the processor a hundred cycles.
    """
    small = np.less(np.abs(slot, out=scratch), 1e8 * np.finfo(slot.dtype).tiny)
    np.copyto(slot, 0, where=small)


def _bias_correction(beta: float, age: float) -> float:
    return -math.expm1(age * math.log(beta)) if beta > 0 else 1.0


def _blocks(*arrays: Array) -> list[tuple[Array, ...]]:
    size = arrays[0].size
    if size <= BLOCK:
        return [arrays]
    return [tuple(a[start : start + BLOCK] for a in arrays) for start in range(0, size, BLOCK)]
