"""Activations generated from their formulas on every machine of the host, against the formulas on arrays."""

import importlib
import os

import numpy as np
import pytest
from cases import ACTIVATIONS, ELEMENTWISE

import xpnet as xn
from xpnet import kernels, setting
from xpnet.activations import Activation, LeakyReLU, ReLU
from xpnet.backend import get_backend
from xpnet.core import ops
from xpnet.errors import number
from xpnet.fusion.activation import activation_graphs
from xpnet.fusion.calls import by_bits, plan
from xpnet.fusion.trace import Symbol
from xpnet.kernels.context import Arena, Context
from xpnet.layers import Dense
from xpnet.training.replay import Replay

BACKEND = os.environ.get("XPNET_BACKEND") or "numpy"
MACHINES = [  # those of the host
    (module, op)
    for module, names in kernels.TWINS.get(BACKEND, {}).items()
    for op in ("affine", "activate")
    if op in names and not module.startswith("cuda")
]
needs_machines = pytest.mark.skipif(not MACHINES, reason="formulas run on arrays there, or are tested elsewhere")
records = pytest.mark.skipif(BACKEND != "numpy", reason="steps are recorded on NumPy")
RNG = np.random.default_rng(0)


def made(forward, backward):
    """Return a user-defined activation with these formulas."""
    methods = {"forward": lambda self, xp, z: forward(xp, z), "backward": lambda self, xp, *a: backward(xp, *a)}
    return type("Own", (Activation,), methods)()


class Swish(Activation):
    """z / (1 + exp(-beta z)); its backward reads z."""

    beta: float = setting(number, default=1.0)

    def forward(self, xp, z):
        return z / (1.0 + xp.exp(-self.beta * z))

    def backward(self, xp, da, z, a):
        s = 1.0 / (1.0 + xp.exp(-self.beta * z))
        return da * (s + self.beta * a * (1.0 - s))


class Bent(ReLU):
    """A ReLU with another forward."""

    def forward(self, xp, z):
        return xp.where(z > 0, z, 0.5 * z)


FUNCTIONS = {name: ACTIVATIONS[name][0] for name in ELEMENTWISE}
FUNCTIONS |= {
    "rising to the left": LeakyReLU(-0.3),
    "swish": Swish(),
    "bent": Bent(),
    "straight through": made(lambda xp, z: z, lambda xp, da, z, a: xp.where(xp.abs(z) <= 1, da, 0.0)),
    "hard": made(
        lambda xp, z: xp.minimum(xp.maximum(-1.0, z), 1.0),
        lambda xp, da, z, a: xp.where((z > -1) & (z < 1), da, xp.zeros_like(da)),
    ),
    "guarded": made(  # the branch not selected is NaN
        lambda xp, z: xp.where(z > 0, xp.log(z), 0.0), lambda xp, da, z, a: xp.where(z <= 0, 0.0, da / z)
    ),
    "signs": made(
        lambda xp, z: xp.where(z > 0, 1.0, -0.5), lambda xp, da, z, a: xp.where(z == 0, -da, xp.sign(z) * da)
    ),
    "square": made(  # only its backward is slow in a loop
        lambda xp, z: z * z, lambda xp, da, z, a: xp.where(a > 1e-9, 2.0 * da * xp.exp(xp.log(a) / 2), da)
    ),
    "constant": made(lambda xp, z: xp.full_like(z, 2.0), lambda xp, da, z, a: xp.zeros_like(da)),
    "step": made(lambda xp, z: xp.astype(z > 0, z.dtype), lambda xp, da, z, a: da * xp.abs(a - 0.5)),
    "minus zero": made(
        lambda xp, z: xp.where(z > 0, z, -0.0), lambda xp, da, z, a: xp.where(~(z > 0), -0.0, da)
    ),
}  # fmt: skip
ODD = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3e-3, -7.0, 20.0, np.inf, -np.inf, np.nan])
PAIRS = [a.reshape(-1, 1) for a in np.meshgrid(ODD, ODD)]


def run(op, inplace, function, dtype, z, dy, affine):
    """Return y, dz and db. Args: affine: whether it is `ops.affine`, with a bias if all z are finite."""
    backend = get_backend(dtype=dtype)
    ctx = Context(backend, True, None, Arena(backend.xp, backend.device) if inplace else None)
    shift = 0.25 if np.isfinite(z).all() else 0.0
    hosts = z - shift if affine else z, dy, np.eye(z.shape[1]), np.full(z.shape[1], shift)
    x, dy, kernel, bias = given = [backend.array(a, dtype) for a in hosts]
    with np.errstate(all="ignore"):
        y, back = op(ctx, x, kernel, bias, function) if affine else op(ctx, x, function)
        before = np.array(backend.host(y))
        dx = back(dy, {}) if affine else back(dy)
    np.testing.assert_array_equal(backend.host(y), before)
    for a, host in zip(given, hosts, strict=True):
        np.testing.assert_array_equal(backend.host(a), host.astype(dtype))
    grads = [dx[0], dx[1]["bias"]] if affine else [dx]
    return [before, *(np.array(backend.host(a)) for a in grads)]


