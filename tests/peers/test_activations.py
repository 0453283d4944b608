"""Activations beside Keras (on PyTorch) and PyTorch: values and gradients, in float64 on NumPy."""

import numpy as np
import pytest

from xpnet import activations, layers

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")

F = torch.nn.functional
A = keras.activations
RNG = np.random.default_rng(0)
# Numbers near and far, none at a corner of a function
Z = np.concatenate([RNG.uniform(-8, 8, (40, 12)), RNG.uniform(-60, 60, (8, 12))])
DA = RNG.standard_normal(Z.shape)

PEERS = {  # what is compared: (object, {peer: function})
    "linear": (activations.Linear(), {"keras": A.linear}),
    "sigmoid": (activations.Sigmoid(), {"keras": A.sigmoid, "torch": torch.sigmoid}),
    "tanh": (activations.Tanh(), {"keras": A.tanh, "torch": torch.tanh}),
    "relu": (activations.ReLU(), {"keras": A.relu, "torch": F.relu}),
    "relu_all": (
        activations.ReLU(0.2, 2.0, 0.4),
        {"keras": lambda z: A.relu(z, negative_slope=0.2, max_value=2.0, threshold=0.4)},
    ),
    "relu_max": (activations.ReLU(max_value=3.0), {"keras": lambda z: A.relu(z, max_value=3.0)}),
    "relu6": (activations.ReLU6(), {"keras": A.relu6, "torch": F.relu6}),
    "leaky_relu": (
        activations.LeakyReLU(0.2),
        {"keras": A.leaky_relu, "torch": lambda z: F.leaky_relu(z, 0.2)},
    ),
    "elu": (activations.Elu(), {"keras": A.elu, "torch": F.elu}),
    "elu_steep": (
        activations.Elu(2.5),
        {"keras": lambda z: A.elu(z, alpha=2.5), "torch": lambda z: F.elu(z, 2.5)},
    ),
    "selu": (activations.Selu(), {"keras": A.selu, "torch": F.selu}),
    "celu": (activations.Celu(), {"keras": A.celu, "torch": F.celu}),
    "celu_wide": (
        activations.Celu(2.0),
        {"keras": lambda z: A.celu(z, alpha=2.0), "torch": lambda z: F.celu(z, 2.0)},
    ),
    "threshold": (
        activations.Threshold(1.0, -3.0),
        {"keras": lambda z: A.threshold(z, 1.0, -3.0), "torch": lambda z: F.threshold(z, 1.0, -3.0)},
    ),
    "exponential": (activations.Exponential(), {"keras": A.exponential, "torch": torch.exp}),
    "gelu": (activations.Gelu(), {"keras": A.gelu, "torch": F.gelu}),
    "gelu_tanh": (
        activations.Gelu(approximate=True),
        {"keras": lambda z: A.gelu(z, approximate=True), "torch": lambda z: F.gelu(z, approximate="tanh")},
    ),
    "silu": (activations.Silu(), {"keras": A.silu, "torch": F.silu}),
    "softplus": (activations.Softplus(), {"keras": A.softplus, "torch": lambda z: F.softplus(z, threshold=1e3)}),
    "softsign": (activations.Softsign(), {"keras": A.softsign, "torch": F.softsign}),
    "mish": (activations.Mish(), {"keras": A.mish, "torch": F.mish}),
    "squareplus": (activations.Squareplus(), {"keras": A.squareplus}),
    "squareplus_sharp": (activations.Squareplus(0.125), {"keras": lambda z: A.squareplus(z, b=0.125)}),
    "sparse_plus": (activations.SparsePlus(), {"keras": A.sparse_plus}),
    "log_sigmoid": (activations.LogSigmoid(), {"keras": A.log_sigmoid, "torch": F.logsigmoid}),
    "sparse_sigmoid": (activations.SparseSigmoid(), {"keras": A.sparse_sigmoid}),
    "hard_sigmoid": (activations.HardSigmoid(), {"keras": A.hard_sigmoid, "torch": F.hardsigmoid}),
    "hard_silu": (activations.HardSilu(), {"keras": A.hard_silu, "torch": F.hardswish}),
    "hard_tanh": (activations.HardTanh(), {"keras": A.hard_tanh, "torch": F.hardtanh}),
    "hard_shrink": (activations.HardShrink(), {"keras": A.hard_shrink, "torch": F.hardshrink}),
    "hard_shrink_far": (
        activations.HardShrink(1.5),
        {"keras": lambda z: A.hard_shrink(z, threshold=1.5), "torch": lambda z: F.hardshrink(z, 1.5)},
    ),
    "soft_shrink": (activations.SoftShrink(), {"keras": A.soft_shrink, "torch": F.softshrink}),
    "soft_shrink_far": (
        activations.SoftShrink(1.5),
        {"keras": lambda z: A.soft_shrink(z, threshold=1.5), "torch": lambda z: F.softshrink(z, 1.5)},
    ),
    "tanh_shrink": (activations.TanhShrink(), {"keras": A.tanh_shrink, "torch": F.tanhshrink}),
    "softmax": (activations.Softmax(), {"keras": A.softmax, "torch": lambda z: F.softmax(z, -1)}),
    "softmax_0": (
        activations.Softmax(0),
        {"keras": lambda z: A.softmax(z, axis=0), "torch": lambda z: F.softmax(z, 0)},
    ),
    "log_softmax": (
        activations.LogSoftmax(),
        {"keras": A.log_softmax, "torch": lambda z: F.log_softmax(z, -1)},
    ),
    "log_softmax_0": (
        activations.LogSoftmax(axis=0),
        {"keras": lambda z: A.log_softmax(z, axis=0), "torch": lambda z: F.log_softmax(z, 0)},
    ),
    "sparsemax": (activations.Sparsemax(), {"keras": A.sparsemax}),
    "glu": (activations.Glu(), {"keras": A.glu, "torch": F.glu}),
    "glu_0": (activations.Glu(0), {"keras": lambda z: A.glu(z, axis=0), "torch": lambda z: F.glu(z, 0)}),
}
# See docs/peers.md: (name, peer) -> relative tolerances of value and gradient, and where they are compared
KNOWN = {
    ("softplus", "keras"): (1e-10, 1e-8, slice(None)),
    ("hard_sigmoid", "keras"): (1e-10, 1e-7, slice(None)),
    ("hard_sigmoid", "torch"): (1e-10, 1e-7, slice(None)),
    ("sparsemax", "keras"): (1e-10, 1e-10, (activations.sparsemax(Z) > 0).sum(-1) == 1),
}
CASES = [(name, peer) for name, (_, peers) in PEERS.items() for peer in peers]


