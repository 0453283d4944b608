"""Optimizers: their formulas by hand, on a parabola and Rosenbrock's valley, and beside PyTorch's."""

import math

import numpy as np
import pytest

from xpnet import optimizers
from xpnet.backend import use_backend
from xpnet.errors import InvalidTypeError, InvalidValueError, ShapeError, UnknownNameError
from xpnet.ops import bias_correction
from xpnet.optimizers import SGD, Adam, Momentum, RMSprop
from xpnet.testing import assert_close

# name: (optimizer, learning rate on the parabola, learning rate and steps on Rosenbrock)
TABLE = {
    "sgd": (lambda lr: SGD(lr), 0.1, 1e-3, 12000),
    "sgd_momentum": (lambda lr: SGD(lr, momentum=0.9), 0.05, 3e-4, 6000),
    "sgd_nesterov": (lambda lr: SGD(lr, momentum=0.9, nesterov=True), 0.05, 3e-4, 6000),
    "momentum": (lambda lr: Momentum(lr, beta=0.9), 0.1, 2e-3, 6000),
    "rmsprop": (lambda lr: RMSprop(lr), 0.01, 1e-3, 6000),
    "rmsprop_root": (lambda lr: RMSprop(lr, epsilon_on="root"), 0.01, 1e-3, 6000),
    "adam": (lambda lr: Adam(lr), 0.1, 1e-2, 4000),
    "adam_corrected": (lambda lr: Adam(lr, epsilon_on="corrected"), 0.1, 1e-2, 4000),
}


def test_every_optimizer_is_in_the_table():
    assert {type(make(0.1)) for make, *_ in TABLE.values()} == set(optimizers.registry.classes.values())


def descend(backend, opt, gradient, start, steps):
    theta = backend.array(start)
    state = opt.init(theta)
    for _ in range(steps):
        theta, state = opt.update(theta, gradient(theta), state)
    return theta, state


@pytest.mark.parametrize("name", TABLE)
def test_parabola(backend64, name):
    make, lr, *_ = TABLE[name]
    target = backend64.array([1.0, -2.0, 3.0])
    theta, state = descend(backend64, make(lr), lambda t: 2.0 * (t - target), np.zeros(3), 400)
    assert_close(theta, target, rtol=0, atol=0.02)
    assert float(state.age) == 400


@pytest.mark.parametrize("name", TABLE)
def test_rosenbrock(name):
    """(1 - x)^2 + 100 (y - x^2)^2 from (-1, 1.5), on NumPy: thousands of steps."""
    make, _, lr, steps = TABLE[name]

    def gradient(theta):
        x, y = theta
        return np.array([2 * (x - 1) - 400 * x * (y - x * x), 200 * (y - x * x)])

    with use_backend("numpy", dtype="float64") as numpy:
        theta, _ = descend(numpy, make(lr), gradient, [-1.0, 1.5], steps)
    assert np.abs(theta - 1).max() < 0.1


# Formulas -----------------------------------------------------------------------------------------------


def by_hand(name, w, grads, lr):
    """Each update written out for one number, in Python floats."""
    v = s = m = 0.0
    for t, g in enumerate(grads, 1):
        if name == "sgd":
            w -= lr * g
        elif name == "sgd_momentum":
            v = 0.9 * v - lr * g
            w += v
        elif name == "sgd_nesterov":
            v = 0.9 * v - lr * g
            w += 0.9 * v - lr * g
        elif name == "momentum":
            v = 0.9 * v + 0.1 * g
            w -= lr * v
        elif name.startswith("rmsprop"):
            s = 0.9 * s + 0.1 * g**2
            w -= lr * g / (math.sqrt(s + 1e-7) if name == "rmsprop" else math.sqrt(s) + 1e-7)
        else:
            m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g**2
            c1, c2 = 1 - 0.9**t, 1 - 0.999**t
            if name == "adam":
                w -= lr * math.sqrt(c2) / c1 * m / (math.sqrt(s) + 1e-7)
            else:
                w -= lr * (m / c1) / (math.sqrt(s / c2) + 1e-7)
    return w


