"""What applies to weights, beside Keras: initializers, constraints and regularizers, and 50 steps of training."""

import numpy as np
import pytest

import xpnet as xn
from xpnet import constraints, initializers, regularizers
from xpnet.core.random import Stream
from xpnet.kernels.context import Context
from xpnet.layers import BatchNormalization, Dense, PReLU

keras, torch = pytest.importorskip("keras"), pytest.importorskip("torch")

RNG = np.random.default_rng(0)
W = RNG.standard_normal((5, 4))
X, Y = RNG.standard_normal((40, 5)), RNG.standard_normal((40, 3))


# Initializers: of equal arguments, equal distributions. -------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("TruncatedNormal", (0.3, 0.2)),
        ("VarianceScaling", ()),
        *[("VarianceScaling", (0.7, mode, "truncated_normal")) for mode in ("fan_in", "fan_out", "fan_avg")],
        ("VarianceScaling", (0.7, "fan_in", "untruncated_normal")),
        ("VarianceScaling", (0.7, "fan_out", "uniform")),
        ("Orthogonal", (1.5,)),
    ],
)
def test_distributions(name, arguments):
    """The quantiles of 90,000 numbers, within five standard errors of the difference."""
    ours = getattr(initializers, name)(*arguments).values(Stream(3), 0, (300, 300))
    theirs = getattr(keras.initializers, name)(*arguments, seed=3)((300, 300)).numpy()
    n, spread = ours.size, theirs.std()
    assert abs(ours.mean() - theirs.mean()) < 5 * spread * np.sqrt(2 / n)
    for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        place, near = np.quantile(theirs, share), np.quantile(theirs, [share - 0.005, share + 0.005])
        density = 0.01 / (near[1] - near[0])
        error = np.sqrt(2 * share * (1 - share) / n) / density
        assert abs(np.quantile(ours, share) - place) < 5 * error


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (2, 3, 4)])
def test_orthogonal_is_that_of_keras_up_to_its_numbers(agree, shape):
    found = [
        initializers.Orthogonal(1.5).values(Stream(0), 0, shape),
        keras.initializers.Orthogonal(1.5)(shape).numpy(),
    ]
    for values in found:
        q = values.reshape(-1, shape[-1])
        gram = q.T @ q if q.shape[0] >= q.shape[1] else q @ q.T
        agree(gram, 2.25 * np.eye(len(gram)))


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 2)])
def test_identity(agree, shape):
    agree(initializers.Identity(0.5).values(Stream(0), 0, shape), keras.initializers.Identity(0.5)(shape).numpy())


# Constraints and regularizers ---------------------------------------------------------------------------

CONSTRAINTS = [
    ("MaxNorm", {}), ("MaxNorm", {"max_value": 0.8}), ("MaxNorm", {"max_value": 0.8, "axis": 1}),
    ("MaxNorm", {"max_value": 0.8, "axis": [0, 1]}), ("MinMaxNorm", {}),
    ("MinMaxNorm", {"min_value": 1.0, "max_value": 1.5, "rate": 0.25, "axis": 1}), ("NonNeg", {}),
    ("UnitNorm", {}), ("UnitNorm", {"axis": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), CONSTRAINTS)
def test_constraints(agree, name, settings):
    ours, theirs = getattr(constraints, name)(**settings), getattr(keras.constraints, name)(**settings)
    for w in (W, 0.1 * W, 10.0 * W, 0.0 * W):
        agree(ours(w), theirs(torch.tensor(w)).numpy())
    assert ours.get_config() == theirs.get_config()


REGULARIZERS = [
    ("L1", {"l1": 0.3}), ("L2", {"l2": 0.2}), ("L1L2", {"l1": 0.1, "l2": 0.4}), ("OrthogonalRegularizer", {}),
    ("OrthogonalRegularizer", {"factor": 0.5, "mode": "rows"}),
    ("OrthogonalRegularizer", {"factor": 0.5, "mode": "columns"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), REGULARIZERS)
def test_regularizers_and_their_gradients(agree, name, settings):
    ours, theirs = getattr(regularizers, name)(**settings), getattr(keras.regularizers, name)(**settings)
    w = torch.tensor(W, requires_grad=True)
    value = theirs(w)
    value.backward()
    found, slope = ours.at(Context(xn.get_backend("numpy", dtype="float64")), W)
    agree(found, value.detach().numpy())
    agree(slope, w.grad.numpy())


# Training -----------------------------------------------------------------------------------------------


def ours_and_theirs(make, optimizer):
    """Train both for 50 steps from equal weights; return the weights."""
    model = xn.Sequential(
        make(xn.layers, xn.constraints, xn.regularizers), seed=1, dtype="float64", backend="numpy"
    )
    model.compile(getattr(xn.optimizers, optimizer[0])(**optimizer[1]), "mse")
    model.build((5,))
    peer = keras.Sequential([keras.Input((5,)), *make(keras.layers, keras.constraints, keras.regularizers)])
    peer.compile(getattr(keras.optimizers, optimizer[0])(**optimizer[1]), "mse")
    peer.set_weights(model.get_weights())
    for step in range(50):
        rows = np.arange(8 * step, 8 * step + 8) % 40
        for trained in (model, peer):
            trained.train_on_batch(X[rows], Y[rows])
    return model.get_weights(), [v.value.detach().numpy() for v in peer.weights]


def constrained(layers, constraints, regularizers):
    return [
        layers.Dense(6, use_bias=False, kernel_constraint=constraints.MaxNorm(0.7)),
        layers.BatchNormalization(
            epsilon=1e-3, gamma_constraint=constraints.UnitNorm(), beta_constraint=constraints.MaxNorm(0.1)
        ),
        layers.PReLU(alpha_constraint=constraints.NonNeg()),
        layers.Dense(
            3,
            kernel_constraint=constraints.MinMaxNorm(0.5, 0.9, rate=0.5, axis=1),
            bias_constraint=constraints.NonNeg(),
        ),
    ]


@pytest.mark.parametrize(
    "optimizer", [("SGD", {"learning_rate": 0.1, "momentum": 0.9}), ("Adam", {"learning_rate": 0.02})]
)
def test_50_steps_with_constraints(agree, optimizer):
    ours, theirs = ours_and_theirs(constrained, optimizer)
    for a, b in zip(ours, theirs, strict=True):
        agree(a, b)


def penalized(layers, constraints, regularizers):
    return [
        layers.Dense(6, "tanh", kernel_regularizer=regularizers.L1L2(1e-3, 1e-2), bias_regularizer="l2"),
        layers.Dense(3, kernel_regularizer=regularizers.L2(0.02)),
    ]


def test_50_steps_with_penalties(agree):
    ours, theirs = ours_and_theirs(penalized, ("SGD", {"learning_rate": 0.1}))
    for a, b in zip(ours, theirs, strict=True):
        agree(a, b)


ARGUMENTS = {Dense: "kernel bias", BatchNormalization: "beta gamma", PReLU: "alpha"}


@pytest.mark.parametrize("layer", ARGUMENTS)
def test_the_arguments_have_keras_names(layer):
    theirs = getattr(keras.layers, layer.__name__)
    for name in ARGUMENTS[layer].split():
        for kind in ("initializer", "regularizer", "constraint"):
            assert f"{name}_{kind}" in layer._settings
            assert hasattr(theirs(4) if layer is Dense else theirs(), f"{name}_{kind}")
