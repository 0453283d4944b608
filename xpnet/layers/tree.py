"""Layers that consist of layers: their names and paths, and how to undo changes to all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..core.config import snake_case
from ..errors import InvalidValueError

__all__ = ["count_trainable", "learns", "name_layers", "unchanged_on_error", "walk"]

Layer = Any  # `layers.base.Layer`, whose module imports this one


def walk(layers: Iterable[Layer], prefix: str = "", learns: bool = True) -> Iterator[tuple[str, Layer, bool]]:
    """Yield (path, layer, whether it learns) for layers and their sublayers, outer ones first.

    A path consists of names, such as "residual/dense". A layer learns if it and those around it are trainable. One
    that stands twice in the same sequence is yielded once.
    """
    for layer in {id(layer): layer for layer in layers}.values():
        path, own = f"{prefix}{layer.name}", learns and bool(layer.trainable)
        yield path, layer, own
        yield from walk(layer.sublayers, f"{path}/", own)


def learns(layer: Layer, name: str) -> bool:
    """Return whether the layer of a weight is trainable, and all layers around it. Args: name: as in `specs`."""
    owner = name.rpartition("/")[0]
    return all(own for path, _, own in walk([layer]) if path.partition("/")[2] == owner)


def count_trainable(layers: Iterable[Layer]) -> int:
    """Return the number of trainable parameters of these layers and their sublayers."""
    own = (spec for _, layer, learns in walk(layers) if learns for spec in layer.specs if "/" not in spec.name)
    return sum(math.prod(spec.shape) for spec in own if spec.trainable)


def name_layers(layers: Sequence[Layer]) -> None:
    """Name the layers that have no name, and their sublayers: "dense", "dense_1", ...

    Raises:
        InvalidValueError: two layers have the same name.
    """
    taken: dict[str, Layer] = {}
    for layer in layers:
        if layer.name is not None and taken.setdefault(layer.name, layer) is not layer:
            raise InvalidValueError(f"the layers of a model must have different names; got {layer.name!r} twice")
    counts: dict[str, int] = {}  # by base name: where to continue counting
    for layer in layers:
        if layer.name is None:
            base = snake_case(type(layer).__name__)
            count = counts.get(base, 0)
            while (name := f"{base}_{count}" if count else base) in taken:
                count += 1
            counts[base] = count
            layer.name = name
            taken[name] = layer
        name_layers(layer.sublayers)


@contextmanager
def unchanged_on_error(layers: Iterable[Layer]) -> Iterator[None]:
    """On an exception, restore all attributes of these layers and their sublayers."""
    before: list[tuple[Any, dict[str, Any]]] = [(layer, dict(vars(layer))) for _, layer, _ in walk(layers)]
    try:
        yield
    except BaseException:  # Ctrl-C too: undo, then re-raise
        for layer, attributes in before:
            layer.__dict__.clear()
            layer.__dict__.update(attributes)
        raise
