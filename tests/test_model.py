"""Sequential from a user's view: compile, fit, evaluate, predict, weights, to, summary."""

import copy
import gc
import pickle
import signal
import weakref

import numpy as np
import pytest

import xpnet as xn
from xpnet.backend import available_backends, get_backend, library_of
from xpnet.layers import BatchNormalization, Dense, Dropout, Input
from xpnet.losses import MeanSquaredError, SparseCategoricalCrossentropy
from xpnet.optimizers import SGD, Adam
from xpnet.regularizers import L1, L1L2, L2
from xpnet.testing import assert_close
from xpnet.training.session import Session

RNG = np.random.default_rng(0)
X = RNG.standard_normal((22, 3))
Y = np.tanh(X @ np.array([[1.0], [-2.0], [0.5]])) + 0.1
LABELS = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)


def regressor(*layers, seed=3, **kwargs):
    model = xn.Sequential(layers or [Dense(4, activation="tanh"), Dense(1)], seed=seed, **kwargs)
    model.compile(SGD(0.05, momentum=0.9), "mse")
    return model


def host(model):
    return model.backend.host(model.flat_weights)


def same(a, b):
    """Equal bit for bit on NumPy, up to rounding elsewhere (other libraries may select other kernels)."""
    tolerance = 0.0 if get_backend().name == "numpy" else 1e-5
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def gradient_of_a_step(model, x, y, **kwargs):
    """Take one step of plain descent and return the gradient it must have used."""
    before = np.array(host(model))
    model.fit(x, y, batch_size=len(x), verbose=0, **kwargs)
    return (before - host(model)) / model.optimizer.learning_rate


# Training ---------------------------------------------------------------------------------------------------


def test_a_small_network_learns_exclusive_or():
    x, y = [[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0]
    model = xn.Sequential([Dense(8, activation="tanh"), Dense(1, activation="sigmoid")], seed=1)
    model.compile(Adam(0.1), "binary_crossentropy", ["accuracy"])
    history = model.fit(x, y, batch_size=4, epochs=60, verbose=0)
    assert history.history["loss"][-1] < 0.05 < history.history["loss"][0]
    assert history.history["accuracy"][-1] == 1.0
    assert (model.predict(x)[:, 0] > 0.5).tolist() == [False, True, True, False]


def test_a_full_batch_is_one_step_of_the_formula():
    model = xn.Sequential([Dense(1)], seed=0, dtype="float64")
    model.compile(SGD(0.1), "mse")
    model.build((3,))
    kernel, bias = model.get_weights()
    error = X @ kernel + bias - Y
    history = model.fit(X, Y, batch_size=len(X), verbose=0)
    new_kernel, new_bias = model.get_weights()
    np.testing.assert_allclose(new_kernel, kernel - 0.1 * 2 / len(X) * X.T @ error, rtol=1e-12)
    np.testing.assert_allclose(new_bias, bias - 0.1 * 2 * error.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(history.history["loss"], [np.mean(error**2)], rtol=1e-12)
    assert (model.step, model.epoch) == (1, 1)


def test_weights_after_mini_batches_follow_the_formula_row_by_row():
    model = xn.Sequential([Dense(1, use_bias=False, kernel_initializer="ones")], seed=0, dtype="float64")
    model.compile(SGD(0.1), "mse")
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)  # 8, 8 and 6 rows
    kernel = np.ones((3, 1))
    for start in (0, 8, 16):
        x, y = X[start : start + 8], Y[start : start + 8]
        kernel = kernel - 0.1 * 2 / len(x) * x.T @ (x @ kernel - y)
    np.testing.assert_allclose(model.get_weights()[0], kernel, rtol=1e-12)


@pytest.mark.parametrize("kind", ["sum", "sum_over_batch_size"])
def test_whole_weights_are_repeated_rows(kind):
    weights = np.arange(len(X)) % 3
    again = np.repeat(np.arange(len(X)), weights)
    results = []
    for x, y, w in ((X, Y, weights), (X[again], Y[again], None)):
        model = xn.Sequential([Dense(1)], seed=0, dtype="float64")
        model.compile(SGD(0.01), MeanSquaredError(reduction=kind))
        model.build((3,))
        scale = len(x) if kind != "sum" else 1.0
        results.append(scale * gradient_of_a_step(model, x, y, sample_weight=w))
    np.testing.assert_allclose(*results, rtol=1e-9)


def test_class_weights_are_the_weights_of_their_rows():
    factors = {0: 3, 2: 0.5}
    rows = np.array([factors.get(int(c), 1.0) for c in LABELS])
    results = []
    both = {"class_weight": {0: 3}, "sample_weight": np.where(LABELS == 2, 0.5, 1.0)}  # they multiply
    for kwargs in ({"class_weight": factors}, {"sample_weight": rows}, both):
        model = xn.Sequential([Dense(3, activation="softmax")], seed=0, dtype="float64")
        model.compile(SGD(0.1), "sparse_categorical_crossentropy")
        model.build((3,))
        results.append(gradient_of_a_step(model, X, LABELS, **kwargs))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-12)
    np.testing.assert_allclose(results[2], results[1], rtol=1e-12)


