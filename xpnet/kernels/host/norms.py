"""Loops for `ops.normalize`, compiled by numba: two passes over memory where NumPy takes about twenty."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...core import ops
from .calls import filled
from .jit import sum_loop

__all__ = ["normalize"]

Array = np.ndarray


def normalize(
    ctx: Any,
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    axes: tuple[int, ...],
    epsilon: float,
    others: tuple[int, ...] | None = None,
    center: bool = True,
) -> Any:
    """Twin of `ops.normalize` over the last axis (rows), or over all axes but the last (columns).

    Rows are those of `LayerNormalization`, `RMSNormalization` and, where rows take turns with gamma and beta, of
    `GroupNormalization`; columns are those of `BatchNormalization`.
    """
    others, first = axes if others is None else others, tuple(range(-x.ndim, -1))
    by_row = axes == (-1,) and others == first[: len(others)]
    size = math.prod(x.shape[len(others) :])  # of gamma and beta
    plain = (
        ctx.inplace and x.size and x.dtype == ctx.dtype and all(a is None or a.size == size for a in (gamma, beta))
    )
    if not (plain and (by_row or (axes == others == first and center))):
        return ops.normalize(ctx, x, gamma, beta, axes, epsilon, others, center)
    forward, back = (_normalize_rows, _rows_back) if by_row else (_normalize_columns, _columns_back)
    n, eps = x.shape[-1], x.dtype.type(epsilon)
    scale, shift = (
        filled((size // n, n), value, x.dtype) if a is None else a.reshape(-1, n)
        for a, value in ((gamma, 1.0), (beta, 0.0))
    )
    reduced = tuple(1 if a in axes else x.shape[a] for a in range(-x.ndim, 0))
    y, mean, var = ctx.empty(x.shape), ctx.empty(reduced), ctx.empty(reduced)
    read = x.reshape(-1, n), scale, mean.reshape(-1), var.reshape(-1), eps, center
    ctx.launch(forward, *read, shift, y.reshape(-1, n))

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        dy = dy if dy.dtype == x.dtype else np.astype(dy, x.dtype)
        dx, dgamma, dbeta = ctx.empty(x.shape), ctx.empty(scale.shape), ctx.empty(scale.shape)
        ctx.launch(back, *read, dy.reshape(-1, n), dx.reshape(-1, n), dgamma, dbeta)
        found = (("gamma", gamma, dgamma), ("beta", beta, dbeta))
        return (dx if want_dx else None), {
            name: d.reshape(x.shape[len(others) :]) for name, a, d in found if a is not None
        }

    return y, mean, var, backward


@sum_loop
def _normalize_rows(
    x: Array, gamma: Array, mean: Array, var: Array, epsilon: Any, center: bool, beta: Array, y: Array
) -> None:
    zero, one, n = x.dtype.type(0), x.dtype.type(1), x.dtype.type(x.shape[1])
    for i in range(x.shape[0]):
        k = i % gamma.shape[0]
        m = v = zero
        if center:
            for j in range(x.shape[1]):
                m += x[i, j]
            m /= n
        for j in range(x.shape[1]):
            v += (x[i, j] - m) * (x[i, j] - m)
        v /= n
        inverse = one / math.sqrt(v + epsilon)
        for j in range(x.shape[1]):
            y[i, j] = (x[i, j] - m) * inverse * gamma[k, j] + beta[k, j]
        mean[i], var[i] = m, v


@sum_loop
def _rows_back(
    x: Array, gamma: Array, mean: Array, var: Array, epsilon: Any, center: bool,
    dy: Array, dx: Array, dgamma: Array, dbeta: Array,
) -> None:  # fmt: skip
    zero, one, n = x.dtype.type(0), x.dtype.type(1), x.dtype.type(x.shape[1])
    dgamma[:] = zero
    dbeta[:] = zero
    for i in range(x.shape[0]):
        k = i % gamma.shape[0]
        m, inverse = mean[i], one / math.sqrt(var[i] + epsilon)
        total = slope = zero
        for j in range(x.shape[1]):
            d = dy[i, j] * gamma[k, j]
            total += d
            slope += d * (x[i, j] - m) * inverse
        total = total / n if center else zero
        slope /= n
        for j in range(x.shape[1]):
            xh = (x[i, j] - m) * inverse
            dgamma[k, j] += dy[i, j] * xh
            dbeta[k, j] += dy[i, j]
            dx[i, j] = (dy[i, j] * gamma[k, j] - total - xh * slope) * inverse


@sum_loop
def _normalize_columns(
    x: Array, gamma: Array, mean: Array, var: Array, epsilon: Any, center: bool, beta: Array, y: Array
) -> None:
    zero, one, n = x.dtype.type(0), x.dtype.type(1), x.dtype.type(x.shape[0])
    mean[:] = zero
    var[:] = zero
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            mean[j] += x[i, j]
    for j in range(x.shape[1]):
        mean[j] /= n
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            var[j] += (x[i, j] - mean[j]) * (x[i, j] - mean[j])
    slope = np.empty_like(mean)
    for j in range(x.shape[1]):
        var[j] /= n
        slope[j] = gamma[0, j] * (one / math.sqrt(var[j] + epsilon))
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            y[i, j] = (x[i, j] - mean[j]) * slope[j] + beta[0, j]


@sum_loop
def _columns_back(
    x: Array, gamma: Array, mean: Array, var: Array, epsilon: Any, center: bool,
    dy: Array, dx: Array, dgamma: Array, dbeta: Array,
) -> None:  # fmt: skip
    zero, one, n = x.dtype.type(0), x.dtype.type(1), x.dtype.type(x.shape[0])
    dgamma[:] = zero
    dbeta[:] = zero
    inverse = np.empty_like(mean)
    for j in range(x.shape[1]):
        inverse[j] = one / math.sqrt(var[j] + epsilon)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            dgamma[0, j] += dy[i, j] * (x[i, j] - mean[j]) * inverse[j]
            dbeta[0, j] += dy[i, j]
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            xh = (x[i, j] - mean[j]) * inverse[j]
            dx[i, j] = (dy[i, j] - dbeta[0, j] / n - xh * (dgamma[0, j] / n)) * (gamma[0, j] * inverse[j])
