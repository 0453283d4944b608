"""Loops for the NumPy twins, compiled by numba (the extra `fast`): one pass over memory where NumPy takes many.

Each loop stands for a kernel or a few calls of `kernels/host/numpy.py` and gives the same but for rounding. The
first use on a machine compiles it, which takes a second or two; numba keeps the result on disk.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from ...core import ops
from ...fusion.loops import loop_of
from ...fusion.numbers import numbers_of
from ...fusion.update import fading
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


def update(
    ctx: Any,
    optimizer: Any,
    w: Array,
    g: Array,
    slots: tuple[Array, ...],
    lr: Any,
    age: Any,
    decay: float = 0.0,
    factor: Any = None,
) -> Any:
    """Twin of `ops.update`, in one pass; what writes over weights and slots is put off to the end of the step."""
    graph = twins.fused(ctx, optimizer, w, slots, decay, factor)
    if graph is None:
        return ops.update(ctx, optimizer, w, g, slots, lr, age, decay, factor)
    old = (w, *slots)
    over = ctx.overwrite and optimizer.never_overflows
    new = old if over else twins.own_memory(ctx, old)
    made = loop_of(graph, twins.homes(graph, over), fading(graph) if over else (), loop)
    arrays = (w, g, *slots, *(() if over else new))
    _compile(made, w.dtype, len(arrays))
    found = numbers_of(graph)
    small = twins.smallest(w.dtype)
    numbers = np.array([*[0.0] * len(found.changing), *found.fixed.values(), small], w.dtype)
    ctx.launch(_work_out, found.work_out, lr, age, factor, numbers)
    if over:
        ctx.later_in_parts(made, numbers, arrays)
    else:
        ctx.launch(made, numbers, *arrays)
    return new[0], tuple(new[1:])


def _work_out(work_out: Any, lr: Any, age: Any, factor: Any, numbers: Array) -> None:
    values = work_out(float(lr), float(age), 1.0 if factor is None else float(factor))
    numbers[: len(values)] = values


@lru_cache
def _compile(made: Any, dtype: Any, arrays: int) -> None:
    """Compile a loop before it is first put off: what ends a step must be C code."""
    made(*(np.ones(16, dtype) for _ in range(1 + arrays)))
