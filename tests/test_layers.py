"""Layers: values, derivatives, configs, standalone use; values of PyTorch."""

import copy
import json
import pickle
import weakref

import numpy as np
import pytest
from cases import LAYERS, VECTORS_ONLY, layer_inputs

import xpnet as xn
from xpnet import layers
from xpnet.backend import library_of
from xpnet.core.random import Stream
from xpnet.errors import InvalidTypeError, InvalidValueError, NotBuiltError, ShapeError, UnknownNameError
from xpnet.initializers import Constant
from xpnet.kernels.context import Context
from xpnet.layers import (
    ELU,
    Activation,
    AlphaDropout,
    BatchNormalization,
    CategoryEncoding,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GroupNormalization,
    Input,
    Layer,
    LayerNormalization,
    LeakyReLU,
    Normalization,
    Parallel,
    Permute,
    PReLU,
    ReLU,
    Reshape,
    Sigmoid,
    Softmax,
    Tanh,
)
from xpnet.layers.base import rows_of
from xpnet.regularizers import L1L2
from xpnet.testing import assert_close, check_gradients

RNG = np.random.default_rng(0)

INPUT_SHAPES = [(6, 3), (4, 5, 3), (2, 3, 2, 3)]


def drawn(spec, rows):
    return spec.draw(Stream(1), 0, 0, rows, "float64")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("name", "shape"), [(n, s) for s in INPUT_SHAPES for n in LAYERS if len(s) == 2 or n not in VECTORS_ONLY]
)
def test_gradients(backend64, name, shape, training):
    check_gradients(LAYERS[name](), shape, backend=backend64, training=training)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Input((4, 3)), (6, 4, 3)),
        (Permute((2, 1)), (6, 4, 3)),
        (Permute((3, 1, 2)), (2, 4, 3, 5)),
        (Reshape((2, -1)), (6, 4, 3)),
        (Normalization((1, -1), variance=[[1.0, 4.0, 9.0]], mean=[[0.0, 1.0, 2.0]]), (6, 2, 4, 3)),
        (Embedding(4, 2), (5, 1)),
        (CategoryEncoding(4, "one_hot"), (5, 1)),
        (Parallel([Embedding(4, 2), CategoryEncoding(4, "one_hot")]), (5, 2)),
        (Parallel([layers.Rescaling(2.0), layers.Rescaling(2.0)], "maximum"), (5, 3)),  # equal ones share
    ],
    ids=lambda a: type(a).__name__ if isinstance(a, Layer) else None,
)
def test_gradients_of_layers_for_other_shapes(backend64, layer, shape):
    check_gradients(layer, shape, backend=backend64)


@pytest.mark.parametrize("name", LAYERS)
def test_want_dx_false_leaves_dx_out_and_changes_no_gradient(backend64, name):
    layer = LAYERS[name]()
    x, shape = backend64.array(layer_inputs(layer, (6, 3))), layer.ensure_built((3,))
    weights = {s.name: backend64.array(np.abs(RNG.standard_normal(s.shape))) for s in layer.specs}
    masks = {f"0/{d.name}": backend64.array(drawn(d, 6)) for d in layer.draws}
    dy = backend64.array(RNG.standard_normal((6, *shape)))
    found = []
    for want in (True, False):
        _, backward = layer.forward(Context(backend64, True, masks), weights, x)
        found.append(backward(dy, {}, want_dx=want))
    assert found[0][0].shape == (6, 3)
    if layer.specs:
        assert found[1][0] is None
    assert {k: v.shape for k, v in found[0][1].items()} == {s.name: s.shape for s in layer.specs if s.trainable}
    for key, grad in found[0][1].items():
        assert_close(found[1][1][key], grad)


@pytest.mark.parametrize("name", [n for n in LAYERS if n != "input"])
def test_several_models_along_a_leading_axis(backend64, name):
    """Weights (K, ...) and inputs (K, batch, ...): each model as it would be alone."""
    layer = LAYERS[name]()
    x, shape = layer_inputs(layer, (2, 6, 3)), layer.ensure_built((3,))
    weights = {s.name: np.abs(RNG.standard_normal((2, *s.shape))) for s in layer.specs}
    masks = {f"0/{d.name}": drawn(d, 12).reshape(2, 6, *d.shape) for d in layer.draws}
    dy = RNG.standard_normal((2, 6, *shape))

    def run(part):
        on = {k: backend64.array(part(v)) for k, v in weights.items()}
        ctx = Context(backend64, True, {k: backend64.array(part(v)) for k, v in masks.items()})
        y, backward = layer.forward(ctx, on, backend64.array(part(x)))
        dx, grads = backward(backend64.array(part(dy)), {})
        return {"y": y, "dx": dx, **grads, **ctx.carry}

    both = run(lambda a: a)
    for k in range(2):
        for key, one in run(lambda a, k=k: a[k]).items():
            assert_close(backend64.host(both[key])[k], backend64.host(one), message=key)


