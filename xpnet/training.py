"""The training step as a pure function, and the state it carries."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from . import kernels
from .backend import Array, Backend
from .context import Arena, Context
from .losses import Loss
from .metrics import Metric
from .network import Network
from .ops import FIRST_SCALE, LIMITS
from .optimizers import Optimizer

__all__ = ["Batch", "TrainState", "make_evaluation", "make_step"]

MOST = 16  # batch shapes whose memory for twins, and whose recordings, are kept


class Batch(NamedTuple):
    """What a step takes in: rows, targets, weights or None, and the masks by place."""

    x: Array
    y: Array
    weight: Array | None
    draws: dict[str, Array]


class TrainState(NamedTuple):
    """What a step carries on; every leaf is an array on the device.

    Attributes:
        step: int32, the steps taken since the model was made; stands still once one was held back.
        lr: the learning rate. ok: whether all was well so far (sticky). weights, slots, stats: flat arrays.
        age: updates since the optimizer began, in the model's dtype.
        sums: (sum, weight) of the loss and of each metric.
        scale: of the loss, and the good steps in a row with it; empty where the loss is not scaled.
    """

    step: Array
    lr: Array
    ok: Array
    weights: Array
    slots: tuple[Array, ...]
    stats: Array
    age: Array
    sums: tuple[tuple[Array, Array], ...]
    scale: tuple[Array, ...] = ()


def _contexts(backend: Backend) -> Callable[..., Context]:
    """Return a maker of training contexts, which keeps one for each batch shape where twins need memory."""
    if not (backend.inplace and kernels.usable(backend)):
        return lambda draws, shape, tape: Context(backend, True, draws)
    if backend.pooled:  # what a CUDA graph writes to must come from its own pool, so nothing is kept here
        return lambda draws, shape, tape: Context(backend, True, draws, Arena(backend.xp))
    contexts: dict[tuple[int, ...], Context] = {}

    def context(draws: dict[str, Array], shape: tuple[int, ...], tape: Any) -> Context:
        found = contexts.get(shape)
        if found is None:
            while len(contexts) >= MOST:
                del contexts[next(iter(contexts))]
            found = contexts[shape] = Context(backend, True, draws, Arena(backend.xp, backend.device))
        return found.restart(draws, tape)

    return context


def first_scale(backend: Backend, scale: float = FIRST_SCALE, streak: float = 0.0) -> tuple[Array, ...]:
    """Return `TrainState.scale`: float16's least number is so large that gradients would be lost without."""
    return (backend.scalar(scale), backend.scalar(streak)) if backend.narrow == "float16" else ()


def zero_sums(backend: Backend, metrics: Sequence[Metric]) -> tuple[tuple[Array, Array], ...]:
    """Return the sums before the first batch of an epoch."""
    return tuple((backend.scalar(0.0), backend.scalar(0.0)) for _ in range(1 + len(metrics)))


