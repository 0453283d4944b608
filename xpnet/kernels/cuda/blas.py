"""Multiply matrices of CuPy with cuBLAS directly, because CuPy's own products can't be captured into a CUDA graph.

cuBLAS is column-major. A row-major C = A B of shape (m, n) is its C^T = B^T A^T: the same memory, with the factors
exchanged. A factor that is a transposed view is passed with the corresponding flag, and never copied.

`XPNET_MATMUL_PRECISION`: `highest` (float32 products in float32) or `tf32` (factors rounded to 10 bits).
16-bit factors are multiplied as such, and accumulated in float32.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np

from ...errors import unknown_name

__all__ = ["MATMUL_PRECISIONS", "available", "matmul", "precision"]

MATMUL_PRECISIONS = ("highest", "tf32")
WORKSPACE = 32 << 20  # bytes, as NVIDIA recommends for Hopper; cuBLAS must not allocate during a capture


@cache
def available() -> bool:
    """Return whether the bindings are installed."""
    try:
        from nvmath.bindings import cublas  # noqa: F401
    except ImportError:
        return False
    return True


def precision() -> str:
    """Return the precision of float32 products.

    Raises:
        UnknownNameError: XPNET_MATMUL_PRECISION is not one of `MATMUL_PRECISIONS`.
    """
    name = os.environ.get("XPNET_MATMUL_PRECISION") or "highest"
    if name not in MATMUL_PRECISIONS:
        raise unknown_name("XPNET_MATMUL_PRECISION", name, MATMUL_PRECISIONS)
    return name


@cache
def _handle(device: int, stream: int) -> tuple[int, Any]:
    """Return cuBLAS's handle for a stream, and its workspace; both live as long as the process, as streams do."""
    import cupy
    from nvmath.bindings import cublas

    handle = cublas.create()
    cublas.set_stream(handle, stream)
    workspace = cupy.cuda.Memory(WORKSPACE)  # not from a pool, because graphs keep its address
    cublas.set_workspace(handle, workspace.ptr, WORKSPACE)  # after set_stream, which resets it
    return handle, workspace


def _factor(a: Any) -> tuple[int, bool, int] | None:
    """Return a matrix as (address, whether it is a transposed view, leading dimension)."""
    if a.flags.c_contiguous:
        return a.data.ptr, False, a.shape[1]
    if a.flags.f_contiguous:
        return a.data.ptr, True, a.shape[0]
    return None


def matmul(a: Any, b: Any, out: Any) -> Any:
    """Write a b to `out` and return it; shapes (m, k) and (k, n), one dtype. `out` is contiguous.

    Factors of float16, or of bfloat16 in arrays of uint16 (CuPy has no bfloat16), require the bindings;
    `out` is float32 then.
    """
    import cupy

    tf32 = precision() == "tf32"
    left, right = _factor(a), _factor(b)
    if not available() or left is None or right is None or not out.flags.c_contiguous:
        return cupy.matmul(a, b, out=out)
    from nvmath.bindings import cublas

    transpose, compute = cublas.Operation, cublas.ComputeType
    kind = _CUDA_TYPES[a.dtype.name]
    (one, zero), way = _ONE_ZERO[0], compute.COMPUTE_32F
    if a.dtype.name == "float64":
        (one, zero), way = _ONE_ZERO[1], compute.COMPUTE_64F
    elif a.dtype.name == "float32" and tf32:
        way = compute.COMPUTE_32F_FAST_TF32
    (m, k), n = a.shape, b.shape[1]
    handle, _ = _handle(cupy.cuda.get_device_id(), cupy.cuda.get_current_stream().ptr)
    cublas.gemm_ex(
        handle,
        transpose.T if right[1] else transpose.N,
        transpose.T if left[1] else transpose.N,
        n,
        m,
        k,
        one.ctypes.data,
        right[0],
        kind,
        right[2],
        left[0],
        kind,
        left[2],
        zero.ctypes.data,
        out.data.ptr,
        _CUDA_TYPES[out.dtype.name],
        n,
        way,
        cublas.GemmAlgo.DEFAULT,
    )
    return out


_CUDA_TYPES = {
    "float32": 0,
    "float64": 1,
    "float16": 2,
    "uint16": 14,
}  # cudaDataType, library_types.h: 14 is CUDA_R_16BF
_ONE_ZERO = tuple((np.asarray(1, d), np.asarray(0, d)) for d in ("float32", "float64"))  # read during the call
