"""Plan a formula as a list of calls with `out=`, one operation each, for NumPy and PyTorch.

Intermediate values use the memory of the results where possible: a linear scan over the operations allocates
registers (M. Poletto, V. Sarkar, ACM TOPLAS 21, 1999). An array that a result overwrites becomes a register after
the last read of its old value.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

from ..core.special import plain_erf
from .numbers import numbers_of
from .trace import Graph, Node, rewritten

__all__ = ["Call", "Plan", "by_bits", "contract", "plan", "without_erf"]


class Call(NamedTuple):
    """One operation (see `trace`, `by_bits` and `contract`), or "copy". Memory is given by number, see `Plan`.

    The call may overwrite the memory of its operands.
    """

    op: str
    args: tuple[int, ...]
    out: int


class Plan(NamedTuple):
    """The calls in order, and their memory.

    The memory is numbered in this order: the arrays that the formula takes; memory for each result that overwrites
    no array; scratch memory for real numbers (`reals` arrays), then for Booleans (`bools`); and the numbers, in
    the order of `numbers_of(graph).nodes`.
    """

    calls: tuple[Call, ...]
    reals: int
    bools: int


@lru_cache(maxsize=256)
def plan(graph: Graph, homes: tuple[int | None, ...]) -> Plan:
    """Return the calls that compute a graph.

    Args:
        homes: for each result the number of the array that it overwrites, or None for separate memory. No two
            results may overwrite the same array.
    """
    return _Planner(graph, homes).plan()


@lru_cache(maxsize=256)
def by_bits(graph: Graph) -> Graph:
    """Replace each `where` with operations on bits: in NumPy and PyTorch `where` branches at every element.

    differ(x, y) is the exclusive or of the bits of two numbers; keep(c, x) is x where c is true, else 0: the bits
    of x times 0 or 1. So where(c, x, 0) = keep(c, x), and where(c, x, y) = differ(keep(c, differ(x, y)), y),
    exactly, also for NaN and infinity.
    """
    nodes = list(graph.nodes)

    def add(op: str, *args: int) -> int:
        nodes.append(Node(op, args, 1, False))
        return len(nodes) - 1

    for i, node in enumerate(graph.nodes):
        if node.op != "where" or not node.rank:
            continue
        c, x, y = node.args
        if _is_zero(graph, y):
            nodes[i] = Node("keep", (c, x), 1, False)
            continue
        if _is_zero(graph, x):
            x = y
        else:
            x = add("differ", x if nodes[x].rank or nodes[y].rank else add("copy", x), y)
        nodes[i] = Node("differ", (add("keep", c, x), y), 1, False)
    return _reordered(graph, nodes)


@lru_cache(maxsize=256)
def without_erf(graph: Graph, single: bool) -> Graph:
    """Return the graph with each erf in operations of the standard, for NumPy, which has no such function.

    Args:
        single: whether the accuracy of float32 is enough.
    """
    return rewritten(graph, "erf", partial(plain_erf, single=single))


def _is_zero(graph: Graph, place: int) -> bool:
    """Return whether a node is the constant 0, whose bits are all 0 (unlike those of -0)."""
    node = graph.nodes[place]
    value = graph.constants[node.args[0]] if node.op == "constant" else math.nan
    return value == 0 and math.copysign(1.0, value) > 0


def _reordered(graph: Graph, nodes: Sequence[Node]) -> Graph:
    """Return a graph of the nodes that the outputs need, each after its operands."""
    places: dict[int, int] = {}
    kept: list[Node] = []

    def visit(place: int) -> int:
        if place not in places:
            node = nodes[place]
            kept.append(node._replace(args=tuple(map(visit, node.args))) if node.is_operation else node)
            places[place] = len(kept) - 1
        return places[place]

    outputs = tuple(map(visit, graph.outputs))
    return Graph(tuple(kept), outputs, graph.arrays, graph.numbers, graph.constants)


@lru_cache(maxsize=256)
def contract(graph: Graph) -> Graph:
    """Rewrite the graph with PyTorch's operations, which combine a sum with a product or quotient.

    x + n y is "add_scaled" (x, y, n), x + n (a b) "add_product" (x, a, b, n), x + n (a / b) "add_quotient"
    (x, a, b, n), where n is a number that may be omitted in the latter two; likewise "subtract_scaled" and so on.
    The sign of NaN becomes NaN; PyTorch's own sign gives another value.
    """
    uses = Counter(arg for node in graph.nodes if node.is_operation for arg in node.args)
    uses.update(graph.outputs)
    nodes = list(graph.nodes)
    for i, node in enumerate(graph.nodes):
        if node.rank and node.op in ("add", "subtract"):
            x, y = node.args
            found = _term(nodes, uses, y, x) or (_term(nodes, uses, x, y) if node.op == "add" else None)
            if found is not None:
                kind, args = found
                nodes[i] = node._replace(op=f"{node.op}_{kind}", args=args)
        elif node.rank and node.op == "sign":
            (x,) = node.args
            nodes += [Node("not_equal", (x, x), 1, True), node]
            nodes[i] = Node("where", (len(nodes) - 2, x, len(nodes) - 1), 1, False)
    return _reordered(graph, nodes)


def _term(nodes: Sequence[Node], uses: Counter[int], place: int, x: int) -> tuple[str, tuple[int, ...]] | None:
    """Return the kind and the operands of the operation that adds a term to x; None for an ordinary term."""
    if nodes[place].rank == 0:
        return None
    number: tuple[int, ...] = ()
    once = uses[place] == 1
    if nodes[place].op == "multiply":  # a factor costs nothing, so the product may have other uses
        numbers = [arg for arg in nodes[place].args if nodes[arg].rank == 0]
        if numbers:
            number = (numbers[0],)
            (place,) = (arg for arg in nodes[place].args if arg != numbers[0])
            once = once and uses[place] == 1
    term = nodes[place]
    if once and term.op in ("multiply", "divide") and all(nodes[arg].rank for arg in term.args):
        return ("product" if term.op == "multiply" else "quotient"), (x, *term.args, *number)
    return ("scaled", (x, place, *number)) if number else None


class _Place(NamedTuple):
    """Where a value is stored: memory "array", "result", "real" or "bool" of that index, or a node's "number"."""

    kind: str
    which: int