# Values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (6, 3), (4, 5, 3)])
def test_dense_is_f_of_xw_plus_b(backend64, shape):
    layer, x = Dense(4, "tanh", bias_initializer="random_normal"), RNG.standard_normal((2, *shape))
    y = layer(backend64.array(x))
    kernel, bias = layer.get_weights()
    assert (kernel.shape, bias.shape, layer.count_params()) == ((3, 4), (4,), 16)
    assert layer.output_shape == (*shape[:-1], 4)
    assert_close(y, backend64.array(np.tanh(x @ kernel + bias)))


def test_dense_in_the_notes_form_is_the_transpose():
    """A = f(W X + b) with samples as columns gives the same values with kernel = W.T and samples as rows."""
    w, b, x = RNG.standard_normal((4, 3)), RNG.standard_normal((4, 1)), RNG.standard_normal((3, 8))
    layer = Dense(4, "sigmoid")
    layer.ensure_built((3,))
    layer.set_weights([w.T, b[:, 0]])
    assert_close(layer(x.T), (1 / (1 + np.exp(-(w @ x + b)))).T)


ACTIVATION_LAYERS = {
    "relu": (ReLU(), lambda x: np.maximum(x, 0)),
    "relu_all": (
        ReLU(max_value=1.0, negative_slope=0.5, threshold=0.25),
        lambda x: np.where(x > 0.25, np.minimum(x, 1), 0.5 * (x - 0.25)),
    ),
    "elu": (ELU(2.0), lambda x: np.where(x > 0, x, 2 * np.expm1(np.minimum(x, 0)))),
    "leaky": (LeakyReLU(), lambda x: np.where(x > 0, x, 0.01 * x)),
    "leaky_slope": (LeakyReLU(negative_slope=0.3), lambda x: np.where(x > 0, x, 0.3 * x)),
    "sigmoid": (Sigmoid(), lambda x: 1 / (1 + np.exp(-x))),
    "tanh": (Tanh(), np.tanh),
    "softmax": (Softmax(), lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
    "softmax_1": (Softmax(axis=1), lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)),
    "by_name": (Activation("tanh"), np.tanh),
    "prelu": (PReLU("ones"), lambda x: x),
    "prelu_constant": (
        PReLU({"class_name": "Constant", "config": {"value": 0.25}}),
        lambda x: np.where(x > 0, x, x / 4),
    ),
    "prelu_default": (PReLU(), lambda x: np.maximum(x, 0)),
    "flatten": (Flatten(), lambda x: x.reshape(len(x), -1)),
    "input": (Input((4, 3)), lambda x: x),
    "dropout": (Dropout(0.5), lambda x: x),
    "batch_norm": (BatchNormalization(), lambda x: x / np.sqrt(1.001)),
}


@pytest.mark.parametrize("name", ACTIVATION_LAYERS)
def test_values_outside_training(backend64, name):
    layer, function = ACTIVATION_LAYERS[name]
    x = RNG.standard_normal((5, 4, 3))
    assert_close(layer(backend64.array(x)), backend64.array(function(x)))


def test_prelu_has_a_slope_for_each_input(backend64):
    layer = PReLU()
    layer.ensure_built((2,))
    layer.set_weights([[0.5, -2.0]])
    x = backend64.array([[-1.0, -1.0], [3.0, 3.0]])
    assert_close(layer(x), backend64.array([[-0.5, 2.0], [3.0, 3.0]]))


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_dropout_is_inverted(backend, rate):
    x = np.ones((200, 100), np.float32)
    y = backend.host(Dropout(rate)(backend.array(x), training=True))
    kept = y != 0
    np.testing.assert_allclose(y[kept], 1 / (1 - rate), rtol=1e-6)
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / x.size)
    assert abs(y.mean() - 1) < 5 * np.sqrt(rate / (1 - rate) / x.size)


