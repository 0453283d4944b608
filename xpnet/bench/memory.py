"""Measure the peak memory of one contestant, in a separate process."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable

from .cases import Case
from .peers import rows_for

__all__ = ["growth", "peak"]

MB = 1e6
STEPS = 3  # enough to allocate buffers, optimizer slots and compiled code


def peak(case: Case, contestant: str) -> float | None:
    """Return the peak memory of a contestant in MB, without imports and data, or None if unknown.

    A tiny network is trained first, so that anything a library loads at its first use counts as imports. The peak
    is that of making the network and taking a few steps (an epoch, a prediction), including compilation and a copy
    of the data on the device.
    """
    make = rows_for(case)[contestant].make
    data = case.data()
    tiny = case._replace(layers=(4, 4, 3), batch=32, rows=64)  # 3 classes: for 2, scikit-learn uses one output
    runner = make(tiny, tiny.data())
    runner.run(runner.unit)
    del runner

    def work() -> None:
        runner = make(case, data)
        runner.run(max(runner.unit, STEPS) if case.kind == "step" else 1)

    return growth(work)


def growth(action: Callable[[], None]) -> float | None:
    """Return how many MB the resident memory of this process grows, at its peak, during a call.

    If the kernel can't reset the peak, an earlier one may count.
    """
    gc.collect()
    _forget_peak()
    before = _status("VmRSS")
    if before is None:
        before = _most()
    action()
    after = _status("VmHWM")
    if after is None:
        after = _most()
    return None if before is None or after is None else (after - before) / MB


def _forget_peak() -> None:
    """Reset the peak, if Linux allows it."""
    if os.path.exists("/proc/self/clear_refs"):
        try:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")
        except OSError as error:
            print(f"peak memory includes what was used before the measurement ({error})", file=sys.stderr)


def _status(name: str) -> float | None:
    """Return an entry of /proc/self/status in bytes, or None if there is none."""
    if not os.path.exists("/proc/self/status"):
        return None
    with open("/proc/self/status", encoding="utf-8") as file:
        found = [line.split()[1] for line in file if line.startswith(f"{name}:")]
    return float(found[0]) * 1024 if found else None


def _most() -> float | None:
    """Return the peak resident memory of this process in bytes, or None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most) if sys.platform == "darwin" else most * 1024.0  # bytes there, KiB elsewhere
