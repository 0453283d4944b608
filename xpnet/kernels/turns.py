"""Threads that take short steps at the same time take turns.

NumPy lets go of Python's lock in each call on more than a few hundred numbers. Where other threads wait for the
lock, this wakes one of them each time, which can take longer than the call: six threads that train a small network
each took twice as long as one that trains six. So a thread that takes short steps keeps its turn for `SLICE`, or
until it rests. This affects only speed: no thread waits longer than that, and a turn that is never passed on
expires.
"""

from __future__ import annotations

import math
import os
import threading
from contextlib import suppress
from threading import get_ident
from time import perf_counter
from typing import NamedTuple

__all__ = ["pass_on", "take"]

SLICE = 2e-2  # seconds: four of Python's own turns
REST = 2e-4  # seconds without a step after which a thread's turn may be taken
SHORT = 1e-3  # seconds; a shorter step gains little from running beside others


class Turn(NamedTuple):
    """A thread's turn."""

    thread: int = 0
    until: float = 0.0
    lock: threading.Lock = threading.Lock()  # held during the turn; others wait for it


class _Last(threading.local):
    """What a thread did last."""

    short = True  # whether its step was short


_turn = Turn()
_rests = math.inf  # when the thread whose turn it is ended its last step; inf while it takes one
_last = _Last()


def take() -> float:
    """Wait for this thread's turn; return the time."""
    global _rests
    now, me = perf_counter(), get_ident()
    if _turn.thread != me and _last.short:
        patience = now + SLICE
        while now < patience:
            turn = _turn
            until = min(patience, turn.until + SHORT if _rests == math.inf else now + REST)
            if turn.lock.acquire(timeout=max(0.0, until - now)):
                _begin(me, turn.lock)
                break
            now = perf_counter()
            if now > _turn.until or now - _rests > REST:  # its thread is doing something else
                lock = threading.Lock()
                lock.acquire()
                _begin(me, lock)
                break
    if _turn.thread == me:
        _rests = math.inf
    return perf_counter()


def _begin(me: int, lock: threading.Lock) -> None:
    """Begin a turn; `lock` is held."""
    global _turn, _rests
    _rests = math.inf  # first: the former turn's rest is no reason to take this one
    _turn = Turn(me, perf_counter() + SLICE, lock)


def pass_on(began: float) -> None:
    """End a step that began at a time, and this thread's turn if that is over."""
    global _turn, _rests
    now, turn = perf_counter(), _turn
    _last.short = now - began < SHORT
    if turn.thread != get_ident():
        return
    _rests = now
    if now > turn.until or not _last.short:
        _turn = Turn(lock=turn.lock)
        with suppress(RuntimeError):  # a signal handler that trained, too, has ended it
            turn.lock.release()


def _after_fork() -> None:
    global _turn
    _turn = Turn(lock=threading.Lock())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