def test_dropout_alone_draws_anew_at_each_call(backend):
    layer, x = Dropout(0.5), backend.array(np.ones((20, 20)), "float32")
    assert (backend.host(layer(x, training=True)) != backend.host(layer(x, training=True))).any()
    assert_close(layer(x), x)
    assert_close(Dropout(0)(x, training=True), x)
    assert Dropout(0).draws == []


def test_batch_norm_in_training(backend64):
    layer, x = BatchNormalization(momentum=0.9, epsilon=0.01), RNG.standard_normal((8, 5, 3)) * 4 + 2
    layer.ensure_built((5, 3))
    assert [s.name for s in layer.specs] == ["gamma", "beta", "moving_mean", "moving_variance"]
    assert [s.trainable for s in layer.specs] == [True, True, False, False]
    weights = dict(zip([s.name for s in layer.specs], RNG.uniform(0.5, 2, (4, 3))))
    ctx = Context(backend64, True)
    ctx.place = (0, "bn")
    y, _ = layer.forward(ctx, {k: backend64.array(v) for k, v in weights.items()}, backend64.array(x))
    mean, var = x.mean((0, 1)), x.var((0, 1))
    assert_close(y, backend64.array(weights["gamma"] * (x - mean) / np.sqrt(var + 0.01) + weights["beta"]))
    moved = {"bn/moving_mean": mean, "bn/moving_variance": var}
    assert set(ctx.carry) == set(moved)
    for key, batch in moved.items():
        assert_close(ctx.carry[key], backend64.array(0.9 * weights[key[3:]] + 0.1 * batch))


def test_batch_norm_outside_training(backend64):
    layer, x = BatchNormalization(epsilon=0.01), RNG.standard_normal((8, 3))
    layer.ensure_built((3,))
    gamma, beta, mean, var = values = RNG.uniform(0.5, 2, (4, 3))
    layer.set_weights(values)
    assert_close(layer(backend64.array(x)), backend64.array(gamma * (x - mean) / np.sqrt(var + 0.01) + beta))


# Compared with PyTorch ----------------------------------------------------------------------------------


def beside(backend, layer, module, weights, x, training=False):
    """Compare output, input gradient and parameter gradients; `weights` maps names of xpnet to PyTorch's."""
    torch = pytest.importorskip("torch")
    layer.ensure_built(x.shape[1:])
    leaf = torch.tensor(x, requires_grad=True)
    theirs = module.double().train(training)(leaf)
    dy = RNG.standard_normal(theirs.shape)
    theirs.backward(torch.tensor(dy))
    on = {name: backend.array(get().detach().numpy()) for name, (get, _) in weights.items()}
    y, backward = layer.forward(Context(backend, training), on, backend.array(x))
    dx, grads = backward(backend.array(dy), {})
    assert_close(y, backend.array(theirs.detach().numpy()))
    assert_close(dx, backend.array(leaf.grad.numpy()))
    for name, (_, grad) in weights.items():
        if grad is not None:
            assert_close(grads[name], backend.array(grad().numpy()), message=name)


def of(parameter, transpose=False):
    turn = (lambda a: a.T) if transpose else (lambda a: a)
    return (lambda: turn(parameter)), (lambda: turn(parameter.grad))


@pytest.mark.parametrize("shape", [(6, 3), (4, 5, 3)])
def test_dense_like_pytorch(backend64, shape):
    torch = pytest.importorskip("torch")
    linear = torch.nn.Linear(3, 4).double()
    weights = {"kernel": of(linear.weight, True), "bias": of(linear.bias)}
    beside(backend64, Dense(4), linear, weights, RNG.standard_normal(shape))
    linear.zero_grad()
    module = torch.nn.Sequential(linear, torch.nn.Tanh())
    beside(backend64, Dense(4, "tanh"), module, weights, RNG.standard_normal(shape))


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_like_pytorch(backend64, training):
    torch = pytest.importorskip("torch")
    module = torch.nn.BatchNorm1d(3, eps=0.01).double()
    torch.nn.init.normal_(module.weight)
    module.running_mean += 0.5
    weights = {
        "gamma": of(module.weight),
        "beta": of(module.bias),
        "moving_mean": (lambda: module.running_mean.clone(), None),
        "moving_variance": (lambda: module.running_var.clone(), None),
    }
    beside(backend64, BatchNormalization(epsilon=0.01), module, weights, RNG.standard_normal((8, 3)), training)


