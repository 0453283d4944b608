"""CuPy twins for flat arrays: gradient, guard, counters, clipping and optimizers (see `layers.py`).

An update that can't overflow overwrites weights and slots if `ctx.apply_update` is true on the device. Flag,
counters and sums are overwritten too, so a captured step need not copy them. All but the flag are written by
launches that end the step (`ctx.defer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...core import ops
from .generated import update_kernel
from .launch import NULL, fit, kernel_of, over, total

Array = Any  # a CuPy array


# The flat gradient, and the guard -------------------------------------------------------------------------


# `cupy.concatenate` copies the addresses of more than 8 arrays from the host, which a capture does not allow.


def pack(ctx: Any, layout: Any, parts: dict[str, Array], out: Any) -> Array:
    """Twin of `ops.pack`: copy only parts that are not in place already."""
    if out is None and not ctx.inplace:
        return ops.pack(ctx, layout, parts, out)
    flat = ctx.empty((layout.size,)) if out is None else out[0]
    views = layout.views(ctx.xp, flat) if out is None else out[1]
    for path, part in parts.items():
        if part is not views[path]:
            views[path][...] = part
    return flat


def join(ctx: Any, parts: Sequence[Array]) -> Array:
    """Twin of `ops.join`."""
    if not (ctx.inplace and parts and all(a.ndim == 1 and a.dtype == parts[0].dtype for a in parts)):
        return ops.join(ctx, parts)
    flat, done = ctx.empty((sum(part.size for part in parts),), parts[0].dtype), 0
    for part in parts:
        flat[done : done + part.size] = part
        done += part.size
    return flat


def penalize(ctx: Any, w: Array, g: Array, segments: Any) -> tuple[Any, Array]:
    """Twin of `ops.penalize`, in the gradient's own memory."""
    sizes = [stop - start for start, stop, _, _ in segments]
    if not (fit(ctx, w, g) and w.ndim == 1 and segments and all(sizes)):
        return ops.penalize(ctx, w, g, segments)
    launches = [over(n) for n in sizes]
    sums = ctx.empty((sum(grid[0] for grid, _ in launches),))
    real, done = w.dtype.type, 0
    for (start, stop, l1, l2), (grid, block) in zip(segments, launches):
        share = sums[done : done + grid[0]]
        args = (w[start:stop], g[start:stop], share, real(l1), real(l2), np.int64(stop - start))
        kernel_of("penalize", w.dtype.name)(grid, block, args)
        done += grid[0]
    return total(ctx, sums), g


def within_limits(ctx: Any, ok: Array, lr: Array, limit: float, flats: Any, *others: Array) -> Array:
    """Twin of `ops.within_limits`: one pass over the arrays; the result overwrites `ok`."""
    alike = len(flats) <= 2 and all(flat.ndim == 1 and flat.size == flats[0].size for flat in flats)
    if not (alike and flats and fit(ctx, lr, *flats, *others)):
        return ops.within_limits(ctx, ok, lr, limit, flats, *others)
    dtype, real = lr.dtype.name, lr.dtype.type
    squares, count = _squares(ctx, *flats) if flats[0].size else (NULL, 0)
    value = next((a for a in others if a.ndim == 0), NULL)
    norms = (squares, real(limit * limit), lr, real(ops.LARGEST_RATE), value, ok)
    kernel_of("within", dtype)((1,), (1024,), (*norms, np.int32(len(flats)), np.int32(count)))
    for a in others:
        if a.size and a is not value:
            kernel_of("all_finite", dtype)(*over(a.size), (a, np.int64(a.size), ok))
    return ok


def _squares(ctx: Any, a: Array, b: Any = NULL) -> tuple[Array, int]:
    """Return partial sums of squares of one flat array, or two of equal size, and how many there are of each."""
    grid, block = over(a.size)
    partial = ctx.empty((grid[0] if b is NULL else 2 * grid[0],))
    kernel_of("sum_squares", a.dtype.name)(grid, block, (a, b, partial, np.int64(a.size)))
    return partial, grid[0]


SUMS_PER_LAUNCH = 8  # sums that one launch of `tally` adds to


