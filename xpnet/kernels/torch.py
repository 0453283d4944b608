"""PyTorch twins for the CPU: the same results with `out=` and in place, in buffers that persist from step to step.

Without an arena (`ctx.inplace` is False: inference, a part used alone, a GPU) the bodies run. Twins write only to
tensors outside autograd: a tensor of a user-defined layer that requires gradients is detached first.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch

from ..backend import Array
from ..core import ops
from ..fusion.activation import Z, activation_graphs
from ..fusion.remember import Remembered
from ..fusion.trace import Graph
from ..fusion.update import fading, update_graph
from .host.numpy import FLUSH_INTERVAL, homes, out_for
from .torch_calls import filled, number, result_of, writes_of

# One pass over weights and slots, as in `torch.optim.Adam(fused=True)`. It is private; through the public
# `torch.optim.adam.adam` the update of a small network takes more than twice as long.
_fused_adam = getattr(torch, "_fused_adamw_", None)


def affine(ctx: Any, x: Array, kernel: Array, bias: Array | None, activation: Any) -> Any:
    """Twin of `ops.affine`: write gradients directly to the flat gradient."""
    if not ctx.inplace or x.ndim != 2 or kernel.ndim != 2 or ctx.backend.narrow:
        return ops.affine(ctx, x, kernel, bias, activation)
    x = _plain(x)
    z = _product(ctx, x, kernel, ctx.empty((x.shape[0], kernel.shape[1])), bias)
    apply, pull_back = _known.get(activation, (z.dtype, True)) or _passes(activation, z.dtype, adopt=True)
    y = apply(ctx, z)

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        dy = dy if dy.dtype is z.dtype and not dy.requires_grad else _like(dy, z)
        dz = pull_back(ctx, dy, z, y)
        grads = {"kernel": _product(ctx, x.t(), dz, out_for(ctx, into, "kernel", kernel))}
        if bias is not None:
            grads["bias"] = torch.sum(dz, 0, out=out_for(ctx, into, "bias", bias))
        return (_turned_product(ctx, dz, kernel, ctx.empty(x.shape)) if want_dx else None), grads

    return y, backward


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
    """Twin of `ops.normalize` for rows, by PyTorch's own layer normalization."""
    shape, given = x.shape[-1:], [a for a in (gamma, beta) if a is not None]
    rows = axes == (-1,) and center and all(a.numel() == shape[0] for a in given)
    if not (ctx.inplace and rows and others == tuple(range(-x.ndim, -1))):
        return ops.normalize(ctx, x, gamma, beta, axes, epsilon, others, center)
    x = _plain(x)
    scale, shift = (None if a is None else a.reshape(-1) for a in (gamma, beta))
    y, mean, inverse = torch.native_layer_norm(x, shape, scale, shift, epsilon)

    def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
        wanted = [want_dx, gamma is not None, beta is not None]
        found = _layer_norm_back(_plain(dy), x, shape, mean, inverse, scale, shift, wanted)
        grads = {name: g for name, g in zip(("gamma", "beta"), found[1:]) if g is not None}
        return (found[0] if want_dx else None), grads

    return y, None, None, backward


_layer_norm_back = torch.ops.aten.native_layer_norm_backward


def _product(ctx: Any, a: Array, b: Array, out: Array, bias: Array | None = None) -> Array:
    """Return a b + bias in `out`; for few columns as (b^T a^T)^T, for MKL up to six times as fast."""
    if b.shape[1] <= 24 and a.numel() >= 1 << 14:
        turned = torch.mm(b.t(), a.t(), out=ctx.empty((b.shape[1], a.shape[0])))
        out.copy_(turned.t())
        return out if bias is None else out.add_(bias)
    return torch.mm(a, b, out=out) if bias is None else torch.addmm(bias, a, b, out=out)


def _turned_product(ctx: Any, a: Array, b: Array, out: Array) -> Array:
    """Return a b^T in `out`; for few columns as in `_product`."""
    if b.shape[0] <= 24 and a.numel() >= 1 << 14:
        return _product(ctx, a, b.t(), out)
    return torch.nn.functional.linear(a, b, out=out)  # transposes b internally, in a third of the time


def _plain(x: Array) -> Array:
    """Return `x` detached from autograd, which can't write to `out=`."""
    return x.detach() if x.requires_grad else x


def _like(dy: Array, z: Array) -> Array:
    """Return a derivative, detached from autograd, in the dtype of z."""
    return _plain(dy).to(z.dtype)


