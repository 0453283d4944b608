"""Diagnose a step that the guard rejected, by replaying it uncompiled."""

from __future__ import annotations

import math

from ..backend import Array, Backend, np
from ..core.ops import LARGEST_RATE, MAX_NORM
from ..errors import XpnetError
from ..kernels.context import Context
from ..losses import Loss
from ..optimizers import Optimizer
from .network import Network
from .objective import Batch, Objective
from .step import TrainState

__all__ = ["diagnose"]


REMEDY = "a smaller learning rate or scaled inputs may help"
CHANGED = "the data were changed during fit, and must stay valid"


class _Found(Exception):
    """Carries the diagnosis out of the replay: the problem and a remedy."""

    def __init__(self, what: str, remedy: str = REMEDY) -> None:
        super().__init__(f"{what}; {remedy}")


def diagnose(backend: Backend, network: Network, loss: Loss, optimizer: Optimizer, s: TrainState, b: Batch) -> str:
    """Return the first problem in the step, such as "the loss is not finite", and a remedy."""
    limit = MAX_NORM[backend.dtype_name]

    try:
        with np.errstate(all="ignore"):
            _replay(backend, Objective(network, loss), optimizer, s, b)
    except _Found as found:
        return str(found)
    return f"the norm of the gradient or of the weights exceeds {limit:g}; {REMEDY}"


def _check(what: str, a: np.ndarray, limit: float = math.inf, remedy: str | None = None) -> None:
    if not np.isfinite(a).all():
        raise _Found(f"{what} is not finite", remedy or REMEDY)
    if not (np.abs(a) <= limit).all():
        raise _Found(f"{what} exceeds {limit:g}")


def _replay(backend: Backend, objective: Objective, optimizer: Optimizer, s: TrainState, b: Batch) -> None:
    """Repeat the step, and check every array on the host."""
    ctx, network, loss = Context(backend, True, b.draws), objective.network, objective.loss
    limit = MAX_NORM[backend.dtype_name]
    # checked before the first step, but the user may have changed the arrays since
    _check("the batch's input", backend.host(b.x), remedy=CHANGED)
    if b.weight is not None:
        _check("a sample weight of the batch", backend.host(b.weight), remedy=CHANGED)
    try:
        loss.check(backend.host(b.y), (b.x.shape[0], *network.output_shape))
    except XpnetError as error:
        raise _Found(str(error), CHANGED) from error
    lr = optimizer.rate_at(backend.xp, s.lr, s.age)
    if float(backend.host(lr)) > LARGEST_RATE:
        raise _Found(f"the learning rate exceeds {LARGEST_RATE:g}")
    output: list[np.ndarray] = []

    def watch(what: str, key: str, a: Array) -> None:
        host = backend.host(a)
        if what in ("output", "gradient"):
            _check(f"the {what} of layer {key!r}", host, limit if what == "gradient" else math.inf)
            output[:] = [host]
        elif what == "penalty":
            _check("the penalty on the weights", host)
        else:
            remedy = loss.objection(output[0]) if objective.units is None else None
            _check(f"the {what}, after layer {key!r},", host, remedy=remedy)

    g = objective.gradient(ctx, s.weights, s.stats, b, watch=watch).flat
    slots = tuple(backend.copy(slot) for slot in s.slots)
    variables = network.layout.variables
    weights, _ = optimizer.advance(ctx, backend.copy(s.weights), g, slots, lr, s.age + 1.0, variables)
    weights = network.layout.constrain(ctx, weights)
    for layout, flat in ((network.layout, weights), (network.stats_layout, network.new_stats(ctx, s.stats))):
        for path, values in layout.host_parts(backend, flat).items():
            key, _, name = path.rpartition("/")
            _check(f"the new {name} of layer {key!r}", values)
    for path, values in network.layout.host_parts(backend, s.weights).items():
        key, _, name = path.rpartition("/")
        _check(f"the {name} of layer {key!r}", values, limit)
