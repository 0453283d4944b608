"""Sequential as people use it: compile, fit, evaluate, predict, weights, to, summary."""

import numpy as np
import pytest

import xpnet as xn
from xpnet.backend import available_backends, get_backend, library_of
from xpnet.layers import BatchNormalization, Dense, Dropout, Input
from xpnet.losses import MeanSquaredError, SparseCategoricalCrossentropy
from xpnet.optimizers import SGD, Adam
from xpnet.regularizers import L1, L1L2, L2
from xpnet.testing import assert_close

RNG = np.random.default_rng(0)
X = RNG.standard_normal((22, 3))
Y = np.tanh(X @ np.array([[1.0], [-2.0], [0.5]])) + 0.1
LABELS = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)


def regressor(*layers, seed=3, **kwargs):
    model = xn.Sequential(layers or [Dense(4, activation="tanh"), Dense(1)], seed=seed, **kwargs)
    model.compile(SGD(0.05, momentum=0.9), "mse")
    return model


def host(model):
    return model.backend.host(model.weights)


def same(a, b):
    """Equal bit for bit on NumPy, to rounding elsewhere (other libraries may choose other kernels)."""
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
        """The loss of a training step, as it is before the update."""
        other = xn.Sequential(make(), seed=2, dtype="float64")
        other.compile(SGD(0.0), loss)
        other.build((3,))
        other.state = other.state._replace(weights=other.backend.array(values + shift * direction))
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
    model.compile(SGD(0.0, momentum=0.9), "mse")  # the former velocity would move the weights on
    model.fit(X, Y, verbose=0)
    same(model.get_weights(), before)


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
    assert library_of(model.weights) == name
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
    assert model.backend.name == library_of(model.weights) == name
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
    np.testing.assert_array_equal(model.get_weights()[0], kernel)  # what was there stays
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
