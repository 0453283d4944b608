"""The fused operations: each body, in plain array API, is the definition of what it computes.

Every operation takes `ctx` first (see `xpnet.context`) and memory from nowhere but `ctx.empty` and `into`.
`kernels/` may hold a faster twin of the same name and signature for one library, tested against the body.

`into`: views of the flat gradient that a twin may write to, by parameter name; empty where it may not. What
is returned is the truth. No operation writes into its arguments, except that an optimizer's twin may use up
the weights and slots it is given, where no update can overflow (`never_overflows`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .backend import Array

__all__ = [
    "adam",
    "affine",
    "batch_norm",
    "dropout",
    "momentum",
    "one_hot",
    "pack",
    "penalize",
    "product",
    "rmsprop",
    "sgd",
    "sigmoid_cross_entropy",
    "softmax_cross_entropy",
    "sound",
    "tally",
]

Backward = Callable[..., tuple[Array, dict[str, Array]]]


def product(ctx: Any, a: Array, b: Array) -> Array:
    """Return a b over the last two axes; under a mixed policy of the backend, from factors rounded to 16 bits.

    What is rounded: a and b to `backend.narrow`. What is not: their products, which add up in the model's dtype.
    """
    if ctx.backend.narrow is None:
        return ctx.xp.matmul(a, b)
    return ctx.xp.matmul(_narrowed(ctx, a), _narrowed(ctx, b))


def _narrowed(ctx: Any, a: Array) -> Array:
    """Return float32 numbers rounded to `backend.narrow`, in float32.

    Where the library has no bfloat16, which keeps 8 of float32's 24 bits: with c = (2^16 + 1) a it is
    c - (c - a)  (T. Dekker, "A floating-point technique for extending the available precision", 1971).
    """
    xp, narrow = ctx.xp, getattr(ctx.xp, ctx.backend.narrow, None)
    if narrow is not None:
        return xp.astype(xp.astype(a, narrow), a.dtype)
    c = 65537.0 * a
    return c - (c - a)


def affine(ctx: Any, x: Array, kernel: Array, bias: Array | None, activation: Any) -> tuple[Array, Backward]:
    """y = f(x W + b), and its backward.

    Args:
        x: shape (..., rows, in). kernel: (..., in, units). bias: (..., units) or None.
        activation: f, an `xpnet.activations.Activation`.

    With dz = f'(z) dy:  dW = x^T dz,  db = sum over rows of dz,  dx = dz W^T.
    """
    xp, product = ctx.xp, ctx.ops.product
    rows = x if x.ndim <= kernel.ndim else xp.reshape(x, (*kernel.shape[:-2], -1, x.shape[-1]))
    z = product(ctx, rows, kernel)
    if bias is not None:
        z = z + (bias if bias.ndim == 1 else xp.expand_dims(bias, axis=-2))
    y = activation.forward(xp, z)
    out_shape = (*x.shape[:-1], kernel.shape[-1])

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        dz = activation.backward(xp, xp.reshape(dy, z.shape), z, y)
        grads = {"kernel": product(ctx, xp.matrix_transpose(rows), dz)}
        if bias is not None:
            grads["bias"] = xp.sum(dz, axis=-2)
        dx = xp.reshape(product(ctx, dz, xp.matrix_transpose(kernel)), x.shape) if want_dx else None
        return dx, grads

    return (y if x.ndim <= kernel.ndim else xp.reshape(y, out_shape)), backward


def dropout(ctx: Any, x: Array, keep: Array, rate: float) -> tuple[Array, Callable[[Array], Array]]:
    """y = x / (1 - rate) where the boolean mask `keep` is set, else 0; dx = dy / (1 - rate) there, else 0.

    "Inverted" dropout (N. Srivastava et al., JMLR 15, 2014): the mean is kept, so inference needs no factor.
    """
    xp = ctx.xp
    mask = xp.astype(keep, x.dtype) * (1.0 / (1.0 - rate))
    return x * mask, lambda dy: dy * mask


def batch_norm(
    ctx: Any, x: Array, gamma: Array | None, beta: Array | None, axes: tuple[int, ...], epsilon: float
) -> tuple[Array, Array, Array, Backward]:
    """y = gamma * xh + beta, xh = (x - mean) / sqrt(var + epsilon); mean and (biased) var over `axes`.

    S. Ioffe, C. Szegedy, ICML 2015. With n rows and dxh = gamma * dy:
    dx = (dxh - mean(dxh) - xh * mean(dxh * xh)) / sqrt(var + epsilon).

    Returns y, mean, var (without the reduced axes) and the backward.
    """
    xp = ctx.xp
    mean = xp.mean(x, axis=axes, keepdims=True)
    centred = x - mean
    var = xp.mean(centred * centred, axis=axes, keepdims=True)
    inverse = 1.0 / xp.sqrt(var + epsilon)
    xh = centred * inverse
    y = xh if gamma is None else xh * gamma
    y = y if beta is None else y + beta

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        grads = {}
        if gamma is not None:
            grads["gamma"] = xp.sum(dy * xh, axis=axes)
        if beta is not None:
            grads["beta"] = xp.sum(dy, axis=axes)
        if not want_dx:
            return None, grads
        dxh = dy if gamma is None else dy * gamma
        slope = xp.mean(dxh * xh, axis=axes, keepdims=True)
        return (dxh - xp.mean(dxh, axis=axes, keepdims=True) - xh * slope) * inverse, grads

    return y, xp.squeeze(mean, axis=axes), xp.squeeze(var, axis=axes), backward


def one_hot(ctx: Any, labels: Array, classes: int, dtype: Any) -> Array:
    """1 where the class is the label, else 0: shape labels.shape + (classes,)."""
    xp = ctx.xp
    every = xp.arange(classes, dtype=labels.dtype, device=ctx.backend.device)
    return xp.astype(xp.expand_dims(labels, axis=-1) == every, dtype)


def softmax_cross_entropy(ctx: Any, z: Array, target: Array, weight: Any) -> tuple[Array, Array, Array]:
    """Return -sum(t * log(a)) over the last axis, its derivative by z times `weight`, and a = softmax(z).

    Args:
        z: scores, shape (..., classes). target: t, probabilities of the same shape or integer labels (...).
        weight: shape (...), or a number.

    With log(a) = z - max - log(sum(exp(z - max))) nothing overflows;  dz = a * sum(t) - t, which is a - t
    where t sums to one.
    """
    xp = ctx.xp
    sparse = target.ndim < z.ndim
    t = one_hot(ctx, target, z.shape[-1], z.dtype) if sparse else target
    shifted = z - xp.max(z, axis=-1, keepdims=True)
    e = xp.exp(shifted)
    total = xp.sum(e, axis=-1, keepdims=True)
    a = e / total
    values = -xp.sum(t * (shifted - xp.log(total)), axis=-1)
    dz = a - t if sparse else a * xp.sum(t, axis=-1, keepdims=True) - t
    return values, dz * columns(xp, weight), a


def sigmoid_cross_entropy(ctx: Any, z: Array, target: Array, weight: Any) -> tuple[Array, Array, Array]:
    """Return -(t log(a) + (1 - t) log(1 - a)), its mean over the last axis; the derivative; a = sigmoid(z).

    Args:
        z: scores, shape (..., units). target: t in [0, 1], the same shape. weight: shape (...), or a number.

    In the stable form max(z, 0) - z t + log(1 + exp(-|z|));  dz = (a - t) / units, times `weight`.
    """
    xp = ctx.xp
    e = xp.exp(-xp.abs(z))
    a = xp.where(z >= 0, xp.ones_like(e), e) / (1.0 + e)
    values = xp.mean(xp.maximum(z, xp.zeros_like(z)) - z * target + xp.log1p(e), axis=-1)
    return values, (a - target) * (columns(xp, weight) / z.shape[-1]), a


def penalize(
    ctx: Any, w: Array, g: Array, segments: Sequence[tuple[int, int, float, float]]
) -> tuple[Array, Array]:
    """Return the penalty sum(l1 |w| + l2 w^2) over the segments, and g + its gradient l1 sign(w) + 2 l2 w."""
    xp, value, parts, done = ctx.xp, 0.0, [], 0
    for start, stop, l1, l2 in segments:
        part = w[..., start:stop]
        value = value + l1 * xp.sum(xp.abs(part)) + l2 * xp.sum(part * part)
        parts += [g[..., done:start], g[..., start:stop] + (l1 * xp.sign(part) + (2.0 * l2) * part)]
        done = stop
    return value, xp.concat([*parts, g[..., done:]], axis=-1)


def pack(ctx: Any, layout: Any, parts: dict[str, Array], room: tuple[Array, dict[str, Array]] | None) -> Array:
    """Return the gradients by path as one flat array, in the layout's order (see `xpnet.params`).

    `room` is the flat array whose views were offered as `into`, and those views by path; or None.
    """
    return layout.pack(ctx.xp, parts)


def sound(ctx: Any, limit: float, flat: Array, *others: Array) -> Array:
    """Return whether the norm of a flat array, shape (..., size), is at most `limit`, and the others are finite.

    A 0-d boolean array, left on the device. By the sum of squares, which NaN and infinity spoil.
    """
    xp = ctx.xp
    result = xp.all(xp.vecdot(flat, flat) <= limit * limit)
    for a in others:
        result = result & xp.all(xp.isfinite(a))
    return result


def tally(
    ctx: Any, ok: Array, step: Array, age: Array, sums: Sequence[tuple[Array, Array]], parts: Sequence[Any]
) -> tuple[Array, Array, Any]:
    """Return step + 1, age + 1 and the (sum, weight) pairs with this batch's added; all as they were unless `ok`.

    Args:
        ok: 0-d boolean. step: int32. parts: a batch's (sum, weight) for each pair; weights may be numbers.
    """

    def taken(old: Array, more: Any) -> Array:
        return ctx.xp.where(ok, old + more, old)

    pairs = tuple((taken(total, a), taken(weight, w)) for (total, weight), (a, w) in zip(sums, parts))
    return taken(step, 1), taken(age, 1.0), pairs


def sgd(
    ctx: Any, w: Array, g: Array, slots: tuple[Array, ...], lr: Array, momentum: float, nesterov: bool
) -> tuple[Array, tuple[Array, ...]]:
    """w - lr g; with momentum (B. Polyak 1964)  v' = momentum v - lr g,  w' = w + v'.

    Nesterov's form (I. Sutskever et al., ICML 2013) looks ahead:  w' = w + momentum v' - lr g.
    """
    if not slots:
        return w - lr * g, ()
    v = momentum * slots[0] - lr * g
    return (w + momentum * v - lr * g if nesterov else w + v), (v,)


def momentum(
    ctx: Any, w: Array, g: Array, slots: tuple[Array, ...], lr: Array, beta: float
) -> tuple[Array, tuple[Array, ...]]:
    """v' = beta v + (1 - beta) g,  w' = w - lr v': the moving-average form, without bias correction."""
    v = beta * slots[0] + (1.0 - beta) * g
    return w - lr * v, (v,)


