"""CuPy twins: the same results by kernels of our own (`cuda_kernels.cu`), in buffers that live from step to step.

Nothing here waits for the device, copies from it, or depends on a value on it, so that a step can be captured
into a CUDA graph; what changes from step to step (learning rate, age, step) is handed on as an array. Without an
arena (`ctx.inplace` is False), and for shapes the kernels do not do, the bodies do the work.

The optimizers write weights and slots over where no update can overflow (`ops.never_overflows`), unless the
context's `gate` holds them back.

At the end stand kernels that belong to no operation: masks, batches and hits, made on the device.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .. import ops
from .blas import product

Array = Any  # a CuPy array

BLOCK = 256  # threads
GRID = 2048  # blocks at most where a kernel takes any number; more than a GPU has at work at a time
WARPS = (32, 8)  # the block of kernels that work by warps or add up columns
NULL = np.uintp(0)  # CuPy takes None for a pointer, but not for a null pointer

_STORED = {
    "float32": ("float", "float"),
    "float64": ("double", "double"),
    "float16": ("__half", "float", "<cuda_fp16.h>"),
    "bfloat16": ("__nv_bfloat16", "float", "<cuda_bf16.h>"),
    "int32": ("int", "int"),  # for `gather`
}
SOURCES = {
    "float32": "float",
    "float64": "double",
    "uint8": "unsigned char",
    "int32": "int",
    "int64": "long long",
}


@lru_cache
def _module(dtype: str, source: str | None = None) -> Any:
    """Return the kernels for arrays of a dtype; with `source` only `gather`, from that dtype."""
    import cupy

    macros = dict(zip(("XP_T", "XP_A", "XP_HEADER"), _STORED[dtype]))
    if source is not None:
        macros["XP_S"] = SOURCES[source]
    code = Path(__file__).with_name("cuda_kernels.cu").read_text(encoding="utf-8")
    return cupy.RawModule(code=code, options=tuple(f"-D{name}={value}" for name, value in macros.items()))


@lru_cache
def _kernel(name: str, dtype: str, source: str | None = None) -> Any:
    return _module(dtype, source).get_function(name)


def _over(n: int) -> tuple[tuple[int], tuple[int]]:
    """Return grid and block for n elements."""
    return (min(-(-n // BLOCK), GRID),), (BLOCK,)


def _by_warp(rows: int) -> tuple[tuple[int], tuple[int, int]]:
    """Return grid and block for a warp per row."""
    return (min(-(-rows // WARPS[1]), GRID),), WARPS


def _fit(ctx: Any, *arrays: Array) -> bool:
    """Return whether the kernels can take these arrays: contiguous, of the model's dtype; and write at all."""
    return ctx.inplace and all(a.dtype == ctx.dtype and a.flags.c_contiguous for a in arrays)


def _solid(ctx: Any, a: Array) -> Array:
    """Return a derivative as the kernels can take it."""
    if a.dtype == ctx.dtype and a.flags.c_contiguous:
        return a
    room = ctx.empty(a.shape)
    room[...] = a
    return room


# Layers ---------------------------------------------------------------------------------------------------

_KINDS = {"linear": 0, "relu": 1, "tanh": 2, "sigmoid": 3}  # activations whose derivative needs only their output


