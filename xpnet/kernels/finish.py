"""The calls with which a step ends: those that write over its state, made in one go.

An exception may strike between any two lines of Python: Ctrl-C, a signal handler that raises, one that is sent
into the thread. Between two calls that C code makes none can. So what writes over the state is put off to the end
of the step, as a list of calls of C functions, and C code makes them: all, or none.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from .threads import finish_shared

__all__ = ["Branch", "Pieces", "make", "make_all", "result_of"]

Call = Callable[[], Any]


class Branch(NamedTuple):
    """Calls (and branches) that are made if a flag, a 0-d boolean array on the host, is set by then."""

    flag: Any
    calls: list[Any]


class Pieces(NamedTuple):
    """Calls that may be made in any order, by several threads."""

    calls: Sequence[Call]


def make(finish: Iterable[Any], *last: Call) -> None:
    """Make the calls of a step's end, and then the last ones: all of them, whatever is thrown in between.

    Args:
        finish: calls of C functions, `Branch` and `Pieces` of such. last: calls of C functions.
    """
    calls: deque[Call] = deque()
    pieces: deque[Call] = deque()
    _collect(finish, calls, pieces)
    calls += last
    if pieces:
        finish_shared(pieces, calls)
    else:
        make_all(calls)


def make_all(calls: Iterable[Call]) -> None:
    """Make calls of C functions: no line of Python lies between them."""
    deque(map(operator.call, calls), maxlen=0)


def result_of(store: Callable[[Any], Any], function: Callable[..., Any], *args: Any) -> None:
    """Store what a C function returns: no line of Python lies between its return and that."""
    deque(map(store, map(function, *([a] for a in args))), maxlen=0)


def _collect(entries: Iterable[Any], calls: deque[Call], pieces: deque[Call]) -> None:
    for entry in entries:
        if type(entry) is Branch:
            if entry.flag:
                _collect(entry.calls, calls, pieces)
        elif type(entry) is Pieces:
            pieces += entry.calls
        else:
            calls.append(entry)
