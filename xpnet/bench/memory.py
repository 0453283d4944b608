"""Peak memory of one contestant, measured in a process of its own."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable

from .cases import Case
from .peers import rows_for

__all__ = ["growth", "peak"]

MB = 1e6
STEPS = 3  # by then the buffers, the optimizer's slots and what a compiler keeps are there


def peak(case: Case, contestant: str) -> float | None:
    """Return the MB that a contestant needs at its peak beyond imports and data, or None where nobody knows.

    What a library loads at its first use counts as imports: a network of a few weights is trained before.
    The peak is that of making the network and taking a few steps (an epoch, a prediction); compilation and a
    copy of the data on the device are part of it.
    """
    make = rows_for(case)[contestant].make
    data = case.data()
    tiny = case._replace(layers=(4, 4, 3), batch=32, rows=64)  # of two classes scikit-learn makes one output
    runner = make(tiny, tiny.data())
    runner.run(runner.unit)
    del runner

    def work() -> None:
        runner = make(case, data)
        runner.run(max(runner.unit, STEPS) if case.kind == "step" else 1)

    return growth(work)


def growth(action: Callable[[], None]) -> float | None:
    """Return the MB by which the resident memory of this process is larger at its peak during a call than before.

    Where the kernel can't forget an earlier peak, that one counts.
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
    """Begin a new peak, where Linux allows it."""
    if os.path.exists("/proc/self/clear_refs"):
        try:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")
        except OSError as error:
            print(f"the peak of memory includes what came before the measurement ({error})", file=sys.stderr)


def _status(name: str) -> float | None:
    """Return a line of /proc/self/status in bytes, or None where there is none."""
    if not os.path.exists("/proc/self/status"):
        return None
    with open("/proc/self/status", encoding="utf-8") as file:
        found = [line.split()[1] for line in file if line.startswith(f"{name}:")]
    return float(found[0]) * 1024 if found else None


def _most() -> float | None:
    """Return the most resident memory that this process has had in bytes, or None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most) if sys.platform == "darwin" else most * 1024.0  # bytes there, KiB elsewhere
