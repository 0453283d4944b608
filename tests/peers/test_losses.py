"""Losses: values and gradients of Keras, PyTorch, optax and scikit-learn, and 50 steps of training like Keras'."""

import inspect

import jax
import keras
import numpy as np
import optax
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from cases import (
    BITS,
    DEEP,
    FEW,
    IGNORED,
    LABELS,
    LOSSES,
    POSITIVE,
    PROBABILITIES,
    SCORES,
    SHARES,
    SOFT,
)

import xpnet as xn
from xpnet import losses
from xpnet.layers import Dense

RNG = np.random.default_rng(7)
WEIGHTS = np.array([1.0, 0.0, 2.0, 0.5, 1.0, 3.0])
REDUCTIONS = ["sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none", None]
WITHOUT = {"log_input"}  # settings that Keras does not have


def known_to_keras(row):
    cls, settings, *_ = row
    smooth_labels = cls is losses.SparseCategoricalCrossentropy and "label_smoothing" in settings
    return hasattr(keras.losses, cls.__name__) and not smooth_labels and WITHOUT.isdisjoint(settings)


def of_keras(cls, settings, y, p, weight):
    """Return Keras' value and the gradient that PyTorch finds for it."""
    leaf = torch.tensor(p, requires_grad=True)
    value = getattr(keras.losses, cls.__name__)(**settings, dtype="float64")(y, leaf, sample_weight=weight)
    value.sum().backward()
    return value.detach().numpy(), leaf.grad.numpy()


# Keras ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [None, (6,), (6, 1), ()], ids=str)
@pytest.mark.parametrize("name", [name for name, row in LOSSES.items() if known_to_keras(row)])
def test_like_keras(agree, name, weight, reduction):
    cls, settings, y, p = LOSSES[name]
    if name == "sparse_ignore" and weight == ():
        weight = None  # PyTorch refuses to multiply one weight in place by the mask
    settings = {**settings, "reduction": reduction}
    weight = weight if weight is None else WEIGHTS.reshape(weight) if weight else np.array(0.5)
    value, grad = cls(**settings).value_and_grad(y, p, weight)
    wanted, wanted_grad = of_keras(cls, settings, y, p, weight)
    if reduction == "mean_with_sample_weight" and weight is not None and weight.ndim == 0:
        wanted, wanted_grad = (
            wanted / 6,
            wanted_grad / 6,
        )  # Keras divides by the one weight, not by those of all rows
    agree(value, wanted.reshape(np.shape(value)))
    agree(grad, wanted_grad)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", DEEP)
def test_further_axes_like_keras(agree, name, weighted, reduction):
    cls, settings, y, p = DEEP[name]
    settings, p = {**settings, "reduction": reduction}, p.reshape(2, 3, 4)
    y = y.reshape(2, 4) if y.ndim == 1 else y.reshape(2, 3, 4)
    shape = cls(**settings).value_shape(p.shape) or (2,)
    weight = RNG.random(shape) if weighted else None
    value, grad = cls(**settings).value_and_grad(y, p, weight)
    wanted, wanted_grad = of_keras(cls, settings, y, p, weight)
    agree(value, wanted)
    agree(grad, wanted_grad)


