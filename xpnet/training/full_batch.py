"""Training by an optimizer that evaluates loss and gradient as often as it needs: on all rows, once an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backend import Array, Backend, np
from ..core.ops import MAX_NORM
from ..kernels.context import Context
from ..losses import Loss
from ..metrics import Metric
from ..optimizers.lbfgs import Point
from .network import Network
from .objective import Objective
from .step import Batch, TrainState, sums_of

__all__ = ["FullBatch"]


class FullBatch:
    """`run(state, batches, commit)` takes one iteration per batch; see `Backend.compile`.

    The number of evaluations depends on their values, so the host reads them and nothing is recorded. Each
    evaluation is compiled where the library can. Loss, metrics and the guard are those of `training.step`.

    Args:
        backend, network, loss, metrics: as for `make_step`. optimizer: has `tol` and `iterate`, as `LBFGS` has.
    """

    def __init__(
        self, backend: Backend, network: Network, loss: Loss, optimizer: Any, metrics: Sequence[Metric]
    ) -> None:
        self.backend, self.optimizer = backend, optimizer
        objective, limit = Objective(network, loss), MAX_NORM[backend.dtype_name]

        def evaluate(weights: Array, state: TrainState, b: Batch) -> tuple[Any, ...]:
            ctx = Context(backend, True, b.draws)
            value, g, _, prediction = objective.gradient(ctx, weights, state.stats, b)
            stats = network.new_stats(ctx, state.stats)
            ok = ctx.ops.within_limits(ctx, state.ok, state.lr, limit, (g, weights), value, stats)
            parts = sums_of(ctx, value, b, prediction, metrics)
            counts = ctx.ops.tally(ctx, ok, ok, state.step, state.age, state.sums, parts)
            return value, g, stats, ok, counts

        self.evaluate = backend.jit(evaluate)

    def __call__(self, state: TrainState, batches: Sequence[Batch], commit: Any) -> None:
        """Take one iteration per batch and commit each state."""
        with self.backend.here(), np.errstate(all="ignore"):  # the guard finds what is not finite
            for batch in batches:
                state = self._iteration(state, batch)
                commit(state, [])

    def _iteration(self, state: TrainState, batch: Batch) -> TrainState:
        xp = self.backend.xp

        def function(weights: Array) -> Point:
            value, g, *others = self.evaluate(weights, state, batch)
            return Point(weights, float(value) if bool(others[1]) else np.inf, g, others)

        point = function(state.weights)
        _, ok, (step, age, sums) = point.extra
        if not ok:
            return state._replace(ok=ok)
        new, slots = None, state.slots
        if float(xp.max(xp.abs(point.g))) > self.optimizer.tol:
            new, slots = self.optimizer.iterate(xp, function, point, slots)
        found = point if new is None else new
        return state._replace(
            step=step, age=age, sums=sums, weights=found.w, stats=found.extra[0], slots=tuple(slots)
        )
