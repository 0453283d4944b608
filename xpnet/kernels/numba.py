"""Loops for the NumPy twins, compiled by numba (the extra `fast`): one pass over memory where NumPy takes many.

Each loop stands for a kernel or a few calls of `kernels/numpy.py` and gives the same but for rounding. The first
use on a machine compiles it, which takes a second or two; numba keeps the result on disk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from . import numpy as twins
from .jit import loop

Array = np.ndarray

SMALL = 1 << 13  # scores up to which a loop beats NumPy's vector instructions for exp


def affine(ctx: Any, x: Array, kernel: Array, bias: Array | None, activation: Any) -> Any:
    """Twin of `ops.affine`: bias and ReLU in one pass; ReLU's backward and the bias gradient in another."""
    plain = ctx.inplace and x.ndim == kernel.ndim == 2 and not ctx.backend.narrow
    if not plain or bias is None or activation.name != "relu":
        return twins.affine(ctx, x, kernel, bias, activation)
    y = twins.product_into(ctx, x, kernel, ctx.empty((x.shape[0], kernel.shape[1])))
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
        if 0 <= k < z.shape[1]:
            dz[i, k] -= weight
            values[i] = math.log(total) - (z[i, k] - top)
        else:
            values[i] = math.nan


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


# Optimizers, simplest first. Their loops take, in the precision of the weights, numbers that a kernel works out at
# each update (first the rate, what the gradient is multiplied with, what share of the weights decays); what writes
# over weights and slots is put off to the end of the step.


def _update(
    ctx: Any,
    loop: Any,
    arrays: Sequence[Array],
    lr: Array,
    factor: Any,
    decay: float,
    constants: Sequence[float] = (),
    correction: Any = None,
) -> None:
    """Put off an optimizer's loop. Args: constants: its further numbers. correction: see `_numbers`."""
    _compile(loop, arrays[0].dtype, len(arrays))
    numbers = np.array((0.0, 1.0, 0.0, *constants), arrays[0].dtype)
    ctx.launch(_numbers, numbers, lr, factor, decay, correction)
    ctx.later_in_parts(loop, numbers, arrays)


@lru_cache
def _compile(loop: Any, dtype: Any, arrays: int) -> None:
    """Compile a loop before it is first put off: what ends a step must be C code."""
    loop(*(np.ones(16, dtype) for _ in range(1 + arrays)))


def _numbers(numbers: Array, lr: Array, factor: Any, decay: float, correction: Any) -> None:
    rate = float(lr)
    if factor is not None:
        numbers[1] = factor
    if decay:
        numbers[2] = rate * decay
    if correction is not None:  # Adam's, of the rate and of the first constant, epsilon
        rate, numbers[3] = twins.rate_and_epsilon(rate, *correction)
    numbers[0] = rate


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
    if slots:
        _update(ctx, _sgd_momentum, (w, g, *slots), lr, factor, decay, (momentum, nesterov))
    else:
        _update(ctx, _sgd, (w, g), lr, factor, decay)
    return w, slots


@loop
def _sgd(numbers: Array, w: Array, g: Array) -> None:
    rate, f, shrink = numbers[0], numbers[1], numbers[2]
    for i in range(w.size):
        w[i] -= rate * (f * g[i]) + shrink * w[i]


@loop
def _sgd_momentum(numbers: Array, w: Array, g: Array, v: Array) -> None:
    rate, f, shrink, momentum, nesterov = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4] != 0
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
    _update(ctx, _momentum, (w, g, *slots), lr, factor, decay, (beta, 1.0 - beta))
    return w, slots


@loop
def _momentum(numbers: Array, w: Array, g: Array, v: Array) -> None:
    rate, f, shrink, keep, add = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
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
    _update(ctx, _rmsprop, (w, g, *slots), lr, factor, decay, (epsilon, rho, 1.0 - rho, inside))
    return w, slots


@loop
def _rmsprop(numbers: Array, w: Array, g: Array, s: Array) -> None:
    rate, f, shrink, epsilon, keep, add = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]
    inside = numbers[6] != 0
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
    constants = (epsilon, beta_1, 1.0 - beta_1, beta_2, 1.0 - beta_2, twins.smallest(w.dtype))
    correction = (age, beta_1, beta_2, epsilon, corrected)
    _update(ctx, _adam, (w, g, *slots), lr, factor, decay, constants, correction)
    return w, slots


@loop
def _adam(numbers: Array, w: Array, g: Array, m: Array, v: Array) -> None:
    rate, f, shrink, epsilon = numbers[0], numbers[1], numbers[2], numbers[3]
    b1, a1, b2, a2, small = numbers[4], numbers[5], numbers[6], numbers[7], numbers[8]
    zero = rate - rate
    for i in range(w.size):
        slope = f * g[i]
        mean = b1 * m[i] + a1 * slope
        square = b2 * v[i] + a2 * (slope * slope)
        m[i] = mean if abs(mean) > small else zero
        v[i] = square if square > small else zero
        w[i] -= rate * m[i] / (math.sqrt(v[i]) + epsilon) + shrink * w[i]
