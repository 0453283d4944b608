"""Loops for the NumPy twins, compiled by numba (the extra `fast`): one pass over memory where NumPy needs several.

Each loop replaces a kernel or a few calls of `kernels/host/numpy.py`, with the same results up to rounding.
`fusion.loops` writes those for formulas. When a loop is first used on a machine, compilation takes a second or
two; numba caches the result on disk.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from ...core import ops
from ...fusion.activation import Z, activation_graphs
from ...fusion.loops import activation_source, derivative_source, loop_of, update_source
from ...fusion.numbers import numbers_of
from ...fusion.trace import Graph
from ...fusion.update import fading
from . import numpy as twins
from .calls import compute, filled
from .jit import loop
from .norms import normalize as normalize

Array = np.ndarray

MAX_LOOP_SCORES = 1 << 13  # scores up to which a loop beats NumPy's vector instructions for exp


def affine(ctx: Any, x: Array, kernel: Array, bias: Array | None, activation: Any) -> Any:
    """Twin of `ops.affine`: bias and activation in one pass, derivative and bias gradient in another.

    Each pass is a loop generated from a formula if that is faster than NumPy's calls (see `_is_faster`).
    """
    plain = ctx.inplace and x.ndim == kernel.ndim == 2 and not ctx.backend.narrow
    graphs = activation_graphs(activation) if plain and bias is not None else None
    if bias is None or graphs is None or not any(map(_is_faster, graphs)):
        return twins.affine(ctx, x, kernel, bias, activation)
    forward, derivative = graphs
    z = twins.product_into(ctx, x, kernel, ctx.empty((x.shape[0], kernel.shape[1])))
    y = _activated(ctx, forward, z, bias, Z in derivative.reads)

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        dy = dy if dy.dtype == z.dtype else np.astype(dy, z.dtype)
        db = twins.out_for(ctx, into, "bias", bias)
        dz = _pulled_back(ctx, derivative, (dy, z, y), db)
        return twins.gradients(ctx, x, kernel, dz, db, into, want_dx)

    return y, backward


@lru_cache(maxsize=256)
def _is_faster(graph: Graph) -> bool:
    """Return whether a loop beats NumPy's calls: not if these use vector instructions."""
    ops = {node.op for node in graph.nodes if node.is_operation and node.rank}
    return bool(ops) and not ops & {"exp", "expm1", "log", "log1p", "cos", "pow", "tanh", "erf"}


def _activated(ctx: Any, forward: Graph, z: Array, bias: Array, keep: bool) -> Array:
    """Return f(z + bias). Args: keep: whether z must hold z + bias afterwards."""
    if not _is_faster(forward):
        z += bias
        return compute(ctx, forward, (z,), None if keep else 0)
    y = ctx.empty(z.shape) if keep else z
    made = loop_of(loop, activation_source, forward, keep)
    ctx.launch(made, _numbers(forward, z.dtype), z, bias, *([y] if keep else []))
    return y


def _pulled_back(ctx: Any, derivative: Graph, arrays: tuple[Array, Array, Array], db: Array) -> Array:
    """Return dz, and write the sums of its columns to db. Args: arrays: dy, z and y."""
    if not _is_faster(derivative):
        dz = compute(ctx, derivative, arrays, None)
        np.dot(filled((len(dz),), 1.0, dz.dtype), dz, out=db)
        return dz
    dz = ctx.empty(arrays[0].shape)
    made = loop_of(loop, derivative_source, derivative)
    ctx.launch(made, _numbers(derivative, dz.dtype), *(arrays[k] for k in sorted(derivative.reads)), dz, db)
    return dz


@lru_cache(maxsize=256)
def _numbers(graph: Graph, dtype: Any) -> Array:
    """Return the numbers that the elements of a graph without number arguments read."""
    return np.array(list(numbers_of(graph).fixed.values()), dtype)


def softmax_cross_entropy(ctx: Any, z: Array, target: Array, weight: Any) -> tuple[Array, Array, Array]:
    """Twin of `ops.softmax_cross_entropy` for few scores."""
    if (
        not ctx.inplace
        or z.ndim != 2
        or target.ndim != 1
        or not isinstance(weight, float)
        or z.size > MAX_LOOP_SCORES
    ):
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
    if not ctx.inplace or keep.shape != x.shape:
        return twins.dropout(ctx, x, keep, rate)
    scale, keep = x.dtype.type(1.0 / (1.0 - rate)), keep.reshape(-1)

    def masked(x: Array) -> Array:
        y = ctx.empty(x.shape)
        ctx.launch(_dropout, np.reshape(x, (-1,)), keep, scale, y.reshape(-1))  # x may be a part of an array
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
    """Twin of `ops.update`, in one pass; a call that overwrites weights and slots is deferred."""
    graph = twins.fused(ctx, optimizer, w, slots, decay, factor)
    if graph is None:
        return ops.update(ctx, optimizer, w, g, slots, lr, age, decay, factor)
    old = (w, *slots)
    over = ctx.overwrite and optimizer.never_overflows
    new = old if over else twins.own_memory(ctx, old)
    made = loop_of(loop, update_source, graph, twins.homes(graph, over), fading(graph) if over else ())
    arrays = (w, g, *slots, *(() if over else new))
    _compile(made, w.dtype, len(arrays))
    found = numbers_of(graph)
    small = twins.smallest(w.dtype)
    numbers = np.array([*[0.0] * len(found.changing), *found.fixed.values(), small], w.dtype)
    ctx.launch(_work_out, found.work_out, lr, age, factor, numbers)
    if over:
        ctx.defer_in_parts(made, numbers, arrays)
    else:
        ctx.launch(made, numbers, *arrays)
    return new[0], tuple(new[1:])


def _work_out(work_out: Any, lr: Any, age: Any, factor: Any, numbers: Array) -> None:
    values = work_out(float(lr), float(age), 1.0 if factor is None else float(factor))
    numbers[: len(values)] = values


@lru_cache
def _compile(made: Any, dtype: Any, arrays: int) -> None:
    """Compile a loop before it is first deferred: the calls that end a step must be C code."""
    made(*(np.ones(16, dtype) for _ in range(1 + arrays)))
