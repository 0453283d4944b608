"""What happens around the steps of `fit`: history, early stopping, progress. Names as in Keras."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from .backend import np
from .errors import InvalidTypeError, number, unknown_name

__all__ = ["Callback", "EarlyStopping", "History", "ProgressBar"]

Logs = dict[str, float]


class Callback:
    """Base class: override what you need; `self.model` and `self.params` are set before training.

    `on_train_batch_end` gets logs that must be read from the device after every execution: on a GPU,
    override it only where that is worth the wait.
    """

    model: Any = None
    params: dict[str, Any] = {}

    def set_model(self, model: Any) -> None:
        """Take in the model."""
        self.model = model

    def set_params(self, params: dict[str, Any]) -> None:
        """Take in `epochs`, `steps` (an epoch), `verbose` and `metrics` (the names in the logs)."""
        self.params = params

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Before the first epoch."""

    def on_train_end(self, logs: Logs | None = None) -> None:
        """After the last epoch."""

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Before each epoch."""

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """After each epoch and its validation, with the means over the epoch."""

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Before each execution (of `steps_per_execution` batches)."""

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """After each execution, with the means over the epoch so far."""


class History(Callback):
    """Lists of floats, one an epoch: `history["loss"]`, `history["val_loss"]`, ... `fit` returns it.

    Attributes:
        history: name -> values. epoch: the epochs' numbers.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}
        self.epoch: list[int] = []

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Append."""
        self.epoch.append(epoch)
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(value)


class EarlyStopping(Callback):
    """Stop when a monitored value has not become better for some epochs.

    Args:
        monitor: a name in the logs. min_delta: what counts as better, >= 0. patience: epochs without anything
            better before it stops. verbose: 1 prints when it stops. mode: `"min"`, `"max"` or `"auto"` (max for
            accuracies). baseline: a value that must be beaten. restore_best_weights: whether the model
            ends with its best epoch's weights. start_from_epoch: epochs before monitoring begins.

    Raises:
        UnknownNameError: before the first epoch, if `monitor` will not be in the logs.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 0,
        verbose: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        if mode not in ("auto", "min", "max"):
            raise unknown_name("mode", mode, ("auto", "min", "max"))
        self.monitor, self.verbose, self.baseline = monitor, verbose, baseline
        self.min_delta = number("min_delta", min_delta, 0)
        self.patience = number("patience", patience, 0, integer=True)
        self.start_from_epoch = number("start_from_epoch", start_from_epoch, 0, integer=True)
        self.restore_best_weights = restore_best_weights
        self.sign = -1.0 if mode == "max" or (mode == "auto" and "acc" in monitor) else 1.0
        self.stopped_epoch = self.best_epoch = self.wait = 0
        self.best = math.inf
        self.best_weights: list[np.ndarray] | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Start anew."""
        names = self.params.get("metrics", [])
        if self.monitor not in names:
            raise unknown_name("monitor of EarlyStopping", self.monitor, names)
        self.wait = self.stopped_epoch = self.best_epoch = 0
        self.best = math.inf
        self.best_weights = None

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Compare with the best so far."""
        value = (logs or {}).get(self.monitor)
        if epoch < self.start_from_epoch or value is None:
            return
        if self.restore_best_weights and self.best_weights is None:
            self.best_weights, self.best_epoch = self.model.get_weights(), epoch
        if self.sign * value < self.best - self.min_delta:
            self.best, self.best_epoch = self.sign * value, epoch
            if self.restore_best_weights:
                self.best_weights = self.model.get_weights()
            if self.baseline is None or self.sign * value < self.sign * self.baseline - self.min_delta:
                self.wait = 0
                return
        self.wait += 1
        if self.wait >= max(1, self.patience):
            self.stopped_epoch = epoch
            self.model.stop_training = True
            if self.verbose:
                print(f"Epoch {epoch + 1}: early stopping, best epoch {self.best_epoch + 1}")

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Bring the best weights back."""
        if self.restore_best_weights and self.best_weights is not None:
            self.model.set_weights(self.best_weights)


class ProgressBar:
    """What `fit` shows: a tqdm bar for each epoch (verbose 1), or one line an epoch (verbose 2).

    Args:
        verbose: 0, 1, 2 or "auto" (1 in a terminal or notebook, else 2). epochs, steps: the totals.
    """

    interval = 0.25  # seconds between two looks at the device

    def __init__(self, verbose: Any, epochs: int, steps: int) -> None:
        self.verbose, self.epochs, self.steps = resolve_verbose(verbose), epochs, steps
        # a bar is written to stderr, lines to stdout
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
        """Count steps; return whether it is time to show new numbers."""
        if self.bar is None:
            return False
        self.bar.update(steps)
        return time.monotonic() >= self._next

    def show(self, logs: Logs) -> None:
        """Show numbers beside the bar."""
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
        """Leave the bar as it stands."""
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
    """Return whether there is somebody to write to: a program without a console has None there."""
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
    return ", ".join(f"{name} {value:.4g}" for name, value in logs.items())
