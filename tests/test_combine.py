"""Layers that consist of layers, and models within models: paths, masks, statistics, freezing, files."""

import copy
import pickle

import numpy as np
import pytest

import xpnet as xn
from xpnet import kernels, layers
from xpnet.errors import InvalidTypeError, InvalidValueError, NotBuiltError, ShapeError, UnknownNameError
from xpnet.layers import (
    Activation,
    BatchNormalization,
    Chain,
    Dense,
    Dropout,
    Embedding,
    Input,
    Layer,
    Parallel,
    Rescaling,
    Residual,
)
from xpnet.testing import assert_close, check_gradients

RNG = np.random.default_rng(0)
X = RNG.standard_normal((24, 3))
Y = RNG.standard_normal((24, 2))


def block(name=None, trainable=True):
    """A residual block with everything that a layer can declare."""
    inner = [
        Dense(4, "tanh", kernel_regularizer="l2", name="up"),
        BatchNormalization(momentum=0.5, name="norm"),
        Dropout(0.3, name="drop"),
        Dense(3, name="down"),
    ]
    return Residual(inner, name=name, trainable=trainable)


def flat_block():
    """The layers of `block`, not combined."""
    return block().inner.layers


def network(*parts, seed=3, **compiled):
    model = xn.Sequential([Input((3,)), *parts, Dense(2, name="out")], seed=seed, dtype="float64")
    model.compile(**{"optimizer": "adam", "loss": "mse", **compiled})
    return model


def weights_of(model):
    return {path: value.copy() for path, value in model.session.values().items()}


# Paths ----------------------------------------------------------------------------------------------------


def test_weights_have_paths_and_masks_places():
    model = network(block("one"), Parallel([Dense(2), Dense(2), Activation("relu")], name="two"))
    assert model.network.paths() == [
        "one/chain/up/kernel", "one/chain/up/bias", "one/chain/norm/gamma", "one/chain/norm/beta",
        "one/chain/norm/moving_mean", "one/chain/norm/moving_variance", "one/chain/down/kernel",
        "one/chain/down/bias", "two/dense/kernel", "two/dense/bias", "two/dense_1/kernel", "two/dense_1/bias",
        "out/kernel", "out/bias",
    ]  # fmt: skip
    assert [key for key, _, _ in model.network.draws] == ["1/0/2/keep"]
    assert model.network.units[1].key == "one"
    assert [(a, b) for a, b, l1, l2 in model.network.layout.segments] == [(0, 12)]  # the penalty on "up"
    assert model.layers[1].count_params() == 16 + 16 + 15


