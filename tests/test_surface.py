"""A model besides training: variables, configs, files of weights, gradients, inner outputs, utilities."""

import copy
import json
import random

import numpy as np
import pytest

import xpnet as xn
from xpnet.backend import get_backend, library_of
from xpnet.callbacks import Callback, History
from xpnet.errors import (
    FileFormatError,
    InvalidTypeError,
    InvalidValueError,
    NotBuiltError,
    ShapeError,
    UnknownNameError,
)
from xpnet.layers import BatchNormalization, Dense, Dropout, Input, Variable
from xpnet.testing import assert_close
from xpnet.utils import set_random_seed, to_categorical

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((12, 3)), RNG.standard_normal((12, 2))


def model_of(seed=1, **kwargs):
    layers = [
        Dense(4, "tanh", name="a", kernel_regularizer="l2"),
        BatchNormalization(name="n"),
        Dense(2, name="b"),
    ]
    model = xn.Sequential([Input((3,)), *layers], seed=seed, dtype="float64", **kwargs)
    model.compile("adam", "mse", ["mae"])
    return model


# Variables ----------------------------------------------------------------------------------------------


def test_variables_are_listed_as_in_keras():
    model = model_of()
    names = ["a/kernel", "a/bias", "n/gamma", "n/beta", "n/moving_mean", "n/moving_variance", "b/kernel", "b/bias"]
    assert [v.path for v in model.weights] == [v.path for v in model.variables] == names
    assert [v.path for v in model.trainable_variables] == [n for n in names if "moving" not in n]
    assert [v.path for v in model.non_trainable_weights] == names[4:6]
    for variable, value in zip(model.weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
        np.testing.assert_array_equal(np.asarray(variable), value)
        assert library_of(variable.value) == model.backend.name
        np.testing.assert_array_equal(model.backend.host(variable.value), value)
        assert (variable.shape, variable.dtype) == (value.shape, "float64")
    model.get_layer("a").trainable = False
    assert [v.path for v in model.trainable_weights] == ["n/gamma", "n/beta", "b/kernel", "b/bias"]
    assert [v.name for v in model.get_layer("b").weights] == ["kernel", "bias"]


def test_a_variable_reads_and_writes_the_current_values():
    model = model_of()
    kernel = model.weights[0]
    before, first = kernel.numpy(), model.get_weights()
    model.fit(X, Y, verbose=0)
    assert not np.array_equal(kernel.numpy(), before)
    now = model.get_weights()
    kernel.assign(before)
    for i, value in enumerate(model.get_weights()):
        np.testing.assert_array_equal(value, first[0] if i == 0 else now[i])
    with pytest.raises(ShapeError, match=r"\(3, 4\); got \(2,\)$"):
        kernel.assign([1.0, 2.0])
    np.testing.assert_array_equal(kernel.numpy(), before)


def test_variables_of_a_layer_alone():
    layer = Dense(2, name="d")
    assert layer.weights == []
    layer(X)
    kernel, bias = layer.weights
    assert isinstance(kernel, Variable)
    assert repr(bias) == "<Variable d/bias, shape (2,)>"
    bias.assign([3.0, 4.0])
    np.testing.assert_array_equal(layer.get_weights()[1], [3.0, 4.0])
    np.testing.assert_array_equal(bias.value, [3.0, 4.0])


def test_flat_weights_are_a_copy():
    model = model_of()
    flat = model.backend.host(model.flat_weights)
    assert flat.shape == (3 * 4 + 4 + 8 + 8 + 2,)
    np.testing.assert_array_equal(flat[:12], model.weights[0].numpy().reshape(-1))


def test_layers_by_name_and_index():
    model = model_of()
    assert model.get_layer("n") is model.get_layer(index=2) is model.get_layer(index=-2) is model.layers[2]
    for index in (4, -5):
        with pytest.raises(UnknownNameError, match=f"got {index}$"):
            model.get_layer(index=index)
    for wrong in ((), ("n", 2)):
        with pytest.raises(InvalidTypeError, match="a name or an index"):
            model.get_layer(*wrong)


# History ------------------------------------------------------------------------------------------------


def test_the_history_stays_with_the_model_even_after_ctrl_c():
    class Interrupt(Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    model = model_of()
    assert model.history is None
    found = model.fit(X, Y, epochs=2, verbose=0)
    assert model.history is found
    assert isinstance(found, History)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, epochs=4, verbose=0, callbacks=[Interrupt()])
    assert model.history is not found
    assert len(model.history.history["loss"]) == 2
    assert copy.deepcopy(model).history.history == model.history.history


# Configs and files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["config", "json"])
def test_a_model_comes_back_from_its_description(way):
    shared = Dense(3, "relu")
    model = xn.Sequential([shared, Dropout(0.5), shared, Dense(1)], seed=7, name="mine")
    model.build((3,))
    if way == "config":
        again = xn.Sequential.from_config(model.get_config())
    else:
        text = model.to_json(indent=2)
        assert json.loads(text)["class_name"] == "Sequential"
        again = xn.model_from_json(text)
    assert again.get_config() == model.get_config()
    assert again.name == "mine"
    assert again.layers[0] is again.layers[2]
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):  # of the same seed
        np.testing.assert_array_equal(a, b)
    open_model = xn.Sequential([Dense(3)], seed=2)
    assert not xn.Sequential.from_config(open_model.get_config()).built


def test_descriptions_take_classes_of_ones_own():
    class Own(Dense):
        pass

    text = xn.Sequential([Own(2)], seed=0).to_json()
    with pytest.raises(UnknownNameError, match=r"'Own'$"):
        xn.model_from_json(text)
    assert type(xn.model_from_json(text, {"Own": Own}).layers[0]) is Own


