"""All of training on a backend as strict as CuPy (see cupy_like.py), compared with NumPy."""

import operator

import numpy as np
import pytest
from cupy_like import Array, CupyLike, inside_a_step
from steps import taken

import xpnet as xn
from xpnet import layers
from xpnet.backend import BACKENDS, get_backend, library_of
from xpnet.backend.base import make_backend
from xpnet.errors import NonFiniteError
from xpnet.layers import (
    ActivityRegularization,
    AlphaDropout,
    BatchNormalization,
    Dense,
    Dropout,
    Flatten,
    GaussianDropout,
    GaussianNoise,
    GroupNormalization,
    LayerNormalization,
    LeakyReLU,
    PReLU,
    RMSNormalization,
    Softmax,
    SpatialDropout1D,
    UnitNormalization,
)
from xpnet.optimizers import LBFGS, SGD, Adadelta, Adafactor, Adam, Adamax, Ftrl, Momentum, Muon, Nadam, RMSprop
from xpnet.regularizers import L1, L1L2, L2

if get_backend().name != "numpy":
    pytest.skip("it is the same on every backend under test: run once, with NumPy", allow_module_level=True)

RNG = np.random.default_rng(0)
X = RNG.standard_normal((22, 3))
LABELS = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
WEIGHTS = RNG.uniform(0.5, 2.0, 22)


@pytest.fixture(autouse=True)
def cupy_like(monkeypatch):
    monkeypatch.setitem(BACKENDS, "cupy_like", CupyLike)
    monkeypatch.setenv("XPNET_KERNELS", "0")
    monkeypatch.delenv("XPNET_BACKEND", raising=False)
    monkeypatch.delenv("XPNET_DEVICE", raising=False)
    make_backend.cache_clear()
    yield
    make_backend.cache_clear()


def combined():
    return [
        layers.Parallel([Dense(4), [layers.Discretization([-1.0, 1.0]), layers.Embedding(3, 2), layers.Flatten()],
                         [layers.Discretization([0.0]), layers.CategoryEncoding(2)]]),
        layers.Normalization(), layers.Residual([layers.Maxout(3), Dropout(0.3), Dense(12), BatchNormalization()]),
        layers.Parallel([Dense(4), Dense(4)], "maximum"), layers.Reshape((2, 2)), layers.Permute((2, 1)),
        layers.Flatten(), layers.RepeatVector(2), layers.Flatten(), layers.Rescaling(0.5), Dense(3, "softmax"),
    ]  # fmt: skip


def test_layers_of_layers_and_of_classes():
    def train(model):
        return model.fit(X, LABELS, batch_size=5, epochs=2, verbose=0).history

    close(*both(train, combined, "sparse_categorical_crossentropy", lambda: Adam(0.01)))


def everything():
    return [
        Dense(6, activation="tanh", kernel_regularizer=L2(0.01), bias_regularizer=L1(0.01)),
        Dropout(0.3), BatchNormalization(), PReLU(), Dense(5, kernel_regularizer=L1L2(0.01, 0.02)), LeakyReLU(),
        Dense(3, activation="softmax"),
    ]  # fmt: skip


