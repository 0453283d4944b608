"""Layers for inputs, shapes and combinations against Keras: outputs, gradients, statistics, fifty steps."""

import numpy as np
import pytest

import xpnet as xn
from xpnet import layers as ours
from xpnet.backend import get_backend
from xpnet.kernels.context import Context

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")
theirs = keras.layers

RNG = np.random.default_rng(0)
X, GRID = RNG.standard_normal((8, 6)), RNG.standard_normal((8, 2, 3, 4))
CLASSES = RNG.integers(0, 5, (8, 4))


def functional(shape, build):
    """Return a model of Keras' functional kind."""
    x = keras.Input(shape)
    return keras.Model(x, build(x))


def residual(x):
    return theirs.add([x, theirs.Dense(6, "tanh")(x)])


def deep(x):
    """A residual block within a residual block, with statistics."""
    h = theirs.BatchNormalization()(theirs.Dense(4, "relu")(x))
    h = theirs.add([h, theirs.Dense(4)(h)])
    return theirs.add([x, theirs.Dense(6)(h)])


def parallel(merge, branches=((5, "tanh"), (5, None), (5, "relu"))):
    return lambda x: merge([theirs.Dense(units, activation)(x) for units, activation in branches])


def branches():
    return [ours.Dense(5, "tanh"), ours.Dense(5), ours.Dense(5, "relu")]


# name -> ours, Keras' (a layer, or what makes a functional model), inputs
LAYERS = {
    "embedding": (lambda: ours.Embedding(5, 3), lambda: theirs.Embedding(5, 3), CLASSES),
    "rescaling": (lambda: ours.Rescaling(0.3, -2.0), lambda: theirs.Rescaling(0.3, -2.0), X),
    "normalization": (
        lambda: ours.Normalization(-1, range_of(4), range_of(4)),
        lambda: theirs.Normalization(-1, range_of(4), range_of(4)),
        GRID,
    ),
    "normalization_of_axes": (
        lambda: ours.Normalization((1, -1), RNG_TABLE, RNG_TABLE**2, invert=True),
        lambda: theirs.Normalization((1, -1), RNG_TABLE, RNG_TABLE**2, invert=True),
        GRID,
    ),
    "normalization_of_all": (
        lambda: ours.Normalization(None, 2.0, 1e-20),
        lambda: theirs.Normalization(None, 2.0, 1e-20),
        X,
    ),
    "discretization": (
        lambda: ours.Discretization([-1.0, 0.0, 0.5]),
        lambda: theirs.Discretization([-1.0, 0.0, 0.5]),
        X,
    ),
    "discretization_one_hot": (
        lambda: ours.Discretization([-1.0, 0.5], output_mode="one_hot"),
        lambda: theirs.Discretization([-1.0, 0.5], output_mode="one_hot"),
        X,
    ),
    "discretization_count": (
        lambda: ours.Discretization([-1.0, 0.5], output_mode="count"),
        lambda: theirs.Discretization([-1.0, 0.5], output_mode="count"),
        X,
    ),
    **{
        f"category_encoding_{mode}": (
            lambda mode=mode: ours.CategoryEncoding(6, mode),
            lambda mode=mode: theirs.CategoryEncoding(6, mode),
            CLASSES,
        )
        for mode in ("multi_hot", "one_hot", "count")
    },
    "category_encoding_of_one": (
        lambda: ours.CategoryEncoding(6, "one_hot"),
        lambda: theirs.CategoryEncoding(6, "one_hot"),
        CLASSES[:, :1],
    ),
    "reshape": (lambda: ours.Reshape((4, -1)), lambda: theirs.Reshape((4, -1)), GRID),
    "permute": (lambda: ours.Permute((3, 1, 2)), lambda: theirs.Permute((3, 1, 2)), GRID),
    "repeat_vector": (lambda: ours.RepeatVector(3), lambda: theirs.RepeatVector(3), X),
    "maxout": (
        lambda: ours.Maxout(3, 4),
        lambda: functional((6,), lambda x: keras.ops.max(theirs.Reshape((3, 4))(theirs.Dense(12)(x)), axis=-1)),
        X,
    ),
    "residual": (lambda: ours.Residual(ours.Dense(6, "tanh")), lambda: functional((6,), residual), X),
    "residual_deep": (
        lambda: ours.Residual([
            ours.Dense(4, "relu"), ours.BatchNormalization(), ours.Residual(ours.Dense(4)), ours.Dense(6)
        ]),
        lambda: functional((6,), deep),
        X,
    ),
    **{
        f"parallel_{name}": (
            lambda name=name: ours.Parallel(branches(), name),
            lambda merge=merge: functional((6,), parallel(merge)),
            X,
        )
        for name, merge in {
            "concat": theirs.concatenate, "add": theirs.add, "multiply": theirs.multiply,
            "average": theirs.average, "maximum": theirs.maximum,
        }.items()
    },
    "sequential": (
        lambda: xn.Sequential([ours.Dense(4, "tanh"), xn.Sequential([ours.Dense(2)])]).as_layer(),
        lambda: keras.Sequential([theirs.Dense(4, "tanh"), keras.Sequential([theirs.Dense(2)])]),
        X,
    ),
}  # fmt: skip
RNG_TABLE = RNG.uniform(1.0, 2.0, (2, 4))