def test_class_weights_of_one_hot_and_of_single_outputs():
    binary = (LABELS > 0).astype(float)
    for loss, layer, y, classes in (
        ("categorical_crossentropy", Dense(3, activation="softmax"), np.eye(3)[LABELS], LABELS),
        ("binary_crossentropy", Dense(1, activation="sigmoid"), binary, binary),
    ):
        found = []
        for kwargs in ({"class_weight": {1: 4.0}}, {"sample_weight": np.where(classes == 1, 4.0, 1.0)}):
            config = layer.get_config()
            model = xn.Sequential([Dense.from_config(config)], seed=0, dtype="float64")
            model.compile(SGD(0.1), loss)
            found.append(model.train_on_batch(X, y, **kwargs))
        assert found[0] == pytest.approx(found[1], rel=1e-12)


@pytest.mark.parametrize(
    ("make", "loss", "y"),
    [
        (lambda: [Dense(3, activation="tanh"), Dense(1)], "mse", Y),
        (lambda: [Dense(4, "sigmoid"), BatchNormalization(), Dense(3, "softmax")],
         "sparse_categorical_crossentropy", LABELS),
        (lambda: [Dense(3, kernel_regularizer=L2(0.1), bias_regularizer=L1(0.2), bias_initializer="ones"),
                  Dense(1, kernel_regularizer=L1L2(0.1, 0.3))], "mse", Y),
        (lambda: (lambda d: [d, d, d, Dense(1)])(Dense(3, activation="tanh", kernel_regularizer=L2(0.1))),
         "mse", Y),
    ],
    ids=["plain", "batch norm, softmax", "penalties", "one layer three times"],
)  # fmt: skip
def test_the_step_goes_down_the_numeric_gradient_of_the_loss(make, loss, y):
    model = xn.Sequential(make(), seed=2, dtype="float64")
    model.compile(SGD(1.0), loss)
    model.build((3,))
    values, h = host(model).copy(), 1e-6
    direction = np.random.default_rng(1).standard_normal(values.shape)

    def training_loss(shift):
        """The loss of a training step, computed before the update."""
        other = xn.Sequential(make(), seed=2, dtype="float64")
        other.compile(SGD(0.0), loss)
        other.build((3,))
        other.session.state = other.state._replace(weights=other.backend.array(values + shift * direction))
        return other.train_on_batch(X, y)

    numeric = (training_loss(h) - training_loss(-h)) / (2 * h)
    assert gradient_of_a_step(model, X, y) @ direction == pytest.approx(numeric, rel=1e-5)


def test_penalties_are_part_of_the_loss():
    model = xn.Sequential(
        [Dense(1, kernel_regularizer=L1L2(0.5, 0.25), bias_regularizer=L2(2.0), bias_initializer="ones")],
        seed=0,
        dtype="float64",
    )
    model.compile(SGD(0.1), "mse", ["mse"])
    model.build((3,))
    kernel, bias = model.get_weights()
    penalty = 0.5 * np.abs(kernel).sum() + 0.25 * (kernel**2).sum() + 2.0 * (bias**2).sum()
    loss, mse = model.evaluate(X, Y, batch_size=5)
    assert loss - mse == pytest.approx(penalty)
    assert mse == pytest.approx(np.mean((X @ kernel + bias - Y) ** 2))


def test_running_statistics_flow_through_fit_and_are_used_by_predict():
    layer = BatchNormalization(momentum=0.5, epsilon=0.0)
    model = regressor(layer, Dense(1), dtype="float64")
    model.fit(X, Y, batch_size=11, shuffle=False, verbose=0)
    mean, variance = np.zeros(3), np.ones(3)
    for part in (X[:11], X[11:]):
        mean, variance = 0.5 * mean + 0.5 * part.mean(axis=0), 0.5 * variance + 0.5 * part.var(axis=0)
    gamma, beta, moving_mean, moving_variance = layer.get_weights()
    np.testing.assert_allclose(moving_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(moving_variance, variance, rtol=1e-12)
    kernel, bias = model.layers[1].get_weights()
    expected = ((X - mean) / np.sqrt(variance) * gamma + beta) @ kernel + bias
    np.testing.assert_allclose(model.predict(X), expected, rtol=1e-9)


def test_frozen_layers_stay_and_the_others_learn():
    frozen = Dense(4, activation="tanh")
    frozen.trainable = False
    model = regressor(Dense(3), frozen, Dense(1))
    model.build((3,))
    before = model.get_weights()
    model.fit(X, Y, epochs=2, verbose=0)
    after = model.get_weights()
    assert [bool((a == b).all()) for a, b in zip(before, after)] == [False, False, True, True, False, False]


# Freezing after build: effective from the next `compile` on ----------------------------------------------------


def deep():
    """A built model with one layer of each kind that has weights."""
    layers = [
        Dense(4, activation="tanh", name="a"),
        BatchNormalization(momentum=0.5, name="n"),
        Dense(1, name="z"),
    ]
    model = xn.Sequential([Input((3,)), *layers], seed=5, dtype="float64")
    model.compile(SGD(0.05, momentum=0.9), "mse")
    return model


def changes(model, **kwargs):
    """Train for an epoch; return the names of changed parameters and statistics."""
    before = model.get_weights()
    model.fit(X, Y, batch_size=6, verbose=0, **kwargs)
    pairs = zip(model.network.paths(), before, model.get_weights(), strict=True)
    return {path for path, old, new in pairs if (old != new).any()}


A, Z = ({f"{key}/kernel", f"{key}/bias"} for key in "az")
N = {f"n/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")}