def activate(ctx: Any, x: Array, activation: Any) -> Any:
    """Twin of `ops.activate`."""
    if not ctx.inplace or x.dtype != ctx.dtype:
        return ops.activate(ctx, x, activation)
    x = _plain(x)
    apply, pull_back = _passes(activation, x.dtype, adopt=False)
    y = apply(ctx, x)
    return y, lambda dy: pull_back(ctx, _like(dy, x), x, y)


_known = Remembered()


def _passes(activation: Any, dtype: Any, adopt: bool) -> tuple[Any, Any]:
    """Return `apply(ctx, z)`, which returns y = f(z), and `pull_back(ctx, dy, z, y)`, which returns dz.

    They are generated from the formulas if these are elementwise.

    Args:
        adopt: whether they may overwrite z.
    """
    known, key = _known.of(activation), (dtype, adopt)
    if key not in known:
        graphs = activation_graphs(activation)
        known[key] = _formulas(activation) if graphs is None else _fused(*graphs, dtype, adopt)
    return known[key]


def _fused(forward: Graph, backward: Graph, dtype: Any, adopt: bool) -> tuple[Any, Any]:
    keep = Z in backward.reads
    copied = adopt and keep and forward.nodes[forward.outputs[0]].op != "array"  # else y is z
    apply = result_of(forward, 0 if adopt and not keep else None, dtype)
    return apply, result_of(backward, Z if copied else None, dtype)


def _formulas(activation: Any) -> tuple[Any, Any]:
    return (
        lambda ctx, z: activation.forward(ctx.xp, z),
        lambda ctx, dy, z, y: _plain(activation.backward(ctx.xp, dy, z, y)),
    )


def softmax_cross_entropy(ctx: Any, z: Array, target: Array, weight: Any) -> tuple[Array, Array, Array]:
    """Twin of `ops.softmax_cross_entropy` for class numbers; one-hot targets use the body."""
    if not ctx.inplace or z.ndim != 2 or target.ndim != 1:
        return ops.softmax_cross_entropy(ctx, z, target, weight)
    target, logs = target.long(), torch.log_softmax(_plain(z), 1, out=ctx.empty(z.shape))
    try:
        values = torch.nn.functional.nll_loss(logs, target, reduction="none")
        a = torch.exp(logs, out=logs)
        if isinstance(weight, float):
            factor, minus = filled((), weight, a.dtype), filled((len(a), 1), -weight, a.dtype)
        else:
            factor = weight.unsqueeze(-1)
            minus = -factor
        dz = torch.mul(a, factor, out=ctx.empty(z.shape)).scatter_add_(1, target.unsqueeze(1), minus)
    except (IndexError, RuntimeError):
        if int(target.min()) >= 0 and int(target.max()) < z.shape[1]:
            raise
        a = dz = values = torch.full_like(z, math.nan)  # an invalid label
        values = values[:, 0]
    return values, dz, a


def row_total(ctx: Any, values: Array, weight: Array | None, scale: float) -> Any:
    """Twin of `ops.row_total`: a single dot product."""
    if not ctx.inplace or values.ndim != 1 or weight is not None:
        return ops.row_total(ctx, values, weight, scale)
    return torch.dot(_plain(values), filled(tuple(values.shape), scale, values.dtype))


def sum_rows(ctx: Any, index: Array, values: Array, count: int, out: Array | None = None) -> Array:
    """Twin of `ops.sum_rows`: adds each row where it belongs."""
    if not ctx.inplace or values.ndim != 2 or values.requires_grad:
        return ops.sum_rows(ctx, index, values, count, out)
    out = ctx.empty((count, values.shape[1])) if out is None else out
    return out.zero_().index_add_(0, index, values)


def pack(ctx: Any, layout: Any, parts: dict[str, Array], out: Any) -> Array:
    """Twin of `ops.pack`: copy only parts that are not in place already."""
    if out is None:
        return ops.pack(ctx, layout, parts, out)
    flat, views = out
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


def within_limits(ctx: Any, ok: Any, lr: Any, limit: float, flats: Any, *others: Array) -> Any:
    """Twin of `ops.within_limits`: read the numbers on the host, since they are in its memory."""
    if not ctx.inplace or any(flat.ndim != 1 for flat in flats):
        return ops.within_limits(ctx, ok, lr, limit, flats, *others)
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
    """Twin of `ops.tally`: read the flags on the host, and add with Python numbers."""
    if not ctx.inplace:
        return ops.tally(ctx, ok, counted, step, age, sums, parts)
    taken = bool(ok)
    if taken:
        step, age = torch.add(step, number(1, step.dtype)), torch.add(age, number(1.0, age.dtype))
    if taken if counted is ok else counted:
        sums = sums.clone()
        out, i = sums.numpy(), 0
        for a, factor in parts:
            a = _plain(a) if isinstance(a, torch.Tensor) else a
            if isinstance(a, float) or a.ndim == 0:
                out[i] += float(a) * factor
                i += 1
            else:
                out[i : i + a.numel()] += factor * a.reshape(-1).numpy()
                i += a.numel()
    return step, age, sums


