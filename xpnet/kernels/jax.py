"""JAX twins: the same formulas in a form for which XLA generates faster code."""

from __future__ import annotations

from typing import Any

import jax

from ..core import ops


def pack(ctx: Any, layout: Any, parts: dict[str, Any], out: Any) -> Any:
    """Twin of `ops.pack`: write the parts one after the other into one array.

    On a CPU with several threads XLA's concatenation made a step up to ten times slower (jaxlib 0.10.2). One
    barrier keeps XLA from turning the first part into a `pad`, which took 10 ns per element; the other keeps XLA
    from fusing the gradient with its consumers.
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
    """Twin of `ops.product`: multiply 16-bit factors as such, because XLA may remove a mere rounding."""
    if ctx.backend.narrow is None:
        return ctx.xp.matmul(a, b)
    narrow = getattr(ctx.xp, ctx.backend.narrow)
    return ctx.xp.matmul(a.astype(narrow), b.astype(narrow), preferred_element_type=ctx.dtype)


def sum_rows(ctx: Any, index: Any, values: Any, count: int, out: Any = None) -> Any:
    """Twin of `ops.sum_rows`: adds each row where it belongs."""
    if values.ndim != 2:
        return ops.sum_rows(ctx, index, values, count, out)
    return jax.ops.segment_sum(values, index, num_segments=count)
