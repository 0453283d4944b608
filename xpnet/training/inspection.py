"""What a teacher plots: gradients by path, the outputs of inner layers, outputs as in training."""

from __future__ import annotations

from typing import Any

from .. import kernels
from ..backend import Array
from ..core.random import Stream, fresh_seed
from ..kernels.context import Context
from .data import Data
from .objective import Batch, Objective
from .session import Session

__all__ = ["gradients", "training_outputs"]


def gradients(session: Session, data: Data) -> dict[str, Array]:
    """Return the derivative of the objective by each trainable weight, by path, in the library of the inputs.

    Layers compute as in inference: no dropout, running statistics.
    """
    program, backend, network = session.program(), session.backend, session.network
    objective = Objective(network, program.loss)
    with backend.here(), session.reading() as (weights, stats), kernels.inference_context(backend):
        x, y, weight = data.batch(slice(0, len(data)), backend, program.target_shape, program.target_dtype)
        found = objective.gradient(Context(backend), weights, stats, Batch(x, y, weight, {}))
        parts = network.layout.views(backend.xp, found.flat)
        return {path: _home(session, data, backend.copy(part)) for path, part in parts.items()}


def training_outputs(session: Session, data: Data) -> Array:
    """Return the outputs for all rows as in training: fresh masks, statistics of this batch. No state changes."""
    backend, network = session.backend, session.network
    with backend.here(), session.reading() as (weights, stats), kernels.inference_context(backend):
        masks = network.masks(Stream(fresh_seed()), 0, len(data))
        ctx = Context(backend, True, {key: backend.array(mask) for key, mask in masks.items()})
        x = data.batch(slice(0, len(data)), backend)[0]
        return _home(session, data, backend.copy(network.forward(ctx, weights, stats, x)[0]))


def _home(session: Session, data: Data, a: Any) -> Array:
    """Return an array of the session's backend in the library of the data."""
    home, backend = data.x.home, session.backend
    return a if home.name == backend.name else home.array(backend.host(a))