class _Planner:
    def __init__(self, graph: Graph, homes: Sequence[int | None]) -> None:
        self.graph, self.nodes = graph, list(graph.nodes)
        self.homes = [_Place("result", o) if i is None else _Place("array", i) for o, i in enumerate(homes)]
        self.outputs: dict[int, _Place] = {}  # node -> where its value must be stored
        for place, home in zip(graph.outputs, self.homes):
            node = self.nodes[place]
            stays = node.op == "array" and home == _Place("array", node.args[0])
            if place in self.outputs or not (stays or (node.rank and node.is_operation)):
                self.nodes.append(Node("copy", (place,), 1, False))
                place = len(self.nodes) - 1
            self.outputs[place] = home
        self.last = {arg: i for i, node in enumerate(self.nodes) if self._is_call(node) for arg in node.args}
        self.last.update(dict.fromkeys(self.outputs, len(self.nodes)))
        self.at: dict[int, _Place] = {}
        self.count = {"real": 0, "bool": 0}
        self.free: list[_Place] = []

    def _is_call(self, node: Node) -> bool:
        return node.is_operation and node.rank == 1

    def plan(self) -> Plan:
        calls: list[tuple[str, list[_Place], _Place]] = []
        read = set()
        for i, node in enumerate(self.nodes):
            if node.op == "array":
                self.at[i] = _Place("array", node.args[0])
                read.add(self.at[i])
            elif node.rank == 0:
                self.at[i] = _Place("number", i)
        self.free = [home for home in self.homes if home not in read]
        for i, node in enumerate(self.nodes):
            if self._is_call(node):
                calls.append((node.op, [self.at[arg] for arg in node.args], self._place(i, node)))
        for i, home in self.outputs.items():
            if self.at[i] != home:
                calls.append(("copy", [self.at[i]], home))
        places = [_Place("array", i) for i in range(self.graph.arrays)]
        places += [home for home in self.homes if home.kind == "result"]
        places += [_Place(kind, k) for kind, count in self.count.items() for k in range(count)]
        places += [_Place("number", node) for node in numbers_of(self.graph).nodes]
        index = {place: k for k, place in enumerate(places)}
        numbered = (Call(op, tuple(index[arg] for arg in args), index[out]) for op, args, out in calls)
        return Plan(tuple(numbered), self.count["real"], self.count["bool"])

    def _place(self, i: int, node: Node) -> _Place:
        """Choose the memory for the result of an operation."""
        ends = [self.at[arg] for arg in dict.fromkeys(node.args) if self.last[arg] == i]
        ends = [place for place in ends if place.kind in self.count or place in self.homes]
        kind = "bool" if node.boolean else "real"
        # in place, NumPy's sign takes thirty times as long
        fits = [
            p for p in (*(ends if node.op != "sign" else ()), *self.free) if (p.kind == "bool") == node.boolean
        ]
        home = self.outputs.get(i)
        if home is not None:  # if not at home then in scratch memory, so a final copy can move it home
            fits = [p for p in fits if p == home] or [p for p in fits if p.kind == kind]
        else:
            fits.sort(key=lambda p: (p not in ends, p.kind != kind))
        if fits:
            place = fits[0]
        else:
            place = _Place(kind, self.count[kind])
            self.count[kind] += 1
        self.free = [p for p in (*self.free, *ends) if p != place]
        self.at[i] = place
        return place