def rmsprop(
    ctx: Any,
    w: Array,
    g: Array,
    slots: tuple[Array, ...],
    lr: Array,
    rho: float,
    epsilon: float,
    inside: bool,
) -> tuple[Array, tuple[Array, ...]]:
    """s' = rho s + (1 - rho) g^2;  w' = w - lr g / sqrt(s' + epsilon), or w - lr g / (sqrt(s') + epsilon).

    G. Hinton, lecture 6e, 2012. `inside` puts epsilon inside the root.
    """
    xp = ctx.xp
    s = rho * slots[0] + (1.0 - rho) * (g * g)
    return w - lr * g / (xp.sqrt(s + epsilon) if inside else xp.sqrt(s) + epsilon), (s,)


def adam(
    ctx: Any,
    w: Array,
    g: Array,
    slots: tuple[Array, ...],
    lr: Array,
    age: Array,
    beta_1: float,
    beta_2: float,
    epsilon: float,
    corrected: bool,
) -> tuple[Array, tuple[Array, ...]]:
    """Adaptive moments (D. Kingma, J. Ba, ICLR 2015); `age` is t, which counts from 1.

    m' = b1 m + (1 - b1) g,  v' = b2 v + (1 - b2) g^2,  c1 = 1 - b1^t,  c2 = 1 - b2^t
    w' = w - lr sqrt(c2)/c1 * m' / (sqrt(v') + epsilon),  or with `corrected`
    w' = w - lr * (m' / c1) / (sqrt(v' / c2) + epsilon).
    """
    xp = ctx.xp
    m = beta_1 * slots[0] + (1.0 - beta_1) * g
    v = beta_2 * slots[1] + (1.0 - beta_2) * (g * g)
    root2 = xp.sqrt(bias_correction(xp, beta_2, age))
    rate = lr * root2 / bias_correction(xp, beta_1, age)
    # sqrt(v / c2) + eps  =  (sqrt(v) + eps sqrt(c2)) / sqrt(c2): one formula serves both forms
    return w - rate * m / (xp.sqrt(v) + (epsilon * root2 if corrected else epsilon)), (m, v)


# The guard's limits by precision: of the norm of the gradient, and of the weights. With LARGEST_RATE and
# `never_overflows` they keep every update and every moving average far from the largest number.
LIMITS = {"float32": 1e18, "float64": 1e150}
LARGEST_RATE = 1e6


def never_overflows(decay: float, epsilon: float = 1.0) -> bool:
    """Return whether an optimizer with these numbers turns what is within `LIMITS` into finite numbers.

    The largest update is LARGEST_RATE * 1e18 / epsilon, the largest average or sum 1e18^2 / (1 - decay).
    """
    return decay <= 0.9999 and epsilon >= 1e-10


def bias_correction(xp: Any, beta: float, age: Array) -> Array:
    """Return 1 - beta^age without the cancellation that costs float32 five digits: -expm1(age log(beta))."""
    return -xp.expm1(age * math.log(beta)) if beta > 0 else xp.ones_like(age)


def columns(xp: Any, weight: Any) -> Any:
    """Return per-row weights so that they multiply rows of a last axis; a number as it is."""
    return weight if isinstance(weight, float) else xp.expand_dims(weight, axis=-1)