def both(train, layers, loss, optimizer, metrics=(), **kwargs):
    """Train on NumPy and on the simulated device; compare all results."""
    results = []
    for name in ("numpy", "cupy_like"):
        model = xn.Sequential(layers(), seed=5, dtype="float64", backend=name)
        model.compile(optimizer(), loss, list(metrics), **kwargs)
        found = train(model)
        host, state = model.backend.host, model.state
        arrays = [*model.get_weights(), *map(host, state.slots), host(state.age), host(state.step)]
        results.append((model, found, arrays))
    (_, expected, reference), (model, found, arrays) = results
    assert library_of(model.flat_weights) == "cupy_like"
    for a, b in zip(arrays, reference, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    return found, expected


def close(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("per_execution", [1, 3])
def test_all_layers_with_weights_and_validation(per_execution):
    def train(model):
        history = model.fit(
            X, LABELS, batch_size=5, epochs=2, verbose=0, sample_weight=WEIGHTS, class_weight={0: 2.0},
            validation_data=(X[:7], LABELS[:7], WEIGHTS[:7]),
            callbacks=xn.callbacks.EarlyStopping(restore_best_weights=True, patience=3),
        ).history  # fmt: skip
        return {
            **history,
            "scores": model.evaluate(X, LABELS, batch_size=6),
            "batch": model.train_on_batch(X, LABELS),
            "predictions": model.predict(X, batch_size=4),
        }

    close(*both(train, everything, "sparse_categorical_crossentropy", lambda: Adam(0.01), ["accuracy"],
                steps_per_execution=per_execution))  # fmt: skip


@pytest.mark.parametrize(
    "optimizer",
    [lambda: SGD(0.1), lambda: SGD(0.1, momentum=0.9), lambda: SGD(0.1, momentum=0.9, nesterov=True),
     lambda: Momentum(0.1), RMSprop, lambda: RMSprop(epsilon_on="root"), Adam,
     lambda: Adam(epsilon_on="corrected"), lambda: Adam(beta_1=0.0), Adadelta, Adamax, Nadam, Ftrl, Adafactor,
     Muon, lambda: Adam(use_ema=True), lambda: Muon(gradient_accumulation_steps=2, use_ema=True), LBFGS,
     lambda: SGD(0.1, gradient_accumulation_steps=2, use_ema=True, ema_overwrite_frequency=2)],
)  # fmt: skip
def test_optimizers(optimizer):
    def train(model):
        return model.fit(X, X[:, :1], batch_size=8, verbose=0).history

    close(*both(train, lambda: [Dense(4, activation="relu"), Dense(1)], "mse", optimizer))


@pytest.mark.parametrize(
    ("loss", "last", "y", "metrics"),
    [
        ("mse", None, X[:, :2], ["mse", "mae"]),
        ("mae", None, X[:, :2], []),
        ("binary_crossentropy", "sigmoid", np.eye(3)[LABELS][:, :2], ["binary_accuracy"]),
        ("binary_crossentropy", "linear", np.full((22, 2), 0.5), ["accuracy"]),
        (xn.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.1), None, np.eye(3)[LABELS][:, :2], []),
        ("categorical_crossentropy", "softmax", np.eye(2)[LABELS % 2], ["accuracy"]),
        (xn.losses.CategoricalCrossentropy(label_smoothing=0.1), "sigmoid", np.eye(2)[LABELS % 2], []),
        ("sparse_categorical_crossentropy", "sigmoid", LABELS % 2, ["accuracy"]),
        (xn.losses.SparseCategoricalCrossentropy(from_logits=True), None, LABELS % 2, ["accuracy"]),
        (xn.losses.MeanSquaredError(reduction="mean_with_sample_weight"), None, X[:, :2], []),
        (xn.losses.MeanSquaredError(reduction="sum"), None, X[:, :2], []),
        ("perceptron", "step", LABELS[:, None] % 2 + np.zeros((1, 2)), ["accuracy"]),
    ],
)
@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=["plain", "weighted"])
def test_losses_and_metrics(loss, last, y, metrics, weight):
    def train(model):
        history = model.fit(X, y, batch_size=8, verbose=0, sample_weight=weight, validation_split=0.3).history
        return {**history, "scores": model.evaluate(X, y, sample_weight=weight)}

    if last == "linear":
        last = xn.activations.get("sigmoid")  # an object
    close(*both(train, lambda: [Dense(3, activation="tanh"), Dense(2, activation=last)], loss, lambda: SGD(0.05),
                metrics))  # fmt: skip


ACTIVATIONS = {cls.__name__ for cls in xn.activations.registry.classes.values()} - {"Step"}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations(name):
    def train(model):
        return model.fit(X, X[:, :2], batch_size=8, verbose=0).history

    close(*both(train, lambda: [Dense(4, activation=name), Dense(2)], "mse", lambda: SGD(0.01)))


