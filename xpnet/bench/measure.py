"""Time contestants in interleaved rounds, take medians, and check that they really train."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from ..errors import XpnetError
from .cases import Case, DataSet
from .jobs import Runner
from .peers import BASE, FAST, GPU, PEAK, PRODUCTS, choose, rows_for

__all__ = ["Measured", "Result", "measure"]


PAUSE = 0.3  # seconds before a turn, in which spinning threads of the previous contestant go to sleep
MAX_TRAININGS = 3  # maximum number of rounds of "to98"


class Result(NamedTuple):
    """One contestant on one case; times are in microseconds per step, epoch, or prediction of all rows.

    Attributes:
        kind, network, source: the task, the network and the data. threads, contestant: the configuration.
        median, low, high: of the rounds. ratio, fast_ratio: the time of "xpnet numpy" (on a GPU "xpnet cupy"), or
            of "xpnet fast", divided by this one. gflops: 1e9 floating-point operations per second, None if not
            counted. products_share: the time of "products only" divided by this one. rows_per_second: of the data.
            memory: peak in MB, see `memory`.
        losses: before and after.
        device, precision: see `Case`. kernels: GPU kernels per step. peak_share: its gflops divided by those of
            one large product in the same precision.
    """

    kind: str
    network: str
    source: str
    threads: int
    contestant: str
    median: float
    low: float
    high: float
    ratio: float | None
    fast_ratio: float | None
    gflops: float | None
    products_share: float | None
    rows_per_second: float | None
    memory: float | None
    losses: tuple[float, float] | None
    device: str = "cpu"
    precision: str = "float32"
    kernels: float | None = None
    peak_share: float | None = None


class Measured(NamedTuple):
    """The results of a case, and the reasons, by contestant, for failures and for those not installed."""

    results: list[Result]
    failures: dict[str, str]
    left_out: dict[str, str]


def measure(
    case: Case,
    contestants: Sequence[str] | None = None,
    rounds: int = 7,
    seconds: float = 0.2,
    threads: int = 0,
) -> Measured:
    """Time the contestants in turn, so that drift of the machine affects all equally.

    Args:
        case: the task. contestants: names; None takes the default ones.
        rounds: turns of each contestant. seconds: target duration of a turn. threads: recorded in the results.

    Returns:
        The results. Contestants that raised, or whose loss did not fall, are in `failures`.
    """
    data = case.data()
    names = choose(case.kind, device=case.device) if contestants is None else contestants
    rounds = min(rounds, MAX_TRAININGS) if case.kind == "to98" else rounds
    contest = _Contest(case, data, seconds, pause=threads != 1 and case.device == "cpu")
    for name in names:
        contest.attempt(contest.make, name)
    for name in list(contest.runners):
        contest.attempt(contest.begin, name)
    gc.collect()
    for number in range(rounds):
        for name in list(contest.runners)[:: 1 if number % 2 == 0 else -1]:
            contest.attempt(contest.turn, name)
    for name in list(contest.runners):
        contest.attempt(contest.end, name)
    times = {name: contest.times[name] for name in contest.runners}
    results = _results(case, data.source, threads, times, contest.losses, contest.flops)
    kernels = contest.kernels
    return Measured(
        [r._replace(kernels=kernels[r.contestant]) for r in results], contest.failures, contest.left_out
    )


class _Contest:
    """The contestants on one case, and the measurements of each, by name.

    Args:
        seconds: target duration of a turn. pause: whether to wait before each turn (see `PAUSE`).
    """

    def __init__(self, case: Case, data: DataSet, seconds: float, pause: bool) -> None:
        self.case, self.data, self.seconds, self.pause = case, data, seconds, pause
        self.rows = rows_for(case)
        self.runners: dict[str, Runner] = {}
        self.failures: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.times: dict[str, list[float]] = {}
        self.losses: dict[str, list[float]] = {}
        self.kernels: dict[str, float | None] = {}
        self.flops: dict[str, int] = {}

    def attempt(self, action: Callable[[str], Any], name: str) -> None:
        """Run an action with a contestant; if it raises, remove the contestant."""
        try:
            action(name)
        except Exception as error:  # noqa: BLE001 - peers may raise anything; it is reported
            self.runners.pop(name, None)
            self.failures[name] = f"{type(error).__name__}: {error}"

    def make(self, name: str) -> None:
        """Create a contestant if its library is installed."""
        try:
            self.runners[name] = self.rows[name].make(self.case, self.data)
        except ImportError as error:
            self.left_out[name] = str(error)

    def begin(self, name: str) -> None:
        """Compute the first loss, warm up, and choose the length of a turn."""
        runner, case = self.runners[name], self.case
        unit = runner.unit
        self.losses[name] = [runner.loss()] if runner.loss else []
        least = max(unit, 10) if case.kind == "step" else 1
        # a graph of several steps is captured in its second unit, which must not be timed
        runner.run(3 * least if case.kind == "step" and case.device != "cpu" else least)
        self.counts[name] = least
        if case.kind != "to98":
            each = _timed(runner, least)
            self.counts[name] = max(least, round(self.seconds * 1e6 / each / unit) * unit)
        self.kernels[name] = runner.kernels() if runner.kernels else None
        self.flops[name] = case.flops if runner.flops is None else runner.flops

    def turn(self, name: str) -> None:
        """Time a contestant once."""
        if self.pause:
            time.sleep(PAUSE)
        self.times.setdefault(name, []).append(_timed(self.runners[name], self.counts[name]))

    def end(self, name: str) -> None:
        """Compute the last loss; raise if it is not lower than the first."""
        loss, pair = self.runners[name].loss, self.losses[name]
        if loss is None:
            return
        pair.append(loss())
        if not pair[1] < pair[0]:
            raise XpnetError(f"{name} on {self.case.name}: its loss did not fall; got {pair[0]} -> {pair[1]}")


def _timed(runner: Runner, n: int) -> float:
    """Return the microseconds per unit of `runner.run(n)`."""
    return runner.clock(partial(runner.run, n)) / n * 1e6


def _results(
    case: Case,
    source: str,
    threads: int,
    times: dict[str, list[float]],
    losses: dict[str, list[float]],
    flops: dict[str, int],
) -> list[Result]:
    medians = {name: statistics.median(t) for name, t in times.items()}
    gflops = {name: flops[name] / median / 1e3 for name, median in medians.items()}
    counted = case.kind != "to98"

    def share(of: str, name: str) -> float | None:
        return medians[of] / medians[name] if of in medians else None

    return [
        Result(
            kind=case.kind,
            network=case.name,
            source=source,
            threads=threads,
            contestant=name,
            median=median,
            low=min(times[name]),
            high=max(times[name]),
            ratio=share(BASE if case.device == "cpu" else GPU, name) if name != PEAK else None,
            fast_ratio=share(FAST, name),
            gflops=gflops[name] if counted else None,
            products_share=share(PRODUCTS, name) if name != PEAK else None,
            rows_per_second=case.size / median * 1e6 if counted else None,
            memory=None,
            losses=(losses[name][0], losses[name][1]) if losses[name] else None,
            device=case.device,
            precision=case.precision,
            peak_share=gflops[name] / gflops[PEAK] if PEAK in gflops else None,
        )
        for name, median in medians.items()
    ]
