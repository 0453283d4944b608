"""Trace an optimizer's whole update, defined by `ops.update`, as one graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from ..core import ops
from .remember import Remembered
from .trace import Graph, NotElementwise, trace

__all__ = ["AGE", "FACTOR", "LR", "fading", "update_graph"]

LR, AGE, FACTOR = range(3)  # the number arguments of the graph; unused ones have no node
_known = Remembered()


def update_graph(optimizer: Any, slots: int, decay: float = 0.0, scaled: bool = False) -> Graph | None:
    """Return the graph of `ops.update` for the current settings; None if it can't be fused.

    The graph takes the arrays w, g and the slots, and the numbers lr, age and factor (`LR`, `AGE`, `FACTOR`); it
    returns the new w and the new slots. All settings are constants. Nodes of rank 0 are computed once per update,
    the others for each element.

    Args:
        optimizer: has `numbers` and `formula`. slots: how many slots it has. decay: see `ops.update`.
        scaled: whether there is a factor.
    """
    graphs, key = _known.of(optimizer), (decay, scaled, slots)
    if key not in graphs:
        graphs[key] = _graph(optimizer, slots, decay, scaled)
    return graphs[key]


def _graph(optimizer: Any, slots: int, decay: float, scaled: bool) -> Graph | None:
    if getattr(optimizer, "scalar_slots", ()):  # a scalar slot can't be written once for each element
        return None

    def make(xp: Any) -> Callable[..., Any]:
        ctx = SimpleNamespace(xp=xp)

        def at(w: Any, g: Any, *others: Any) -> Any:
            *kept, lr, age, factor = others
            w, new = ops.update(ctx, optimizer, w, g, tuple(kept), lr, age, decay, factor if scaled else None)
            return w, *new

        return at

    try:
        return trace(make, 2 + slots, 3)
    except NotElementwise:
        return None


@lru_cache(maxsize=256)
def fading(graph: Graph) -> tuple[int, ...]:
    """Return the positions of the outputs that are decaying slots: s' = number * s + x, or its maximum with x.

    With gradients of 0 such a slot decays into subnormal numbers, which cost a processor a hundred cycles each.
    """
    return tuple(i for i in range(1, len(graph.outputs)) if _decays(graph, graph.outputs[i], 1 + i))


def _decays(graph: Graph, output: int, array: int) -> bool:
    node = graph.nodes[output]
    if node.op not in ("add", "subtract", "maximum"):
        return False
    for term in (graph.nodes[arg] for arg in node.args):
        if term.op == "multiply":
            factors = [graph.nodes[arg] for arg in term.args]
            old = [f.op == "array" and f.args == (array,) for f in factors]
            if any(old) and any(f.rank == 0 for f in factors):
                return True
    return False
