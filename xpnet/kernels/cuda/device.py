"""CuPy: what a step needs, made on the device: masks and noise by the seed's Philox, batches from data held there.

Inside a captured step each costs a kernel, and nothing on the host: a batch is then a list of row numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .launch import SOURCES, kernel_of, over

__all__ = ["can_pick", "fits", "gather", "hold", "keep_mask", "normals", "pick", "with_masks"]

Array = Any  # a CuPy array


def with_masks(step: Callable[..., Any], draws: Sequence[Any], stream: Any) -> Callable[..., Any]:
    """Return the step with its masks and noise made from `state.step`; it ignores those of its batches.

    Args:
        step: (state, batch) -> state. draws: (name, slot, spec) of masks and noise. stream: the model's `Stream`.
    """
    if not draws:
        return step
    keys = [stream.of(spec.seed).key for _, _, spec in draws]

    def masked(state: Any, batch: Any, finish: Any = None) -> Any:
        import cupy

        made = {}
        for (name, slot, spec), key in zip(draws, keys):
            shape = (batch.x.shape[0], *spec.shape)
            if spec.rate is None:
                made[name] = normals(cupy.empty(shape, batch.x.dtype), key, slot, state.step)
            else:
                made[name] = keep_mask(cupy.empty(shape, bool), key, slot, state.step, spec.rate)
        return step(state, batch._replace(draws=made), finish)

    return masked


def fits(device: Any, size: int) -> bool:
    """Return whether a data set of `size` bytes may be held: it fits into half of the free memory."""
    import cupy

    with device:
        free = cupy.cuda.runtime.memGetInfo()[0] + cupy.get_default_memory_pool().free_bytes()
    return size <= free // 2


def can_pick(values: Array, device: Any) -> bool:
    """Return whether `pick` can read a CuPy array directly: it is on the device and contiguous."""
    return values.device == device and values.dtype.name in SOURCES and values.flags.c_contiguous


def hold(shape: tuple[int, ...], dtype: str, parts: Iterable[tuple[slice, Array]]) -> Array:
    """Return an array on the device, filled from pairs of a slice of rows and their values."""
    import cupy

    place = cupy.empty(shape, dtype)
    for rows, part in parts:
        place[rows] = part
    return place


def pick(data: Array, rows: Array, dtype: Any) -> Array:
    """Return rows of an array in a dtype. Args: data: shape (n, ...). rows: int32, shape (batch,)."""
    import cupy

    return gather(data, rows, cupy.empty((rows.shape[0], *data.shape[1:]), dtype))


def keep_mask(keep: Array, key: Any, slot: int, step: Array, rate: float) -> Array:
    """Fill the boolean array `keep` with the mask of `xpnet.core.random.keep_mask`, bit for bit.

    Args:
        key: the two words of the seed's Philox key, `SeedSequence(seed).generate_state(2, np.uint64)`.
        step: int64, 0-d, on the device.
    """
    threshold = np.float32(math.ceil(rate * 2**24) * 2.0**-24)
    if keep.size:
        args = (keep, np.int64(keep.size), *map(np.uint64, key), np.uint64(slot), step, threshold)
        kernel_of("keep_mask", "float32")(*over(-(-keep.size // 8)), args)
    return keep


def normals(out: Array, key: Any, slot: int, step: Array) -> Array:
    """Fill `out` with the numbers of `xpnet.core.random.normals`, up to rounding. Args: see `keep_mask`."""
    if out.size:
        args = (out, np.int64(out.size), *map(np.uint64, key), np.uint64(slot), step)
        kernel_of("normals", out.dtype.name)(*over(-(-out.size // 8)), args)
    return out


def gather(data: Array, order: Array, out: Array) -> Array:
    """Fill `out` with the rows order[0], order[1], ... of `data`, in out's dtype.

    Args:
        data: of one of the dtypes in `SOURCES`. order: int32. All are contiguous.
    """
    if out.size:
        sizes = (np.int32(out.shape[0]), np.int64(out.size // out.shape[0]))
        kernel = kernel_of("gather", out.dtype.name, data.dtype.name)
        kernel(*over(out.size), (data, order, out, *sizes))
    return out
