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
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from queue import SimpleQueue
from typing import Any
from weakref import ref

import numpy as np

__all__ = ["Helper", "Job", "drain", "free"]

LOOKS = 400  # of half a microsecond each, before a thread goes to sleep
GRACE = 10  # times half a microsecond, from being asked to asking for Python's lock
NAP = 5e-5  # seconds between two looks of one who has looked `LOOKS` times

Queue = deque[Callable[[], Any]]


class Job(AbstractContextManager["Job"]):
    """Calls that some helpers take part in; no helper is at work on them any more when the block ends."""

    def __init__(self, queue: Queue, helping: Sequence[Helper]) -> None:
        self.queue, self.helping = queue, helping
        self.errors: list[BaseException] = []  # of the helpers
        self.done = False

    def begin(self) -> None:
        """Ask the helpers to take calls, as soon as they can."""
        for helper in self.helping:
            helper.ask(self)

    def __exit__(self, *error: Any) -> None:
        self.queue.clear()
        struck: BaseException | None = None
        while not self.done:
            try:
                for helper in self.helping:
                    helper.wait()
                self.done = True
            except BaseException as another:  # noqa: BLE001 - raised below
                struck = another
        if struck is not None:
            raise struck


def _no_job() -> None:
    return None


class Helper:
    """A thread that takes calls from a queue, beside the thread that has filled it."""

    def __init__(self, number: int) -> None:
        self.job: Callable[[], Job | None] = _no_job
        self.turns = np.zeros(1, np.int64)  # how often it was asked
        self.free = np.ones(1, np.int64)  # 0 from before it takes a call until there is none left
        self.asleep = False
        self.bell: SimpleQueue[None] = SimpleQueue()  # in C: an exception can't leave it locked
        threading.Thread(target=self._live, args=[_spin()], name=f"xpnet-{number}", daemon=True).start()

    def taken(self) -> bool:
        """Return whether somebody's job is not done yet: one that has gone without an end counts as done."""
        job = self.job()
        return job is not None and not job.done

    def ask(self, job: Job) -> None:
        """Let the helper take calls of a job, as soon as it can."""
        self.job = ref(job)
        self.turns[0] += 1
        if self.asleep:
            self.bell.put(None)

    def wait(self) -> None:
        """Wait for the calls that the helper has begun, if it has."""
        spin = _spin()
        if spin is None or not spin.reached(self.free, 1, LOOKS):
            while not self.free[0]:
                time.sleep(NAP)

    def _live(self, spin: Any) -> None:
        try:
            self._serve(spin)
        finally:  # an exception sent into this thread has ended it
            self.free[0] = 1

    def _serve(self, spin: Any) -> None:
        seen = 0
        np.seterr(all="ignore")  # of this thread: what is not finite, the guard finds
        while True:
            if self._asked(spin, seen):
                seen = int(self.turns[0])
                _work(self.job())
            else:
                self.asleep = True
                if self.turns[0] == seen:  # if not, the bell rings once too often, which does no harm
                    self.bell.get()
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


def _work(job: Job | None) -> None:
    """Make the calls of a job until there is none left, or one fails."""
    if job is not None:
        try:
            drain(job.queue)
        except BaseException as error:  # noqa: BLE001 - who has made the job raises it
            job.errors.append(error)


_helpers: list[Helper] = []


def free(number: int) -> list[Helper]:
    """Return those of so many helpers that nobody has taken."""
    while len(_helpers) < number:
        _helpers.append(Helper(len(_helpers)))
    return [helper for helper in _helpers[:number] if not helper.taken()]


def forget() -> None:
    """Make new helpers when the next are needed: a forked process has none of its parent's threads."""
    _helpers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)


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