def affine(ctx: Any, x: Array, kernel: Array, bias: Array | None, activation: Any) -> Any:
    """Twin of `ops.affine`: bias and activation in one pass, derivative and bias gradient in another."""
    given = (x, kernel) if bias is None else (x, kernel, bias)
    if not (_fit(ctx, *given) and x.ndim == kernel.ndim == 2 and x.size and kernel.size):
        return ops.affine(ctx, x, kernel, bias, activation)
    rows, units = x.shape[0], kernel.shape[1]
    kind = _KINDS.get(activation.name)
    z = product(x, kernel, ctx.empty((rows, units)))
    if bias is not None or kind:
        args = (z, NULL if bias is None else bias, np.int32(rows), np.int32(units), np.int32(kind or 0))
        _kernel("bias_act", z.dtype.name)(*_over(z.size), args)
    y = z if kind is not None else activation.forward(ctx.xp, z)

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        if kind is None:
            dy = activation.backward(ctx.xp, dy, z, y)
        dy = _solid(ctx, dy)
        dz = ctx.empty(dy.shape) if kind else dy
        grads = {}
        if bias is not None:
            grads["bias"] = into["bias"] if "bias" in into else ctx.empty(bias.shape)
        if kind or grads:
            _act_backward(ctx, dy, y, dz if kind else NULL, grads.get("bias", NULL), kind or 0)
        grads["kernel"] = into["kernel"] if "kernel" in into else ctx.empty(kernel.shape)
        product(x.T, dz, grads["kernel"])
        return (product(dz, kernel.T, ctx.empty(x.shape)) if want_dx else None), grads

    return y, backward


