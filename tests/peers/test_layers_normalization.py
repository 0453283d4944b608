"""Layers that normalize, add noise or penalize beside those of Keras (on PyTorch) and PyTorch."""

import math

import numpy as np
import pytest

import xpnet as xn
from xpnet import layers as ours
from xpnet.kernels.context import Context

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
RNG = np.random.default_rng(0)
BACKEND = xn.get_backend("numpy", dtype="float64")
X = 2.0 * RNG.standard_normal((6, 4, 8)) + 0.5


LAYERS = {
    "layer": ("LayerNormalization", {}),
    "layer_both": ("LayerNormalization", {"axis": [1, 2], "epsilon": 0.1}),
    "layer_bare": ("LayerNormalization", {"center": False, "scale": False}),
    "layer_scale": ("LayerNormalization", {"axis": [-1], "center": False}),
    "rms": ("RMSNormalization", {}),
    "rms_both": ("RMSNormalization", {"axis": [1, 2], "epsilon": 0.1}),
    "group": ("GroupNormalization", {"groups": 4}),
    "group_first": ("GroupNormalization", {"groups": 2, "axis": 1, "epsilon": 0.1}),
    "group_one": ("GroupNormalization", {"groups": 1, "scale": False}),
    "instance": ("GroupNormalization", {"groups": -1, "center": False}),
    "unit": ("UnitNormalization", {}),
    "unit_both": ("UnitNormalization", {"axis": [1, 2]}),
    "unit_batch": ("UnitNormalization", {"axis": 0}),
    "batch": ("BatchNormalization", {"momentum": 0.8, "epsilon": 0.1}),
    "batch_first": ("BatchNormalization", {"axis": 1}),
    "batch_bare": ("BatchNormalization", {"center": False, "scale": False}),
}


def ours_at(layer, weights, x, dy, training):
    """Return output, input gradient, gradients of the weights and new statistics."""
    ctx = Context(BACKEND, training)
    y, backward = layer.forward(ctx, dict(zip([s.name for s in layer.specs], weights)), x)
    dx, grads = backward(dy, {})
    return y, dx, [grads[s.name] for s in layer.specs if s.trainable], list(ctx.carry.values())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_like_keras(agree, name, training):
    cls, settings = LAYERS[name]
    layer, theirs = getattr(ours, cls)(**settings), getattr(keras.layers, cls)(**settings)
    layer.ensure_built(X.shape[1:])
    theirs.build(X.shape)
    weights = [RNG.uniform(0.5, 2.0, s.shape) for s in layer.specs]
    assert [tuple(w.shape) for w in theirs.weights] == [s.shape for s in layer.specs]
    assert [w.name for w in theirs.weights] == [s.name for s in layer.specs]
    theirs.set_weights(weights)
    leaf, dy = torch.tensor(X, requires_grad=True), RNG.standard_normal(X.shape)
    z = theirs(leaf, training=training) if cls == "BatchNormalization" else theirs(leaf)
    z.backward(torch.tensor(dy))
    y, dx, grads, statistics = ours_at(layer, weights, X, dy, training)
    agree(y, z.detach())
    agree(dx, leaf.grad)
    for found, variable in zip(grads, theirs.trainable_weights, strict=True):
        agree(found, variable.value.grad)
    for found, variable in zip(statistics, theirs.non_trainable_weights if training else [], strict=True):
        agree(found, variable.value.detach())


MODULES = {
    "layer": (ours.LayerNormalization(epsilon=1e-5), lambda: torch.nn.LayerNorm(8)),
    "layer_both": (ours.LayerNormalization((1, 2), 0.1), lambda: torch.nn.LayerNorm((4, 8), eps=0.1)),
    "layer_bare": (
        ours.LayerNormalization(epsilon=1e-5, center=False, scale=False),
        lambda: torch.nn.LayerNorm(8, elementwise_affine=False),
    ),
    "rms": (ours.RMSNormalization(epsilon=0.01), lambda: torch.nn.RMSNorm(8, eps=0.01)),
    "group": (ours.GroupNormalization(2, 1, 1e-5), lambda: torch.nn.GroupNorm(2, 4)),
    "instance": (ours.GroupNormalization(-1, 1, 1e-5), lambda: torch.nn.InstanceNorm1d(4, affine=True)),
    "batch": (ours.BatchNormalization(1, epsilon=1e-5), lambda: torch.nn.BatchNorm1d(4)),
}


@pytest.mark.parametrize("name", MODULES)
def test_like_pytorch(agree, name):
    layer, module = MODULES[name][0], MODULES[name][1]().double()
    layer.ensure_built(X.shape[1:])
    weights = [RNG.uniform(0.5, 2.0, s.shape) for s in layer.specs]
    parameters = list(module.parameters())
    with torch.no_grad():
        for parameter, value in zip(parameters, weights):
            parameter.copy_(torch.tensor(value))
    leaf, dy = torch.tensor(X, requires_grad=True), RNG.standard_normal(X.shape)
    z = module(leaf)
    z.backward(torch.tensor(dy))
    y, dx, grads, _ = ours_at(layer, weights, X, dy, True)
    agree(y, z.detach())
    agree(dx, leaf.grad)
    for found, parameter in zip(grads, parameters, strict=True):
        agree(found, parameter.grad)


def test_unit_normalization_like_pytorch(agree):
    agree(ours.UnitNormalization()(X), torch.nn.functional.normalize(torch.tensor(X), dim=-1))


