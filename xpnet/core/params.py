"""Parameters as slices of ONE flat array: their declarations and their layout.

Optimizers, the finite check, saving and averaging see one array; layers see named views of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from ..backend import Array, Backend, np
from ..errors import InvalidTypeError, ShapeError
from .random import Stream, keep_mask, normals

__all__ = ["DrawSpec", "Flats", "Group", "Layout", "ParamSpec", "Variable", "Variables"]


class ParamSpec(NamedTuple):
    """A parameter or running statistic that a layer declares.

    Attributes:
        l1, l2: factors of the penalty l1 sum(|w|) + l2 sum(w^2). regularizer: a penalty by another formula, or
            None. constraint: moves the parameter after each update, or None. They count only for what is trained.
    """

    name: str
    shape: tuple[int, ...]
    initializer: Any
    trainable: bool = True
    l1: float = 0.0
    l2: float = 0.0
    lr_factor: float = 1.0
    decay: bool = True
    regularizer: Any = None
    constraint: Any = None


class DrawSpec(NamedTuple):
    """Random numbers that a layer needs at each training step.

    Attributes:
        name: unique in the layer. shape: without the batch axis.
        rate: of a boolean mask, True with probability 1 - rate; None for standard normal numbers.
        seed: of a stream of its own; None for the model's.
    """

    name: str
    shape: tuple[int, ...]
    rate: float | None
    seed: int | None = None

    def draw(self, stream: Stream, slot: int, step: int, rows: int, dtype: str) -> np.ndarray:
        """Return them for a batch, shape (rows, *shape): booleans, or normal numbers in `dtype`."""
        stream, shape = stream.of(self.seed), (rows, *self.shape)
        if self.rate is None:
            return normals(stream, slot, step, shape, dtype)
        return keep_mask(stream, slot, step, shape, self.rate)


class Variable(NamedTuple):
    """A parameter as an optimizer sees it.

    Attributes:
        path: such as "dense_1/kernel". start, stop: its range on the flat array's last axis. shape: its shape.
        lr_factor: factor of the learning rate. decay: whether weight decay applies to it.
    """

    path: str
    start: int
    stop: int
    shape: tuple[int, ...]
    lr_factor: float = 1.0
    decay: bool = True

    def decays(self, excluded: Sequence[str]) -> bool:
        """Return whether weight decay applies; paths that contain one of the `excluded` patterns have none."""
        return self.decay and not any(re.search(pattern, self.path) for pattern in excluded)


class Group(NamedTuple):
    """A range of adjacent parameters with the same learning-rate factor and decay."""

    start: int
    stop: int
    lr_factor: float = 1.0
    decay: bool = True


class Variables(tuple[Variable, ...]):
    """All parameters of a flat array, in order."""

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Their slices of the flat array."""
        return tuple(slice(v.start, v.stop) for v in self)

    @cached_property
    def _groups(self) -> dict[Any, tuple[Group, ...]]:
        return {}

    def groups(self, excluded: tuple[str, ...] | None = ()) -> tuple[Group, ...]:
        """Return the groups, usually one.

        Args:
            excluded: patterns of paths without weight decay; None if there is no weight decay.
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
    """The layout of parameters in one flat array.

    Args:
        entries: (key, slot, spec) for each parameter: a unique path such as "dense_1/kernel", the number that
            keys its random stream, and the layer's declaration.

    Attributes:
        size: total number of elements. slices: key -> slice of the flat array's last axis.
        segments: ((start, stop, l1, l2), ...) of the regularized parameters. variables: the optimizer's view.
        penalties, constraints: key -> object, of the trained parameters that have a regularizer with a formula of
            its own, or a constraint.
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
        trained = {key: spec for key, _, spec in self.entries if spec.trainable}
        self.penalties = {key: s.regularizer for key, s in trained.items() if s.regularizer is not None}
        self.constraints = {key: s.constraint for key, s in trained.items() if s.constraint is not None}
        self.variables = Variables(
            Variable(key, where.start, where.stop, spec.shape, spec.lr_factor, spec.decay)
            for (key, _, spec), where in zip(self.entries, self.slices.values())
        )

    def views(self, xp: Any, flat: Array) -> dict[str, Array]:
        """Return the parameters by key as views of the flat array, shape (..., size)."""
        lead = tuple(flat.shape[:-1])
        return {
            key: xp.reshape(flat[..., where], (*lead, *self.shapes[key])) for key, where in self.slices.items()
        }

    def pack(self, xp: Any, parts: Mapping[str, Array]) -> Array:
        """Return the flat array, shape (..., size), made of parts of shape (..., *shape)."""
        flat = []
        for key, shape in self.shapes.items():
            part = parts[key]
            flat.append(xp.reshape(part, (*part.shape[: part.ndim - len(shape)], -1)))
        return xp.concat(flat, axis=-1)

    def penalize(self, ctx: Any, w: Array, g: Array) -> tuple[Any, Array]:
        """Return the sum of all penalties on weights of shape (..., size), and g plus its gradient.

        Raises:
            ShapeError, InvalidTypeError: a regularizer does not return a penalty and a gradient of w's shape.
        """
        value: Any = 0.0
        if self.segments:
            value, g = ctx.ops.penalize(ctx, w, g, self.segments)
        if self.penalties:
            more, g = self._own_penalties(ctx, w, g)
            value = value + more
        return value, g

    def _own_penalties(self, ctx: Any, w: Array, g: Array) -> tuple[Any, Array]:
        if w.ndim > 1:  # a formula takes the parameter of one model
            found = [self._own_penalties(ctx, w[i, ...], g[i, ...]) for i in range(w.shape[0])]
            return sum(more for more, _ in found), ctx.xp.stack([slope for _, slope in found])
        value, slopes = 0.0, {}
        for key, regularizer in self.penalties.items():
            found = regularizer.at(ctx, self._part(ctx, w, key))
            if not isinstance(found, tuple) or len(found) != 2:
                raise InvalidTypeError(f"{regularizer!r} must return the penalty and its gradient; got {found!r}")
            self._check(key, found[1], f"the gradient of {regularizer!r}")
            value = value + found[0]
            slopes[key] = self._part(ctx, g, key) + found[1]
        return value, self._replaced(ctx, g, slopes)

    def constrain(self, ctx: Any, w: Array) -> Array:
        """Return weights of shape (..., size) after all constraints.

        Raises:
            ShapeError: a constraint returns weights of another shape.
        """
        if not self.constraints:
            return w
        if w.ndim > 1:  # a formula takes the parameter of one model
            return ctx.xp.stack([self.constrain(ctx, w[i, ...]) for i in range(w.shape[0])])
        parts = {}
        for key, constraint in self.constraints.items():
            parts[key] = constraint.apply(ctx.xp, self._part(ctx, w, key))
            self._check(key, parts[key], f"what {constraint!r} returns")
        return self._replaced(ctx, w, parts)

    def _part(self, ctx: Any, flat: Array, key: str) -> Array:
        return ctx.xp.reshape(flat[self.slices[key]], self.shapes[key])

    def _check(self, key: str, part: Array, what: str) -> None:
        if tuple(part.shape) != self.shapes[key]:
            raise ShapeError(
                f"{key}: {what} must have the parameter's shape, {self.shapes[key]}; got {tuple(part.shape)}"
            )

    def _replaced(self, ctx: Any, flat: Array, parts: Mapping[str, Array]) -> Array:
        """Return the flat array, shape (size,), with some parameters replaced: in the layout's order."""
        pieces, done = [], 0
        for key, part in parts.items():
            where = self.slices[key]
            if where.start > done:
                pieces.append(flat[done : where.start])
            pieces.append(ctx.xp.reshape(part, (-1,)))
            done = where.stop
        return ctx.ops.join(ctx, [*pieces, flat[done:]] if done < self.size else pieces)

    def initial(self, stream: Stream, known: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """Return initial values as a flat float64 host array: those in `known`, by key, else drawn."""
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
        """Return the given arrays as one flat host array, after checking their shapes.

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
    """The flat arrays of a model and their layouts, passed to layers that outlive the model.

    It refers to no layer, so a layer that refers to it is not part of a reference cycle.
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
