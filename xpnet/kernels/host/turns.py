"""Let threads that take short steps take turns.

NumPy releases the GIL in each call on more than a few hundred numbers. If other threads wait for the GIL, this
wakes one of them each time, which can take longer than the call: six threads, each training a small network, took
twice as long as one thread training all six. So a thread that takes short steps keeps its turn for `MAX_TURN`, or
until it rests. This affects only speed: no thread waits longer, and a turn that is never passed on expires.
"""

from __future__ import annotations

import math
import os
import threading
from contextlib import suppress
from threading import get_ident
from time import perf_counter
from typing import NamedTuple

__all__ = ["acquire", "release"]

MAX_TURN = 2e-2  # seconds: four of Python's switch intervals
MAX_REST = 2e-4  # seconds without a step after which a thread's turn may be taken
SHORT_STEP = 1e-3  # seconds; a shorter step gains little from running beside others


class Turn(NamedTuple):
    """A thread's turn and its end."""

    thread: int = 0
    until: float = 0.0
    lock: threading.Lock = threading.Lock()  # held during the turn


class _Last(threading.local):
    """The last step of each thread."""

    short = True  # whether it was short


_turn = Turn()
_rests = math.inf  # when the turn's thread ended its last step; inf during a step
_last = _Last()


def acquire() -> float:
    """Wait for this thread's turn; return the current time."""
    global _rests
    now, me = perf_counter(), get_ident()
    if _turn.thread != me and _last.short:
        patience = now + MAX_TURN
        while now < patience:
            turn = _turn
            until = min(patience, turn.until + SHORT_STEP if _rests == math.inf else now + MAX_REST)
            if turn.lock.acquire(timeout=max(0.0, until - now)):
                _begin(me, turn.lock)
                break
            now = perf_counter()
            if now > _turn.until or now - _rests > MAX_REST:  # the turn's thread is doing something else
                lock = threading.Lock()
                lock.acquire()
                _begin(me, lock)
                break
    if _turn.thread == me:
        _rests = math.inf
    return perf_counter()


def _begin(me: int, lock: threading.Lock) -> None:
    """Begin a turn; the caller holds `lock`."""
    global _turn, _rests
    _rests = math.inf  # first, so that the former turn's rest does not end this one
    _turn = Turn(me, perf_counter() + MAX_TURN, lock)


def release(began: float) -> None:
    """End a step that began at time `began`, and this thread's turn if its time is up."""
    global _turn, _rests
    now, turn = perf_counter(), _turn
    _last.short = now - began < SHORT_STEP
    if turn.thread != get_ident():
        return
    _rests = now
    if now > turn.until or not _last.short:
        _turn = Turn(lock=turn.lock)
        with suppress(RuntimeError):  # already released by a signal handler that also trained
            turn.lock.release()


def _after_fork() -> None:
    global _turn
    _turn = Turn(lock=threading.Lock())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
