"""Write functions of PyTorch calls with `out=` from graphs, for the CPU, in memory that persists between steps.

A function is written once per graph (see `fusion.calls.plan`): for a small network, looping over the calls
would take as long as the calls themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch

from ..backend import Array
from ..fusion.calls import Call, by_bits, contract, plan
from ..fusion.numbers import numbers_of
from ..fusion.trace import ARITY, Graph, trace

__all__ = ["filled", "number", "result_of", "writes_of"]

Function = Callable[..., Any]


@lru_cache(maxsize=256)
def writes_of(graph: Graph, homes: tuple[int | None, ...], dtype: Any, later: bool) -> Function:
    """Return `write(ctx, arrays, numbers)`, which writes the results of a graph.

    `arrays` are the graph's arrays, then those for results that overwrite none, all of the same shape; `numbers`
    are the graph's numbers.

    Args:
        homes: see `fusion.calls.plan`. later: whether the calls are deferred with `ctx.defer`.
    """
    arrays, lines, space = _lines(graph, homes, dtype, later)
    return _compiled("ctx, arrays, numbers", [f"{', '.join(arrays)}, = arrays", *lines], space)


@lru_cache(maxsize=256)
def result_of(graph: Graph, home: int | None, dtype: Any) -> Function:
    """Return `result(ctx, *arrays)`, which returns the single result of a graph without number arguments.

    Args:
        home: the number of the array that the result overwrites, or None for separate memory.
    """
    arrays, lines, space = _lines(graph, (home,), dtype)
    arguments = ", ".join(["ctx", *arrays[: graph.arrays]])
    node = graph.nodes[graph.outputs[0]]
    if node.op == "array":
        return _compiled(arguments, [f"return {arrays[node.args[0]]}"], space)
    out = arrays[-1 if home is None else home]
    key = graph.key, graph.constants
    own = _OWN.get(key) or (_OWN_IN_PLACE.get(key) if home == 0 else None)
    lines = lines if own is None else [own.format(*arrays, out=out)]
    allocate = [f"{out} = ctx.empty(a0.shape)"] if home is None else []
    return _compiled(arguments, [*allocate, *lines, f"return {out}"], space)


def _lines(
    graph: Graph, homes: tuple[int | None, ...], dtype: Any, later: bool = False
) -> tuple[list[str], list[str], dict[str, Any]]:
    """Return the names of the arrays, the lines of Python that write the results, and the names these refer to."""
    graph = contract(by_bits(graph))
    calls, reals, bools = plan(graph, homes)
    found = numbers_of(graph)
    arrays = [f"a{k}" for k in range(graph.arrays + homes.count(None))]
    scratch = {f"s{k}": "dtype" for k in range(reals)} | {f"b{k}": "boolean" for k in range(bools)}
    writer = _Writer([*arrays, *scratch, *(f"n{k}" for k in range(len(found.nodes)))], len(arrays) + len(scratch))
    body = [writer.line(call, later) for call in calls]
    space = _CALLS | {
        "dtype": dtype, "boolean": torch.bool, "integers": torch.int32 if dtype == torch.float32 else torch.int64,
        "work_out": found.work_out, "within": partial(_within, dtype),
    }  # fmt: skip
    head = [f"{name} = ctx.empty(a0.shape, {kind})" for name, kind in scratch.items()]
    if found.changing:
        head.append(f"{', '.join(f'v{k}' for k in range(len(found.changing)))}, = map(within, work_out(*numbers))")
    for k, node in enumerate(found.nodes):
        kind = "boolean" if graph.nodes[node].boolean else "dtype"
        if node in found.fixed:
            space[f"v{k}"] = _within(dtype, found.fixed[node])
            space[f"n{k}"] = torch.full((), space[f"v{k}"], dtype=space[kind], device="cpu")
        elif f"n{k}" in writer.tensors:
            head.append(f"n{k} = ctx.empty((), {kind}).fill_(v{k})")
    head += [f"i_{name} = {name}.view(integers)" for name in writer.bits]
    return arrays, head + body, space


def _compiled(arguments: str, lines: Sequence[str], space: dict[str, Any]) -> Function:
    source = "\n    ".join([f"def function({arguments}):", *lines])
    exec(compile(source, "<calls of a formula>", "exec"), space)
    return space["function"]


class _Writer:
    """Writes lines of Python for the calls of a plan.

    Args:
        names: names of the memory, see `calls.Plan`. first: the index of the first number.

    Attributes:
        tensors: names used as operands. bits: names whose bits are used, in order of first use.
    """

    def __init__(self, names: list[str], first: int) -> None:
        self.names, self.first = names, first
        self.tensors: set[str] = set()
        self.bits: dict[str, None] = {}

    def line(self, call: Call, later: bool) -> str:
        op, args, out = call
        more = ""
        given = [self.names[place] for place in args]
        target = self.names[out]
        count, name, keyword = _WITH_NUMBER.get(op.partition("_")[2], (len(args), op, ""))
        if keyword:
            sign = "-" if op.startswith("subtract") else ""
            scale = f"v{args[count] - self.first}" if len(args) > count else "1.0"
            more = f", {keyword}={sign}{scale}"
        given = given[:count]
        self.tensors.update(given)
        if op == "differ":
            given, target = [self._bits(a) for a in given], self._bits(target)
        elif op == "keep":
            given, target = [self._bits(given[1]), given[0]], self._bits(target)
        elif op in ("copy", "astype"):
            return f"ctx.defer({target}.copy_, {given[0]})" if later else f"{target}.copy_({given[0]})"
        arguments = f"{', '.join(given)}{more}, out={target}"
        return f"ctx.defer({name}, {arguments})" if later else f"{name}({arguments})"

    def _bits(self, name: str) -> str:
        self.bits[name] = None
        return f"i_{name}"


# Operations with a number: the number of operands before it, the call, and its keyword for the number.
_WITH_NUMBER = {
    "scaled": (2, "add", "alpha"),
    "product": (3, "addcmul", "value"),
    "quotient": (3, "addcdiv", "value"),
}
_CALLS: dict[str, Any] = {op: getattr(torch, op) for op in ARITY if op not in ("astype", "equal")} | {
    "equal": torch.eq, "addcmul": torch.addcmul, "addcdiv": torch.addcdiv,
    "differ": torch.bitwise_xor, "keep": torch.mul, "sigmoid": torch.sigmoid, "relu_": torch.relu_,
    "relu_backward": torch.ops.aten.threshold_backward.grad_input,
    "silu": torch.ops.aten.silu.out, "silu_backward": torch.ops.aten.silu_backward.grad_input,
    "gelu": torch.ops.aten.gelu.out, "gelu_backward": torch.ops.aten.gelu_backward.grad_input,
}  # fmt: skip


def _within(dtype: Any, value: float) -> float:
    """Return a number that PyTorch accepts: it accepts infinity, but no other number outside the dtype's range."""
    return math.copysign(math.inf, value) if abs(value) > torch.finfo(dtype).max else value