def through_a_file(model, folder):
    path = folder / "model.safetensors"
    model.save(path)
    return xn.load_model(path)


COPIES = {
    "itself": lambda model, folder: model,
    "copy": lambda model, folder: copy.copy(model),
    "deepcopy": lambda model, folder: copy.deepcopy(model),
    "pickle": lambda model, folder: pickle.loads(pickle.dumps(model)),
    "file": through_a_file,
}


FROZEN = {"a": N | Z, "n": A | Z, "az": N, "nz": A, "an": Z, "anz": set()}


@pytest.mark.parametrize(
    ("frozen", "way", "trained"),
    [*((frozen, "itself", True) for frozen in FROZEN), *(("an", way, way == "file") for way in COPIES)],
)
def test_what_is_frozen_stays_and_what_is_thawed_moves(frozen, way, trained, tmp_path):
    model, moves = deep(), FROZEN[frozen]
    if trained:
        assert changes(model) == A | N | Z
    weights, paths = model.get_weights(), model.network.paths()
    for name in frozen:
        model.get_layer(name).trainable = False
    model.compile(SGD(0.05, momentum=0.9), "mse")
    same(model.get_weights(), weights)  # moving them changes none
    assert model.network.paths() == paths
    model = COPIES[way](model, tmp_path)
    assert {layer.name for layer in model.layers if not layer.trainable} == set(frozen)
    same(model.get_weights(), weights)
    assert changes(model) == moves
    model = COPIES[way](model, tmp_path)
    assert changes(model) == moves
    for layer in model.layers:
        layer.trainable = True
    model.compile(SGD(0.05, momentum=0.9), "mse")
    model = COPIES[way](model, tmp_path)
    assert changes(model) == A | N | Z


@pytest.mark.parametrize("way", COPIES)
def test_what_was_frozen_since_compile_is_not_frozen_yet(way, tmp_path):
    """As in Keras. Copies and loaded files behave like the model: they train on as it does."""
    model, twin = deep(), deep()
    for each in (model, twin):
        changes(each)
    model.get_layer("a").trainable = model.get_layer("n").trainable = False
    again = COPIES[way](model, tmp_path)
    assert [layer.trainable for layer in again.layers] == [True, False, False, True]
    assert changes(again) == A | N | Z
    changes(twin)
    same(again.get_weights(), twin.get_weights())
    again.compile(SGD(0.05), "mse")
    assert changes(again) == Z


def test_swapping_what_is_trainable_and_copying_mixes_no_weights():
    layers = [Dense(3, name="a", trainable=False), Dense(3, name="b")]
    model = xn.Sequential([Input((3,)), *layers], seed=1)
    model.compile("sgd", "mse")
    layers[0].trainable, layers[1].trainable = True, False
    same(copy.deepcopy(model).get_weights(), model.get_weights())
    model.compile("sgd", "mse")
    same(copy.deepcopy(model).get_weights(), model.get_weights())


def test_a_frozen_batch_normalization_uses_what_it_keeps():
    model = deep()
    changes(model)
    model.get_layer("n").trainable = False
    model.compile("sgd", "mse")
    loss = model.evaluate(X, Y)
    assert model.fit(X, Y, batch_size=len(X), verbose=0).history["loss"][0] == pytest.approx(loss, rel=1e-9)


def test_the_summary_counts_what_is_trainable():
    model, lines = deep(), []
    model.summary(print_fn=lines.append)
    model.get_layer("a").trainable = False
    model.summary(print_fn=lines.append)
    model.compile("sgd", "mse")
    model.summary(print_fn=lines.append)
    found = [text.rpartition("\n")[2].partition(", seed")[0] for text in lines]
    assert found == ["Parameters: 37 (29 trainable, 8 not)", *["Parameters: 37 (13 trainable, 24 not)"] * 2]
    assert model.count_params() == 37
    assert model.flat_weights.shape == (13,)


def test_freezing_begins_the_optimizer_anew():
    model = deep()
    changes(model)
    model.get_layer("a").trainable = False
    model.compile(model.optimizer, "mse")
    assert float(model.state.age) == 0.0
    twin = deep()
    twin.set_weights(model.get_weights())
    twin.get_layer("a").trainable = False
    twin.compile(SGD(0.05, momentum=0.9), "mse")
    twin.step, twin.epoch = model.step, model.epoch
    assert changes(model) == changes(twin) == N | Z
    same(model.get_weights(), twin.get_weights())


def test_a_whole_model_is_frozen_and_thawed():
    model = deep()
    model.trainable = False
    assert not model.trainable
    model.compile("adam", "mse")
    assert changes(model) == set()
    model.get_layer("z").trainable = True
    assert model.trainable
    model.compile("adam", "mse")
    assert changes(model) == Z


def test_a_former_prediction_does_not_outlive_a_change():
    """Code compiled for predictions depends on where weights are stored."""
    model = deep()
    expected = model.predict(X)
    model.get_layer("a").trainable = False
    model.compile("sgd", "mse")
    np.testing.assert_allclose(model.predict(X), expected, rtol=1e-12)
    model.get_layer("a").activation = xn.activations.get("linear")
    model.compile("sgd", "mse")
    assert not np.allclose(model.predict(X), expected)