def test_prelu_like_pytorch(backend64):
    torch = pytest.importorskip("torch")
    module = torch.nn.PReLU(3, init=0.3).double()
    beside(backend64, PReLU(), module, {"alpha": of(module.weight)}, RNG.standard_normal((8, 3)))


# Standalone use -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_the_result_is_in_the_callers_library_and_dtype(backend, name):
    layer = LAYERS[name]()
    x = layer_inputs(layer, (4, 3)).astype(np.float32)
    there, here = layer(x), layer(backend.array(x), training=True)
    dtype = layer.dtype or "float32"
    assert (library_of(there), str(there.dtype)) == ("numpy", dtype)
    assert (library_of(here), str(backend.host(here).dtype)) == (backend.name, dtype)


def test_weights_go_in_and_out_as_copies(backend):
    layer, x = Dense(2), backend.array(np.ones((1, 3)), "float32")
    layer(x)
    given = [np.full((3, 2), 2.0), np.array([1.0, 0.0])]
    layer.set_weights(given)
    given[0][:] = 99
    found = layer.get_weights()
    found[1][:] = 99
    assert_close(layer(x), backend.array([[7.0, 6.0]], "float32"))
    layer.set_weights([backend.array(np.zeros((3, 2)), "float32"), [5.0, 6.0]])  # any library, or lists
    assert_close(layer(x), backend.array([[5.0, 6.0]], "float32"))
    assert {type(w) for w in layer.get_weights()} == {np.ndarray}


def test_a_failed_set_weights_changes_nothing():
    layer = Dense(2)
    layer.ensure_built((3,))
    before = layer.get_weights()
    for wrong in ([np.zeros((3, 2)), np.zeros(3)], [np.zeros((3, 2))], [np.zeros((2, 3)), np.zeros(2)]):
        with pytest.raises(ShapeError):
            layer.set_weights(wrong)
    for a, b in zip(layer.get_weights(), before):
        np.testing.assert_array_equal(a, b)


def test_the_weights_stay_from_call_to_call(backend):
    layer, x = Dense(5), backend.array(RNG.standard_normal((2, 3)), "float32")
    assert_close(layer(x), layer(x), rtol=0, atol=0)
    assert not layer.get_weights()[1].any()
    assert layer.get_weights()[0].any()


def test_an_initializers_own_seed_makes_equal_layers():
    kernels = []
    for _ in range(2):
        layer = Dense(3, kernel_initializer={"class_name": "GlorotUniform", "config": {"seed": 4}})
        layer.ensure_built((5,))
        kernels.append(layer.get_weights()[0])
    np.testing.assert_array_equal(*kernels)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
def test_copies_and_pickles(clone):
    layer, x = Dense(2, "tanh"), RNG.standard_normal((4, 3))
    y = layer(x)
    assert_close(clone(layer)(x), y)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda a: pickle.loads(pickle.dumps(a)), "copy": copy.copy}


