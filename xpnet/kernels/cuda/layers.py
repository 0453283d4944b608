"""CuPy twins for layers, losses and metrics: the same results from CUDA kernels, in persistent buffers.

Nothing here waits for the device, copies from it, or depends on a value on it, so a step can be captured into a
CUDA graph; values that change from step to step (learning rate, age, step) are passed as arrays. Without an arena
(`ctx.inplace` is False), and for shapes that the kernels do not support, the bodies run.

Twins for flat arrays are in `flat.py`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from ...core import ops
from .blas import available, matmul
from .generated import ActivationKernels, activation_kernels
from .launch import MAX_BLOCKS, NULL, STORAGE_DTYPE, WARPS, by_warp, fit, kernel_of, over, total

Array = Any  # a CuPy array


def _solid(ctx: Any, a: Array) -> Array:
    """Return a derivative in the dtype and layout that the kernels require."""
    if a.dtype == ctx.dtype and a.flags.c_contiguous:
        return a
    out = ctx.empty(a.shape)
    out[...] = a
    return out


def product(ctx: Any, a: Array, b: Array) -> Array:
    """Twin of `ops.product` for matrices, which may be transposed views: cuBLAS, as a capture allows it."""
    matrices = a.ndim == b.ndim == 2 and a.size and b.size and a.dtype == b.dtype == ctx.dtype
    solid = all(m.flags.c_contiguous or m.flags.f_contiguous for m in (a, b))
    if not (ctx.inplace and matrices and solid) or (ctx.backend.narrow and not available()):
        return ops.product(ctx, a, b)
    return matmul(_factor(ctx, a), _factor(ctx, b), ctx.empty((a.shape[0], b.shape[1])))


# Layers ---------------------------------------------------------------------------------------------------

# Used for the bias if an activation is not elementwise.
_IDENTITY = SimpleNamespace(name="linear", forward=lambda xp, z: z, backward=lambda xp, dy, z, y: dy)


def affine(ctx: Any, x: Array, kernel: Array, bias: Array | None, activation: Any) -> Any:
    """Twin of `ops.affine`: bias and activation in one pass, derivative and bias gradient in another.

    Both passes are kernels generated from the activation's formulas; an activation that is not elementwise runs
    between them. The scores are kept only if the derivative reads them. Under a mixed policy the second pass also
    rounds the derivative, for the products that use it.
    """
    given, narrow = (x, kernel) if bias is None else (x, kernel, bias), ctx.backend.narrow
    if not (fit(ctx, *given) and x.ndim >= kernel.ndim == 2 and x.size and kernel.size):
        return ops.affine(ctx, x, kernel, bias, activation)
    if x.ndim > 2 and getattr(activation, "axis", -1) != -1:  # which rows are not enough for
        return ops.affine(ctx, x, kernel, bias, activation)
    if x.ndim > 2:
        return _affine_of_rows(ctx, x, kernel, bias, activation)
    if narrow and not available():
        return ops.affine(ctx, x, kernel, bias, activation)
    fused = activation_kernels(ctx.backend, activation)
    passes = fused or activation_kernels(ctx.backend, _IDENTITY)
    if passes is None:
        return ops.affine(ctx, x, kernel, bias, activation)
    rows, units = x.shape[0], kernel.shape[1]
    x16, kernel16 = _factor(ctx, x), _factor(ctx, kernel)
    z = matmul(x16, kernel16, ctx.empty((rows, units)))
    y = ctx.empty(z.shape) if passes.keeps_scores else z
    if bias is not None or not passes.linear:
        passes.forward(z, bias, y)
    if fused is None:
        y = activation.forward(ctx.xp, z)

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        if fused is None:
            dy = activation.backward(ctx.xp, dy, z, y)
        dy = _solid(ctx, dy)
        dz = dy if passes.linear and not narrow else ctx.empty(dy.shape, narrow and STORAGE_DTYPE[narrow])
        grads = {}
        if bias is not None:
            grads["bias"] = into["bias"] if "bias" in into else ctx.empty(bias.shape)
        if dz is not dy or grads:
            _pull_back(ctx, passes, (dy, z, y), None if dz is dy else dz, grads.get("bias"))
        grads["kernel"] = into["kernel"] if "kernel" in into else ctx.empty(kernel.shape)
        matmul(x16.T, dz, grads["kernel"])
        return (matmul(dz, kernel16.T, ctx.empty(x.shape)) if want_dx else None), grads

    return y, backward


def _factor(ctx: Any, a: Array) -> Array:
    """Return a factor of a product, rounded to 16 bits under a mixed policy."""
    narrow = ctx.backend.narrow
    if narrow is None:
        return a
    if not a.flags.c_contiguous:  # a transposed view
        return _factor(ctx, a.T).T
    out = ctx.empty(a.shape, STORAGE_DTYPE[narrow])
    kernel_of("narrow", a.dtype.name, None, narrow)(*over(a.size), (a, out, np.int64(a.size)))
    return out


def _affine_of_rows(ctx: Any, x: Array, kernel: Array, bias: Array | None, activation: Any) -> Any:
    """Treat further leading axes as rows: shape (..., in) as (rows, in)."""
    xp = ctx.xp
    y, back = affine(ctx, xp.reshape(x, (-1, x.shape[-1])), kernel, bias, activation)

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        dx, grads = back(xp.reshape(dy, y.shape), into, want_dx)
        return (xp.reshape(dx, x.shape) if want_dx else None), grads

    return xp.reshape(y, (*x.shape[:-1], y.shape[-1])), backward


def _pull_back(
    ctx: Any, passes: ActivationKernels, given: tuple[Array, Array, Array], dz: Array | None, sums: Array | None
) -> None:
    """Write dz and the sums of its columns (None: not needed), in chunks of rows if there are many rows."""
    rows, units = given[0].shape
    chunks = max(1, min(rows // 256, MAX_BLOCKS // -(-units // WARPS[0])))
    partial = ctx.empty((chunks, units)) if chunks > 1 and sums is not None else sums
    passes.backward(*given, dz, partial, chunks)
    if partial is not sums:
        launch, sizes = kernel_of("column_sums", given[0].dtype.name), (np.int32(chunks), np.int32(units))
        launch((-(-units // WARPS[0]),), WARPS, (partial, sums, *sizes))


def dropout(ctx: Any, x: Array, keep: Array, rate: float) -> Any:
    """Twin of `ops.dropout`, without a floating-point mask."""
    if not (fit(ctx, x) and keep.flags.c_contiguous and keep.shape == x.shape and x.size):
        return ops.dropout(ctx, x, keep, rate)
    scale, n = x.dtype.type(1.0 / (1.0 - rate)), np.int64(x.size)

    def masked(a: Array) -> Array:
        out = ctx.empty(a.shape)
        kernel_of("dropout", a.dtype.name)(*over(a.size), (a, keep, scale, out, n))
        return out

    return masked(x), lambda dy: masked(_solid(ctx, dy))


# Losses ---------------------------------------------------------------------------------------------------


def softmax_cross_entropy(ctx: Any, z: Array, target: Array, weight: Any) -> tuple[Array, Array, Array]:
    """Twin of `ops.softmax_cross_entropy` for matrices of scores: a warp per row."""
    if not (z.ndim == 2 and z.size and fit(ctx, z) and target.flags.c_contiguous):
        return ops.softmax_cross_entropy(ctx, z, target, weight)
    sparse = target.ndim == 1 and target.dtype == np.int32 and target.shape == z.shape[:1]
    soft = target.dtype == z.dtype and target.shape == z.shape
    plain = isinstance(weight, float)
    if not (sparse or soft) or not (plain or (fit(ctx, weight) and weight.shape == z.shape[:1])):
        return ops.softmax_cross_entropy(ctx, z, target, weight)
    values, dz, a = ctx.empty(z.shape[:1]), ctx.empty(z.shape), ctx.empty(z.shape)
    targets = (target, NULL) if sparse else (NULL, target)
    weights = (NULL, z.dtype.type(weight)) if plain else (weight, z.dtype.type(1.0))
    sizes = (np.int32(z.shape[0]), np.int32(z.shape[1]))
    args = (z, *targets, *weights, dz, a, values, *sizes)
    kernel_of("softmax_ce", z.dtype.name)(*by_warp(z.shape[0]), args)
    return values, dz, a


def hits(ctx: Any, p: Array, target: Array) -> Array:
    """Twin of `ops.hits` for matrices: a warp per row."""
    labels = target.dtype == np.int32 and target.flags.c_contiguous and target.shape == p.shape[:1]
    if not (p.ndim == 2 and p.size and fit(ctx, p) and labels):
        return ops.hits(ctx, p, target)
    out = ctx.empty(p.shape[:1])
    args = (p, target, out, np.int32(p.shape[0]), np.int32(p.shape[1]))
    kernel_of("hits", p.dtype.name)(*by_warp(p.shape[0]), args)
    return out


def confusion(ctx: Any, target: Array, found: Array, weight: Array | None, classes: int) -> Array:
    """Twin of `ops.confusion`, whose product can't be captured."""
    if target.ndim > 1:
        each = [(target[i], found[i], None if weight is None else weight[i]) for i in range(target.shape[0])]
        return ctx.xp.stack([confusion(ctx, *one, classes) for one in each])
    labels = all(a.dtype == np.int32 and a.flags.c_contiguous and a.ndim == 1 and a.size for a in (target, found))
    if not (labels and ctx.inplace and (weight is None or fit(ctx, weight))):
        return ops.confusion(ctx, target, found, weight, classes)
    out = ctx.empty((classes, classes))
    args = (target, found, NULL if weight is None else weight, out, np.int32(target.size), np.int32(classes))
    kernel_of("confusion", out.dtype.name)(*over(out.size), args)
    return out


def row_total(ctx: Any, values: Array, weight: Array | None, scale: float) -> Array:
    """Twin of `ops.row_total`."""
    same = weight is None or (fit(ctx, weight) and weight.shape == values.shape)
    if not (fit(ctx, values) and values.size and same):
        return ops.row_total(ctx, values, weight, scale)
    return total(ctx, values, weight, scale)
