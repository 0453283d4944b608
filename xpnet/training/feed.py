"""Sources of training batches: made on the host, or on the device by the step itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..backend import Array, Backend, np
from ..backend.tree import Stack
from ..errors import InvalidValueError
from .data import Column, Data, blocks, class_weights, weigh
from .program import Program
from .replay import Replay
from .session import Session
from .step import Batch, TrainState

__all__ = ["Feed", "check_class_weight", "make_batches", "make_feed"]

Held = tuple[Array, Array, Array | None]  # a data set on the device: inputs, targets, weights


class Feed:
    """Make batches on the host, with the masks and noise of their steps.

    Args:
        session, program: what takes the steps. data: checked rows. class_weight: {class: factor} or None.

    Attributes:
        run: `run(state, batches, commit)`, which takes one step per batch.
        step: the number of the next step; it determines masks and noise.
    """

    def __init__(
        self, session: Session, program: Program, data: Data, class_weight: Mapping[int, float] | None
    ) -> None:
        self.session, self.program, self.data, self.class_weight = session, program, data, class_weight
        self.order: np.ndarray | None = None
        self.run = program.run
        self.step = 0

    def follow(self, program: Program) -> None:
        """Switch to another program of the same model, made after a change of settings."""
        self.program, self.run = program, program.run
        if program.recorder is not None:
            program.recorder.begin_feeding()

    def begin(self, order: np.ndarray | None, step: int) -> None:
        """Begin an epoch at a step, with the given order of rows (None: unshuffled)."""
        self.order, self.step = order, step
        if self.program.recorder is not None:
            self.program.recorder.begin_feeding()

    def batches(self, start: int, stop: int, count: int = 1) -> Sequence[Any]:
        """Return the rows from `start` to `stop` of the order as `count` batches of equal size."""
        if self.program.recorder is None or self._at_home():
            return self.on_host(start, stop, count, self.program.host_masks)
        with self.program.recorder.feeding():
            return self.on_host(start, stop, count, self.program.host_masks)

    def on_host(self, start: int, stop: int, count: int = 1, masks: bool = True) -> Sequence[Batch]:
        """Return the same batches, made on the host, with or without masks."""
        rows = slice(start, stop) if self.order is None else self.order[start:stop]
        return make_batches(
            self.session, self.program, self.data, rows, self.step, count, self.class_weight, masks
        )

    def _at_home(self) -> bool:
        """Return whether any of the data are arrays of the model's own library."""
        columns = (self.data.x, self.data.y, self.data.weight)
        return any(c is not None and c.home.name == self.session.backend.name for c in columns)


class DeviceFeed(Feed):
    """Pass row numbers; the step gathers the batches from a data set on the device.

    Args:
        held: inputs, targets and weights (or None) on the device. The others: see `Feed`.
    """

    def __init__(self, session: Session, program: Program, data: Data, class_weight: Any, held: Held) -> None:
        super().__init__(session, program, data, class_weight)
        self._held = held
        self._order: Array = None
        self._record(program)

    def _record(self, program: Program) -> None:
        """Make `run`: the program's step, preceded by gathering its batch on the device."""
        (x, y, weight), backend, pick = self._held, self.session.backend, program.maker.pick
        target = getattr(backend.xp, program.target_dtype or backend.dtype_name)

        def step(state: TrainState, batch: tuple[Array], finish: list[Any] | None = None) -> TrainState:
            (rows,) = batch
            weights = None if weight is None else pick(weight, rows, backend.dtype)
            made = Batch(pick(x, rows, backend.dtype), pick(y, rows, target), weights, {})
            return program.step(state, made, finish)

        # its own recordings: they contain the addresses of the data, and are freed together with it
        self.run = Replay(step, program.recorder)

    def follow(self, program: Program) -> None:
        """Switch to another program of the same model, made after a change of settings."""
        super().follow(program)
        self._record(program)

    def begin(self, order: np.ndarray | None, step: int) -> None:
        """Begin an epoch; copy its row order to the device once."""
        self.order, self.step = order, step
        rows = np.arange(len(self.data), dtype=np.int32) if order is None else order
        self._order = self.session.backend.feed(rows)

    def batches(self, start: int, stop: int, count: int = 1) -> Sequence[Any]:
        """Return row numbers, int32, shape (count, rows)."""
        rows = self._order[start:stop]
        if count == 1:
            return [(rows,)]
        return Stack((self.session.backend.xp.reshape(rows, (count, -1)),), count)


