"""What went wrong when the guard held a step back: the step is replayed, outside any compilation."""

from __future__ import annotations

from typing import Any

from .backend import Array, Backend, np
from .context import Context
from .losses import Loss
from .network import Network
from .optimizers import Optimizer
from .training import Batch, TrainState

__all__ = ["first_concerned"]


class _Found(Exception):
    """Carries the answer out of the replay."""


def first_concerned(
    backend: Backend, network: Network, loss: Loss, optimizer: Optimizer, s: TrainState, b: Batch
) -> str:
    """Return the first thing in the step that was not finite, in words: a layer's output, the loss, ..."""

    def watch(what: str, key: str, a: Array) -> None:
        if not np.isfinite(backend.host(a)).all():
            raise _Found(f"the {what} of layer {key!r}")

    try:
        with np.errstate(all="ignore"):
            _replay(backend, network, loss, optimizer, s, b, watch)
    except _Found as found:
        return str(found)
    return "a sum over a batch"


def _replay(
    backend: Backend, network: Network, loss: Loss, optimizer: Optimizer, s: TrainState, b: Batch, watch: Any
) -> None:
    ctx = Context(backend, True, b.draws)
    units = network.score_units(loss.fuses) if loss.fuses else None
    y, backward = network.forward(ctx, s.weights, s.stats, b.x, units, watch)
    value, dy, _ = loss.measure(ctx, b.y, y, b.weight, units is not None)
    last = network.units[-1].key
    for what, a in (("the loss", value), ("the gradient of the loss", dy)):
        if not np.isfinite(backend.host(a)).all():
            raise _Found(f"{what}, behind layer {last!r}")
    g = backward(dy)
    if network.layout.segments:
        value, g = ctx.ops.penalize(ctx, s.weights, g, network.layout.segments)
        if not np.isfinite(backend.host(value)).all():
            raise _Found("the penalty on the weights")
    slots = tuple(backend.copy(slot) for slot in s.slots)
    weights, _ = optimizer.apply(ctx, backend.copy(s.weights), g, slots, s.lr, s.age + 1.0)
    for layout, flat in ((network.layout, weights), (network.stats_layout, network.new_stats(ctx, s.stats))):
        for path, values in layout.host_parts(backend, flat).items():
            if not np.isfinite(values).all():
                key, _, name = path.rpartition("/")
                raise _Found(f"the new {name} of layer {key!r}")
