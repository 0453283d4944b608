"""The epochs of `fit`, and the batches of `evaluate` and `predict`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from .. import kernels
from ..backend import Array
from ..callbacks import Callback, History, ProgressBar
from ..core.settings import changes
from ..errors import NonFiniteError
from .data import Data
from .feed import Feed, make_batches, make_feed
from .guard import diagnose
from .job import Job
from .program import Program
from .run import Run, Unfinished
from .session import Session
from .step import Batch, carried_sums, read_sums, zero_sums

__all__ = ["evaluate", "fit", "predict", "train_on_batch"]


P = ParamSpec("P")
R = TypeVar("R")


def _on_its_device(function: Callable[Concatenate[Session, P], R]) -> Callable[Concatenate[Session, P], R]:
    """Return `function(session, ...)` run with the session's device as the current one."""

    @wraps(function)
    def run(session: Session, *args: P.args, **kwargs: P.kwargs) -> R:
        with session.backend.here():
            return function(session, *args, **kwargs)

    return run


@_on_its_device
def fit(session: Session, job: Job, model: Any) -> History:
    """Train a compiled, built model on data that it has admitted.

    Whatever exception is raised, at any time (by a callback, by Ctrl-C, asynchronously in the thread), the state
    is that of the last complete step.

    Args:
        model: passed to callbacks; its `stop_training` ends the job.
    """
    program, run = session.program(), Run(job.callbacks, model)
    model.history = run.history
    run.begin(_params(job, program.names), session.unfinished)
    unfinished = session.unfinished  # kept on the session until an epoch has begun, in case that fails
    progress = ProgressBar(job.verbose, job.epochs, _steps(job))
    epoch = None
    try:
        feed = make_feed(session, program, job.data, job.class_weight)
        for number in range(job.initial_epoch, job.epochs):
            if model.stop_training:
                break
            progress.begin(number)
            run.tell("on_epoch_begin", number, {})
            epoch = _Epoch(session, feed, job, number, unfinished)
            unfinished, session.unfinished, session.run = None, None, run
            epoch.train(run, progress)
            logs = epoch.logs()
            session.end_epoch()
            if job.validation is not None and (number + 1) % job.validation_freq == 0:
                scores = evaluate(session, job.validation, job.validation_batch_size)
                logs.update({f"val_{name}": value for name, value in scores.items()})
            progress.end(number, logs)
            run.end_epoch(number, logs)
    except BaseException:  # a callback's, or Ctrl-C
        if epoch is not None:
            session.all_accepted()
        raise
    finally:
        progress.close()
    session.run, session.unfinished = None, None  # finished: a model saved by `on_train_end` contains no run
    run.end()
    return run.history


def _steps(job: Job) -> int:
    """Return the number of steps in an epoch."""
    return math.ceil(len(job.data) / job.batch_size)


def _params(job: Job, names: Sequence[str]) -> dict[str, Any]:
    """Return the `params` of the callbacks."""
    validation = [] if job.validation is None else [f"val_{name}" for name in names]
    return {"epochs": job.epochs, "steps": _steps(job), "verbose": job.verbose, "metrics": [*names, *validation]}


class _Epoch:
    """One pass over the data.

    Attributes:
        done: steps already taken by an interrupted run.
    """

    def __init__(self, session: Session, feed: Feed, job: Job, number: int, unfinished: Unfinished | None) -> None:
        self.session, self.feed, self.job, self.number = session, feed, job, number
        self._apply_settings()
        rows, size = len(job.data), job.batch_size
        self.step = session.step
        sums = zero_sums(session.backend, self.program.metrics)
        self.done = 0
        if unfinished is not None and unfinished.fits(rows, size, sums.shape[-1]):
            self.done, sums = unfinished.steps, carried_sums(session.backend, unfinished.sums)
        self.rate: float | None = None
        self.commit = session.commit
        session.end_epoch(0)  # until the new sums are stored, they belong to no epoch
        session.replace_state(sums=sums)
        session.begin_epoch(self.step - self.done, rows, size)
        feed.begin(session.stream.permutation(rows, session.progress.epoch) if job.shuffle else None, self.step)

    def train(self, run: Run, progress: ProgressBar) -> None:
        """Take the remaining steps, or stop early if a callback says so."""
        size, together = self.job.batch_size, self.job.steps_per_execution
        watched = [c for c in run.callbacks if type(c).on_train_batch_end is not Callback.on_train_batch_end]
        progress.advance(self.done)
        groups = _groups(self.done, len(self.job.data), size, together)
        for batch, (start, stop, count) in enumerate(groups, math.ceil(self.done / together)):
            run.tell("on_train_batch_begin", batch, {})
            self.execute(start, stop, count)
            if progress.advance(count) or watched:
                so_far = self.logs()
                progress.show(so_far)
                for callback in watched:
                    callback.on_train_batch_end(batch, so_far)
            if run.model.stop_training:
                break

    def execute(self, start: int, stop: int, count: int) -> None:
        """Take one step for each of `count` batches of equal size."""
        if changes.count != self._seen:  # callbacks may change settings at any time
            self._apply_settings()
        session, rate = self.session, self.program.optimizer.fixed_rate
        if rate != self.rate:
            session.replace_state(lr=session.backend.scalar(rate))
            self.rate = rate
        batches = self.feed.batches(start, stop, count)
        self.feed.run(session.state, batches, self.commit)
        self.feed.step += count

    def _apply_settings(self) -> None:
        """Apply settings that have changed."""
        self._seen = changes.count
        program = self.session.program()
        if program is not self.feed.program:
            self.feed.follow(program)

    @property
    def program(self) -> Program:
        """The program that takes the steps."""
        return self.feed.program

    def logs(self) -> dict[str, Any]:
        """Return the loss and the metrics of the epoch so far.

        Raises:
            NonFiniteError: the guard has rejected a step.
        """
        session = self.session
        if not session.all_accepted():
            self._stop()
        return read_sums(session.backend, session.state.sums, self.program.names, self.program.metrics)

    def _stop(self) -> None:
        session, size = self.session, self.job.batch_size
        done = session.step - self.step + self.done
        self.feed.step = session.step
        start = done * size
        batch = self.feed.on_host(start, min(start + size, len(self.job.data)))[0]
        raise non_finite(session, self.program, batch, f"epoch {self.number + 1}, step {done + 1} of the epoch")