# Optimizers: any formula that can be fused. If no update can overflow, because the guard has checked gradient and
# weights, the update is in place, and the calls that overwrite weights and slots are deferred to the end of the
# step. Otherwise the result goes to new memory: the guard may reject the step.


def update(
    ctx: Any,
    optimizer: Any,
    w: Array,
    g: Array,
    slots: tuple[Array, ...],
    lr: Any,
    age: Any,
    decay: float = 0.0,
    factor: Any = None,
) -> Any:
    """Twin of `ops.update`.

    Tensors made under a user's `torch.inference_mode()` can't be modified in place: the body makes new ones.
    """
    if ctx.inplace and w.ndim == 1 and not (w.is_inference() or (slots and slots[0].is_inference())):
        key = len(slots), decay, factor is not None, w.dtype, ctx.overwrite
        prepared = _updates.get(optimizer, key) or _prepare(optimizer, key)
        if prepared is not None:
            return prepared(ctx, w, g, slots, lr, age, factor)
    return ops.update(ctx, optimizer, w, g, slots, lr, age, decay, factor)


_updates = Remembered()


def _prepare(optimizer: Any, key: tuple[Any, ...]) -> Any:
    """Return the update `(ctx, w, g, slots, lr, age, factor) -> (w', slots')`; None if it can't be fused."""
    count, decay, scaled, dtype, over = key
    graph = update_graph(optimizer, count, decay, scaled)
    if graph is None:
        return None
    over = over and optimizer.never_overflows
    decaying = [output - 1 for output in fading(graph)] if over else []
    plain = count == len(optimizer.slots) and optimizer.gradient_accumulation_steps is None
    adam = over and plain and optimizer.known_as == "adam" and _fused_adam is not None
    write = _adam(optimizer, decay) if adam else _formula(writes_of(graph, homes(graph, over), dtype, over), over)

    def update(ctx: Any, w: Array, g: Array, slots: Any, lr: Any, age: Any, factor: Any) -> Any:
        if decaying and float(age) % FLUSH_INTERVAL == 0:
            for slot in (slots[i] for i in decaying):
                ctx.defer(torch.hardshrink, slot, smallest(dtype), out=slot)
        return write(ctx, w, g, slots, lr, age, factor)

    _updates.of(optimizer)[key] = update
    return update


def _formula(write: Any, over: bool) -> Any:
    def update(ctx: Any, w: Array, g: Array, slots: Any, lr: Any, age: Any, factor: Any) -> Any:
        new = () if over else tuple(torch.empty_like(a) for a in (w, *slots))
        numbers = float(lr), float(age), 1.0 if factor is None else float(factor)
        write(ctx, (w, g, *slots, *new), numbers)
        return (w, slots) if over else (new[0], new[1:])

    return update


def _adam(optimizer: Any, decay: Any) -> Any:
    """Return PyTorch's fused update. Its epsilon is the `corrected` one; another is divided by sqrt(c2) first."""
    beta_1, beta_2, epsilon = optimizer.beta_1, optimizer.beta_2, optimizer.epsilon
    corrected = optimizer.epsilon_on == "corrected"

    def update(ctx: Any, w: Array, g: Array, slots: Any, lr: Any, age: Any, factor: Any) -> Any:
        means, squares = ([slot] for slot in slots)
        scaled = g if factor is None else torch.mul(g, factor, out=ctx.empty(g.shape))
        shrink = float(ops.at_age(torch, decay, age)) if decay else 0.0
        ctx.defer(
            _fused_adam,
            [w], [scaled], means, squares, [], [age], lr=float(lr), beta1=beta_1, beta2=beta_2,
            weight_decay=shrink, eps=epsilon if corrected else epsilon / math.sqrt(1.0 - beta_2 ** float(age)),
            amsgrad=False, maximize=False,
        )  # fmt: skip
        return w, slots

    return update


@lru_cache
def smallest(dtype: Any) -> float:
    """Return the threshold below which an average counts as 0, see `numpy._flush`."""
    return 1e8 * torch.finfo(dtype).tiny