def test_a_chain_trains_as_its_layers_do():
    """The same weights, penalties, statistics and order of operations; masks differ by their place, so none."""
    one, many = flat_block(), flat_block()
    for part in (one, many):
        part[2].rate = 0.0
    nested, flat = network(Chain([Chain(one[:2]), one[2], one[3]])), network(*many)
    assert nested.network.layout.size == flat.network.layout.size
    nested.set_weights(flat.get_weights())
    for model in (nested, flat):
        model.fit(X, Y, batch_size=8, epochs=4, verbose=0)
    for a, b in zip(nested.get_weights(), flat.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert_close(nested.predict(X), flat.predict(X))


def test_dropout_within_has_masks_of_its_own():
    layer = Chain([Dropout(0.5), Dropout(0.5)])
    model = xn.Sequential([Input((3,)), layer], seed=1)
    a, b = model.network.masks(model.session.stream, 0, 50).values()
    assert (a != b).any()
    assert len(model.network.draws) == 2
    y = layer(np.ones((400, 3)), training=True)
    assert abs((np.asarray(y) != 0).mean() - 0.25) < 0.1  # kept by both


def test_statistics_within_are_updated():
    model = network(block("one"))
    before = weights_of(model)
    model.fit(X, Y, epochs=1, verbose=0)
    after = weights_of(model)
    for name in ("moving_mean", "moving_variance"):
        assert (before[f"one/chain/norm/{name}"] != after[f"one/chain/norm/{name}"]).any()


def test_a_layer_used_again_adds_its_gradients_and_keeps_its_config():
    again = Dense(3, "tanh")
    chain = Chain([again, again, Parallel([layer := Dense(2), layer], "multiply")])
    check_gradients(chain, (5, 3))
    config = chain.get_config()
    assert config["layers"][1] == 0
    assert config["layers"][2]["config"]["branches"][1] == 0
    other = layers.get({"class_name": "Chain", "config": config})
    other.ensure_built((3,))
    assert other.layers[0] is other.layers[1]
    other.set_weights(chain.get_weights())
    assert_close(other(X), chain(X))


def test_gradients_of_a_layer_used_again_do_not_share_memory():
    """Twins write gradients where they are told to: the second use must not overwrite the first one's."""
    results = []
    for choice in ("bodies", "numpy"):
        again, both = Dense(3, "tanh"), Dense(3)
        with kernels.using(choice):
            model = network(Chain([again, again]), Parallel([both, both]), optimizer="sgd")
            model.fit(X, Y, batch_size=8, epochs=2, verbose=0)
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_there_is_no_second_copy_of_the_weights():
    part = block()
    part(X)
    model = network(part)
    found = [part, part.inner, *part.inner.layers]
    assert [value for layer in found for value in (layer._alone, layer._left)] == [None] * 12
    assert model.built


def test_a_layer_has_one_path():
    shared = Dense(3, name="both")
    with pytest.raises(InvalidValueError, match=r"twice by the same sequence.*'both' and 'residual/both'$"):
        xn.Sequential([Input((3,)), shared, Residual(shared)])
    with pytest.raises(InvalidValueError, match="different names; got 'a' twice"):
        xn.Sequential([Input((3,)), Chain([Dense(2, name="a"), Dense(2, name="a")])])


# Freezing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["all", "inner", "norm"])
def test_frozen_layers_within(which):
    part = block("one")
    frozen = {"all": part, "inner": part.inner.layers[0], "norm": part.inner.layers[1]}[which]
    model = network(part)
    frozen.trainable = False
    model.compile("adam", "mse")
    before = weights_of(model)
    lines = []
    model.summary(print_fn=lines.append)
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0)
    after = weights_of(model)
    same = {path for path, value in before.items() if (after[path] == value).all()}
    expected = {"all": {p for p in before if p.startswith("one")}, "inner": {"one/chain/up/kernel",
                "one/chain/up/bias"}, "norm": {p for p in before if "norm" in p}}[which]  # fmt: skip
    assert same == expected
    trainable = sum(v.size for p, v in before.items() if p not in expected and "moving" not in p)
    assert f"({trainable:,} trainable" in lines[0]
    assert model.network.layout.size == trainable


def test_what_was_frozen_within_is_so_in_a_file(tmp_path):
    part = block("one")
    model = network(part)
    part.inner.layers[3].trainable = False
    model.compile("adam", "mse")
    model.fit(X, Y, epochs=1, verbose=0)
    part.inner.layers[3].trainable = True  # counts from the next `compile` on
    model.save(tmp_path / "a")
    again = xn.load_model(tmp_path / "a")
    assert again.network.frozen == {"one/chain/down"} == set(model.network.frozen)
    assert list(again.network.layout.slices) == list(model.network.layout.slices)
    assert again.layers[1].inner.layers[3].trainable is True
    for each in (model, again):
        each.fit(X, Y, epochs=2, verbose=0)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# Copies and files -----------------------------------------------------------------------------------------


