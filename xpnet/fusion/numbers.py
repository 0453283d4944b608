"""Compute the parts of a graph that involve only numbers, once per call, on the host.

Python functions generated from the graph compute in double precision. Python raises where IEEE arithmetic gives
infinity or NaN; then the same function runs on NumPy's float64 numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .trace import Graph

__all__ = ["Numbers", "numbers_of"]


class Numbers(NamedTuple):
    """The numbers that the elements of a graph read.

    Attributes:
        changing: the nodes (by index) that depend on the formula's number arguments.
        fixed: the other nodes, with their values.
        work_out: `work_out(*numbers)` returns the values of `changing`, as Python floats.
    """

    changing: tuple[int, ...]
    fixed: dict[int, float]
    work_out: Callable[..., list[float]]

    @property
    def nodes(self) -> tuple[int, ...]:
        """All nodes, the changing ones first."""
        return *self.changing, *self.fixed


@lru_cache(maxsize=256)
def numbers_of(graph: Graph) -> Numbers:
    """Return the numbers that the elements of a graph read."""
    nodes = graph.nodes
    changes: list[bool] = []
    for node in nodes:
        changes.append(node.op == "number" or (node.is_operation and any(changes[arg] for arg in node.args)))
    read = {arg for node in nodes if node.is_operation and node.rank for arg in node.args} | set(graph.outputs)
    used = sorted(i for i in read if nodes[i].rank == 0)
    changing = tuple(i for i in used if changes[i])
    rest = tuple(i for i in used if not changes[i])
    fixed = dict(zip(rest, _function(graph, rest)(*[math.nan] * graph.numbers)))
    return Numbers(changing, fixed, _function(graph, changing))


def _function(graph: Graph, wanted: Sequence[int]) -> Callable[..., list[float]]:
    """Return `work_out(*numbers)`, which returns the values of the wanted nodes."""
    plain, careful = _compiled(_source(graph, wanted))
    constants = graph.constants

    def work_out(*numbers: float) -> list[float]:
        try:
            return plain(constants, numbers)
        except (ArithmeticError, ValueError):
            with np.errstate(all="ignore"):
                given = [tuple(map(np.float64, values)) for values in (constants, numbers)]
                return [float(value) for value in careful(*given)]

    return work_out


TEMPLATES = {
    "add": "{} + {}", "subtract": "{} - {}", "multiply": "{} * {}", "divide": "{} / {}", "negative": "-{}",
    "greater": "{} > {}", "greater_equal": "{} >= {}", "less": "{} < {}", "less_equal": "{} <= {}",
    "equal": "{} == {}", "not_equal": "{} != {}",
    "logical_and": "{} and {}", "logical_or": "{} or {}", "logical_not": "not {}", "where": "{1} if {0} else {2}",
}  # fmt: skip


def _source(graph: Graph, wanted: Sequence[int]) -> str:
    lines, needed = [], set(wanted)
    for i in reversed(range(len(graph.nodes))):
        if i in needed and graph.nodes[i].is_operation:
            needed.update(graph.nodes[i].args)
    for i in sorted(needed):
        op, args, *_ = graph.nodes[i]
        if op in ("number", "constant"):
            value = f"{'numbers' if op == 'number' else 'constants'}[{args[0]}]"
        else:
            names = [f"t{arg}" for arg in args]
            value = TEMPLATES[op].format(*names) if op in TEMPLATES else f"{op}({', '.join(names)})"
        lines.append(f"    t{i} = {value}\n")
    return (
        f"def work_out(constants, numbers):\n{''.join(lines)}    return [{', '.join(f't{i}' for i in wanted)}]\n"
    )


def _maximum(a: Any, b: Any) -> Any:
    return a if a > b or a != a else b


def _minimum(a: Any, b: Any) -> Any:
    return a if a < b or a != a else b


def _sign(a: Any) -> Any:
    return 1.0 if a > 0 else -1.0 if a < 0 else a


_COMMON = {"abs": abs, "astype": float, "erf": math.erf, "maximum": _maximum, "minimum": _minimum, "sign": _sign}
_FUNCTIONS = ("sqrt", "exp", "expm1", "log", "log1p", "cos", "tanh", "floor", "pow")


@lru_cache(maxsize=256)
def _compiled(source: str) -> list[Callable[..., list[Any]]]:
    """Return the function on Python floats, and the one on NumPy floats."""
    found = []
    for module in (math, np):
        space: dict[str, Any] = {**_COMMON, **{name: getattr(module, name) for name in _FUNCTIONS}}
        exec(compile(source, "<numbers of a formula>", "exec"), space)
        found.append(space["work_out"])
    return found
