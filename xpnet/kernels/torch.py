"""PyTorch twins for the CPU: the same results with `out=` and in place, in buffers that live from step to step.

Without an arena (`ctx.inplace` is False: inference, a part used alone, a GPU) the bodies do the work. What a twin
writes to is never part of PyTorch's own differentiation: a tensor of a user's layer that is, is taken without it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch

from .. import ops
from ..backend import Array
from .numpy import FLUSH, room_for

# One pass over weights and slots, in which `torch.optim.Adam(fused=True)` ends too. It is not public; by the
# public `torch.optim.adam.adam` the update of a small network takes more than twice as long.
_fused_adam = getattr(torch, "_fused_adamw_", None)


def affine(ctx: Any, x: Array, kernel: Array, bias: Array | None, activation: Any) -> Any:
    """Twin of `ops.affine`: gradients are written straight into the flat gradient."""
    if not ctx.inplace or x.ndim != 2 or kernel.ndim != 2 or ctx.backend.narrow:
        return ops.affine(ctx, x, kernel, bias, activation)
    x = _plain(x)
    z = _product(ctx, x, kernel, ctx.empty((x.shape[0], kernel.shape[1])), bias)
    forward, backward_of = _ACTIVATIONS.get(activation.name, (None, None))
    y = activation.forward(ctx.xp, z) if forward is None else forward(z)

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        dy = _plain(dy)
        if backward_of is None:
            dz = _plain(activation.backward(ctx.xp, dy, z, y))
        else:
            dz = backward_of(ctx, dy, y)
        grads = {"kernel": _product(ctx, x.t(), dz, room_for(ctx, into, "kernel", kernel))}
        if bias is not None:
            grads["bias"] = torch.sum(dz, 0, out=room_for(ctx, into, "bias", bias))
        return (_product(ctx, dz, kernel.t(), ctx.empty(x.shape)) if want_dx else None), grads

    return y, backward


def _product(ctx: Any, a: Array, b: Array, out: Array, bias: Array | None = None) -> Array:
    """Return a b + bias in `out`; few columns as (b^T a^T)^T, which takes MKL down to a sixth of the time."""
    if b.shape[1] <= 24 and a.numel() >= 1 << 14:
        turned = torch.mm(b.t(), a.t(), out=ctx.empty((b.shape[1], a.shape[0])))
        out.copy_(turned.t())
        return out if bias is None else out.add_(bias)
    return torch.mm(a, b, out=out) if bias is None else torch.addmm(bias, a, b, out=out)


def _plain(x: Array) -> Array:
    """Return `x` outside PyTorch's own differentiation, which writes to no given memory."""
    return x.detach() if x.requires_grad else x


# Activations whose derivative needs only their output: z's memory is used again for a = f(z).


def _relu_backward(ctx: Any, da: Array, a: Array) -> Array:
    # a is not negative, so its sign is the derivative; comparing it takes ten times as long
    return torch.sign(a, out=ctx.empty(a.shape)).mul_(da)


def _tanh_backward(ctx: Any, da: Array, a: Array) -> Array:
    slope = torch.mul(a, a, out=ctx.empty(a.shape))
    return torch.addcmul(da, slope, da, value=-1.0, out=slope)


def _sigmoid_backward(ctx: Any, da: Array, a: Array) -> Array:
    return torch.addcmul(a, a, a, value=-1.0, out=ctx.empty(a.shape)).mul_(da)


_ACTIVATIONS = {
    "relu": (torch.relu_, _relu_backward),
    "tanh": (torch.tanh_, _tanh_backward),
    "sigmoid": (torch.sigmoid_, _sigmoid_backward),
    "linear": (lambda z: z, lambda ctx, da, a: da),
}


def softmax_cross_entropy(ctx: Any, z: Array, target: Array, weight: Any) -> tuple[Array, Array, Array]:
    """Twin of `ops.softmax_cross_entropy`, for class numbers; one-hot targets go to the body."""
    if not ctx.inplace or z.ndim != 2 or target.ndim != 1:
        return ops.softmax_cross_entropy(ctx, z, target, weight)
    target, logs = target.long(), torch.log_softmax(_plain(z), 1, out=ctx.empty(z.shape))
    try:
        values = torch.nn.functional.nll_loss(logs, target, reduction="none")
        a = torch.exp(logs, out=logs)
        dz = ctx.empty(z.shape).copy_(a)
        dz.scatter_add_(1, target.unsqueeze(1), _filled((len(dz), 1), -1.0, dz.dtype))
    except (IndexError, RuntimeError):
        if int(target.min()) >= 0 and int(target.max()) < z.shape[1]:
            raise
        a = dz = values = torch.full_like(z, math.nan)  # a label is no class
        values = values[:, 0]
    return values, dz.mul_(_number(weight, dz.dtype) if isinstance(weight, float) else weight.unsqueeze(-1)), a


