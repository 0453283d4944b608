"""Loops for the NumPy twins, compiled by numba (the extra `fast`): one pass over memory where NumPy takes many.

Each loop stands for a kernel or a few calls of `kernels/numpy.py` and gives the same but for rounding. The first
use on a machine compiles it, which takes a second or two; numba keeps the result on disk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import numpy as twins
from .jit import loop
from .threads import in_parts

Array = np.ndarray

SMALL = 1 << 13  # scores up to which a loop beats NumPy's vector instructions for exp


def affine(ctx: Any, x: Array, kernel: Array, bias: Array | None, activation: Any) -> Any:
    """Twin of `ops.affine`: bias and ReLU in one pass; ReLU's backward and the bias gradient in another."""
    plain = ctx.inplace and x.ndim == kernel.ndim == 2 and not ctx.backend.narrow
    if not plain or bias is None or activation.name != "relu":
        return twins.affine(ctx, x, kernel, bias, activation)
    y = twins.product(ctx, x, kernel, ctx.empty((x.shape[0], kernel.shape[1])))
    ctx.launch(_add_bias_relu, y, bias)

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        dz, db = ctx.empty(y.shape), twins.room_for(ctx, into, "bias", bias)
        ctx.launch(_relu_backward, dy, y, dz, db)
        return twins.gradients(ctx, x, kernel, dz, db, into, want_dx)

    return y, backward


@loop
def _add_bias_relu(z: Array, bias: Array) -> None:
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            s = z[i, j] + bias[j]
            z[i, j] = bias.dtype.type(0) if s <= 0 else s  # NaN stays


@loop
def _relu_backward(dy: Array, y: Array, dz: Array, db: Array) -> None:
    db[:] = 0
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            d = dy[i, j] * db.dtype.type(y[i, j] > 0)
            dz[i, j] = d
            db[j] += d


def softmax_cross_entropy(ctx: Any, z: Array, target: Array, weight: Any) -> tuple[Array, Array, Array]:
    """Twin of `ops.softmax_cross_entropy`, for few scores."""
    if not ctx.inplace or z.ndim != 2 or target.ndim != 1 or not isinstance(weight, float) or z.size > SMALL:
        return twins.softmax_cross_entropy(ctx, z, target, weight)
    a, dz, values = ctx.empty(z.shape), ctx.empty(z.shape), ctx.empty(z.shape[:1])
    ctx.launch(_softmax_cross_entropy, z, target, z.dtype.type(weight), a, dz, values)
    return values, dz, a


@loop
def _softmax_cross_entropy(z: Array, target: Array, weight: Any, a: Array, dz: Array, values: Array) -> None:
    for i in range(z.shape[0]):
        top = z[i, 0]
        for j in range(1, z.shape[1]):
            top = max(top, z[i, j])
        total = z.dtype.type(0)
        for j in range(z.shape[1]):
            a[i, j] = math.exp(z[i, j] - top)
            total += a[i, j]
        for j in range(z.shape[1]):
            a[i, j] /= total
            dz[i, j] = a[i, j] * weight
        k = target[i]
        dz[i, k] -= weight
        values[i] = math.log(total) - (z[i, k] - top)


def dropout(ctx: Any, x: Array, keep: Array, rate: float) -> Any:
    """Twin of `ops.dropout`: no mask in floating point."""
    if not ctx.inplace:
        return twins.dropout(ctx, x, keep, rate)
    scale, keep = x.dtype.type(1.0 / (1.0 - rate)), keep.reshape(-1)

    def masked(x: Array) -> Array:
        y = ctx.empty(x.shape)
        ctx.launch(_dropout, x.reshape(-1), keep, scale, y.reshape(-1))
        return y

    return masked(x), masked


@loop
def _dropout(x: Array, keep: Array, scale: Any, y: Array) -> None:
    for i in range(x.size):
        y[i] = x[i] * (keep[i] * scale)


# Optimizers, simplest first. Their loops take, in the precision of the weights, the rate of this update, what the
# gradient is multiplied with (f), and what share of the weights decays (shrink).


def _at_rate(loop: Any, lr: Array, decay: float, factor: Any, arrays: Sequence[Array], *numbers: Any) -> None:
    real = arrays[0].dtype.type
    f, shrink = real(1.0 if factor is None else factor), real(lr * decay)
    in_parts(loop, real(lr), arrays, *numbers, f, shrink)


def sgd(
    ctx: Any,
    w: Array,
    g: Array,
    slots: Any,
    lr: Any,
    momentum: float,
    nesterov: bool,
    decay: float = 0.0,
    factor: Any = None,
) -> Any:
    """Twin of `ops.sgd`, in one pass."""
    if not twins.in_place(ctx, w, momentum, 1.0, decay):
        return twins.sgd(ctx, w, g, slots, lr, momentum, nesterov, decay, factor)
    given = (lr, decay, factor, (w, g, *slots))
    if slots:
        ctx.launch(_at_rate, _sgd_momentum, *given, w.dtype.type(momentum), nesterov)
    else:
        ctx.launch(_at_rate, _sgd, *given)
    return w, slots