@pytest.mark.parametrize("scale", [1.0, 1e-6])  # with small gradients epsilon shows
@pytest.mark.parametrize("name", TABLE)
def test_by_hand(backend64, name, scale):
    grads = scale * np.random.default_rng(0).standard_normal((7, 3))
    opt, theta = TABLE[name][0](0.01), backend64.array([1.0, -2.0, 0.0])
    state = opt.init(theta)
    for t in range(len(grads)):
        theta, state = opt.update(theta, backend64.array(grads[t]), state)
        wanted = [by_hand(name, w, grads[: t + 1, i], 0.01) for i, w in enumerate((1.0, -2.0, 0.0))]
        assert_close(theta, backend64.array(wanted), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["sgd", "sgd_momentum", "sgd_nesterov", "rmsprop_root", "adam_corrected"])
def test_like_pytorch(backend64, name):
    torch = pytest.importorskip("torch")
    lr, rng = 0.05, np.random.default_rng(4)
    start, grads = rng.standard_normal(5), rng.standard_normal((25, 5)) * [1e-3, 1, 1, 10, 1e-6]
    leaf = torch.nn.Parameter(torch.tensor(start))
    theirs = {
        "sgd": lambda: torch.optim.SGD([leaf], lr=lr),
        "sgd_momentum": lambda: torch.optim.SGD([leaf], lr=lr, momentum=0.9),
        "sgd_nesterov": lambda: torch.optim.SGD([leaf], lr=lr, momentum=0.9, nesterov=True),
        "rmsprop_root": lambda: torch.optim.RMSprop([leaf], lr=lr, alpha=0.9, eps=1e-7),
        "adam_corrected": lambda: torch.optim.Adam([leaf], lr=lr, betas=(0.9, 0.999), eps=1e-7),
    }[name]()
    mine, theta = TABLE[name][0](lr), backend64.array(start)
    state = mine.init(theta)
    for g in grads:
        leaf.grad = torch.tensor(g)
        theirs.step()
        theta, state = mine.update(theta, backend64.array(g), state)
        assert_close(backend64.host(theta), leaf.detach().numpy(), rtol=1e-10)


def test_without_momentum_there_is_no_memory(backend):
    assert SGD(0.1).init(backend.zeros(3)).slots == ()
    assert len(SGD(0.1, momentum=0.5).init(backend.zeros(3)).slots) == 1
    assert len(Adam().init(backend.zeros(3)).slots) == 2


# Bias correction ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("t", [1, 2, 10, 1000, 10**5])
def test_bias_correction_is_accurate_in_float32(backend, beta, t):
    found = bias_correction(backend.xp, beta, backend.scalar(float(t)))
    assert float(found) == pytest.approx(-math.expm1(t * math.log(beta)) if beta else 1.0, rel=1e-6)
    assert found.dtype == backend.dtype


@pytest.mark.parametrize("name", ["adam", "adam_corrected"])
def test_the_first_step_of_adam_is_the_rate(backend, name):
    """m / sqrt(v) is g / |g| at t = 1, to float32's precision."""
    opt, theta = TABLE[name][0](0.5), backend.zeros(3)
    theta, _ = opt.update(theta, backend.array([3.0, -0.01, 100.0], "float32"), opt.init(theta))
    wanted = backend.array([-0.5, 0.5, -0.5], "float32")
    assert_close(theta, wanted, rtol=2e-5 if name == "adam_corrected" else 4e-4)


# update is pure -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_update_changes_nothing_that_was_passed_in(backend, name):
    opt = TABLE[name][0](0.1)
    theta, grad = backend.array([1.0, 2.0, 3.0], "float32"), backend.array([0.5, -1.0, 2.0], "float32")
    _, state = opt.update(theta, grad, opt.init(theta))
    arrays = [theta, grad, state.age, state.learning_rate, *state.slots]
    before = [np.array(backend.host(a)) for a in arrays]
    first = opt.update(theta, grad, state)
    second = opt.update(theta, grad, state)
    for a, b in zip(arrays, before):
        np.testing.assert_array_equal(backend.host(a), b)
    assert_close(first[0], second[0], rtol=0, atol=0)
    assert (backend.host(first[0]) != backend.host(theta)).all()
    assert float(state.age) == 1
    assert float(first[1].age) == 2