class Scaled(layers.Container):
    """A container of one's own, with a weight of its own beside its sublayer's."""

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layers.get(layer)

    @property
    def sublayers(self):
        return [self.layer]

    def build(self, input_shape):
        shape = self.build_sublayer(0, input_shape)
        self.add_weight("scale", shape, "ones")
        return shape

    def forward(self, ctx, params, x):
        y, back = self.run(ctx, params, 0, x)
        scale = params["scale"]

        def backward(dy, into, want_dx=True):
            dx, grads = back(dy * scale, into, want_dx)
            return dx, {**grads, "scale": ctx.xp.sum(dy * y, axis=-2)}

        return y * scale, backward


@pytest.mark.parametrize("way", ["file", "deepcopy", "pickle"])
def test_copies_and_files(tmp_path, way):
    model = network(Scaled(block("one")), Parallel([[Dense(2), BatchNormalization()], Dense(3, "relu")]))
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0)
    if way == "file":
        model.save(tmp_path / "a")
        again = xn.load_model(tmp_path / "a", custom_objects={"Scaled": Scaled})
    else:
        again = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert repr(again.layers) == repr(model.layers)
    assert_close(again.predict(X), model.predict(X))
    for each in (model, again):
        each.fit(X, Y, batch_size=8, epochs=3, verbose=0)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_container_of_ones_own_alone():
    layer = Scaled(Dense(2, "tanh"))
    check_gradients(layer, (4, 3))
    assert [s.name for s in layer.specs] == ["dense/kernel", "dense/bias", "scale"]
    kernel, bias, scale = layer.get_weights()
    np.testing.assert_array_equal(layer.layer.get_weights()[0], kernel)  # the sublayer has the same
    layer.layer.set_weights([kernel + 1, bias])
    np.testing.assert_array_equal(layer.get_weights()[0], kernel + 1)
    layer.set_weights([kernel, bias, scale * 2])
    np.testing.assert_array_equal(layer.layer.get_weights()[0], kernel)
    assert_close(layer(X), np.tanh(X @ kernel + bias) * 2)
    clone = pickle.loads(pickle.dumps(layer))
    assert_close(clone(X), layer(X))


def test_sublayers_read_and_write_the_weights_of_the_model():
    model = network(block("one"))
    up = model.layers[1].inner.layers[0]
    model.fit(X, Y, epochs=1, verbose=0)
    np.testing.assert_array_equal(up.get_weights()[0], weights_of(model)["one/chain/up/kernel"])
    up.set_weights([np.ones((3, 4)), np.zeros(4)])
    assert (weights_of(model)["one/chain/up/kernel"] == 1).all()
    kept, part = model.get_weights(), model.layers[1]
    del model
    for a, b in zip(part.get_weights(), kept):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(up.get_weights()[0], np.ones((3, 4)))


def test_variables_and_descriptions():
    part = block("one")
    model = network(part, Parallel([Dense(2), Dense(3)]))
    part.inner.layers[0].trainable = False
    assert [v.path for v in model.weights] == model.network.paths()
    assert [v.path for v in model.non_trainable_weights] == [
        f"one/chain/{n}" for n in ("up/kernel", "up/bias", "norm/moving_mean", "norm/moving_variance")
    ]
    assert [v.path for v in part.inner.trainable_weights] == [
        f"chain/{n}" for n in ("norm/gamma", "norm/beta", "down/kernel", "down/bias")
    ]
    part.trainable = False
    assert part.trainable_weights == []
    again = xn.model_from_json(model.to_json())
    assert repr(again.layers) == repr(model.layers)
    assert [v.path for v in again.trainable_weights] == [v.path for v in model.trainable_weights]
    assert set(model.gradients(X, Y)) == set(model.network.layout.slices)


def test_mistakes_within_are_named():
    class Only(layers.Stateless):
        def forward(self, ctx, params, x):
            return x

    class Wide(layers.Layer):
        def build(self, input_shape):
            self.add_weight("scale", input_shape)
            return input_shape

        def forward(self, ctx, params, x):
            return x, lambda dy, into, want_dx=True: (dy, {"scale": dy})

    with pytest.raises(InvalidTypeError, match=r"Only\.forward must return the output and its backward function"):
        network(Residual(Only())).predict(X)
    with pytest.raises(ShapeError, match="gradient of 'wide/scale' must have shape"):
        network(Residual(Wide())).fit(X, Y, verbose=0)


