"""Large products, updates and batches shared out among threads, in pieces that whoever is free takes next.

A BLAS with threads of its own waits for each of them at the end of every product: where another program is on one
of the cores, a small network's step can take thirty times as long. Here the thread that calls takes pieces too,
and does not wait for a helper that has not begun. What the pieces are depends on the shapes and the number of
threads alone, so that the results do not depend on who was free.

BLAS is kept to one thread meanwhile, which needs threadpoolctl (the extra `fast`). Without it, BLAS does as it
likes and nothing is shared out.
"""

from __future__ import annotations

import operator
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from .helpers import drain, helpers

__all__ = [
    "Alone", "count", "finish_shared", "gather", "parts_of", "pieces", "product", "share", "sum_of_squares"
]  # fmt: skip

Array = np.ndarray

PIECE = 1 << 22  # multiplications and additions of a product below which two threads gain nothing
PART = 1 << 17  # elements of a pass over the weights, likewise
ROWS = 1 << 15  # and elements of rows that are gathered
_busy = threading.Lock()  # held by the thread that has the helpers
_now = threading.local()  # .threads: what BLAS may use outside of `Alone`


@lru_cache
def _blas() -> list[Any]:
    """Return the handles of the loaded BLAS libraries; none without threadpoolctl."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return []
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


@lru_cache
def count() -> int:
    """Return how many threads share the work: as many as BLAS was to use when this was first asked."""
    return max([1, *(int(blas.get_num_threads()) for blas in _blas())])


def _allowed() -> list[tuple[Any, int]]:
    """Return each BLAS library with the threads that it may use now."""
    return [(blas, int(blas.get_num_threads())) for blas in _blas()] if count() > 1 else []


class Alone(AbstractContextManager["Alone"]):
    """Keep BLAS to one thread, and NumPy from warning of what the guard finds.

    How many BLAS uses is the process' affair: of blocks that overlap the first limits it, the last restores it.
    """

    _lock = threading.Lock()
    _inside = 0
    _before: ClassVar[list[tuple[Any, int]]] = []

    def __enter__(self) -> Alone:
        self.state = np.errstate(all="ignore")
        self.state.__enter__()
        with Alone._lock:
            if Alone._inside == 0:
                Alone._before = _allowed()
                for blas, _ in Alone._before:
                    blas.set_num_threads(1)
            Alone._inside += 1
        self.outside = getattr(_now, "threads", 1)
        _now.threads = max([1, *(threads for _, threads in Alone._before)])
        return self

    def __exit__(self, *error: Any) -> None:
        _now.threads = self.outside
        with Alone._lock:
            Alone._inside -= 1
            if Alone._inside == 0:
                for blas, threads in Alone._before:
                    blas.set_num_threads(threads)
        self.state.__exit__(*error)


def share(calls: Iterable[Callable[[], Any]], most: int | None = None) -> None:
    """Make all the calls, in any order, on at most so many threads: if not told, as BLAS might use."""
    queue = deque(calls)
    wanted = min(count(), getattr(_now, "threads", 1) if most is None else most, len(queue)) - 1
    if wanted < 1 or not _busy.acquire(blocking=False):
        drain(queue)
        return
    try:
        helping = helpers(os.getpid(), count() - 1)[:wanted]
        for helper in helping:
            helper.ask(queue)
        try:
            drain(queue)
        finally:
            queue.clear()
            errors = [helper.wait() for helper in helping]
        for error in errors:
            if error is not None:
                raise error
    finally:
        _busy.release()


def finish_shared(pieces: deque[Callable[[], Any]], last: deque[Callable[[], Any]]) -> None:
    """Make calls of C functions, the pieces in any order and on several threads, then the last ones.

    What is begun is finished, whatever is thrown into this thread: a call leaves its queue when it is made.
    """
    try:
        _share_pieces(pieces)
        _drain_in_c(last)
    except BaseException:
        _share_pieces(pieces)
        _drain_in_c(last)
        raise


def _share_pieces(queue: deque[Callable[[], Any]]) -> None:
    wanted = min(count(), getattr(_now, "threads", 1), len(queue)) - 1
    if wanted < 1 or not _busy.acquire(blocking=False):
        _drain_in_c(queue)
        return
    try:
        helping = helpers(os.getpid(), count() - 1)[:wanted]
        for helper in helping:
            helper.ask(queue)
        try:
            _drain_in_c(queue)
        finally:
            for helper in helping:
                helper.wait()
    finally:
        _busy.release()


def _drain_in_c(queue: deque[Callable[[], Any]]) -> None:
    """Make the calls of a queue, with no line of Python between taking one and making it."""
    try:
        deque(map(operator.call, iter(queue.popleft, None)), maxlen=0)
    except IndexError:  # the queue's: no call of a step's end raises one
        return


def split(size: int, piece: int) -> list[slice]:
    """Return the parts of `size` elements that threads take: one for each, but of at least `piece`."""
    parts = min(count(), size // max(1, piece))
    if count() == 1 or parts < 2:
        return [slice(0, size)]
    edges = [round(i * size / parts / 16) * 16 for i in range(parts)] + [size]
    return [slice(a, b) for a, b in pairwise(edges)]


def pieces(a: Array, b: Array) -> list[slice] | None:
    """Return the pieces of a @ b along its longer side, None if it had better stay whole."""
    m, k, n = *a.shape, b.shape[1]
    longer = max(m, n)
    parts = split(longer, -(-longer * PIECE // max(1, 2 * m * n * k)))
    return parts if len(parts) > 1 else None


def product(a: Array, b: Array, out: Array) -> None:
    """Write a @ b, shape (m, n), to `out`, in pieces."""
    if out.shape[0] >= out.shape[1]:
        share([partial(np.matmul, a[p], b, out=out[p]) for p in pieces(a, b) or ()])
    else:
        share([partial(np.matmul, a, b[:, p], out=out[:, p]) for p in pieces(a, b) or ()])


def gather(values: Array, rows: Array, out: Array) -> Array:
    """Return values[rows] in `out`, shape (rows, ...); row numbers must be in range."""
    # "clip" is the mode in which NumPy writes straight to `out`
    if out.size < 2 * ROWS or count() == 1:
        return values.take(rows, 0, out, "clip")
    parts = split(len(rows), -(-len(rows) * ROWS // out.size))
    most = max([1, *(threads for _, threads in _allowed())])
    share([partial(values.take, rows[p], 0, out[p], "clip") for p in parts], most)
    return out


def parts_of(arrays: Sequence[Array]) -> list[list[Array]]:
    """Return 1-D arrays of one size in the parts that threads take; as they are where sharing gains nothing."""
    if arrays[0].size < 2 * PART or count() == 1:
        return [list(arrays)]
    return [[a[p] for a in arrays] for p in split(arrays[0].size, PART)]


def sum_of_squares(a: Array) -> float:
    """Return the sum of a[i]^2 over a 1-D array."""
    if a.size < 2 * PART or count() == 1:
        return float(a.dot(a))
    parts = split(a.size, PART)
    sums = np.empty(len(parts), a.dtype)
    share([partial(np.dot, a[p], a[p], sums[i, ...]) for i, p in enumerate(parts)])
    return float(sums.sum())
