"""JAX twins: the same formulas in a form that XLA compiles to something better."""

from __future__ import annotations

from typing import Any

import jax

from ..core import ops


def pack(ctx: Any, layout: Any, parts: dict[str, Any], out: Any) -> Any:
    """Twin of `ops.pack`: the parts written one after the other into one array.

    On a CPU with several threads XLA's concatenation took a step up to ten times as long (jaxlib 0.10.2). One
    barrier keeps XLA from making a `pad` of the first part, which took 10 ns an element; the other keeps the
    gradient a thing of its own.
    """
    if not parts or jax.default_backend() != "cpu":
        return ops.pack(ctx, layout, parts, out)
    first = next(iter(layout.shapes))
    lead = parts[first].shape[: parts[first].ndim - len(layout.shapes[first])]
    flat = jax.lax.optimization_barrier(ctx.xp.zeros((*lead, layout.size), dtype=ctx.dtype))
    for key, where in layout.slices.items():
        part = ctx.xp.reshape(parts[key], (*lead, -1))
        flat = jax.lax.dynamic_update_slice_in_dim(flat, part, where.start, axis=-1)
    return jax.lax.optimization_barrier(flat)


def product(ctx: Any, a: Any, b: Any) -> Any:
    """Twin of `ops.product`: factors of 16 bits are multiplied as such; XLA may leave a mere rounding out."""
    if ctx.backend.narrow is None:
        return ctx.xp.matmul(a, b)
    narrow = getattr(ctx.xp, ctx.backend.narrow)
    return ctx.xp.matmul(a.astype(narrow), b.astype(narrow), preferred_element_type=ctx.dtype)


def sum_rows(ctx: Any, index: Any, values: Any, count: int, out: Any = None) -> Any:
    """Twin of `ops.sum_rows`: adds each row where it belongs."""
    if values.ndim != 2:
        return ops.sum_rows(ctx, index, values, count, out)
    return jax.ops.segment_sum(values, index, num_segments=count)
