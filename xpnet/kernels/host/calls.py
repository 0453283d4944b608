"""Run graphs as NumPy calls with `out=`, block by block, in memory that persists from step to step.

The calls of a graph are prepared once (see `fusion.calls.plan`); each step makes them on its own arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from ...fusion.calls import by_bits, plan, without_erf
from ...fusion.numbers import numbers_of
from ...fusion.trace import Graph

__all__ = ["Prepared", "blocks", "compute", "filled", "now", "number", "prepared", "run"]

Array = np.ndarray

BLOCK = 1 << 16  # elements per block: the memory that the calls of a graph use for a block stays in the cache
ROOM = 1 << 14  # elements up to which a number in a comparison becomes an array of the block's shape


class Prepared(NamedTuple):
    """The parts of a graph's calls that are the same at each step; `fusion.calls.Plan` states the order of memory.

    Attributes:
        calls: (ufunc, function that selects the arguments from the memory, ((keyword, index in the memory), ...)).
        scratch: the dtypes of scratch memory. kinds: dtypes of the changing numbers. fixed: the other numbers.
        bits: indices of memory that is appended again, viewed as integers. filled: the values of arrays after
            these.
        work_out: see `numbers.Numbers`.
    """

    calls: list[tuple[Any, Any, tuple[tuple[str, int], ...]]]
    scratch: list[Any]
    kinds: list[Any]
    fixed: list[Array]
    bits: list[int]
    filled: list[float]
    work_out: Any


@lru_cache(maxsize=256)
def prepared(graph: Graph, homes: tuple[int | None, ...], dtype: Any) -> Prepared:
    """Return a graph's calls. Args: homes: see `fusion.calls.plan`."""
    graph = by_bits(without_erf(graph, dtype == np.float32))
    calls, reals, bools = plan(graph, homes)
    found = numbers_of(graph)
    kinds = [np.dtype(np.bool) if graph.nodes[node].boolean else dtype for node in found.nodes]
    count = len(found.changing)
    first = graph.arrays + homes.count(None) + reals + bools  # the index of the first number
    values = (*found.fixed.values(), 1.0)
    fixed = [np.array(value, kind) for value, kind in zip(values, (*kinds[count:], dtype))]
    writer = _Writer(first + len(kinds), dict(zip(range(first + count, first + len(kinds)), found.fixed.values())))
    for call in calls:
        writer.add(*call)
    return Prepared(
        writer.finished(), [dtype] * reals + [np.bool] * bools, kinds[:count], fixed, writer.bits,
        list(writer.filled), found.work_out,
    )  # fmt: skip


class _Writer:
    """Collects the ufuncs for the calls of a plan.

    Args:
        one: the index in the memory of the number 1, the last of the numbers.
        fixed: the values of the fixed numbers, by index.
    """

    def __init__(self, one: int, fixed: dict[int, float]) -> None:
        self.one, self.fixed = one, fixed
        self.bits: list[int] = []
        self.filled: list[float] = []
        self.calls: list[tuple[Any, tuple[Any, ...], tuple[tuple[str, int], ...]]] = []

    def add(self, op: str, args: tuple[int, ...], out: int) -> None:
        if op == "differ":
            self._call(np.bitwise_xor, *map(self._bits, (*args, out)))
        elif op == "keep":
            self._call(np.multiply, self._bits(args[1]), args[0], self._bits(out))
        elif op == "copy":  # three times as fast as `np.positive`
            self._call(np.bitwise_or, *map(self._bits, (*args, *args, out)))
        elif op == "astype":
            self._call(np.multiply, args[0], self.one, out)
        elif op in ("maximum", "minimum"):  # NumPy deprecates a positional `out` for these
            self.calls.append((getattr(np, op), tuple(map(self._spread, args)), (("out", out),)))
        else:
            self._call(getattr(np, op), *args, out)

    def _call(self, ufunc: Any, *args: Any) -> None:
        self.calls.append((ufunc, args, ()))

    def _bits(self, place: int) -> tuple[str, int]:
        if place not in self.bits:
            self.bits.append(place)
        return "bits", self.bits.index(place)

    def _spread(self, place: int) -> Any:
        """Return an array filled with a fixed number: it makes `np.maximum` 2 to 5 times as fast as the number."""
        if place not in self.fixed:
            return place
        self.filled.append(self.fixed[place])
        return "filled", len(self.filled) - 1

    def finished(self) -> list[tuple[Any, Any, tuple[tuple[str, int], ...]]]:
        """Return the calls with all memory as indices."""
        start = {"bits": self.one + 1, "filled": self.one + 1 + len(self.bits)}
        ready = []
        for ufunc, args, named in self.calls:
            places = [a if isinstance(a, int) else start[a[0]] + a[1] for a in args]
            pick = itemgetter(*places) if len(places) > 1 else lambda memory, a=places[0]: (memory[a],)
            ready.append((ufunc, pick, named))
        return ready


def run(
    ctx: Any, made: Prepared, arrays: Sequence[Array], numbers: Sequence[Array], do: Callable[..., Any]
) -> None:
    """Make the calls of a graph with `do`, block by block.

    Args:
        arrays: the graph's arrays, then those for results that overwrite none; all of the same shape.
        numbers: the changing numbers, 0-d. do: `now`, or `ctx.defer`.
    """
    whole = blocks(*arrays)
    scratch = [ctx.empty(whole[0][0].shape, kind) for kind in made.scratch]
    for block in whole:
        shape, dtype = block[0].shape, block[0].dtype
        rows = scratch if shape == whole[0][0].shape else [a[: shape[0]] for a in scratch]
        memory = [*block, *rows, *numbers, *made.fixed]
        if made.bits:
            integers = f"i{dtype.itemsize}"
            memory += [memory[place].view(integers) for place in made.bits]
        if made.filled:
            like = shape if block[0].size <= ROOM else shape[-1:]
            memory += [filled(like, value, dtype) for value in made.filled]
        for ufunc, args, named in made.calls:
            do(ufunc, *args(memory), **{name: memory[place] for name, place in named} if named else {})


def compute(ctx: Any, graph: Graph, arrays: Sequence[Array], home: int | None) -> Array:
    """Return the single result of a graph without number arguments.

    Args:
        home: the number of the array that it overwrites, or None.
    """
    node = graph.nodes[graph.outputs[0]]
    if node.op == "array":
        return arrays[node.args[0]]
    out = ctx.empty(arrays[0].shape) if home is None else arrays[home]
    run(ctx, prepared(graph, (home,), out.dtype), arrays if home is not None else (*arrays, out), (), now)
    return out


def now(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Make a call immediately."""
    function(*args, **kwargs)


def blocks(*arrays: Array) -> list[tuple[Array, ...]]:
    """Split arrays of the same shape into blocks along their first axis."""
    rows, size = arrays[0].shape[0], arrays[0].size
    if size <= BLOCK:
        return [arrays]
    step = max(1, BLOCK * rows // size)
    return [tuple(a[start : start + step] for a in arrays) for start in range(0, rows, step)]


@lru_cache(maxsize=256)
def number(value: float, dtype: Any) -> Array:
    """Return a number as a 0-d array."""
    return np.array(value, dtype)


@lru_cache(maxsize=64)
def filled(shape: tuple[int, ...], value: float, dtype: Any) -> Array:
    """Return an array filled with one number, which must not be written to."""
    return np.full(shape, value, dtype)