def make_step(
    backend: Backend, network: Network, loss: Loss, optimizer: Optimizer, metrics: Sequence[Metric]
) -> Callable[[TrainState, Batch], TrainState]:
    """Return `step(state, batch) -> state`: forward, loss, backward, guard, update.

    The update is held back, on the device, when the loss or the statistics are not finite, or gradient, weights
    or rate are so large that an update might overflow (`ops.LIMITS`). Where an optimizer can overflow all the
    same, its result is looked at before it is taken over, and before it counts. Where the loss is scaled, an
    update that is held back makes the scale smaller, and ends nothing as long as the scale is larger than 1.
    """
    units = network.score_units(loss.fuses) if loss.fuses else None
    segments = network.layout.segments
    context = _contexts(backend)
    limit = LIMITS[backend.dtype_name]
    slices = tuple(network.layout.slices.values())
    sure = optimizer.never_overflows

    def step(s: TrainState, b: Batch) -> TrainState:
        ctx = context(b.draws, tuple(b.x.shape), getattr(b.x, "tape", None))
        y, backward = network.forward(ctx, s.weights, s.stats, b.x, units)
        value, dy, prediction = loss.measure(ctx, b.y, y, b.weight, units is not None)
        alive = s.ok & (s.scale[0] > 1.0) if s.scale else None  # before twins write over the flag
        factor = 1.0 / s.scale[0] if s.scale else None
        g = backward(dy * s.scale[0] if s.scale else dy)
        if segments:
            if factor is not None:
                g, factor = g * factor, None
            penalty, g = ctx.ops.penalize(ctx, s.weights, g, segments)
            value = value + penalty

        new_stats = network.new_stats(ctx, s.stats)
        parts = _parts(ctx, value, b, prediction, metrics)  # a metric may raise: before the update
        ok = ctx.ops.sound(ctx, s.ok, s.lr, limit, (g, s.weights), value, new_stats)

        def count(taken: Array) -> tuple[Array, Array, Any]:
            return ctx.ops.tally(ctx, taken, s.step, s.age, s.sums, parts)

        number, age, sums = count(ok) if sure else (s.step, s.age + 1.0, s.sums)

        def update(kept: tuple[Any, ...]) -> tuple[Any, ...]:
            ctx.gate = kept[0]
            weights, slots = optimizer.advance(ctx, kept[1], g, kept[2], s.lr, age, slices, factor)
            if sure:
                return kept[0], weights, slots, new_stats
            well = ctx.ops.sound(ctx, kept[0], s.lr, limit, (weights,))
            return backend.when(well, lambda _: (well, weights, slots, new_stats), (well, *kept[1:]))

        ok, weights, slots, stats = backend.when(ok, update, (ok, s.weights, s.slots, s.stats))
        if not sure:
            number, age, sums = count(ok)
        scale = s.scale
        if alive is not None:
            ok, number, *scale = ctx.ops.rescale(ctx, ok, alive, number, *s.scale)
        return TrainState(number, s.lr, ok, weights, slots, stats, age, sums, tuple(scale))

    return step


def make_evaluation(
    backend: Backend, network: Network, loss: Loss, metrics: Sequence[Metric]
) -> Callable[[Any, Array, Array, Batch], Any]:
    """Return `evaluation(sums, weights, stats, batch) -> sums`, the same for inference."""
    units = network.score_units(loss.fuses) if loss.fuses else None
    segments = network.layout.segments

    def evaluation(sums: Any, weights: Array, stats: Array, b: Batch) -> Any:
        ctx = Context(backend)
        y, _ = network.forward(ctx, weights, stats, b.x, units)
        value, _, prediction = loss.measure(ctx, b.y, y, b.weight, units is not None)
        if segments:
            value = value + ctx.ops.penalize(ctx, weights, ctx.xp.zeros_like(weights), segments)[0]
        parts = _parts(ctx, value, b, prediction, metrics)
        return tuple((total + a * n, weight + w) for (total, weight), (a, n, w) in zip(sums, parts))

    return backend.jit(evaluation)


def _parts(ctx: Context, value: Array, b: Batch, prediction: Array, metrics: Sequence[Metric]) -> list[Any]:
    """Return what a batch adds to the sums (see `ops.tally`); its loss counts once a row."""
    rows, parts = float(b.x.shape[0]), []
    for metric in metrics:
        total, weight = metric.measure(ctx, b.y, prediction, b.weight)
        parts.append((total, 1.0, weight))
    return [(value, rows, rows), *parts]


def read_sums(backend: Backend, sums: Any, names: Sequence[str]) -> dict[str, float]:
    """Return the means by name: one transfer from the device."""
    host = backend.host(backend.xp.stack([part for pair in sums for part in pair]))
    nothing = 0.0 if host[1] else float("nan")  # of rows whose weights are all 0, as in Keras; of no rows
    return {
        name: float(host[2 * i] / host[2 * i + 1]) if host[2 * i + 1] else nothing for i, name in enumerate(names)
    }


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until the function it yields is called, so that no step is left half done."""
    pending: list[int] = []

    def check() -> None:
        if pending:
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check  # somebody else decides what Ctrl-C does
        return

    def note(number: int, frame: Any) -> None:
        check()  # a second Ctrl-C does not wait
        pending.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    check()  # pressed since it was last asked