@pytest.mark.parametrize("reduction", [r for r in REDUCTIONS if r != "mean_with_sample_weight"])
@pytest.mark.parametrize("shape", [(2, 3), (2, 1), (2, 3, 1)], ids=str)
@pytest.mark.parametrize("name", ["mse", "bce", "sparse_logits", "sparse_ignore", "cosine", "hinge_bits"])
def test_weights_of_leading_axes_like_keras(agree, name, shape, reduction):
    if (name, shape) == ("sparse_ignore", (2, 1)):
        shape = (2, 3)  # PyTorch refuses to multiply these weights in place by the mask
    cls, settings, y, p = LOSSES[name]
    settings = {**settings, "reduction": reduction}
    y, p, weight = y.reshape(2, 3, *y.shape[1:]), p.reshape(2, 3, 4), RNG.random(shape)
    value, grad = cls(**settings).value_and_grad(y, p, weight)
    wanted, wanted_grad = of_keras(cls, settings, y, p, weight)
    agree(value, wanted)
    agree(grad, wanted_grad)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_no_row_counts_like_keras(agree, weighted, reduction):
    loss, weight = losses.SparseCategoricalCrossentropy(reduction=reduction, ignore_class=3), WEIGHTS * weighted
    value, grad = loss.value_and_grad(np.full(6, 3), SHARES, weight)
    wanted, wanted_grad = of_keras(
        type(loss), {"reduction": reduction, "ignore_class": 3}, np.full(6, 3), SHARES, weight
    )
    agree(value, wanted)
    agree(grad, wanted_grad)
    assert not np.any(value)
    assert not np.any(grad)


@pytest.mark.parametrize(
    "name", [n for n in dir(keras.losses) if hasattr(losses, n) and n != "Loss" and n[0].isupper()]
)
def test_arguments_have_keras_order_and_defaults(name):

    theirs = inspect.signature(getattr(keras.losses, name)).parameters
    ours = inspect.signature(getattr(losses, name)).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for key, parameter in theirs.items():
        if key != "name":  # None gives the same names
            assert ours[key].default == parameter.default, key


ALIASES = ["bce", "kld", "mae", "mse", "mape", "msle", "BCE", "KLD", "MSE", "kl_divergence", "log_cosh"]


@pytest.mark.parametrize("alias", ALIASES)
def test_names_like_keras(agree, alias):
    y, p = SHARES, PROBABILITIES
    agree(losses.get(alias)(y, p), np.mean(keras.losses.get(alias)(y, p).numpy()))


# PyTorch, optax, scikit-learn -----------------------------------------------------------------------------


def t(a):
    return torch.tensor(a)


SPARSE = (losses.SparseCategoricalCrossentropy, {"from_logits": True})
TORCH = {
    "mse": lambda p: F.mse_loss(p, t(SOFT)),
    "mae": lambda p: F.l1_loss(p, t(SOFT)),
    "huber_narrow": lambda p: F.huber_loss(p, t(SOFT), delta=0.25),
    "bce": lambda p: F.binary_cross_entropy(p, t(BITS)),
    "bce_logits": lambda p: F.binary_cross_entropy_with_logits(p, t(BITS)),
    "cce_logits_soft": lambda p: F.cross_entropy(p, t(SOFT), label_smoothing=0.1),
    "sparse_logits": lambda p: F.cross_entropy(p, t(LABELS)),
    "sparse_logits_smooth": lambda p: F.cross_entropy(p, t(LABELS), label_smoothing=0.2),
    "sparse_logits_ignore": lambda p: F.cross_entropy(p, t(LABELS), ignore_index=1, label_smoothing=0.1),
    "sparse_ignore": lambda p: F.nll_loss((p / p.sum(-1, keepdim=True)).log(), t(IGNORED), ignore_index=-1),
    "kld": lambda p: F.kl_div(p.log(), t(SOFT), reduction="batchmean"),
    "poisson": lambda p: F.poisson_nll_loss(p, t(FEW), log_input=False, eps=1e-7),
    "poisson_logs": lambda p: F.poisson_nll_loss(p, t(FEW)),
    "gaussian": lambda p: F.gaussian_nll_loss(p[:, :2], t(FEW[:, :2]), p[:, 2:]),
    "gaussian_full": lambda p: F.gaussian_nll_loss(p[:, :2], t(FEW[:, :2]), p[:, 2:] * 1.0, full=True, eps=0.1),
    "gaussian_logs": lambda p: F.gaussian_nll_loss(p[:, :2], t(FEW[:, :2]), p[:, 2:].exp()),
    "cosine": lambda p: -F.cosine_similarity(p, t(SOFT)).mean(),
}