def same(module, name, function, dtype, z, dy):
    """Compare a machine with the definition."""
    if module == "host.numba":
        pytest.importorskip("numba")
    op, body = getattr(importlib.import_module(f"xpnet.kernels.{module}"), name), getattr(ops, name)
    found = run(op, True, function, dtype, z, dy, name == "affine")
    wanted = run(body, False, function, dtype, z, dy, name == "affine")
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        rtol, atol = (3e-6, 1e-6) if dtype == "float32" else (1e-13, 1e-14)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * (len(z) if i == 2 else 1))  # a sum over rows
    return found


@needs_machines
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("module", "op"), MACHINES)
def test_every_formula_at_every_number(module, op, function, dtype):
    """With one unit, so that z and dz can be given and read, including NaN and infinity."""
    z, dy = PAIRS
    if module == "torch" and function in ("relu", "bent"):
        z = np.where(np.isnan(z), 3.0, z)  # see below
    if module == "torch" and function == "gelu":
        z, dy = (np.where(np.isinf(a), 3.0, a) for a in PAIRS)  # at infinity its vector instructions give NaN
    assert activation_graphs(FUNCTIONS[function]) is not None
    y, *_ = same(module, op, FUNCTIONS[function], dtype, z, dy)
    if function == "minus zero":
        np.testing.assert_array_equal(np.signbit(y), ~(z > 0))


@needs_machines
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(7, 5), (1, 1), (300, 400), (20_000, 9)])
@pytest.mark.parametrize(("module", "op"), MACHINES)
def test_shapes_of_one_block_and_of_several(module, op, shape, dtype):
    z, dy = RNG.standard_normal((2, *shape))
    for name in ("relu", "leaky_relu", "tanh", "sigmoid", "hard", "swish", "rising to the left", "square"):
        same(module, op, FUNCTIONS[name], dtype, z, dy)


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's own functions")
def test_pytorchs_own_functions_are_found_by_formula():
    from xpnet.kernels import torch_calls

    known = torch_calls._OWN | torch_calls._OWN_IN_PLACE
    found = {
        (name, side): (graph.key, graph.constants) in known
        for name in FUNCTIONS
        for side, graph in zip(("forward", "backward"), activation_graphs(FUNCTIONS[name]))
    }
    assert {key for key, yes in found.items() if yes} == {
        ("relu", "forward"), ("relu", "backward"), ("sigmoid", "forward"), ("bent", "backward"),
        ("silu", "forward"), ("silu", "backward"), ("gelu", "forward"), ("gelu", "backward"),
    }  # fmt: skip
    y, dz = run(importlib.import_module("xpnet.kernels.torch").activate, True, ReLU(), "float32",
                np.array([[-1.0, 2.0, np.nan]]), np.array([[np.inf, np.inf, 2.0]]), False)  # fmt: skip
    np.testing.assert_array_equal(dz, [[0.0, np.inf, 2.0]])  # for z = NaN: the guard rejects such a step
    np.testing.assert_array_equal(y, [[0.0, 2.0, np.nan]])


@needs_machines
@pytest.mark.parametrize(("module", "op"), MACHINES)
def test_derivatives_of_another_dtype_and_layout(module, op):
    backend = get_backend(dtype="float32")
    twin = getattr(importlib.import_module(f"xpnet.kernels.{module}"), op)
    z, dy = RNG.standard_normal((2, 6, 4))
    for function in (ReLU(), LeakyReLU(), Swish(), FUNCTIONS["square"]):
        ctx = Context(backend, True, None, Arena(backend.xp, backend.device))
        x, w, b = (backend.array(a, "float32") for a in (z, np.eye(4), np.zeros(4)))
        for given in (backend.array(dy, "float64"), backend.xp.matrix_transpose(backend.array(dy.T, "float32"))):
            y, back = twin(ctx, x, w, b, function) if op == "affine" else twin(ctx, x, function)
            dx = back(given, {})[0] if op == "affine" else back(given)
            wanted = function.backward(backend.xp, backend.array(dy, "float32"), x, y)
            np.testing.assert_allclose(backend.host(dx), backend.host(wanted), rtol=1e-5, atol=1e-6)


