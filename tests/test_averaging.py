"""What every optimizer does besides its formula: average the weights, accumulate gradients, count updates."""

import copy
import gc
import importlib.util

import numpy as np
import pytest

import xpnet as xn
from xpnet import kernels, optimizers
from xpnet.backend import get_backend
from xpnet.errors import InvalidTypeError, InvalidValueError
from xpnet.optimizers import SGD, Adafactor, Adam, Lamb, Muon, RMSprop
from xpnet.optimizers.base import AVERAGE, SUM

RNG = np.random.default_rng(5)
X, Y = RNG.standard_normal((24, 3)), RNG.standard_normal((24, 2))
MACHINES = ["bodies", "numpy", *(["fast"] if importlib.util.find_spec("numba") else [])]
MAKERS = {
    "sgd": lambda **more: SGD(0.05, momentum=0.9, **more),
    "adam": lambda **more: Adam(0.01, **more),
    "wild": lambda **more: RMSprop(0.01, momentum=1.0, **more),  # its results are checked before they are taken
    "lamb": lambda **more: Lamb(0.01, **more),
    "adafactor": lambda **more: Adafactor(0.01, **more),
    "muon": lambda **more: Muon(0.01, **more),
}


def model_of(optimizer, dtype="float64", graph=True):
    layers = [xn.layers.Dense(4, "tanh"), xn.layers.Dense(2)]
    model = xn.Sequential(layers, seed=1, dtype=dtype)
    model.compile(optimizer, "mse", graph=graph)
    model.build((3,))
    return model


def close(a, b):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def same(a, b):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


# Accumulated gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"clipnorm": 0.3}, {"clipvalue": 0.1}, {"global_clipnorm": 0.2}])
@pytest.mark.parametrize("name", MAKERS)
def test_an_update_takes_the_mean_of_the_gradients(backend64, name, more):
    """It is clipped and weights decay at that update only; in between nothing changes but the sum."""
    grads = RNG.standard_normal((9, 5))
    one, three = (MAKERS[name](weight_decay=0.1, gradient_accumulation_steps=n, **more) for n in (None, 3))
    theta = start = backend64.array(RNG.standard_normal(5))
    state, wanted, reference = three.init(theta), start, one.init(start)
    for t, g in enumerate(grads, 1):
        before = theta, state.slots[:-1]
        theta, state = three.update(theta, backend64.array(g), state)
        if t % 3:
            same(map(backend64.host, (theta, *state.slots[:-1])), map(backend64.host, (before[0], *before[1])))
            since = grads[t - t % 3 : t]
            close([backend64.host(state.slots[-1])], [since.sum(0)])
        else:
            mean = backend64.array(grads[t - 3 : t].sum(0) / 3)
            wanted, reference = one.update(wanted, mean, reference)
            close(map(backend64.host, (theta, *state.slots[:-1])), map(backend64.host, (wanted, *reference.slots)))
            assert not np.any(backend64.host(state.slots[-1]))


@pytest.mark.parametrize("kernel", MACHINES)
@pytest.mark.parametrize("name", MAKERS)
def test_small_batches_make_a_large_one(name, kernel):
    """On every machine, recorded or not: the mean of the gradients of equal batches is that of all their rows."""
    with kernels.using(kernel):
        found = []
        for graph, n in ((True, 3), (False, 3), (True, None)):
            model = model_of(MAKERS[name](weight_decay=0.01, gradient_accumulation_steps=n), graph=graph)
            model.fit(X, Y, batch_size=4 if n else 12, epochs=5, shuffle=False, verbose=0)
            found.append(model.get_weights())
            assert model.optimizer.iterations == 10
    close(found[0], found[2])
    close(found[1], found[2])


def test_schedules_count_steps(backend64):
    opt = SGD(xn.schedules.ExponentialDecay(1.0, 1, 0.5), gradient_accumulation_steps=2)
    theta, one = backend64.zeros(1), backend64.array([1.0])
    state = opt.init(theta)
    for wanted in (0.0, -0.5, -0.5, -0.625):
        theta, state = opt.update(theta, one, state)
        assert float(theta[0]) == wanted


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_in_other_precisions(policy):
    """Under `mixed_float16` the gradients are those of a scaled loss."""
    if policy == "mixed_float16" and not hasattr(get_backend().xp, "float16"):
        pytest.skip("this library has no float16")
    model, plain = (model_of(SGD(0.1, gradient_accumulation_steps=n), policy) for n in (2, None))
    model.fit(X, Y, batch_size=6, epochs=2, shuffle=False, verbose=0)
    plain.fit(X, Y, batch_size=12, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3)


# The average of the weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", MACHINES)
@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("name", MAKERS)
def test_average(name, graph, kernel):
    """By hand from the weights after each step; it stays when there is none, and `fit` ends with it."""
    with kernels.using(kernel):
        plain, model = (model_of(MAKERS[name](use_ema=e, ema_momentum=0.8), graph=graph) for e in (False, True))
        average = None
        for _ in range(7):
            for each in (plain, model):
                each.train_on_batch(X, Y)
            now = plain.get_weights()
            average = now if average is None else [0.8 * a + 0.2 * w for a, w in zip(average, now)]
            close(model.get_weights(), now)
        model.fit(X, Y, batch_size=24, epochs=1, shuffle=False, verbose=0)
        plain.train_on_batch(X, Y)
        average = [0.8 * a + 0.2 * w for a, w in zip(average, plain.get_weights())]
    close(model.get_weights(), average)


