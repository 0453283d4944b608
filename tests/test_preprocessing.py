"""Embeddings and the layers that prepare inputs: values, `adapt`, what they refuse, files."""

import numpy as np
import pytest

import xpnet as xn
from xpnet import layers
from xpnet.errors import InvalidTypeError, InvalidValueError, NotBuiltError, ShapeError, UnknownNameError
from xpnet.kernels.context import Context
from xpnet.layers import (
    CategoryEncoding,
    Dense,
    Discretization,
    Embedding,
    Flatten,
    Input,
    Maxout,
    Normalization,
    Permute,
    RepeatVector,
    Rescaling,
    Reshape,
)
from xpnet.testing import assert_close

RNG = np.random.default_rng(0)
NAN = float("nan")


# Values ---------------------------------------------------------------------------------------------------


def test_embedding(backend64):
    layer, x = Embedding(6, 3), RNG.integers(0, 6, (4, 5))
    y = layer(backend64.array(x, "float64"))
    (table,) = layer.get_weights()
    assert_close(y, backend64.array(table[x]))
    assert (np.abs(table) <= 0.05).all()
    assert_close(layer(x.tolist()), table[x], check_library=False, check_dtype=False, rtol=1e-6)


def test_numbers_that_are_no_classes_give_nan_where_they_are_not_read_on_the_host(backend64):
    x = backend64.array([[0.0, -1.0], [4.0, 2.0], [1.5, 3.0]])
    for layer in (Embedding(4, 2), CategoryEncoding(4, "one_hot")):
        layer.ensure_built((2,))
        params = {spec.name: backend64.array(np.ones(spec.shape)) for spec in layer.specs}
        y, _ = layer.forward(Context(backend64), params, x)
        nan = np.isnan(backend64.host(y)).any(-1)
        np.testing.assert_array_equal(nan, [[False, True], [True, False], [True, False]])


@pytest.mark.parametrize("mode", ["one_hot", "multi_hot", "count"])
def test_category_encoding(backend64, mode):
    x = RNG.integers(0, 4, (6, 3))
    hot = np.eye(4)[x]
    wanted = {"one_hot": hot, "multi_hot": hot.max(-2), "count": hot.sum(-2)}[mode]
    layer = CategoryEncoding(4, mode)
    assert_close(layer(backend64.array(x, "float64")), backend64.array(wanted))
    one = CategoryEncoding(4, mode)(backend64.array(x[:, :1], "float64"))
    assert_close(one, backend64.array(np.eye(4)[x[:, 0]]))  # of one number all are the same


def test_discretization(backend64):
    x, bins = np.array([[-5.0, -1.0, -0.999, 0.0], [0.5, 2.0, 1.999, 9.0]]), [-1.0, 0.0, 2.0]
    y = Discretization(bins)(backend64.array(x))
    assert_close(y, backend64.array(1.0 * np.digitize(x, bins)))
    hot = Discretization(bins, output_mode="one_hot")(backend64.array(x))
    assert_close(hot, backend64.array(np.eye(4)[np.digitize(x, bins)]))


@pytest.mark.parametrize("axis", [-1, 1, (1, 2), (-1, 1), None, 2])
@pytest.mark.parametrize("invert", [False, True])
def test_normalization(backend64, axis, invert):
    data, x = RNG.standard_normal((9, 4, 3)) * 3 + 1, RNG.standard_normal((5, 4, 3))
    layer = Normalization(axis, invert=invert)
    assert_close(layer(backend64.array(x)), backend64.array(x))  # before `adapt`: mean 0, variance 1
    layer.adapt(backend64.array(data))
    others = {-1: (0, 1), 1: (0, 2), (1, 2): (0,), (-1, 1): (0,), None: (0, 1, 2), 2: (0, 1)}[axis]
    mean, deviation = data.mean(others, keepdims=True), data.std(others, keepdims=True)
    wanted = x * deviation + mean if invert else (x - mean) / deviation
    assert_close(layer(backend64.array(x)), backend64.array(wanted))
    assert [w.ndim for w in layer.get_weights()] == [3 - len(others)] * 2


def test_normalization_of_a_constant_does_not_divide_by_zero():
    layer = Normalization()
    layer.adapt([[2.0], [2.0]])
    np.testing.assert_allclose(layer([[2.0], [3.0]]), [[0.0], [1e7]])


def test_normalization_with_what_is_given(backend64):
    x = RNG.standard_normal((5, 2, 3))
    for axis, mean, variance in (
        (-1, [1, 2, 3], [4, 5, 6]),
        (-1, 1.0, 4.0),
        ((1, 2), [0.5], [2.0]),
        (1, [1, 2], [3, 4]),
    ):
        layer = Normalization(axis, mean, variance)
        a, b = (np.asarray(v, float).reshape((1, 2, 1) if axis == 1 else np.shape(v)) for v in (mean, variance))
        assert_close(layer(backend64.array(x)), backend64.array((x - a) / np.sqrt(b)))
        assert len(layer.get_weights()) == 2


