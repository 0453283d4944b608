"""CuPy twins: the same results by kernels of our own (`cuda_kernels.cu`), in buffers that live from step to step.

Nothing here waits for the device, copies from it, or depends on a value on it, so that a step can be captured
into a CUDA graph; what changes from step to step (learning rate, age, step) is handed on as an array. Without an
arena (`ctx.inplace` is False), and for shapes the kernels do not do, the bodies do the work.

The optimizers write weights and slots over where no update can overflow (`ops.never_overflows`), unless the
context's `gate` holds them back. Flag, counters and sums are written over too, so that a captured step need not
copy them to where they stay.

At the end stand kernels that belong to no operation: masks and batches, made on the device.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .. import ops
from .blas import available, product

Array = Any  # a CuPy array

BLOCK = 256  # threads
GRID = 2048  # blocks at most where a kernel takes any number; more than a GPU has at work at a time
WARPS = (32, 8)  # the block of kernels that work by warps or add up columns
NULL = np.uintp(0)  # CuPy takes None for a pointer, but not for a null pointer

_COMPUTED = {"float32": "float", "float64": "double", "int32": "int"}  # int32: for `gather`
_NARROW = {"float16": ("__half", "<cuda_fp16.h>"), "bfloat16": ("__nv_bfloat16", "<cuda_bf16.h>")}
_KEPT_IN = {"float16": np.dtype("float16"), "bfloat16": np.dtype("uint16")}  # CuPy has no bfloat16 of its own
SOURCES = {
    "float32": "float",
    "float64": "double",
    "uint8": "unsigned char",
    "int32": "int",
    "int64": "long long",
}


@lru_cache
def _module(dtype: str, source: str | None = None, narrow: str | None = None) -> Any:
    """Return the kernels for arrays of a dtype; with `source` only `gather`, from that dtype.

    Args:
        narrow: `"float16"` or `"bfloat16"`, what factors of products are rounded to.
    """
    import cupy

    macros = {"XP_A": _COMPUTED[dtype]}
    if source is not None:
        macros["XP_S"] = SOURCES[source]
    if narrow is not None:
        macros["XP_N"], macros["XP_HEADER"] = _NARROW[narrow]
    code = Path(__file__).with_name("cuda_kernels.cu").read_text(encoding="utf-8")
    return cupy.RawModule(code=code, options=tuple(f"-D{name}={value}" for name, value in macros.items()))


@lru_cache
def _kernel(name: str, dtype: str, source: str | None = None, narrow: str | None = None) -> Any:
    return _module(dtype, source, narrow).get_function(name)


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
    """Twin of `ops.affine`: bias and activation in one pass, derivative and bias gradient in another.

    Under a mixed policy the latter also rounds the derivative, for the products that take it.
    """
    given, narrow = (x, kernel) if bias is None else (x, kernel, bias), ctx.backend.narrow
    if not (_fit(ctx, *given) and x.ndim >= kernel.ndim == 2 and x.size and kernel.size):
        return ops.affine(ctx, x, kernel, bias, activation)
    if x.ndim > 2:
        return _affine_of_rows(ctx, x, kernel, bias, activation)
    if narrow and not available():
        return ops.affine(ctx, x, kernel, bias, activation)
    rows, units = x.shape[0], kernel.shape[1]
    kind = _KINDS.get(activation.name)
    x16, kernel16 = _factor(ctx, x), _factor(ctx, kernel)
    z = product(x16, kernel16, ctx.empty((rows, units)))
    if bias is not None or kind:
        sizes = (np.int32(rows), np.int32(units), np.int32(kind or 0))
        _kernel("bias_act", z.dtype.name)(*_over(z.size), (z, NULL if bias is None else bias, *sizes))
    y = z if kind is not None else activation.forward(ctx.xp, z)

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        if kind is None:
            dy = activation.backward(ctx.xp, dy, z, y)
        dy = _solid(ctx, dy)
        dz = ctx.empty(dy.shape, narrow and _KEPT_IN[narrow]) if kind or narrow else dy
        grads = {}
        if bias is not None:
            grads["bias"] = into["bias"] if "bias" in into else ctx.empty(bias.shape)
        if dz is not dy or grads:
            _act_backward(ctx, dy, y, NULL if dz is dy else dz, grads.get("bias", NULL), kind or 0)
        grads["kernel"] = into["kernel"] if "kernel" in into else ctx.empty(kernel.shape)
        product(x16.T, dz, grads["kernel"])
        return (product(dz, kernel16.T, ctx.empty(x.shape)) if want_dx else None), grads

    return y, backward


def _factor(ctx: Any, a: Array) -> Array:
    """Return a factor of a product: rounded to 16 bits where the policy says so."""
    narrow = ctx.backend.narrow
    if narrow is None:
        return a
    out = ctx.empty(a.shape, _KEPT_IN[narrow])
    _kernel("narrow", a.dtype.name, None, narrow)(*_over(a.size), (a, out, np.int64(a.size)))
    return out


def _affine_of_rows(ctx: Any, x: Array, kernel: Array, bias: Array | None, activation: Any) -> Any:
    """Do with further axes as with rows: shape (..., in) as (rows, in)."""
    xp = ctx.xp
    y, back = affine(ctx, xp.reshape(x, (-1, x.shape[-1])), kernel, bias, activation)

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        dx, grads = back(xp.reshape(dy, y.shape), into, want_dx)
        return (xp.reshape(dx, x.shape) if want_dx else None), grads

    return xp.reshape(y, (*x.shape[:-1], y.shape[-1])), backward


def _act_backward(ctx: Any, dy: Array, y: Array, dz: Any, sums: Any, kind: int) -> None:
    """Write dz and the sums of its columns (NULL: not wanted), in chunks of rows if there are many rows."""
    (rows, units), dtype = dy.shape, dy.dtype.name
    across = -(-units // WARPS[0])
    chunks = max(1, min(rows // 256, GRID // across))
    partial = ctx.empty((chunks, units)) if chunks > 1 and sums is not NULL else sums
    sizes = (np.int32(rows), np.int32(units), np.int32(kind))
    launch = _kernel("act_backward", dtype, None, ctx.backend.narrow)
    launch((across, chunks), WARPS, (dy, y, dz, partial, *sizes))
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


def hits(ctx: Any, p: Array, target: Array) -> Array:
    """Twin of `ops.hits` for matrices: a warp per row."""
    labels = target.dtype == np.int32 and target.flags.c_contiguous and target.shape == p.shape[:1]
    if not (p.ndim == 2 and p.size and _fit(ctx, p) and labels):
        return ops.hits(ctx, p, target)
    out = ctx.empty(p.shape[:1])
    args = (p, target, out, np.int32(p.shape[0]), np.int32(p.shape[1]))
    _kernel("hits", p.dtype.name)(*_by_warp(p.shape[0]), args)
    return out


def row_total(ctx: Any, values: Array, weight: Array | None, scale: float) -> Array:
    """Twin of `ops.row_total`."""
    same = weight is None or (_fit(ctx, weight) and weight.shape == values.shape)
    if not (_fit(ctx, values) and values.size and same):
        return ops.row_total(ctx, values, weight, scale)
    return _total(ctx, values, weight, scale)


def _total(ctx: Any, values: Array, weight: Array | None = None, scale: float = 1.0) -> Array:
    """Return scale * sum(values * weight), 0-d."""
    out = ctx.empty(())
    args = (values, NULL if weight is None else weight, values.dtype.type(scale), out, np.int32(values.size))
    _kernel("sum_scaled", values.dtype.name)((1,), (1024,), args)
    return out


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
    return _total(ctx, sums), g


def sound(ctx: Any, ok: Array, lr: Array, limit: float, flats: Any, *others: Array) -> Array:
    """Twin of `ops.sound`: one pass over what is given, the result written over `ok`."""
    alike = len(flats) <= 2 and all(flat.ndim == 1 and flat.size == flats[0].size for flat in flats)
    if not (alike and flats and _fit(ctx, lr, *flats, *others)):
        return ops.sound(ctx, ok, lr, limit, flats, *others)
    dtype, real = lr.dtype.name, lr.dtype.type
    squares, count = _squares(ctx, *flats) if flats[0].size else (NULL, 0)
    value = next((a for a in others if a.ndim == 0), NULL)
    norms = (squares, real(limit * limit), lr, real(ops.LARGEST_RATE), value, ok)
    _kernel("within", dtype)((1,), (1024,), (*norms, np.int32(len(flats)), np.int32(count)))
    for a in others:
        if a.size and a is not value:
            _kernel("all_finite", dtype)(*_over(a.size), (a, np.int64(a.size), ok))
    return ok


def _squares(ctx: Any, a: Array, b: Any = NULL) -> tuple[Array, int]:
    """Return the sums of squares of one flat array or two of one size, in parts, and how many parts of each."""
    grid, block = _over(a.size)
    partial = ctx.empty((grid[0] if b is NULL else 2 * grid[0],))
    _kernel("sum_squares", a.dtype.name)(grid, block, (a, b, partial, np.int64(a.size)))
    return partial, grid[0]


PAIRS = 4  # of sums that one launch of `tally` adds to


def tally(ctx: Any, ok: Array, step: Array, age: Array, sums: Any, parts: Any) -> Any:
    """Twin of `ops.tally`, in place: one kernel for the counters and up to `PAIRS` pairs."""
    arrays = [a for trio in parts for a in (trio[0], trio[2]) if not isinstance(a, (int, float))]
    values = all(not isinstance(value, (int, float)) for value, _, _ in parts)
    if not (values and _fit(ctx, age, *arrays) and step.dtype == np.int32 and all(a.ndim == 0 for a in arrays)):
        return ops.tally(ctx, ok, step, age, sums, parts)
    real, clock = age.dtype.type, (step, age)
    for first in range(0, max(1, len(sums)), PAIRS):
        args: list[Any] = []
        for (total, weight), (value, count, more) in zip(sums[first : first + PAIRS], parts[first:]):
            number = isinstance(more, (int, float))
            args += [total, value, real(count), weight, *((NULL, real(more)) if number else (more, real(0)))]
        while len(args) < 6 * PAIRS:
            args += [NULL, NULL, real(0), NULL, NULL, real(0)]
        _kernel("tally", age.dtype.name)((1,), (1,), (ok, *clock, *args))
        clock = (NULL, NULL)
    return step, age, sums


def rescale(ctx: Any, ok: Array, alive: Array, step: Array, scale: Array, streak: Array) -> Any:
    """Twin of `ops.rescale`, in place."""
    if not (_fit(ctx, scale, streak) and step.dtype == np.int32):
        return ops.rescale(ctx, ok, alive, step, scale, streak)
    real = scale.dtype.type
    args = (ok, alive, step, scale, streak, real(ops.GOOD_STEPS), real(ops.LARGEST_SCALE))
    _kernel("rescale", scale.dtype.name)((1,), (1,), args)
    return ok, step, scale, streak


def clip_factor(ctx: Any, g: Array, most: float, factor: Array | None) -> Array:
    """Twin of `ops.clip_factor`."""
    if not (_fit(ctx, g, *_given(factor)) and g.ndim == 1 and g.size):
        return ops.clip_factor(ctx, g, most, factor)
    out, real = ctx.empty(()), g.dtype.type
    squares, count = _squares(ctx, g)
    args = (squares, real(most), NULL if factor is None else factor, out, np.int32(count))
    _kernel("clip_factor", g.dtype.name)((1,), (1024,), args)
    return out


def clip_parts(ctx: Any, g: Array, most: float, factor: Array | None, slices: Any) -> Array:
    """Twin of `ops.clip_parts`, in the gradient's own memory."""
    if not (_fit(ctx, g, *_given(factor)) and g.ndim == 1):
        return ops.clip_parts(ctx, g, most, factor, slices)
    for part in (g[where] for where in slices):
        if part.size:
            scale = clip_factor(ctx, part, most, factor)
            _kernel("scale", g.dtype.name)(*_over(part.size), (part, scale, np.int64(part.size)))
    return g