def _key(make: Callable[[Any], Function], arrays: int) -> Any:
    graph = trace(make, arrays)
    return graph.key, graph.constants


def _logistic(xp: Any, z: Any) -> Any:
    e = xp.exp(-xp.abs(z))
    return xp.where(z >= 0, 1.0, e) / (1.0 + e)


def _silu_slope(s: Any, y: Any) -> Any:
    return s + y * (1.0 - s)


def _gelu_slope(xp: Any, z: Any) -> Any:
    density = xp.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return 0.5 * (1.0 + xp.erf(z / math.sqrt(2))) + z * density


# PyTorch's own functions that beat the calls made from a formula: by formula, so that a subclass with another one
# does not get them. Each is one pass over memory, in place of two to fourteen.
_OWN = {
    _key(lambda xp: lambda z: _logistic(xp, z), 1): "sigmoid({0}, out={out})",
    # of ReLU; a NaN lets dy through
    _key(lambda xp: lambda dy, z, y: xp.where(y > 0, dy, 0.0), 3): "relu_backward({0}, {2}, 0, grad_input={out})",
    _key(lambda xp: lambda z: z * _logistic(xp, z), 1): "silu({0}, out={out})",
    _key(
        lambda xp: lambda dy, z, y: dy * _silu_slope(_logistic(xp, z), y), 3
    ): "silu_backward({0}, {1}, grad_input={out})",
    _key(lambda xp: lambda z: 0.5 * z * (1.0 + xp.erf(z / math.sqrt(2))), 1): "gelu({0}, out={out})",
    _key(lambda xp: lambda dy, z, y: dy * _gelu_slope(xp, z), 3): "gelu_backward({0}, {1}, grad_input={out})",
}
# takes two thirds of the time of `maximum`
_OWN_IN_PLACE = {_key(lambda xp: lambda z: xp.maximum(z, 0.0), 1): "relu_({0})"}


def number(value: Any, dtype: Any) -> Array:
    """Return a number as a tensor: PyTorch computes with it in half the time of a Python number."""
    return value if isinstance(value, torch.Tensor) else filled((), value, dtype)


@lru_cache(maxsize=64)
def filled(shape: tuple[int, ...], value: float, dtype: Any) -> Array:
    """Return a tensor filled with one number, which must not be written to."""
    return torch.full(shape, value, dtype=dtype, device="cpu")