def test_settings_within_count_from_the_next_step_on():
    part = Residual(Dropout(0.0))
    model = network(part)
    model.fit(X, Y, epochs=1, verbose=0)
    part.inner.rate = 0.9
    assert len(model.network.draws) == 0
    model.fit(X, Y, epochs=1, verbose=0)
    assert [d.rate for _, _, d in model.network.draws] == [0.9]


def test_layers_of_ones_own_within_are_not_recorded():
    class Mine(layers.Stateless):
        def call(self, ctx, x):
            return 2 * x, lambda dy: 2 * dy

    model = network(Residual(Mine()))
    assert any(type(part).__name__ == "Mine" for part in model.network.parts())
    assert model.session.program().recorder is None
    assert Dense in map(type, network(Residual(Dense(3))).network.parts())


def test_a_layer_that_fails_within_is_named():
    class Fails(layers.Stateless):
        def call(self, ctx, x):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        network(Residual(Fails(name="bad"), name="outer")).predict(X)
    notes = [note for note in caught.value.__notes__ if "layer" in note]  # JAX adds its own
    assert notes == ["in its sublayer 'bad'", "in layer 'outer'"]


def test_what_cannot_be_built_stays_as_it_was():
    inner = Dense(2, name="d")
    with pytest.raises(ShapeError, match=r"shape of its inputs, \('batch', 3\); got \('batch', 2\)$"):
        Residual(inner)(X)
    assert not inner.built
    model = xn.Sequential([Residual(inner)])
    with pytest.raises(ShapeError):
        model.build((3,))
    assert not inner.built
    model.build((2,))
    assert model.predict(X[:, :2]).shape == (24, 2)


# Losses and data ------------------------------------------------------------------------------------------