@pytest.mark.parametrize("kernel", MACHINES)
@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("name", MAKERS)
def test_the_weights_become_the_average(name, steps, kernel):
    config = {
        "use_ema": True,
        "ema_momentum": 0.8,
        "ema_overwrite_frequency": 3,
        "gradient_accumulation_steps": steps,
    }
    with kernels.using(kernel):
        model = model_of(MAKERS[name](**config))
        for t in range(1, 13):
            model.train_on_batch(X, Y)
            slots = dict(zip(model.optimizer.all_slots, model.state.slots))
            average = get_backend().host(slots[AVERAGE])
            weights = get_backend().host(model.state.weights)
            updates = -(-t // (steps or 1))  # counts the one that is under way
            if t % (steps or 1) == 0:
                assert np.array_equal(average, weights) == (updates % 3 == 0 or updates == 1)


def test_an_average_that_begins_later_begins_at_the_weights():
    model = model_of(SGD(0.1))
    for _ in range(3):
        model.train_on_batch(X, Y)
    before = get_backend().host(model.state.weights).copy()
    model.optimizer.use_ema = True
    model.train_on_batch(X, Y)
    after, average = (get_backend().host(a) for a in (model.state.weights, model.state.slots[0]))
    np.testing.assert_allclose(average, 0.99 * before + 0.01 * after, rtol=1e-12)
    model.optimizer.use_ema = False
    model.train_on_batch(X, Y)
    assert model.state.slots == ()


def test_a_call_of_fit_that_trains_nothing_leaves_the_weights():
    model = model_of(SGD(0.1, use_ema=True))
    before = model.get_weights()
    model.fit(X, Y, epochs=0, verbose=0)
    same(model.get_weights(), before)


@pytest.mark.parametrize("name", MAKERS)
def test_a_saved_model_goes_on_with_the_same_bits(name, tmp_path):
    """Also in the middle of an accumulation."""
    config = {"use_ema": True, "ema_overwrite_frequency": 2, "gradient_accumulation_steps": 4}
    whole, first = (model_of(MAKERS[name](**config)) for _ in range(2))
    for _ in range(11):
        whole.train_on_batch(X, Y)
    for _ in range(6):
        first.train_on_batch(X, Y)
    first.save(tmp_path / "m.safetensors")
    again = xn.load_model(tmp_path / "m.safetensors")
    assert again.optimizer.iterations == 1
    for _ in range(5):
        again.train_on_batch(X, Y)
    same(again.get_weights(), whole.get_weights())
    assert again.optimizer.iterations == whole.optimizer.iterations == 2


def test_what_is_off_keeps_nothing():
    assert dict(Adam().all_slots) == {"mean": 0.0, "mean_square": 0.0}
    both = Adam(use_ema=True, gradient_accumulation_steps=2).all_slots
    assert list(both) == ["mean", "mean_square", AVERAGE, SUM]


class Own(optimizers.Optimizer):
    """A user's, which says that it can't overflow and passes the formula's results on."""

    slots = ("velocity",)

    def formula(self, xp):
        def at(w, g, v, lr):
            v = 0.5 * v + g
            return w - lr * v, v

        return at

    never_overflows = True

    def apply(self, ctx, w, g, slots, lr, age, factor=None):
        return super().apply(ctx, w, g, slots, lr, age, factor)


@pytest.mark.parametrize("kernel", MACHINES)
def test_an_override_that_calls_the_formula(kernel):
    """Its results must not be deferred, since they are averaged at once."""
    with kernels.using(kernel):
        own = model_of(Own(0.1, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=2))
        same_as = model_of(SGD(0.1, momentum=0.5, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=2))
        for model in (own, same_as):
            model.fit(X, Y, batch_size=6, epochs=3, shuffle=False, verbose=0)
    close(own.get_weights(), same_as.get_weights())


# Iterations ---------------------------------------------------------------------------------------------


def test_iterations():
    opt = SGD(0.1)
    assert opt.iterations == 0
    model = model_of(opt)
    assert opt.iterations == 0
    model.fit(X, Y, batch_size=6, epochs=2, verbose=0)
    assert opt.iterations == 8
    assert type(opt.iterations) is int
    model.train_on_batch(X, Y)
    assert opt.iterations == 9
    twin = copy.deepcopy(model)
    twin.train_on_batch(X, Y)
    assert (opt.iterations, twin.optimizer.iterations) == (9, 10)
    model.compile(SGD(0.1), "mse")
    assert (opt.iterations, model.optimizer.iterations) == (0, 0)
    other = model.optimizer
    del model
    gc.collect()
    assert other.iterations == 0


@pytest.mark.parametrize(
    ("config", "error", "ends"),
    [
        ({"ema_momentum": 1.5}, InvalidValueError, "ema_momentum must be a finite number >= 0 and <= 1; got 1.5"),
        ({"ema_overwrite_frequency": 0}, InvalidValueError, "must be an integer >= 1; got 0"),
        ({"gradient_accumulation_steps": 1}, InvalidValueError, "must be an integer >= 2; got 1"),
        ({"gradient_accumulation_steps": "2"}, InvalidTypeError, "got '2'"),
    ],
)
def test_errors(config, error, ends):
    with pytest.raises(error) as caught:
        SGD(**config)
    assert str(caught.value).endswith(ends)
