"""Whatever is raised in a training thread, at any time, the model keeps the state after a completed step."""

import ctypes
import os
import random
import signal
import sys
import threading
import time
from collections import deque

import numpy as np
import pytest

import xpnet as xn
from xpnet.backend import get_backend
from xpnet.callbacks import Callback
from xpnet.layers import BatchNormalization, Dense, Dropout
from xpnet.optimizers import SGD

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((40, 3)), RNG.standard_normal((40, 1))
SLOW = os.environ.get("XPNET_BACKEND") == "array_api_strict"  # which takes the path of NumPy's bodies
TRIES = int(os.environ.get("XPNET_TRIES", "12" if SLOW else "25"))  # of each kind


class Thrown(BaseException):
    """The exception raised in the thread."""


def make(optimizer="adam", **kwargs):
    model = xn.Sequential(
        [Dense(8, activation="relu"), BatchNormalization(), Dropout(0.2), Dense(1)], seed=3, **kwargs
    )
    model.compile(optimizer, "mse", ["mae"])
    model.build((3,))
    return model


class Known:
    """The states after each step of an undisturbed run."""

    def __init__(self, optimizer):
        self.states, model = {}, make(optimizer)
        known = self

        class Note(Callback):
            def on_train_batch_begin(self, batch, logs=None):
                known.states[self.model.step] = known.of(self.model)

        model.fit(X, Y, batch_size=4, epochs=40, verbose=0, callbacks=[Note()])
        self.states[model.step] = self.of(model)

    @staticmethod
    def of(model):
        host = model.session.snapshot()
        return [host.weights, host.stats, *host.slots, np.asarray(host.age)]

    def check(self, model, exact):
        """Assert that the model has a state of this run, with its counters."""
        found, step = self.of(model), model.step
        wanted = self.states[step]
        for name, a, b in zip(("weights", "stats", "slot 0", "slot 1", "age"), found, wanted):
            np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-4, err_msg=f"{name} at step {step}")
        host = model.session.snapshot()
        if host.progress.first_step is not None and host.sums.any():  # those of the epoch in progress
            assert host.sums[1] == 4 * (step - host.progress.first_step)


@pytest.fixture(scope="module", params=["adam", SGD(0.01, momentum=0.9, nesterov=True)], ids=["adam", "sgd"])
def known(request):
    return request.param, Known(request.param)


def wait_a_moment(rng, longest):
    """Wait for a random time, as short as a step or as long as many."""
    end = time.perf_counter() + longest * rng.random() ** 3
    while time.perf_counter() < end:
        time.sleep(0)


def attack(known, kind, rng, per_execution):
    """Train until an exception is raised; return whether `fit` was running then."""
    optimizer, states = known
    model, thrown = make(optimizer), False
    model.fit(X, Y, batch_size=4, epochs=1, verbose=0)  # compiled, recorded
    throw, times = kind()
    go, quiet = threading.Event(), threading.Event()

    def work():
        go.wait()
        for _ in range(times):
            wait_a_moment(rng, 0.02)
            if not quiet.is_set():
                throw()

    def calm():
        quiet.set()
        thread.join()
        time.sleep(0.0001)  # lets a thrown exception arrive

    thread = threading.Thread(target=work)
    thread.start()
    try:
        try:
            go.set()
            model.fit(X, Y, batch_size=4, epochs=39, verbose=0, steps_per_execution=per_execution)
        except (Thrown, KeyboardInterrupt):
            thrown = True
            calm()
    except (Thrown, KeyboardInterrupt):  # the second one
        calm()
    calm()
    states.check(model, exact=per_execution == 1 or get_backend().name != "jax")
    before = model.step
    model.train_on_batch(X[:4], Y[:4])  # training continues
    assert model.step == before + 1
    return thrown


def exception():
    """Raise an exception in this thread."""
    target = ctypes.c_ulong(threading.get_ident())
    return lambda: ctypes.pythonapi.PyThreadState_SetAsyncExc(target, ctypes.py_object(Thrown)), 1


def interrupts():
    """Press Ctrl-C twice."""
    return lambda: os.kill(os.getpid(), signal.SIGINT), 2


def alarm():
    """Send a signal that a handler turns into an exception."""
    return lambda: os.kill(os.getpid(), signal.SIGALRM), 1


def throws(number, frame):
    raise Thrown


@pytest.fixture
def handlers(monkeypatch):
    # exceptions raised in a destructor end here, in C code, where no second one can be raised
    monkeypatch.setattr(sys, "unraisablehook", deque(maxlen=0).append)
    former = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGALRM)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, throws)
    yield
    for number, handler in former:
        signal.signal(number, handler)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="Windows has no such signals")
@pytest.mark.parametrize("per_execution", [1, 5])
@pytest.mark.parametrize("kind", [exception, interrupts, alarm])
def test_a_model_is_always_as_it_was_after_a_whole_step(known, kind, per_execution, handlers):
    rng = random.Random(5)
    tries = TRIES if per_execution == 1 else -(-TRIES // 5)
    assert sum(attack(known, kind, rng, per_execution) for _ in range(tries)) > 0
