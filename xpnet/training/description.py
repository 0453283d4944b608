"""A model in words: its layers as plain values, and as the table that `summary` prints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ..core.config import config_of
from ..layers import Layer, registry
from .network import Network

__all__ = ["as_type", "describe_layers", "make_layers", "summary"]


def describe_layers(layers: Iterable[Layer], learns: Iterable[bool]) -> list[Any]:
    """Return the layers as plain values; a layer that is used again is the number of its first position.

    Args:
        learns: whether each layer was trainable when the model was laid out; a config has the current value.
    """
    places: dict[int, int] = {}
    entries: list[Any] = []
    for i, (layer, learn) in enumerate(zip(layers, learns)):
        if id(layer) in places:
            entries.append(places[id(layer)])
        else:
            places[id(layer)] = i
            entries.append({"class_name": type(layer).__name__, "config": config_of(layer)})
            if not learn:
                entries[-1]["trainable"] = False
    return entries


def make_layers(entries: Any) -> tuple[list[Layer], list[bool]]:
    """Return the layers that `describe_layers` has described, and whether each is trainable.

    Raises:
        TypeError, LookupError: not a description of layers. UnknownNameError: a class is not known.
    """
    layers: list[Layer] = []
    learns: list[bool] = []
    for entry in as_type(list, entries):
        if isinstance(entry, dict):
            layers.append(registry.get({k: entry[k] for k in ("class_name", "config")}))
            learns.append(as_type(bool, entry.get("trainable", True)))
            if "trainable" not in entry["config"] and not learns[-1]:  # an older file
                layers[-1].trainable = False
        elif 0 <= as_type(int, entry) < len(layers):
            layers.append(layers[entry])
            learns.append(learns[entry])
        else:
            raise IndexError(f"a reused layer must be one of the {len(layers)} before it, not {entry}")
    return layers, learns


def as_type(kind: type, value: Any) -> Any:
    """Return a value of a description, after checking that it has exactly this type."""
    if type(value) is not kind:
        raise TypeError(f"{kind.__name__} is expected, not {value!r:.100}")
    return value


def summary(name: str, seed: int, layers: Sequence[Layer], network: Network) -> str:
    """Return a table of the layers with their output shapes and numbers of parameters."""
    rows = [("Layer", "Output shape", "Parameters")]
    for unit in network.units:
        layer = unit.layer
        again = any(u.layer is layer for u in network.units[: unit.position])
        shown = "(None, " + ", ".join(map(str, layer.output_shape or ())) + ")"
        count = "0" if again else f"{layer.count_params():,}"
        rows.append((f"{unit.key} ({type(layer).__name__})", shown, count))
    first, second, third = (max(len(row[i]) for row in rows) for i in range(3))
    lines = [f"{a:<{first}}  {b:<{second}}  {c:>{third}}" for a, b, c in rows]
    rule = "-" * len(lines[0])
    learning = {id(layer): layer for layer in layers if layer.trainable}.values()
    trainable = sum(math.prod(spec.shape) for layer in learning for spec in layer.specs if spec.trainable)
    total = network.layout.size + network.stats_layout.size
    tail = f"Parameters: {total:,} ({trainable:,} trainable, {total - trainable:,} not), seed {seed}"
    return "\n".join([f"Model {name!r}", rule, lines[0], rule, *lines[1:], rule, tail])
