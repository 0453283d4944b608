"""The command: its options, and one process for each case and number of threads."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from . import report
from .cases import JOBS, NETWORKS, Case
from .machine import describe, in_words
from .measure import Measured, Result, measure
from .memory import peak
from .peers import choose

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `python -m xpnet bench`."""
    what = parser.add_argument_group("what to measure (default: all four networks and both jobs)")
    what.add_argument("--networks", type=int, nargs="+", choices=[1, 2, 3, 4], help="steps of these networks")
    what.add_argument("--layers", type=_sizes, metavar="SIZES", help="steps of a network of your own: 784,128,10")
    what.add_argument("--batch", type=_count, default=128, help="rows a step, with --layers")
    what.add_argument("--jobs", nargs="*", choices=list(JOBS), help="whole jobs: an epoch of fit, predict")
    what.add_argument("--optimizer", choices=["adam", "sgd"], default="adam", help="of the steps")
    what.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="of the steps")
    who = parser.add_argument_group("who takes part (default: xpnet on NumPy and JAX, and the peers installed)")
    who.add_argument("--peers", nargs="+", action="extend", default=[], metavar="LIBRARY",
                     help="all rows of these: sklearn,torch,jax,keras")  # fmt: skip
    who.add_argument("--backend", nargs="+", action="extend", default=[], metavar="NAME",
                     help="xpnet's rows on these backends: numpy,torch")  # fmt: skip
    who.add_argument("--contestants", nargs="+", default=[], metavar="NAME", help="rows, named as in the tables")
    how = parser.add_argument_group("how")
    how.add_argument("--threads", type=_count, nargs="+", default=[1, os.cpu_count() or 1])
    how.add_argument("--rounds", type=_count, default=7, help="turns of each contestant")
    how.add_argument("--seconds", type=float, default=0.2, help="length of a turn, at least one epoch or 10 steps")
    how.add_argument("--memory", action="store_true", help="the peak, too: a process for each row")
    out = parser.add_argument_group("where to")
    out.add_argument("--json", metavar="FILE", help="all figures, machine, versions, command")
    out.add_argument("--markdown", metavar="FILE", help="the tables for a README")
    out.add_argument("--plot", metavar="FILE", help="the medians (needs matplotlib)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on; got {text!r}")
    return int(text)


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(map(_count, text.split(",")))
    if len(sizes) < 2:
        raise argparse.ArgumentTypeError(f"expected at least two sizes, such as 784,128,10; got {text!r}")
    return sizes


def main(options: argparse.Namespace) -> int:
    """Run the benchmark; return 1 if a contestant broke or did not learn, the others being reported."""
    if options.worker:
        return _work(json.loads(options.worker))
    cases = _cases(options)
    chosen = {case.kind: _contestants(options, case.kind) for case in cases}
    machine, command = describe(), _command(options)
    print(in_words(machine), command, sep="\n", flush=True)
    results: list[Result] = []
    failures: list[dict[str, Any]] = []
    for threads in dict.fromkeys(options.threads):
        for case in cases:
            task = {"case": case._asdict(), "rounds": options.rounds, "seconds": options.seconds}
            measured = _measure(task, chosen[case.kind], threads)
            if options.memory:
                measured = _add_memory(task, measured, threads)
            results += measured.results
            _print(case, measured)
            failures += [
                {"network": case.name, "threads": threads, "contestant": name, "reason": reason}
                for name, reason in measured.failures.items()
            ]
            _write(options, {"machine": machine, "command": command, "failures": failures}, results)
    if failures:
        print(f"error: {len(failures)} of the contestants failed, see above", file=sys.stderr)
    return 1 if failures else 0


def _write(options: argparse.Namespace, about: dict[str, Any], results: list[Result]) -> None:
    """Write the files that were asked for, with all that there is so far."""
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({**about, "results": [r._asdict() for r in results]}, file, indent=1, allow_nan=False)
    if options.markdown:
        with open(options.markdown, "w", encoding="utf-8") as file:
            file.write(report.markdown(results, in_words(about["machine"]), about["command"]))
    if options.plot and results:
        report.plot(results, options.plot)


