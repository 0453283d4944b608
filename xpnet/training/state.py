"""The training state on the host: what is copied, saved and moved between backends."""

from __future__ import annotations

from typing import NamedTuple

from ..backend import Array, Backend, np
from .step import TrainState, carried_sums, first_scale, host_sums, zero_sums

__all__ = ["HostState", "Progress"]


class Progress(NamedTuple):
    """Epochs completed; during an epoch also the number of its first step, its rows and batch size."""

    epoch: int = 0
    first_step: int | None = None
    rows: int = 0
    batch_size: int = 0


class HostState(NamedTuple):
    """A `TrainState` on the host, with its progress."""

    weights: np.ndarray | None = None
    stats: np.ndarray | None = None
    slots: tuple[np.ndarray, ...] = ()
    step: int = 0
    age: float = 0.0
    scale: tuple[float, ...] = ()
    sums: np.ndarray | None = None
    progress: Progress = Progress()

    @classmethod
    def copied(cls, state: TrainState, backend: Backend, progress: Progress) -> HostState:
        """Return a host copy of a state."""

        def copy(a: Array) -> np.ndarray:
            return np.array(backend.host(a))

        return cls(
            copy(state.weights),
            copy(state.stats),
            tuple(map(copy, state.slots)),
            backend.counted(state.step),
            float(backend.host(state.age)),
            tuple(float(backend.host(a)) for a in state.scale),
            host_sums(backend, state.sums),
            progress,
        )

    def on(self, backend: Backend) -> TrainState:
        """Return the state before the next step on a backend."""
        dtype = backend.dtype_name
        return TrainState(
            step=backend.count(self.step),
            lr=backend.scalar(0.0),
            ok=backend.scalar(True, backend.xp.bool),
            weights=backend.array(self.weights, dtype),
            slots=tuple(backend.array(s, dtype) for s in self.slots),
            stats=backend.array(self.stats, dtype),
            age=backend.scalar(self.age),
            sums=zero_sums(backend, ()) if self.sums is None else carried_sums(backend, self.sums),
            scale=first_scale(backend, *self.scale),
        )