def _given(factor: Array | None) -> tuple[Array, ...]:
    return () if factor is None else (factor,)


# Optimizers, in place ---------------------------------------------------------------------------------------


def _in_place(
    ctx: Any, arrays: tuple[Array, ...], factor: Array | None, beta: float, epsilon: float, decay: float
) -> bool:
    """Return whether a kernel may write the update over the first of these arrays, the weights, and the slots."""
    return (
        _fit(ctx, *arrays, *_given(factor)) and arrays[0].ndim == 1 and ops.never_overflows(beta, epsilon, decay)
    )


def _update(
    ctx: Any, name: str, arrays: tuple[Array, ...], scalars: tuple[Any, ...], decay: float, factor: Array | None
) -> None:
    """Launch an optimizer's kernel over flat arrays, behind the gate."""
    n, real = arrays[0].size, arrays[0].dtype.type
    args = (x if not isinstance(x, float) else real(x) for x in scalars)
    last = (real(decay), NULL if factor is None else factor, NULL if ctx.gate is None else ctx.gate)
    if n:
        _kernel(name, arrays[0].dtype.name)(*_over(n), (*arrays, *args, *last, np.int64(n)))


def sgd(
    ctx: Any,
    w: Array,
    g: Array,
    slots: Any,
    lr: Array,
    momentum: float,
    nesterov: bool,
    decay: float = 0.0,
    factor: Array | None = None,
) -> Any:
    """Twin of `ops.sgd`."""
    if not _in_place(ctx, (w, g, *slots, lr), factor, momentum, 1.0, decay):
        return ops.sgd(ctx, w, g, slots, lr, momentum, nesterov, decay, factor)
    if slots:
        _update(ctx, "sgd_momentum", (w, g, *slots), (lr, float(momentum), np.int32(nesterov)), decay, factor)
    else:
        _update(ctx, "sgd", (w, g), (lr,), decay, factor)
    return w, slots


