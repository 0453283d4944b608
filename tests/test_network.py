"""Layers in a row on one flat array: names, positions, masks, views, requested derivatives."""

import numpy as np
import pytest

import xpnet as xn
from xpnet.backend import get_backend
from xpnet.core.random import Stream
from xpnet.errors import InvalidValueError, ShapeError
from xpnet.kernels.context import Context
from xpnet.layers import Activation, BatchNormalization, Dense, Dropout, Flatten, Input, Layer, ReLU, Softmax
from xpnet.testing import assert_close
from xpnet.training.network import Network, check_input, name_layers


class Probe(Layer):
    """y = scale * x; records what is requested."""

    def build(self, input_shape):
        self.asked = []
        self.add_weight("scale", input_shape, "ones")
        return input_shape

    def forward(self, ctx, params, x):
        def backward(dy, into, want_dx=True):
            self.asked.append((sorted(into), want_dx))
            return (dy * params["scale"] if want_dx else None), {"scale": ctx.xp.sum(dy * x, axis=-2)}

        return x * params["scale"], backward


class Doubled(Dense):
    """A Dense layer that computes further after its activation."""

    def forward(self, ctx, params, x):
        y, back = super().forward(ctx, params, x)
        return 2.0 * y, lambda dy, into, want_dx=True: back(2.0 * dy, {}, want_dx)


class Same(Dense):
    """Its `forward` declares that it still ends in the activation."""

    ends_in_activation = True

    def forward(self, ctx, params, x):
        return super().forward(ctx, params, x)


class Halves(Layer):
    """A user-defined layer without weights."""

    def forward(self, ctx, params, x):
        return 0.5 * x, lambda dy, into, want_dx=True: (0.5 * dy, {})


class Own(Halves):
    """A user-defined layer that computes further after its activation."""

    def __init__(self, activation):
        super().__init__()
        self.activation = xn.activations.get(activation)

    def forward(self, ctx, params, x):
        y = self.activation.forward(ctx.xp, x)

        def backward(dy, into, want_dx=True):
            return self.activation.backward(ctx.xp, 0.5 * dy, x, y), {}

        return 0.5 * y, backward


class Named(xn.activations.Softmax):
    """Another function of the same name."""

    name = "softmax"

    def forward(self, xp, z):
        return 0.5 * super().forward(xp, z)


def run(network, backend, x, training=True, **kwargs):
    weights = backend.array(network.layout.initial(Stream(1)), backend.dtype_name)
    stats = backend.array(network.stats_layout.initial(Stream(1)), backend.dtype_name)
    ctx = Context(backend, training, kwargs.pop("draws", None))
    return network.forward(ctx, weights, stats, backend.array(x, backend.dtype_name), **kwargs)


def test_names():
    layers = [Dense(2), BatchNormalization(), Dense(2, name="dense_1"), Dense(2), Dense(2), xn.layers.PReLU()]
    name_layers(layers)
    names = [layer.name for layer in layers]
    assert names == ["dense", "batch_normalization", "dense_1", "dense_2", "dense_3", "prelu"]
    name_layers([*layers, Dense(3)])
    assert [layer.name for layer in layers] == names
    with pytest.raises(InvalidValueError, match=r"'a' twice$"):
        name_layers([Dense(1, name="a"), Dense(1, name="a")])


def test_layout_and_paths():
    frozen = Dense(2)
    frozen.trainable = False
    shared = Dense(3, name="both")
    network = Network([shared, shared, BatchNormalization(), frozen], (3,))
    assert network.paths() == [
        "both/kernel", "both/bias",
        *(f"batch_normalization/{n}" for n in ("gamma", "beta", "moving_mean", "moving_variance")),
        "dense/kernel", "dense/bias",
    ]  # fmt: skip
    assert (network.layout.size, network.stats_layout.size) == (9 + 3 + 6, 6 + 8)
    assert [u.key for u in network.units] == ["both", "both", "batch_normalization", "dense"]
    assert (network.input_shape, network.output_shape) == ((3,), (2,))
    check_input(network, (3,))
    with pytest.raises(ShapeError, match=r"\('batch', 3\) for this model; got \('batch', 4\)$"):
        check_input(network, [4])


