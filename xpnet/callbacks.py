"""Callbacks of `fit`: history and early stopping; the progress bar. Names as in Keras."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from .backend import np
from .core.config import Configurable
from .core.settings import flag, optional, setting
from .errors import InvalidTypeError, InvalidValueError, number, one_of, unknown_name

__all__ = ["Callback", "EarlyStopping", "History", "ProgressBar"]

Logs = dict[str, Any]  # floats, or arrays for metrics with array results


class Callback(Configurable):
    """Base class: override the hooks you need; `self.model` and `self.params` are set before training.

    `fit` passes `logs` to every hook: measured values by name, {} if there are none. If `on_train_batch_end` is
    overridden, its logs are read from the device after every execution; on a GPU this waits for the step.
    """

    model = None  # type: Any
    params = {}  # type: dict[str, Any]

    def set_model(self, model: Any) -> None:
        """Set the model."""
        self.model = model

    def set_params(self, params: dict[str, Any]) -> None:
        """Set `epochs`, `steps` (per epoch), `verbose` and `metrics` (the names in the logs)."""
        self.params = params

    def get_state(self) -> dict[str, Any]:
        """Return its state as plain values (numbers, strings, None, lists, dictionaries) and host arrays."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `get_state`; called after `on_train_begin`."""

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Run before the first epoch."""

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Run after the last epoch."""

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Run before each epoch."""

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Run after each epoch and its validation, with the means over the epoch."""

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Run before each execution (of `steps_per_execution` batches)."""

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Run after each execution, with the means over the epoch so far."""