def range_of(n):
    return list(np.arange(1.0, n + 1.0))


def paired(name):
    """Return our layer, Keras' and the inputs, with the same weights; both built."""
    mine, other, x = LAYERS[name]
    mine, other = mine(), other()
    mine.ensure_built(x.shape[1:])
    other(x)
    values = [RNG.uniform(0.5, 1.5, spec.shape) if "variance" in spec.name else RNG.standard_normal(spec.shape)
              for spec in mine.specs]  # fmt: skip
    if not name.startswith("normalization"):  # in Keras given statistics are no weights
        mine.set_weights(values)
        assert [tuple(w.shape) for w in other.weights] == [spec.shape for spec in mine.specs]
        for variable, value in zip(other.weights, values, strict=True):
            variable.assign(value)
    return mine, other, x


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_in_training(agree, name):
    mine, other, x = paired(name)
    backend = get_backend("numpy", dtype="float64")
    given = torch.tensor(x, requires_grad=x.dtype.kind == "f")
    wanted = other(given, training=True) if "training" in other._call_signature.parameters else other(given)
    params = {spec.name: w for spec, w in zip(mine.specs, mine.get_weights(), strict=True)}
    y, backward = mine.forward(Context(backend, training=True), params, x.astype(np.float64))
    agree(y, wanted.detach().numpy())
    dy = RNG.standard_normal(y.shape)
    dx, grads = backward(dy, {})
    if not wanted.requires_grad:
        assert not np.asarray(dx).any()
        assert grads == {}
        return
    wanted.backward(torch.tensor(dy))
    if given.requires_grad:
        agree(dx, given.grad.numpy())
    own = [spec.name for spec in mine.specs if spec.trainable]
    for key, variable in zip(own, other.trainable_variables, strict=True):
        agree(grads[key], variable.value.grad.numpy())


@pytest.mark.parametrize("axis", [-1, 1, (1, -1), (2, 3), None])
@pytest.mark.parametrize("invert", [False, True])
def test_adapted_statistics(agree, axis, invert):
    mine, other = ours.Normalization(axis, invert=invert), theirs.Normalization(axis, invert=invert)
    data = RNG.standard_normal((50, 2, 3, 4)) * 3 + 1
    mine.adapt(data)
    other.adapt(data)
    for a, b in zip(mine.get_weights(), other.weights[:2], strict=True):
        agree(a, b.value.detach().numpy())
    agree(mine(GRID), other(GRID).detach().numpy())


