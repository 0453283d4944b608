"""Safe access to a model's state: one training thread, any number of readers, and exceptions at any time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

from ..errors import BusyError
from ..kernels.finish import make, result_of

__all__ = ["Access", "Commit"]


class Access:
    """Let one thread at a time train a model, while others read its state as of the last complete step.

    Attributes:
        lock: held while a step ends and while the state is copied.
        readers: tokens of the blocks that read the state in place; the next step waits for them before it ends.
    """

    def __init__(self) -> None:
        self.reset()
        _all.add(self)

    def reset(self) -> None:
        """Drop the trainer and all readers: a forked process has none of its parent's threads."""
        self.lock = threading.RLock()
        self.readers: set[object] = set()
        self._trainer: Trainer | None = None

    @property
    def training(self) -> bool:
        """Whether a call of `fit` or `train_on_batch` is running."""
        return self._trainer is not None

    @property
    def trained_elsewhere(self) -> bool:
        """Whether another thread is training the model."""
        return self._trainer is not None and self._trainer.thread is not threading.current_thread()

    def refuse(self, what: str, others: bool = False) -> None:
        """Raise if the model is being trained; with `others`, only if another thread trains it.

        Raises:
            BusyError: the model is being trained; the message names `what`.
        """
        trainer = self._trainer
        if trainer is not None and not (others and trainer.thread is threading.current_thread()):
            raise BusyError(f"{what} can't be called while the model is being trained; got a call in {_here()}")

    @contextmanager
    def train(self, what: str) -> Iterator[None]:
        """Reserve the model for training in a `with` block.

        Raises:
            BusyError: a training call is already running.
        """
        me = Trainer()
        try:
            with self.lock:
                if self._trainer is not None:
                    raise BusyError(
                        f"{what}: the model is already being trained in thread {self._trainer.thread.name!r}; "
                        f"that call of fit or train_on_batch must end first; got a call in {_here()}"
                    )
                self._trainer = me
            yield
        finally:
            if self._trainer is me:
                self._trainer = None

    @contextmanager
    def read(self, copy: Callable[[], Any], take: Callable[[], Any]) -> Iterator[Any]:
        """Read the state in a `with` block: a copy while another thread trains, else the state itself."""
        me = object()
        try:
            with self.lock:
                trainer = self._trainer
                if trainer is None or trainer.thread is threading.current_thread():
                    self.readers.add(me)
                    found = take()
                else:
                    found = copy()
            yield found
        finally:
            self.readers.discard(me)


class Trainer:
    """The thread that is training."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()


class Commit:
    """End steps atomically: the new state replaces the old one completely or not at all.

    Args:
        access: the model's `Access`. holder: the object that keeps the state in its attribute `_state`.
    """

    def __init__(self, access: Access, holder: Any) -> None:
        self.access, self.holder = access, holder
        self.store = partial(setattr, holder, "_state")

    def __call__(self, state: Any, finish: Any) -> None:
        """Run the calls that end a step, and store its state."""
        with self.access.lock:
            if not self.access.readers:
                if state is self.holder._state:  # updated in place
                    make(finish)
                else:
                    make(finish, partial(self.store, state))
                return
        self._wait()
        self(state, finish)

    def result(self, function: Callable[..., Any], state: Any, batch: Any) -> None:
        """Store the state that a C function returns; the function may donate the arrays it was given."""
        with self.access.lock:
            if not self.access.readers:
                result_of(self.store, function, state, batch)
                return
        self._wait()
        self.result(function, state, batch)

    def _wait(self) -> None:
        """Wait until nobody reads the state in place."""
        while self.access.readers:
            time.sleep(1e-4)


_all: WeakSet[Access] = WeakSet()


def _after_fork() -> None:
    for access in list(_all):
        access.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _here() -> str:
    return f"thread {threading.current_thread().name!r}"
