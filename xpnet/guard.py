"""Diagnose a step that the guard rejected, by replaying it uncompiled."""

from __future__ import annotations

import math
from typing import Any

from .backend import Array, Backend, np
from .context import Context
from .errors import XpnetError
from .losses import Loss
from .network import Network
from .ops import LARGEST_RATE, LIMITS
from .optimizers import Optimizer
from .training import Batch, TrainState

__all__ = ["first_concerned"]


REMEDY = "a smaller learning rate or scaled inputs may help"
CHANGED = "the data were changed during fit, and must stay valid"


class _Found(Exception):
    """Carries the diagnosis out of the replay: the problem and a remedy."""

    def __init__(self, what: str, remedy: str = REMEDY) -> None:
        super().__init__(f"{what}; {remedy}")


def first_concerned(
    backend: Backend, network: Network, loss: Loss, optimizer: Optimizer, s: TrainState, b: Batch
) -> str:
    """Return the first problem in the step, such as "the loss is not finite", and a remedy."""
    limit = LIMITS[backend.dtype_name]

    def watch(what: str, key: str, a: Array) -> None:
        _look(f"the {what} of layer {key!r}", backend.host(a), limit if what == "gradient" else math.inf)

    try:
        with np.errstate(all="ignore"):
            _replay(backend, network, loss, optimizer, s, b, watch)
    except _Found as found:
        return str(found)
    return f"the norm of the gradient or of the weights exceeds {limit:g}; {REMEDY}"


def _look(what: str, a: np.ndarray, limit: float = math.inf, remedy: str | None = None) -> None:
    if not np.isfinite(a).all():
        raise _Found(f"{what} is not finite", remedy or REMEDY)
    if not (np.abs(a) <= limit).all():
        raise _Found(f"{what} exceeds {limit:g}")


def _replay(
    backend: Backend, network: Network, loss: Loss, optimizer: Optimizer, s: TrainState, b: Batch, watch: Any
) -> None:
    ctx = Context(backend, True, b.draws)
    # checked before the first step, but the user may have changed the arrays since
    _look("the batch's input", backend.host(b.x), remedy=CHANGED)
    if b.weight is not None:
        _look("a sample weight of the batch", backend.host(b.weight), remedy=CHANGED)
    try:
        loss.check(backend.host(b.y), (b.x.shape[0], *network.output_shape))
    except XpnetError as error:
        raise _Found(str(error), CHANGED) from error
    if float(backend.host(s.lr)) > LARGEST_RATE:
        raise _Found(f"the learning rate exceeds {LARGEST_RATE:g}")
    units = network.score_units(loss.fuses) if loss.fuses else None
    y, backward = network.forward(ctx, s.weights, s.stats, b.x, units, watch)
    value, dy, _ = loss.measure(ctx, b.y, y, b.weight, units is not None)
    last = network.units[-1].key
    remedy = loss.objection(backend.host(y)) if units is None else None
    _look(f"the loss, after layer {last!r},", backend.host(value), remedy=remedy)
    _look(f"the gradient of the loss, after layer {last!r},", backend.host(dy), remedy=remedy)
    g = backward(dy)
    if network.layout.segments:
        value, g = ctx.ops.penalize(ctx, s.weights, g, network.layout.segments)
        _look("the penalty on the weights", backend.host(value))
    slots = tuple(backend.copy(slot) for slot in s.slots)
    variables = network.layout.variables
    weights, _ = optimizer.advance(ctx, backend.copy(s.weights), g, slots, s.lr, s.age + 1.0, variables)
    for layout, flat in ((network.layout, weights), (network.stats_layout, network.new_stats(ctx, s.stats))):
        for path, values in layout.host_parts(backend, flat).items():
            key, _, name = path.rpartition("/")
            _look(f"the new {name} of layer {key!r}", values)
    for path, values in network.layout.host_parts(backend, s.weights).items():
        key, _, name = path.rpartition("/")
        _look(f"the {name} of layer {key!r}", values, LIMITS[backend.dtype_name])