@lru_cache(maxsize=64)
def _filled(shape: tuple[int, ...], value: float, dtype: Any) -> Array:
    return torch.full(shape, value, dtype=dtype, device="cpu")


def row_total(ctx: Any, values: Array, weight: Array | None, scale: float) -> Any:
    """Twin of `ops.row_total`: one product."""
    if not ctx.inplace or values.ndim != 1 or weight is not None:
        return ops.row_total(ctx, values, weight, scale)
    return torch.dot(_plain(values), _filled(tuple(values.shape), scale, values.dtype))


def pack(ctx: Any, layout: Any, parts: dict[str, Array], room: Any) -> Array:
    """Twin of `ops.pack`: copies only what is not in its place already."""
    if room is None:
        return ops.pack(ctx, layout, parts, room)
    flat, views = room
    for path, part in parts.items():
        if part is not views[path]:
            views[path].copy_(_plain(part))
    return flat


def penalize(ctx: Any, w: Array, g: Array, segments: Any) -> tuple[Any, Array]:
    """Twin of `ops.penalize`, in the gradient's own memory."""
    if not ctx.inplace or w.ndim != 1:
        return ops.penalize(ctx, w, g, segments)
    value: Any = 0.0
    for start, stop, l1, l2 in segments:
        part, slope = w[start:stop], g[start:stop]
        if l1:
            value = value + l1 * torch.sum(torch.abs(part))
            slope.add_(torch.sign(part), alpha=l1)
        if l2:
            value = value + l2 * torch.dot(part, part)
            slope.add_(part, alpha=2.0 * l2)
    return value, g


def sound(ctx: Any, ok: Any, lr: Any, limit: float, flats: Any, *others: Array) -> Any:
    """Twin of `ops.sound`: the host looks at the numbers, which are in its memory."""
    if not ctx.inplace or any(flat.ndim != 1 for flat in flats):
        return ops.sound(ctx, ok, lr, limit, flats, *others)
    well = bool(ok) and float(lr) <= ops.LARGEST_RATE
    for flat in flats:
        well = well and float(torch.dot(flat, flat)) <= limit * limit
    for a in others:
        if a.ndim == 0:
            well = well and math.isfinite(_plain(a))
        elif a.numel():
            well = well and bool(torch.isfinite(a).all())
    return ok if well else torch.zeros_like(ok)


def tally(ctx: Any, ok: Any, counted: Any, step: Any, age: Any, sums: Any, parts: Any) -> Any:
    """Twin of `ops.tally`: the host looks at the flags, and adds up with Python's numbers."""
    if not ctx.inplace:
        return ops.tally(ctx, ok, counted, step, age, sums, parts)
    taken = bool(ok)
    if taken:
        step, age = torch.add(step, _number(1, step.dtype)), torch.add(age, _number(1.0, age.dtype))
    if taken if counted is ok else counted:
        sums = sums.clone()
        room, i = sums.numpy(), 0
        for a, factor in parts:
            a = _plain(a) if isinstance(a, torch.Tensor) else a
            shape = getattr(a, "shape", ())
            if len(shape) == 0:
                room[i] += float(a) * factor
                i += 1
            else:
                room[i : i + a.numel()] += factor * a.reshape(-1).numpy()
                i += a.numel()
    return step, age, sums


def _number(value: Any, dtype: Any) -> Array:
    """Return a number as a tensor, with which PyTorch computes in half the time that Python's own takes."""
    return value if isinstance(value, torch.Tensor) else _filled((), value, dtype)


# Optimizers: in place where no update can overflow, since the guard has seen gradient and weights. Otherwise
# the body does it, which leaves weights and slots as they were: the guard may yet hold the update back. What
# writes over weights and slots is put off to the end of the step.


def _in_place(ctx: Any, w: Array, slots: Any, beta: float, epsilon: float, decay: float) -> bool:
    """Return whether weights and slots may be written to.

    Nobody may write to tensors that were made under a user's `torch.inference_mode()`: the body makes others.
    """
    tame = ctx.overwrite and w.ndim == 1 and ops.never_overflows(beta, epsilon, decay)
    return tame and not any(a.is_inference() for a in (w, *slots))


