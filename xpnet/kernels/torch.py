"""PyTorch twins for the CPU: the same results with `out=` and in place, in buffers that live from step to step.

Without an arena (`ctx.inplace` is False: inference, a part used alone, a GPU) the bodies do the work. What a twin
writes to is never part of PyTorch's own differentiation: a tensor of a user's layer that is, is taken without it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from ..backend import Array
from ..core import ops
from ..fusion.calls import contract, plan
from ..fusion.numbers import numbers_of
from ..fusion.trace import ARITY, Graph
from ..fusion.update import fading
from .host.numpy import FLUSH, fused, homes, room_for

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


# Optimizers: any formula that can be fused. In place where no update can overflow, since the guard has seen
# gradient and weights; what writes over weights and slots is then put off to the end of the step. Otherwise into
# new memory: the guard may yet hold the update back.


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

    Nobody may write to tensors that were made under a user's `torch.inference_mode()`: the body makes others.
    """
    graph = fused(ctx, optimizer, w, slots, decay, factor)
    if graph is None or any(a.is_inference() for a in (w, *slots)):
        return ops.update(ctx, optimizer, w, g, slots, lr, age, decay, factor)
    over = ctx.overwrite and optimizer.never_overflows
    if over and float(age) % FLUSH == 0:
        for slot in (slots[o - 1] for o in fading(graph)):
            ctx.later(torch.hardshrink, slot, smallest(slot.dtype), out=slot)
    if over and optimizer.known_as == "adam" and _fused_adam is not None:
        _adam(ctx, optimizer, w, g, slots, lr, age, decay, factor)
        return w, slots
    made = _prepared(graph, over, w.dtype)
    most = torch.finfo(w.dtype).max  # PyTorch refuses a number that is beyond it, but not infinity
    values = made.work_out(float(lr), float(age), 1.0 if factor is None else float(factor))
    numbers = [*(math.copysign(math.inf, a) if abs(a) > most else a for a in values), *made.numbers]
    new = () if over else tuple(torch.empty_like(a) for a in (w, *slots))
    memory = [w, g, *slots, *new, *(ctx.empty(w.shape, kind) for kind in made.scratch)]
    memory += [kind and ctx.empty((), kind).fill_(value) for kind, value in zip(made.kinds, values)]
    memory += made.fixed
    do = ctx.later if over else _now
    for call, args, out, name, number, sign in made.steps:
        given = [memory[a] for a in args]
        if name is not None:
            do(call, *given, **{name: sign if number is None else sign * numbers[number]}, out=memory[out])
        elif call is None:
            do(memory[out].copy_, *given)
        else:
            do(call, *given, out=memory[out])
    return (w, slots) if over else (new[0], new[1:])


class _Step(NamedTuple):
    """A call of PyTorch's; None copies. With a name, a number (with a sign) is a keyword argument."""

    call: Any
    args: tuple[int, ...]
    out: int
    name: str | None = None
    number: int | None = None
    sign: float = 1.0


class _Prepared(NamedTuple):
    """All of an update that is the same at each: see `calls.Plan` for the order of the memory.

    Attributes:
        scratch: the dtypes of scratch memory. kinds: of the numbers that change, None for one that is no tensor.
        numbers, fixed: those that do not, also as tensors. work_out: see `numbers.Numbers`.
    """

    steps: list[_Step]
    scratch: list[Any]
    kinds: list[Any]
    numbers: list[float]
    fixed: list[Array]
    work_out: Any


@lru_cache(maxsize=256)
def _prepared(graph: Graph, over: bool, dtype: Any) -> _Prepared:
    graph = contract(graph)
    calls, reals, bools = plan(graph, homes(graph, over))
    first = graph.arrays + (0 if over else len(graph.outputs)) + reals + bools
    steps = []
    for op, args, out in calls:
        kind = op.partition("_")[2]
        if kind in _WITH_NUMBER:
            count, call, name = _WITH_NUMBER[kind]
            number = args[count] - first if len(args) > count else None
            sign = -1.0 if op.startswith("subtract") else 1.0
            steps.append(_Step(call, args[:count], out, name, number, sign))
        else:
            steps.append(_Step(None if op in ("copy", "astype") else _CALLS[op], args, out))
    read = {arg for step in steps for arg in step.args}
    found, most = numbers_of(graph), torch.finfo(dtype).max
    kinds = [torch.bool if graph.nodes[node].boolean else dtype for node in found.nodes]
    kinds = [kind if first + k in read else None for k, kind in enumerate(kinds)]
    numbers = [math.copysign(math.inf, a) if abs(a) > most else a for a in found.fixed.values()]
    changing = kinds[: len(found.changing)]
    fixed = [kind and _number(a, kind) for kind, a in zip(kinds[len(changing) :], numbers)]
    return _Prepared(
        steps, [dtype] * reals + [torch.bool] * bools, changing, numbers, fixed, found.work_out
    )  # fmt: skip


# how many operands there are before the number, the call, and what it calls the number
_WITH_NUMBER = {
    "scaled": (2, torch.add, "alpha"),
    "product": (3, torch.addcmul, "value"),
    "quotient": (3, torch.addcdiv, "value"),
}
_CALLS = {op: getattr(torch, op) for op in ARITY if op not in ("astype", "equal")} | {"equal": torch.eq}


@lru_cache
def smallest(dtype: Any) -> float:
    """Return the number below which an average counts as 0, see `numpy._flush`."""
    return 1e8 * torch.finfo(dtype).tiny


def _now(function: Any, *args: Any, **kwargs: Any) -> None:
    function(*args, **kwargs)


def _adam(
    ctx: Any,
    optimizer: Any,
    w: Array,
    g: Array,
    slots: tuple[Array, ...],
    lr: Any,
    age: Any,
    decay: float,
    factor: Any,
) -> None:
    """Put off PyTorch's own update. Its epsilon is the `corrected` one: the other is divided by sqrt(c2)."""
    t, beta_1, beta_2, epsilon = float(age), optimizer.beta_1, optimizer.beta_2, optimizer.epsilon
    means, squares = ([slot] for slot in slots)
    scaled = g if factor is None else torch.mul(g, factor, out=ctx.empty(g.shape))
    shrink = float(ops.at_age(torch, decay, age))
    ctx.later(
        _fused_adam,
        [w], [scaled], means, squares, [], [age], lr=float(lr), beta1=beta_1, beta2=beta_2, weight_decay=shrink,
        eps=epsilon if optimizer.epsilon_on == "corrected" else epsilon / math.sqrt(1.0 - beta_2**t),
        amsgrad=False, maximize=False,
    )  # fmt: skip