def _act_backward(ctx: Any, dy: Array, y: Array, dz: Any, sums: Any, kind: int) -> None:
    """Write dz and the sums of its columns (NULL: not wanted), in chunks of rows if there are many rows."""
    (rows, units), dtype = dy.shape, dy.dtype.name
    across = -(-units // WARPS[0])
    chunks = max(1, min(rows // 256, GRID // across))
    partial = ctx.empty((chunks, units)) if chunks > 1 and sums is not NULL else sums
    sizes = (np.int32(rows), np.int32(units), np.int32(kind))
    _kernel("act_backward", dtype)((across, chunks), WARPS, (dy, y, dz, partial, *sizes))
    if partial is not sums:
        _kernel("column_sums", dtype)((across,), WARPS, (partial, sums, np.int32(chunks), np.int32(units)))


def dropout(ctx: Any, x: Array, keep: Array, rate: float) -> Any:
    """Twin of `ops.dropout`: no mask of floats."""
    if not (_fit(ctx, x) and keep.flags.c_contiguous and keep.shape == x.shape and x.size):
        return ops.dropout(ctx, x, keep, rate)
    scale, n = x.dtype.type(1.0 / (1.0 - rate)), np.int64(x.size)

    def masked(a: Array) -> Array:
        out = ctx.empty(a.shape)
        _kernel("dropout", a.dtype.name)(*_over(a.size), (a, keep, scale, out, n))
        return out

    return masked(x), lambda dy: masked(_solid(ctx, dy))


# Losses ---------------------------------------------------------------------------------------------------


def softmax_cross_entropy(ctx: Any, z: Array, target: Array, weight: Any) -> tuple[Array, Array, Array]:
    """Twin of `ops.softmax_cross_entropy` for matrices of scores: a warp per row."""
    if not (z.ndim == 2 and z.size and _fit(ctx, z) and target.flags.c_contiguous):
        return ops.softmax_cross_entropy(ctx, z, target, weight)
    sparse = target.ndim == 1 and target.dtype == np.int32 and target.shape == z.shape[:1]
    soft = target.dtype == z.dtype and target.shape == z.shape
    plain = isinstance(weight, float)
    if not (sparse or soft) or not (plain or (_fit(ctx, weight) and weight.shape == z.shape[:1])):
        return ops.softmax_cross_entropy(ctx, z, target, weight)
    values, dz, a = ctx.empty(z.shape[:1]), ctx.empty(z.shape), ctx.empty(z.shape)
    targets = (target, NULL) if sparse else (NULL, target)
    weights = (NULL, z.dtype.type(weight)) if plain else (weight, z.dtype.type(1.0))
    sizes = (np.int32(z.shape[0]), np.int32(z.shape[1]))
    args = (z, *targets, *weights, dz, a, values, *sizes)
    _kernel("softmax_ce", z.dtype.name)(*_by_warp(z.shape[0]), args)
    return values, dz, a


# The flat gradient, and the guard -------------------------------------------------------------------------


def pack(ctx: Any, layout: Any, parts: dict[str, Array], room: Any) -> Array:
    """Twin of `ops.pack`: copies only what is not in its place already.

    `cupy.concatenate` would copy the addresses of more than 8 arrays from the host, which no capture allows.
    """
    if room is None and not ctx.inplace:
        return ops.pack(ctx, layout, parts, room)
    flat = ctx.empty((layout.size,)) if room is None else room[0]
    views = layout.views(ctx.xp, flat) if room is None else room[1]
    for path, part in parts.items():
        if part is not views[path]:
            views[path][...] = part
    return flat


def penalize(ctx: Any, w: Array, g: Array, segments: Any) -> tuple[Any, Array]:
    """Twin of `ops.penalize`, in the gradient's own memory."""
    sizes = [stop - start for start, stop, _, _ in segments]
    if not (_fit(ctx, w, g) and w.ndim == 1 and segments and all(sizes)):
        return ops.penalize(ctx, w, g, segments)
    launches = [_over(n) for n in sizes]
    sums = ctx.empty((sum(grid[0] for grid, _ in launches),))
    real, done = w.dtype.type, 0
    for (start, stop, l1, l2), (grid, block) in zip(segments, launches):
        share = sums[done : done + grid[0]]
        args = (w[start:stop], g[start:stop], share, real(l1), real(l2), np.int64(stop - start))
        _kernel("penalize", w.dtype.name)(grid, block, args)
        done += grid[0]
    return total(ctx, sums), g


def sound(ctx: Any, limit: float, flat: Array, *others: Array) -> Array:
    """Twin of `ops.sound`: one pass over each array, and no array of booleans."""
    if not (_fit(ctx, flat, *others) and flat.ndim == 1):
        return ops.sound(ctx, limit, flat, *others)
    ok, dtype = ctx.empty((), ctx.xp.bool), flat.dtype.name
    if flat.size:
        grid, block = _over(flat.size)
        partial = ctx.empty(grid)
        _kernel("sum_squares", dtype)(grid, block, (flat, partial, np.int64(flat.size)))
        _kernel("within", dtype)((1,), (1024,), (partial, flat.dtype.type(limit * limit), ok, np.int32(grid[0])))
    else:
        _kernel("set_flag", dtype)((1,), (1,), (ok, NULL))
    for a in others:
        if a.size:
            _kernel("all_finite", dtype)(*_over(a.size), (a, np.int64(a.size), ok))
    return ok


# Optimizers, in place ---------------------------------------------------------------------------------------


def _in_place(ctx: Any, arrays: tuple[Array, ...], decay: float, epsilon: float = 1.0) -> bool:
    """Return whether a kernel may write the update over the first of these arrays, the weights, and the slots."""
    return _fit(ctx, *arrays) and arrays[0].ndim == 1 and ops.never_overflows(decay, epsilon)


def _update(ctx: Any, name: str, arrays: tuple[Array, ...], scalars: tuple[Any, ...]) -> None:
    """Launch an optimizer's kernel over flat arrays, behind the gate."""
    n, real = arrays[0].size, arrays[0].dtype.type
    args = (x if not isinstance(x, float) else real(x) for x in scalars)
    gate = NULL if ctx.gate is None else ctx.gate
    if n:
        _kernel(name, arrays[0].dtype.name)(*_over(n), (*arrays, *args, gate, np.int64(n)))


def sgd(ctx: Any, w: Array, g: Array, slots: Any, lr: Array, momentum: float, nesterov: bool) -> Any:
    """Twin of `ops.sgd`."""
    if not _in_place(ctx, (w, g, *slots, lr), momentum):
        return ops.sgd(ctx, w, g, slots, lr, momentum, nesterov)
    if slots:
        _update(ctx, "sgd_momentum", (w, g, *slots), (lr, float(momentum), np.int32(nesterov)))
    else:
        _update(ctx, "sgd", (w, g), (lr,))
    return w, slots


def momentum(ctx: Any, w: Array, g: Array, slots: Any, lr: Array, beta: float) -> Any:
    """Twin of `ops.momentum`."""
    if not _in_place(ctx, (w, g, *slots, lr), beta):
        return ops.momentum(ctx, w, g, slots, lr, beta)
    _update(ctx, "momentum", (w, g, *slots), (lr, float(beta), 1.0 - beta))
    return w, slots


def rmsprop(ctx: Any, w: Array, g: Array, slots: Any, lr: Array, rho: float, epsilon: float, inside: bool) -> Any:
    """Twin of `ops.rmsprop`."""
    if not _in_place(ctx, (w, g, *slots, lr), rho, epsilon):
        return ops.rmsprop(ctx, w, g, slots, lr, rho, epsilon, inside)
    _update(ctx, "rmsprop", (w, g, *slots), (lr, float(rho), 1.0 - rho, float(epsilon), np.int32(inside)))
    return w, slots


def adam(
    ctx: Any,
    w: Array,
    g: Array,
    slots: Any,
    lr: Array,
    age: Array,
    beta_1: float,
    beta_2: float,
    epsilon: float,
    corrected: bool,
) -> Any:
    """Twin of `ops.adam`."""
    if not _in_place(ctx, (w, g, *slots, lr, age), max(beta_1, beta_2), epsilon):
        return ops.adam(ctx, w, g, slots, lr, age, beta_1, beta_2, epsilon, corrected)
    rates = [(float(b), 1.0 - b, math.log(b) if b > 0 else -math.inf) for b in (beta_1, beta_2)]
    scalars = (lr, age, *rates[0], *rates[1], float(epsilon), np.int32(corrected), 0.0)
    _update(ctx, "adam", (w, g, *slots), scalars)
    return w, slots


# Of no operation --------------------------------------------------------------------------------------------


def total(ctx: Any, values: Array, weight: Array | None = None, scale: float = 1.0) -> Array:
    """Return scale * sum(values * weight), 0-d, of arrays of one dimension (at least one element)."""
    out = ctx.empty(())
    args = (values, NULL if weight is None else weight, values.dtype.type(scale), out, np.int32(values.size))
    _kernel("sum_scaled", values.dtype.name)((1,), (1024,), args)
    return out


def hits(ctx: Any, p: Array, target: Array) -> Array:
    """Return 1 for each row of p whose first largest number is at the target (int32), else 0."""
    out = ctx.empty(p.shape[:1])
    args = (p, target, out, np.int32(p.shape[0]), np.int32(p.shape[1]))
    _kernel("hits", p.dtype.name)(*_by_warp(p.shape[0]), args)
    return out


def keep_mask(keep: Array, key: Any, slot: int, step: Array, rate: float) -> Array:
    """Fill the boolean array `keep` with the mask of `xpnet.random.keep_mask`, bit for bit.

    Args:
        key: the two words of the seed's Philox key, `SeedSequence(seed).generate_state(2, np.uint64)`.
        step: int32, 0-d, on the device.
    """
    threshold = np.float32(math.ceil(rate * 2**24) * 2.0**-24)
    if keep.size:
        args = (keep, np.int64(keep.size), *map(np.uint64, key), np.uint64(slot), step, threshold)
        _kernel("keep_mask", "float32")(*_over(-(-keep.size // 8)), args)
    return keep


def gather(data: Array, order: Array, out: Array) -> Array:
    """Fill `out` with the rows order[0], order[1], ... of `data`, in out's dtype.

    Args:
        data: one of the dtypes of `SOURCES`. order: int32. All are contiguous.
    """
    if out.size:
        sizes = (np.int32(out.shape[0]), np.int64(out.size // out.shape[0]))
        kernel = _kernel("gather", out.dtype.name, data.dtype.name)
        kernel(*_over(out.size), (data, order, out, *sizes))
    return out