def test_freezing_changes_where_weights_lie_and_not_their_order():
    layers = [Dense(2, name="a"), BatchNormalization(name="b"), Dense(1, name="c")]
    free = Network(layers, (3,))
    layers[0].trainable = layers[1].trainable = False
    frozen = Network(layers, (3,))
    assert frozen.paths() == free.paths()
    assert (list(frozen.layout.slices), free.frozen, frozen.frozen) == (["c/kernel", "c/bias"], set(), {"a", "b"})
    assert frozen.first_trainable == 2
    assert not frozen.is_laid_out_as(free)
    assert Network(layers, (3,), free.frozen).is_laid_out_as(free)  # as it was, whatever the layers say now
    values = [
        {path: flat[where].tolist() for layout in network.layouts for flat in [layout.initial(Stream(1))]
         for path, where in layout.slices.items()}
        for network in (free, frozen)
    ]  # fmt: skip
    assert values[0] == values[1]


def test_initial_weights_depend_on_seed_and_place_only():
    def values(layers, seed=1):
        network = Network(layers, (3,))
        flat = network.layout.initial(Stream(seed))
        return {key: flat[where] for key, where in network.layout.slices.items()}

    one, named = values([Dense(3), Dense(3)]), values([Dense(3, name="x"), Dense(3, name="y")])
    np.testing.assert_array_equal(one["dense/kernel"], named["x/kernel"])
    np.testing.assert_array_equal(one["dense_1/kernel"], named["y/kernel"])
    assert not np.array_equal(one["dense/kernel"], one["dense_1/kernel"])
    assert not np.array_equal(one["dense/kernel"], values([Dense(3), Dense(3)], 2)["dense/kernel"])
    wider = values([Dense(3), Dense(3), Dense(7)])
    np.testing.assert_array_equal(one["dense_1/kernel"], wider["dense_1/kernel"])


def test_masks_depend_on_seed_place_and_step_only():
    network = Network([Dropout(0.5), Dense(4), Dropout(0.5), Dropout(0.0)], (4,))
    masks = network.masks(Stream(1), 5, 64)
    assert sorted(masks) == ["0/keep", "2/keep"]
    assert {m.shape for m in masks.values()} == {(64, 4)}
    assert not np.array_equal(masks["0/keep"], masks["2/keep"])
    network.masks(Stream(1), 6, 64)
    again, smaller = network.masks(Stream(1), 5, 64), network.masks(Stream(1), 5, 7)
    for key, mask in masks.items():
        np.testing.assert_array_equal(again[key], mask)
        np.testing.assert_array_equal(smaller[key], mask[:7])  # a prefix
        assert not np.array_equal(network.masks(Stream(1), 6, 64)[key], mask)
        assert not np.array_equal(network.masks(Stream(2), 5, 64)[key], mask)


def test_a_dropout_layer_used_twice_has_two_masks():
    layer = Dropout(0.5)
    masks = Network([layer, Dense(4), layer], (4,)).masks(Stream(1), 0, 64)
    assert sorted(masks) == ["0/keep", "2/keep"]
    assert not np.array_equal(masks["0/keep"], masks["2/keep"])


@pytest.mark.parametrize(
    ("rate", "new", "values"), [(0.5, 0.2, {0.0, 2.0}), (0.0, 0.5, {1.0}), (0.5, 0.0, {0.0, 2.0})]
)
def test_masks_and_their_scale_have_one_rate(rate, new, values, backend64):
    """Setting a rate has no effect on either until the layers are laid out again: before a model's next step."""
    layer = Dropout(rate)
    network = Network([layer], (4,))
    layer.rate = new
    masks = {key: backend64.array(mask) for key, mask in network.masks(Stream(1), 0, 64).items()}
    y, _ = run(network, backend64, np.ones((64, 4)), draws=masks)
    assert set(backend64.host(y).reshape(-1).tolist()) == values
    assert Network([layer], (4,)).masks(Stream(1), 0, 64).keys() == ({"0/keep"} if new else set())


