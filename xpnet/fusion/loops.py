"""Write formulas as loops over the elements, compiled by numba.

There are three: an optimizer's update; bias and activation; an activation's backward and the bias gradient.

The source is written to a file in the user's cache folder, because numba stores its compiled code beside the
source file: each machine compiles a loop once. The file only provides its name. The code that runs is the
generated source, so a damaged or foreign file does no harm. If no file can be written, each process compiles its
loops.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from .numbers import TEMPLATES, numbers_of
from .trace import Graph

__all__ = ["activation_source", "cache_folder", "derivative_source", "loop_of", "update_source"]

_TEMPLATES = {
    **TEMPLATES,
    "maximum": "{0} if {0} > {1} or {0} != {0} else {1}", "minimum": "{0} if {0} < {1} or {0} != {0} else {1}",
    "sign": "one if {0} > zero else -one if {0} < zero else {0}", "astype": "one if {0} else zero",
    "pow": "{} ** {}", "abs": "abs({})", "floor": "numpy.floor({})",  # `math.floor` returns an integer
}  # fmt: skip


def update_source(graph: Graph, homes: Sequence[int | None], flush: Sequence[int] = ()) -> str:
    """Return the source of `loop(numbers, *arrays, *results)`.

    `numbers` holds the values of `numbers_of(graph).nodes`, and last the threshold below which a number counts as
    0. All arrays have one dimension and the same dtype.

    Args:
        homes: for each result the number of the array that it overwrites, or None for a separate array.
        flush: the results in which numbers too small to matter become 0, by index.
    """
    own = [f"r{o}" for o, home in enumerate(homes) if home is None]
    arrays = [*(f"a{i}" for i in range(graph.arrays)), *own]
    head, body, results = _statements(graph, [f"a{i}[i]" for i in range(graph.arrays)])
    for o, home in enumerate(homes):
        value = f"{results[o]} if abs({results[o]}) > small else zero" if o in flush else results[o]
        body.append(f"{f'r{o}' if home is None else f'a{home}'}[i] = {value}")
    return _source(arrays, [*head, "small = numbers[-1]"], [f"for i in range({arrays[0]}.size):"], body)


def activation_source(graph: Graph, keep: bool) -> str:
    """Return the source of `loop(numbers, z, bias)`, which overwrites z with f(z + bias).

    Args:
        graph: of f, of one array. z: shape (rows, units). bias: (units,).
        keep: `loop(numbers, z, bias, y)` overwrites z with z + bias, and writes f(z + bias) to y.
    """
    head, body, (result,) = _statements(graph, ["s"])
    stored = ["z[i, j] = s"] if keep else []
    body = ["s = z[i, j] + bias[j]", *stored, *body, f"{'y' if keep else 'z'}[i, j] = {result}"]
    return _source(["z", "bias", *(["y"] if keep else [])], head, ROWS_OF_Z, body)


def derivative_source(graph: Graph) -> str:
    """Return the source of `loop(numbers, *arrays, dz, sums)`, which writes dz and the sums of its columns.

    `arrays` are those of dy, z and y that the graph reads, in this order, shape (rows, units).

    Args:
        graph: of dz, of dy, z and y.
    """
    names = ["dy", "z", "y"]
    head, body, (result,) = _statements(graph, [f"{name}[i, j]" for name in names])
    body += [f"d = {result}", "dz[i, j] = d", "sums[j] += d"]
    arrays = [*(names[k] for k in sorted(graph.reads)), "dz", "sums"]
    return _source(arrays, [*head, "sums[:] = 0"], [line.replace("z", "dz") for line in ROWS_OF_Z], body)


ROWS_OF_Z = ["for i in range(z.shape[0]):", "    for j in range(z.shape[1]):"]


def _statements(graph: Graph, arrays: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the statements before the loop, those for each element, and the names of the results.

    Args:
        arrays: the expression for an element of each input array.
    """
    used = numbers_of(graph).nodes
    names = {node: f"n{k}" for k, node in enumerate(used)}
    head = ["one, zero = numbers.dtype.type(1), numbers.dtype.type(0)"]
    head += [f"n{k} = numbers[{k}]" for k in range(len(used))]
    body = []
    for i, (op, args, rank, _) in enumerate(graph.nodes):
        if not rank:
            continue
        names[i] = f"t{i}"
        if op == "array":
            value = arrays[args[0]]
        else:
            operands = [names[arg] for arg in args]
            value = _TEMPLATES[op].format(*operands) if op in _TEMPLATES else f"math.{op}({operands[0]})"
        body.append(f"t{i} = {value}")
    return head, body, [names[node] for node in graph.outputs]


def _source(arrays: Sequence[str], head: Sequence[str], loops: Sequence[str], body: Sequence[str]) -> str:
    """Return the source of `loop(numbers, *arrays)`."""
    lines = [f"def loop(numbers, {', '.join(arrays)}):", *(f"    {line}" for line in (*head, *loops))]
    inside = " " * (4 + 4 * len(loops))
    return "\n".join(["import math, numpy", *lines, *(inside + line for line in body)]) + "\n"


@lru_cache(maxsize=256)
def loop_of(compile_loop: Callable[[Any], Any], source_of: Callable[..., str], *args: Any) -> Any:
    """Return the compiled loop of the source `source_of(*args)`; graphs that differ only in constants share one.

    Args:
        compile_loop: compiles a Python function.
        source_of: `update_source`, `activation_source` or `derivative_source`.
    """
    return _loop(source_of(*args), compile_loop)


@lru_cache(maxsize=256)
def _loop(source: str, compile_loop: Callable[[Any], Any]) -> Any:
    text = source.encode()
    name = f"xpnet_loop_{hashlib.sha256(text).hexdigest()[:20]}"
    module = ModuleType(name)
    sys.modules[name] = module  # numba looks up the module when it loads cached code
    exec(compile(source, _file_of(name, text), "exec"), vars(module))
    return compile_loop(module.loop)


def _file_of(name: str, text: bytes) -> str:
    """Return the path of a file with this text, written if necessary; without a file, a name that is no path."""
    folder = cache_folder()
    if folder is None:
        return f"<{name}>"
    path = folder / "loops" / f"{name}.py"
    try:
        if not path.is_file() or path.read_bytes() != text:
            _write(path, text)
    except OSError:
        return f"<{name}>"  # the compiler warns that it can't cache its code
    return str(path)


def _write(path: Path, text: bytes) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with open(handle, "wb") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:  # also on Ctrl-C: delete the temporary file, then re-raise
        with suppress(OSError):
            os.unlink(temporary)
        raise


def cache_folder() -> Path | None:
    """Return xpnet's cache folder, `XPNET_CACHE` or the user's default; None if the home folder is unknown."""
    try:
        if named := os.environ.get("XPNET_CACHE"):
            return Path(named).expanduser()
        if sys.platform == "win32":
            root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            root = Path.home() / "Library" / "Caches"
        else:
            root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # unknown home folder
        return None
    return root / "xpnet"