def test_adapt_of_quantiles():
    layer = Discretization(num_bins=4)
    layer.adapt(np.arange(1.0, 9.0))
    assert layer.bin_boundaries == (2.0, 4.0, 6.0)
    assert layer([[1.0, 2.0, 8.0]]).tolist() == [[0.0, 1.0, 3.0]]
    again = layers.get({"class_name": "Discretization", "config": layer.get_config()})
    assert again([[1.0, 2.0, 8.0]]).tolist() == [[0.0, 1.0, 3.0]]
    layer.adapt(10 * np.arange(1.0, 9.0))  # once more, though it is built
    assert layer([[1.0, 20.0, 80.0]]).tolist() == [[0.0, 1.0, 3.0]]
    values = RNG.standard_normal(5000)
    layer.adapt(values)
    shares = np.bincount(np.digitize(values, layer.bin_boundaries)) / 5000
    assert np.abs(shares - 0.25).max() < 0.01


def test_maxout(backend64):
    layer, x = Maxout(2, 3, bias_initializer="random_normal"), RNG.standard_normal((5, 4))
    y = layer(backend64.array(x))
    kernel, bias = layer.get_weights()
    assert_close(y, backend64.array((x @ kernel + bias).reshape(5, 2, 3).max(-1)))


def test_equal_pieces_share_the_gradient():
    layer = Maxout(1, 2, use_bias=False, kernel_initializer="ones")
    layer.ensure_built((1,))
    ctx = Context(xn.get_backend("numpy", dtype="float64"))
    _, backward = layer.forward(ctx, {"kernel": np.ones((1, 2))}, np.array([[3.0]]))
    dx, grads = backward(np.array([[1.0]]), {})
    assert (dx.tolist(), grads["kernel"].tolist()) == ([[1.0]], [[1.5, 1.5]])


def test_shapes(backend64):
    x = RNG.standard_normal((6, 2, 3, 4))
    wanted = {
        Permute((3, 1, 2)): x.transpose(0, 3, 1, 2), Permute([1, 2, 3]): x, Reshape((4, 6)): x.reshape(6, 4, 6),
        Reshape((-1,)): x.reshape(6, 24), Reshape([3, -1, 2]): x.reshape(6, 3, 4, 2),
    }  # fmt: skip
    for layer, y in wanted.items():
        assert_close(layer(backend64.array(x)), backend64.array(y))
        assert layer.output_shape == y.shape[1:]
    rows = x[:, 0, 0]
    assert_close(RepeatVector(3)(backend64.array(rows)), backend64.array(np.stack([rows] * 3, 1)))


# In models ------------------------------------------------------------------------------------------------


def test_adapted_layers_in_models_and_files(tmp_path):
    data = RNG.standard_normal((40, 3)) * 5 + 2
    scale, bins = Normalization(), Discretization(num_bins=5)
    scale.adapt(data)
    bins.adapt(data)
    model = xn.Sequential(
        [Input((3,)), layers.Parallel([[scale, Dense(4)], [bins, Embedding(5, 2), Flatten()]]), Dense(1)]
    )
    model.compile("adam", "mse")
    for kept, found in zip((data.mean(0), data.var(0)), model.layers[1].branches[0].layers[0].get_weights()):
        np.testing.assert_allclose(found, kept, rtol=1e-6)
    model.fit(data, data[:, :1], epochs=2, verbose=0)
    np.testing.assert_allclose(scale.get_weights()[0], data.mean(0), rtol=1e-6)  # training has not changed it
    model.save(tmp_path / "a")
    again = xn.load_model(tmp_path / "a")
    assert_close(again.predict(data), model.predict(data))
    scale.adapt(2 * data)  # in the model
    np.testing.assert_allclose(scale.get_weights()[0], 2 * data.mean(0), rtol=1e-6)
    assert (np.asarray(again.predict(data)) != np.asarray(model.predict(data))).any()
    bins.adapt(3 * data)
    assert model.network.settings != again.network.settings
    model.fit(data, data[:, :1], verbose=0)


@pytest.mark.parametrize("kind", ["int64", "uint8", "float32", "list"])
def test_an_embedding_learns_from_class_numbers_of_any_kind(backend, kind):
    x = RNG.integers(0, 7, 200)
    y = np.array([0.5, -1.0, 2.0, 0.0, 1.0, -2.0, 3.0])[x]
    data = x.tolist() if kind == "list" else x.astype(kind)
    model = xn.Sequential([Embedding(7, 4), Flatten(), Dense(1)], seed=0, backend=backend.name)
    model.compile(xn.optimizers.Adam(0.05), "mse")
    history = model.fit(data, y, epochs=12, batch_size=20, verbose=0).history["loss"]
    assert history[-1] < 0.01 < history[0]


