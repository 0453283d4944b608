"""Split large products, updates and batches into pieces, taken by whichever thread is free.

A multithreaded BLAS waits for all its threads at the end of every product. If another program occupies a core, a
small network's step can take thirty times as long. Here the calling thread takes pieces too, and does not wait for
a helper that has not begun. The pieces depend only on the shapes and the number of threads, so the results do not
depend on which thread took them.

Meanwhile BLAS is limited to one thread, which needs threadpoolctl (the extra `fast`). Without it, BLAS uses its
own threads and nothing is split here.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from .helpers import Job, drain, free
from .limits import allowed, blas_threads, count, single_threaded_blas

__all__ = [
    "count",
    "finish_shared",
    "gather",
    "matmul_in_pieces",
    "parts_of",
    "pieces",
    "share",
    "single_threaded_blas",
    "sum_of_squares"
]  # fmt: skip

Array = np.ndarray

MIN_PRODUCT = 1 << 22  # floating-point operations of a product below which a second thread gains nothing
MIN_PASS = 1 << 17  # the same for elements of a pass over the weights
MIN_GATHER = 1 << 15  # the same for elements of gathered rows


def share(calls: Iterable[Callable[[], Any]], most: int | None = None) -> None:
    """Run the calls in any order on at most `most` threads; by default as many as BLAS could use."""
    queue = deque(calls)
    wanted = min(count(), allowed() if most is None else most, len(queue)) - 1
    helping = free(count() - 1)[:wanted] if wanted > 0 else []
    if not helping:
        drain(queue)
        return
    job = Job(queue, helping)
    with job, job, job:  # nested, so that the job ends even if two exceptions are raised while it does
        job.begin()
        drain(queue)
    if job.errors:
        raise job.errors[0]


def finish_shared(pieces: deque[Callable[[], Any]], last: deque[Callable[[], Any]]) -> None:
    """Run calls of C functions: the pieces in any order on several threads, then the last ones.

    All of them run even if exceptions are raised in this thread: a call leaves its queue when it is made.
    """
    wanted = min(count(), allowed(), len(pieces)) - 1
    job = Job(pieces, free(count() - 1)[:wanted] if wanted > 0 else [])
    try:
        job.begin()
        _finish(job, last)
    except BaseException:  # raised in `_finish`, too: it continues where it was
        _finish(job, last)
        raise
    if job.errors:
        raise job.errors[0]


def _finish(job: Job, last: deque[Callable[[], Any]]) -> None:
    _drain_in_c(job.queue)
    with job, job:  # see `share`
        pass
    _drain_in_c(last)


def _drain_in_c(queue: deque[Callable[[], Any]]) -> None:
    """Run the calls of a queue, with no line of Python between taking one and running it."""
    try:
        deque(map(operator.call, iter(queue.popleft, None)), maxlen=0)
    except IndexError:
        if queue:  # raised by a call
            raise


def split(size: int, piece: int) -> list[slice]:
    """Split `size` elements among the threads, into parts of at least `piece`."""
    parts = min(count(), size // max(1, piece))
    if count() == 1 or parts < 2:
        return [slice(0, size)]
    edges = [round(i * size / parts / 16) * 16 for i in range(parts)] + [size]
    return [slice(a, b) for a, b in pairwise(edges)]


def pieces(a: Array, b: Array) -> list[slice] | None:
    """Return the pieces of a @ b along its longer side; None if too small to split."""
    m, k, n = *a.shape, b.shape[1]
    longer = max(m, n)
    parts = split(longer, -(-longer * MIN_PRODUCT // max(1, 2 * m * n * k)))
    return parts if len(parts) > 1 else None


def matmul_in_pieces(a: Array, b: Array, out: Array) -> None:
    """Write a @ b, shape (m, n), to `out`, in pieces."""
    if out.shape[0] >= out.shape[1]:
        share([partial(np.matmul, a[p], b, out=out[p]) for p in pieces(a, b) or ()])
    else:
        share([partial(np.matmul, a, b[:, p], out=out[:, p]) for p in pieces(a, b) or ()])


def gather(values: Array, rows: Array, out: Array) -> Array:
    """Return values[rows] in `out`, shape (rows, ...); row numbers must be in range."""
    # with mode "clip", NumPy writes directly to `out`
    if out.size < 2 * MIN_GATHER or count() == 1:
        return values.take(rows, 0, out, "clip")
    parts = split(len(rows), -(-len(rows) * MIN_GATHER // out.size))
    share([partial(values.take, rows[p], 0, out[p], "clip") for p in parts], blas_threads())
    return out


def parts_of(arrays: Sequence[Array]) -> list[list[Array]]:
    """Split 1-D arrays of equal size among the threads; return them as one part if too small to split."""
    if arrays[0].size < 2 * MIN_PASS or count() == 1:
        return [list(arrays)]
    return [[a[p] for a in arrays] for p in split(arrays[0].size, MIN_PASS)]


def sum_of_squares(a: Array) -> float:
    """Return the sum of a[i]^2 over a 1-D array."""
    if a.size < 2 * MIN_PASS or count() == 1:
        return float(a.dot(a))
    parts = split(a.size, MIN_PASS)
    sums = np.empty(len(parts), a.dtype)
    share([partial(np.dot, a[p], a[p], sums[i, ...]) for i, p in enumerate(parts)])
    return float(sums.sum())
