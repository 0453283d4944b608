"""Schedules: formulas of an optimizer's age, which steps follow on every backend."""

import math

import numpy as np
import pytest

import xpnet as xn
from xpnet.backend import get_backend
from xpnet.errors import InvalidTypeError, InvalidValueError, NonFiniteError, UnknownNameError
from xpnet.layers import Dense, Input
from xpnet.optimizers import SGD, Adam, AdamW, Lamb
from xpnet.schedules import ExponentialDecay, Schedule
from xpnet.testing import assert_close

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((20, 3)), RNG.standard_normal((20, 1))


class Growing(Schedule):
    """A user-defined schedule."""

    by: float = xn.setting(default=1.0)

    def at(self, xp, age):
        return 0.01 + 0.0 * age if self.by == 0.0 else 0.01 * self.by * (age + 1.0)


class Follow(xn.callbacks.Callback):
    """Sets the rate before each batch, as a schedule would."""

    def __init__(self, schedule):
        self.schedule, self.steps = schedule, 0

    def on_train_batch_begin(self, batch, logs=None):
        self.model.optimizer.learning_rate = self.schedule(self.steps)
        self.steps += 1


def train(optimizer, *callbacks, epochs=3, **kwargs):
    model = xn.Sequential([Input((3,)), Dense(4, "tanh"), Dense(1)], seed=3)
    model.compile(optimizer, "mse", **kwargs)
    model.fit(X, Y, batch_size=5, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


@pytest.mark.parametrize("staircase", [False, True])
def test_exponential_decay_is_keras(staircase):
    keras = pytest.importorskip("keras")
    args = (0.1, 7, 0.8, staircase)
    ours, theirs = ExponentialDecay(*args), keras.optimizers.schedules.ExponentialDecay(*args)
    for step in (0, 1, 6, 7, 20, 1000):
        assert ours(step) == pytest.approx(float(theirs(step)), rel=1e-5)


def test_exponential_decay_by_hand():
    assert [ExponentialDecay(1.0, 2, 0.25)(n) for n in range(5)] == pytest.approx([1, 0.5, 0.25, 0.125, 0.0625])
    assert [ExponentialDecay(1.0, 2, 0.25, True)(n) for n in range(5)] == pytest.approx([1, 1, 0.25, 0.25, 0.0625])


@pytest.mark.parametrize(
    "schedule", [ExponentialDecay(0.2, 4, 0.5), ExponentialDecay(0.2, 3, 0.5, True), Growing()]
)
@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_training_follows_a_schedule(schedule, optimizer):
    ours, by_hand = train(optimizer(schedule)), train(optimizer(0.5), Follow(schedule))
    tolerance = 1e-12 if get_backend().dtype_name == "float64" else 1e-5
    for a, b in zip(ours.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    assert not np.allclose(ours.get_weights()[0], train(optimizer(schedule(0))).get_weights()[0], rtol=1e-3)


@pytest.mark.parametrize("optimizer", [SGD, Adam, Lamb])
def test_the_weight_decay_may_follow_one_too(optimizer):
    decay = ExponentialDecay(0.5, 2, 0.5)
    model = train(optimizer(0.1, weight_decay=decay), epochs=1)
    reference = xn.Sequential([Input((3,)), Dense(4, "tanh"), Dense(1)], seed=3)
    by_hand = optimizer(0.1, weight_decay=0.5)
    reference.compile(by_hand, "mse")
    order = reference.session.stream.permutation(20, 0)
    for step in range(4):
        by_hand.weight_decay = decay(step)
        rows = order[5 * step : 5 * step + 5]
        reference.train_on_batch(X[rows], Y[rows])
    for a, b in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_it_goes_on_after_saving(tmp_path):
    schedule = ExponentialDecay(0.2, 4, 0.5)
    model, whole = (
        train(AdamW(schedule, weight_decay=schedule), epochs=1),
        train(AdamW(schedule, schedule), epochs=2),
    )
    model.save(tmp_path / "model")
    again = xn.load_model(tmp_path / "model")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    assert repr(again.optimizer.learning_rate) == repr(schedule)
    again.fit(X, Y, batch_size=5, epochs=2, initial_epoch=1, verbose=0)
    for a, b in zip(again.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_its_settings_count_from_the_next_step_on():
    schedule = ExponentialDecay(0.1, 4, 0.5)
    model = train(SGD(schedule), epochs=1)
    before = model.get_weights()
    schedule.initial_learning_rate = 0.0
    model.fit(X, Y, batch_size=5, verbose=0)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    model.optimizer.learning_rate = 0.1  # a number replaces the schedule
    model.fit(X, Y, batch_size=5, verbose=0)
    assert (model.get_weights()[0] != before[0]).any()
    model.optimizer.learning_rate = ExponentialDecay(0.0, 1, 1)
    before = model.get_weights()
    model.train_on_batch(X, Y)
    assert (model.get_weights()[0] == before[0]).all()


def test_an_optimizer_alone_follows_it(backend):
    opt, theta = SGD(ExponentialDecay(1.0, 1, 0.5)), backend.array([8.0], "float64" if backend.wide else "float32")
    state = opt.init(theta)
    for expected in (7.0, 6.5, 6.25):
        theta, state = opt.update(theta, backend.xp.ones_like(theta), state)
        assert_close(theta, [expected], rtol=1e-6)


def test_the_guard_looks_at_the_rate_of_the_step():
    with pytest.raises(
        NonFiniteError,
        match=r"step 3 of the epoch: the learning rate exceeds 1e\+06.*got learning rate ExponentialDecay\(",
    ):
        train(SGD(ExponentialDecay(1e-3, 1, 1e5)))
    assert SGD(0.1, weight_decay=ExponentialDecay(1.0, 1, 0.5)).never_overflows
    assert not SGD(0.1, weight_decay=ExponentialDecay(1.0, 1, 2.0)).never_overflows
    assert ExponentialDecay(0.1, 1, 1.5).bound == Growing().bound == math.inf


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: ExponentialDecay(-1, 1, 0.5), InvalidValueError),
        (lambda: ExponentialDecay(1, 0, 0.5), InvalidValueError),
        (lambda: ExponentialDecay(1, 1, 0), InvalidValueError),
        (lambda: SGD("fast"), InvalidTypeError),
        (lambda: SGD({"class_name": "Slow", "config": {}}), UnknownNameError),
        (lambda: AdamW(weight_decay=None), InvalidTypeError),
        (lambda: ExponentialDecay(1, 1, 1)(-1), InvalidValueError),
        (lambda: Schedule()(0), TypeError),
    ],
)
def test_errors(call, error):
    with pytest.raises(error):
        call()
