"""NumPy twins: the same results with `out=`, in buffers that persist from step to step.

Without an arena (`ctx.inplace` is False: inference, a part used alone) the bodies run. Code of a twin that reads
numbers on the host, or makes many calls, is a kernel: a function that writes to its array arguments. The twin
starts it with `ctx.launch`, so that a recording of the step can repeat it (see `tape`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ...core import ops
from ...fusion.activation import Z, activation_graphs
from ...fusion.trace import Graph
from ...fusion.update import fading, update_graph
from . import threads
from .calls import blocks, compute, filled, now, number, prepared, run

Array = np.ndarray

FLUSH_INTERVAL = 64  # updates between two flushes of nearly subnormal numbers to 0


def affine(ctx: Any, x: Array, kernel: Array, bias: Array | None, activation: Any) -> Any:
    """Twin of `ops.affine`: write gradients directly to the flat gradient."""
    if not ctx.inplace or x.ndim != 2 or kernel.ndim != 2 or ctx.backend.narrow:
        return ops.affine(ctx, x, kernel, bias, activation)
    z = product_into(ctx, x, kernel, ctx.empty((x.shape[0], kernel.shape[1])))
    if bias is not None:
        z += bias
    y, back = activated(ctx, z, activation, adopt=True)

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        dz = back(dy)
        # a product with ones takes a third of the time of a sum
        db = (
            None
            if bias is None
            else np.dot(filled((len(dz),), 1.0, dz.dtype), dz, out=out_for(ctx, into, "bias", bias))
        )
        return gradients(ctx, x, kernel, dz, db, into, want_dx)

    return y, backward


def gradients(ctx: Any, x: Array, kernel: Array, dz: Array, db: Any, into: Any, want_dx: bool) -> Any:
    """Return the result of a backward of `affine`: dx = dz W^T and dW = x^T dz, with the bias gradient db."""
    grads = {"kernel": product_into(ctx, x.T, dz, out_for(ctx, into, "kernel", kernel))}
    if db is not None:
        grads["bias"] = db
    return (product_into(ctx, dz, kernel.T, ctx.empty(x.shape)) if want_dx else None), grads


def product(ctx: Any, a: Array, b: Array) -> Array:
    """Twin of `ops.product`: threads share a large product."""
    plain = a.ndim == b.ndim == 2 and a.dtype == b.dtype == ctx.dtype and not ctx.backend.narrow
    if not plain or threads.pieces(a, b) is None:
        return ops.product(ctx, a, b)
    return product_into(ctx, a, b, ctx.empty((a.shape[0], b.shape[1])))


def product_into(ctx: Any, a: Array, b: Array, out: Array) -> Array:
    """Return a @ b in `out`; threads share a large product."""
    if threads.pieces(a, b) is None:
        return np.matmul(a, b, out=out)
    ctx.launch(threads.matmul_in_pieces, a, b, out)
    return out


def out_for(ctx: Any, into: dict[str, Array], name: str, like: Array) -> Array:
    """Return the memory for a gradient: its place in the flat gradient, or a buffer."""
    return into[name] if name in into else ctx.empty(like.shape)


def activate(ctx: Any, x: Array, activation: Any) -> Any:
    """Twin of `ops.activate`."""
    if not ctx.inplace or x.ndim == 0 or x.dtype != ctx.dtype:
        return ops.activate(ctx, x, activation)
    return activated(ctx, x, activation)


def activated(ctx: Any, z: Array, activation: Any, adopt: bool = False) -> Any:
    """Return f(z) and the function from dy to dz, as calls generated from the formulas if these are elementwise.

    Args:
        adopt: whether z may be overwritten.
    """
    graphs = activation_graphs(activation)
    if graphs is None:
        y = activation.forward(np, z)
        return y, lambda dy: activation.backward(np, dy, z, y)
    forward, backward = graphs
    keep = Z in backward.reads
    y = compute(ctx, forward, (z,), 0 if adopt and not keep else None)

    def back(dy: Array) -> Array:
        dy = dy if dy.dtype == z.dtype else np.astype(dy, z.dtype)
        return compute(ctx, backward, (dy, z, y), Z if adopt and keep and y is not z else None)

    return y, back


def dropout(ctx: Any, x: Array, keep: Array, rate: float) -> Any:
    """Twin of `ops.dropout`."""
    if not ctx.inplace:
        return ops.dropout(ctx, x, keep, rate)
    scale = x.dtype.type(1.0 / (1.0 - rate))
    mask = np.multiply(keep, scale, out=ctx.empty(x.shape))
    y = np.multiply(x, mask, out=ctx.empty(x.shape))
    return y, lambda dy: np.multiply(dy, mask, out=ctx.empty(x.shape))


def softmax_cross_entropy(ctx: Any, z: Array, target: Array, weight: Any) -> tuple[Array, Array, Array]:
    """Twin of `ops.softmax_cross_entropy` for class numbers; one-hot targets use the body."""
    if not ctx.inplace or z.ndim != 2 or target.ndim != 1 or not isinstance(weight, (float, Array)):
        return ops.softmax_cross_entropy(ctx, z, target, weight)
    rows, classes = z.shape
    a, dz, values = ctx.empty(z.shape), ctx.empty(z.shape), ctx.empty((rows,))
    weight = np.asarray(weight, z.dtype) if isinstance(weight, float) else weight
    scratch = ctx.empty((rows,), np.int64), ctx.empty((rows,)), ctx.empty((rows, 1)), ctx.empty((rows,), np.bool)
    constants = _starts(rows, classes), filled((classes,), 1.0, z.dtype), number(classes, np.uint32)
    ctx.launch(_softmax_cross_entropy, z, target, weight, a, dz, values, *constants, *scratch)
    return values, dz, a


def _softmax_cross_entropy(
    z: Array,
    target: Array,
    weight: Array,
    a: Array,
    dz: Array,
    values: Array,
    starts: Array,
    ones: Array,
    classes: Array,
    place: Array,
    picked: Array,
    column: Array,
    known: Array,
) -> None:
    flat, total = dz.reshape(-1), column.reshape(-1)
    z.argmax(-1, place)  # finds the maximum in a fifth of the time of `maximum.reduce`
    np.add(starts, place, place)
    z.reshape(-1).take(place, None, total, "clip")
    np.subtract(z, column, a)
    np.add(starts, target, place)  # the index of each row's target in the flat array
    a.reshape(-1).take(place, None, values, "clip")
    np.exp(a, a)
    np.dot(a, ones, total)
    np.divide(a, column, a)
    np.multiply(a, weight[:, None] if weight.ndim else weight, dz)
    flat.take(place, None, picked, "clip")
    np.subtract(picked, weight, picked)
    flat.put(place, picked, "clip")
    np.log(total, total)
    np.subtract(total, values, values)
    np.less(target.view(np.uint32), classes, known)  # viewed as unsigned, a negative number is large
    if b"\0" in known.tobytes():  # an invalid label
        values.fill(np.nan)


@lru_cache(maxsize=16)
def _starts(rows: int, classes: int) -> Array:
    return np.arange(rows) * classes


def confusion(ctx: Any, target: Array, found: Array, weight: Array | None, classes: int) -> Array:
    """Twin of `ops.confusion`: one pass over the rows, without matrices of rows by classes."""
    if not ctx.inplace:
        return ops.confusion(ctx, target, found, weight, classes)
    out = ctx.empty((*target.shape[:-1], classes, classes))
    ctx.launch(_count_pairs, target, found, weight, out)
    return out


def _count_pairs(target: Array, found: Array, weight: Array | None, out: Array) -> None:
    """Kernel: set `out` to the confusion matrices of class numbers of shape (..., n)."""
    classes, several = out.shape[-1], math.prod(out.shape[:-2])
    size = classes * classes
    k = np.multiply(target, classes, dtype=np.intp) + found
    first = size * np.arange(several)[:, None]  # bins of each matrix
    k = k.reshape(several, -1) + first
    bad = np.zeros(several, bool)
    if k.size and (min(target.min(), found.min()) < 0 or max(target.max(), found.max()) >= classes):
        outside = (target < 0) | (target >= classes) | (found < 0) | (found >= classes)
        bad = outside.reshape(several, -1).any(axis=1)
        k = np.where(bad[:, None], first, k)
    weights = None if weight is None else weight.reshape(-1)
    matrices = np.bincount(k.reshape(-1), weights, several * size).reshape(several, size)
    np.copyto(out.reshape(several, size), np.where(bad[:, None], math.nan, matrices), casting="same_kind")


def row_total(ctx: Any, values: Array, weight: Array | None, scale: float) -> Any:
    """Twin of `ops.row_total`: a single dot product."""
    if not ctx.inplace or values.ndim != 1 or weight is not None:
        return ops.row_total(ctx, values, weight, scale)
    total = ctx.empty(())
    np.dot(values, filled(values.shape, scale, values.dtype), out=total)
    return total


def sum_rows(ctx: Any, index: Array, values: Array, count: int, out: Array | None = None) -> Array:
    """Twin of `ops.sum_rows`: sorts the rows by index."""
    if not ctx.inplace or values.ndim != 2:
        return ops.sum_rows(ctx, index, values, count, out)
    out = ctx.empty((count, values.shape[1])) if out is None else out
    ctx.launch(_sum_rows, index, values, out)
    return out


def _sum_rows(index: Array, values: Array, out: Array) -> None:
    order = np.argsort(index, stable=True)
    ordered = index[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    out.fill(0.0)
    out[ordered[first]] = np.add.reduceat(values[order], first, axis=0)


def pack(ctx: Any, layout: Any, parts: dict[str, Array], out: Any) -> Array:
    """Twin of `ops.pack`: copy only parts that are not in place already."""
    if out is None:
        return ops.pack(ctx, layout, parts, out)
    flat, views = out
    for path, part in parts.items():
        if part is not views[path]:
            np.copyto(views[path], part)
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


def within_limits(ctx: Any, ok: Any, lr: Any, limit: float, flats: Any, *others: Array) -> Any:
    """Twin of `ops.within_limits`."""
    if not ctx.inplace or any(flat.ndim != 1 for flat in flats):
        return ops.within_limits(ctx, ok, lr, limit, flats, *others)
    # without a tape it becomes part of the state, which must not use memory that the next step reuses
    result = np.empty((), np.bool) if ctx.tape is None else ctx.empty((), np.bool)
    ctx.launch(_sound, result, ok, lr, limit * limit, tuple(flats), *(a for a in others if a.size))
    return result


def _sound(result: Array, ok: Any, lr: Any, square: float, flats: tuple[Array, ...], *others: Array) -> None:
    well = ok and float(lr) <= ops.LARGEST_RATE
    for flat in flats:
        well = well and threads.sum_of_squares(flat) <= square
    for a in others:
        well = well and (math.isfinite(a) if a.ndim == 0 else np.isfinite(a).all())
    result[()] = well


def tally(ctx: Any, ok: Any, counted: Any, step: Any, age: Any, sums: Any, parts: Any) -> Any:
    """Twin of `ops.tally` for a recording, in which all arguments are arrays."""
    if ctx.tape is None:
        return ops.tally(ctx, ok, counted, step, age, sums, parts)
    new = ctx.empty((), step.dtype), ctx.empty((), age.dtype), ctx.empty(sums.shape, sums.dtype)
    numbers, arrays, i = [], [], 0
    for a, factor in parts:
        shape = getattr(a, "shape", ())
        if shape == ():
            numbers.append((i, a, factor))
        else:
            where = slice(i, i + math.prod(shape))
            arrays.append((sums[where], new[2][where], np.reshape(a if factor == 1.0 else a * factor, (-1,))))
        i += math.prod(shape)
    ctx.launch(_tally, ok, counted, step, age, sums, *new, numbers, arrays)
    return new


def _tally(
    ok: Array,
    counted: Array,
    step: Array,
    age: Array,
    sums: Array,
    new_step: Array,
    new_age: Array,
    new_sums: Array,
    numbers: list[Any],
    arrays: list[Any],
) -> None:
    """Add with Python numbers: a ufunc that writes one number takes six times as long."""
    taken = bool(ok)
    new_step[()], new_age[()] = step.item() + taken, age.item() + taken
    if taken if counted is ok else counted:
        for i, a, factor in numbers:
            new_sums[i] = sums[i] + float(a) * factor
        for before, after, a in arrays:
            np.add(before, a, out=after)
    else:
        new_sums[:] = sums


# Optimizers: any formula that can be fused, block by block. If no update can overflow, because the guard has
# checked gradient and weights, the update is in place, and the calls that overwrite weights and slots are deferred
# to the end of the step. Otherwise the result goes to separate memory: the guard may reject the step.


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
    """Twin of `ops.update`."""
    graph = fused(ctx, optimizer, w, slots, decay, factor)
    if graph is None:
        return ops.update(ctx, optimizer, w, g, slots, lr, age, decay, factor)
    over = ctx.overwrite and optimizer.never_overflows
    new = () if over else own_memory(ctx, (w, *slots))
    made = prepared(graph, homes(graph, over), w.dtype)
    changing = [ctx.empty((), kind) for kind in made.kinds]
    ctx.launch(_work_out, made.work_out, lr, age, factor, *changing)
    if over and (fades := fading(graph)):
        flush = ctx.empty((), np.bool)
        ctx.launch(_is_due, flush, age)
        ctx.defer_when(flush, lambda: _flush(ctx, [slots[o - 1] for o in fades]))
    run(ctx, made, (w, g, *slots, *new), changing, ctx.defer if over else now)
    return (w, slots) if over else (new[0], new[1:])


def fused(ctx: Any, optimizer: Any, w: Array, slots: Sequence[Array], decay: float, factor: Any) -> Graph | None:
    """Return the graph of an update; None if the body must run."""
    if not ctx.inplace or w.ndim != 1:
        return None
    return update_graph(optimizer, len(slots), decay, factor is not None)


def homes(graph: Graph, over: bool) -> tuple[int | None, ...]:
    """Return which array (w, g, *slots) each result of an update overwrites: its old value, or none."""
    return (0, *range(2, graph.arrays)) if over else (None,) * (graph.arrays - 1)


def own_memory(ctx: Any, arrays: Sequence[Array]) -> tuple[Array, ...]:
    """Return memory for results that become part of the state: memory that the next step does not reuse."""
    return tuple(np.empty(a.shape, a.dtype) if ctx.tape is None else ctx.empty(a.shape) for a in arrays)


def _work_out(work_out: Any, lr: Any, age: Any, factor: Any, *places: Array) -> None:
    values = work_out(float(lr), float(age), 1.0 if factor is None else float(factor))
    for place, value in zip(places, values):
        place[()] = value


def _is_due(flush: Array, age: Any) -> None:
    flush[()] = float(age) % FLUSH_INTERVAL == 0


def _flush(ctx: Any, slots: Sequence[Array]) -> None:
    """Set numbers that are too small to matter to 0.

    If a gradient has become 0 (a pixel that is never set, a dead ReLU), its average decays to subnormal numbers
    and, because of rounding, stays there; each operation on one costs the processor a hundred cycles.
    """
    parts = blocks(*slots)
    scratch = ctx.empty(parts[0][0].shape)
    for s in (block for part in parts for block in part):
        keep = scratch[: s.size]
        ctx.defer(np.abs, s, keep)
        ctx.defer(np.greater_equal, keep, number(smallest(s.dtype), s.dtype), keep)
        ctx.defer(np.multiply, s, keep, s)


@lru_cache
def smallest(dtype: Any) -> float:
    """Return the threshold below which an average counts as 0."""
    return 1e8 * float(np.finfo(dtype).tiny)
