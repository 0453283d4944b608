"""Graphs of an activation's forward and backward formulas."""

from __future__ import annotations

from typing import Any

from .remember import Remembered
from .trace import Graph, NotElementwise, trace

__all__ = ["DY", "Y", "Z", "activation_graphs"]

DY, Z, Y = range(3)  # the input arrays of the backward's graph
_known = Remembered()


def activation_graphs(activation: Any) -> tuple[Graph, Graph] | None:
    """Return the graphs of an activation's forward and backward; None if one of them is not elementwise.

    The first graph takes z; the second takes dy, z and y (`DY`, `Z`, `Y`) and returns dz. If the second does not
    read z, y may overwrite z.

    Args:
        activation: has `forward(xp, z)` and `backward(xp, da, z, a)`.
    """
    known = _known.of(activation)
    if "graphs" not in known:
        known["graphs"] = _graphs(activation)
    return known["graphs"]


def _graphs(activation: Any) -> tuple[Graph, Graph] | None:
    try:
        forward = trace(lambda xp: lambda z: activation.forward(xp, z), 1)
        return forward, trace(lambda xp: lambda dy, z, y: activation.backward(xp, dy, z, y), 3)
    except NotElementwise:
        return None
