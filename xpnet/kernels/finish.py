"""The calls with which a step ends: those that write over its state, made in one go.

An exception may strike between any two lines of Python: Ctrl-C, a signal handler that raises, one that is sent
into the thread. Between two calls that C code makes none can. So what writes over the state is put off to the end
of the step, as a list of calls of C functions, and C code makes them: all, or none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from operator import call
from typing import Any, NamedTuple

from .threads import finish_shared

__all__ = ["Branch", "Pieces", "in_runs", "make", "result_of"]

Call = Callable[[], Any]


class Branch(NamedTuple):
    """Calls (and branches) that are made if a flag, a 0-d boolean array on the host, is set by then."""

    flag: Any
    calls: list[Any]


class Pieces(NamedTuple):
    """Calls that may be made in any order, by several threads."""

    calls: Sequence[Call]


def in_runs(entries: Iterable[Any]) -> list[Any]:
    """Return the calls of a step's end with those that follow each other as one list."""
    runs: list[Any] = []
    for entry in entries:
        if isinstance(entry, Branch):
            runs.append(Branch(entry.flag, in_runs(entry.calls)))
        elif isinstance(entry, Pieces):
            runs.append(entry)
        elif runs and type(runs[-1]) is list:
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return runs


def make(finish: Iterable[Any], *last: Call) -> None:
    """Make the calls of a step's end, and then the last ones: all of them, whatever is thrown in between.

    Args:
        finish: calls of C functions, lists, `Branch` and `Pieces` of such. last: calls of C functions.
    """
    calls: list[Call] = []
    pieces: list[Call] = []
    _collect(finish, calls, pieces)
    calls += last
    if pieces:
        finish_shared(deque(pieces), deque(calls))
    else:
        deque(map(call, calls), maxlen=0)


def result_of(store: Callable[[Any], Any], function: Callable[..., Any], *args: Any) -> None:
    """Store what a C function returns: no line of Python lies between its return and that."""
    deque(map(store, map(function, *([a] for a in args))), maxlen=0)


def _collect(entries: Iterable[Any], calls: list[Call], pieces: list[Call]) -> None:
    for entry in entries:
        kind = type(entry)
        if kind is list:
            calls += entry
        elif kind is Branch:
            if entry.flag:
                _collect(entry.calls, calls, pieces)
        elif kind is Pieces:
            pieces += entry.calls
        else:
            calls.append(entry)