class Twice(Activation):
    """Overrides the method that applies the activation."""

    def call(self, ctx, x):
        y, back = super().call(ctx, x)
        return 2.0 * y, lambda dy: back(2.0 * dy)


@pytest.mark.parametrize(
    ("layers", "activation", "positions"),
    [
        ([Dense(3, activation="softmax")], "softmax", [0]),
        ([Dense(3), Softmax()], "softmax", [0]),
        ([Dense(3), Activation("sigmoid")], "sigmoid", [0]),
        ([Dense(3, activation="softmax")], "sigmoid", None),
        ([Dense(3, activation="softmax"), ReLU()], "softmax", None),
        ([Dense(3, activation="softmax"), Dense(3)], "softmax", None),
        ([Dense(3, activation="softmax"), Dropout(0.5)], "softmax", None),
        ([Dense(3), Twice("softmax")], "softmax", None),
        ([Dense(3, activation="softmax"), Softmax()], "softmax", [0]),
        ([Same(3, activation="softmax")], "softmax", [0]),
        ([Dense(3, activation="softmax"), Flatten()], "softmax", None),
        ([Dense(3, activation="softmax"), Dropout(0.0)], "softmax", None),
        ([Dense(3, activation="sigmoid"), Input((3,))], "sigmoid", None),
        ([Dense(3, activation="sigmoid"), Halves()], "sigmoid", None),
        ([Dense(3), Own("softmax")], "softmax", None),
        ([Doubled(3, activation="softmax")], "softmax", None),
        ([Dense(3, activation=Named())], "softmax", None),
    ],
)
def test_the_final_activation_can_be_taken_off(layers, activation, positions, backend64):
    network = Network(layers, (3,))
    units = network.score_units(activation)
    if positions is None:
        assert units is None
        return
    assert len(units) in (len(positions), len(layers))
    x = np.random.default_rng(0).standard_normal((4, 3))
    y, z = run(network, backend64, x)[0], run(network, backend64, x, units=units)[0]
    assert_close(xn.activations.get(activation)(z), y)
    assert not np.allclose(backend64.host(z), backend64.host(y))
    assert layers[0].activation.name == ("softmax" if layers[0].activation.name == "softmax" else "linear")


def test_what_layers_are_asked_for(backend64):
    first, twice = Probe(), Probe()
    network = Network([Input((3,)), ReLU(), first, twice, twice], (3,))
    x = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    y, backward = run(network, backend64, x)
    assert_close(y, backend64.array(x))
    g = backend64.host(backward(backend64.array(np.ones((2, 3)))))
    # all scales are 1: each use has the gradient sum(x), and a layer used twice has twice that
    np.testing.assert_allclose(g, [5, 7, 9, 10, 14, 18])
    assert [want for _, want in first.asked] == [False]  # no layer before it learns
    assert [want for _, want in twice.asked] == [True, True]


def test_memory_is_offered_once_per_layer(monkeypatch):
    """If gradients are written in place, a layer's second use gets no memory."""
    monkeypatch.setenv("XPNET_KERNELS", "1")
    shared = Probe()
    model = xn.Sequential([shared, shared, Dense(1)], seed=0, backend="numpy")
    model.compile("sgd", "mse")
    model.train_on_batch(np.ones((2, 3)), np.ones((2, 1)))
    assert shared.asked == [(["scale"], True), ([], False)]


def test_missing_gradients_are_found(backend64):
    class Forgets(Probe):
        def forward(self, ctx, params, x):
            return x * params["scale"], lambda dy, into, want_dx=True: (dy, {})

    network = Network([Forgets(name="f")], (3,))
    _, backward = run(network, backend64, np.ones((2, 3)))
    with pytest.raises(InvalidValueError, match=r"got none for \['f/scale'\]$"):
        backward(backend64.array(np.ones((2, 3))))


