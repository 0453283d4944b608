"""Time parts by themselves on NumPy: the updates of optimizers beside Adam's, hidden layers beside one with ReLU.

Each is recorded and replayed as in training. All take turns, so that drift of the machine affects all equally.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .. import activations, kernels, optimizers
from ..backend import get_backend, np
from ..core.params import Variable, Variables
from ..kernels.context import Arena, Context
from ..kernels.finish import make
from ..training.replay import Replay
from .ours import twins

__all__ = ["BASES", "KINDS", "Row", "names_of", "table", "text"]

SIZES = (100_000, 1_000_000)  # numbers of the flat arrays
LAYER = (128, 256, 256)  # rows, inputs, units
BASES = {"optimizer": "adam", "activation": "relu"}
LOOPS = ("numpy", "fast")  # of `kernels.CHOICES`
UNTIMED = {"LBFGS", "Step"}  # one has no update of a gradient, the other no derivative


class Row(NamedTuple):
    """A part on one size and one kind of loops.

    Attributes:
        what, name, loops, size: the kind of part, its name, the twins, the numbers of an array.
        median: microseconds of one update, or of one forward and backward pass. ratio: to that of `BASES`.
        moved: how many arrays of the size an update reads or writes; None for other parts. It reads the gradient,
            reads and writes weights and slots, and does so again to copy a result that is checked first (see
            `Optimizer.never_overflows`).
        per_array: the ratio for each array moved, but `ratio` where there are no more of them than of `BASES`.
    """

    what: str
    name: str
    loops: str
    size: int
    median: float
    ratio: float
    moved: float | None = None
    per_array: float | None = None


class State(NamedTuple):
    """What an update carries on."""

    weights: Any
    slots: tuple[Any, ...]
    lr: Any
    age: Any


def update(name: str, size: int) -> tuple[Callable[[], None], float]:
    """Return a function that takes one update of a flat array, and how many arrays it moves (see `Row`).

    The array is one matrix, since some optimizers treat matrices in their own way.
    """
    backend, optimizer, rng = get_backend("numpy", dtype="float32"), optimizers.get(name), np.random.default_rng(0)
    rows = max(n for n in range(1, int(size**0.5) + 1) if size % n == 0)
    variables = Variables([Variable("dense/kernel", 0, size, (rows, size // rows))])
    weights, g = (rng.standard_normal(size, dtype=np.float32) for _ in range(2))
    slots = optimizer.first_slots(backend, (size,), variables, weights)
    ctx = Context(backend, True, None, Arena(backend.xp, backend.device))

    def step(state: State, batch: Any, finish: list[Any] | None = None) -> State:
        (g,) = batch
        ctx.restart({}, getattr(g, "tape", None))
        ctx.overwrite = optimizer.never_overflows
        age = state.age + 1.0
        new, kept = optimizer.advance(ctx, state.weights, g, state.slots, state.lr, age, variables)
        (make if finish is None else finish.extend)(ctx.finish)
        return State(new, kept, state.lr, age)

    start = State(weights, slots, backend.scalar(1e-4), backend.scalar(0.0))
    kept = 1.0 + sum(slot.size for slot in slots) / size
    moved = 1.0 + (2.0 if optimizer.never_overflows else 4.0) * kept
    return _replayed(step, start, 0.01 * g, backend), moved


def layer(name: str, shape: tuple[int, int, int] = LAYER) -> Callable[[], None]:
    """Return a function that takes a dense layer with an activation forward and backward."""
    backend, activation, rng = (
        get_backend("numpy", dtype="float32"),
        activations.get(name),
        np.random.default_rng(0),
    )
    n, inputs, units = shape
    sizes = ((n, inputs), (inputs, units), (units,), (n, units))
    x, kernel, bias, dy = (rng.standard_normal(s, dtype=np.float32) for s in sizes)
    kernel *= np.float32(inputs**-0.5)
    ctx = Context(backend, True, None, Arena(backend.xp, backend.device))

    def step(state: Any, batch: Any, finish: list[Any] | None = None) -> Any:
        (dy,) = batch
        ctx.restart({}, getattr(dy, "tape", None))
        _, backward = ctx.ops.affine(ctx, *state, activation)
        backward(dy, {}, True)
        return state

    return _replayed(step, (x, kernel, bias), dy, backend)


def _replayed(step: Any, state: Any, batch: Any, backend: Any) -> Callable[[], None]:
    """Return a function that takes one step after the other, on the same array."""
    replay = Replay(step, kernels.recorder_for(backend))
    held = [state]

    def commit(new: Any, finish: Any) -> None:
        make(finish)
        held[0] = new

    return lambda: replay(held[0], [(batch,)], commit)


KINDS = {"optimizer": optimizers.registry, "activation": activations.registry}


def names_of(what: str, wanted: Sequence[str]) -> list[str]:
    """Return the names of parts, that of `BASES` first; "all": every one that can be timed.

    Raises:
        UnknownNameError: a name is not known.
    """
    registry: Any = KINDS[what]
    every = sorted(set(registry.exports()) - UNTIMED)
    classes = dict.fromkeys(registry.find(name) for name in (every if "all" in wanted else wanted))
    base = registry.find(BASES[what])
    return [base.__name__, *(cls.__name__ for cls in classes if cls is not base)]


def table(what: str, names: Sequence[str], rounds: int, seconds: float, sizes: Sequence[int] = SIZES) -> list[Row]:
    """Return the rows of some parts, for each size and kind of loops.

    Args:
        what: "optimizer" or "activation". names: of the parts, that of `BASES` first.
        rounds: turns of each. seconds: target duration of a turn.
    """
    rows = []
    for loops in LOOPS if kernels.chosen() == "fast" else LOOPS[:1]:
        for size in sizes if what == "optimizer" else (LAYER[0] * LAYER[2],):
            with twins(loops):
                made = {n: update(n, size) if what == "optimizer" else (layer(n), None) for n in names}
                medians = _interleaved({name: run for name, (run, _) in made.items()}, rounds, seconds)
            base, least = medians[names[0]], made[names[0]][1]
            for name in names:
                moved, ratio = made[name][1], medians[name] / base
                each = None if moved is None or least is None else ratio * least / max(moved, least)
                rows.append(Row(what, name, loops, size, medians[name], ratio, moved, each))
    return rows


def _interleaved(runs: dict[str, Callable[[], None]], rounds: int, seconds: float) -> dict[str, float]:
    """Return the median of each function's time in microseconds."""

    def timed(run: Callable[[], None], count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            run()
        return (time.perf_counter() - start) / count * 1e6

    counts = {}
    for name, run in runs.items():
        timed(run, 6)  # compiled and recorded
        counts[name] = max(1, round(seconds * 1e6 / timed(run, 3)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: 1 if number % 2 == 0 else -1]:
            times[name].append(timed(runs[name], counts[name]))
    return {name: statistics.median(found) for name, found in times.items()}


def text(rows: Sequence[Row], threads: int) -> str:
    """Return the table of one kind of parts."""
    what = rows[0].what
    about = "one update of a flat float32 array" if what == "optimizer" else (
        "forward and backward of a dense layer, {} rows, {} to {} units, float32".format(*LAYER)
    )  # fmt: skip
    lines = [f"{about}, {threads} thread{'' if threads == 1 else 's'}; ratios to {rows[0].name}"]
    head = f"{what:<14} {'kernels':<7} {'numbers':>9} {'us':>10} {'ratio':>6}"
    lines.append(head + (f" {'moved':>6} {'each':>6}" if what == "optimizer" else ""))
    for r in rows:
        line = f"{r.name:<14} {r.loops:<7} {r.size:>9,} {r.median:>10,.1f} {r.ratio:>6.2f}"
        lines.append(line if r.moved is None else f"{line} {r.moved:>6.2f} {r.per_array:>6.2f}")
    return "\n".join(lines)