def make_feed(session: Session, program: Program, data: Data, class_weight: Mapping[int, float] | None) -> Feed:
    """Return the feed of a training run: on the device if the step supports it and the data set fits."""
    check_class_weight(session, program, class_weight)
    held = None
    if program.maker is not None:
        with suppress(MemoryError):  # free memory may be fragmented, or not available to this process
            held = _hold(session, program, data, class_weight)
    if held is None:
        return Feed(session, program, data, class_weight)
    return DeviceFeed(session, program, data, class_weight, held)


def check_class_weight(session: Session, program: Program, class_weight: Any) -> None:
    """Raise if classes have weights, but do not lie on the last axis."""
    axis, last = program.loss.axis, len(session.network.output_shape)
    if class_weight and axis not in (-1, last, None):
        raise InvalidValueError(f"class_weight needs classes on the last axis of the outputs; got axis {axis}")


def _hold(
    session: Session, program: Program, data: Data, class_weight: Any
) -> tuple[Array, Array, Array | None] | None:
    """Return inputs, targets and weights on the device, or None if they do not fit."""
    backend, maker = session.backend, program.maker
    floating = backend.dtype_name
    columns = (data.x, data.y, data.weight)
    kinds = [
        _kept(c, d, backend, maker)
        for c, d in zip(columns, (floating, program.target_dtype or floating, floating))
    ]
    sizes = [np.dtype(k).itemsize * math.prod(c.values.shape) for c, k in zip(columns, kinds) if c and k]
    if len(data) >= 2**31 or not maker.fits(backend.device, sum(sizes)):
        return None
    x, y, own = (
        c and (maker.hold(c.values.shape, k, _parts(c, backend, k)) if k else c.values)
        for c, k in zip(columns, kinds)
    )
    y = backend.xp.reshape(y, (len(data), *program.target_shape))
    sparse = program.target_dtype == "int32"
    weight = class_weights(backend, y, class_weight, sparse) if class_weight else None
    if own is not None:
        weight = weigh(backend, backend.xp.astype(own, backend.dtype), weight)
    return x, y, weight


def _kept(column: Column | None, dtype: str, backend: Backend, maker: Any) -> str | None:
    """Return the dtype in which to copy a column to the device; None if there is nothing to copy."""
    if column is None or (column.home.name == backend.name and maker.can_pick(column.values, backend.device)):
        return None
    return "uint8" if column.kind == "uint8" else dtype  # keep bytes: a quarter of the memory


def _parts(column: Column, backend: Any, dtype: str) -> Iterator[tuple[slice, Array]]:
    for rows in blocks(column.values.shape):
        yield rows, column.move(column.take(rows), backend, dtype)


def make_batches(
    session: Session,
    program: Program,
    data: Data,
    rows: Any,
    step: int,
    count: int = 1,
    class_weight: Any = None,
    masks: bool = True,
) -> Sequence[Batch]:
    """Return rows as batches of equal size on the model's device, with the masks of their steps.

    Args:
        rows: a slice, or row numbers on the host. step: number of the first step. count: number of batches.
        masks: whether to make masks.
    """
    backend, network = session.backend, session.network
    target = program.target_shape, program.target_dtype
    # if the host is the device, a step has ended when `run` returns; a GPU may still be reading the batch
    reuse = backend.inplace and not backend.pooled
    x, y, weight = data.batch(rows, backend, *target, class_weight, reuse=reuse)
    size = int(x.shape[0]) // count
    dtype = backend.dtype_name
    drawn = [network.masks(session.stream, step + i, size, dtype) if masks else {} for i in range(count)]
    if count == 1:
        return [Batch(x, y, weight, {key: backend.feed(mask) for key, mask in drawn[0].items()})]

    def split(a: Array) -> Array:
        return backend.xp.reshape(a, (count, size, *a.shape[1:]))

    draws = {key: backend.feed(np.stack([m[key] for m in drawn])) for key in drawn[0]}
    return Stack(Batch(split(x), split(y), None if weight is None else split(weight), draws), count)
