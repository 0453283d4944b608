"""Optimizers beside those of Keras, PyTorch and optax: 50 updates in float64 from equal weights."""

import inspect
import warnings

import numpy as np
import pytest

from xpnet import initializers, optimizers, schedules
from xpnet.backend import use_backend
from xpnet.core.params import Layout, ParamSpec

STEPS = 50
SHAPES = {"dense/kernel": (4, 3), "dense/bias": (3,), "out/kernel": (3, 5), "embeddings": (2, 3), "scale": ()}
LAYOUT = Layout([(key, 0, ParamSpec(key, shape, initializers.get("zeros"))) for key, shape in SHAPES.items()])


def weights_and_gradients(seed, layout=LAYOUT):
    """Gradients of many sizes: some are clipped, others not."""
    rng = np.random.default_rng(seed)
    sizes = 3.0 ** rng.integers(-4, 3, (STEPS, 1))
    return rng.standard_normal(layout.size), rng.standard_normal((STEPS, layout.size)) * sizes


@pytest.fixture(autouse=True)
def numpy64():
    with use_backend("numpy", dtype="float64"):
        yield


def trained(mine, start, grads, layout=LAYOUT):
    """Return the weights after each update, and those that training ends with."""
    theta, state, found = start, mine.init(start, layout), []
    for g in grads:
        theta, state = mine.update(theta, g, state, layout)
        found.append(theta)
    return found, mine.finalize_variable_values(theta, state.slots)


