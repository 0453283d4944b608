"""End a step: run the calls that overwrite its state, atomically.

An exception may be raised between any two lines of Python: Ctrl-C, a signal handler, an asynchronous exception in
the thread. It can't be raised between two calls made by C code. So everything that overwrites the state is
deferred to the end of the step, as a list of C functions that C code calls: all of them or none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from operator import call
from typing import Any, NamedTuple

from .host.threads import finish_shared

__all__ = ["Branch", "End", "Pieces", "make", "result_of"]

Call = Callable[[], Any]


class Branch(NamedTuple):
    """Calls (and branches) that run if a flag, a 0-d boolean array on the host, is set at that time."""

    flag: Any
    calls: list[Any]


class Pieces(NamedTuple):
    """Calls that may run in any order, on several threads."""

    calls: Sequence[Call]


class End:
    """The end of a recorded step; the calls for each combination of its flags are determined once."""

    def __init__(self, entries: Sequence[Any]) -> None:
        self.entries, self.flags = entries, _flags(entries)
        self.plans: dict[Any, tuple[list[Call], list[Call]]] = {}

    def plan(self) -> tuple[list[Call], list[Call]]:
        """Return the calls, and those that several threads may run, for the current flags."""
        key = tuple([flag.item() for flag in self.flags])
        found = self.plans.get(key)
        if found is None:
            found = self.plans[key] = _plan(self.entries)
        return found


def _flags(entries: Iterable[Any]) -> list[Any]:
    branches = [entry for entry in entries if type(entry) is Branch]
    return [flag for b in branches for flag in (b.flag, *_flags(b.calls))]


def make(finish: Any, *last: Call) -> None:
    """Run the calls that end a step, then the last ones: all of them, even if an exception is raised meanwhile.

    Args:
        finish: an `End`, or a list of calls of C functions, `Branch` and `Pieces`. last: calls of C functions.
    """
    calls, pieces = finish.plan() if type(finish) is End else _plan(finish)
    if pieces:
        finish_shared(deque(pieces), deque([*calls, *last]))
    else:
        deque(map(call, (*calls, *last) if last else calls), maxlen=0)


def result_of(store: Callable[[Any], Any], function: Callable[..., Any], state: Any, batch: Any) -> None:
    """Store the result of a C function, with no line of Python between its return and the store."""
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
