"""Run graphs as PyTorch calls on the CPU with `out=`, in memory that lives from step to step.

The calls of a graph are prepared once (see `fusion.calls.plan`); each step makes them on its own arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from ..backend import Array
from ..fusion.calls import Call, by_bits, contract, plan
from ..fusion.numbers import numbers_of
from ..fusion.trace import ARITY, Graph, trace

__all__ = ["Prepared", "compute", "filled", "now", "number", "prepared", "run"]


class _Step(NamedTuple):
    """A call of PyTorch's; None copies. With a name, a number (with a sign) is a keyword argument."""

    call: Any
    args: tuple[int, ...]
    out: int
    name: str | None = None
    number: int | None = None
    sign: float = 1.0


class Prepared(NamedTuple):
    """All of a graph's calls that is the same at each step: see `calls.Plan` for the order of the memory.

    Attributes:
        scratch: the dtypes of scratch memory. kinds: of the numbers that change, None for one that is no tensor.
        numbers, fixed: those that do not, also as tensors. bits: the places of memory that follows once more, as
            integers. work_out: see `numbers.Numbers`.
    """

    steps: list[_Step]
    scratch: list[Any]
    kinds: list[Any]
    numbers: list[float]
    fixed: list[Array]
    bits: list[int]
    work_out: Any


@lru_cache(maxsize=256)
def prepared(graph: Graph, homes: tuple[int | None, ...], dtype: Any) -> Prepared:
    """Return a graph's calls. Args: homes: see `fusion.calls.plan`."""
    graph = contract(by_bits(graph))
    calls, reals, bools = plan(graph, homes)
    found = numbers_of(graph)
    first = graph.arrays + homes.count(None) + reals + bools  # the place of the first number
    bits: list[int] = []
    steps = [_step(call, first, len(found.nodes), bits) for call in calls]
    read = {arg for step in steps for arg in step.args} | set(bits)
    kinds = [torch.bool if graph.nodes[node].boolean else dtype for node in found.nodes]
    kinds = [kind if first + k in read else None for k, kind in enumerate(kinds)]
    numbers = [_within(value, dtype) for value in found.fixed.values()]
    changing = kinds[: len(found.changing)]
    fixed = [kind and number(a, kind) for kind, a in zip(kinds[len(changing) :], numbers)]
    scratch = [dtype] * reals + [torch.bool] * bools
    return Prepared(steps, scratch, changing, numbers, fixed, bits, found.work_out)


def _step(call: Call, first: int, count: int, bits: list[int]) -> _Step:
    """Return the call of PyTorch's. Args: first, count: where numbers are, and how many. bits: is added to."""
    op, args, out = call
    operands, function, name = _WITH_NUMBER.get(op.partition("_")[2], (0, None, None))
    if name is not None:
        given = args[operands] - first if len(args) > operands else None
        return _Step(function, args[:operands], out, name, given, -1.0 if op.startswith("subtract") else 1.0)

    def as_bits(place: int) -> int:
        if place not in bits:
            bits.append(place)
        return first + count + bits.index(place)

    if op == "differ":
        return _Step(torch.bitwise_xor, tuple(map(as_bits, args)), as_bits(out))
    if op == "keep":
        return _Step(torch.mul, (as_bits(args[0]), args[1]), as_bits(out))
    return _Step(None if op in ("copy", "astype") else _CALLS[op], args, out)


def _within(value: float, dtype: Any) -> float:
    """Return a number that PyTorch takes: it refuses one that is beyond the dtype, but not infinity."""
    return math.copysign(math.inf, value) if abs(value) > torch.finfo(dtype).max else value


def run(
    ctx: Any, made: Prepared, arrays: Sequence[Array], values: Sequence[float], do: Callable[..., Any]
) -> None:
    """Make the calls of a graph by `do`.

    Args:
        arrays: those that the graph takes, then those for results that overwrite none; all of one shape.
        values: the numbers that change. do: `now`, or `ctx.later`.
    """
    shape, dtype = arrays[0].shape, arrays[0].dtype
    values = [_within(value, dtype) for value in values]
    numbers = [*values, *made.numbers]
    memory = [*arrays, *(ctx.empty(shape, kind) for kind in made.scratch)]
    memory += [kind and ctx.empty((), kind).fill_(value) for kind, value in zip(made.kinds, values)]
    memory += made.fixed
    memory += [memory[place].view(_INTEGERS[dtype]) for place in made.bits]
    for call, args, out, name, number, sign in made.steps:
        given = [memory[a] for a in args]
        if name is not None:
            do(call, *given, **{name: sign if number is None else sign * numbers[number]}, out=memory[out])
        elif call is None:
            do(memory[out].copy_, *given)
        else:
            do(call, *given, out=memory[out])


def compute(ctx: Any, graph: Graph, arrays: Sequence[Array], home: int | None) -> Array:
    """Return the result of a graph that has one, of arrays alone.

    Args:
        home: the number of the array that it overwrites, or None.
    """
    node = graph.nodes[graph.outputs[0]]
    if node.op == "array":
        return arrays[node.args[0]]
    out = ctx.empty(arrays[0].shape) if home is None else arrays[home]
    by_hand = _by_hand(graph)
    if by_hand is not None:
        by_hand(*arrays, out=out)
    else:
        run(ctx, prepared(graph, (home,), out.dtype), arrays if home is not None else (*arrays, out), (), now)
    return out


@lru_cache(maxsize=256)
def _by_hand(graph: Graph) -> Callable[..., Any] | None:
    """Return PyTorch's own function for a formula, if there is one that beats the calls made from it."""
    return _OWN.get((graph.key, graph.constants))


def _of(make: Callable[[Any], Callable[..., Any]], arrays: int) -> Any:
    graph = trace(make, arrays)
    return graph.key, graph.constants


_threshold_backward = torch.ops.aten.threshold_backward.grad_input
_OWN: dict[Any, Callable[..., Any]] = {  # by formula, so that a subclass with another one does not get it
    # one pass in place of eight
    _of(
        lambda xp: lambda z: xp.where(z >= 0, 1.0, xp.exp(-xp.abs(z))) / (1.0 + xp.exp(-xp.abs(z))), 1
    ): torch.sigmoid,
    # a comparison takes longer than this; where y is NaN it gives dy
    _of(lambda xp: lambda dy, z, y: xp.where(y > 0, dy, 0.0), 3): (
        lambda dy, z, y, out: _threshold_backward(dy, y, 0.0, grad_input=out)
    ),
}
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
# how many operands there are before the number, the call, and what it calls the number
_WITH_NUMBER = {
    "scaled": (2, torch.add, "alpha"),
    "product": (3, torch.addcmul, "value"),
    "quotient": (3, torch.addcdiv, "value"),
}
_CALLS = {op: getattr(torch, op) for op in ARITY if op not in ("astype", "equal")} | {"equal": torch.eq}


def now(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Make a call."""
    function(*args, **kwargs)


def number(value: Any, dtype: Any) -> Array:
    """Return a number as a tensor, with which PyTorch computes in half the time that Python's own takes."""
    return value if isinstance(value, torch.Tensor) else filled((), value, dtype)


@lru_cache(maxsize=64)
def filled(shape: tuple[int, ...], value: float, dtype: Any) -> Array:
    """Return a tensor of one number, which nobody writes to."""
    return torch.full(shape, value, dtype=dtype, device="cpu")