def test_the_loss_starts_from_the_scores_of_a_chain():
    chain = Chain([Dense(4, "relu"), Dense(2, "softmax", name="out")])
    model = xn.Sequential([Input((3,)), chain], seed=0, dtype="float64")
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert model.network.score_units("softmax") is not None
    layer = chain.layers[1]
    layer.set_weights([np.full((4, 2), 1e4) * [1, -1], np.zeros(2)])  # probabilities of 0 and 1
    model.fit(X, np.ones(24), verbose=0)
    assert chain.layers[1] is layer
    assert layer.activation.name == "softmax"
    with pytest.raises(InvalidValueError, match="from_logits=False"):
        model.compile("sgd", xn.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert Chain([Dense(2)]).without_activation("softmax") is None


@pytest.mark.parametrize("wrong", [5.0, -1.0, 0.5])
def test_data_that_are_no_classes_are_refused(wrong):
    data = np.ones((6, 2))
    data[4, 1] = wrong
    parts = ([Embedding(5, 2)], [Input((2,)), Chain([Parallel([Embedding(7, 2), Embedding(5, 3)])])])
    for inner in parts:
        model = xn.Sequential([*inner, layers.Flatten(), Dense(1)])
        model.compile("sgd", "mse")
        with pytest.raises(InvalidValueError, match=rf"integers from 0 to 4; got {wrong}$"):
            model.fit(data, np.ones(6), verbose=0)
        model.fit(np.ones((6, 2)), np.ones(6), verbose=0)
        with pytest.raises(InvalidValueError, match="class numbers"):
            model.predict(data)
    with pytest.raises(InvalidValueError, match="class numbers"):
        Embedding(5, 2)(data)


def test_numbers_from_within_that_are_no_classes_stop_the_training():
    model = xn.Sequential([Input((2,)), Rescaling(3.0), Embedding(5, 2), layers.Flatten(), Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(xn.errors.NonFiniteError, match="the output of layer 'embedding' is not finite"):
        model.fit(np.full((6, 2), 2.0), np.ones(6), verbose=0)


# Models within models -------------------------------------------------------------------------------------


def autoencoder(built=True):
    front = [Input((3,))] if built else []
    encoder = xn.Sequential([*front, Dense(2, "tanh", name="code")], seed=1, name="encoder")
    decoder = xn.Sequential([Dense(3)], seed=2)
    both = xn.Sequential([encoder, decoder], seed=3)
    both.compile("adam", "mse")
    return encoder, decoder, both


@pytest.mark.parametrize("built", [True, False])
def test_the_inner_model_predicts_with_what_the_outer_one_learned(built):
    encoder, decoder, both = autoencoder(built)
    first = encoder.get_weights() if built else None
    if built:
        encoder.predict(X)  # before the outer model is built
    both.build((3,))
    if built:
        np.testing.assert_array_equal(both.get_weights()[0], first[0])  # it has taken them over
    for _ in range(2):
        both.fit(X, X, epochs=2, verbose=0)
        assert_close(decoder.predict(encoder.predict(X)), both.predict(X))
        np.testing.assert_array_equal(encoder.get_weights()[0], both.get_weights()[0])
    assert both.network.paths() == ["encoder/code/kernel", "encoder/code/bias", "chain/dense/kernel",
                                    "chain/dense/bias"]  # fmt: skip
    assert [type(layer) for layer in both.layers] == [Chain, Chain]


def test_the_inner_model_passes_its_weights_on_and_is_not_trained():
    encoder, _, both = autoencoder()
    both.build((3,))
    encoder.set_weights([np.ones((3, 2)), np.zeros(2)])
    np.testing.assert_array_equal(both.get_weights()[0], np.ones((3, 2)))
    encoder.compile("sgd", "mse")
    with pytest.raises(InvalidValueError, match=r"must be trained instead; got \['input', 'code'\]$"):
        encoder.fit(X, X[:, :2], verbose=0)
    with pytest.raises(InvalidValueError, match="belongs to another model"):
        xn.Sequential([encoder, Dense(1)]).build((3,))


def test_the_inner_model_takes_its_weights_back(tmp_path):
    encoder, _, both = autoencoder()
    both.fit(X, X, epochs=2, verbose=0)
    code = encoder.predict(X)
    encoder.save(tmp_path / "encoder")
    assert_close(xn.load_model(tmp_path / "encoder").predict(X), code)
    del both
    assert_close(encoder.predict(X), code)
    encoder.compile("sgd", "mse")
    encoder.fit(X, X[:, :2], verbose=0)
    assert (encoder.predict(X) != code).any()
    np.testing.assert_array_equal(encoder.layers[1].get_weights()[0], encoder.get_weights()[0])


def test_models_within_models_in_files_and_copies(tmp_path):
    _, _, both = autoencoder()
    both.fit(X, X, epochs=2, verbose=0)
    both.save(tmp_path / "a")
    for again in (xn.load_model(tmp_path / "a"), copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
        assert_close(again.predict(X), both.predict(X))


def test_models_deep_within():
    inner = xn.Sequential([Dense(3, "tanh")])
    middle = xn.Sequential([inner, Dense(3)], name="middle")
    model = xn.Sequential([Input((3,)), Residual(middle), Parallel([middle_two := xn.Sequential([Dense(1)])])])
    model.compile("sgd", "mse")
    model.fit(X, Y[:, :1], verbose=0)
    assert model.network.paths()[0] == "residual/middle/chain/dense/kernel"
    np.testing.assert_array_equal(inner.get_weights()[0], model.get_weights()[0])
    assert middle_two.predict(X).shape == (24, 1)
    h = X.astype(np.float32)
    assert_close(middle_two.predict(h + middle.predict(h)), model.predict(h), rtol=1e-5)


def test_a_model_on_both_sides_shares_its_weights():
    tower = xn.Sequential([Dense(2, "tanh")], name="tower", seed=1)
    model = xn.Sequential([Input((3,)), Parallel([tower, tower], "multiply"), Dense(1)])
    model.compile("sgd", "mse")
    model.fit(X, Y[:, :1], verbose=0)
    assert model.network.paths()[:2] == ["parallel/tower/dense/kernel", "parallel/tower/dense/bias"]
    h = np.asarray(tower.predict(X.astype(np.float32)))
    kernel, bias = model.get_weights()[2:]
    assert_close(model.predict(X.astype(np.float32)), h * h @ kernel + bias, rtol=1e-5)
    tower = xn.Sequential([Dense(2)])
    before = tower.as_layer()
    tower.add(Dense(4))
    assert (len(before.layers), len(tower.as_layer().layers)) == (1, 2)


def test_a_model_with_an_input_in_front_builds_the_outer_one_at_once():
    encoder, _, both = autoencoder()
    assert both.built
    assert both.output_shape == (3,)
    both.add(Dense(5))
    assert both.output_shape == (5,)
    np.testing.assert_array_equal(both.get_weights()[0], encoder.get_weights()[0])
    assert not autoencoder(built=False)[2].built


def test_add_takes_a_model():
    model = xn.Sequential([Input((3,)), Dense(4)])
    model.add(xn.Sequential([Dense(2)], name="head"))
    assert model.network.paths()[-1] == "head/dense/bias"
    assert isinstance(model.pop(), Chain)


# Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "ends"),
    [
        (lambda: Chain([]), InvalidTypeError, "a list of at least one layer; got []"),
        (lambda: Chain(Dropout(0.5)), InvalidTypeError, "got Dropout(rate=0.5)"),
        (lambda: Chain([3]), InvalidTypeError, "got 3"),
        (lambda: Residual("dens"), UnknownNameError, "got 'dens'"),
        (lambda: Parallel([Dense(1)], "sum"), UnknownNameError, "got 'sum'"),
        (lambda: Parallel([Dense(1), Dense(2)], "add")(X), ShapeError, "to be merged; got [(1,), (2,)]"),
        (
            lambda: Parallel([Dense(1), layers.RepeatVector(2)])(X),
            ShapeError,
            "but for the last axis; got [(1,), (2, 3)]",
        ),
        (lambda: Residual(Dense(3)).get_weights(), NotBuiltError, "has no weights before it is built"),
        (lambda: layers.Container()(X), TypeError, "Container must define forward(ctx, params, x)"),
        (
            lambda: setattr(built(Residual(Dense(3))), "inner", Dropout(0.5)),
            InvalidValueError,
            "got Dropout(rate=0.5)",
        ),
    ],
)
def test_errors(call, error, ends):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).endswith(ends)


def built(layer):
    layer.ensure_built((3,))
    return layer


def test_lists_and_names_become_layers():
    part = Residual([Dense(4), "flatten", [Dense(3)]])
    assert [type(layer).__name__ for layer in part.inner.layers] == ["Dense", "Flatten", "Chain"]
    assert isinstance(part.inner.layers[2], Layer)
    assert repr(Residual(Dense(3, "relu"))) == "Residual(inner=Dense(units=3, activation=ReLU()))"


def test_values_of_the_merges(backend64):
    x = np.array([[1.0, -2.0]])
    branches = [Rescaling(2.0), Rescaling(-3.0), Rescaling(1.0, 1.0)]  # (2, -4), (-3, 6), (2, -1)
    expected = {"concat": [[2, -4, -3, 6, 2, -1]], "add": [[1, 1]], "multiply": [[-12, 24]],
                "average": [[1 / 3, 1 / 3]], "maximum": [[2, 6]]}  # fmt: skip
    for merge, y in expected.items():
        assert_close(Parallel(branches, merge)(backend64.array(x)), backend64.array(np.array(y, float)))