def _cases(options: argparse.Namespace) -> list[Case]:
    """Return what was asked for; everything, if nothing was."""
    everything = options.networks is None and options.layers is None and options.jobs is None
    steps = [NETWORKS[i - 1] for i in ([1, 2, 3, 4] if everything else options.networks or [])]
    if options.layers is not None:
        steps.append(Case(options.layers, options.batch))
    jobs = [] if options.jobs is None and not everything else options.jobs or list(JOBS)
    steps = [case._replace(optimizer=options.optimizer, dtype=options.dtype) for case in steps]
    return [*steps, *(JOBS[name] for name in jobs)]


def _contestants(options: argparse.Namespace, kind: str) -> list[str]:
    peers, backends = (
        [name for text in texts for name in text.split(",")] for texts in (options.peers, options.backend)
    )
    return choose(kind, options.contestants, peers, backends)


def _command(options: argparse.Namespace) -> str:
    """Return the command that these options are, without those that are as always."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["python", "-m", "xpnet", "bench"]
    for name, usual in vars(parser.parse_args([])).items():
        value = getattr(options, name)
        if value != usual:
            if isinstance(value, tuple):  # of --layers
                value = ",".join(map(str, value))
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, values)]
    return shlex.join(words)


# ---------------------------------------------------------------- processes


def _measure(task: dict[str, Any], names: Sequence[str], threads: int) -> Measured:
    answer = _process({**task, "contestants": list(names), "threads": threads})
    if isinstance(answer, str):
        return Measured([], {"all": answer}, {})
    return Measured([Result(**row) for row in answer["results"]], answer["failures"], answer["left_out"])


def _add_memory(task: dict[str, Any], measured: Measured, threads: int) -> Measured:
    """Return the results with the peak of memory, each from a process of its own."""
    results, failures = [], dict(measured.failures)
    for r in measured.results:
        answer = _process({**task, "peak_of": r.contestant, "threads": threads})
        if isinstance(answer, str):
            failures[r.contestant] = f"its peak of memory: {answer}"
            answer = {"memory": None}
        results.append(r._replace(memory=answer["memory"]))
    return measured._replace(results=results, failures=failures)


def _process(task: dict[str, Any]) -> Any:
    """Do a task in a process of its own; return what it says, or in words how it ended."""
    call = [sys.executable, "-m", "xpnet", "bench", "--worker", json.dumps(task)]
    environment = _environment(task["threads"], task["case"]["dtype"])
    done = subprocess.run(call, env=environment, stdout=subprocess.PIPE, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else f"the process ended with status {done.returncode}"


def _work(task: dict[str, Any]) -> int:
    """Do a task, and write the answer to standard output, to which nothing else is written meanwhile."""
    if task["threads"] == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    fields = task["case"]
    case = Case(**{**fields, "layers": tuple(fields["layers"])})
    answer: dict[str, Any]
    with contextlib.redirect_stdout(sys.stderr):
        if "peak_of" in task:
            answer = {"memory": peak(case, task["peak_of"])}
        else:
            found = measure(case, task["contestants"], task["rounds"], task["seconds"], task["threads"])
            answer = {**found._asdict(), "results": [r._asdict() for r in found.results]}
    json.dump(answer, sys.stdout, allow_nan=False)
    return 0


def _environment(threads: int, dtype: str) -> dict[str, str]:
    """Return the environment in which every library uses that many threads, and nothing is downloaded."""
    names = ("OMP", "OPENBLAS", "MKL", "NUMBA")
    flags = os.environ.get("XLA_FLAGS", "")
    if threads == 1:
        flags += " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    counts = {**{f"{name}_NUM_THREADS": str(threads) for name in names}, "VECLIB_MAXIMUM_THREADS": str(threads)}
    wide = {"JAX_ENABLE_X64": "1"} if dtype == "float64" else {}  # else JAX takes float32 in its place
    return {**os.environ, **counts, **wide, "XLA_FLAGS": flags.strip(), "XPNET_OFFLINE": "1"}


def _print(case: Case, measured: Measured) -> None:
    """Print the table of a case, and who is not in it."""
    print("", report.text(measured.results) if measured.results else case.name, sep="\n")
    for name, reason in measured.left_out.items():
        print(f"  left out: {name} ({reason})")
    for name, reason in measured.failures.items():
        print(f"  failed: {name} ({reason})")
    sys.stdout.flush()