# Keras --------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    """PyTorch, which makes numbers float64 only if told so."""
    torch = pytest.importorskip("torch")
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def keras(torch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("keras")


KERAS = {
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop_momentum": ("RMSprop", {"rho": 0.8, "momentum": 0.5}),
    "rmsprop_centered": ("RMSprop", {"centered": True, "momentum": 0.5, "epsilon": 1e-3}),
    "adagrad": ("Adagrad", {"initial_accumulator_value": 0.3}),
    "adadelta": ("Adadelta", {}),
    "adadelta_settings": ("Adadelta", {"rho": 0.7, "epsilon": 1e-3}),
    "adam": ("Adam", {}),
    "adam_settings": ("Adam", {"beta_1": 0.6, "beta_2": 0.8, "epsilon": 1e-3}),
    "amsgrad": ("Adam", {"amsgrad": True}),
    "adamw": ("AdamW", {}),
    "adamax": ("Adamax", {}),
    "adamax_settings": ("Adamax", {"beta_1": 0.6, "beta_2": 0.8, "epsilon": 1e-3}),
    "nadam": ("Nadam", {}),
    "nadam_settings": ("Nadam", {"beta_1": 0.6, "beta_2": 0.8, "epsilon": 1e-3}),
    "ftrl": ("Ftrl", {}),
    "ftrl_settings": (
        "Ftrl",
        {
            "learning_rate_power": -0.3, "initial_accumulator_value": 0.2, "l1_regularization_strength": 0.5,
            "l2_regularization_strength": 0.1, "l2_shrinkage_regularization_strength": 0.05, "beta": 0.2,
        },
    ),
    "ftrl_fixed_rate": ("Ftrl", {"learning_rate_power": 0.0}),
    "lion": ("Lion", {}),
    "lion_settings": ("Lion", {"beta_1": 0.6, "beta_2": 0.8}),
    "lamb": ("Lamb", {}),
    "adafactor": ("Adafactor", {}),
    "adafactor_settings": (
        "Adafactor",
        {"beta_2_decay": -0.5, "epsilon_1": 1e-3, "epsilon_2": 0.1, "clip_threshold": 0.5, "relative_step": False},
    ),
    "muon": ("Muon", {}),
    "muon_settings": (
        "Muon",
        {
            "adam_beta_1": 0.8, "adam_beta_2": 0.9, "adam_weight_decay": 0.1, "epsilon": 1e-3, "weight_decay": 0.2,
            "exclude_layers": ["out"], "exclude_embeddings": False, "adam_lr_ratio": 0.5, "momentum": 0.8,
            "ns_steps": 3, "nesterov": False, "rms_rate": None,
        },
    ),
}  # fmt: skip
MORE = {
    "plain": {},
    "clipnorm": {"clipnorm": 0.7},
    "clipvalue": {"clipvalue": 0.2},
    "global_clipnorm": {"global_clipnorm": 0.9},
    "decay": {"weight_decay": 0.05},
    "ema": {"use_ema": True, "ema_momentum": 0.8},
    "ema_overwrites": {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 4},
    "accumulation": {"gradient_accumulation_steps": 3, "weight_decay": 0.05, "global_clipnorm": 0.9},
    "both": {
        "gradient_accumulation_steps": 2, "clipnorm": 0.7, "use_ema": True, "ema_momentum": 0.8,
        "ema_overwrite_frequency": 5,
    },
}  # fmt: skip


def of_keras(keras, theirs, start, grads):
    """Return the same as `trained`."""
    parts = {k: start[s].reshape(SHAPES[k]) for k, s in LAYOUT.slices.items()}
    variables = [keras.Variable(part, dtype="float64", name=key.replace("/", "_")) for key, part in parts.items()]
    theirs.build(variables)

    def now():
        return np.concatenate([keras.ops.convert_to_numpy(v).reshape(-1) for v in variables])

    found = []
    for g in grads:
        gradient = [g[s].reshape(SHAPES[k]) for k, s in LAYOUT.slices.items()]
        theirs.apply([keras.ops.convert_to_tensor(part, dtype="float64") for part in gradient])
        found.append(now())
    theirs.finalize_variable_values(variables)
    return found, now()


def compare(agree, keras, name, config, rate=0.1, theirs_rate=0.1):
    start, grads = weights_and_gradients(6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = getattr(keras.optimizers, name)(theirs_rate, **config)
        wanted, last = of_keras(keras, theirs, start, grads)
    found, end = trained(getattr(optimizers, name)(rate, **config), start, grads)
    assert np.abs(wanted[-1] - start).max() > 1e-4
    for a, b in zip(found, wanted, strict=True):
        agree(a, b)
    agree(end, last)


@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize("case", KERAS)
def test_keras(agree, keras, case, more):
    name, config = KERAS[case]
    compare(agree, keras, name, {**config, **MORE[more]})


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("case", ["momentum", "adam", "ftrl", "adafactor", "muon"])
def test_keras_with_a_schedule(agree, keras, case, steps):
    """It counts steps, whether they update or not."""
    name, config = KERAS[case]
    theirs = keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.7)
    mine = schedules.ExponentialDecay(0.1, 5, 0.7)
    compare(agree, keras, name, {**config, "gradient_accumulation_steps": steps}, mine, theirs)


@pytest.mark.parametrize("name", sorted(set(optimizers.registry.exports()) - {"LBFGS", "Momentum"}))
def test_keras_has_these_arguments(keras, name):
    """Names and defaults are Keras'; where the order differs, `docs/peers.md` says so."""
    theirs, mine = (inspect.signature(getattr(m, name)).parameters for m in (keras.optimizers, optimizers))
    wanted = {k: p.default for k, p in theirs.items() if k not in ("kwargs", "loss_scale_factor")}
    found = {k: p.default for k, p in mine.items()}
    assert set(wanted) - set(found) == set()
    for key, default in wanted.items():
        if key not in ("name", "exclude_layers"):
            assert found[key] == default, key
    own = [key for key in found if key in wanted]
    if name != "Muon":
        assert own == list(wanted)


# PyTorch ------------------------------------------------------------------------------------------------

FLAT = Layout([("w", 0, ParamSpec("w", (20,), initializers.get("zeros")))])
TORCH = {
    "sgd": ("SGD", {}, lambda: optimizers.SGD(0.05)),
    "momentum": ("SGD", {"momentum": 0.9}, lambda: optimizers.SGD(0.05, 0.9)),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}, lambda: optimizers.SGD(0.05, 0.9, nesterov=True)),
    "rmsprop": ("RMSprop", {"alpha": 0.9}, lambda: optimizers.RMSprop(0.05, epsilon=1e-8, epsilon_on="root")),
    "rmsprop_centered": (
        "RMSprop", {"alpha": 0.9, "centered": True, "momentum": 0.5, "eps": 1e-3},
        lambda: optimizers.RMSprop(0.05, momentum=0.5, epsilon=1e-3, centered=True, epsilon_on="root"),
    ),
    "adagrad": ("Adagrad", {"eps": 0.0}, lambda: optimizers.Adagrad(0.05, 0.0, 0.0)),
    "adadelta": ("Adadelta", {"rho": 0.9, "eps": 1e-6}, lambda: optimizers.Adadelta(0.05, 0.9, 1e-6)),
    "adam": ("Adam", {}, lambda: optimizers.Adam(0.05, epsilon=1e-8, epsilon_on="corrected")),
    "adamw": ("AdamW", {}, lambda: optimizers.AdamW(0.05, 0.01, epsilon=1e-8, epsilon_on="corrected")),
    "adamax": ("Adamax", {"eps": 0.0}, lambda: optimizers.Adamax(0.05, epsilon=0.0)),
    "adafactor": ("Adafactor", {}, lambda: optimizers.Adafactor(0.05, epsilon_1=0.0)),
    "nadam": ("NAdam", {"momentum_decay": 1.0}, lambda: optimizers.Nadam(0.05, epsilon=1e-8)),
    "nadam_decay": (
        "NAdam", {"momentum_decay": 1.0, "weight_decay": 0.1, "decoupled_weight_decay": True},
        lambda: optimizers.Nadam(0.05, epsilon=1e-8, weight_decay=0.1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TORCH)
def test_pytorch(agree, torch, case):
    name, config, make = TORCH[case]
    start, grads = weights_and_gradients(7, FLAT)
    leaf = torch.nn.Parameter(torch.tensor(start))
    theirs = getattr(torch.optim, name)([leaf], lr=0.05, **config)
    found, _ = trained(make(), start, grads, FLAT)
    for g, theta in zip(grads, found, strict=True):
        leaf.grad = torch.tensor(g)
        theirs.step()
        agree(theta, leaf.detach().numpy())


def test_pytorch_average(agree, torch):
    """`use_ema` is what `AveragedModel` keeps."""
    start, grads = weights_and_gradients(8, FLAT)
    leaf = torch.nn.Module()
    leaf.w = torch.nn.Parameter(torch.tensor(start))
    theirs = torch.optim.SGD(leaf.parameters(), lr=0.05)
    average = torch.optim.swa_utils.AveragedModel(
        leaf, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    mine = optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9)
    for g in grads:
        leaf.w.grad = torch.tensor(g)
        theirs.step()
        average.update_parameters(leaf)
    agree(trained(mine, start, grads, FLAT)[1], average.module.w.detach().numpy())


# optax --------------------------------------------------------------------------------------------------

PAIR = Layout([(k, 0, ParamSpec(k, s, initializers.get("zeros"))) for k, s in (("a", (4, 3)), ("b", (5,)))])
OPTAX = {
    "sgd": (lambda o: o.sgd(0.05), lambda: optimizers.SGD(0.05)),
    "nesterov": (
        lambda o: o.sgd(0.05, momentum=0.9, nesterov=True), lambda: optimizers.SGD(0.05, 0.9, nesterov=True),
    ),
    "rmsprop": (lambda o: o.rmsprop(0.05, decay=0.9, eps=1e-7), lambda: optimizers.RMSprop(0.05)),
    "rmsprop_centered": (
        lambda o: o.rmsprop(0.05, decay=0.9, eps=1e-3, centered=True),
        lambda: optimizers.RMSprop(0.05, epsilon=1e-3, centered=True),
    ),
    "adagrad": (lambda o: o.adagrad(0.05, eps=1e-7), lambda: optimizers.Adagrad(0.05, 0.1, 1e-7)),
    "adadelta": (lambda o: o.adadelta(0.05, rho=0.9, eps=1e-6), lambda: optimizers.Adadelta(0.05, 0.9, 1e-6)),
    "adam": (lambda o: o.adam(0.05), lambda: optimizers.Adam(0.05, epsilon=1e-8, epsilon_on="corrected")),
    "adamw": (
        lambda o: o.adamw(0.05, weight_decay=0.01),
        lambda: optimizers.AdamW(0.05, 0.01, epsilon=1e-8, epsilon_on="corrected"),
    ),
    "adamax": (lambda o: o.adamax(0.05, eps=0.0), lambda: optimizers.Adamax(0.05, epsilon=0.0)),
    "lion": (
        lambda o: o.lion(0.05, weight_decay=0.01), lambda: optimizers.Lion(0.05, weight_decay=0.01),
    ),
    "lamb": (lambda o: o.lamb(0.05, eps=1e-7), lambda: optimizers.Lamb(0.05)),
    "lamb_settings": (
        lambda o: o.lamb(0.05, b1=0.5, b2=0.7, eps=1e-3), lambda: optimizers.Lamb(0.05, 0.5, 0.7, 1e-3),
    ),
    "adafactor": (lambda o: o.adafactor(0.05, min_dim_size_to_factor=1), lambda: optimizers.Adafactor(0.05)),
    "muon": (
        lambda o: o.contrib.muon(0.05, ns_coeffs=(3.4445, -4.775, 2.0315), eps=1e-7, beta=0.95, nesterov=False,
                                 adam_eps_root=0.0, consistent_rms=0.2),
        lambda: optimizers.Muon(0.05, momentum=0.95, nesterov=False, weight_decay=None, adam_weight_decay=None),
    ),
    "accumulation": (
        lambda o: o.MultiSteps(o.adam(0.05), 4, accumulator_dtype="float64"),
        lambda: optimizers.Adam(0.05, epsilon=1e-8, epsilon_on="corrected", gradient_accumulation_steps=4),
    ),
}  # fmt: skip


@pytest.fixture
def optax():
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    return pytest.importorskip("optax")


@pytest.mark.parametrize("case", OPTAX)
def test_optax(agree, optax, case):
    make, ours = OPTAX[case]
    start, grads = weights_and_gradients(9, PAIR)
    grads = 1e6 * grads if case == "muon" else grads  # its momentum is an average, so that epsilon counts for more

    def split(flat):
        return {k: np.asarray(flat[s]).reshape(PAIR.shapes[k]) for k, s in PAIR.slices.items()}

    theirs, params = make(optax), split(start)
    state = theirs.init(params)
    found, _ = trained(ours(), start, grads, PAIR)
    for g, theta in zip(grads, found, strict=True):
        updates, state = theirs.update(split(g), state, params)
        params = optax.apply_updates(params, updates)
        wanted = np.concatenate([np.asarray(params[k]).reshape(-1) for k in PAIR.slices])
        agree(theta, wanted, 1e-7 if case == "adafactor" else 1e-10)  # its t^-0.8 is computed in float32


# SciPy --------------------------------------------------------------------------------------------------


def logistic(data):
    """Return the mean cross-entropy of a linear model with an L2 penalty, and its size."""
    x, y = data
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)
    classes = np.eye(y.max() + 1)[y]

    def function(w):
        w = w.reshape(x.shape[1], -1)
        z = x @ w
        z -= z.max(1, keepdims=True)
        p = np.exp(z)
        p /= p.sum(1, keepdims=True)
        value = -np.log((p * classes).sum(1)).mean() + 0.5e-2 * (w * w).sum()
        return value, (x.T @ (p - classes) / len(x) + 1e-2 * w).reshape(-1)

    return function, x.shape[1] * classes.shape[1]


