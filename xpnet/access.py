"""Who writes to the state of a model, and who reads it: threads, and what interrupts them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

from .errors import BusyError
from .kernels.finish import make, result_of

__all__ = ["Access", "Commit"]


class Access:
    """One thread at a time trains a model; others may read its state meanwhile, as of the last whole step.

    Attributes:
        lock: held while a step ends, and while the state is copied.
        readers: those who look at the state itself, for which the next step's end waits.
    """

    def __init__(self) -> None:
        self.renew()
        _all.add(self)

    def renew(self) -> None:
        """Let nobody train or read: a forked process has none of its parent's threads."""
        self.lock = threading.RLock()
        self.readers: set[object] = set()
        self._trainer: Trainer | None = None

    @property
    def training(self) -> bool:
        """Whether a call of `fit` or `train_on_batch` is at work."""
        return self._trainer is not None

    @property
    def taken(self) -> bool:
        """Whether another thread trains the model."""
        return self._trainer is not None and self._trainer.thread is not threading.current_thread()

    def refuse(self, what: str, others: bool = False) -> None:
        """Raise if the model is being trained; with `others`, only if another thread trains it.

        Raises:
            BusyError: saying that `what` must wait.
        """
        trainer = self._trainer
        if trainer is not None and not (others and trainer.thread is threading.current_thread()):
            raise BusyError(f"{what} can't be called while the model is trained; got a call in {_here()}")

    @contextmanager
    def train(self, what: str) -> Iterator[None]:
        """Be the one who trains, in a block of code.

        Raises:
            BusyError: somebody else does.
        """
        me = Trainer()
        try:
            with self.lock:
                if self._trainer is not None:
                    raise BusyError(
                        f"{what}: the model is being trained already, by {self._trainer.thread.name!r}; one call "
                        f"of fit or train_on_batch must end before the next begins; got a call in {_here()}"
                    )
                self._trainer = me
            yield
        finally:
            if self._trainer is me:
                self._trainer = None

    @contextmanager
    def read(self, copy: Callable[[], Any], take: Callable[[], Any]) -> Iterator[Any]:
        """Look at the state in a block of code: at a copy while another thread trains, else at itself."""
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
    """A thread that trains."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()


class Commit:
    """Ends steps: the new state takes the place of the former one in one go, or not at all.

    Args:
        access: of the model. holder: what keeps the state, as its attribute `_state`: the model.
    """

    def __init__(self, access: Access, holder: Any) -> None:
        self.access, self.holder = access, holder
        self.store = partial(setattr, holder, "_state")

    def __call__(self, state: Any, finish: Any) -> None:
        """Make the calls that end a step, and store its state."""
        with self.access.lock:
            if not self.access.readers:
                if state is self.holder._state:  # it is written over
                    make(finish)
                else:
                    make(finish, partial(self.store, state))
                return
        self._wait()
        self(state, finish)

    def result(self, function: Callable[..., Any], state: Any, batch: Any) -> None:
        """Store the state that a C function returns; those that it was given may be lost."""
        with self.access.lock:
            if not self.access.readers:
                result_of(self.store, function, state, batch)
                return
        self._wait()
        self.result(function, state, batch)

    def _wait(self) -> None:
        """Wait for those who look at the state."""
        while self.access.readers:
            time.sleep(1e-4)


_all: WeakSet[Access] = WeakSet()


def _after_fork() -> None:
    for access in list(_all):
        access.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _here() -> str:
    return f"thread {threading.current_thread().name!r}"
