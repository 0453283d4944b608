"""The training step as a pure function, and the state it carries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..backend import Array, Backend, np
from ..backend.tree import tree_map
from ..core.ops import FIRST_SCALE, MAX_NORM, add_up
from ..kernels.check import usable
from ..kernels.context import Arena, Context
from ..kernels.finish import make
from ..losses import Loss
from ..metrics import Metric
from ..optimizers import Optimizer
from .network import Network
from .objective import Batch, Objective

__all__ = ["Batch", "TrainState", "make_evaluation", "make_step", "sums_of"]

MAX_SHAPES = 16  # batch shapes whose memory for twins, and whose recordings, are kept


class TrainState(NamedTuple):
    """The state of training; every leaf is an array on the device.

    Attributes:
        step: the number of steps since the model was made (see `Backend.count`); it stops once `ok` is False.
        lr: the learning rate. ok: False once a step has failed for good. weights, slots, stats: flat arrays.
        age: the number of updates of this optimizer, in the model's dtype.
        sums: of the loss and the rows, then of each metric in turn, in one flat array (see `zero_sums`).
        scale: of the loss, and the number of good steps in a row at that scale; empty if the loss is not scaled.
    """

    step: Array
    lr: Array
    ok: Array
    weights: Array
    slots: tuple[Array, ...]
    stats: Array
    age: Array
    sums: Array
    scale: tuple[Array, ...] = ()


def _contexts(backend: Backend) -> Callable[..., Context]:
    """Return a function that makes training contexts; if twins need memory, it keeps one for each batch shape."""
    if not (backend.inplace and usable(backend)):
        return lambda draws, shape, tape: Context(backend, True, draws)
    if backend.pooled:  # a CUDA graph writes to memory of its own pool, so no context is kept
        return lambda draws, shape, tape: Context(backend, True, draws, Arena(backend.xp))
    contexts: dict[tuple[int, ...], Context] = {}

    def context(draws: dict[str, Array], shape: tuple[int, ...], tape: Any) -> Context:
        found = contexts.get(shape)
        if found is None:
            while len(contexts) >= MAX_SHAPES:
                del contexts[next(iter(contexts))]
            found = contexts[shape] = Context(backend, True, draws, Arena(backend.xp, backend.device))
        return found.restart(draws, tape)

    return context


def first_scale(backend: Backend, scale: float = FIRST_SCALE, streak: float = 0.0) -> tuple[Array, ...]:
    """Return `TrainState.scale`: without a scale, small gradients would round to zero in float16."""
    return (backend.scalar(scale), backend.scalar(streak)) if backend.narrow == "float16" else ()


def zero_sums(backend: Backend, metrics: Sequence[Metric]) -> Array:
    """Return the sums before the first batch of an epoch, shape (n,), in float64.

    In a library without float64 the shape is (2, n): float32 sums, and below them what rounding has lost.
    """
    n = 2 + sum(math.prod(shape) for metric in metrics for shape in metric.sums.values())
    return backend.zeros(n, backend.xp.float64) if backend.wide else backend.zeros((2, n))


def host_sums(backend: Backend, sums: Array) -> np.ndarray:
    """Return the sums of a state, in either form, as a float64 host array of shape (n,); one transfer."""
    host = np.asarray(backend.host(sums), np.float64)
    return host.sum(axis=0) if host.ndim == 2 else np.array(host)


def carried_sums(backend: Backend, sums: np.ndarray) -> Array:
    """Return host sums, shape (n,), in the form of this backend (see `zero_sums`)."""
    whole = np.asarray(sums, np.float64)
    if backend.wide:
        return backend.array(whole)
    high = whole.astype(np.float32)
    return backend.array(np.stack([high, (whole - high).astype(np.float32)]))


def make_step(
    backend: Backend, network: Network, loss: Loss, optimizer: Optimizer, metrics: Sequence[Metric]
) -> Callable[..., TrainState]:
    """Return `step(state, batch, finish=None) -> state`: forward, loss, backward, guard, update.

    The guard rejects the update, on the device, if the loss or the statistics are not finite, or if gradient,
    weights or rate are so large that an update might overflow (`ops.MAX_NORM`). The result of an optimizer that
    can overflow even so, and of constraints, is checked before it is applied and counted. Where the loss is
    scaled, a rejected update lowers the scale, and ends the training only if the scale is 1.

    A step does not change the state it is given. Twins that update weights in place append the calls that do so to
    the list `finish`: after these calls the returned state is valid and the former one is lost. Without a list
    the step makes these calls before it returns.
    """
    objective, context = Objective(network, loss), _contexts(backend)
    limit = MAX_NORM[backend.dtype_name]
    layout, variables = network.layout, network.layout.variables
    sure = optimizer.never_overflows and not layout.constraints
    here = backend.inplace and not backend.pooled  # every step reuses the gradient's memory

    def step(s: TrainState, b: Batch, finish: list[Any] | None = None) -> TrainState:
        ctx = context(b.draws, tuple(b.x.shape), getattr(b.x, "tape", None))
        lr = optimizer.rate_at(ctx.xp, s.lr, s.age)
        alive = s.ok & (s.scale[0] > 1.0) if s.scale else None  # before twins overwrite the flag
        value, g, factor, prediction = objective.gradient(
            ctx, s.weights, s.stats, b, s.scale[0] if s.scale else None
        )
        new_stats = network.new_stats(ctx, s.stats)
        parts = sums_of(ctx, value, b, prediction, metrics)
        ok = ctx.ops.within_limits(ctx, s.ok, lr, limit, (g, s.weights), value, new_stats)
        # the logs count a step that only lowers the scale, if its loss is a number
        counted = ok if alive is None else ok | (alive & ctx.xp.isfinite(value))
        ctx.apply_update, ctx.overwrite = ok, sure and ctx.inplace

        def tally(taken: Array) -> tuple[Array, Array, Array]:
            return ctx.ops.tally(ctx, taken, counted, s.step, s.age, s.sums, parts)

        def update(kept: tuple[Array, tuple[Array, ...], Array], age: Array) -> Any:
            new = optimizer.advance(ctx, kept[0], g, kept[1], lr, age, variables, factor)
            if here and ctx.tape is None and not (new[0] is kept[0] and new[1] is kept[1]):
                new = tree_map(lambda a, old: _apart(backend, a, old, g), new, kept[:2])
            return layout.constrain(ctx, new[0]) if layout.constraints else new[0], new[1], new_stats

        kept = s.weights, s.slots, s.stats
        if sure:
            number, age, sums = tally(ok)
            # a twin may have deferred the counting to the end of the step, for twins that defer too
            now = s.age + 1.0 if age is s.age and optimizer.reads_age else age
            weights, slots, stats = backend.when(ok, lambda kept: update(kept, now), kept)
        else:
            new = update(kept, s.age + 1.0)
            ok = ctx.ops.within_limits(ctx, ok, lr, limit, new[:1])
            counted = ok if alive is None else counted
            number, age, sums = tally(ok)
            weights, slots, stats = backend.when(ok, lambda _: new, kept)
        scales = s.scale
        if alive is not None:
            ok, number, *scales = ctx.ops.rescale(ctx, ok, alive, number, *s.scale)
        if finish is None:
            make(ctx.finish)
        else:
            finish += ctx.finish
        return TrainState(number, s.lr, ok, weights, slots, stats, age, sums, tuple(scales))

    return step


def _apart(backend: Backend, a: Array, old: Array, g: Array) -> Array:
    """Return an array of the new state, copied if it shares memory with the gradient."""
    return a if a is old or not backend.shares(a, g) else backend.copy(a)


def make_evaluation(
    backend: Backend, network: Network, loss: Loss, metrics: Sequence[Metric]
) -> Callable[[Any, Array, Array, Batch], Any]:
    """Return `evaluation(sums, weights, stats, batch) -> sums`, the same for inference."""
    objective = Objective(network, loss)

    def evaluation(sums: Any, weights: Array, stats: Array, b: Batch) -> Any:
        ctx = Context(backend)
        value, prediction = objective.value(ctx, weights, stats, b)
        parts = sums_of(ctx, value, b, prediction, metrics)
        return add_up(ctx, sums, parts)

    return backend.jit(evaluation)


def sums_of(ctx: Context, value: Array, b: Batch, prediction: Array, metrics: Sequence[Metric]) -> list[Any]:
    """Return what a batch adds to the sums (see `ops.add_up`); its loss counts once a row."""
    rows = float(b.x.shape[0])
    counts = [c for metric in metrics for c in metric.checked_counts(ctx, b.y, prediction, b.weight)]
    return [(value, rows), (rows, 1.0), *((c, 1.0) for c in counts)]


@np.errstate(all="ignore")
def read_sums(backend: Backend, sums: Array, names: Sequence[str], metrics: Sequence[Metric]) -> dict[str, Any]:
    """Return the mean loss and the metrics' results by name, as floats or arrays; NaN if there were no rows."""
    host = host_sums(backend, sums)
    loss, rows = host[:2]
    done, results = 2, [loss / rows]
    for metric in metrics:
        pieces = []
        for shape in metric.sums.values():
            pieces.append(host[done : done + math.prod(shape)].reshape(shape))
            done += pieces[-1].size
        value = metric.compute(np, *pieces)
        results.append(value if rows else np.full_like(value, np.nan))
    return {name: float(a) if np.ndim(a) == 0 else np.asarray(a) for name, a in zip(names, results)}