def drop():
    return [Dense(6, activation="relu"), Dropout(0.4), BatchNormalization(), Dense(1)]


def test_two_fits_are_one_longer_fit():
    one, two = regressor(*drop()), regressor(*drop())
    long = one.fit(X, Y, batch_size=5, epochs=4, verbose=0)
    short = [two.fit(X, Y, batch_size=5, epochs=2, verbose=0) for _ in range(2)]
    same([short[0].history["loss"] + short[1].history["loss"]], [long.history["loss"]])
    same(two.get_weights(), one.get_weights())
    assert (one.step, one.epoch) == (two.step, two.epoch) == (20, 4)


def test_many_steps_per_execution_are_the_same_steps():
    results = []
    for steps in (1, 3):
        model = regressor(*drop())
        model.compile(Adam(0.01), "mse", ["mae"], steps_per_execution=steps)
        history = model.fit(X, Y, batch_size=4, epochs=2, verbose=0)  # 5 batches of 4 and one of 2
        results.append((model.get_weights(), history.history, model.step))
    same(results[0][0], results[1][0])
    same(results[0][1].values(), results[1][1].values())
    assert results[0][2] == results[1][2] == 12
    model = regressor(*drop())
    model.compile(Adam(0.01), "mse")
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0, steps_per_execution=5)
    same(model.get_weights(), results[0][0])


def test_the_seed_decides_everything():
    runs = [regressor(*drop(), seed=seed) for seed in (1, 1, 2)]
    for model in runs:
        model.fit(X, Y, batch_size=5, verbose=0)
    same(runs[0].get_weights(), runs[1].get_weights())
    assert not np.allclose(host(runs[0]), host(runs[2]))
    assert xn.Sequential([Dense(1)]).seed != xn.Sequential([Dense(1)]).seed


def test_shuffling_changes_the_order_and_its_absence_does_not():
    runs = {}
    for shuffle in (True, False):
        runs[shuffle] = regressor()
        runs[shuffle].fit(X, Y, batch_size=5, verbose=0, shuffle=shuffle)
    assert not np.allclose(host(runs[True]), host(runs[False]), rtol=1e-4)


def test_train_on_batch_is_a_step_of_fit():
    one, other = (regressor(*drop()) for _ in range(2))
    history = one.fit(X, Y, batch_size=len(X), epochs=3, shuffle=False, verbose=0)
    losses = [other.train_on_batch(X, Y) for _ in range(3)]
    same([losses], [history.history["loss"]])
    same(one.get_weights(), other.get_weights())
    assert other.step == 3
    other.compile(SGD(0.1), "mse", ["mae"])
    assert list(other.train_on_batch(X, Y, return_dict=True)) == ["loss", "mae"]
    assert len(other.train_on_batch(X, Y)) == 2


def test_validation_is_an_evaluation_and_changes_nothing():
    plain, split, given = (regressor(*drop()) for _ in range(3))
    plain.fit(X[:16], Y[:16], batch_size=4, epochs=2, verbose=0)
    from_split = split.fit(X, Y, batch_size=4, epochs=2, verbose=0, validation_split=0.25)
    weights = np.ones(6)
    from_data = given.fit(
        X[:16], Y[:16], batch_size=4, epochs=2, verbose=0, validation_data=(X[16:], Y[16:], weights),
        validation_batch_size=4,
    )  # fmt: skip
    same(plain.get_weights(), split.get_weights())
    same(plain.get_weights(), given.get_weights())
    assert list(from_split.history) == ["loss", "val_loss"]
    np.testing.assert_allclose(from_split.history["val_loss"], from_data.history["val_loss"], rtol=1e-5)
    assert from_split.history["val_loss"][-1] == pytest.approx(split.evaluate(X[16:], Y[16:]), rel=1e-5)
    sometimes = given.fit(X, Y, epochs=5, verbose=0, validation_data=(X, Y), validation_freq=2)
    assert len(sometimes.history["val_loss"]) == 2


def test_the_learning_rate_can_be_set_between_fits():
    model = regressor()
    model.fit(X, Y, verbose=0)
    before = model.get_weights()
    model.compile(SGD(0.1), "mse")
    model.optimizer.learning_rate = 0.0
    model.fit(X, Y, verbose=0)
    same(before, model.get_weights())


def test_compile_begins_the_optimizer_anew():
    model = regressor()
    model.fit(X, Y, epochs=2, verbose=0)
    before = model.get_weights()
    model.compile(SGD(0.0, momentum=0.9), "mse")  # the old velocity would move the weights
    model.fit(X, Y, verbose=0)
    same(model.get_weights(), before)


def test_the_same_optimizer_goes_on_when_it_is_compiled_again():
    one, other = (regressor(*drop()) for _ in range(2))
    for model in (one, other):
        model.compile(Adam(0.05), "mse")
        model.fit(X, Y, epochs=2, verbose=0)
    other.compile(other.optimizer, "mse", ["mae"])
    assert float(other.state.age) == other.step
    for model in (one, other):
        model.fit(X, Y, epochs=2, verbose=0)
    same(one.get_weights(), other.get_weights())
    other.compile(Adam(0.05), "mse")
    assert float(other.state.age) == 0.0


