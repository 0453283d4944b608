"""Names <-> slices of ONE flat array: what a layer declares, and where it lies.

Optimizers, the finite check, saving and averaging see one array; layers see named views of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from .backend import Array, Backend, np
from .errors import InvalidTypeError, ShapeError
from .random import Stream

__all__ = ["DrawSpec", "Flats", "Group", "Layout", "ParamSpec", "Variable", "Variables"]


class ParamSpec(NamedTuple):
    """A parameter or running statistic that a layer declares."""

    name: str
    shape: tuple[int, ...]
    initializer: Any
    trainable: bool = True
    l1: float = 0.0
    l2: float = 0.0
    lr_factor: float = 1.0
    decay: bool = True


class DrawSpec(NamedTuple):
    """A random mask that a layer needs at each training step: shape without the batch axis."""

    name: str
    shape: tuple[int, ...]
    rate: float


class Variable(NamedTuple):
    """A parameter as an optimizer sees it: where it lies in the flat array, and how it learns.

    Attributes:
        path: such as "dense_1/kernel". start, stop: its place in the flat array's last axis. shape: its own.
        lr_factor: what the learning rate is multiplied with. decay: whether weight decay may act on it.
    """

    path: str
    start: int
    stop: int
    shape: tuple[int, ...]
    lr_factor: float = 1.0
    decay: bool = True

    def decays(self, excluded: Sequence[str]) -> bool:
        """Return whether weight decay acts on it, if paths in which one of the patterns is found are excluded."""
        return self.decay and not any(re.search(pattern, self.path) for pattern in excluded)


class Group(NamedTuple):
    """Neighbours in the flat array that learn in the same way."""

    start: int
    stop: int
    lr_factor: float
    decay: bool


class Variables(tuple[Variable, ...]):
    """All parameters of a flat array, one after the other."""

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Where they lie."""
        return tuple(slice(v.start, v.stop) for v in self)

    @cached_property
    def _groups(self) -> dict[Any, tuple[Group, ...]]:
        return {}

    def groups(self, excluded: tuple[str, ...] | None = ()) -> tuple[Group, ...]:
        """Return the groups; one is the usual case.

        Args:
            excluded: patterns of paths on which weight decay does not act; None where there is no decay.
        """
        if excluded not in self._groups:
            found: list[Group] = []
            for v in self:
                group = Group(v.start, v.stop, v.lr_factor, excluded is None or v.decays(excluded))
                if found and found[-1][2:] == group[2:]:
                    group = group._replace(start=found.pop().start)
                found.append(group)
            self._groups[excluded] = tuple(found)
        return self._groups[excluded]


class Layout:
    """Where each of the given parameters lies in one flat array.

    Args:
        entries: (key, slot, spec) for each: a unique path such as "dense_1/kernel", the number that keys its
            random stream, and what the layer declared.

    Attributes:
        size: elements in all. slices: key -> slice of the flat array's last axis.
        segments: ((start, stop, l1, l2), ...) for the regularized parts. variables: as an optimizer sees them.
    """

    def __init__(self, entries: Sequence[tuple[str, int, ParamSpec]]) -> None:
        self.entries = tuple(entries)
        self.slices: dict[str, slice] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        segments = []
        start = 0
        for key, _, spec in self.entries:
            stop = start + math.prod(spec.shape)
            self.slices[key], self.shapes[key] = slice(start, stop), spec.shape
            if spec.trainable and (spec.l1 or spec.l2):
                segments.append((start, stop, spec.l1, spec.l2))
            start = stop
        self.size = start
        self.segments = tuple(segments)
        self.variables = Variables(
            Variable(key, where.start, where.stop, spec.shape, spec.lr_factor, spec.decay)
            for (key, _, spec), where in zip(self.entries, self.slices.values())
        )

    def views(self, xp: Any, flat: Array) -> dict[str, Array]:
        """Return the parameters by key as parts of the flat array, shape (..., size)."""
        lead = tuple(flat.shape[:-1])
        return {
            key: xp.reshape(flat[..., where], (*lead, *self.shapes[key])) for key, where in self.slices.items()
        }

    def pack(self, xp: Any, parts: Mapping[str, Array]) -> Array:
        """Return the flat array, shape (..., size), of these parts of shape (..., *shape)."""
        flat = []
        for key, shape in self.shapes.items():
            part = parts[key]
            flat.append(xp.reshape(part, (*part.shape[: part.ndim - len(shape)], -1)))
        return xp.concat(flat, axis=-1)

    def initial(self, stream: Stream, known: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """Return the initial values as a flat host array in float64; what is `known`, by key, is not drawn."""
        flat = np.empty(self.size)
        known = known or {}
        for key, slot, spec in self.entries:
            values = known[key] if key in known else spec.initializer.values(stream, slot, spec.shape)
            flat[self.slices[key]] = values.reshape(-1)
        return flat

    def host_parts(self, backend: Backend, flat: Array) -> dict[str, np.ndarray]:
        """Return host copies by key."""
        host = backend.host(flat)
        return {key: host[where].reshape(self.shapes[key]).copy() for key, where in self.slices.items()}

    def from_host(self, parts: Mapping[str, Any]) -> np.ndarray:
        """Return a flat host array of the given arrays, after a check of their shapes.

        Raises:
            ShapeError: an array does not have its parameter's shape. InvalidTypeError: it is not numeric.
        """
        flat = np.empty(self.size)
        for key, where in self.slices.items():
            try:
                part = np.asarray(parts[key], dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise InvalidTypeError(f"{key}: weights must be numbers; got {parts[key]!r}") from error
            if part.shape != self.shapes[key]:
                raise ShapeError(f"{key}: weights must have shape {self.shapes[key]}; got {part.shape}")
            flat[where] = part.reshape(-1)
        return flat


class Flats(NamedTuple):
    """Where the weights of a model lie: what it leaves to its layers, which outlive it.

    It refers to no layer, so that a layer that refers to it is no part of a cycle.
    """

    backend: Backend
    parts: tuple[tuple[Layout, Array], ...]

    def values(self, key: str, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return host copies of the parameters and statistics of one layer by name."""
        found = {}
        for layout, flat in self.parts:
            here = {name: f"{key}/{name}" for name in names if f"{key}/{name}" in layout.slices}
            if here:
                host = self.backend.host(flat)
                for name, path in here.items():
                    found[name] = np.array(host[layout.slices[path]]).reshape(layout.shapes[path])
        return {name: found[name] for name in names}