class History(Callback):
    """Record the logs of each epoch as lists: `history["loss"]`, `history["val_loss"]`, ... `fit` returns it.

    Values are floats, or arrays for metrics with array results.

    Attributes:
        history: name -> values, one per epoch. epoch: the epoch numbers.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[Any]] = {}
        self.epoch: list[int] = []

    def set_model(self, model: Any) -> None:
        """Keep no reference: the model keeps its history, and both would wait for the garbage collector."""

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Append the logs."""
        self.epoch.append(epoch)
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(value)

    def get_state(self) -> dict[str, Any]:
        """Return a copy of the history."""
        history = {name: list(values) for name, values in self.history.items()}
        return {"history": history, "epoch": list(self.epoch)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a history, to append to it."""
        self.history = {name: list(values) for name, values in state["history"].items()}
        self.epoch = list(state["epoch"])


class EarlyStopping(Callback):
    """Stop training when a monitored value stops improving, by Keras' rules.

    Args:
        monitor: a name in the logs. min_delta: the smallest change, >= 0, that counts as an improvement.
        patience: consecutive epochs without improvement after which training stops; never in the first epoch.
        verbose: 1 prints a message at the end. mode: `"min"`, `"max"` or `"auto"` (from `Metric.direction`; for a
            loss `"min"`). baseline: a value that must be beaten for the wait to be reset; an epoch that is the
            best so far never stops training. restore_best_weights: whether to restore the weights of the best
            epoch at the end. start_from_epoch: epochs before monitoring begins.

    Attributes:
        best: the best value so far, None before the first. best_epoch, best_weights: its epoch and weights.
        wait: epochs since the last improvement. stopped_epoch: the epoch in which training stopped, else 0.

    Raises:
        UnknownNameError: before the first epoch, if `monitor` will not be in the logs.
        InvalidValueError: before the first epoch, if the metric's result is an array, or if the mode is `"auto"`
            and the metric has no direction.
    """

    monitor: str = setting(default="val_loss")
    min_delta: float = setting(number, 0, default=0.0)
    patience: int = setting(number, 0, integer=True, default=0)
    verbose: int = setting(default=0)
    mode: str = setting(one_of, ("auto", "min", "max"), default="auto")
    baseline: float | None = setting(optional(number), default=None)
    restore_best_weights: bool = setting(flag, default=False)
    start_from_epoch: int = setting(number, 0, integer=True, default=0)

    def __post_init__(self) -> None:
        """Reset the state."""
        self._begin()

    def _begin(self) -> None:
        self.stopped_epoch = self.best_epoch = self.wait = 0
        self.best: float | None = None
        self.best_weights: list[np.ndarray] | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Check `monitor` and the direction; reset the state."""
        names = self.params.get("metrics", [])
        if self.monitor not in names:
            raise unknown_name("monitor of EarlyStopping", self.monitor, names)
        name = self.monitor.removeprefix("val_")
        if name != "loss" and name in self.model.compiled.arrays:
            raise InvalidValueError(f"EarlyStopping compares numbers, not arrays; got monitor {self.monitor!r}")
        self._direction()
        self._begin()

    def _direction(self) -> str:
        """Return "min" or "max"."""
        if self.mode != "auto":
            return self.mode
        found = self.model.compiled.directions.get(self.monitor.removeprefix("val_"))
        if found not in ("min", "max"):
            raise InvalidValueError(
                f"EarlyStopping can't tell whether {self.monitor!r} should increase: pass mode='max' or 'min', or "
                f"give the metric a `direction`, 'max' or 'min'; got mode 'auto' and direction {found!r}"
            )
        return str(found)

    def _better(self, value: float, than: float | None) -> bool:
        if than is None:
            return True
        return value - self.min_delta > than if self._direction() == "max" else value + self.min_delta < than

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Compare with the best value so far."""
        value = (logs or {}).get(self.monitor)
        if epoch < self.start_from_epoch or value is None:
            return
        if self.restore_best_weights and self.best_weights is None:
            self.best_weights, self.best_epoch = self.model.get_weights(), epoch
        self.wait += 1
        if self._better(value, self.best):
            self.best, self.best_epoch = value, epoch
            if self.restore_best_weights:
                self.best_weights = self.model.get_weights()
            if self._better(value, self.baseline):
                self.wait = 0
        elif self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Restore the best weights."""
        if self.stopped_epoch and self.verbose:
            print(f"Epoch {self.stopped_epoch + 1}: early stopping")
        if self.restore_best_weights and self.best_weights is not None:
            if self.verbose:
                print(f"Restoring model weights from the end of the best epoch: {self.best_epoch + 1}.")
            self.model.set_weights(self.best_weights)

    def get_state(self) -> dict[str, Any]:
        """Return what the epochs so far have told."""
        weights = None if self.best_weights is None else [w.copy() for w in self.best_weights]
        numbers = {name: getattr(self, name) for name in ("wait", "stopped_epoch", "best", "best_epoch")}
        return {**numbers, "best_weights": weights}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        weights = state["best_weights"]
        self.wait, self.stopped_epoch = state["wait"], state["stopped_epoch"]
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.best_weights = None if weights is None else [np.array(w) for w in weights]


class ProgressBar:
    """Show the progress of `fit`: a tqdm bar per epoch (verbose 1) or one line per epoch (verbose 2).

    Args:
        verbose: 0, 1, 2 or "auto" (1 in a terminal or notebook, else 2). epochs, steps: the totals.
    """

    interval = 0.25  # seconds between reads of the logs from the device

    def __init__(self, verbose: Any, epochs: int, steps: int) -> None:
        self.verbose, self.epochs, self.steps = resolve_verbose(verbose), epochs, steps
        # bars are written to stderr, lines to stdout
        if self.verbose and not _heard(sys.stderr if self.verbose == 1 else sys.stdout):
            self.verbose = 0
        self.bar: Any = None
        self._next = math.inf

    def begin(self, epoch: int) -> None:
        """Begin an epoch."""
        if self.verbose == 1:
            from tqdm.auto import tqdm

            self.bar = tqdm(total=self.steps, desc=f"Epoch {epoch + 1}/{self.epochs}", unit="step")
            self._next = time.monotonic() + self.interval

    def advance(self, steps: int) -> bool:
        """Add steps; return whether the displayed logs are due for an update."""
        if self.bar is None:
            return False
        self.bar.update(steps)
        return time.monotonic() >= self._next

    def show(self, logs: Logs) -> None:
        """Show the logs beside the bar."""
        if self.bar is not None:
            self.bar.set_postfix_str(_text(logs))
            self._next = time.monotonic() + self.interval

    def end(self, epoch: int, logs: Logs) -> None:
        """End an epoch."""
        self.show(logs)
        self.close()
        if self.verbose == 2:
            print(f"Epoch {epoch + 1}/{self.epochs}: {_text(logs)}", flush=True)

    def close(self) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def resolve_verbose(verbose: Any) -> int:
    """Return 0, 1 or 2.

    Raises:
        UnknownNameError: it is none of 0, 1, 2, "auto".
    """
    if verbose not in (0, 1, 2, "auto"):
        raise unknown_name("verbose", verbose, ("0", "1", "2", "auto"))
    if verbose == "auto":
        return 1 if "ipykernel" in sys.modules or (_heard(sys.stderr) and sys.stderr.isatty()) else 2
    return int(verbose)


def _heard(stream: Any) -> bool:
    """Return whether a stream can be written to; without a console, standard streams are None."""
    return stream is not None and not getattr(stream, "closed", False)


def check_callbacks(callbacks: Any) -> list[Callback]:
    """Return the callbacks as a list.

    Raises:
        InvalidTypeError: one is not a `Callback`.
    """
    found: Sequence[Any] = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
    wrong = [c for c in found if not isinstance(c, Callback)]
    if wrong and callbacks is not None:
        raise InvalidTypeError(f"callbacks must be objects of xpnet.callbacks.Callback; got {wrong[0]!r}")
    return [] if callbacks is None else list(found)


def _text(logs: Logs) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in logs.items() if np.ndim(value) == 0)
