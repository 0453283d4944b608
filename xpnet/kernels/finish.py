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

__all__ = ["Branch", "End", "Pieces", "make", "result_of"]

Call = Callable[[], Any]


class Branch(NamedTuple):
    """Calls (and branches) that are made if a flag, a 0-d boolean array on the host, is set by then."""

    flag: Any
    calls: list[Any]


class Pieces(NamedTuple):
    """Calls that may be made in any order, by several threads."""

    calls: Sequence[Call]


class End:
    """The end of a recorded step: what there is to do for each setting of its flags is worked out once."""

    def __init__(self, entries: Sequence[Any]) -> None:
        self.entries, self.flags = entries, _flags(entries)
        self.plans: dict[Any, tuple[list[Call], list[Call]]] = {}

    def plan(self) -> tuple[list[Call], list[Call]]:
        """Return the calls, and those that several threads may make, for the flags as they are."""
        key = tuple([flag.item() for flag in self.flags])
        found = self.plans.get(key)
        if found is None:
            found = self.plans[key] = _plan(self.entries)
        return found


def _flags(entries: Iterable[Any]) -> list[Any]:
    branches = [entry for entry in entries if type(entry) is Branch]
    return [flag for b in branches for flag in (b.flag, *_flags(b.calls))]


def make(finish: Any, *last: Call) -> None:
    """Make the calls of a step's end, and then the last ones: all of them, whatever is thrown in between.

    Args:
        finish: an `End`, or calls of C functions, `Branch` and `Pieces` of such. last: calls of C functions.
    """
    calls, pieces = finish.plan() if type(finish) is End else _plan(finish)
    if pieces:
        finish_shared(deque(pieces), deque([*calls, *last]))
    else:
        deque(map(call, (*calls, *last) if last else calls), maxlen=0)


def result_of(store: Callable[[Any], Any], function: Callable[..., Any], state: Any, batch: Any) -> None:
    """Store what a C function returns: no line of Python lies between its return and that."""
    deque(map(store, map(function, (state,), (batch,))), maxlen=0)


def _plan(entries: Iterable[Any]) -> tuple[list[Call], list[Call]]:
    calls: list[Call] = []
    pieces: list[Call] = []
    for entry in entries:
        if type(entry) is Branch:
            more, others = _plan(entry.calls) if entry.flag else ([], [])
            calls += more
            pieces += others
        elif type(entry) is Pieces:
            pieces += entry.calls
        else:
            calls.append(entry)
    return calls, pieces
