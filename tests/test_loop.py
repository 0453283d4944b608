"""Epochs and batches: every row once, in an order given by seed and epoch; numbers of compilations."""

from itertools import chain

import numpy as np
import pytest

import xpnet as xn
from xpnet.backend import get_backend
from xpnet.core.random import Stream
from xpnet.layers import Dense, Layer
from xpnet.losses import Loss
from xpnet.optimizers import SGD
from xpnet.training.loop import _groups

X = np.arange(1.0, 12.0)[:, None]
Y = np.zeros((11, 1))


class Seen:
    """Records the results of `data.batch`."""

    def __init__(self, monkeypatch):
        self.batches = []
        real = xn.training.data.Data.batch

        def batch(data, rows, backend, *args, **kwargs):
            x, y, weight = real(data, rows, backend, *args, **kwargs)
            self.batches.append(np.array(backend.host(backend.xp.asarray(x))).reshape(-1).astype(int).tolist())
            return x, y, weight

        monkeypatch.setattr(xn.training.data.Data, "batch", batch)

    def take(self):
        found, self.batches = self.batches, []
        return found


@pytest.fixture
def seen(monkeypatch):
    return Seen(monkeypatch)


def make(seed=1, **kwargs):
    model = xn.Sequential([Dense(1)], seed=seed)
    model.compile(SGD(0.0), "mse", **kwargs)
    return model


@pytest.mark.parametrize("size", [1, 3, 11, 100])
@pytest.mark.parametrize("per_execution", [1, 4])
def test_every_row_once_an_epoch(seen, size, per_execution):
    model = make(steps_per_execution=per_execution)
    model.fit(X, Y, batch_size=size, epochs=2, verbose=0)
    taken = seen.take()
    size = min(size, 11)
    whole = 11 - 11 % size  # rows in groups of the size run at once; then the rest
    at_once = size * per_execution
    counts = [min(at_once, whole - start) for start in range(0, whole, at_once)] + [11 - whole] * (whole < 11)
    assert [len(rows) for rows in taken] == counts * 2
    for epoch in (taken[: len(counts)], taken[len(counts) :]):
        assert sorted(chain(*epoch)) == list(range(1, 12))


def test_the_order_is_a_function_of_seed_and_epoch(seen):
    def order(model, **kwargs):
        model.fit(X, Y, batch_size=4, verbose=0, **kwargs)
        return list(chain(*seen.take()))

    one, other = make(), make()
    first = order(one, epochs=3)
    assert [order(other) for _ in range(3)] == [first[:11], first[11:22], first[22:]]
    assert len({tuple(first[i : i + 11]) for i in (0, 11, 22)}) == 3
    expected = [X[:, 0].astype(int)[Stream(1).permutation(11, epoch)].tolist() for epoch in range(3)]
    assert [first[:11], first[11:22], first[22:]] == expected
    assert order(make(seed=2)) != first[:11]
    assert order(one, shuffle=False) == list(range(1, 12))
    assert order(make(), sample_weight=np.ones(11)) == first[:11]


def test_evaluation_and_prediction_keep_the_order(seen):
    model = make()
    model.build((1,))
    model.predict(X, batch_size=4)
    model.evaluate(X, Y, batch_size=4)
    rows = list(range(1, 12))
    assert seen.take() == [rows[:4], rows[4:8], rows[8:]] * 2


@pytest.mark.parametrize(
    ("rows", "size", "per", "expected"),
    [
        (6, 2, 1, [(0, 2, 1), (2, 4, 1), (4, 6, 1)]),
        (6, 2, 2, [(0, 4, 2), (4, 6, 1)]),
        (7, 2, 9, [(0, 6, 3), (6, 7, 1)]),
        (1, 1, 3, [(0, 1, 1)]),
        (2, 2, 3, [(0, 2, 1)]),
    ],
)
def test_groups_are_of_one_size(rows, size, per, expected):
    assert list(_groups(0, rows, size, per)) == expected
    for done in range(1, -(-rows // size) + 1):  # the same rows, as many batches later
        left = [row for start, stop, _ in _groups(done, rows, size, per) for row in range(start, stop)]
        assert left == list(range(min(done * size, rows), rows))


# Compilations -----------------------------------------------------------------------------------------------


class Counts(Layer):
    """Counts how often Python executes it: under JAX, once per compilation."""

    calls = 0

    def forward(self, ctx, params, x):
        self.calls += 1
        return x, lambda dy, into, want_dx=True: (dy, {})


def test_jax_compiles_once_per_batch_shape():
    if get_backend().name != "jax":
        pytest.skip("other backends run Python at every step")
    layer = Counts()
    model = xn.Sequential([Dense(2), layer, Dense(1)], seed=0)
    model.compile("adam", "mse", ["mae"])

    def calls(do):
        before = layer.calls
        do()
        return layer.calls - before

    x, y = np.ones((11, 3)), np.ones((11, 1))
    assert calls(lambda: model.fit(x, y, batch_size=4, epochs=3, verbose=0)) == 2  # for 4 rows, and for the last 3
    assert calls(lambda: model.fit(x, y, batch_size=4, epochs=2, verbose=0)) == 0
    assert calls(lambda: model.fit(x.astype("float32"), y.astype(int), batch_size=4, verbose=0)) == 0
    assert calls(lambda: model.evaluate(x, y, batch_size=4)) == 2
    assert calls(lambda: model.predict(x, batch_size=11)) == 1
    assert calls(lambda: model.fit(x, y, batch_size=4, epochs=2, verbose=0, validation_data=(x[:4], y[:4]))) == 0
    assert calls(lambda: model.fit(x, y, batch_size=4, epochs=2, verbose=0, steps_per_execution=2)) == 1
    model.optimizer.learning_rate = 0.5
    assert calls(lambda: model.fit(x, y, batch_size=4, verbose=0)) == 0  # the rate is data
    model.set_weights(model.get_weights())
    assert calls(lambda: model.fit(x, y, batch_size=4, verbose=0)) == 0
    assert calls(lambda: model.fit(x, y, batch_size=4, verbose=0, sample_weight=np.ones(11))) == 2  # another tree


def test_a_loss_and_a_layer_of_ones_own():
    class Cubed(Loss):
        def terms(self, ctx, y, p, weight):
            d = p - y
            w = weight if isinstance(weight, float) else ctx.xp.expand_dims(weight, axis=-1)
            return ctx.xp.mean(ctx.xp.abs(d) ** 3, axis=-1), 3.0 * d * ctx.xp.abs(d) * w

    model = xn.Sequential([Counts(), Dense(1, kernel_initializer="ones")], seed=0, dtype="float64")
    model.compile(SGD(1e-3), Cubed())
    x = X / 10
    assert model.train_on_batch(x, Y) == pytest.approx(np.mean(x**3), rel=1e-12)
    expected = 1 - 1e-3 * np.mean(3 * x**2 * x)
    assert model.get_weights()[0][0, 0] == pytest.approx(expected, rel=1e-12)