@pytest.mark.parametrize(("rate", "new"), [(0.5, 0.2), (0.0, 0.5), (0.5, 0.0)])
def test_a_rate_of_dropout_set_before_compile_counts(rate, new):
    layer = Dropout(rate)
    models = [
        xn.Sequential([Input((3,)), first, Dense(1)], seed=2) for first in (layer, Dropout(new))
    ]  # fmt: skip
    layer.rate = new
    for model in models:
        model.compile("sgd", "mse")
        model.fit(X, Y, batch_size=5, verbose=0)
    same(*(model.get_weights() for model in models))


def test_a_compile_that_fails_freezes_nothing():
    layers, labels = [Dropout(0.5, name="half"), Dense(3, "softmax", name="last")], LABELS
    models = [xn.Sequential([Input((3,)), *copy.deepcopy(layers)], seed=2) for _ in range(2)]
    for model in models:
        model.compile("sgd", "sparse_categorical_crossentropy")
        model.fit(X, labels, batch_size=11, verbose=0)
    for model in models:
        model.get_layer("half").rate = 0.2
    models[1].get_layer("last").trainable = False  # effective from the next `compile` on, which fails
    with pytest.raises(xn.errors.InvalidValueError, match="ends in 'softmax'"):
        models[1].compile("adam", SparseCategoricalCrossentropy(from_logits=True))
    for model in models:
        model.fit(X, labels, batch_size=22, verbose=0)
    same(*(model.get_weights() for model in models))


# Settings that change while the model trains ------------------------------------------------------------------


@pytest.mark.parametrize("way", ["fit", "train_on_batch"])
@pytest.mark.parametrize(
    ("optimizer", "part", "name", "value"),
    [
        (SGD(0.1), "optimizer", "learning_rate", 0.02),
        (SGD(0.1, momentum=0.9), "optimizer", "momentum", 0.1),
        (SGD(0.1), "optimizer", "momentum", 0.9),
        (SGD(0.1, momentum=0.9), "optimizer", "nesterov", True),
        (SGD(0.1, clipnorm=1.0), "optimizer", "clipnorm", 0.01),
        (SGD(0.1), "optimizer", "clipvalue", 0.01),
        (SGD(0.1), "optimizer", "weight_decay", 0.5),
        (Adam(0.1), "optimizer", "beta_1", 0.1),
        (Adam(0.1), "optimizer", "beta_2", 0.5),
        (Adam(0.1), "optimizer", "epsilon", 1.0),
        (SGD(0.1), "loss", "label_smoothing", 0.5),
        (SGD(0.1), "half", "rate", 0.2),
        (SGD(0.1), "none", "rate", 0.5),
        (SGD(0.1), "norm", "momentum", 0.1),
        (SGD(0.1), "norm", "epsilon", 1.0),
        (SGD(0.1), "hidden", "activation", xn.activations.get("relu")),
    ],
)
def test_a_setting_counts_from_the_next_step_on(optimizer, part, name, value, way):
    layers = [
        Dense(6, "tanh", name="hidden"), BatchNormalization(momentum=0.5, name="norm"), Dropout(0.5, name="half"),
        Dropout(0.0, name="none"), Dense(3, "softmax"),
    ]  # fmt: skip
    model = xn.Sequential([Input((3,)), *layers], seed=5)
    model.compile(copy.deepcopy(optimizer), xn.losses.CategoricalCrossentropy())
    y = np.eye(3)[LABELS]

    def train(model):
        if way == "fit":
            model.fit(X, y, batch_size=6, epochs=2, verbose=0)
        else:
            for _ in range(3):
                model.train_on_batch(X, y)

    train(model)
    setattr(getattr(model, part, None) or model.get_layer(part), name, value)
    fresh = copy.deepcopy(model)  # the same model, but with nothing recorded or compiled
    for each in (model, fresh):
        train(each)
    same(model.get_weights(), fresh.get_weights())


class Change(xn.callbacks.Callback):
    """Changes a setting before the batch of that number, in each epoch."""

    def __init__(self, batch, part, name, value):
        self.batch, self.change = batch, (part, name, value)

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.batch:
            setattr(*self.change)


@pytest.mark.parametrize(
    ("which", "name", "value"),
    [("optimizer", "learning_rate", 0.5), ("optimizer", "momentum", 0.5), ("optimizer", "clipnorm", 0.01),
     ("half", "rate", 0.1), ("hidden", "activation", "relu"), ("penalty", "l2", 0.3)],
)  # fmt: skip
def test_a_callback_changes_a_setting_between_two_batches(which, name, value):
    """As if each batch were a separate call."""
    weights = []
    for alone in (False, True):
        penalty = xn.regularizers.L2(0.0)
        layers = [Dense(6, "tanh", name="hidden", kernel_regularizer=penalty), Dropout(0.5, name="half"), Dense(2)]
        model = xn.Sequential([Input((3,)), *layers], seed=5)
        model.compile(SGD(0.1), "mse")
        parts = {"penalty": penalty, "optimizer": model.optimizer, "half": layers[1], "hidden": layers[0]}
        change = Change(3, parts[which], name, value)
        y = np.stack([Y[:, 0], -Y[:, 0]], axis=1)
        if not alone:
            model.fit(X, y, batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=[change])
        else:
            for _ in range(2):
                for batch, start in enumerate(range(0, len(X), 4)):
                    change.on_train_batch_begin(batch)
                    model.train_on_batch(X[start : start + 4], y[start : start + 4])
        weights.append(model.get_weights())
    same(*weights)