def _scaled(ctx: Any, g: Array, factor: Any) -> Array:
    return g if factor is None else torch.mul(g, factor, out=ctx.empty(g.shape))


def _decay(ctx: Any, w: Array, lr: Any, decay: float) -> None:
    if decay:
        ctx.later(w.mul_, 1.0 - float(lr) * decay)


def sgd(
    ctx: Any,
    w: Array,
    g: Array,
    slots: Any,
    lr: Any,
    momentum: float,
    nesterov: bool,
    decay: float = 0.0,
    factor: Any = None,
) -> Any:
    """Twin of `ops.sgd`."""
    if not _in_place(ctx, w, slots, momentum, 1.0, decay):
        return ops.sgd(ctx, w, g, slots, lr, momentum, nesterov, decay, factor)
    g, rate = _scaled(ctx, g, factor), float(lr)
    _decay(ctx, w, lr, decay)
    if slots:
        (v,) = slots
        ctx.later(v.mul_, momentum)
        ctx.later(v.add_, g, alpha=-rate)
    if slots and not nesterov:
        ctx.later(w.add_, v)
    elif slots:
        ctx.later(w.add_, v, alpha=momentum)
    if nesterov or not slots:
        ctx.later(w.add_, g, alpha=-rate)
    return w, slots


def momentum(
    ctx: Any, w: Array, g: Array, slots: Any, lr: Any, beta: float, decay: float = 0.0, factor: Any = None
) -> Any:
    """Twin of `ops.momentum`."""
    if not _in_place(ctx, w, slots, beta, 1.0, decay):
        return ops.momentum(ctx, w, g, slots, lr, beta, decay, factor)
    _decay(ctx, w, lr, decay)
    (v,) = slots
    ctx.later(v.mul_, beta)
    ctx.later(v.add_, _scaled(ctx, g, factor), alpha=1.0 - beta)
    ctx.later(w.add_, v, alpha=-float(lr))
    return w, slots


def rmsprop(
    ctx: Any,
    w: Array,
    g: Array,
    slots: Any,
    lr: Any,
    rho: float,
    epsilon: float,
    inside: bool,
    decay: float = 0.0,
    factor: Any = None,
) -> Any:
    """Twin of `ops.rmsprop`."""
    if not _in_place(ctx, w, slots, rho, epsilon, decay):
        return ops.rmsprop(ctx, w, g, slots, lr, rho, epsilon, inside, decay, factor)
    g, room, (s,) = _scaled(ctx, g, factor), ctx.empty(w.shape), slots
    _decay(ctx, w, lr, decay)
    ctx.later(s.mul_, rho)
    ctx.later(s.addcmul_, g, g, value=1.0 - rho)
    if inside:
        ctx.later(torch.add, s, epsilon, out=room)
        ctx.later(room.sqrt_)
    else:
        ctx.later(torch.sqrt, s, out=room)
        ctx.later(room.add_, epsilon)
    ctx.later(w.addcdiv_, g, room, value=-float(lr))
    return w, slots


def adam(
    ctx: Any,
    w: Array,
    g: Array,
    slots: Any,
    lr: Any,
    age: Any,
    beta_1: float,
    beta_2: float,
    epsilon: float,
    corrected: bool,
    decay: float = 0.0,
    factor: Any = None,
) -> Any:
    """Twin of `ops.adam`: PyTorch's own, whose epsilon is the `corrected` one.

    So the other one is divided by sqrt(c2) here. Now and then averages that are far too small to matter become 0
    (see `numpy._flush`): subnormal numbers take the update twice its time.
    """
    if _fused_adam is None or not _in_place(ctx, w, slots, max(beta_1, beta_2), epsilon, decay):
        return ops.adam(ctx, w, g, slots, lr, age, beta_1, beta_2, epsilon, corrected, decay, factor)
    t = float(age)
    if t % FLUSH == 0:
        for slot in slots:
            ctx.later(torch.hardshrink, slot, 1e8 * torch.finfo(slot.dtype).tiny, out=slot)
    means, squares = ([slot] for slot in slots)
    ctx.later(
        _fused_adam,
        [w], [_scaled(ctx, g, factor)], means, squares, [], [age], lr=float(lr), beta1=beta_1, beta2=beta_2,
        weight_decay=decay, eps=epsilon if corrected else epsilon / math.sqrt(1.0 - beta_2**t),
        amsgrad=False, maximize=False,
    )  # fmt: skip
    return w, slots