@pytest.mark.parametrize("count", [12, 99, 100, 101, 250, 1000, 1777])
@pytest.mark.parametrize("bins", [2, 3, 10])
@pytest.mark.parametrize("epsilon", [0.01, 0.05])
def test_adapted_boundaries(agree, count, bins, epsilon):
    """Keras computes them in float32."""
    mine, other = (kind.Discretization(num_bins=bins, epsilon=epsilon) for kind in (ours, theirs))
    data = RNG.uniform(1.0, 2.0, (count, 1)).astype(np.float32)
    mine.adapt(data)
    other.update_state(data)  # what `adapt` does; that itself asks for TensorFlow
    other.finalize_state()
    agree(mine.bin_boundaries, other.bin_boundaries, rtol=1e-5)


# Fifty steps ----------------------------------------------------------------------------------------------


def our_model():
    return xn.Sequential([
        ours.Input((4,)), ours.Embedding(5, 3, embeddings_regularizer="l2"), ours.Flatten(),
        ours.Parallel([
            ours.Dense(6, "tanh", kernel_regularizer="l1"),
            [ours.Dense(6, use_bias=False), ours.BatchNormalization()],
        ], "multiply"),
        ours.Residual([ours.Dense(8, "relu"), ours.Dense(6)]), ours.Maxout(5, 3),
        xn.Sequential([ours.Parallel([ours.Dense(2), ours.Dense(1, "sigmoid")]), ours.Dense(3, "softmax")]),
    ], dtype="float64", backend="numpy")  # fmt: skip


def their_model():
    x = keras.Input((4,))
    h = theirs.Flatten()(theirs.Embedding(5, 3, embeddings_regularizer="l2")(x))
    one, two = theirs.Dense(6, "tanh", kernel_regularizer="l1"), theirs.Dense(6, use_bias=False)
    h = theirs.multiply([one(h), theirs.BatchNormalization()(two(h))])
    h = theirs.add([h, theirs.Dense(6)(theirs.Dense(8, "relu")(h))])
    h = keras.ops.max(theirs.Reshape((5, 3))(theirs.Dense(15)(h)), axis=-1)
    h = theirs.concatenate([theirs.Dense(2)(h), theirs.Dense(1, "sigmoid")(h)])
    return keras.Model(x, theirs.Dense(3, "softmax")(h))


def test_fifty_steps(agree):
    mine, other = our_model(), their_model()
    x, y = RNG.integers(0, 5, (40, 4)), RNG.integers(0, 3, 40)
    mine.compile(xn.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy")
    other.compile(keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy")
    names = [path.rpartition("/")[2] for path in mine.network.paths()]
    assert [tuple(w.shape) for w in mine.get_weights()] == [tuple(w.shape) for w in in_our_order(other)]
    assert [w.name for w in in_our_order(other)] == names
    for value, variable in zip(mine.get_weights(), in_our_order(other), strict=True):
        variable.assign(value)
    for step in range(50):
        rows = slice(8 * (step % 5), 8 * (step % 5) + 8)
        found, wanted = mine.train_on_batch(x[rows], y[rows]), other.train_on_batch(x[rows], y[rows])
        agree(found, wanted)
    for value, variable in zip(mine.get_weights(), in_our_order(other), strict=True):
        agree(value, variable.value.detach().numpy())
    agree(mine.predict(x), other(x).detach().numpy())


def in_our_order(model):
    """Return Keras' variables, layer by layer, in the order in which our layers stand."""
    dense = [layer for layer in model.layers if isinstance(layer, theirs.Dense)]
    dense.sort(key=lambda layer: int((layer.name + "_0").split("_")[1]))  # in the order in which they were made
    norm = next(layer for layer in model.layers if isinstance(layer, theirs.BatchNormalization))
    embedding = next(layer for layer in model.layers if isinstance(layer, theirs.Embedding))
    one, two, back, front, *rest = dense  # in `add` the last one was made first
    order = [embedding, one, two, norm, front, back, *rest]
    return [variable for layer in order for variable in layer.weights]