@pytest.mark.parametrize("name", ["load_iris", "load_wine", "load_breast_cancer", "load_digits"])
def test_lbfgs_on_data(name):
    """Of a convex function the same minimum, by about as many iterations and evaluations."""
    datasets, scipy = pytest.importorskip("sklearn.datasets"), pytest.importorskip("scipy.optimize")
    function, size = logistic(getattr(datasets, name)(return_X_y=True))
    config = {"ftol": 0.0, "gtol": 1e-9}
    theirs = scipy.minimize(function, np.zeros(size), jac=True, method="L-BFGS-B", options=config)
    mine = optimizers.LBFGS(tol=1e-9, ftol=0.0).minimize(function, np.zeros(size))
    assert mine.converged
    assert abs(mine.value - theirs.fun) <= 1e-10 * theirs.fun
    np.testing.assert_allclose(mine.x, theirs.x, atol=1e-6)
    for found, wanted in ((mine.iterations, theirs.nit), (mine.evaluations, theirs.nfev)):
        assert wanted / 1.5 <= found <= 1.5 * wanted


@pytest.mark.parametrize("size", [2, 10, 100])
def test_lbfgs_on_rosenbrock(size):
    scipy = pytest.importorskip("scipy.optimize")
    start = np.full(size, -1.2)
    start[1::2] = 1.0
    theirs = scipy.minimize(scipy.rosen, start, jac=scipy.rosen_der, method="L-BFGS-B")
    mine = optimizers.LBFGS().minimize(lambda x: (scipy.rosen(x), scipy.rosen_der(x)), start)
    assert mine.converged
    assert max(mine.value, theirs.fun) < 1e-8
    assert theirs.nfev / 1.5 <= mine.evaluations <= 1.5 * theirs.nfev
