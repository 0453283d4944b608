"""Limit BLAS to one thread while a step runs, and restore its number of threads afterwards.

threadpoolctl finds the libraries. Their own functions set the number: threadpoolctl 3.8 lets only the first thread
of a process set OpenBLAS's number, and silently ignores the others.

An exception may be raised anywhere: Ctrl-C twice, a signal handler, an asynchronous exception in the thread. So
each old setting is saved before it is changed, and a block counts as open while its `with` statement is alive. If
a block ends without running its exit, the next one to begin or end restores what it changed.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from typing import Any
from weakref import ref

import numpy as np

from . import turns

__all__ = ["allowed", "blas_threads", "count", "single_threaded_blas"]

THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "OMP_NUM_THREADS",
)


@dataclass(eq=False)
class Library:
    """A BLAS library: getter and setter of its number of threads; whether the number is per process."""

    get: Callable[[], int]
    set: Callable[[int], Any]
    shared: bool


def _default() -> int:
    """Return how many threads BLAS uses by default: one per core, or as set in the environment."""
    cores = len(os.sched_getaffinity(os.getpid())) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name in THREAD_VARIABLES:
        number = re.match(r"\s*0*([1-9]\d*)", os.environ.get(name, ""))
        if number:
            return min(cores, int(number[1]))
    return cores


DEFAULT_THREADS = _default()  # fixed at import: limiting BLAS later must not change results


def count() -> int:
    """Return the number of parts to split work into: the threads of an unlimited BLAS."""
    return DEFAULT_THREADS if _blas() else 1


@lru_cache
def _blas() -> list[Library]:
    """Return the loaded BLAS libraries; none without threadpoolctl."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return []
    return [_library(found) for found in ThreadpoolController().select(user_api="blas").lib_controllers]


OPENBLAS = [
    (f"{before}openblas_get_num_threads{after}", f"{before}openblas_set_num_threads{after}")
    for before, after in product(("", "scipy_"), ("", "64_", "_64"))
]
OPENMP = [("omp_get_max_threads", "omp_set_num_threads")]  # used by an OpenBLAS with OpenMP
MKL = [("MKL_Get_Max_Threads", "MKL_Set_Num_Threads_Local")]


def _library(found: Any) -> Library:
    """Return the `Library` for one that threadpoolctl has found."""
    names, shared = {"openblas": OPENBLAS, "mkl": MKL}.get(found.internal_api, []), found.internal_api != "mkl"
    if names is OPENBLAS and found.threading_layer == "openmp":
        names, shared = OPENMP, False
    for get, put in names:
        if hasattr(found.dynlib, get) and hasattr(found.dynlib, put):
            ask, tell = (
                _function(found.dynlib, get, ctypes.c_int),
                _function(found.dynlib, put, None, ctypes.c_int),
            )
            return Library(ask, tell, shared)
    return Library(found.get_num_threads, found.set_num_threads, True)


def _function(library: Any, name: str, *types: Any) -> Any:
    """Return a library function that is called with the GIL held: releasing it costs more than the call."""
    return ctypes.PYFUNCTYPE(*types)(ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0)


Before = dict[Library, int]  # the numbers to restore

_lock = threading.RLock()  # reentrant: a signal handler may train, too
_before: Before = {}  # for libraries with one number per process
_inside: list[_Entry] = []  # the open blocks of all threads


class _Entry:
    """The settings that a block has changed."""

    __slots__ = ("before", "began", "block", "errors", "state")

    block: Callable[[], Any]  # weak reference to the `single_threaded_blas` held by the `with` statement
    began: float
    errors: Any  # NumPy's previous error settings

    def __init__(self) -> None:
        self.state = np.errstate(all="ignore")
        self.before: Before = {}  # for libraries with one number per thread


class _Here(threading.local):
    """Thread-local data."""

    def __init__(self) -> None:
        self.entries: list[_Entry] = []  # the thread's open blocks, the innermost last


_here = _Here()


class single_threaded_blas(partial[None]):
    """Limit BLAS to one thread and silence NumPy's floating-point warnings (the guard detects such values).

    If blocks overlap, the last one to end restores the number of threads of the process.

    It is a `partial` of the exit function, which C code calls, so that only the `with` statement refers to it. A
    Python frame would also refer to it, in the traceback of an exception raised there.
    """

    def __new__(cls) -> single_threaded_blas:
        """Make a block that begins when a `with` statement enters it."""
        entry = _Entry()
        block = super().__new__(cls, _leave, entry)
        entry.block = ref(block)
        return block

    def __enter__(self) -> None:
        entry: _Entry = self.args[0]
        del self  # see above
        entry.began = turns.acquire()
        entries = _here.entries
        if entries:
            _clear(entries)
        entry.errors = np.geterr()
        entries.append(entry)
        entry.state.__enter__()
        with _lock:
            _settle()
            _inside.append(entry)
            for library in _blas():
                _limit(library, _before if library.shared else entry.before)

    __exit__ = partial.__call__


def _leave(entry: _Entry, *error: Any) -> None:
    entries = _here.entries
    if entries[-1] is not entry:
        _clear(entries)
    entry.state.__exit__(None, None, None)
    if entry.before:
        _restore(entry.before)
    with _lock:
        _inside.remove(entry)
        _settle()
    entries.remove(entry)
    turns.release(entry.began)


def _limit(library: Library, before: Before) -> None:
    threads = library.get()
    if threads > 1:
        before[library] = threads
        library.set(1)


def _restore(before: Before) -> None:
    for library, threads in list(before.items()):
        if library.get() == 1:  # if not, other code has set it since
            library.set(threads)
    before.clear()


def _settle() -> None:
    """Restore the numbers of the process if no block is open."""
    if _inside:
        _inside[:] = [entry for entry in _inside if entry.block() is not None]
    if _before and not _inside:
        _restore(_before)


def _clear(entries: list[_Entry]) -> None:
    """Restore what this thread's innermost blocks changed, if they ended without running their exit."""
    while entries and entries[-1].block() is None:
        entry = entries[-1]
        if set(np.geterr().values()) == {"ignore"}:  # if not, other code has set it since
            np.seterr(**entry.errors)
        _restore(entry.before)
        entries.remove(entry)


def allowed() -> int:
    """Return how many threads may share this thread's work: inside a block those of an unlimited BLAS, else 1."""
    entries = _here.entries
    own = (threads for entry in entries for threads in entry.before.values())
    return max([1, *_before.values(), *own]) if entries else 1


def blas_threads() -> int:
    """Return how many threads BLAS may use at present."""
    return max([1, *(library.get() for library in _blas())])


def _after_fork() -> None:
    """Discard the blocks of threads that do not exist in a forked process, and undo their limits."""
    global _lock
    _lock = threading.RLock()
    _clear(_here.entries)
    _inside[:] = _here.entries
    _settle()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
