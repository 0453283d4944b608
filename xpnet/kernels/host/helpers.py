"""Worker threads that spin briefly before sleeping.

Waking a sleeping thread takes about 50 microseconds, a large part of a product that is worth sharing. So an idle
helper spins, for longer than the pause between two products of a step, before it sleeps. It requests the GIL only
when the calling thread has probably released it, because waiting for the GIL means sleeping, too. This needs numba
(the extra `fast`); without it, a helper sleeps at once.
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

MAX_POLLS = 400  # polls, half a microsecond each, before a thread sleeps
GRACE_POLLS = 10  # polls, likewise, between a request and taking the GIL
POLL_INTERVAL = 5e-5  # seconds between polls after the first `MAX_POLLS`

Queue = deque[Callable[[], Any]]


class Job(AbstractContextManager["Job"]):
    """A queue of calls shared with helpers; when its `with` block ends, no helper is running one."""

    def __init__(self, queue: Queue, helping: Sequence[Helper]) -> None:
        self.queue, self.helping = queue, helping
        self.errors: list[BaseException] = []  # raised in helpers
        self.done = False

    def begin(self) -> None:
        """Ask the helpers to take calls."""
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
    """A thread that takes calls from a queue, together with the thread that filled it."""

    def __init__(self, number: int) -> None:
        self.job: Callable[[], Job | None] = _no_job
        self.turns = np.zeros(1, np.int64)  # number of requests
        self.free = np.ones(1, np.int64)  # 0 from before it takes a call until none is left
        self.asleep = False
        self.bell: SimpleQueue[None] = SimpleQueue()  # written in C: an exception can't leave it locked
        threading.Thread(target=self._live, args=[_spin()], name=f"xpnet-{number}", daemon=True).start()

    def busy(self) -> bool:
        """Return whether its job is unfinished; a job that was garbage-collected counts as done."""
        job = self.job()
        return job is not None and not job.done

    def ask(self, job: Job) -> None:
        """Ask the helper to take calls of a job."""
        self.job = ref(job)
        self.turns[0] += 1
        if self.asleep:
            self.bell.put(None)

    def wait(self) -> None:
        """Wait until the helper runs no call."""
        spin = _spin()
        if spin is None or not spin.reached(self.free, 1, MAX_POLLS):
            while not self.free[0]:
                time.sleep(POLL_INTERVAL)

    def _live(self, spin: Any) -> None:
        try:
            self._serve(spin)
        finally:  # an asynchronous exception has ended this thread
            self.free[0] = 1

    def _serve(self, spin: Any) -> None:
        seen = 0
        np.seterr(all="ignore")  # for this thread: the guard detects non-finite values
        while True:
            if self._asked(spin, seen):
                seen = int(self.turns[0])
                _work(self.job())
            else:
                self.asleep = True
                if self.turns[0] == seen:  # if not, there is one superfluous ring, which is harmless
                    self.bell.get()
                self.asleep = False

    def _asked(self, spin: Any, seen: int) -> bool:
        if spin is not None:
            return bool(spin.asked(self.free, self.turns, seen, MAX_POLLS, GRACE_POLLS))
        more = int(self.turns[0]) > seen
        self.free[0] = not more
        return more


def drain(queue: Queue) -> None:
    """Run the calls of a queue until none is left."""
    while True:
        try:
            call = queue.popleft()
        except IndexError:
            return
        call()


def _work(job: Job | None) -> None:
    """Run the calls of a job until none is left or one fails."""
    if job is not None:
        try:
            drain(job.queue)
        except BaseException as error:  # noqa: BLE001 - raised again by the job's thread
            job.errors.append(error)


_helpers: list[Helper] = []


def free(number: int) -> list[Helper]:
    """Return the free ones among the first `number` helpers."""
    while len(_helpers) < number:
        _helpers.append(Helper(len(_helpers)))
    return [helper for helper in _helpers[:number] if not helper.busy()]


def forget() -> None:
    """Discard all helpers: a forked process has none of its parent's threads."""
    _helpers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)


@lru_cache
def _spin() -> Any:
    """Return the compiled spinning functions; None without numba or on Windows."""
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