def tally(
    ctx: Any, ok: Array, counted: Array, step: Array, age: Array, sums: Array, parts: Any
) -> tuple[Array, Array, Array]:
    """Twin of `ops.tally`, in place: a kernel for counters and up to `SUMS_PER_LAUNCH` numbers, one per array."""
    arrays = [a for a, _ in parts if not isinstance(a, (int, float))]
    kinds = step.dtype == np.int64 and sums.dtype == np.float64 and all(a.size for a in arrays)
    if not (kinds and sums.ndim == 1 and sums.flags.c_contiguous and fit(ctx, age, *arrays)):
        return ops.tally(ctx, ok, counted, step, age, sums, parts)
    real, clock, done = age.dtype.type, (step, age), 0
    for group in _groups(parts):
        out, size = sums[done:], sum(getattr(a, "size", 1) for a, _ in group)
        if size > len(group):
            ((a, factor),) = group
            args = (counted, out, a, real(factor), np.int64(size))
            ctx.defer(kernel_of("tally_array", age.dtype.name), *over(size), args)
        else:
            pairs = [(NULL, real(a * f)) if isinstance(a, (int, float)) else (a, real(f)) for a, f in group]
            pairs += [(NULL, real(0))] * (SUMS_PER_LAUNCH - len(pairs))
            args = (ok, counted, *clock, out, np.int32(size), *(x for pair in pairs for x in pair))
            ctx.defer(kernel_of("tally", age.dtype.name), (1,), (1,), args)
            clock = (NULL, NULL)
        done += size
    return step, age, sums


def _groups(parts: Any) -> list[list[Any]]:
    """Group the parts, one group per launch: up to `SUMS_PER_LAUNCH` numbers, or one array."""
    groups: list[list[Any]] = [[]]
    after_array = False
    for a, factor in parts:
        is_array = getattr(a, "size", 1) > 1
        if is_array or after_array or len(groups[-1]) == SUMS_PER_LAUNCH:
            groups.append([])
        groups[-1].append((a, factor))
        after_array = is_array
    return groups


def rescale(ctx: Any, ok: Array, alive: Array, step: Array, scale: Array, streak: Array) -> Any:
    """Twin of `ops.rescale`, in place."""
    if not (fit(ctx, scale, streak) and step.dtype == np.int64):
        return ops.rescale(ctx, ok, alive, step, scale, streak)
    real = scale.dtype.type
    args = (ok, alive, step, scale, streak, real(ops.GOOD_STEPS), real(ops.LARGEST_SCALE))
    ctx.defer(kernel_of("rescale", scale.dtype.name), (1,), (1,), args)
    return ok, step, scale, streak


def clip_factor(ctx: Any, g: Array, most: float, factor: Array | None) -> Array:
    """Twin of `ops.clip_factor`."""
    if not (fit(ctx, g, *_given(factor)) and g.ndim == 1 and g.size):
        return ops.clip_factor(ctx, g, most, factor)
    out, real = ctx.empty(()), g.dtype.type
    squares, count = _squares(ctx, g)
    args = (squares, real(most), NULL if factor is None else factor, out, np.int32(count))
    kernel_of("clip_factor", g.dtype.name)((1,), (1024,), args)
    return out


def clip_parts(ctx: Any, g: Array, most: float, factor: Array | None, slices: Any) -> Array:
    """Twin of `ops.clip_parts`, in the gradient's own memory."""
    if not (fit(ctx, g, *_given(factor)) and g.ndim == 1):
        return ops.clip_parts(ctx, g, most, factor, slices)
    for part in (g[where] for where in slices):
        if part.size:
            scale = clip_factor(ctx, part, most, factor)
            kernel_of("scale", g.dtype.name)(*over(part.size), (part, scale, np.int64(part.size)))
    return g


def _given(factor: Array | None) -> tuple[Array, ...]:
    return () if factor is None else (factor,)


# Optimizers -------------------------------------------------------------------------------------------------


def update(
    ctx: Any,
    optimizer: Any,
    w: Array,
    g: Array,
    slots: tuple[Array, ...],
    lr: Array,
    age: Array,
    decay: float = 0.0,
    factor: Array | None = None,
) -> tuple[Array, tuple[Array, ...]]:
    """Twin of `ops.update`: one kernel, generated from the formula.

    An update that can't overflow overwrites weights and slots at the end of the step, if `ctx.apply_update` holds.
    Otherwise the result goes to new memory, because the guard checks it first.
    """
    arrays, in_place = (w, g, *slots), ctx.overwrite and optimizer.never_overflows
    alike = all(a.ndim == 1 and a.size == w.size for a in arrays)
    made = None
    if alike and fit(ctx, *arrays, lr, age, *_given(factor)):
        made = update_kernel(ctx.backend, optimizer, len(slots), decay, factor is not None, in_place)
    if made is None:
        return ops.update(ctx, optimizer, w, g, slots, lr, _counted(ctx, age), decay, factor)
    numbers = (lr, age, factor)
    if in_place:
        if w.size:
            ctx.defer(made.kernel, *made.launch(arrays, (), numbers, ctx.apply_update))
        return w, slots
    new = [ctx.empty(w.shape) for _ in (w, *slots)]
    if w.size:
        made.kernel(*made.launch(arrays, new, numbers, None))
    return new[0], tuple(new[1:])


def _counted(ctx: Any, age: Array) -> Array:
    """Return the age for the body: `tally` may have deferred the launch that increments it."""
    put_off = any(a is age for call in ctx.finish for a in call.args[-1])
    return age + 1.0 if put_off else age