def test_layers_that_normalize_rows_add_noise_or_penalize():
    def train(model):
        x = X[:20].reshape(20, 3, 1) + np.zeros((1, 1, 4))
        history = model.fit(x, LABELS[:20], batch_size=8, verbose=0).history
        return {**history, "scores": model.evaluate(x, LABELS[:20])}

    close(*both(train, lambda: [
        LayerNormalization((1, 2)), GaussianNoise(0.1), Dense(4, activity_regularizer=L1(0.1)),
        GroupNormalization(3, 1), BatchNormalization(1), RMSNormalization(1), GaussianDropout(0.1),
        SpatialDropout1D(0.2), ActivityRegularization(0.1, 0.2), UnitNormalization(),
        AlphaDropout(0.1, (1, None, 1)), Flatten(), Dense(3), Softmax(),
    ], "sparse_categorical_crossentropy", lambda: SGD(0.01)))  # fmt: skip


def test_shapes_and_layers_of_their_own():
    def train(model):
        x = X[:20].reshape(20, 3, 1) + np.zeros((1, 1, 2))
        return model.fit(x, LABELS[:20], batch_size=8, verbose=0).history

    close(*both(train, lambda: [Dense(2), BatchNormalization(), Flatten(), Dense(3), Softmax()],
                "sparse_categorical_crossentropy", lambda: SGD(0.01)))  # fmt: skip
    shared = [None]

    def twice():
        shared[0] = Dense(3, activation="tanh")
        return [shared[0], shared[0], Dense(1)]

    close(*both(lambda m: m.fit(X, X[:, :1], batch_size=8, verbose=0).history, twice, "mse", lambda: SGD(0.1)))


@pytest.mark.parametrize("per_execution", [1, 4])
def test_the_guard_holds_a_step_back(per_execution):
    layers = [Dense(3, kernel_initializer="ones", name="first"), *everything()]
    model = xn.Sequential(layers, seed=5, dtype="float64", backend="cupy_like")
    model.compile(Adam(0.01), "sparse_categorical_crossentropy", steps_per_execution=per_execution)
    model.fit(X, LABELS, batch_size=4, verbose=0)
    host = model.backend.host
    before = [*model.get_weights(), *map(host, model.state.slots)]
    spoilt = X.copy()
    spoilt[0] = 1.7e308
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 1 .* the output of layer 'first'"):
        model.fit(spoilt, LABELS, batch_size=4, verbose=0, shuffle=False)
    for a, b in zip([*model.get_weights(), *map(host, model.state.slots)], before):
        np.testing.assert_array_equal(a, b)
    assert (model.step, int(host(model.state.step))) == (6, 6)
    with pytest.raises(NonFiniteError):
        model.train_on_batch(spoilt, LABELS)
    model.fit(X, LABELS, batch_size=4, verbose=0)
    assert model.step == 12


def test_its_own_arrays_in_and_out():
    home = get_backend("cupy_like")
    x, y, labels = home.array(X, "float32"), home.array(X[:, :1], "float32"), home.array(LABELS)
    model = xn.Sequential([Dense(4, activation="relu"), Dropout(0.2), Dense(1)], seed=1)
    model.compile("adam", "mse", ["mae"])
    model.fit(x, y, batch_size=5, epochs=2, verbose=0, validation_split=0.2, sample_weight=home.array(WEIGHTS))
    assert model.backend.name == "cupy_like"
    assert isinstance(model.predict(x, batch_size=5), Array)
    assert isinstance(model(x), Array)
    assert type(model.predict(X)) is np.ndarray
    assert all(type(w) is np.ndarray for w in model.get_weights())
    assert isinstance(model.evaluate(x, y)[0], float)
    classifier = xn.Sequential([Dense(3, activation="softmax")], seed=1)
    classifier.compile("sgd", "sparse_categorical_crossentropy", ["accuracy"])
    classifier.fit(x, labels, verbose=0, class_weight={1: 2})
    classifier.fit(X, labels, verbose=0)
    bad = X.copy()
    bad[3, 1] = np.nan
    with pytest.raises(xn.errors.InvalidValueError, match="row 3"):
        model.fit(home.array(bad), y, verbose=0)


