"""CuPy: the kernels of `cuda_kernels.cu`, compiled once for each dtype, and what launching them takes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["GRID", "KEPT_IN", "NULL", "SOURCES", "WARPS", "by_warp", "fit", "kernel_of", "module", "over", "total"]

Array = Any  # a CuPy array

BLOCK = 256  # threads
GRID = 2048  # blocks at most where a kernel takes any number; more than a GPU has at work at a time
WARPS = (32, 8)  # the block of kernels that work by warps or add up columns
NULL = np.uintp(0)  # CuPy takes None for a pointer, but not for a null pointer

_COMPUTED = {"float32": "float", "float64": "double", "int32": "int"}  # int32: for `gather`
_ROUNDS = {"float16": "to_float16", "bfloat16": "to_bfloat16"}  # functions of `cuda_kernels.cu`
KEPT_IN = {"float16": np.dtype("float16"), "bfloat16": np.dtype("uint16")}  # CuPy has no bfloat16 of its own
SOURCES = {
    "float32": "float",
    "float64": "double",
    "uint8": "unsigned char",
    "int32": "int",
    "int64": "long long",
}


@lru_cache
def module(dtype: str, source: str | None = None, narrow: str | None = None) -> Any:
    """Return the kernels for arrays of a dtype; with `source` only `gather`, from that dtype.

    Args:
        narrow: `"float16"` or `"bfloat16"`, what factors of products are rounded to.
    """
    import cupy

    macros = {"XP_A": _COMPUTED[dtype]}
    if source is not None:
        macros["XP_S"] = SOURCES[source]
    if narrow is not None:
        macros["XP_N"] = _ROUNDS[narrow]
    code = Path(__file__).with_name("cuda_kernels.cu").read_text(encoding="utf-8")
    return cupy.RawModule(code=code, options=tuple(f"-D{name}={value}" for name, value in macros.items()))


@lru_cache
def kernel_of(name: str, dtype: str, source: str | None = None, narrow: str | None = None) -> Any:
    """Return a kernel by name: `kernel(grid, block, arguments)`; the rest as for `module`."""
    return module(dtype, source, narrow).get_function(name)


def over(n: int) -> tuple[tuple[int], tuple[int]]:
    """Return grid and block for n elements."""
    return (min(-(-n // BLOCK), GRID),), (BLOCK,)


def by_warp(rows: int) -> tuple[tuple[int], tuple[int, int]]:
    """Return grid and block for a warp per row."""
    return (min(-(-rows // WARPS[1]), GRID),), WARPS


def fit(ctx: Any, *arrays: Array) -> bool:
    """Return whether the kernels can take these arrays: contiguous, of the model's dtype; and write at all."""
    return ctx.inplace and all(a.dtype == ctx.dtype and a.flags.c_contiguous for a in arrays)


def total(ctx: Any, values: Array, weight: Array | None = None, scale: float = 1.0) -> Array:
    """Return scale * sum(values * weight), 0-d."""
    out = ctx.empty(())
    args = (values, NULL if weight is None else weight, values.dtype.type(scale), out, np.int32(values.size))
    kernel_of("sum_scaled", values.dtype.name)((1,), (1024,), args)
    return out