def test_watchers_see_outputs_and_gradients(backend64):
    seen = []
    network = Network([Dense(2, name="a"), Dense(1, name="b")], (3,))
    _, backward = run(network, backend64, np.ones((2, 3)), watch=lambda *what: seen.append(what[:2]))
    backward(backend64.array(np.ones((2, 1))))
    assert seen == [("output", "a"), ("output", "b"), *[("gradient", "b")] * 2, *[("gradient", "a")] * 2]


def test_statistics_go_out_by_way_of_the_context(backend64):
    layer = BatchNormalization(momentum=0.75, name="n")
    network = Network([layer], (2,))
    stats = backend64.array(network.stats_layout.initial(Stream(1)))
    weights = backend64.array(network.layout.initial(Stream(1)))
    x = np.array([[1.0, 2.0], [3.0, 6.0]])
    for training, expected in ((True, [0.5, 1.0, 1.0, 1.75]), (False, [0, 0, 1, 1])):
        ctx = Context(backend64, training)
        network.forward(ctx, weights, stats, backend64.array(x))
        np.testing.assert_allclose(backend64.host(network.new_stats(ctx, stats)), expected)
    np.testing.assert_array_equal(backend64.host(stats), [0, 0, 1, 1])  # the old statistics are not written to


def test_each_use_of_a_layer_updates_its_statistics_in_turn(backend64):
    layer = BatchNormalization(momentum=0.75, epsilon=0.0, name="n")
    network = Network([layer, Dense(2, name="d"), layer], (2,))
    x, kernel, bias = np.array([[1.0, 2.0], [3.0, 6.0]]), np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([5.0, 7.0])
    values = {"n/gamma": np.ones(2), "n/beta": np.zeros(2), "d/kernel": kernel, "d/bias": bias}
    weights = backend64.array(network.layout.from_host(values))
    stats = backend64.array(network.stats_layout.initial(Stream(1)))
    ctx = Context(backend64, True)
    network.forward(ctx, weights, stats, backend64.array(x))
    mean, variance = np.zeros(2), np.ones(2)
    second = (x - x.mean(axis=0)) / x.std(axis=0) @ kernel + bias
    for part in (x, second):
        mean, variance = 0.75 * mean + 0.25 * part.mean(axis=0), 0.75 * variance + 0.25 * part.var(axis=0)
    assert_close(network.new_stats(ctx, stats), backend64.array([*mean, *variance]))


def test_a_lead_axis_of_models(backend64):
    """Weights (2, size) and inputs (2, batch, features): two models at once."""
    network = Network([Dense(4, activation="tanh"), Dense(2)], (3,))
    host = backend64.host
    flats = [network.layout.initial(Stream(seed)) for seed in (1, 2)]
    x = np.random.default_rng(0).standard_normal((2, 5, 3))
    dy = np.random.default_rng(1).standard_normal((2, 5, 2))
    stats = backend64.zeros((0,))
    expected = []
    for flat, rows, slopes in zip(flats, x, dy):
        y, backward = network.forward(Context(backend64), backend64.array(flat), stats, backend64.array(rows))
        expected.append((host(y), host(backward(backend64.array(slopes)))))
    y, backward = network.forward(
        Context(backend64), backend64.array(np.stack(flats)), backend64.zeros((2, 0)), backend64.array(x)
    )
    np.testing.assert_allclose(host(y), [e[0] for e in expected], rtol=1e-12)
    np.testing.assert_allclose(host(backward(backend64.array(dy))), [e[1] for e in expected], rtol=1e-12)


def test_views_are_those_of_the_backend_under_test():
    network = Network([Dense(2, name="a")], (3,))
    backend = get_backend(dtype="float64")
    flat = backend.array(np.arange(8.0))
    params = network.params(Context(backend), flat, backend.zeros((0,)))
    assert_close(params["a"]["kernel"], np.arange(6.0).reshape(3, 2), check_library=False)
    assert_close(params["a"]["bias"], np.array([6.0, 7.0]), check_library=False)