def non_finite(session: Session, program: Program, batch: Batch, where: str) -> NonFiniteError:
    """Return the error for a step that the guard rejected, after replaying it to find the cause."""
    culprit = diagnose(session.backend, session.network, program.loss, program.optimizer, session.state, batch)
    return NonFiniteError(
        f"training stopped in {where}: {culprit}. Weights, optimizer and statistics are as they "
        f"were before that step; got learning rate {_text(program.optimizer.learning_rate)}"
    )


def _text(rate: Any) -> str:
    return f"{rate:g}" if isinstance(rate, float) else repr(rate)


def _groups(done: int, rows: int, batch_size: int, per_execution: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, stop, batches) for the rows of each execution; a smaller last batch comes alone.

    Args:
        done: number of batches to skip.
    """
    full = rows - rows % batch_size
    for start in range(done * batch_size, full, batch_size * per_execution):
        stop = min(start + batch_size * per_execution, full)
        yield start, stop, (stop - start) // batch_size
    if full < rows and done * batch_size < rows:
        yield full, rows, 1


@_on_its_device
def evaluate(session: Session, data: Data, batch_size: int) -> dict[str, Any]:
    """Return loss and metrics by name."""
    program, backend = session.program(), session.backend
    sums = zero_sums(backend, program.metrics)
    with session.reading() as (weights, stats):
        for start in range(0, len(data), batch_size):
            rows = slice(start, min(start + batch_size, len(data)))
            with kernels.inference_context(backend):
                x, y, weight = data.batch(rows, backend, program.target_shape, program.target_dtype)
                sums = program.evaluation(sums, weights, stats, Batch(x, y, weight, {}))
    return read_sums(backend, sums, program.names, program.metrics)


@_on_its_device
def predict(session: Session, data: Data, batch_size: int, upto: int | None = None) -> Array:
    """Return the outputs for all rows in the library of the inputs, on their device.

    Args:
        upto: the position of the last layer to apply, or None for all.
    """
    backend, forward = session.backend, session.inference(upto)
    home, parts = data.x.home, []
    with session.reading() as (weights, stats):
        for start in range(0, len(data), batch_size):
            rows = slice(start, min(start + batch_size, len(data)))
            with kernels.inference_context(backend):
                y = forward(weights, stats, data.batch(rows, backend)[0])
            parts.append(y if home.name == backend.name else home.array(backend.host(y)))
    return parts[0] if len(parts) == 1 else home.xp.concat(parts, axis=0)


@_on_its_device
def train_on_batch(session: Session, data: Data, class_weight: Mapping[int, float] | None) -> dict[str, Any]:
    """Take one step on all the rows; return loss and metrics by name."""
    backend, program = session.backend, session.program()
    rows, step = slice(0, len(data)), session.step
    batches = make_batches(session, program, data, rows, step, 1, class_weight, program.host_masks)
    state = session.state._replace(
        lr=backend.scalar(program.optimizer.fixed_rate), sums=zero_sums(backend, program.metrics)
    )
    session.run = None
    session.end_epoch(0)
    program.run(state, batches, session.commit)
    if not session.all_accepted():
        batch = make_batches(session, program, data, rows, step, 1, class_weight)[0]
        raise non_finite(session, program, batch, f"step {session.step + 1}")
    session.unfinished = None  # an interrupted epoch can't be resumed after this step
    return read_sums(backend, session.state.sums, program.names, program.metrics)