def test_as_few_calls_as_by_hand():
    found = {}
    for name in ("linear", "relu", "tanh", "sigmoid", "leaky_relu"):
        forward, backward = activation_graphs(FUNCTIONS[name])
        plans = plan(by_bits(forward), (0,)), plan(by_bits(backward), (None,))
        found[name] = [(len(p.calls), p.reals, p.bools) for p in plans]
    assert found == {
        "linear": [(0, 0, 0), (1, 0, 0)],  # no copy: see `compute`
        "relu": [(1, 0, 0), (2, 0, 1)],
        "tanh": [(1, 0, 0), (3, 0, 0)],
        "sigmoid": [(9, 1, 1), (3, 0, 0)],
        "leaky_relu": [(5, 1, 1), (5, 1, 1)],
    }


@pytest.mark.skipif(BACKEND != "numpy", reason="numba's loops are for NumPy")
def test_where_a_loop_is_faster():
    pytest.importorskip("numba")
    from xpnet.kernels.host.numba import _is_faster

    wanted = {
        "linear": (False, False), "relu": (True, True), "leaky_relu": (True, True), "tanh": (False, True),
        "sigmoid": (False, True), "step": (True, True), "relu_all": (True, True), "elu": (False, True),
        "softplus": (False, False), "squareplus": (True, True), "hard_silu": (True, True),
    }  # fmt: skip
    assert {n: tuple(map(_is_faster, activation_graphs(FUNCTIONS[n]))) for n in wanted} == wanted


# In training ----------------------------------------------------------------------------------------------------


def trained(function, graph, alone=False, change=None, dtype="float32"):
    layers = [Dense(5), xn.layers.Activation(function)] if alone else [Dense(5, activation=function)]
    model = xn.Sequential([*layers, Dense(2)], seed=2, dtype=dtype)
    model.compile("adam", "mse", graph=graph)
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((10, 6)), rng.standard_normal((10, 2))
    for step in range(6):
        if step == 4 and change is not None:
            change(function)
        model.train_on_batch(x, y)
    return model


def bits(model):
    return [w.tobytes() for w in model.get_weights()]


@records
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("alone", [False, True], ids=["dense", "alone"])
@pytest.mark.parametrize("function", [name for name in FUNCTIONS if name != "guarded"])
def test_recorded_steps_leave_the_same_bits(monkeypatch, function, alone, dtype):
    monkeypatch.delenv("XPNET_GRAPH", raising=False)
    monkeypatch.delenv("XPNET_KERNELS", raising=False)
    for choice in ("numpy", *(["fast"] if function in ("relu", "leaky_relu", "hard", "tanh") else [])):
        if choice == "fast":
            pytest.importorskip("numba")
        with kernels.using(choice):
            recorded, plain = (trained(FUNCTIONS[function], graph, alone, dtype=dtype) for graph in (True, False))
        run = recorded.session.program().run
        assert isinstance(run, Replay)
        assert run.recordings
        assert bits(recorded) == bits(plain)
    with kernels.using("bodies"):
        wanted = trained(FUNCTIONS[function], False, alone, dtype=dtype)
    for a, b in zip(recorded.get_weights(), wanted.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3 if dtype == "float32" else 1e-9, atol=1e-4)


@pytest.mark.parametrize("alone", [False, True], ids=["dense", "alone"])
def test_a_changed_setting_counts_from_the_next_step_on(alone):
    def change(function):
        function.beta = 3.0

    with_and_without = [trained(Swish(), graph, alone, change) for graph in (True, False)]
    for a, b in zip(*(model.get_weights() for model in with_and_without), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert bits(with_and_without[0]) != bits(trained(Swish(), True, alone))


@needs_machines
@pytest.mark.skipif(os.environ.get("XPNET_KERNELS") in ("0", "bodies"), reason="formulas run on arrays then")
@pytest.mark.parametrize("alone", [False, True], ids=["dense", "alone"])
def test_a_step_runs_the_calls_and_not_the_formula(alone):
    given = []

    class Watched(Swish):
        def forward(self, xp, z):
            given.append(type(z))
            return super().forward(xp, z)

        def backward(self, xp, da, z, a):
            given.append(type(z))
            return super().backward(xp, da, z, a)

    trained(Watched(), False, alone)
    assert set(given) == {Symbol}


def test_a_layer_keeps_the_function_of_its_slope():
    layer = xn.layers.LeakyReLU(0.2)
    first = layer.activation
    assert layer.activation is first
    layer.negative_slope = 0.3
    assert (layer.activation.negative_slope, first.negative_slope) == (0.3, 0.2)
    assert "_function" not in repr(layer) + str(layer.get_config())
