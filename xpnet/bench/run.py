"""The command `bench`: its options, and a process for each case and number of threads or precision."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import InvalidValueError
from . import gpu, parts, report
from .cases import JOBS, LARGE, NETWORKS, PRECISIONS, TO_98, Case
from .machine import describe, in_words
from .measure import Measured, Result, measure
from .memory import peak
from .peers import choose

__all__ = ["add_arguments", "count", "count_from_0", "main"]

# Defaults on the CPU and on a GPU. GPUs are often lent by the minute: the default run should end within ten
# minutes, including the compilation by PyTorch and XLA.
ROUNDS, SECONDS, LIMIT = (7, 5), (0.2, 0.1), (None, 240.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `python -m xpnet bench`."""
    what = parser.add_argument_group(
        "what to measure (default: the first four networks, mnist, predict; on a GPU these networks in float32, "
        "the others in tf32 and bfloat16, mnist, to98)"
    )
    what.add_argument("--networks", type=int, nargs="+", choices=range(1, 1 + len(NETWORKS + LARGE)),
                      help="steps of these networks; 5 to 7 are for a GPU")  # fmt: skip
    what.add_argument("--layers", type=_sizes, metavar="SIZES", help="steps of a network of your own: 784,128,10")
    what.add_argument("--batch", type=count, default=128, help="rows per step, with --layers")
    what.add_argument("--jobs", nargs="*", choices=[*JOBS, "to98"],
                      help="whole jobs: an epoch of fit, predict, MNIST to 98 %% accuracy")  # fmt: skip
    what.add_argument("--optimizer", nargs="+", metavar="NAME",
                      help="of the steps: adam (default) or sgd; without --networks and --layers, time the "
                      "updates of these optimizers, or of all, beside Adam's")  # fmt: skip
    what.add_argument("--activation", nargs="+", metavar="NAME",
                      help="time layers with these activations, or all, beside one with ReLU")  # fmt: skip
    what.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="of the steps")
    what.add_argument("--precision", nargs="+", choices=PRECISIONS,
                      help="of the matrix products of steps on a GPU (default with --networks: all)")  # fmt: skip
    who = parser.add_argument_group("contestants (default: xpnet and the installed peers)")
    who.add_argument("--peers", nargs="+", action="extend", default=[], metavar="LIBRARY",
                     help="all rows of these: sklearn,torch,jax,keras")  # fmt: skip
    who.add_argument("--backend", nargs="+", action="extend", default=[], metavar="NAME",
                     help="xpnet's rows on these: numpy,torch; with cupy everything runs on the GPU")  # fmt: skip
    who.add_argument("--contestants", nargs="+", default=[], metavar="NAME", help="rows, named as in the tables")
    how = parser.add_argument_group("how")
    how.add_argument("--threads", type=count, nargs="+",
                     help="of the host (default: 1, then one per core; on a GPU one per core)")  # fmt: skip
    how.add_argument("--rounds", type=count, help="turns of each contestant (default: 7, GPU: 5)")
    how.add_argument("--seconds", type=_seconds,
                     help="of a turn, at least one epoch or 10 steps (default: 0.2, GPU: 0.1)")  # fmt: skip
    how.add_argument("--limit", type=_limit, metavar="SECONDS",
                     help="after which a case's process is killed (default: never, GPU: 240)")  # fmt: skip
    how.add_argument("--memory", action="store_true", help="also measure peak memory, a process for each row")
    out = parser.add_argument_group("output")
    out.add_argument("--json", metavar="FILE", help="all figures, machine, versions, command")
    out.add_argument("--markdown", metavar="FILE", help="the tables for a README")
    out.add_argument("--plot", metavar="FILE", help="the medians (needs matplotlib)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)


def count(text: str) -> int:
    """Parse a command-line argument as a whole number of at least 1."""
    return _whole(text, 1)


def count_from_0(text: str) -> int:
    """Parse a command-line argument as a whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number >= {least}; got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds >= 0; got {text!r}")
    return seconds


def _limit(text: str) -> float:
    if _seconds(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a number of seconds > 0; got {text!r}")
    return float(text)


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(map(count, text.split(",")))
    if len(sizes) < 2:
        raise argparse.ArgumentTypeError(f"expected at least two sizes, such as 784,128,10; got {text!r}")
    return sizes


def main(options: argparse.Namespace) -> int:
    """Run the benchmark and report all results; return 1 if a contestant failed or did not learn."""
    if options.worker:
        return _work(json.loads(options.worker))
    if _of_parts(options):
        return _main_of_parts(options)
    _check(options)
    cases = _cases(options)
    chosen = {case.kind: _contestants(options, case.kind) for case in cases}
    machine, command = describe(), _command(options)
    if _on_gpu(options):
        machine["gpu"] = gpu.describe()
    print(in_words(machine), command, sep="\n", flush=True)
    results: list[Result] = []
    notes: dict[str, list[dict[str, Any]]] = {"failures": [], "left_out": []}
    how = _how(options)
    cores = os.cpu_count() or 1
    for threads in dict.fromkeys(options.threads or ([cores] if _on_gpu(options) else [1, cores])):
        for case in cases:
            task = {"case": case._asdict(), **how}
            measured = _measure(task, chosen[case.kind], threads)
            if options.memory:
                measured = _add_memory(task, measured, threads)
            results += measured.results
            _print(case, measured)
            for name, found in notes.items():
                found += _reasons(case, threads, getattr(measured, name))
            _write(options, {"machine": machine, "command": command, **notes}, results)
    failed = len(notes["failures"])
    if failed:
        print(f"error: {failed} contestants failed, see above", file=sys.stderr)
    return 1 if failed else 0


def _of_parts(options: argparse.Namespace) -> bool:
    """Return whether parts are to be timed, not steps or jobs."""
    steps = options.networks or options.layers or options.jobs is not None
    return bool(options.activation or (options.optimizer and not steps))


def _main_of_parts(options: argparse.Namespace) -> int:
    """Time optimizers and activations by themselves; return 1 if that failed."""
    machine, command, failed, results = describe(), _command(options), 0, []
    print(in_words(machine), command, sep="\n", flush=True)
    how = _how(options)
    for threads in dict.fromkeys(options.threads or [1]):
        for what in parts.KINDS:
            if getattr(options, what):
                names = parts.names_of(what, _names(getattr(options, what)))
                answer = _process({**how, "parts": what, "names": names, "threads": threads})
                if isinstance(answer, str):
                    print(f"error: {answer}", file=sys.stderr)
                    failed = 1
                    continue
                rows = [parts.Row(**row) for row in answer["rows"]]
                print(f"\n{parts.text(rows, threads)}", flush=True)
                results += [{**row._asdict(), "threads": threads} for row in rows]
    if options.json:
        _write_json(options.json, {"machine": machine, "command": command, "results": results})
    return failed


def _how(options: argparse.Namespace) -> dict[str, Any]:
    """Return the rounds, their duration and the time limit: the given ones or the defaults."""
    usual = {"rounds": ROUNDS, "seconds": SECONDS, "limit": LIMIT}
    asked = {name: getattr(options, name) for name in usual}
    return {n: pair[_on_gpu(options)] if asked[n] is None else asked[n] for n, pair in usual.items()}


def _reasons(case: Case, threads: int, by_name: dict[str, str]) -> list[dict[str, Any]]:
    """Return a row for each contestant without a result, with the reason."""
    where = {"network": case.name, "threads": threads}
    if case.device != "cpu":
        where["precision"] = case.precision
    return [{**where, "contestant": name, "reason": reason} for name, reason in by_name.items()]


def _write(options: argparse.Namespace, about: dict[str, Any], results: list[Result]) -> None:
    """Write the requested files with all results so far."""
    if options.json:
        _write_json(options.json, {**about, "results": [r._asdict() for r in results]})
    if options.markdown:
        with open(options.markdown, "w", encoding="utf-8") as file:
            file.write(report.markdown(results, in_words(about["machine"]), about["command"]))
    if options.plot and results:
        report.plot(results, options.plot)


def _write_json(path: str, whole: dict[str, Any]) -> None:
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        json.dump(whole, file, indent=1, allow_nan=False)
    os.replace(f"{path}.part", path)  # atomic: the file is complete if the run is killed


def _on_gpu(options: argparse.Namespace) -> bool:
    return "cupy" in _names(options.backend)


def _names(texts: list[str]) -> list[str]:
    return [name for text in texts for name in text.split(",")]


def _check(options: argparse.Namespace) -> None:
    """Raise for incompatible options."""
    others = [name for name in _names(options.backend) if name != "cupy"]
    if options.optimizer and options.optimizer not in (["adam"], ["sgd"]):
        raise InvalidValueError(f"the optimizer of steps must be 'adam' or 'sgd'; got {options.optimizer}")
    if not _on_gpu(options):
        if options.precision:
            raise InvalidValueError(f"--precision needs --backend cupy; got {options.precision}")
        if any(number > len(NETWORKS) for number in options.networks or ()):
            raise InvalidValueError(f"networks above {len(NETWORKS)} need --backend cupy; got {options.networks}")
    elif others:
        raise InvalidValueError(
            f"--backend cupy runs everything on the GPU and excludes other backends; got {others}"
        )
    elif options.memory:
        raise InvalidValueError("--memory measures host memory, not GPU memory; got --backend cupy")
    elif options.precision and options.dtype != "float32":
        raise InvalidValueError(f"--precision is for --dtype float32; got {options.dtype!r}")


def _cases(options: argparse.Namespace) -> list[Case]:
    """Return the requested cases; by default all."""
    everything = options.networks is None and options.layers is None and options.jobs is None
    on_gpu, known = _on_gpu(options), NETWORKS + LARGE
    usual = range(1, 1 + len(known if on_gpu else NETWORKS))
    steps = [known[i - 1] for i in (usual if everything else options.networks or [])]
    if options.layers is not None:
        steps.append(Case(options.layers, options.batch))
    names = [] if options.jobs is None and not everything else options.jobs or (
        ["mnist", "to98"] if on_gpu else list(JOBS)
    )  # fmt: skip
    jobs = [{**JOBS, "to98": TO_98}[name] for name in names]
    if on_gpu and options.dtype == "float32":
        steps = [c.in_precision(name) for c in steps for name in options.precision or _usual(c, everything)]
    else:
        steps = [case._replace(dtype=options.dtype) for case in steps]
    steps = [case._replace(optimizer=(options.optimizer or ["adam"])[0]) for case in steps]
    if not on_gpu:
        return [*steps, *jobs]
    return [case._replace(device="cuda") for case in (*steps, *jobs)]


def _usual(case: Case, everything: bool) -> Sequence[str]:
    """Return the precisions of a network on a GPU: all if it was requested, else those that suit its size."""
    if not everything:
        return PRECISIONS
    return ("tf32", "bfloat16") if case in LARGE else ("float32",)


def _contestants(options: argparse.Namespace, kind: str) -> list[str]:
    device = "cuda" if _on_gpu(options) else "cpu"
    return choose(kind, options.contestants, _names(options.peers), _names(options.backend), device)


def _command(options: argparse.Namespace) -> str:
    """Return the command line for these options, without those at their default."""
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
    """Return the results with peak memory, each measured in its own process."""
    results, failures = [], dict(measured.failures)
    for r in measured.results:
        answer = _process({**task, "peak_of": r.contestant, "threads": threads})
        if isinstance(answer, str):
            failures[r.contestant] = f"its peak memory: {answer}"
            answer = {"memory": None}
        results.append(r._replace(memory=answer["memory"]))
    return measured._replace(results=results, failures=failures)


def _process(task: dict[str, Any]) -> Any:
    """Do a task in a separate process; return its answer, or a text that says how the process ended."""
    call = [sys.executable, "-m", "xpnet", "bench", "--worker", json.dumps(task)]
    environment = _environment(task["threads"], Case((), 0) if "parts" in task else _case(task))
    limit = task.get("limit")
    try:
        done = subprocess.run(call, env=environment, stdout=subprocess.PIPE, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"the process was killed after {limit:g} s (--limit)"
    return json.loads(done.stdout) if done.returncode == 0 else f"the process ended with status {done.returncode}"


def _work(task: dict[str, Any]) -> int:
    """Do a task and write the answer to standard output; all other output goes to standard error."""
    if task["threads"] == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    answer: dict[str, Any]
    with contextlib.redirect_stdout(sys.stderr):
        if "parts" in task:
            rows = parts.table(task["parts"], task["names"], task["rounds"], task["seconds"])
            answer = {"rows": [row._asdict() for row in rows]}
        elif "peak_of" in task:
            answer = {"memory": peak(_case(task), task["peak_of"])}
        else:
            case = _case(task)
            found = measure(case, task["contestants"], task["rounds"], task["seconds"], task["threads"])
            answer = {**found._asdict(), "results": [r._asdict() for r in found.results]}
    json.dump(answer, sys.stdout, allow_nan=False)
    return 0


def _case(task: dict[str, Any]) -> Case:
    fields = task["case"]
    return Case(**{**fields, "layers": tuple(fields["layers"])})


def _environment(threads: int, case: Case) -> dict[str, str]:
    """Return an environment that sets the number of threads of every library and forbids downloads."""
    names = ("OMP", "OPENBLAS", "MKL", "NUMBA")
    flags = os.environ.get("XLA_FLAGS", "")
    if threads == 1:
        flags += " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    counts = {**{f"{name}_NUM_THREADS": str(threads) for name in names}, "VECLIB_MAXIMUM_THREADS": str(threads)}
    wide = {"JAX_ENABLE_X64": "1"} if case.dtype == "float64" else {}  # without it, JAX falls back to float32
    if case.device != "cpu":
        wide |= {
            "XPNET_DEVICE": "cuda:0",  # as for the peers
            "XPNET_MATMUL_PRECISION": "tf32" if case.tf32 else "highest",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # else JAX reserves three quarters of the GPU's memory
        }
    return {**os.environ, **counts, **wide, "XLA_FLAGS": flags.strip(), "XPNET_OFFLINE": "1"}


def _print(case: Case, measured: Measured) -> None:
    """Print the table of a case and the contestants without a result."""
    print("", report.text(measured.results) if measured.results else case.name, sep="\n")
    for name, reason in measured.left_out.items():
        print(f"  left out: {name} ({reason})")
    for name, reason in measured.failures.items():
        print(f"  failed: {name} ({reason})")
    sys.stdout.flush()
