"""The step as a pure function of its state, and the code around it."""

import threading

import numpy as np
import pytest
from steps import taken

import xpnet as xn
from xpnet.backend import get_backend
from xpnet.backend.tree import tree_map
from xpnet.core.random import Stream
from xpnet.layers import BatchNormalization, Dense
from xpnet.losses import MeanSquaredError
from xpnet.metrics import ConfusionMatrix, MeanAbsoluteError
from xpnet.optimizers import Adam
from xpnet.training.network import Network
from xpnet.training.step import Batch, TrainState, make_evaluation, make_step, read_sums, zero_sums

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((6, 3)), RNG.standard_normal((6, 1))


@pytest.fixture
def parts(backend64):
    network = Network([Dense(4, activation="tanh"), BatchNormalization(), Dense(1)], (3,))
    metrics, b = [MeanAbsoluteError()], backend64
    run = b.compile(make_step(b, network, MeanSquaredError(), Adam(0.1), metrics))

    def step(state, batches):
        return taken(run, state, batches)

    weights = network.layout.initial(Stream(1))

    def state():
        return TrainState(
            b.count(0), b.scalar(0.1), b.scalar(True, b.xp.bool), b.array(weights),
            tuple(b.zeros(weights.shape) for _ in range(2)), b.array(network.stats_layout.initial(Stream(1))),
            b.scalar(0.0), zero_sums(b, metrics),
        )  # fmt: skip

    return b, network, metrics, step, state


def batch(b, x=X, y=Y, weight=None):
    return Batch(b.array(x), b.array(y), None if weight is None else b.array(weight), {})


def numbers(b, state):
    return tree_map(lambda a: np.array(b.host(a)), state)


def steps(state):
    """Return the count of a state on the host (see `Backend.count`)."""
    return sum(int(word) << 32 * i for i, word in enumerate(np.asarray(state.step).reshape(-1)))


def flat(tree):
    found = []
    tree_map(lambda a: found.append(np.asarray(a)), tree)
    return found


def test_a_step_is_a_function_of_state_and_batch(parts):
    b, _, _, step, state = parts
    one, other = (numbers(b, step(state(), [batch(b)])) for _ in range(2))
    for first, second in zip(flat(one), flat(other), strict=True):
        np.testing.assert_array_equal(first, second)
    before = numbers(b, state())
    assert steps(one) == 1
    assert float(one.age) == 1.0
    assert bool(one.ok)
    assert float(one.lr) == 0.1
    assert all(not np.array_equal(getattr(one, name), getattr(before, name)) for name in ("weights", "stats"))
    assert one.sums.reshape(-1, 4).sum(0)[[1, 3]].tolist() == [6.0, 6.0]


def test_the_state_keeps_its_form(parts):
    """The new state has the tree, shapes and dtypes of the old one, as a compiled loop requires."""
    b, _, _, step, state = parts
    before, after = numbers(b, state()), numbers(b, step(state(), [batch(b)]))
    assert [(a.shape, a.dtype) for a in flat(before)] == [(a.shape, a.dtype) for a in flat(after)]


def test_several_batches_are_several_steps(parts):
    b, _, _, step, state = parts
    together = numbers(b, step(state(), [batch(b), batch(b, X * 2), batch(b)]))
    one = state()
    for x in (X, X * 2, X):
        one = step(one, [batch(b, x)])
    tolerance = 0 if b.name != "jax" else 1e-12
    for first, second in zip(flat(together), flat(numbers(b, one)), strict=True):
        np.testing.assert_allclose(first, second, rtol=tolerance, atol=tolerance)
    assert steps(together) == float(together.age) == 3


@pytest.mark.parametrize(("bad", "at"), [(X * 1e200, 0), (np.full_like(X, np.nan), 1)])
def test_a_bad_step_and_all_behind_it_are_held_back(parts, bad, at):
    b, _, _, step, state = parts
    expected = numbers(b, step(state(), [batch(b)] * at) if at else state())
    batches = [batch(b)] * at + [batch(b, y=Y * 1e200 if at == 0 else Y, x=bad), batch(b), batch(b)]
    found = numbers(b, step(state(), batches))
    assert not bool(found.ok)  # sticky
    assert steps(found) == at  # does not advance
    for name in ("weights", "slots", "stats", "age", "sums"):
        for one, other in zip(flat(getattr(found, name)), flat(getattr(expected, name)), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)


def test_evaluation_adds_up(parts):
    b, network, metrics, _, state = parts
    evaluation, s = make_evaluation(b, network, MeanSquaredError(), metrics), state()
    whole = evaluation(zero_sums(b, metrics), s.weights, s.stats, batch(b))
    halves = zero_sums(b, metrics)
    for rows in (slice(0, 4), slice(4, 6)):
        halves = evaluation(halves, s.weights, s.stats, batch(b, X[rows], Y[rows]))
    names = ["loss", "mae"]
    found = read_sums(b, whole, names, metrics)
    assert found == pytest.approx(read_sums(b, halves, names, metrics), rel=1e-12)
    assert list(found) == names


def test_sums_of_no_rows_come_to_nothing(backend):
    metrics = [MeanAbsoluteError(), ConfusionMatrix(3)]
    found = read_sums(backend, zero_sums(backend, metrics), ["loss", "mae", "matrix"], metrics)
    assert [np.shape(value) for value in found.values()] == [(), (), (3, 3)]
    assert all(np.isnan(value).all() for value in found.values())


# Interleaved training ---------------------------------------------------------------------------------------


def test_two_models_in_two_threads():
    def train(seed, results):
        model = xn.Sequential([Dense(8, activation="tanh"), xn.layers.Dropout(0.3), Dense(1)], seed=seed)
        model.compile(Adam(0.01), "mse")
        model.fit(X, Y, batch_size=2, epochs=15, verbose=0)
        results[seed] = model.get_weights()

    alone, together = {}, {}
    for seed in (1, 2):
        train(seed, alone)
    threads = [threading.Thread(target=train, args=(seed, together)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2):
        for a, b in zip(alone[seed], together[seed], strict=True):
            np.testing.assert_allclose(a, b, rtol=0 if get_backend().name == "numpy" else 1e-5)


def test_two_models_taking_turns():
    """A model's data between its steps are not shared."""
    models = [xn.Sequential([Dense(4, activation="relu"), Dense(1)], seed=1) for _ in range(3)]
    for model in models:
        model.compile(Adam(0.01), "mse")
    for _ in range(3):
        models[0].train_on_batch(X, Y)
        models[1].train_on_batch(X, Y)
        models[1].predict(X * 3)
        models[1].evaluate(X[:2], Y[:2])
    for _ in range(3):
        models[2].train_on_batch(X, Y)
    for a, b, c in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(a, c, rtol=0 if get_backend().name == "numpy" else 1e-5)
        np.testing.assert_allclose(b, c, rtol=0 if get_backend().name == "numpy" else 1e-5)
