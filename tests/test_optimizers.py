"""Optimizers: formulas by hand, on a parabola and Rosenbrock's valley, and against PyTorch."""

import contextlib
import importlib.util
import math
import os
import sys
import warnings

import numpy as np
import pytest
from cases import OPTIMIZERS

import xpnet as xn
from xpnet import initializers, kernels, optimizers
from xpnet.backend import get_backend, use_backend
from xpnet.core.ops import bias_correction
from xpnet.core.params import Layout, ParamSpec, Variable, Variables
from xpnet.errors import InvalidTypeError, InvalidValueError, ShapeError, UnknownNameError
from xpnet.kernels.context import Context
from xpnet.optimizers import SGD, Adagrad, Adam, AdamW, Momentum, RMSprop
from xpnet.testing import assert_close

OTHERS = "clip", "ema", "accumulated", "lamb", "adafactor", "muon"  # these have their own tests
FORMULAS = [name for name in OPTIMIZERS if not any(other in name for other in OTHERS)]


def descend(backend, opt, gradient, start, steps):
    theta = backend.array(start)
    state = opt.init(theta)
    for _ in range(steps):
        theta, state = opt.update(theta, gradient(theta), state)
    return theta, state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parabola(backend64, name):
    make, lr, *_ = OPTIMIZERS[name]
    target = backend64.array([1.0, -2.0, 3.0])
    theta, state = descend(backend64, make(lr), lambda t: 2.0 * (t - target), np.zeros(3), 400)
    assert_close(theta, target, rtol=0, atol=0.02)
    assert float(state.age) == 400


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rosenbrock(name):
    """(1 - x)^2 + 100 (y - x^2)^2 from (-1, 1.5), on NumPy: thousands of steps."""
    make, _, lr, steps = OPTIMIZERS[name]

    def gradient(theta):
        x, y = theta
        return np.array([2 * (x - 1) - 400 * x * (y - x * x), 200 * (y - x * x)])

    with use_backend("numpy", dtype="float64") as numpy:
        theta, _ = descend(numpy, make(lr), gradient, [-1.0, 1.5], steps)
    assert np.abs(theta - 1).max() < 0.1


# Formulas -----------------------------------------------------------------------------------------------


def by_hand(name, w, grads, lr):
    """Each update written out for one number, in Python floats."""
    v = s = m = top = z = 0.0
    product, total = 1.0, 0.2 if name == "ftrl_power" else 0.1
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
            m = 0.9 * m + 0.1 * g
            square = s - m**2 if name.endswith("centered") else s
            step = lr * g / (math.sqrt(square) + 1e-7 if name.endswith("root") else math.sqrt(square + 1e-7))
            v = (0.5 if name.endswith(("momentum", "centered")) else 0.0) * v + step
            w -= v
        elif name == "adagrad":
            total += g**2
            w -= lr * g / math.sqrt(total + 1e-7)
        elif name == "adadelta":
            s = 0.95 * s + 0.05 * g**2
            step = math.sqrt(m + 1e-7) / math.sqrt(s + 1e-7) * g
            m = 0.95 * m + 0.05 * step**2
            w -= lr * step
        elif name == "adamax":
            m, top = 0.9 * m + 0.1 * g, max(0.999 * top, abs(g))
            w -= lr / (1 - 0.9**t) * m / (top + 1e-7)
        elif name == "nadam":
            m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g**2
            now, following = (0.9 * (1 - 0.5 * 0.96**i) for i in (t, t + 1))
            product *= now
            ahead = following * m / (1 - product * following) + (1 - now) * g / (1 - product)
            w -= lr * ahead / (math.sqrt(s / (1 - 0.999**t)) + 1e-7)
        elif name.startswith("ftrl"):
            power, penalty, beta = (0.4, 1e-3, 0.1) if name == "ftrl_power" else (0.5, 0.0, 0.0)
            z += g + 2 * penalty * w - ((total + g**2) ** power - total**power) / lr * w
            total += g**2
            clipped = min(max(z, -penalty), penalty)
            w = (clipped - z) / ((beta + total**power) / lr + 2 * penalty)
        elif name == "lion":
            w -= lr * math.copysign(1.0, 0.9 * m + 0.1 * g)
            m = 0.99 * m + 0.01 * g
        else:
            m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g**2
            c1, c2 = 1 - 0.9**t, 1 - 0.999**t
            w -= lr * 1e-3 * w if name.startswith("adamw") else 0.0
            top = max(top, s)
            s_used = top if name == "amsgrad" else s
            if not name.endswith("corrected"):
                w -= lr * math.sqrt(c2) / c1 * m / (math.sqrt(s_used) + 1e-7)
            else:
                w -= lr * (m / c1) / (math.sqrt(s / c2) + 1e-7)
    return w