def test_the_largest_class_numbers_stay_exact():
    layer = Embedding(2**24, 1, "zeros")
    assert layer.classes == 2**24
    assert float(np.float32(2**24 - 1)) == 2**24 - 1
    hot = CategoryEncoding(3000, "one_hot")([[2999]])
    assert np.asarray(hot).argmax() == 2999


# Errors ---------------------------------------------------------------------------------------------------

X = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "ends"),
    [
        (lambda: Embedding(0, 2), InvalidValueError, "got 0"),
        (lambda: Embedding(2**24 + 1, 2), InvalidValueError, "got 16777217"),
        (lambda: Embedding(3, 2.5), InvalidValueError, "got 2.5"),
        (lambda: Embedding(3, 2)([[3]]), InvalidValueError, "class numbers, integers from 0 to 2; got 3"),
        (lambda: Embedding(3, 2)([[NAN]]), InvalidValueError, "integers from 0 to 2; got nan"),
        (lambda: CategoryEncoding(3)([[0.5, 1.0]]), InvalidValueError, "integers from 0 to 2; got 0.5"),
        (lambda: CategoryEncoding(3)([1.0, 2.0]), ShapeError, "to be encoded; got shape (batch,)"),
        (lambda: CategoryEncoding(3, "binary"), UnknownNameError, "got 'binary'"),
        (lambda: Normalization(mean=1.0), InvalidValueError, "got mean=1.0 and variance=None"),
        (lambda: Normalization(mean=[1.0], variance=1.0), ShapeError, "got (1,) and ()"),
        (lambda: Normalization(mean=1.0, variance=-1.0), InvalidValueError, "got -1.0"),
        (lambda: Normalization(mean=NAN, variance=1.0), InvalidValueError, "got nan"),
        (lambda: Normalization(mean=[1, 2], variance=[1, 2])(X), ShapeError, "got (2,)"),
        (lambda: Normalization(0)(X), ShapeError, "axes from 1 to 1 of inputs of shape ('batch', 3); got (0,)"),
        (lambda: Normalization((1, -1))(X), ShapeError, "got (1, -1)"),
        (lambda: Normalization(2.5), InvalidValueError, "got 2.5"),
        (lambda: Normalization(mean=1.0, variance=1.0).adapt(X), InvalidValueError, "got mean=1.0"),
        (lambda: Normalization().adapt([1.0]), ShapeError, "got (1,)"),
        (lambda: Normalization().adapt([[NAN]]), InvalidValueError, "got nan"),
        (lambda: Normalization().adapt(np.zeros((0, 3))), ShapeError, "got (0, 3)"),
        (lambda: built(Normalization()).adapt([[1.0]]), ShapeError, "got ('batch', 1)"),
        (lambda: Discretization(), InvalidValueError, "got None and None"),
        (lambda: Discretization([1.0, 0.0]), InvalidValueError, "got [1.0, 0.0]"),
        (lambda: Discretization([]), InvalidValueError, "got []"),
        (lambda: Discretization([1.0], 3), InvalidValueError, "got num_bins=3"),
        (lambda: Discretization(num_bins=3)(X), NotBuiltError, "call adapt(data) first; got None"),
        (lambda: Discretization([0.0]).adapt(X), InvalidValueError, "got None and 6"),
        (lambda: Discretization(num_bins=7).adapt(X), InvalidValueError, "got 7 and 6"),
        (lambda: Rescaling("much"), InvalidTypeError, "got 'much'"),
        (lambda: Reshape((2, 2))(X), ShapeError, "of shape ('batch', 3); got (2, 2)"),
        (lambda: Reshape((-1, -1))(X), ShapeError, "got (-1, -1)"),
        (lambda: Reshape((2, -1))(X), ShapeError, "got (2, -1)"),
        (lambda: Reshape((-3, -1))(X), ShapeError, "got (-3, -1)"),
        (lambda: Reshape(3), InvalidTypeError, "got 3"),
        (lambda: Permute((2, 1))(X), ShapeError, "of shape ('batch', 3); got (2, 1)"),
        (lambda: Permute((0,))(X), ShapeError, "got (0,)"),
        (lambda: RepeatVector(0), InvalidValueError, "got 0"),
        (lambda: RepeatVector(2)(np.ones((2, 3, 4))), ShapeError, "got ('batch', 3, 4)"),
        (lambda: Maxout(2, 0), InvalidValueError, "got 0"),
        (lambda: Maxout(2)([1.0]), ShapeError, "got shape (batch,)"),
    ],
)  # fmt: skip
def test_errors(call, error, ends):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).endswith(ends)


def built(layer):
    layer.ensure_built((3,))
    return layer
