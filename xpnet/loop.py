"""The epochs of `fit`, and the batches of `evaluate` and `predict`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from . import kernels
from .backend import Array
from .callbacks import Callback, History, ProgressBar
from .context import Context
from .data import Data
from .errors import NonFiniteError
from .feed import Feed, make_batches, make_feed
from .guard import first_concerned
from .program import Program
from .run import Run, Unfinished
from .settings import changes
from .training import Batch, carried_sums, read_sums, zero_sums

__all__ = ["evaluate", "fit", "make_inference", "predict", "train_on_batch"]


P = ParamSpec("P")
R = TypeVar("R")


def _on_its_device(function: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Return `function(model, ...)` that works on the model's device."""

    @wraps(function)
    def run(model: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        with model.backend.here():
            return function(model, *args, **kwargs)

    return run


@_on_its_device
def fit(
    model: Any,
    data: Data,
    *,
    batch_size: int,
    epochs: int,
    initial_epoch: int,
    shuffle: bool,
    verbose: Any,
    callbacks: Sequence[Callback],
    validation: Data | None,
    validation_batch_size: int,
    validation_freq: int,
    class_weight: Mapping[int, float] | None,
    steps_per_execution: int,
) -> History:
    """Train a compiled, built model on checked data; the arguments are those of `Sequential.fit`.

    Whatever exception strikes, at any time (a callback's, Ctrl-C, one that is sent into the thread), the model's
    state is that of the last whole step.
    """
    program = model.program()
    steps = math.ceil(len(data) / batch_size)
    names = program.names + ([f"val_{n}" for n in program.names] if validation is not None else [])
    run = Run(callbacks, model)
    run.begin({"epochs": epochs, "steps": steps, "verbose": verbose, "metrics": names}, model.unfinished)
    unfinished = model.unfinished  # the model's until an epoch has begun: if that fails, nothing is lost
    progress = ProgressBar(verbose, epochs, steps)
    watched = [c for c in run.callbacks if type(c).on_train_batch_end is not Callback.on_train_batch_end]
    epoch_run = None
    try:
        feed = make_feed(model, program, data, class_weight)
        for epoch in range(initial_epoch, epochs):
            if model.stop_training:
                break
            progress.begin(epoch)
            run.tell("on_epoch_begin", epoch, {})
            epoch_run = _Epoch(model, feed, batch_size, shuffle, epoch, unfinished)
            unfinished, model.unfinished, model.run = None, None, run
            groups = _groups(epoch_run.done, len(data), batch_size, steps_per_execution)
            progress.advance(epoch_run.done)
            for number, (start, stop, count) in enumerate(groups, math.ceil(epoch_run.done / steps_per_execution)):
                run.tell("on_train_batch_begin", number, {})
                epoch_run.execute(start, stop, count)
                if progress.advance(count) or watched:
                    so_far = epoch_run.logs()
                    progress.show(so_far)
                    for callback in watched:
                        callback.on_train_batch_end(number, so_far)
                if model.stop_training:
                    break
            logs = epoch_run.logs()
            model.end_epoch()
            if validation is not None and (epoch + 1) % validation_freq == 0:
                scores = evaluate(model, validation, validation_batch_size)
                logs.update({f"val_{name}": value for name, value in scores.items()})
            progress.end(epoch, logs)
            run.end_epoch(epoch, logs)
    except BaseException:  # a callback's, or Ctrl-C
        if epoch_run is not None:
            epoch_run.settle()
        raise
    finally:
        progress.close()
    model.run, model.unfinished = None, None  # done: a callback that saves the model now saves no run
    run.end()
    return run.history


class _Epoch:
    """One pass over the data.

    Attributes:
        done: steps that were taken before, in a run that was cut off.
    """

    def __init__(
        self,
        model: Any,
        feed: Feed,
        batch_size: int,
        shuffle: bool,
        epoch: int,
        unfinished: Unfinished | None,
    ) -> None:
        self.model, self.feed = model, feed
        self._look()
        self.batch_size, self.rows, self.epoch = batch_size, len(feed.data), epoch
        self.step = model.step
        sums = zero_sums(model.backend, self.program.metrics)
        self.done = 0
        if unfinished is not None and unfinished.fits(self.rows, batch_size, sums.shape[-1]):
            self.done, sums = unfinished.steps, carried_sums(model.backend, unfinished.sums)
        self.rate: float | None = None
        self.commit = model.commit
        model.end_epoch(0)  # sums belong to no epoch until the new ones are there
        model.replace_state(sums=sums)
        model.begin_epoch(self.step - self.done, self.rows, batch_size)
        feed.begin(model.stream.permutation(self.rows, model.epoch) if shuffle else None, self.step)

    def execute(self, start: int, stop: int, count: int) -> None:
        """Take a step for each of some batches of one size."""
        if changes.count != self._seen:  # callbacks may change settings at any time
            self._look()
        model, rate = self.model, self.program.optimizer.learning_rate
        if rate != self.rate:
            model.replace_state(lr=model.backend.scalar(rate))
            self.rate = rate
        batches = self.feed.batches(start, stop, count)
        self.feed.run(model.state, batches, self.commit)
        self.feed.step += count

    def _look(self) -> None:
        """Take up settings that have changed."""
        self._seen = changes.count
        program = self.model.program()
        if program is not self.feed.program:
            self.feed.follow(program)

    @property
    def program(self) -> Program:
        """The program that takes the steps."""
        return self.feed.program

    def settle(self) -> None:
        """Take the guard's flag back, if it has held a step back."""
        if not bool(self.model.backend.host(self.model.state.ok)):
            self.model.rewind()

    def logs(self) -> dict[str, Any]:
        """Return the loss and the metrics of the epoch so far.

        Raises:
            NonFiniteError: the guard has held a step back.
        """
        backend, state = self.model.backend, self.model.state
        if not bool(backend.host(state.ok)):
            self._stop()
        return read_sums(backend, state.sums, self.program.names, self.program.metrics)

    def _stop(self) -> None:
        model, program = self.model, self.program
        model.rewind()
        done = model.step - self.step + self.done
        self.feed.step = model.step
        start = done * self.batch_size
        batch = self.feed.on_host(start, min(start + self.batch_size, self.rows))[0]
        raise non_finite(model, program, batch, f"epoch {self.epoch + 1}, step {done + 1} of the epoch")


def non_finite(model: Any, program: Any, batch: Batch, where: str) -> NonFiniteError:
    """Return the error for a step that the guard held back, by replaying it."""
    culprit = first_concerned(model.backend, model.network, program.loss, program.optimizer, model.state, batch)
    return NonFiniteError(
        f"training stopped in {where}: {culprit}. Weights, optimizer and statistics are as they "
        f"were before that step; got learning rate {program.optimizer.learning_rate:g}"
    )


def _groups(done: int, rows: int, batch_size: int, per_execution: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, stop, batches) of the rows that run at once: the last, smaller batch comes alone.

    Args:
        done: the batches that are left out.
    """
    whole = rows - rows % batch_size
    for start in range(done * batch_size, whole, batch_size * per_execution):
        stop = min(start + batch_size * per_execution, whole)
        yield start, stop, (stop - start) // batch_size
    if whole < rows and done * batch_size < rows:
        yield whole, rows, 1


@_on_its_device
def evaluate(model: Any, data: Data, batch_size: int) -> dict[str, Any]:
    """Return loss and metrics by name."""
    program, backend = model.program(), model.backend
    sums = zero_sums(backend, program.metrics)
    with model.reading() as (weights, stats):
        for start in range(0, len(data), batch_size):
            rows = slice(start, min(start + batch_size, len(data)))
            with kernels.surroundings(backend):
                x, y, weight = data.batch(rows, backend, program.target_shape, program.target_dtype)
                sums = program.evaluation(sums, weights, stats, Batch(x, y, weight, {}))
    return read_sums(backend, sums, program.names, program.metrics)


@_on_its_device
def predict(model: Any, data: Data, batch_size: int) -> Array:
    """Return the outputs for all rows in the library of the inputs, on their device."""
    backend, forward = model.backend, model.inference()
    home, parts = data.x.home, []
    with model.reading() as (weights, stats):
        for start in range(0, len(data), batch_size):
            rows = slice(start, min(start + batch_size, len(data)))
            with kernels.surroundings(backend):
                y = forward(weights, stats, data.batch(rows, backend)[0])
            parts.append(y if home.name == backend.name else home.array(backend.host(y)))
    return parts[0] if len(parts) == 1 else home.xp.concat(parts, axis=0)


def make_inference(model: Any) -> Any:
    """Return the compiled `forward(weights, stats, x) -> y`."""
    backend, network = model.backend, model.network

    def forward(weights: Array, stats: Array, x: Array) -> Array:
        return network.forward(Context(backend), weights, stats, x)[0]

    return backend.jit(forward)


@_on_its_device
def train_on_batch(model: Any, program: Any, data: Data, class_weight: Any) -> dict[str, Any]:
    """Take one step on all the rows; return loss and metrics by name."""
    backend = model.backend
    rows, step = slice(0, len(data)), model.step
    batches = make_batches(model, program, data, rows, step, 1, class_weight, program.host_masks)
    state = model.state._replace(
        lr=backend.scalar(program.optimizer.learning_rate), sums=zero_sums(backend, program.metrics)
    )
    model.run = None
    model.end_epoch(0)
    program.run(state, batches, model.commit)
    if not bool(backend.host(model.state.ok)):
        model.rewind()
        batch = make_batches(model, program, data, rows, step, 1, class_weight)[0]
        raise non_finite(model, program, batch, f"step {model.step + 1}")
    model.unfinished = None  # an epoch that was cut off can't go on behind this step
    return read_sums(backend, model.state.sums, program.names, program.metrics)
