"""Write a formula as one loop over the elements, which numba compiles.

The source lies in a file in the user's cache folder, because numba keeps what it has compiled beside such a file:
each machine compiles a loop once. The file only lends its name: what runs is the source that was generated, so
that a damaged or foreign file does no harm. Where no file can be written, each process compiles its loops anew.
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

__all__ = ["cache_folder", "loop_of"]

_TEMPLATES = {
    **TEMPLATES,
    "maximum": "{0} if {0} > {1} or {0} != {0} else {1}", "minimum": "{0} if {0} < {1} or {0} != {0} else {1}",
    "sign": "one if {0} > zero else -one if {0} < zero else {0}", "astype": "one if {0} else zero",
    "pow": "{} ** {}", "abs": "abs({})", "floor": "numpy.floor({})",  # that of `math` gives an integer
}  # fmt: skip


def source_of(graph: Graph, homes: Sequence[int | None], flush: Sequence[int] = ()) -> str:
    """Return the source of `loop(numbers, *arrays, *results)`.

    `numbers` has the values of `numbers_of(graph).nodes`, and at its end the size below which a number counts as
    0. All arrays have one dimension and one dtype.

    Args:
        homes: for each result the number of the array that it overwrites, or None for an array of its own.
        flush: the numbers of the results in which what is far too small to matter becomes 0.
    """
    used = numbers_of(graph).nodes
    names = {node: f"(n{k} != 0)" if graph.nodes[node].boolean else f"n{k}" for k, node in enumerate(used)}
    own = [f"r{o}" for o, home in enumerate(homes) if home is None]
    arrays = [*(f"a{i}" for i in range(graph.arrays)), *own]
    lines = [
        "import math, numpy",
        f"def loop(numbers, {', '.join(arrays)}):",
        "    one, zero = numbers.dtype.type(1), numbers.dtype.type(0)",
        *(f"    n{k} = numbers[{k}]" for k in range(len(used))),
        "    small = numbers[-1]",
        f"    for i in range({arrays[0]}.size):",
    ]
    for i, (op, args, rank, _) in enumerate(graph.nodes):
        if not rank:
            continue
        names[i] = f"t{i}"
        if op == "array":
            value = f"a{args[0]}[i]"
        else:
            operands = [names[arg] for arg in args]
            value = _TEMPLATES[op].format(*operands) if op in _TEMPLATES else f"math.{op}({operands[0]})"
        lines.append(f"        t{i} = {value}")
    for o, (node, home) in enumerate(zip(graph.outputs, homes)):
        value = f"{names[node]} if abs({names[node]}) > small else zero" if o in flush else names[node]
        lines.append(f"        {f'r{o}' if home is None else f'a{home}'}[i] = {value}")
    return "\n".join(lines) + "\n"


@lru_cache(maxsize=256)
def loop_of(
    graph: Graph, homes: tuple[int | None, ...], flush: tuple[int, ...], compile_loop: Callable[[Any], Any]
) -> Any:
    """Return the compiled loop of a graph, see `source_of`; graphs that differ in constants only share one.

    Args:
        compile_loop: makes a compiled function of a Python function.
    """
    return _loop(source_of(graph, homes, flush), compile_loop)


@lru_cache(maxsize=256)
def _loop(source: str, compile_loop: Callable[[Any], Any]) -> Any:
    text = source.encode()
    name = f"xpnet_loop_{hashlib.sha256(text).hexdigest()[:20]}"
    module = ModuleType(name)
    sys.modules[name] = module  # where numba looks for it when it reads what it has kept
    exec(compile(source, _file_of(name, text), "exec"), vars(module))
    return compile_loop(module.loop)


def _file_of(name: str, text: bytes) -> str:
    """Return the path of a file with this text, written if need be; without one, what is no path."""
    folder = cache_folder()
    if folder is None:
        return f"<{name}>"
    path = folder / "loops" / f"{name}.py"
    try:
        if not path.is_file() or path.read_bytes() != text:
            _write(path, text)
    except OSError:
        return f"<{name}>"  # the compiler says that it can't keep what it compiles
    return str(path)


def _write(path: Path, text: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with open(handle, "wb") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def cache_folder() -> Path | None:
    """Return the user's cache folder for xpnet, or the one that `XPNET_CACHE` names; None if there is no home."""
    try:
        if named := os.environ.get("XPNET_CACHE"):
            return Path(named).expanduser()
        if sys.platform == "win32":
            root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            root = Path.home() / "Library" / "Caches"
        else:
            root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # the home folder is not known
        return None
    return root / "xpnet"
