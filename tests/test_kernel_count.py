"""How many operations a captured step has: each costs a GPU more than the arithmetic of a small network.

On the device of cupy_capture.py, where a graph is a list of operations.
"""

import numpy as np
import pytest
from cupy_capture import clean_start, pretended_cupy

import xpnet as xn
from xpnet.backend import get_backend
from xpnet.layers import Dense
from xpnet.optimizers import SGD, Adam, AdamW

if get_backend().name != "numpy":
    pytest.skip("it is the same on every backend under test: run once, with NumPy", allow_module_level=True)


@pytest.fixture(autouse=True)
def device(monkeypatch):
    clean_start(monkeypatch)
    with pretended_cupy(monkeypatch) as engine:
        yield engine


def work_of(*layers, optimizer="adam", metrics=("accuracy",), inputs=(784,), weighted=False):
    """Return the graph of a step on batches already in place, as a list."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((16, *inputs)), rng.integers(0, 10, 16)
    weight = rng.uniform(0.5, 1.5, 16) if weighted else None
    model = xn.Sequential(layers, seed=0, backend="cupy")
    model.compile(optimizer, "sparse_categorical_crossentropy", list(metrics))
    for _ in range(3):
        model.train_on_batch(x, y, weight)
    ((play, _),) = model.session.program().run.recordings.values()
    return play.graph.notes


def small():
    return Dense(128, activation="relu"), Dense(10, activation="softmax")


def test_a_small_networks_step():
    # 5 products, 4 for biases and activations; the loss and its sum, the hits and theirs; 2 for the guard;
    # counters and sums; the update
    assert len(work_of(*small())) == 17


def test_what_else_a_step_may_want():
    assert len(work_of(*small(), metrics=())) == 15
    assert len(work_of(*small(), optimizer=SGD(0.1))) == 17
    assert len(work_of(*small(), optimizer=AdamW(0.1))) == 17  # decay is part of the update
    assert len(work_of(*small(), optimizer=Adam(0.1, global_clipnorm=1.0))) == 19  # the norm, and the factor