def momentum(
    ctx: Any,
    w: Array,
    g: Array,
    slots: Any,
    lr: Array,
    beta: float,
    decay: float = 0.0,
    factor: Array | None = None,
) -> Any:
    """Twin of `ops.momentum`."""
    if not _in_place(ctx, (w, g, *slots, lr), factor, beta, 1.0, decay):
        return ops.momentum(ctx, w, g, slots, lr, beta, decay, factor)
    _update(ctx, "momentum", (w, g, *slots), (lr, float(beta), 1.0 - beta), decay, factor)
    return w, slots


def rmsprop(
    ctx: Any,
    w: Array,
    g: Array,
    slots: Any,
    lr: Array,
    rho: float,
    epsilon: float,
    inside: bool,
    decay: float = 0.0,
    factor: Array | None = None,
) -> Any:
    """Twin of `ops.rmsprop`."""
    if not _in_place(ctx, (w, g, *slots, lr), factor, rho, epsilon, decay):
        return ops.rmsprop(ctx, w, g, slots, lr, rho, epsilon, inside, decay, factor)
    scalars = (lr, float(rho), 1.0 - rho, float(epsilon), np.int32(inside))
    _update(ctx, "rmsprop", (w, g, *slots), scalars, decay, factor)
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
    decay: float = 0.0,
    factor: Array | None = None,
) -> Any:
    """Twin of `ops.adam`."""
    if not _in_place(ctx, (w, g, *slots, lr, age), factor, max(beta_1, beta_2), epsilon, decay):
        return ops.adam(ctx, w, g, slots, lr, age, beta_1, beta_2, epsilon, corrected, decay, factor)
    rates = [(float(b), 1.0 - b, math.log(b) if b > 0 else -math.inf) for b in (beta_1, beta_2)]
    scalars = (lr, age, *rates[0], *rates[1], float(epsilon), np.int32(corrected))
    _update(ctx, "adam", (w, g, *slots), scalars, decay, factor)
    return w, slots


# Of no operation --------------------------------------------------------------------------------------------


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
        data: of one of the dtypes of `SOURCES`. order: int32. All are contiguous.
    """
    if out.size:
        sizes = (np.int32(out.shape[0]), np.int64(out.size // out.shape[0]))
        kernel = _kernel("gather", out.dtype.name, data.dtype.name)
        kernel(*_over(out.size), (data, order, out, *sizes))
    return out
