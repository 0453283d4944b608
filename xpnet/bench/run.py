"""Interleaved rounds, medians, and the table."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NamedTuple

from ..errors import MissingExtraError, XpnetError, unknown_name
from .cases import NETWORKS, Case
from .peers import CONTESTANTS

__all__ = ["Result", "main", "measure"]

BASE = "xpnet numpy"
DEFAULT = [name for name in CONTESTANTS if name not in ("xpnet torch", "torch compiled", "keras")]


class Result(NamedTuple):
    """One contestant on one network: microseconds a step."""

    network: str
    threads: int
    contestant: str
    median: float
    low: float
    high: float
    ratio: float
    gflops: float
    products_share: float
    losses: tuple[float, float]


def measure(
    case: Case, contestants: Sequence[str] = DEFAULT, rounds: int = 7, seconds: float = 0.2, threads: int = 0
) -> list[Result]:
    """Time the contestants in turn, so that drift of the machine hits all alike.

    Args:
        case: the network. contestants: names; those that are not installed are left out.
        rounds: turns of each. seconds: how long a turn is to last. threads: what to write down.

    Raises:
        XpnetError: a contestant's loss did not fall, so that what was timed is not training.
    """
    made: dict[str, Any] = {}
    for name in dict.fromkeys(["products only", BASE, *contestants]):
        try:
            made[name] = CONTESTANTS[name](case)
        except ImportError as error:
            print(f"  left out: {name} ({error})", file=sys.stderr)
    losses = {name: [loss()] for name, (_, loss) in made.items() if loss}
    counts: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in made}
    for name, (run, _) in made.items():
        run(50)
        start = time.perf_counter()
        run(50)
        counts[name] = max(50, round(seconds * 50 / (time.perf_counter() - start) / 50) * 50)
    gc.collect()
    for turn in range(rounds):
        for name in list(made) if turn % 2 == 0 else reversed(list(made)):
            start = time.perf_counter()
            made[name][0](counts[name])
            times[name].append((time.perf_counter() - start) / counts[name] * 1e6)
    for name, pair in losses.items():
        pair.append(made[name][1]())
        if not pair[1] < pair[0]:
            raise XpnetError(f"{name} on {case.name}: its loss did not fall; got {pair[0]} -> {pair[1]}")
    medians = {name: statistics.median(t) for name, t in times.items()}
    return [
        Result(
            case.name,
            threads,
            name,
            medians[name],
            min(times[name]),
            max(times[name]),
            medians[BASE] / medians[name],
            case.flops / medians[name] / 1e3,
            medians["products only"] / medians[name],
            tuple(losses.get(name, (float("nan"), float("nan")))),
        )
        for name in made
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `python -m xpnet bench`."""
    parser.add_argument("--networks", type=int, nargs="+", default=[1, 2, 3, 4], choices=[1, 2, 3, 4])
    parser.add_argument("--layers", help="sizes of one network of your own: 784,128,10")
    parser.add_argument("--batch", type=int, default=128, help="rows a step, with --layers")
    parser.add_argument("--optimizer", choices=["adam", "sgd"], default="adam")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--contestants", nargs="+", default=DEFAULT, metavar="NAME", help=", ".join(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.2, help="length of a turn")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--plot", metavar="FILE", help="draw the ratios (needs matplotlib)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)


def main(options: argparse.Namespace) -> int:
    """Run the benchmark: one process for each number of threads, all contestants in it."""
    for name in options.contestants:
        if name not in CONTESTANTS:
            raise unknown_name("contestant", name, CONTESTANTS)
    if options.worker:
        json.dump([r._asdict() for r in _work(options)], sys.stdout)
        return 0
    results: list[Result] = []
    print(_machine(), flush=True)
    for threads in dict.fromkeys(options.threads):
        call = [sys.executable, "-m", "xpnet", "bench", "--worker", *_arguments(options, threads)]
        out = subprocess.run(call, env=_environment(threads), stdout=subprocess.PIPE, check=True).stdout
        rows = [Result(**row) for row in json.loads(out.splitlines()[-1])]
        results += rows
        _print(rows)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            report = {"machine": _machine(), "results": [r._asdict() for r in results]}
            json.dump(report, file, indent=1)
    if options.plot:
        _plot(results, options.plot)
    return 0


def _arguments(options: argparse.Namespace, threads: int) -> list[str]:
    """Return the options of the process that measures with that many threads."""
    asked = {
        "networks": options.networks,
        "layers": [options.layers] if options.layers else None,
        "batch": [options.batch],
        "optimizer": [options.optimizer],
        "dtype": [options.dtype],
        "threads": [threads],
        "contestants": options.contestants,
        "rounds": [options.rounds],
        "seconds": [options.seconds],
    }
    return [str(a) for name, values in asked.items() if values for a in (f"--{name}", *values)]


def _work(options: argparse.Namespace) -> list[Result]:
    threads = options.threads[-1]
    if threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if "torch" in " ".join(options.contestants):
        try:
            import torch
        except ImportError:
            pass  # reported where the contestant is made
        else:
            torch.set_num_threads(threads)
    if options.layers:
        cases = [Case(tuple(map(int, options.layers.split(","))), options.batch)]
    else:
        cases = [NETWORKS[i - 1] for i in options.networks]
    rows = []
    for case in cases:
        case = case._replace(optimizer=options.optimizer, dtype=options.dtype)
        rows += measure(case, options.contestants, options.rounds, options.seconds, threads)
    return rows


def _environment(threads: int) -> dict[str, str]:
    """Return the environment in which every library uses that many threads."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    flags = os.environ.get("XLA_FLAGS", "")
    if threads == 1:
        flags += " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return {**os.environ, **dict.fromkeys(names, str(threads)), "XLA_FLAGS": flags.strip()}


def _machine() -> str:
    """Return processor, system and versions in words."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        cpu = models[0] if models else cpu
    versions = [f"Python {platform.python_version()}"]
    for name in ("xpnet", "numpy", "torch", "jax", "scikit-learn", "keras"):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()}; {', '.join(versions)}"


def _print(rows: Sequence[Result]) -> None:
    for network in dict.fromkeys(r.network for r in rows):
        part = [r for r in rows if r.network == network]
        print(f"\n{network}, {part[0].threads} thread{'s' if part[0].threads > 1 else ''}")
        print(f"  {'':<28}{'us/step':>10}{'range':>20}{'xpnet/it':>10}{'GFLOP/s':>9}{'products':>10}")
        for r in part:
            print(
                f"  {r.contestant:<28}{r.median:>10,.0f}{f'{r.low:,.0f} - {r.high:,.0f}':>20}{r.ratio:>10.2f}"
                f"{r.gflops:>9.1f}{r.products_share:>10.0%}"
            )
    sys.stdout.flush()


def _plot(results: Sequence[Result], path: str) -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError(f"--plot needs matplotlib: pip install 'xpnet[plot]'; got {path!r}") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys((r.network, r.threads) for r in results))
    figure, axes = pyplot.subplots(1, len(groups), figsize=(4 * len(groups), 4), squeeze=False)
    for axis, (network, threads) in zip(axes[0], groups):
        part = [r for r in results if (r.network, r.threads) == (network, threads)]
        axis.barh([r.contestant for r in part], [r.median for r in part])
        axis.set_title(f"{network}\n{threads} threads, us/step")
        axis.set_xscale("log")
    figure.tight_layout()
    figure.savefig(path)