def test_the_rate_is_in_the_state(backend):
    opt, theta = SGD(0.5), backend.zeros(2)
    state = opt.init(theta)
    opt.learning_rate = 99.0  # has no effect on a state that is under way
    theta, state = opt.update(theta, backend.array([1.0, 2.0], "float32"), state)
    assert_close(theta, backend.array([-0.5, -1.0], "float32"))
    theta, _ = opt.update(theta, backend.array([1.0, 2.0], "float32"), state._replace(learning_rate=0.0))
    assert_close(theta, backend.array([-0.5, -1.0], "float32"))


@pytest.mark.parametrize("name", TABLE)
def test_library_and_dtype_are_the_variables(backend, name):
    opt = TABLE[name][0](0.1)
    for dtype in ("float32", "float64"):
        theta = backend.array(np.ones(3), dtype)
        new, state = opt.update(theta, backend.array(np.ones(3), "float64"), opt.init(theta))
        for a in (new, *state.slots):
            assert_close(a, theta, atol=1e9)
    new, state = opt.update(np.ones(3), np.ones(3), opt.init(np.ones(3)))
    assert {type(a) for a in (new, *state.slots)} == {np.ndarray}


@pytest.mark.parametrize("name", TABLE)
def test_weights_of_several_models_at_once(backend64, name):
    """A leading axis of models: each is updated as it would be alone."""
    opt, rng = TABLE[name][0](0.1), np.random.default_rng(2)
    w, grads = rng.standard_normal((2, 4)), rng.standard_normal((3, 2, 4))
    both, alone = backend64.array(w), [backend64.array(row) for row in w]
    state, states = opt.init(both), [opt.init(row) for row in alone]
    for g in grads:
        both, state = opt.update(both, backend64.array(g), state)
        for k in range(2):
            alone[k], states[k] = opt.update(alone[k], backend64.array(g[k]), states[k])
    assert_close(both, np.stack([backend64.host(a) for a in alone]), check_library=False)


# Names and errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cls"), [("sgd", SGD), ("SGD", SGD), ("momentum", Momentum), ("rmsprop", RMSprop), ("adam", Adam)]
)
def test_names(name, cls):
    assert type(optimizers.get(name)) is cls


@pytest.mark.parametrize("name", TABLE)
def test_config_round_trip(name):
    opt = TABLE[name][0](0.125)
    again = optimizers.get({"class_name": type(opt).__name__, "config": opt.get_config()})
    assert again.get_config() == opt.get_config()
    assert again.learning_rate == 0.125
    theta = np.ones(2)
    np.testing.assert_array_equal(*(o.update(theta, theta, o.init(theta))[0] for o in (opt, again)))


@pytest.mark.parametrize(
    ("call", "error", "ends"),
    [
        (lambda: optimizers.get("adm"), UnknownNameError, "got 'adm'"),
        (lambda: optimizers.get(3), InvalidTypeError, "got 3"),
        (lambda: SGD(-0.1), InvalidValueError, "learning_rate must be a finite number >= 0; got -0.1"),
        (lambda: SGD("fast"), InvalidTypeError, "got 'fast'"),
        (lambda: setattr(SGD(), "learning_rate", float("nan")), InvalidValueError, "got nan"),
        (lambda: SGD(momentum=1.5), InvalidValueError, "got 1.5"),
        (lambda: Momentum(beta=1), InvalidValueError, "got 1"),
        (lambda: RMSprop(rho=-1), InvalidValueError, "got -1"),
        (lambda: RMSprop(epsilon_on="corrected"), UnknownNameError, "got 'corrected'"),
        (lambda: Adam(beta_1=1.0), InvalidValueError, "got 1.0"),
        (lambda: Adam(beta_2=2), InvalidValueError, "got 2"),
        (lambda: Adam(epsilon=-1e-8), InvalidValueError, "got -1e-08"),
        (lambda: Adam(epsilon_on="square"), UnknownNameError, "got 'square'"),
        (lambda: Adam(dtype="float16"), UnknownNameError, "got 'float16'"),
        (lambda: SGD().update(np.ones(3), np.ones(2), SGD().init(np.ones(3))), ShapeError, "shape (3,); got (2,)"),
    ],
)
def test_errors(call, error, ends):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).endswith(ends)
