"""The command line: `python -m xpnet info`, `parity`, `bench`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from typing import Any

from .. import __version__, kernels
from ..backend import BACKENDS, get_backend, np, probe
from ..bench import run as bench
from ..errors import XpnetError
from .parity import MAX_DIFFERENCE, compare

__all__ = ["main"]

_IMPORT_TIME = """
import time, numpy
start = time.perf_counter()
import xpnet
print((time.perf_counter() - start) * 1000)
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the exit status: 0 for success, 1 if a check failed, 2 for invalid usage."""
    parser = argparse.ArgumentParser(prog="python -m xpnet", description="xpnet's own tools")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="list the backends with their devices, or why they can't run")
    info.add_argument("--json", action="store_true", help="print JSON")
    parity = commands.add_parser("parity", help="train one fixed network on every backend and compare")
    parity.add_argument("--backends", nargs="+", choices=list(BACKENDS), help="default: all that can run")
    parity.add_argument("--steps", type=bench.count, default=100)
    parity.add_argument("--seeds", type=bench.count_from_0, nargs="+", default=[0, 1, 2])
    timing = commands.add_parser("bench", help="time steps and whole jobs of xpnet and of the installed peers")
    bench.add_arguments(timing)
    options = parser.parse_args(arguments)
    run = {"info": _info, "parity": _parity, "bench": bench.main}[options.command]
    try:
        return run(options)
    except XpnetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _info(options: argparse.Namespace) -> int:
    """Print the versions, the backends and the import time."""
    timing = subprocess.run([sys.executable, "-c", _IMPORT_TIME], capture_output=True, text=True, check=True)
    report: dict[str, Any] = {
        "xpnet": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "import_ms_beyond_numpy": round(float(timing.stdout), 1),
        "default": _default(),
        "kernels": kernels.chosen(),
        "backends": probe(),
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return 0
    print(f"xpnet {report['xpnet']}, Python {report['python']}, NumPy {report['numpy']}")
    print(f"import xpnet: {report['import_ms_beyond_numpy']} ms beyond import numpy")
    print(f"default backend: {report['default']}")
    print(f"kernels for NumPy: {report['kernels']} (of {', '.join(kernels.CHOICES)})\n")
    for row in report["backends"]:
        if row["available"]:
            print(f"  {row['name']:<17} {row['version']:<14} {', '.join(row['devices'])}")
        else:
            print(f"  {row['name']:<17} can't run: {row['reason']}\n{'':<19} to install: {row['install']}")
    return 0


def _default() -> str:
    try:
        return repr(get_backend())
    except XpnetError as error:
        return f"can't run: {error}"


def _parity(options: argparse.Namespace) -> int:
    """Compare the backends and print a line for each run."""
    os.environ.setdefault("JAX_ENABLE_X64", "1")  # lets JAX compute in float64, in this process only
    failed = 0
    print("backend            dtype    seed  weights batches masks   losses differ by at most")
    for row in compare(options.backends, seeds=options.seeds, steps=options.steps):
        bits = ["equal" if b else "DIFFER" for b in row[3:6]]
        verdict = "ok" if row.passed else f"MORE THAN {MAX_DIFFERENCE[row.dtype]:g}"
        print(
            f"{row.backend:<18} {row.dtype} {row.seed:>5}  {bits[0]:<7} {bits[1]:<7} {bits[2]:<7} "
            f"{row.difference:.1e}  {verdict}",
            flush=True,
        )
        failed += not row.passed
    print(f"{failed} comparisons failed" if failed else "all equal within the limits")
    return 1 if failed else 0