@pytest.mark.parametrize(("name", "peer"), CASES)
def test_values_and_gradients(agree, name, peer):
    f, peers = PEERS[name]
    values, gradients, rows = KNOWN.get((name, peer), (1e-10, 1e-10, slice(None)))
    z = torch.tensor(Z, requires_grad=True)
    wanted = peers[peer](z)
    a = f(Z)
    agree(a[rows], wanted.detach()[rows], values)
    da = DA[: a.shape[0], : a.shape[1]]
    wanted.backward(torch.tensor(da))
    agree(f.backward(np, da, Z, a)[rows], z.grad[rows], gradients)


@pytest.mark.parametrize("axis", [-1, 0])
def test_sparsemax_is_the_projection_on_the_simplex(agree, axis):
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    f = activations.Sparsemax(axis)
    with jax.enable_x64(True):
        project = jax.vmap(optax.projections.projection_simplex, in_axes=1 + axis, out_axes=1 + axis)
        wanted, pull_back = jax.vjp(project, jax.numpy.asarray(Z))
        (gradient,) = pull_back(jax.numpy.asarray(DA))
    a = f(Z)
    assert a.dtype == wanted.dtype
    agree(a, wanted)
    agree(f.backward(np, DA, Z, a), gradient)
    assert ((a > 0).sum(axis) > 1).any()


def test_every_function_that_keras_has_is_here():
    names = {n for n in dir(A) if n[0] != "_"} - {"get", "serialize", "deserialize"}
    assert len(names) >= 31
    assert names <= set(activations.__all__)
    compared = {type(f) for f, _ in PEERS.values()}
    assert {type(activations.get(name)) for name in names} <= compared
    assert {type(activations.get(n)).__name__ for n in activations.registry.classes} - {
        f.__name__ for f in compared
    } == {"Step"}


LAYERS = [
    ("ReLU", {"max_value": 3.0, "negative_slope": 0.2, "threshold": 0.4}),
    ("LeakyReLU", {"negative_slope": 0.2}),
    ("ELU", {"alpha": 2.0}),
    ("Softmax", {"axis": 1}),
    ("Softmax", {"axis": -1}),
    ("Activation", {"activation": "mish"}),
]


@pytest.mark.parametrize(("name", "settings"), LAYERS)
def test_layers(agree, name, settings):
    z = RNG.uniform(-8, 8, (5, 4, 6))
    ours = getattr(layers, name)(**settings, dtype="float64")
    theirs = getattr(keras.layers, name)(**settings, dtype="float64")
    agree(ours(z), theirs(z).detach().cpu())