@loop
def _sgd(rate: Any, w: Array, g: Array, f: Any, shrink: Any) -> None:
    for i in range(w.size):
        w[i] -= rate * (f * g[i]) + shrink * w[i]


@loop
def _sgd_momentum(
    rate: Any, w: Array, g: Array, v: Array, momentum: Any, nesterov: bool, f: Any, shrink: Any
) -> None:
    for i in range(w.size):
        s = rate * (f * g[i])
        v[i] = momentum * v[i] - s
        w[i] += (momentum * v[i] - s if nesterov else v[i]) - shrink * w[i]


def momentum(
    ctx: Any, w: Array, g: Array, slots: Any, lr: Any, beta: float, decay: float = 0.0, factor: Any = None
) -> Any:
    """Twin of `ops.momentum`, in one pass."""
    if not twins.in_place(ctx, w, beta, 1.0, decay):
        return twins.momentum(ctx, w, g, slots, lr, beta, decay, factor)
    numbers = w.dtype.type(beta), w.dtype.type(1.0 - beta)
    ctx.launch(_at_rate, _momentum, lr, decay, factor, (w, g, *slots), *numbers)
    return w, slots


@loop
def _momentum(rate: Any, w: Array, g: Array, v: Array, keep: Any, add: Any, f: Any, shrink: Any) -> None:
    for i in range(w.size):
        v[i] = keep * v[i] + add * (f * g[i])
        w[i] -= rate * v[i] + shrink * w[i]


def rmsprop(
    ctx: Any,
    w: Array,
    g: Array,
    slots: Any,
    lr: Any,
    rho: float,
    epsilon: float,
    inside: bool,
    decay: float = 0.0,
    factor: Any = None,
) -> Any:
    """Twin of `ops.rmsprop`, in one pass."""
    if not twins.in_place(ctx, w, rho, epsilon, decay):
        return twins.rmsprop(ctx, w, g, slots, lr, rho, epsilon, inside, decay, factor)
    constants = [w.dtype.type(c) for c in (rho, 1.0 - rho, epsilon)]
    ctx.launch(_at_rate, _rmsprop, lr, decay, factor, (w, g, *slots), *constants, inside)
    return w, slots


@loop
def _rmsprop(
    rate: Any, w: Array, g: Array, s: Array, keep: Any, add: Any, epsilon: Any, inside: bool, f: Any, shrink: Any
) -> None:
    for i in range(w.size):
        slope = f * g[i]
        s[i] = keep * s[i] + add * (slope * slope)
        root = math.sqrt(s[i] + epsilon) if inside else math.sqrt(s[i]) + epsilon
        w[i] -= rate * slope / root + shrink * w[i]


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
    decay: float = 0.0,
    factor: Any = None,
) -> Any:
    """Twin of `ops.adam`, in one pass."""
    if not twins.in_place(ctx, w, max(beta_1, beta_2), epsilon, decay):
        return twins.adam(ctx, w, g, slots, lr, age, beta_1, beta_2, epsilon, corrected, decay, factor)
    constants = [w.dtype.type(c) for c in (beta_1, 1.0 - beta_1, beta_2, 1.0 - beta_2, twins.smallest(w.dtype))]
    numbers = (constants, beta_1, beta_2, epsilon, corrected, decay, factor)
    ctx.launch(_adam_update, w, g, *slots, lr, age, *numbers)
    return w, slots


def _adam_update(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    lr: Array,
    age: Array,
    constants: list[Any],
    beta_1: float,
    beta_2: float,
    epsilon: float,
    corrected: bool,
    decay: float,
    factor: Array | None,
) -> None:
    rate, epsilon = twins.rate_and_epsilon(lr, age, beta_1, beta_2, epsilon, corrected)
    real = w.dtype.type
    f, shrink = real(1.0 if factor is None else factor), real(lr * decay)
    in_parts(_adam, real(rate), (w, g, m, v), real(epsilon), *constants, f, shrink)


@loop
def _adam(
    rate: Any,
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    epsilon: Any,
    b1: Any,
    a1: Any,
    b2: Any,
    a2: Any,
    small: Any,
    f: Any,
    shrink: Any,
) -> None:
    zero = rate - rate
    for i in range(w.size):
        slope = f * g[i]
        mean = b1 * m[i] + a1 * slope
        square = b2 * v[i] + a2 * (slope * slope)
        m[i] = mean if abs(mean) > small else zero
        v[i] = square if square > small else zero
        w[i] -= rate * m[i] / (math.sqrt(v[i]) + epsilon) + shrink * w[i]