def test_a_penalty_may_begin_later():
    model = xn.Sequential([Input((3,)), Dense(1, name="d")], seed=5)
    model.compile(SGD(0.1), "mse")
    first = model.evaluate(X, Y)
    model.get_layer("d").kernel_regularizer = "l2"
    kernel = model.get_weights()[0]
    assert model.evaluate(X, Y) == pytest.approx(first + 0.01 * np.sum(kernel**2), rel=1e-5)
    model.get_layer("d").kernel_regularizer.l2 = 1.0
    assert model.evaluate(X, Y) == pytest.approx(first + np.sum(kernel**2), rel=1e-5)


def test_a_layer_of_ones_own_must_keep_its_weights():
    class Wide(xn.layers.Layer):
        width: int = xn.setting(default=2)

        def build(self, input_shape):
            self.add_weight("w", (self.width,))
            return input_shape

        def forward(self, ctx, params, x):
            return x, lambda dy, into, want_dx=True: (dy, {"w": ctx.xp.zeros_like(params["w"])})

    layer = Wide()
    model = xn.Sequential([Input((3,)), layer, Dense(1)], seed=5)
    model.compile(SGD(0.1), "mse")
    before = model.get_weights()
    layer.width = 3
    with pytest.raises(
        xn.errors.InvalidValueError, match=r"must no longer change its weights, .*'w', \(2,\).*'w', \(3,\)"
    ):
        model.train_on_batch(X, Y)
    same(model.get_weights(), before)
    layer.width = 2
    model.train_on_batch(X, Y)


# Evaluation and prediction ----------------------------------------------------------------------------------


def test_what_evaluate_returns():
    model = regressor()
    model.build((3,))
    loss = model.evaluate(X, Y)
    assert type(loss) is float
    assert loss == pytest.approx(np.mean((model.predict(X) - Y) ** 2), rel=1e-5)
    model.compile(SGD(0.1), "mse", ["mae", xn.metrics.MeanSquaredError(name="again")])
    scores = model.evaluate(X, Y, batch_size=5, return_dict=True)
    assert list(scores) == model.metrics_names == ["loss", "mae", "again"]
    assert model.evaluate(X, Y, batch_size=5) == pytest.approx(list(scores.values()))
    assert scores["loss"] == pytest.approx(loss, rel=1e-5)
    assert scores["again"] == pytest.approx(loss, rel=1e-5)
    assert scores["mae"] == pytest.approx(np.mean(np.abs(model.predict(X) - Y)), rel=1e-5)


def test_weighted_evaluation():
    model = regressor()
    model.compile(SGD(0.1), "mse", weighted_metrics=["mse"])
    model.build((3,))
    weights = np.linspace(0.0, 2.0, len(X))
    values = (np.asarray(model.predict(X), dtype=float) - Y)[:, 0] ** 2
    loss, mse = model.evaluate(X, Y, sample_weight=weights, batch_size=4)
    assert loss == pytest.approx(np.mean(values * weights), rel=1e-5)
    assert mse == pytest.approx(np.average(values, weights=weights), rel=1e-5)