@pytest.mark.parametrize("scale", [1.0, 1e-6])  # epsilon matters with small gradients
@pytest.mark.parametrize("name", FORMULAS)
def test_by_hand(backend64, name, scale):
    grads = scale * np.random.default_rng(0).standard_normal((7, 3))
    opt, theta = OPTIMIZERS[name][0](0.01), backend64.array([1.0, -2.0, 0.0])
    state = opt.init(theta)
    for t in range(len(grads)):
        theta, state = opt.update(theta, backend64.array(grads[t]), state)
        wanted = [by_hand(name, w, grads[: t + 1, i], 0.01) for i, w in enumerate((1.0, -2.0, 0.0))]
        assert_close(theta, backend64.array(wanted), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "name", ["sgd", "sgd_momentum", "sgd_nesterov", "rmsprop_root", "adam_corrected", "adamw_corrected"]
)
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
        "adamw_corrected": lambda: torch.optim.AdamW([leaf], lr=lr, eps=1e-7, weight_decay=1e-3),
    }[name]()
    mine, theta = OPTIMIZERS[name][0](lr), backend64.array(start)
    state = mine.init(theta)
    for g in grads:
        leaf.grad = torch.tensor(g)
        theirs.step()
        theta, state = mine.update(theta, backend64.array(g), state)
        assert_close(backend64.host(theta), leaf.detach().numpy(), rtol=1e-10)


# Decay and clipping -------------------------------------------------------------------------------------


@pytest.fixture
def keras(monkeypatch):
    """Keras, on the backend with which another test has loaded it."""
    if "keras" not in sys.modules:
        monkeypatch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND") or "numpy")
    with warnings.catch_warnings():  # Keras's own warnings do not matter
        warnings.simplefilter("ignore")
        yield pytest.importorskip("keras", exc_type=ImportError)


SHAPES = {"kernel": (2, 3), "bias": (3,), "scale": ()}
LAYOUT = Layout([(key, 0, ParamSpec(key, shape, initializers.get("zeros"))) for key, shape in SHAPES.items()])


@pytest.mark.parametrize(
    "more",
    [{}, {"clipnorm": 0.7}, {"clipvalue": 0.2}, {"global_clipnorm": 0.9}],
    ids=["", "clipnorm", "clipvalue", "global_clipnorm"],
)
@pytest.mark.parametrize("decay", [None, 0.05])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("SGD", {}),
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("RMSprop", {}),
        ("RMSprop", {"momentum": 0.5}),
        ("RMSprop", {"centered": True, "epsilon": 1e-3}),
        ("RMSprop", {"centered": True, "momentum": 0.5, "epsilon": 1e-3}),
        ("Adagrad", {}),
        ("Adam", {}),
        ("Adam", {"amsgrad": True}),
        ("AdamW", {}),
        ("Lamb", {}),
        ("Adadelta", {}),
        ("Adamax", {}),
        ("Nadam", {}),
        ("Ftrl", {"l1_regularization_strength": 0.01}),
        ("Lion", {}),
        ("Adafactor", {}),
        ("Muon", {}),
    ],
)
def test_like_keras(backend64, keras, name, config, decay, more):
    """Several variables with different norms, and gradients some of which are clipped."""
    if name == "AdamW":
        config = {**config, "weight_decay": 0.01 if decay is None else decay}
    else:
        config = {**config, "weight_decay": decay}
    rng = np.random.default_rng(6)
    start, grads = rng.standard_normal(10), rng.standard_normal((12, 10)) * 3.0 ** rng.integers(-4, 3, (12, 1))
    variables = [keras.Variable(start[s].reshape(SHAPES[k]), dtype="float64") for k, s in LAYOUT.slices.items()]
    theirs = getattr(keras.optimizers, name)(0.1, **config, **more)
    theirs.build(variables)
    mine, theta = getattr(optimizers, name)(0.1, **config, **more), backend64.array(start)
    state = mine.init(theta, LAYOUT)
    for g in grads:
        parts = [g[s].reshape(SHAPES[k]) for k, s in LAYOUT.slices.items()]
        theirs.apply([keras.ops.convert_to_tensor(part, dtype="float64") for part in parts])
        theta, state = mine.update(theta, backend64.array(g), state, LAYOUT)
        wanted = [keras.ops.convert_to_numpy(v).reshape(-1) for v in variables]
        assert_close(backend64.host(theta), np.concatenate(wanted), rtol=1e-5, atol=1e-5)  # Keras: float32


