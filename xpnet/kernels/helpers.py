"""Threads that take part in work, and are there at once where the work comes often.

To wake a thread that sleeps takes some 50 microseconds, a good part of a product that is worth sharing. So a
helper that is done looks out for more, for longer than the pause between two products of a step, before it goes
to sleep. And it asks for Python's lock only when the thread that called it is likely to have let go of it: to
find the lock taken is to sleep, too. All this needs numba (the extra `fast`); without it a helper goes to sleep
at once.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

__all__ = ["Helper", "drain", "helpers"]

LOOKS = 400  # of half a microsecond each, before a thread goes to sleep
GRACE = 10  # times half a microsecond, from being asked to asking for Python's lock
NAP = 5e-5  # seconds between two looks of one who has looked `LOOKS` times

Queue = deque[Callable[[], Any]]


class Helper:
    """A thread that takes calls from a queue, beside the thread that has filled it."""

    def __init__(self, number: int) -> None:
        self.queue: Queue = deque()
        self.turns = np.zeros(1, np.int64)  # how often it was asked
        self.free = np.ones(1, np.int64)  # 0 from before it takes a call until there is none left
        self.asleep = False
        self.bell = threading.Semaphore(0)
        self.error: BaseException | None = None
        threading.Thread(target=self._serve, args=[_spin()], name=f"xpnet-{number}", daemon=True).start()

    def ask(self, queue: Queue) -> None:
        """Let the helper take calls from a queue, as soon as it can."""
        self.queue, self.error = queue, None
        self.turns[0] += 1
        if self.asleep:
            self.bell.release()

    def wait(self) -> BaseException | None:
        """Wait for the calls that the helper has begun, if it has; return what one of them raised."""
        spin = _spin()
        if spin is None or not spin.reached(self.free, 1, LOOKS):
            while not self.free[0]:
                time.sleep(NAP)
        error, self.error = self.error, None
        return error

    def _serve(self, spin: Any) -> None:
        seen = 0
        np.seterr(all="ignore")  # of this thread: what is not finite, the guard finds
        while True:
            if self._asked(spin, seen):
                seen = int(self.turns[0])
                try:
                    drain(self.queue)
                except BaseException as error:  # noqa: BLE001 - `wait` hands it on
                    self.error = error
            else:
                self.asleep = True
                if self.turns[0] == seen:  # if not, the bell rings once too often, which does no harm
                    self.bell.acquire()
                self.asleep = False

    def _asked(self, spin: Any, seen: int) -> bool:
        if spin is not None:
            return bool(spin.asked(self.free, self.turns, seen, LOOKS, GRACE))
        more = int(self.turns[0]) > seen
        self.free[0] = not more
        return more


def drain(queue: Queue) -> None:
    """Make the calls of a queue until there is none left."""
    while True:
        try:
            call = queue.popleft()
        except IndexError:
            return
        call()


@lru_cache
def helpers(process: int, number: int) -> list[Helper]:
    """Return the helpers of a process: a forked one has none of its parent's threads."""
    return [Helper(i) for i in range(number)]


@lru_cache
def _spin() -> Any:
    """Return the functions that wait without sleeping, compiled; None without numba or on Windows."""
    if os.name != "posix":
        return None
    try:
        from . import spin
    except ImportError:
        return None
    one = np.ones(1, np.int64)
    spin.reached(one, 1, 1)
    spin.asked(one.copy(), one, 0, 1, 0)
    return spin