def test_files_and_moves(tmp_path):
    model = xn.Sequential(everything(), seed=5, backend="cupy_like")
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(X, LABELS, verbose=0)
    model.save(tmp_path / "m")
    expected = model.predict(X)
    for name in ("numpy", "cupy_like"):
        again = xn.load_model(tmp_path / "m", backend=name)
        np.testing.assert_allclose(again.predict(X), expected, rtol=1e-6)
        again.fit(X, LABELS, verbose=0)
    np.testing.assert_allclose(model.to("numpy").predict(X), expected, rtol=1e-6)
    np.testing.assert_allclose(model.to("cupy_like").predict(X), expected, rtol=1e-6)


def test_parts_alone():
    home = get_backend("cupy_like", dtype="float64")
    x, y = home.array(X), home.array(X[:, :1])
    assert isinstance(Dense(2, activation="sigmoid")(x), Array)
    assert isinstance(Dropout(0.5)(x, training=True), Array)
    value, slope = xn.losses.MeanSquaredError()(y, x[:, :1]), xn.losses.MeanSquaredError().value_and_grad(y, y)[1]
    assert isinstance(value, Array)
    assert isinstance(slope, Array)
    metric = xn.metrics.MeanSquaredError()
    for _ in range(2):
        metric.update_state(y, y)
    assert float(metric.result()) == 0.0
    optimizer, theta = Adam(0.1), home.array(np.ones(3))
    theta, state = optimizer.update(theta, theta, optimizer.init(theta))
    assert isinstance(optimizer.update(theta, theta, state)[0], Array)


def test_what_it_refuses():
    """The backend itself is as strict as documented."""
    a = get_backend("cupy_like").array([1.0, 2.0])
    xp, host = get_backend("cupy_like").xp, np.ones(2)
    for call in (lambda: a + host, lambda: host + a, lambda: np.asarray(a), lambda: xp.maximum(a, host),
                 lambda: xp.exp(host), lambda: xp.concat([a, host]), lambda: a == host,
                 lambda: xp.exp(2.0)):  # fmt: skip
        with pytest.raises(TypeError):
            call()
    with pytest.raises(AttributeError):
        xp.random  # noqa: B018
    for call in (lambda: operator.setitem(a, 0, a[1]), lambda: a.copy(), lambda: a.flags, lambda: a.data,
                 lambda: a.all()):  # fmt: skip
        with pytest.raises(TypeError, match="not in the floors that all backends share"):
            call()
    assert isinstance(xp.sum(a), Array)
    assert isinstance(xp.sum(a) * 2.0 + np.float32(1.0), Array)
    assert float(xp.sum(a)) == 3.0
    for call in (lambda: float(xp.sum(a)), lambda: bool(xp.all(a)), lambda: a[a > 1.0], a.get, lambda: list(a),
                 lambda: xp.asarray(2.0), lambda: xp.nonzero(a), lambda: [1, 2][xp.asarray(a, dtype=xp.int32)[0]],
                 lambda: a.item(), lambda: max(a[0], a[1])):  # fmt: skip
        with pytest.raises(RuntimeError, match="inside a step"), inside_a_step():
            call()

    def sees_the_donated(state, batch, finish):
        return (state[0] + batch,)

    run = get_backend("cupy_like").compile(sees_the_donated)
    assert taken(run, (a,), [xp.asarray(1.0, dtype=xp.float64)])[0].get().tolist() == [2.0, 3.0]
    with pytest.raises(RuntimeError, match="donated"):
        a.get()


def test_layers_do_not_write_to_elements():
    class Writes(xn.layers.Layer):
        def forward(self, ctx, params, x):
            x[0, ...] = x[1, ...]
            return x, lambda dy, into, want_dx=True: (dy, {})

    model = xn.Sequential([Writes(), Dense(1)], backend="cupy_like")
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match="an assignment to elements is not in the floors"):
        model.fit(X, X[:, :1], verbose=0)