@pytest.mark.parametrize("way", ["value", "norm"])
def test_clipping_like_pytorch(backend64, way):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(7)
    start, grads = rng.standard_normal(5), rng.standard_normal((20, 5)) * np.tile([[0.01], [1.0]], (10, 1))
    leaf, theta = torch.nn.Parameter(torch.tensor(start)), backend64.array(start)
    theirs = torch.optim.AdamW([leaf], lr=0.05, eps=1e-7, weight_decay=0.1)
    clip = {"clipvalue": 0.8} if way == "value" else {"global_clipnorm": 0.8}
    mine = AdamW(0.05, 0.1, epsilon_on="corrected", **clip)
    state = mine.init(theta)
    for g in grads:
        leaf.grad = torch.tensor(g)
        if way == "value":
            torch.nn.utils.clip_grad_value_([leaf], 0.8)
        else:
            torch.nn.utils.clip_grad_norm_([leaf], 0.8)
        theirs.step()
        theta, state = mine.update(theta, backend64.array(g), state)
        # PyTorch divides by the norm + 1e-6
        assert_close(backend64.host(theta), leaf.detach().numpy(), rtol=1e-10 if way == "value" else 1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_numbers_and_arrays_without_axes(backend64, name):
    make = OPTIMIZERS[name][0]
    one, two = (backend64.array(np.full((), a)) for a in (1.5, 3.0))
    wanted = make(0.1).init(backend64.array([1.5])), backend64.array([1.5]), backend64.array([3.0])
    wanted, state = make(0.1).update(wanted[1], wanted[2], wanted[0])
    for theta, grad in ((1.5, 3.0), (np.float64(1.5), 3.0), (one, two)):
        opt = make(0.1)
        found, new = opt.update(theta, grad, opt.init(theta))
        assert tuple(found.shape) == ()
        assert [tuple(slot.shape) for slot in new.slots] == [()] * len(opt.all_slots)
        assert float(found) == pytest.approx(float(wanted[0]), rel=1e-6)
        for slot, expected in zip(new.slots, state.slots, strict=True):
            assert float(slot) == pytest.approx(float(expected[0]), rel=1e-6)


def test_without_a_layout_there_is_one_variable(backend64):
    g, theta = backend64.array([3.0, 4.0, 0.0]), backend64.zeros(3)
    opt = SGD(1.0, clipnorm=1.0)
    wanted = backend64.array([-0.6, -0.8, 0.0])
    assert_close(opt.update(theta, g, opt.init(theta))[0], wanted)
    parts = Layout([(key, 0, ParamSpec(key, shape, None)) for key, shape in (("a", (1,)), ("b", (2,)))])
    wanted = backend64.array([-1.0, -1.0, 0.0])
    assert_close(opt.update(theta, g, opt.init(theta, parts), parts)[0], wanted)


def test_a_model_knows_its_variables():
    """`clipnorm` applies to each variable: kernel and bias of each layer."""
    x, y = np.random.default_rng(8).standard_normal((2, 12, 3))
    before, after = {}, {}
    for clip in (None, 1e-3):
        model = xn.Sequential([xn.layers.Dense(4, activation="tanh"), xn.layers.Dense(3)], seed=1, dtype="float64")
        model.compile(SGD(1.0, clipnorm=clip), "mse")
        model.build((3,))
        before[clip] = model.get_weights()
        model.train_on_batch(x, y)
        after[clip] = model.get_weights()
    for i, old in enumerate(before[None]):
        plain, clipped = (after[clip][i] - old for clip in (None, 1e-3))
        assert np.linalg.norm(plain) > 1e-2
        np.testing.assert_allclose(clipped, plain * (1e-3 / np.linalg.norm(plain)), rtol=1e-6)


@pytest.mark.parametrize("clip", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_an_optimizer_of_ones_own_is_clipped_too(backend64, clip):
    class Own(optimizers.Optimizer):
        def apply(self, ctx, w, g, slots, lr, age, factor=None):
            return w - lr * (g if factor is None else g * factor), ()

    class Short(optimizers.Optimizer):
        def apply(self, ctx, w, g, slots, lr, age):
            return w - lr * g, ()

    g, theta = backend64.array([2.0, 0.0, 0.0]), backend64.zeros(3)
    for cls in (Own, Short) if clip != "global_clipnorm" else (Own,):
        opt = cls(0.5, **{clip: 1.0})
        assert_close(opt.update(theta, g, opt.init(theta))[0], backend64.array([-0.5, 0.0, 0.0]))


def test_a_factor_comes_before_clipping(backend64):
    """As loss scaling requires: the gradient is unscaled before it is clipped."""
    ctx, g = Context(backend64), backend64.array([6.0, 8.0])
    zero, lr, half = backend64.zeros(2), backend64.scalar(1.0), backend64.scalar(0.5)
    for config, wanted in (
        ({}, [-3.0, -4.0]), ({"global_clipnorm": 10.0}, [-3.0, -4.0]), ({"global_clipnorm": 1.0}, [-0.6, -0.8]),
        ({"clipnorm": 10.0}, [-3.0, -4.0]), ({"clipnorm": 1.0}, [-0.6, -0.8]), ({"clipvalue": 3.5}, [-3.0, -3.5]),
    ):  # fmt: skip
        new, _ = SGD(1.0, **config).advance(ctx, zero, g, (), lr, lr, Variables([Variable("", 0, 2, (2,))]), half)
        assert_close(new, backend64.array(wanted))


def test_without_momentum_there_is_no_memory(backend):
    assert SGD(0.1).init(backend.zeros(3)).slots == ()
    assert len(SGD(0.1, momentum=0.5).init(backend.zeros(3)).slots) == 1
    assert len(Adam().init(backend.zeros(3)).slots) == 2


# Groups and slots ---------------------------------------------------------------------------------------

EVERY = [make for name, (make, *_) in OPTIMIZERS.items() if "clip" not in name]


def layout_of(*learning):
    """Return a layout of variables of 3 numbers, from pairs (learning-rate factor, whether it decays)."""
    return Layout(
        [
            (f"layer/{i}", i, ParamSpec(str(i), (3,), None, lr_factor=lr_factor, decay=decay))
            for i, (lr_factor, decay) in enumerate(learning)
        ]
    )


def test_neighbours_that_learn_alike_are_one_group():
    layout = layout_of((1.0, True), (1.0, True), (0.5, True), (1.0, False), (1.0, False))
    assert layout.variables.slices == tuple(slice(3 * i, 3 * i + 3) for i in range(5))
    found = layout.variables.groups()
    assert [tuple(group) for group in found] == [(0, 6, 1.0, True), (6, 9, 0.5, True), (9, 15, 1.0, False)]
    assert len(layout.variables.groups(None)) == 3  # if nothing decays
    assert tuple(layout.variables.groups(("/[01]",))[0]) == (0, 6, 1.0, False)
    assert len(layout_of(*[(1.0, True)] * 4).variables.groups()) == 1
    assert Layout([]).variables.groups() == ()


@pytest.mark.parametrize("make", EVERY)
def test_groups_learn_as_they_would_alone(backend64, make):
    learning = (1.0, True), (0.25, True), (0.25, False), (1.0, True)
    layout, rng = layout_of(*learning), np.random.default_rng(3)
    start, grads = rng.standard_normal(12), rng.standard_normal((3, 12))
    opt = make(0.1)
    opt.weight_decay = 0.5
    theta = backend64.array(start)
    state = opt.init(theta, layout)
    for g in grads:
        theta, state = opt.update(theta, backend64.array(g), state, layout)
    for i, (lr_factor, decay) in enumerate(learning):
        own, where = make(0.1 * lr_factor), slice(3 * i, 3 * i + 3)
        own.weight_decay = 0.5 if decay else 0.0
        part = backend64.array(start[where])
        alone = own.init(part)
        for g in grads:
            part, alone = own.update(part, backend64.array(g[where]), alone)
        assert_close(theta[where], part)
        for slot, wanted in zip(state.slots, alone.slots, strict=True):
            assert_close(slot[where], wanted)


class Scaled(xn.layers.Layer):
    """A user-defined layer whose weights learn at a quarter of the rate, and do not decay."""

    def build(self, input_shape):
        self.add_weight("scale", input_shape, "ones", lr_factor=0.25, decay=False)
        return input_shape

    def forward(self, ctx, params, x):
        scale = params["scale"]
        return x * scale, lambda dy, into, want_dx=True: (
            dy * scale if want_dx else None, {"scale": ctx.xp.sum(dy * x, axis=-2)}
        )  # fmt: skip


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("make", [*EVERY, lambda lr: AdamW(lr, 0.3, global_clipnorm=0.5)])
def test_groups_in_a_model(make, graph):
    """On every machine: in place, recorded or not, as arrays."""

    def trained(kernel):
        x, y = np.random.default_rng(8).standard_normal((2, 12, 3))
        model = xn.Sequential([xn.layers.Dense(4), Scaled(), xn.layers.Dense(3)], seed=1, dtype="float64")
        opt = make(0.01)
        opt.weight_decay = 0.3
        opt.exclude_from_weight_decay(["bias$"])
        model.compile(opt, "mse", graph=graph)
        with kernels.using(kernel):
            model.fit(x, y, batch_size=4, epochs=3, verbose=0, shuffle=False)
        return model.get_weights()

    wanted = trained("bodies")
    for kernel in ("numpy", "fast") if importlib.util.find_spec("numba") else ("numpy",):
        for a, b in zip(trained(kernel), wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("lr_factor", "error"), [(-1.0, InvalidValueError), (1e4, InvalidValueError), ("1", InvalidTypeError)]
)
def test_a_factor_of_the_rate_that_is_refused(lr_factor, error):
    with pytest.raises(error, match="lr_factor must be a finite number >= 0 and <= 1000; got"):
        xn.layers.Dense(1).add_weight("w", (1,), lr_factor=lr_factor)


@pytest.mark.parametrize("name", ["AdamW", "Lamb", "SGD"])
def test_exclusion_from_decay_like_keras(backend64, keras, name):
    rng = np.random.default_rng(6)
    start, grads = rng.standard_normal(10), rng.standard_normal((6, 10))
    variables = [
        keras.Variable(start[s].reshape(SHAPES[k]), dtype="float64", name=k) for k, s in LAYOUT.slices.items()
    ]
    theirs, mine = (getattr(m, name)(0.1, weight_decay=0.3) for m in (keras.optimizers, optimizers))
    theirs.exclude_from_weight_decay(var_names=["bias", "sc.le"])
    mine.exclude_from_weight_decay(var_names=["bias", "sc.le"])
    theirs.build(variables)
    theta = backend64.array(start)
    state = mine.init(theta, LAYOUT)
    for g in grads:
        parts = [g[s].reshape(SHAPES[k]) for k, s in LAYOUT.slices.items()]
        theirs.apply([keras.ops.convert_to_tensor(part, dtype="float64") for part in parts])
        theta, state = mine.update(theta, backend64.array(g), state, LAYOUT)
        wanted = [keras.ops.convert_to_numpy(v).reshape(-1) for v in variables]
        assert_close(backend64.host(theta), np.concatenate(wanted), rtol=1e-5, atol=1e-5)


def test_what_is_excluded_is_in_the_config(tmp_path):
    opt = AdamW(0.1)
    assert "exclude_from_weight_decay" not in opt.get_config()
    opt.exclude_from_weight_decay(["bias", "gamma"])
    again = optimizers.get({"class_name": "AdamW", "config": opt.get_config()})
    assert again.excluded == ("bias", "gamma")
    assert again.get_config() == opt.get_config()
    model = xn.Sequential([xn.layers.Input((3,)), xn.layers.Dense(1)], seed=0)
    model.compile(opt, "mse")
    model.save(tmp_path / "m.safetensors")
    assert xn.load_model(tmp_path / "m.safetensors").optimizer.excluded == ("bias", "gamma")
    for wrong, error in (("bias", InvalidTypeError), ([1], InvalidTypeError), (["("], InvalidValueError)):
        with pytest.raises(error, match="var_names must be"):
            opt.exclude_from_weight_decay(wrong)
        assert opt.excluded == ("bias", "gamma")


class Counted(optimizers.Optimizer):
    """A user-defined optimizer with one scalar slot that starts at 2, and one that starts at -1."""

    slots = {"factor": 2.0, "last": -1.0}
    scalar_slots = ("factor",)

    def formula(self, xp):
        def at(w, g, f, last, lr):
            return w - lr * f * g + 0.001 * last, 0.5 * f, g

        return at


@pytest.mark.parametrize("lead", [(), (2,)])
def test_slots_of_one_number(backend64, lead):
    opt, rng = Counted(0.1), np.random.default_rng(4)
    w, g = rng.standard_normal((2, *lead, 3))
    theta, grad = backend64.array(w), backend64.array(g)
    state = opt.init(theta)
    assert [tuple(s.shape) for s in state.slots] == [(2, 1) if lead else (), (*lead, 3)]
    theta, state = opt.update(theta, grad, state)
    wanted = w - 0.2 * g - 0.001
    assert_close(theta, backend64.array(wanted))
    theta, state = opt.update(theta, grad, state)
    assert_close(theta, backend64.array(wanted - 0.1 * g + 0.001 * g))
    np.testing.assert_array_equal(backend64.host(state.slots[0]), np.full((2, 1) if lead else (), 0.5))


@pytest.mark.parametrize("make", [lambda: Counted(0.01), lambda: Adagrad(0.1, initial_accumulator_value=0.7)])
def test_slots_in_a_model_and_in_a_file(make, tmp_path):
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((12, 3)), rng.standard_normal((12, 2))

    def model_of():
        model = xn.Sequential([xn.layers.Dense(4, activation="tanh"), xn.layers.Dense(2)], seed=1)
        model.compile(make(), "mse")
        return model

    whole, first = model_of(), model_of()
    for _ in range(6):
        whole.train_on_batch(x, y)
    for _ in range(3):
        first.train_on_batch(x, y)
    first.save(tmp_path / "m.safetensors")
    again = xn.load_model(tmp_path / "m.safetensors", custom_objects={"Counted": Counted})
    assert [s.shape for s in again.state.slots] == [s.shape for s in first.state.slots]
    for _ in range(3):
        again.train_on_batch(x, y)
    for a, b in zip(again.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    values = whole.optimizer.slots.values()
    fresh = whole.optimizer.first_slots(get_backend(dtype="float32"), (3,))
    assert [float(np.asarray(get_backend().host(s)).max()) for s in fresh] == pytest.approx(list(values))


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
    opt, theta = OPTIMIZERS[name][0](0.5), backend.zeros(3)
    theta, _ = opt.update(theta, backend.array([3.0, -0.01, 100.0], "float32"), opt.init(theta))
    wanted = backend.array([-0.5, 0.5, -0.5], "float32")
    assert_close(theta, wanted, rtol=2e-5 if name == "adam_corrected" else 4e-4)


# Settings that change ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opt", "name", "value"),
    [
        (SGD(momentum=0.9), "momentum", 0.99999),
        (Momentum(), "beta", 0.99999),
        (RMSprop(), "rho", 0.99999),
        (RMSprop(), "epsilon", 0.0),
        (Adam(), "beta_1", 0.99999),
        (AdamW(), "beta_2", 0.99999),
        (Adam(), "epsilon", 0.0),
        (SGD(), "weight_decay", 1e9),
    ],
)
def test_whether_it_can_overflow_goes_by_the_settings_as_they_are(opt, name, value):
    assert opt.never_overflows
    former = getattr(opt, name)
    setattr(opt, name, value)
    assert not opt.never_overflows
    setattr(opt, name, former)
    assert opt.never_overflows


def test_a_setting_changed_before_training_cannot_bring_nan_past_the_guard():
    model, opt = xn.Sequential([xn.layers.Input((3,)), xn.layers.Dense(1)], seed=0), Adam()
    opt.epsilon = 0.0
    model.compile(opt, "mse")
    before = model.get_weights()
    with pytest.raises(xn.errors.NonFiniteError):  # the gradient is 0, and so is the root
        model.fit(np.zeros((4, 3)), np.zeros((4, 1)), verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_nor_can_one_changed_between_steps():
    model, opt = xn.Sequential([xn.layers.Input((3,)), xn.layers.Dense(1)], seed=0), Adam()
    model.compile(opt, "mse")
    model.train_on_batch(np.zeros((4, 3)), np.zeros((4, 1)))
    opt.epsilon = 0.0
    for _ in range(2):
        with contextlib.suppress(xn.errors.NonFiniteError):
            model.train_on_batch(np.zeros((4, 3)), np.zeros((4, 1)))
    assert all(np.isfinite(w).all() for w in model.get_weights())


class Overflowing(SGD):
    def apply(self, ctx, w, g, slots, lr, age, factor=None):
        return ctx.xp.full_like(w, -math.inf), slots


class Advancing(Adam):
    def advance(self, ctx, w, g, slots, lr, age, slices, factor=None):
        return ctx.xp.full_like(w, math.inf), slots


class Mixed(type("Mixin", (), {"apply": Overflowing.apply}), SGD):
    pass


class Sure(SGD):
    never_overflows = True

    def apply(self, ctx, w, g, slots, lr, age, factor=None):
        return w, slots


class Inherits(SGD):
    pass


def test_who_overrides_the_update_answers_for_it():
    classes = (Overflowing, Advancing, Mixed, Sure, Inherits)
    assert [cls().never_overflows for cls in classes] == [False, False, False, True, True]


@pytest.mark.parametrize("cls", [Overflowing, Advancing, Mixed])
def test_the_guard_looks_at_the_weights_of_an_overridden_update(cls):
    model = xn.Sequential([xn.layers.Input((3,)), xn.layers.Dense(1)], seed=0)
    model.compile(cls(), "mse")
    before = model.get_weights()
    with pytest.raises(xn.errors.NonFiniteError):
        model.train_on_batch(np.ones((4, 3)), np.zeros((4, 1)))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_momentum_given_later_has_a_velocity():
    models = []
    for momentum in (0.9, 0.0):
        opt = SGD(0.1, momentum=momentum)
        opt.momentum = 0.9
        models.append(xn.Sequential([xn.layers.Input((3,)), xn.layers.Dense(1)], seed=0))
        models[-1].compile(opt, "mse")
        models[-1].fit(np.ones((8, 3)), np.ones((8, 1)), batch_size=2, verbose=0)
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(one, other)
    models[0].optimizer.momentum = 0.0
    assert models[0].optimizer.slots == ()


def test_the_settings_are_plain_numbers():
    config = Adam(np.float32(0.5), beta_1=np.float64(0.5), clipnorm=np.float32(2.0)).get_config()
    assert {type(value) for value in config.values()} == {float, bool, str, type(None)}
    assert (config["learning_rate"], config["clipnorm"]) == (0.5, 2.0)


@pytest.mark.parametrize(
    ("opt", "name", "value"),
    [
        (SGD(), "momentum", 7.0),
        (Adam(), "beta_1", 7.0),
        (Adam(), "beta_2", 1.0),
        (RMSprop(), "epsilon", -1.0),
        (RMSprop(), "rho", "much"),
        (Momentum(), "beta", -0.5),
        (SGD(), "clipnorm", 0.0),
        (SGD(), "weight_decay", math.inf),
        (Adam(), "epsilon_on", "square"),
    ],
)
def test_a_setting_out_of_range_is_refused_when_it_is_assigned(opt, name, value):
    former = getattr(opt, name)
    with pytest.raises((InvalidValueError, InvalidTypeError)):
        setattr(opt, name, value)
    assert getattr(opt, name) == former


# update is pure -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_update_changes_nothing_that_was_passed_in(backend, name):
    opt = OPTIMIZERS[name][0](0.1)
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
    opt.learning_rate = 99.0  # does not affect an existing state
    theta, state = opt.update(theta, backend.array([1.0, 2.0], "float32"), state)
    assert_close(theta, backend.array([-0.5, -1.0], "float32"))
    theta, _ = opt.update(theta, backend.array([1.0, 2.0], "float32"), state._replace(learning_rate=0.0))
    assert_close(theta, backend.array([-0.5, -1.0], "float32"))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_library_and_dtype_are_the_variables(backend, name):
    opt = OPTIMIZERS[name][0](0.1)
    for dtype in ("float32", "float64"):
        theta = backend.array(np.ones(3), dtype)
        new, state = opt.update(theta, backend.array(np.ones(3), "float64"), opt.init(theta))
        for a in (new, *state.slots):
            assert_close(a, theta, atol=1e9)
    new, state = opt.update(np.ones(3), np.ones(3), opt.init(np.ones(3)))
    assert {type(a) for a in (new, *state.slots)} == {np.ndarray}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_of_several_models_at_once(backend64, name):
    """A leading axis of models: each is updated as it would be alone."""
    opt, rng = OPTIMIZERS[name][0](0.1), np.random.default_rng(2)
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
    ("name", "cls"),
    [("sgd", SGD), ("SGD", SGD), ("momentum", Momentum), ("rmsprop", RMSprop), ("adam", Adam), ("adamw", AdamW)],
)
def test_names(name, cls):
    assert type(optimizers.get(name)) is cls


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_config_round_trip(name):
    opt = OPTIMIZERS[name][0](0.125)
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
        (lambda: SGD(weight_decay=-0.1), InvalidValueError, "weight_decay must be a finite number >= 0; got -0.1"),
        (lambda: AdamW(weight_decay=None), InvalidTypeError, "got None"),
        (lambda: Adam(clipnorm=0), InvalidValueError, "clipnorm must be a finite number > 0; got 0"),
        (lambda: Adam(clipvalue=-1.0), InvalidValueError, "got -1.0"),
        (lambda: RMSprop(global_clipnorm="1"), InvalidTypeError, "got '1'"),
        (lambda: SGD(clipnorm=1.0, clipvalue=2.0), InvalidValueError, "got {'clipnorm': 1.0, 'clipvalue': 2.0}"),
        (lambda: SGD().update(np.ones(3), np.ones(2), SGD().init(np.ones(3))), ShapeError, "shape (3,); got (2,)"),
    ],
)
def test_errors(call, error, ends):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).endswith(ends)


