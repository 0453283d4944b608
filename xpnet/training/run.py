"""One call of `fit`: its callbacks, and the data that a file needs to resume it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..backend import np
from ..callbacks import Callback, History

__all__ = ["Run", "Unfinished"]


class Unfinished(NamedTuple):
    """The position of a `fit` run when its model was saved, for the run that resumes it.

    Attributes:
        steps: steps taken in the current epoch. rows, batch_size: of the data. sums: see `training.host_sums`.
        callbacks: (class name, state) of each. told: (epoch, logs, number of callbacks already called) if the
            model was saved during `on_epoch_end`, else None.
    """

    steps: int = 0
    rows: int = 0
    batch_size: int = 0
    sums: Any = None
    callbacks: Sequence[tuple[str, dict[str, Any]]] = ()
    told: tuple[int, dict[str, Any], int] | None = None

    def fits(self, rows: int, batch_size: int, sums: int) -> bool:
        """Return whether a run with this data and so many sums can resume in the middle of the epoch."""
        known = self.rows == rows and self.batch_size == batch_size and np.shape(self.sums) == (sums,)
        return self.steps > 0 and known


class Run:
    """The callbacks of one call of `fit`.

    Args:
        callbacks: the user's. model: the model that they observe.

    Attributes:
        history: the first `History` among the callbacks, or a new one that runs after them.
    """

    def __init__(self, callbacks: Sequence[Callback], model: Any) -> None:
        self.history = next((c for c in callbacks if isinstance(c, History)), None) or History()
        self.callbacks = [*callbacks, *([] if self.history in callbacks else [self.history])]
        self.model = model
        self.told: tuple[int, dict[str, Any], int] | None = None
        self._logs: dict[str, Any] = {}

    def begin(self, params: dict[str, Any], unfinished: Unfinished | None) -> None:
        """Begin training; callbacks restore the state of those of the same class in an unfinished run."""
        for callback in self.callbacks:
            callback.set_model(self.model)
            callback.set_params(params)
        self.model.stop_training = False
        self.tell("on_train_begin", {})
        if unfinished is None:
            return
        places = _places(type(c).__name__ for c in self.callbacks)
        known = dict(zip(_places(name for name, _ in unfinished.callbacks), unfinished.callbacks))
        for place, callback in zip(places, self.callbacks):
            if place in known:
                callback.set_state(known[place][1])
        if unfinished.told is not None:  # call the hook on those that the saved run had not reached
            epoch, logs, count = unfinished.told
            heard = set(list(known)[:count])
            for place, callback in zip(places, self.callbacks):
                if place in known and place not in heard:
                    callback.on_epoch_end(epoch, logs)

    def tell(self, hook: str, *args: Any) -> None:
        """Call a hook of each callback."""
        for callback in self.callbacks:
            getattr(callback, hook)(*args)

    def end_epoch(self, epoch: int, logs: dict[str, Any]) -> None:
        """Call `on_epoch_end`; keep count of the callbacks reached, in case one of them saves the model."""
        self._logs = logs
        for count, callback in enumerate(self.callbacks, 1):
            self.told = (epoch, dict(logs), count)
            callback.on_epoch_end(epoch, logs)
        self.told = None

    def end(self) -> None:
        """Call `on_train_end` with the logs of the last epoch."""
        self.tell("on_train_end", self._logs)


def _places(names: Any) -> list[tuple[str, int]]:
    """Return (name, number of earlier occurrences) for each name."""
    seen: Counter[str] = Counter()
    places = []
    for name in names:
        places.append((name, seen[name]))
        seen[name] += 1
    return places