def test_weights_in_a_file(tmp_path):
    model, other = model_of(1), model_of(2)
    model.fit(X, Y, verbose=0)
    other.fit(X, Y, verbose=0)
    model.save_weights(tmp_path / "w.safetensors")
    model.save(tmp_path / "whole.safetensors")
    for name in ("w", "whole"):
        other.set_weights([np.zeros_like(a) for a in other.get_weights()])
        other.load_weights(tmp_path / f"{name}.safetensors")
        for a, b in zip(other.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    from safetensors.numpy import load_file

    assert set(load_file(tmp_path / "w.safetensors")) == {v.path for v in model.weights}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([Dense(5, name="a"), Dense(2, name="b")], r"are not those of this model; got \('a/bias', \(\d,\)\)$"),
        ([Dense(4, name="a")], r"got \('b/bias', \(2,\)\)$"),
        ([Dense(4, name="a"), Dense(2, name="b"), Dense(1, name="c")], r"got \('c/bias', \(1,\)\)$"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(layers, message, tmp_path):
    source = xn.Sequential([Input((3,)), Dense(4, name="a"), Dense(2, name="b")], seed=0)
    source.save_weights(tmp_path / "w")
    model = xn.Sequential([Input((3,)), *layers], seed=3)
    before = model.get_weights()
    with pytest.raises(FileFormatError, match=message):
        model.load_weights(tmp_path / "w")
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(NotBuiltError):
        xn.Sequential([Dense(2)]).load_weights(tmp_path / "w")


# Batches, gradients, inner outputs ----------------------------------------------------------------------


def test_batches():
    model = model_of()
    model.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(model.predict_on_batch(X), model.predict(X, batch_size=12))
    assert model.test_on_batch(X, Y) == model.evaluate(X, Y, batch_size=12)
    weights = np.arange(12.0)
    assert model.test_on_batch(X, Y, weights, return_dict=True) == model.evaluate(
        X, Y, sample_weight=weights, return_dict=True
    )


def test_gradients_are_the_derivative_of_the_loss():
    model = model_of()
    model.fit(X, Y, epochs=3, verbose=0)
    x = model.backend.array(X)
    found = model.gradients(x, Y)
    assert list(found) == [v.path for v in model.trainable_variables]
    h = 1e-6
    for variable in model.trainable_variables:
        start, direction = variable.numpy(), RNG.standard_normal(variable.shape)
        losses = []
        for sign in (1, -1):
            variable.assign(start + sign * h * direction)
            losses.append(model.test_on_batch(X, Y)[0])
        variable.assign(start)
        assert library_of(found[variable.path]) == model.backend.name
        exact = float((model.backend.host(found[variable.path]) * direction).sum())
        assert exact == pytest.approx((losses[0] - losses[1]) / (2 * h), rel=1e-5, abs=1e-8)
    model.get_layer("a").trainable = False
    model.compile("sgd", "mse")
    assert list(model.gradients(X, Y)) == ["n/gamma", "n/beta", "b/kernel", "b/bias"]
    with pytest.raises(NotBuiltError, match="compile"):
        xn.Sequential([Input((3,)), Dense(1)]).gradients(X, Y)


def test_outputs_of_inner_layers():
    model = model_of()
    layer = model.get_layer("a")
    for upto in ("a", 1, -3, layer):
        assert_close(model.compute(X, upto=upto, batch_size=5), layer(X), rtol=1e-12)
    np.testing.assert_array_equal(model.compute(X), model.predict(X))
    with pytest.raises(UnknownNameError, match=r"got 'z'$"):
        model.compute(X, upto="z")


def test_a_call_as_in_training():
    model = xn.Sequential([Input((3,)), Dropout(0.5, name="d"), BatchNormalization()], seed=0, dtype="float64")
    x = np.ones((64, 3)) + X[:1]
    before = model.get_weights()
    np.testing.assert_array_equal(model(x), model.predict(x))
    once, again = (np.asarray(model(x, training=True)) for _ in range(2))
    assert not np.array_equal(once, again)
    np.testing.assert_allclose(once.mean(0), 0.0, atol=1e-6)  # statistics of these rows
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert library_of(model(model.backend.array(x), training=True)) == model.backend.name
    fresh = xn.Sequential([Dense(2), Dropout(0.5)], seed=0)
    assert fresh(X, training=True).shape == (12, 2)


# Utilities ----------------------------------------------------------------------------------------------


def test_one_hot():
    np.testing.assert_array_equal(to_categorical([0, 2, 1]), np.eye(3)[[0, 2, 1]])
    np.testing.assert_array_equal(to_categorical([[1], [0]], 4), np.eye(4)[[1, 0]])
    assert to_categorical(np.zeros((2, 3), int)).shape == (2, 3, 1)
    b = get_backend()
    assert library_of(to_categorical(b.array([0, 1], "int32"))) == b.name
    for wrong, shown in (([0, 3], "3"), ([-1], "-1"), ([0.5], "0.5")):
        with pytest.raises(InvalidValueError, match=rf"from 0 to 2; got {shown}$"):
            to_categorical(wrong, 3)


def test_seeds(monkeypatch):
    from xpnet.core import random as streams

    monkeypatch.setattr(streams, "_seeds", None)
    found = []
    for _ in range(2):
        set_random_seed(5)
        found.append((xn.Sequential().seed, xn.Sequential().seed, random.random(), np.random.random()))  # noqa: NPY002
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]
    with pytest.raises(InvalidValueError, match=r"got -1$"):
        set_random_seed(-1)