def test_who_is_excluded_from_decay_counts_from_the_next_step_on():
    model = xn.Sequential([xn.layers.Input((3,)), xn.layers.Dense(2, bias_initializer="ones")], seed=0)
    model.compile(SGD(0.5, weight_decay=0.5), "mse")
    x = np.ones((4, 3))
    for excluded in ([], ["bias"]):
        model.optimizer.exclude_from_weight_decay(excluded)
        for _ in range(1 if excluded else 3):  # recorded by the third one, if possible
            kernel, bias = model.get_weights()
            model.train_on_batch(x, np.asarray(model.predict(x)))  # the gradient is 0
        new = model.get_weights()
        np.testing.assert_allclose(new[0], 0.75 * kernel, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(new[1], bias if excluded else 0.75 * bias, rtol=1e-5)


class Hiding(SGD):
    """A user-defined formula with an attribute that is not an argument."""

    hidden = 1.0

    def formula(self, xp):
        return lambda w, g, lr: w - self.hidden * lr * g


def test_an_attribute_that_is_no_setting_counts_too():
    """Such an optimizer is not recorded: a model can't notice the change."""
    weights = []
    for hidden in (1.0, 0.0):
        opt = Hiding(0.1)
        opt.hidden = 1.0
        model = xn.Sequential([xn.layers.Input((3,)), xn.layers.Dense(1)], seed=0)
        model.compile(opt, "mse")
        for step in range(4):
            opt.hidden = hidden if step == 3 else 1.0
            before = model.get_weights()[0]
            model.train_on_batch(np.ones((4, 3)), np.zeros((4, 1)))
        weights.append((before, model.get_weights()[0]))
    if get_backend().name != "jax":  # JAX compiles the step
        assert (weights[1][0] == weights[1][1]).all()
    assert (weights[0][0] != weights[0][1]).all()
