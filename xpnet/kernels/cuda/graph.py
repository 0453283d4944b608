"""A CuPy step captured once as a CUDA graph, and launched again: its kernels without the Python between them.

While a stream captures, nothing runs: what is asked of it is noted, and the graph does it at every launch, on
the same memory. So nobody else may get that memory, also not what the step freed. It comes from a pool that only
the graphs of one recorder take from: they run one after the other, and none keeps anything there from launch to
launch.

Every graph is compared once with the step it was captured from, number by number, before anybody gets numbers
of it.
"""

from __future__ import annotations

import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from ...backend.tree import leaves, tree_map

__all__ = ["CannotRecord", "Recorder"]

_idle: dict[int, list[Any]] = defaultdict(list)  # by device: pairs of streams of former recorders


class CannotRecord(Exception):
    """This step can't be captured; it runs as it is."""


class Recorder:
    """Captures steps on one device, on a stream of its own (the default stream can't capture).

    Args:
        device: a `cupy.cuda.Device`.
    """

    CannotRecord = CannotRecord
    records_user_code = True  # code of users may be captured: every graph is checked
    records_stacks = True  # several steps may be one graph

    def __init__(self, device: Any) -> None:
        import cupy

        idle = _idle[device.id]  # streams are never destroyed: handles of cuBLAS belong to them
        with device:
            self.stream, self.feeder = idle.pop() if idle else _streams(cupy)
        self.cupy, self.device, self.pool = cupy, device, cupy.cuda.MemoryPool(_allocate)
        self.refused = ""  # why nothing is captured any more
        self._read: Any = None  # the event after which the memory of the last batch may be used again
        weakref.finalize(self, idle.append, (self.stream, self.feeder))

    @contextmanager
    def step_context(self) -> Iterator[None]:
        """Work on the recorder's stream: after what the caller's has been asked to do, before what comes."""
        with self.device:
            caller = self.cupy.cuda.get_current_stream()
            self.stream.wait_event(caller.record())
            self.stream.wait_event(self.feeder.record())
            try:
                with self.stream:
                    yield
            finally:
                caller.wait_event(self.stream.record())

    def begin_feeding(self) -> None:
        """Let batches be made only behind what the caller's stream has been asked for, and the steps so far."""
        with self.device:
            self.feeder.wait_event(self.stream.record())  # the last one may have failed, and nobody waited for it
            self._read = self.cupy.cuda.get_current_stream().record()

    @contextmanager
    def feeding(self) -> Iterator[None]:
        """Bring a batch to the device on a stream of its own, while the step before it is still at work.

        CuPy copies by way of pinned memory, and does not wait for it.
        """
        with self.device, self.feeder:
            self.feeder.wait_event(self._read)
            yield

    def release(self) -> None:
        """Note that what has been asked for so far is the last to read the batch."""
        self._read = self.stream.record()

    def adopt(self, a: Any) -> Any:
        """Return the array: its memory may stay, for state is donated."""
        return a

    def new(self, a: Any) -> Any:
        """Return a copy in memory that stays."""
        return a.copy()

    def copy(self, place: Any, a: Any) -> None:
        """Write an array over memory that stays."""
        place[...] = a

    def record(self, step: Callable[[Any, Any], Any], state: Any, batch: Any) -> Launch:
        """Capture a step on persistent memory, take it, and return what takes it again.

        Args:
            step: a pure function (state, batch) -> state.
            state: a named tuple, which the new state is written over.
            batch: arrays that later batches are copied to.

        Raises:
            CannotRecord: the state is then as it was. A warning tells why, once.
        """
        if self.refused:
            raise CannotRecord(self.refused)
        try:
            before, trial = tree_map(self.new, state), tree_map(self.new, state)
            with self.cupy.cuda.using_allocator(self.pool.malloc):
                # uncaptured first: kernels are compiled, the pool has its memory, and this is what must come out
                expected = step(trial, batch)
        except MemoryError as error:  # of the copies, or since the pool takes nothing from others
            self._refuse(f"{type(error).__name__}: {error}")
        with self.cupy.cuda.using_allocator(self.pool.malloc):
            graph = self._capture(step, state, batch)
        graph.launch(self.stream)
        differing = [name for name, a, b in zip(state._fields, state, expected) if not _same(a, b)]
        if differing:
            tree_map(self.copy, state, before)
            self._refuse(f"its graph gives other numbers than the step itself, in {', '.join(differing)}")
        return Launch(self, graph)

    def _capture(self, step: Callable[[Any, Any], Any], state: Any, batch: Any) -> Any:
        self.stream.begin_capture()
        try:
            try:
                tree_map(self._store, state, step(state, batch))
            except BaseException:  # Ctrl-C too: nobody can use a stream that goes on capturing
                with suppress(Exception):  # the capture may be invalid already
                    self.stream.end_capture()
                raise
            return self.stream.end_capture()
        except Exception as error:  # noqa: BLE001 - of the libraries' own kinds; told in the warning
            notes = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
            self._refuse(f"{type(error).__name__}: {error}{notes}")

    def _store(self, place: Any, value: Any) -> None:
        if value is not place:
            place[...] = value

    def _refuse(self, why: str) -> NoReturn:
        self.refused = why
        warnings.warn(f"the training step is not captured as a CUDA graph: {why}", RuntimeWarning, stacklevel=3)
        raise CannotRecord(why)


class Launch:
    """Launches a graph at every call; it keeps the recorder, whose memory the graph works on."""

    finish = ()  # the graph is the whole step

    def __init__(self, recorder: Recorder, graph: Any) -> None:
        self.recorder, self.graph = recorder, graph

    def __call__(self) -> Sequence[Any]:
        """Take the step again; nothing is left to do."""
        self.graph.launch(self.recorder.stream)
        return self.finish


def _allocate(size: int) -> Any:
    """Return memory of the driver's, for a pool.

    The pool must not hear of CUDA's error: it would give all back that is free, for it does not know of graphs.
    """
    import cupy

    try:
        return cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise MemoryError(f"{size:,} bytes of the device's memory: {error}") from error


def _streams(cupy: Any) -> tuple[Any, Any]:
    """Return a stream for steps, and one for their batches."""
    return cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)


def _same(a: Any, b: Any) -> bool:
    """Return whether two trees hold equal numbers, NaN being equal to NaN."""
    return all(bool(((x == y) | ((x != x) & (y != y))).all()) for x, y in zip(leaves((a,)), leaves((b,))))