@pytest.mark.parametrize("size", [1, 4, 22, 1000, None])
def test_predictions_do_not_depend_on_the_batch_size(size):
    model = regressor(*drop())
    model.build((3,))
    kernel, bias = model.layers[0].get_weights()
    last, shift = model.layers[3].get_weights()
    expected = np.maximum(X @ kernel + bias, 0.0) / np.sqrt(1.001) @ last + shift  # no dropout
    np.testing.assert_allclose(model.predict(X, batch_size=size), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", available_backends())
def test_results_come_back_in_the_library_of_the_inputs(name):
    model = regressor()
    model.build((3,))
    expected = model.predict(X.astype("float32"))
    assert type(expected) is np.ndarray
    x = get_backend(name, "cpu" if name != "cupy" else None, "float32").array(X, "float32")
    found = model.predict(x, batch_size=8)
    assert library_of(found) == name
    assert_close(found, expected, check_library=False)
    assert type(model.predict(X.tolist())) is np.ndarray
    assert library_of(model(x)) == name


@pytest.mark.parametrize("name", available_backends())
def test_the_first_arrays_decide_where_the_work_is_done(name, monkeypatch):
    monkeypatch.delenv("XPNET_BACKEND", raising=False)
    monkeypatch.delenv("XPNET_DEVICE", raising=False)
    home = get_backend(name)
    model = regressor()
    assert model.backend.name == "numpy"
    model.fit(home.array(X, "float32"), home.array(Y, "float32"), batch_size=6, verbose=0)
    assert model.backend.name == name
    assert library_of(model.flat_weights) == name
    assert type(model.predict(X)) is np.ndarray  # later ones do not
    assert model.backend.name == name
    explicit = regressor(backend="numpy")
    explicit.fit(home.array(X, "float32"), Y, verbose=0)
    assert explicit.backend.name == "numpy"


# Weights, places --------------------------------------------------------------------------------------------


def test_weights_out_and_in():
    model, other = regressor(*drop(), seed=1), regressor(*drop(), seed=2)
    model.fit(X, Y, verbose=0)
    other.build((3,))
    weights = model.get_weights()
    assert [w.shape for w in weights] == [(3, 6), (6,), (6,), (6,), (6,), (6,), (6, 1), (1,)]
    assert all(type(w) is np.ndarray for w in weights)
    other.set_weights(weights)
    same(other.get_weights(), weights)
    np.testing.assert_allclose(other.predict(X), model.predict(X), rtol=1e-6)
    kept = [w.copy() for w in weights]
    weights[0][:] = 7.0  # copies: neither model sees this
    other.fit(X, Y, verbose=0)
    same(model.get_weights(), kept)
    model.set_weights([w.tolist() for w in kept])
    same(model.get_weights(), kept)


def test_weights_of_one_layer():
    model = regressor()
    model.build((3,))
    last = model.get_layer("dense_1")
    assert last is model.layers[1]
    last.set_weights([np.zeros((4, 1)), [0.25]])
    np.testing.assert_array_equal(model.predict(X), np.full((22, 1), 0.25))
    same(last.get_weights(), [np.zeros((4, 1)), [0.25]])
    assert model.layers[0].get_weights()[0].any()


def test_a_layer_keeps_the_weights_it_had_before_the_model():
    layer = Dense(1)
    layer(X)
    kernel, bias = layer.get_weights()
    model = regressor(layer)
    np.testing.assert_allclose(model(X), X @ kernel + bias, rtol=1e-5, atol=1e-6)
    model.fit(X, Y, verbose=0)
    assert not np.allclose(layer.get_weights()[0], kernel)


@pytest.mark.parametrize("name", {"numpy": available_backends()}.get(get_backend().name, ["numpy"]))
def test_moving_keeps_all_state(name):
    model, stays = regressor(*drop()), regressor(*drop())
    for each in (model, stays):
        each.fit(X, Y, batch_size=6, verbose=0)
    assert model.to(name, device="cpu" if name != "cupy" else None) is model
    assert model.backend.name == library_of(model.flat_weights) == name
    np.testing.assert_allclose(model.predict(X), stays.predict(X), rtol=1e-4, atol=1e-6)
    for each in (model, stays):
        each.fit(X, Y, batch_size=6, verbose=0)
    for a, b in zip(model.get_weights(), stays.get_weights()):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert (model.step, model.epoch) == (stays.step, stays.epoch)


def test_precision():
    model = regressor(dtype="float64")
    model.fit(X, Y, verbose=0)
    assert model.predict(X).dtype == np.float64
    assert host(model).dtype == np.float64
    model.to(dtype="float32")
    assert model.backend.dtype_name == "float32"
    assert model.predict(X).dtype == np.float32
    assert model.fit(X, Y, verbose=0).history["loss"][0] < 10


# Building ---------------------------------------------------------------------------------------------------


def test_ways_to_build():
    added = xn.Sequential(seed=4)
    assert not added.built
    for layer in (Dense(4, activation="tanh"), Dense(1)):
        added.add(layer)
    built = [added, xn.Sequential([Input((None, 3)), Dense(4, activation="tanh"), Dense(1)], seed=4)]
    added.build((None, 3))
    assert all(model.built for model in built)
    assert [m.count_params() for m in built] == [21, 21]
    assert (added.input_shape, added.output_shape) == ((3,), (1,))
    first = xn.Sequential([Input((3,))], seed=4)
    first.add(Dense(4, activation="tanh"))
    first.add(Dense(1))
    same([first(X)], [built[1](X)])


def test_layers_added_behind_an_input():
    model = xn.Sequential([Input((3,)), Dense(4)], seed=4)
    kernel = np.full((3, 4), 0.5, dtype=np.float32)
    model.layers[1].set_weights([kernel, np.ones(4)])
    model.add(Dense(1))
    assert model.built
    assert (model.output_shape, model.count_params()) == ((1,), 21)
    np.testing.assert_array_equal(model.get_weights()[0], kernel)  # existing weights stay
    with pytest.raises(xn.errors.InvalidValueError, match="different names"):
        model.add(Dense(1, name="dense"))
    assert len(model.layers) == 3
    np.testing.assert_array_equal(model.get_weights()[0], kernel)
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    with pytest.raises(xn.errors.InvalidValueError, match="can't be added"):
        model.add(Dense(1))


def test_frozen_batch_normalization_keeps_to_its_running_statistics():
    layer = BatchNormalization()
    layer.trainable = False
    model = xn.Sequential([Input((3,)), layer, Dense(1)], seed=4)
    model.compile("sgd", "mse")
    before = layer.get_weights()
    loss = model.evaluate(X, Y)
    history = model.fit(X, Y, batch_size=len(X), verbose=0).history
    assert history["loss"][0] == pytest.approx(loss, rel=1e-5)  # not those of the batch
    for one, other in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_layers_are_taken_away_by_pop_only():
    model = regressor(Input((3,)), Dense(4), BatchNormalization(), Dense(2, name="last"))
    model.fit(X, np.ones((22, 2)), verbose=0)
    weights, last = model.get_weights(), model.layers[-1]
    with pytest.raises(AttributeError):
        model.layers.pop()  # a tuple: it can't differ from what the model computes
    assert model.pop() is last
    assert [layer.name for layer in model.layers] == ["input", "dense", "batch_normalization"]
    assert (model.output_shape, model.count_params(), list(model.optimizer.slots)) == ((4,), 32, ["velocity"])
    same(model.get_weights(), weights[:-2])
    same(last.get_weights(), weights[-2:])
    assert model.predict(X).shape == (22, 4)
    model.fit(X, np.ones((22, 4)), verbose=0)
    same(last.get_weights(), weights[-2:])
    other = xn.Sequential([Input((4,)), last])  # the layer is free again
    same(other.get_weights(), weights[-2:])
    assert np.abs(model.get_weights()[0] - weights[0]).max() > 0


def test_pop_of_layers_used_twice_and_of_all():
    twice = Dense(3, name="twice")
    model = xn.Sequential([Input((3,)), twice, Dense(3), twice], seed=1)
    weights = model.get_weights()
    assert model.pop() is twice
    same(model.get_weights(), weights)
    same(twice.get_weights(), weights[:2])
    for _ in range(3):
        model.pop()
    assert (model.layers, model.built) == ((), False)
    same(twice.get_weights(), weights[:2])
    with pytest.raises(xn.errors.InvalidValueError, match="got a model of 0 layers"):
        model.pop()
    model.add(Input((3,)))
    model.add(twice)
    same(model.get_weights(), weights[:2])
    unbuilt = xn.Sequential([Dense(1), Dense(2)])
    unbuilt.pop()
    assert unbuilt(X).shape == (22, 1)


@pytest.mark.parametrize(("rows", "error"), [(9, xn.errors.ShapeError), (4, KeyboardInterrupt)])
def test_a_layer_that_is_not_added_after_all(rows, error, monkeypatch):
    model = xn.Sequential([Input((3,)), Dense(4)], seed=4)
    weights, other = model.get_weights(), Dense(2)
    other(np.ones((1, rows)))
    own = other.get_weights()
    with monkeypatch.context() as patch:
        patch.setattr(Session, "assign", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(error):
            model.add(other)
    assert other.name is None
    same(other.get_weights(), own)
    assert len(model.layers) == 2
    same(model.get_weights(), weights)
    same(model.layers[1].get_weights(), weights)
    model.add(Dense(2))
    same(model.get_weights()[:2], weights)


def test_copies_share_nothing():
    """Also `copy.copy`: a model's steps overwrite its state."""
    model = regressor(*drop())
    model.fit(X, Y, verbose=0)
    weights, others = model.get_weights(), [copy.copy(model), copy.deepcopy(model)]
    for each in others:
        same(each.get_weights(), weights)
        assert each.layers[0] is not model.layers[0]
        each.fit(X, Y, verbose=0)
    same(model.get_weights(), weights)
    model.fit(X, Y, verbose=0)
    for each in others:
        same(each.get_weights(), model.get_weights())


def test_a_model_that_is_dropped_goes_at_once():
    """Without the cycle collector: a callback, a deepcopy and a prediction keep nothing alive."""
    gc.collect()
    gc.disable()
    try:
        model = regressor(*drop())
        model.fit(X, Y, verbose=0, validation_split=0.2, callbacks=[xn.callbacks.EarlyStopping("loss")])
        model.predict(X)
        copy.deepcopy(model)
        watches = [weakref.ref(part) for part in (model, model.network, model.layers[0])]
        del model
        assert [watch() for watch in watches] == [None, None, None]
    finally:
        gc.enable()


def test_called_models_build_themselves():
    model = xn.Sequential([Dense(2)], seed=0)
    assert model(X).shape == (22, 2)
    assert model.built


def test_summary(capsys):
    shared = Dense(3, name="both")
    model = xn.Sequential([shared, shared, BatchNormalization(), Dense(1000)], seed=12, name="mine")
    model.build((3,))
    model.summary()
    text = capsys.readouterr().out
    for part in ("'mine'", "both (Dense)", "(None, 3)", "batch_normalization", "4,000", "4,024",
                 "(4,018 trainable, 6", "seed 12"):  # fmt: skip
        assert part in text
    assert model.count_params() == 4024
    lines = []
    model.summary(print_fn=lines.append)
    assert "\n".join(lines).strip() == text.strip()


def test_the_fused_head_is_the_same_as_scores():
    results = []
    for activation, logits in (("softmax", False), (None, True)):
        model = xn.Sequential([Dense(3, activation=activation)], seed=0, dtype="float64")
        model.compile(SGD(0.5), SparseCategoricalCrossentropy(from_logits=logits), ["accuracy"])
        history = model.fit(X, LABELS, batch_size=6, epochs=2, verbose=0)
        results.append((model.get_weights(), history.history))
    for a, b in zip(results[0][0], results[1][0]):
        np.testing.assert_allclose(a, b, rtol=1e-10)
    assert results[0][1]["loss"] == pytest.approx(results[1][1]["loss"], rel=1e-10)
    assert results[0][1]["accuracy"] == results[1][1]["accuracy"]
