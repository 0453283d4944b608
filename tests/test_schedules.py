"""Schedules: formulas of an optimizer's age, which steps follow on every backend."""

import math

import numpy as np
import pytest
from cases import SCHEDULES

import xpnet as xn
from xpnet.backend import get_backend
from xpnet.errors import InvalidTypeError, InvalidValueError, NonFiniteError, UnknownNameError
from xpnet.fusion.update import update_graph
from xpnet.layers import Dense, Input
from xpnet.optimizers import SGD, Adam, AdamW, Lamb
from xpnet.schedules import (
    CosineDecay,
    CosineDecayRestarts,
    CosLog4,
    ExponentialDecay,
    FlatCos,
    InverseTimeDecay,
    OneCycle,
    PiecewiseConstantDecay,
    PolynomialDecay,
    Schedule,
)
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


@pytest.mark.parametrize("name", SCHEDULES)
def test_values(backend64, name):
    schedule, value = SCHEDULES[name]
    for age in range(16):
        found = schedule.at(backend64.xp, backend64.scalar(age))
        assert found.shape == ()
        assert found.dtype == backend64.dtype
        assert float(backend64.host(found)) == pytest.approx(value(age), rel=1e-12, abs=1e-15)
        assert schedule(age) == pytest.approx(value(age), rel=1e-12, abs=1e-15)
        assert 0.0 <= schedule(age) <= schedule.bound * (1 + 1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_step_follows_each_of_them(name):
    """Rate and weight decay, in the fused update too, against gradient descent by NumPy."""
    schedule, value = SCHEDULES[name]
    optimizer = SGD(schedule, weight_decay=schedule)
    assert update_graph(optimizer, 0, schedule) is not None
    model = xn.Sequential([Input((3,)), Dense(1, use_bias=False)], seed=3)
    model.compile(optimizer, "mse")
    w = model.get_weights()[0].astype(np.float64)
    for age in range(12):
        model.train_on_batch(X, Y)
        w = w - value(age) ** 2 * w - value(age) * (2 / 20) * X.T @ (X @ w - Y)
    np.testing.assert_allclose(model.get_weights()[0], w, rtol=1e-4, atol=1e-6)


def test_they_are_where_keras_has_them():
    assert xn.optimizers.schedules is xn.schedules


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


@pytest.mark.parametrize(("steps", "share"), [(1, 0.3), (10, 0.0), (10, 0.1), (10, 1.0), (2, 0.5)])
@pytest.mark.parametrize("three_phase", [False, True])
def test_one_cycle_without_a_rise_or_a_fall(steps, share, three_phase):
    schedule = OneCycle(1.0, steps, share, div_factor=4.0, final_div_factor=2.0, three_phase=three_phase)
    rates = [schedule(age) for age in range(steps + 3)]
    assert np.isfinite(rates).all()
    assert 0.125 <= min(rates) <= max(rates) <= 1.0
    assert rates[steps - 1 :] == [rates[-1]] * 4
    assert rates[-1] == pytest.approx(0.125 if (share < 1.0 and steps != 1) or steps == 1 else 1.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("growth", [1.25, 1.5, 2.0, 3.0])
def test_restarts_begin_on_their_update(growth, dtype):
    """A logarithm that rounding makes too small puts the first update of a period at the end of the last one."""
    schedule = CosineDecayRestarts(1.0, 16, growth)
    first, beginnings = 16.0, []
    for i in range(1, 9):
        if first.is_integer():
            beginnings.append(first)
            assert schedule.at(np, np.asarray(first, dtype)) > 0.99
            assert schedule.at(np, np.asarray(first - 1, dtype)) < 0.1
        first += 16 * growth**i
    assert len(beginnings) >= 3


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
        (lambda: PiecewiseConstantDecay([2, 1], [1, 2, 3]), InvalidValueError),
        (lambda: PiecewiseConstantDecay([1, 2], [1, 2]), InvalidValueError),
        (lambda: PiecewiseConstantDecay([1], [1, -2]), InvalidValueError),
        (lambda: PiecewiseConstantDecay(1, [1, 2]), InvalidTypeError),
        (lambda: PiecewiseConstantDecay("12", [1, 2, 3]), InvalidTypeError),
        (lambda: PolynomialDecay(1, 1, power=-1), InvalidValueError),
        (lambda: InverseTimeDecay(1, 1, -1), InvalidValueError),
        (lambda: CosineDecay(1, 1, alpha=2), InvalidValueError),
        (lambda: CosineDecay(1, 1, warmup_target=-1), InvalidValueError),
        (lambda: CosineDecayRestarts(1, 1, t_mul=0.5), InvalidValueError),
        (lambda: OneCycle(1, 0), InvalidValueError),
        (lambda: OneCycle(1, 10, anneal_strategy="step"), UnknownNameError),
        (lambda: CosLog4(1, 0), InvalidValueError),
        (lambda: FlatCos(1, 10, flat=1), InvalidValueError),
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