@pytest.mark.parametrize("name", TORCH)
def test_like_pytorch(agree, name):
    cls, settings, y, p = LOSSES[name]
    leaf = torch.tensor(p, requires_grad=True)
    wanted = TORCH[name](leaf)
    wanted.backward()
    value, grad = cls(**settings).value_and_grad(y, p)
    agree(value, wanted.detach().numpy())
    agree(grad, leaf.grad.numpy())


def test_small_variances_like_pytorch(agree):
    """Both take the derivative at `eps`, which is not 0."""
    p = np.concatenate([SCORES[:, :2], POSITIVE[:, :2] * [1e-9, 1.0]], axis=1)
    leaf = torch.tensor(p, requires_grad=True)
    wanted = F.gaussian_nll_loss(leaf[:, :2], t(FEW[:, :2]), leaf[:, 2:])
    wanted.backward()
    value, grad = losses.GaussianNLL().value_and_grad(FEW[:, :2], p)
    agree(value, wanted.detach().numpy())
    agree(grad, leaf.grad.numpy())
    assert np.all(grad[:, 2:])


OPTAX = {
    "log_cosh": lambda p: optax.losses.log_cosh(p, SOFT).mean(),
    "hinge": lambda p: optax.losses.hinge_loss(p, BITS * 2 - 1).mean(),
    "squared_hinge": lambda p: (optax.losses.hinge_loss(p, BITS * 2 - 1) ** 2).mean(),
    "huber": lambda p: optax.losses.huber_loss(p, SOFT).mean(),
    "focal_logits": lambda p: optax.losses.sigmoid_focal_loss(p, BITS, gamma=2.0).mean(),
    "kld": lambda p: optax.losses.kl_divergence(jax.numpy.log(p), SOFT).mean(),
    "perceptron": lambda p: optax.losses.perceptron_loss(p, BITS * 2 - 1).mean(),
}


@pytest.mark.parametrize("name", OPTAX)
def test_like_optax(agree, name):
    cls, settings, y, p = LOSSES[name]
    with jax.enable_x64(True):
        wanted, wanted_grad = jax.value_and_grad(OPTAX[name])(jax.numpy.asarray(p))
    value, grad = cls(**settings).value_and_grad(y, p)
    agree(value, wanted)
    agree(grad, wanted_grad)


@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=["plain", "weighted"])
def test_like_scikit_learn(agree, weight):
    sk, mean = sklearn.metrics, {"reduction": "mean_with_sample_weight"}
    for loss, theirs, y, p in [
        (losses.MeanSquaredError(**mean), sk.mean_squared_error, SOFT, SCORES),
        (losses.MeanAbsoluteError(**mean), sk.mean_absolute_error, SOFT, SCORES),
        (losses.MeanSquaredLogarithmicError(**mean), sk.mean_squared_log_error, POSITIVE, SHARES),
        (losses.Quantile(0.9, **mean), lambda *a, **k: sk.mean_pinball_loss(*a, alpha=0.9, **k), SOFT, SCORES),
        (losses.SparseCategoricalCrossentropy(**mean), sk.log_loss, LABELS, SHARES),
        (losses.Hinge(**mean), sk.hinge_loss, BITS[:, 0], SCORES[:, 0]),
    ]:
        agree(loss(y, p, weight), theirs(y, p, sample_weight=weight))
    percent = losses.MeanAbsolutePercentageError(**mean)(POSITIVE, SCORES, weight)
    agree(percent, 100 * sk.mean_absolute_percentage_error(POSITIVE, SCORES, sample_weight=weight))


def weights_of(model):
    """Return a Keras model's weights; its `get_weights` calls NumPy in a way that NumPy 2 warns of."""
    return [variable.value.detach().numpy().copy() for variable in model.weights]


# Training -------------------------------------------------------------------------------------------------