# Masks and noise: other random numbers, the same functions of them --------------------------------------


class Fixed:
    """Stands in for a peer's generator: it returns what our layer drew."""

    def __init__(self, values):
        self.values = values

    def __call__(self, *args, **kwargs):
        return torch.tensor(self.values)


@pytest.mark.parametrize("name", ["GaussianNoise", "GaussianDropout", "AlphaDropout"])
def test_noise_like_keras(agree, monkeypatch, name):
    layer, theirs = getattr(ours, name)(0.3), getattr(keras.layers, name)(0.3)
    layer.ensure_built(X.shape[1:])
    (spec,) = layer.draws
    drawn = spec.draw(xn.core.random.Stream(1), 0, 0, len(X), "float64")
    noise = {
        "GaussianNoise": 0.3 * drawn,
        "GaussianDropout": 1 + math.sqrt(0.3 / 0.7) * drawn,
        "AlphaDropout": drawn,
    }
    module = type(theirs).call.__globals__
    where = module["backend"].random if name != "AlphaDropout" else module["ops"].random
    monkeypatch.setattr(where, "normal" if name != "AlphaDropout" else "uniform", Fixed(noise[name] * 1.0))
    leaf, dy = torch.tensor(X, requires_grad=True), RNG.standard_normal(X.shape)
    z = theirs(leaf, training=True)
    z.backward(torch.tensor(dy))
    ctx = Context(BACKEND, True, {f"0/{spec.name}": drawn})
    y, back = layer.call(ctx, X)
    agree(y, z.detach())
    agree(back(dy), leaf.grad)
    agree(layer(X), theirs(X))


@pytest.mark.parametrize(
    ("name", "args"),
    [("Dropout", (0.3,)), ("Dropout", (0.4, (None, 1, 8))), ("SpatialDropout1D", (0.3,)), ("AlphaDropout", (0.2,)),
     ("AlphaDropout", (0.2, (None, 4, 1))), ("GaussianNoise", (0.7,)), ("GaussianDropout", (0.4,))],
)  # fmt: skip
def test_statistics_like_keras(name, args):
    """Means, variances and correlations along the axes over many rows, within five standard deviations."""
    x = np.ones((20_000, 4, 8))
    found = getattr(ours, name)(*args, seed=1)(x, training=True)
    theirs = getattr(keras.layers, name)(*args, seed=1)(x, training=True).numpy()
    for of in (
        lambda y: y.mean((1, 2)),
        lambda y: (y * y).mean((1, 2)),
        lambda y: y[:, 0, 0] * y[:, 1, 0],
        lambda y: y[:, 0, 0] * y[:, 0, 1],
    ):
        a, b = of(found), of(theirs)
        assert abs(a.mean() - b.mean()) < 5 * math.sqrt((a.var() + b.var()) / len(x)) + 1e-12


# Training -----------------------------------------------------------------------------------------------

NETWORKS = {
    "batch": lambda k: [k.Dense(8, use_bias=False), k.BatchNormalization(momentum=0.9),
                        k.Dense(3, activation="softmax")],
    "layer": lambda k: [k.Dense(8, activation="tanh"), k.LayerNormalization(), k.Dense(3, activation="softmax")],
    "rms": lambda k: [k.Dense(8, activation="tanh"), k.RMSNormalization(), k.Dense(3, activation="softmax")],
    "group": lambda k: [k.Dense(8), k.GroupNormalization(2), k.Dense(3, activation="softmax")],
    "unit": lambda k: [k.Dense(8), k.UnitNormalization(), k.Dense(3, activation="softmax")],
    "activity": lambda k: [k.Dense(8, activation="tanh"), k.ActivityRegularization(0.02, 0.01),
                           k.Dense(3, activation="softmax")],
    "activity_of_dense": lambda k: [k.Dense(8, activation="tanh", activity_regularizer="l1"),
                                    k.Dense(3, activation="softmax", activity_regularizer="l2")],
    "penalized_gamma": lambda k: [k.Dense(8), k.LayerNormalization(gamma_regularizer="l2", beta_regularizer="l1"),
                                  k.Dense(3, activation="softmax")],
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_fifty_steps_like_keras(agree, name):
    x = RNG.standard_normal((50, 10, 5))
    y = np.eye(3)[RNG.integers(0, 3, (50, 10))]
    model = xn.Sequential([ours.Input((5,)), *NETWORKS[name](ours)], dtype="float64", backend="numpy")
    theirs = keras.Sequential([keras.layers.Input((5,)), *NETWORKS[name](keras.layers)])
    weights = [0.5 * RNG.standard_normal(w.shape) if w.ndim > 1 else w for w in model.get_weights()]
    model.set_weights(weights)
    theirs.set_weights(weights)
    model.compile(xn.optimizers.SGD(0.1, momentum=0.9), "categorical_crossentropy")
    theirs.compile(keras.optimizers.SGD(0.1, momentum=0.9), "categorical_crossentropy")
    for a, b in zip(x, y):
        model.train_on_batch(a, b)
        theirs.train_on_batch(a, b)
    for found, wanted in zip(model.get_weights(), theirs.get_weights(), strict=True):
        agree(found, wanted)
    agree(model.predict(x[0]), theirs.predict(x[0], verbose=0))
    agree(model.evaluate(x[1], y[1], verbose=0), theirs.evaluate(x[1], y[1], verbose=0))