def trained():
    """A model after a few steps, and its weights."""
    layers = [Dense(2, "tanh"), BatchNormalization(), Dense(1, trainable=False)]
    model = xn.Sequential([Input((3,)), *layers], seed=1)
    model.compile("adam", "mse")
    x = np.random.default_rng(0).standard_normal((12, 3))
    model.fit(x, x[:, :1], batch_size=3, verbose=0)
    return model, model.get_weights()


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("clone", COPIES)
def test_copies_of_a_layer_have_the_weights_that_a_model_has_trained(clone, gone):
    model, (kernel, bias, *_) = trained()
    layer, x = model.layers[1], np.ones((2, 3), dtype=np.float32)
    if gone:
        del model
    again = COPIES[clone](layer)
    for found, expected in zip(again.get_weights(), (kernel, bias), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert_close(again(x), np.tanh(x @ kernel + bias), rtol=1e-5)
    again.set_weights([np.zeros((3, 2)), np.zeros(2)])
    np.testing.assert_array_equal(layer.get_weights()[0], kernel)  # the copy has separate weights


def test_layers_keep_what_they_have_learned_when_the_model_is_gone():
    model, weights = trained()
    kept, watch = model.layers, weakref.ref(model)
    del model
    assert watch() is None  # the layers keep their weights, not the model
    found = [w for layer in kept for w in layer.get_weights()]
    for one, other in zip(found, weights, strict=True):
        np.testing.assert_array_equal(one, other)
    kept[1].set_weights([np.ones((3, 2)), np.zeros(2)])
    np.testing.assert_array_equal(kept[1].get_weights()[0], np.ones((3, 2)))


def test_the_next_model_takes_the_layers_over():
    model, weights = trained()
    _, first, norm, _ = model.layers
    with pytest.raises(InvalidValueError, match="belongs to another model"):
        xn.Sequential([Input((3,)), first, Dense(2)])
    for found, expected in zip(first.get_weights(), weights[:2], strict=True):
        np.testing.assert_array_equal(found, expected)
    del model
    again = xn.Sequential([Input((3,)), first, norm, Dense(2)])
    for found, expected in zip(again.get_weights()[:6], weights[:6], strict=True):
        np.testing.assert_array_equal(found, expected)
    held = [value for layer in again.layers for value in (layer._alone, layer._left)]
    assert held == [None] * 8  # there is no second copy of the weights
    again.compile("sgd", "mse")
    again.fit(RNG.standard_normal((4, 3)), np.ones((4, 2)), verbose=0)
    assert (first.get_weights()[0] != weights[0]).any()
    for found, expected in zip(again.get_weights(), first.get_weights()):
        np.testing.assert_array_equal(found, expected)


def test_a_model_that_cannot_be_built_takes_no_weights_away():
    layer = Dense(2)
    layer(np.ones((1, 3)))
    weights = layer.get_weights()
    other, _ = trained()
    model = xn.Sequential([layer, Dense(2), other.layers[-1]])
    with pytest.raises(InvalidValueError, match="belongs to another model"):
        model.build((3,))
    for found, expected in zip(layer.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(found, expected)


# Configs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_can_be_made_frozen(name):
    layer = LAYERS[name]()
    assert layer.trainable is layer.get_config()["trainable"] is True
    config = {**layer.get_config(), "trainable": False}
    frozen = type(layer)(**config)
    assert frozen.trainable is False
    assert frozen.get_config() == json.loads(json.dumps(config))
    frozen.trainable = True
    assert frozen.get_config() == layer.get_config()


def test_a_layer_of_ones_own_need_not_know_of_trainable():
    class Own(Layer):
        def __init__(self, size, name=None, dtype=None):
            super().__init__(name=name, dtype=dtype)
            self.size = size

    own = Own(3)
    assert own.get_config() == {"size": 3, "name": None, "dtype": None}
    own.trainable = False
    assert Own.from_config(own.get_config()).get_config() == own.get_config()
    assert not Own.from_config(own.get_config()).trainable


@pytest.mark.parametrize(
    ("layer", "shown"),
    [
        (Dense(3, "relu"), "Dense(units=3, activation=ReLU())"),
        (Dense(3, "tanh", kernel_regularizer=L1L2(0.1), name="a", trainable=False),
         "Dense(units=3, activation=Tanh(), kernel_regularizer=L1L2(l1=0.1), name='a', trainable=False)"),
        (Dense(3, "relu", kernel_initializer="he_normal", bias_initializer=Constant(2)),
         "Dense(units=3, activation=ReLU(), kernel_initializer=HeNormal(), bias_initializer=Constant(value=2.0))"),
        (Activation("leaky_relu"), "Activation(activation=LeakyReLU())"),
        (BatchNormalization(1, 0.5, center=False), "BatchNormalization(axis=1, momentum=0.5, center=False)"),
        (LayerNormalization([1, -1]), "LayerNormalization(axis=(1, -1))"),
        (GroupNormalization(4, 1), "GroupNormalization(groups=4, axis=1)"),
        (AlphaDropout(0.5, [None, 1, 3], 7), "AlphaDropout(rate=0.5, noise_shape=(None, 1, 3), seed=7)"),
        (Input((3,)), "Input(shape=(3,))"),
        (Flatten(), "Flatten()"),
    ],
)  # fmt: skip
def test_repr(layer, shown):
    assert repr(layer) == shown


def described(spec):
    """Return a parameter's declaration without its initializer, in a form that can be compared."""
    return (spec.name, spec.shape, *map(repr, spec[3:]))


@pytest.mark.parametrize("name", LAYERS)
def test_config_round_trip(name):
    layer = LAYERS[name]()
    config = json.loads(json.dumps(layer.get_config()))
    again = layers.get({"class_name": type(layer).__name__, "config": config})
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()
    x = layer_inputs(layer, (4, 3))
    layer(x)
    again.ensure_built((3,))
    again.set_weights(layer.get_weights())
    assert_close(again(x), layer(x))
    assert [described(s) for s in again.specs] == [described(s) for s in layer.specs]


@pytest.mark.parametrize("name", ["dense", "Dense", "batch_normalization", "prelu", "leaky_relu", "dropout"])
def test_names(name):
    assert layers.registry.find(name).__name__.lower() == name.replace("_", "").lower()


def test_regularizers_reach_the_specs():
    layer = Dense(2, kernel_regularizer="l2", bias_regularizer=L1L2(0.1, 0.2))
    layer.ensure_built((3,))
    assert [(s.l1, s.l2) for s in layer.specs] == [(0.0, 0.01), (0.1, 0.2)]


@pytest.mark.parametrize(
    ("shape", "expected"), [((None, 3), (3,)), (4, (4,)), ([28, 28], (28, 28)), ((np.int64(2),), (2,)), ((), ())]
)
def test_rows_of(shape, expected):
    assert rows_of(shape) == expected


def test_without_activation():
    layer = Dense(2, "softmax")
    layer.ensure_built((3,))
    kernel, bias = layer.get_weights()
    bare, x = layer.without_activation("softmax"), RNG.standard_normal((4, 3))
    assert_close(bare(x), x @ kernel + bias)
    assert layer.activation.name == "softmax"
    assert layer.without_activation("sigmoid") is None
    assert_close(Softmax().without_activation("softmax")(x), x)
    assert Flatten().without_activation("softmax") is None
    assert Softmax(axis=1).without_activation("softmax") is None
    assert Dense(2, xn.activations.Softmax(axis=0)).without_activation("softmax") is None


def test_a_layer_of_a_function_has_its_settings(backend64):
    layer = ReLU(negative_slope=0.5)
    first = layer.activation
    assert layer.activation is first
    layer.max_value = 1.0
    x = backend64.array([[-2.0, 0.5, 3.0]])
    assert_close(layer(x), backend64.array([[-1.0, 0.5, 1.0]]))
    assert first.max_value is None
    with pytest.raises(InvalidValueError, match=r"max_value must be a finite number >= 0; got -1$"):
        layer.max_value = -1
    assert_close(pickle.loads(pickle.dumps(layer))(x), layer(x))
    assert repr(layer) == "ReLU(max_value=1.0, negative_slope=0.5)"


def test_parts_pickled_before_they_had_these_settings(backend64):
    """Older versions stored no settings of ReLU, no axis of softmax, and no function of a layer."""
    x = backend64.array([[-2.0, 0.5]])
    for part, lacking in (
        (xn.activations.ReLU(), ["negative_slope", "max_value", "threshold"]),
        (xn.activations.Softmax(), ["axis"]),
        (ReLU(), ["max_value", "negative_slope", "threshold", "activation"]),
        (LeakyReLU(0.3), ["activation"]),
        (Tanh(), ["activation"]),
    ):
        kept = part.__getstate__() or {}
        old = object.__new__(type(part))
        old.__setstate__({key: value for key, value in kept.items() if key not in lacking})
        assert_close(old(x), part(x))


@pytest.mark.parametrize("axis", [-1, -2, 1, 2, 0])
def test_dense_with_a_function_along_any_axis(backend64, axis):
    layer, x = Dense(4, xn.activations.Softmax(axis)), RNG.standard_normal((5, 3, 2))
    check_gradients(layer, x.shape, backend=backend64)
    layer.set_weights([RNG.standard_normal((2, 4)), RNG.standard_normal(4)])
    kernel, bias = layer.get_weights()
    e = np.exp(x @ kernel + bias)
    assert_close(layer(backend64.array(x)), backend64.array(e / e.sum(axis, keepdims=True)))


def test_glu_halves_the_units(backend64):
    layer = Dense(6, "glu")
    assert layer.ensure_built((4,)) == (3,)
    assert Activation(xn.activations.Glu(1)).ensure_built((4, 3)) == (2, 3)
    check_gradients(layer, (5, 4), backend=backend64)
    with pytest.raises(ShapeError, match="even number"):
        Dense(5, "glu").ensure_built((4,))


def test_a_model_of_functions_that_change_the_shape():
    x, y = RNG.standard_normal((20, 4)), RNG.integers(0, 3, 20)
    model = xn.Sequential([Dense(8, "glu"), Dense(3, xn.activations.Softmax(axis=1))], seed=0)
    model.compile("sgd", "sparse_categorical_crossentropy")
    history = model.fit(x, y, epochs=20, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert model.predict(x).shape == (20, 3)
    same = xn.Sequential([Dense(8, "glu"), Dense(3, "softmax")], seed=0)  # which is joined with the loss
    same.compile("sgd", "sparse_categorical_crossentropy")
    np.testing.assert_allclose(same.fit(x, y, epochs=20, verbose=0).history["loss"], history, rtol=1e-4)


# Errors -------------------------------------------------------------------------------------------------

X = np.ones((2, 3))


def built(layer, shape=(3,)):
    layer.ensure_built(shape)
    return layer


@pytest.mark.parametrize(
    ("call", "error", "ends"),
    [
        (lambda: Dense(0), InvalidValueError, "units must be an integer >= 1; got 0"),
        (lambda: Dense(2.5), InvalidValueError, "got 2.5"),
        (lambda: Dense("many"), InvalidTypeError, "got 'many'"),
        (lambda: Dense(2, "rleu"), UnknownNameError, "got 'rleu'"),
        (lambda: Dense(2, np.tanh), InvalidTypeError, "got <ufunc 'tanh'>"),
        (lambda: Dense(2, kernel_initializer="he"), UnknownNameError, "got 'he'"),
        (lambda: Dense(2, kernel_regularizer="l9"), UnknownNameError, "got 'l9'"),
        (lambda: Dense(2, name="a/b"), InvalidValueError, "got 'a/b'"),
        (lambda: Dense(2, name=""), InvalidValueError, "got ''"),
        (lambda: Dense(2, name=3), InvalidValueError, "got 3"),
        (lambda: Dense(2, dtype="float16"), UnknownNameError, "got 'float16'"),
        (lambda: Dropout(1.0), InvalidValueError, "rate must be a finite number >= 0 and < 1; got 1.0"),
        (lambda: Dropout(-0.1), InvalidValueError, "got -0.1"),
        (lambda: BatchNormalization(momentum=1.5), InvalidValueError, "got 1.5"),
        (lambda: BatchNormalization(epsilon=-1), InvalidValueError, "got -1"),
        (lambda: LeakyReLU(float("inf")), InvalidValueError, "got inf"),
        (lambda: Activation("swush"), UnknownNameError, "got 'swush'"),
        (lambda: Input((0, 3)), ShapeError, "got (0, 3)"),
        (lambda: Input((3, None)), ShapeError, "got (3, None)"),
        (lambda: Input(3.5), InvalidTypeError, "got 3.5"),
        (lambda: Input("ab"), ShapeError, "got 'ab'"),
        (lambda: layers.get("dens"), UnknownNameError, "got 'dens'"),
        (lambda: layers.get(7), InvalidTypeError, "got 7"),
        (lambda: Dense(2)(1.0), ShapeError, "got shape ()"),
        (lambda: Dense(2)([1.0, 2.0]), ShapeError, "got shape (batch,)"),
        (lambda: BatchNormalization()([1.0, 2.0]), ShapeError, "inputs of shape ('batch',); got -1"),
        (lambda: Input((4,))(X), ShapeError, "got ('batch', 3)"),
        (
            lambda: built(Dense(2, name="hidden"), (4,))(X),
            ShapeError,
            "layer hidden takes inputs of shape (batch, 4); got ('batch', 3)",
        ),
        (lambda: Dense(2)(["a", "b"]), InvalidTypeError, "got dtype <U1 (list)"),
        (lambda: Dense(2).get_weights(), NotBuiltError, "layer Dense has no weights before it is built"),
        (lambda: Dense(2).set_weights([]), NotBuiltError, "layer Dense has no weights before it is built"),
        (lambda: built(Dense(2)).set_weights([np.zeros((3, 2))]), ShapeError, "takes 2 arrays; got 1"),
        (
            lambda: built(Dense(2)).set_weights([np.zeros((2, 3)), np.zeros(2)]),
            ShapeError,
            "shape (3, 2); got (2, 3)",
        ),
    ],
)
def test_errors(call, error, ends):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).endswith(ends)


def test_a_layer_of_ones_own_needs_forward():
    with pytest.raises(TypeError, match="Layer must define forward"):
        Layer()(X)