X = RNG.standard_normal((30, 3))
HITS = RNG.integers(0, 2, (30, 4)).astype(float)
TRAINED = {
    "log_cosh": ("linear", {}, RNG.standard_normal((30, 4))),
    "mape": ("linear", {}, RNG.uniform(1, 2, (30, 4))),
    "msle": ("sigmoid", {}, RNG.random((30, 4))),
    "cosine_similarity": ("linear", {}, RNG.standard_normal((30, 4))),
    "squared_hinge": ("tanh", {}, RNG.choice([-1.0, 1.0], (30, 4))),
    "categorical_hinge": ("linear", {}, np.eye(4)[RNG.integers(0, 4, 30)]),
    "kl_divergence": ("softmax", {}, RNG.dirichlet(np.ones(4), 30)),
    "poisson": ("sigmoid", {}, RNG.poisson(1.0, (30, 4)).astype(float)),
    "binary_focal_crossentropy": (
        "sigmoid",
        {"apply_class_balancing": True},
        RNG.integers(0, 2, (30, 4)).astype(float),
    ),
    "categorical_focal_crossentropy": ("softmax", {"alpha": 0.5}, np.eye(4)[RNG.integers(0, 4, 30)]),
    "sparse_categorical_crossentropy": ("softmax", {"ignore_class": 2}, RNG.integers(0, 4, 30)),
    "dice": ("sigmoid", {}, HITS),
    "tversky": ("sigmoid", {"alpha": 0.3, "beta": 0.7, "axis": -1}, HITS),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", TRAINED)
def test_50_steps_like_keras(agree, name, weighted):
    """17 epochs of two whole batches and a small one, with equal weights: losses, metrics and weights agree."""
    activation, settings, y = TRAINED[name]
    cls = losses.registry.find(name)
    weight = RNG.random((30, 1)) if weighted else None
    theirs = keras.Sequential(
        [keras.layers.Input((3,)), keras.layers.Dense(5, "tanh"), keras.layers.Dense(4, activation)]
    )
    theirs.compile(keras.optimizers.SGD(0.05), getattr(keras.losses, cls.__name__)(**settings))
    ours = xn.Sequential([xn.layers.Input((3,)), Dense(5, "tanh"), Dense(4, activation)], dtype="float64")
    ours.compile(xn.optimizers.SGD(0.05), cls(**settings))
    ours.set_weights(weights_of(theirs))
    training = {"batch_size": 12, "epochs": 17, "shuffle": False, "verbose": 0, "sample_weight": weight}
    found, wanted = (model.fit(X, y, **training).history["loss"] for model in (ours, theirs))
    agree(found, wanted)
    for mine, other in zip(ours.get_weights(), weights_of(theirs)):
        agree(mine, other)


@pytest.mark.parametrize("shape", [(8, 5), (8, 1), (8, 5, 1)], ids=str)
def test_weights_of_leading_axes_in_training_like_keras(agree, shape):
    x, y, weight = RNG.standard_normal((8, 5, 3)), RNG.integers(0, 2, (8, 5, 2)).astype(float), RNG.random(shape)
    theirs = keras.Sequential([keras.layers.Input((5, 3)), keras.layers.Dense(2, "sigmoid")])
    theirs.compile(keras.optimizers.SGD(0.5), "binary_crossentropy")
    ours = xn.Sequential([xn.layers.Input((5, 3)), Dense(2, "sigmoid")], dtype="float64")
    ours.compile(xn.optimizers.SGD(0.5), "binary_crossentropy")
    ours.set_weights(weights_of(theirs))
    training = {"batch_size": 4, "epochs": 3, "shuffle": False, "verbose": 0, "sample_weight": weight}
    agree(*(model.fit(x, y, **training).history["loss"] for model in (ours, theirs)))
    agree(ours.evaluate(x, y, sample_weight=weight), theirs.evaluate(x, y, sample_weight=weight, verbose=0))
    for mine, other in zip(ours.get_weights(), weights_of(theirs)):
        agree(mine, other)
