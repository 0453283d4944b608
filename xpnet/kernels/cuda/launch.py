"""Compile CUDA kernels, once for each dtype, and prepare their launches.

The kernels of `kernels.cu` are one module. A kernel that `xpnet.fusion.cuda` writes from a formula is a separate
module, compiled when first used. CuPy caches compiled code on disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...fusion.trace import Graph

__all__ = [
    "MAX_BLOCKS",
    "NULL",
    "SOURCES",
    "STORAGE_DTYPE",
    "WARPS",
    "by_warp",
    "fit",
    "kernel_made_by",
    "kernel_of",
    "module",
    "over",
    "total",
]  # fmt: skip

Array = Any  # a CuPy array

THREADS_PER_BLOCK = 256  # threads
MAX_BLOCKS = 2048  # largest number of blocks of kernels that accept any; more than a GPU runs at a time
WARPS = (32, 8)  # the block of kernels that work in warps or add up columns
NULL = np.uintp(0)  # CuPy accepts None for a pointer, but not for a null pointer

_COMPUTED = {"float32": "float", "float64": "double", "int32": "int"}  # int32: for `gather`
_ROUNDS = {"float16": "to_float16", "bfloat16": "to_bfloat16"}  # functions of `helpers.cu`
STORAGE_DTYPE = {"float16": np.dtype("float16"), "bfloat16": np.dtype("uint16")}  # CuPy has no bfloat16
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
        narrow: `"float16"` or `"bfloat16"`, the dtype to which factors of products are rounded.
    """
    return _compiled(_text("kernels.cu"), dtype, source, narrow)


@lru_cache
def kernel_of(name: str, dtype: str, source: str | None = None, narrow: str | None = None) -> Any:
    """Return a kernel by name: `kernel(grid, block, arguments)`; the other arguments are those of `module`."""
    return module(dtype, source, narrow).get_function(name)


@lru_cache
def kernel_made_by(
    write: Callable[..., str],
    key: tuple[Any, Any, int, int],
    dtype: str,
    narrow: str | None = None,
    **settings: Any,
) -> Any:
    """Return the kernel with the code `write(graph, **settings)`, for graphs of the structure `key` (`Graph.key`).

    The other arguments are those of `module`.
    """
    code = write(Graph(*key, ()), **settings)
    (name,) = re.findall(r"__global__ void (\w+)", code)
    return _compiled(code, dtype, None, narrow).get_function(name)


def _compiled(code: str, dtype: str, source: str | None, narrow: str | None) -> Any:
    import cupy

    macros = {"XP_A": _COMPUTED[dtype]}
    if source is not None:
        macros["XP_S"] = SOURCES[source]
    if narrow is not None:
        macros["XP_N"] = _ROUNDS[narrow]
    options = tuple(f"-D{name}={value}" for name, value in macros.items())
    return cupy.RawModule(code=f"{_text('helpers.cu')}\n{code}", options=options)


def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def over(n: int) -> tuple[tuple[int], tuple[int]]:
    """Return grid and block for n elements."""
    return (min(-(-n // THREADS_PER_BLOCK), MAX_BLOCKS),), (THREADS_PER_BLOCK,)


def by_warp(rows: int) -> tuple[tuple[int], tuple[int, int]]:
    """Return grid and block for a warp per row."""
    return (min(-(-rows // WARPS[1]), MAX_BLOCKS),), WARPS


def fit(ctx: Any, *arrays: Array) -> bool:
    """Return whether kernels can write at all and accept these arrays: contiguous, of the model's dtype."""
    return ctx.inplace and all(a.dtype == ctx.dtype and a.flags.c_contiguous for a in arrays)


def total(ctx: Any, values: Array, weight: Array | None = None, scale: float = 1.0) -> Array:
    """Return scale * sum(values * weight), 0-d."""
    out = ctx.empty(())
    args = (values, NULL if weight is None else weight, values.dtype.type(scale), out, np.int32(values.size))
    kernel_of("sum_scaled", values.dtype.name)((1,), (1024,), args)
    return out
