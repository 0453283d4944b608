"""Spin while waiting for another thread, without the GIL; compiled by numba (the extra `fast`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .jit import loop

__all__ = ["asked", "reached"]


@intrinsic
def _sched_yield(typing_context: Any) -> Any:
    """Yield this core to another process that is waiting for it (POSIX): half a microsecond."""

    def call(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])

    return types.int32(), call


@loop
def reached(number: np.ndarray, value: int, polls: int) -> bool:
    """Wait until `number[0] >= value`, for at most `polls` polls; return whether it is."""
    for _ in range(polls):
        if number[0] >= value:
            return True
        _sched_yield()
    return False


@loop
def asked(free: np.ndarray, turns: np.ndarray, seen: int, polls: int, grace: int) -> bool:
    """Wait until `turns[0] > seen`, for at most `polls` polls, then `grace` polls more; return whether it is.

    Meanwhile `free` is 1. It is set here, without the GIL, so that a thread that waits for it also finds the GIL
    free.
    """
    free[0] = 1
    for _ in range(polls):
        if turns[0] > seen:
            free[0] = 0
            for _ in range(grace):
                _sched_yield()
            return True
        _sched_yield()
    return False
