"""Capture a CuPy step once as a CUDA graph, and launch it again: its kernels without the Python code between them.

While a stream captures, nothing runs: operations are recorded, and the graph performs them at every launch, on
the same memory. So no one else may use that memory, including what the step freed. It comes from a pool that only
the graphs of one recorder use: they run one after the other, and none keeps data there between launches.

Every graph is compared once with the step from which it was captured, number by number, before its results are
used.
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
    """The step can't be captured; it runs uncaptured."""


class Recorder:
    """Captures steps on one device, on a separate stream (the default stream can't capture).

    Args:
        device: a `cupy.cuda.Device`.
    """

    CannotRecord = CannotRecord
    records_user_code = True  # user-defined code may be captured: every graph is checked
    records_stacks = True  # several steps may be one graph

    def __init__(self, device: Any) -> None:
        import cupy

        idle = _idle[device.id]  # streams are never destroyed: cuBLAS handles belong to them
        with device:
            self.stream, self.feeder = idle.pop() if idle else _streams(cupy)
        self.cupy, self.device, self.pool = cupy, device, cupy.cuda.MemoryPool(_allocate)
        self.refused = ""  # why captures are disabled, if they are
        self._read: Any = None  # the event after which the memory of the last batch may be reused
        weakref.finalize(self, idle.append, (self.stream, self.feeder))

    @contextmanager
    def step_context(self) -> Iterator[None]:
        """Run on the recorder's stream: after work already queued on the caller's stream, before later work."""
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
        """Make batches only after work queued so far on the caller's stream, and the steps so far."""
        with self.device:
            # also after the last step, which may have failed before anything waited for it
            self.feeder.wait_event(self.stream.record())
            self._read = self.cupy.cuda.get_current_stream().record()

    @contextmanager
    def feeding(self) -> Iterator[None]:
        """Copy a batch to the device on a separate stream, while the previous step is still running.

        CuPy copies through pinned memory, without waiting.
        """
        with self.device, self.feeder:
            self.feeder.wait_event(self._read)
            yield

    def release(self) -> None:
        """Record that the work queued so far is the last to read the batch."""
        self._read = self.stream.record()

    def adopt(self, a: Any) -> Any:
        """Return the array itself: its memory may become permanent, because state is donated."""
        return a

    def new(self, a: Any) -> Any:
        """Return a copy in permanent memory."""
        return a.copy()

    def copy(self, place: Any, a: Any) -> None:
        """Copy an array to permanent memory."""
        place[...] = a

    def record(self, step: Callable[[Any, Any], Any], state: Any, batch: Any) -> Launch:
        """Capture a step on persistent memory, take it, and return a function that takes it again.

        Args:
            step: a pure function (state, batch) -> state.
            state: a named tuple, overwritten with the new state.
            batch: arrays to which later batches are copied.

        Raises:
            CannotRecord: the step can't be captured; the state is unchanged. A warning reports why, once.
        """
        if self.refused:
            raise CannotRecord(self.refused)
        try:
            before, trial = tree_map(self.new, state), tree_map(self.new, state)
            with self.cupy.cuda.using_allocator(self.pool.malloc):
                # uncaptured first: this compiles kernels, fills the pool, and gives the expected result
                expected = step(trial, batch)
        except MemoryError as error:  # from the copies, or because the pool shares no memory with others
            self._refuse(f"{type(error).__name__}: {error}")
        with self.cupy.cuda.using_allocator(self.pool.malloc):
            graph = self._capture(step, state, batch)
        graph.launch(self.stream)
        differing = [name for name, a, b in zip(state._fields, state, expected) if not _same(a, b)]
        if differing:
            tree_map(self.copy, state, before)
            self._refuse(f"its graph gives other results than the step itself, in {', '.join(differing)}")
        return Launch(self, graph)

    def _capture(self, step: Callable[[Any, Any], Any], state: Any, batch: Any) -> Any:
        self.stream.begin_capture()
        try:
            try:
                tree_map(self._store, state, step(state, batch))
            except BaseException:  # also on Ctrl-C: a stream that is still capturing is unusable
                with suppress(Exception):  # the capture may be invalid already
                    self.stream.end_capture()
                raise
            return self.stream.end_capture()
        except Exception as error:  # noqa: BLE001 - the libraries' own exceptions; reported in the warning
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
    """Launches a graph at every call; keeps the recorder alive, whose memory the graph uses."""

    finish = ()  # the graph is the whole step

    def __init__(self, recorder: Recorder, graph: Any) -> None:
        self.recorder, self.graph = recorder, graph

    def __call__(self) -> Sequence[Any]:
        """Take the step again; no calls remain to end it."""
        self.graph.launch(self.recorder.stream)
        return self.finish


def _allocate(size: int) -> Any:
    """Allocate device memory for a pool.

    Raises MemoryError: if the pool saw CUDA's own error it would release its free memory, which graphs still use.
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
    """Return whether two trees hold equal numbers; NaN equals NaN."""
    return all(bool(((x == y) | ((x != x) & (y != y))).all()) for x, y in zip(leaves((a,)), leaves((b,))))
