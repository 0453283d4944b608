"""Invalid arguments raise one clear error, and leave model and optimizer unchanged."""

from functools import lru_cache

import numpy as np
import pytest

import xpnet as xn
from xpnet import errors
from xpnet.backend import BACKENDS, NumpyBackend
from xpnet.layers import BatchNormalization, Dense, Dropout, Input, LeakyReLU
from xpnet.losses import BinaryCrossentropy, CategoricalCrossentropy, SparseCategoricalCrossentropy
from xpnet.optimizers import SGD, Adam, Momentum, RMSprop

RNG = np.random.default_rng(0)
X = RNG.standard_normal((12, 3))
Y = RNG.standard_normal((12, 1))
LABELS = np.arange(12) % 3
NAN = float("nan")
INF = float("inf")


def with_value(a, value, place=7):
    a = np.array(a, dtype="float64")
    a[place] = value
    return a


def regressor(**kwargs):
    model = xn.Sequential([Dense(4, activation="tanh"), BatchNormalization(), Dense(1)], seed=0, **kwargs)
    model.compile(Adam(0.01), "mse")
    return model


def classifier(**kwargs):
    model = xn.Sequential([Dense(3, activation="softmax")], seed=0, **kwargs)
    model.compile(SGD(0.01, momentum=0.5), "sparse_categorical_crossentropy", ["accuracy"])
    return model


@lru_cache
def trained(make):
    """A model shared by all tests, which may change it only by training."""
    model = make()
    model.fit(X, LABELS if make is classifier else Y, verbose=0)
    return model


def refused(call, expected, received, *words):
    """Assert one clear error: of its class (and xpnet's family), with these words, ending in what was received."""
    with pytest.raises(expected) as info:
        call()
    assert isinstance(info.value, errors.XpnetError)
    message = str(info.value)
    endings = (received,) if isinstance(received, str) else (repr(received), str(received))
    assert message.endswith(tuple(f"{start}{end}" for end in endings for start in ("got ", " ", "("))), message
    for word in words:
        assert word in message, message
    assert message == message.strip()
    assert info.value.__cause__ is None or not isinstance(info.value.__cause__, errors.XpnetError)


def snapshot(model):
    if not model.built:
        return model.built, model.step, model.epoch, [layer.built for layer in model.layers]
    host, state = model.backend.host, model.state
    arrays = [state.weights, *state.slots, state.stats, state.age, state.ok]
    compiled = model.compiled
    return [np.array(host(a)).tolist() for a in arrays], model.step, model.epoch, compiled, model.backend


class Chatty(xn.callbacks.Callback):
    def on_train_begin(self, logs=None):
        raise AssertionError("training began")


class Batches:
    """Returns batches by index, as data sets of other libraries do."""

    def __len__(self):
        return 3

    def __getitem__(self, i):
        if i >= 3:
            raise IndexError
        return np.ones((4, 3)), np.ones((4, 3))


VALUE, TYPE, SHAPE = errors.InvalidValueError, errors.InvalidTypeError, errors.ShapeError

# what, make, (x, y), further arguments, class, what is received, words of the message
DATA = [
    ("features", regressor, (X[:, :2], Y), {}, SHAPE, "('batch', 2)", ["('batch', 3)"]),
    ("more axes", regressor, (X[:, :, None], Y), {}, SHAPE, "('batch', 3, 1)", []),
    ("lengths", regressor, (X, Y[:-1]), {}, SHAPE, "12 and 11", ["y"]),
    ("weights' length", regressor, (X, Y), {"sample_weight": np.ones(11)}, SHAPE, "12 and 11", ["sample_weight"]),
    ("weights' shape", regressor, (X, Y), {"sample_weight": np.ones((12, 2))}, SHAPE, "(12, 2)", ["(12,)"]),
    ("no rows", regressor, (X[:0], Y[:0]), {}, SHAPE, "(0, 3)", ["x"]),
    ("no rows in a list", regressor, ([], []), {}, SHAPE, "(0,)", []),
    ("a number", regressor, (1.0, 2.0), {}, SHAPE, "()", []),
    ("no y", regressor, (X, None), {}, TYPE, None, ["targets"]),
    ("y's units", regressor, (X, np.ones((12, 2))), {}, SHAPE, "(12, 2)", ["(12, 1)"]),
    ("NaN in x", regressor, (with_value(X, NAN), Y), {}, VALUE, NAN, ["x", "row 7"]),
    ("inf in x", regressor, (with_value(X, -INF), Y), {}, VALUE, -INF, ["x", "row 7"]),
    ("NaN in y", regressor, (X, with_value(Y, NAN)), {}, VALUE, NAN, ["y", "row 7"]),
    ("NaN weight", regressor, (X, Y), {"sample_weight": with_value(np.ones(12), NAN)}, VALUE, NAN,
     ["sample_weight", "row 7"]),
    ("too large", regressor, (with_value(X, 1e39), Y), {}, VALUE, 1e39, ["x", "3.4e+38"]),
    ("half inf", regressor, (with_value(X, INF).astype("float16"), Y), {}, VALUE, INF, ["row 7"]),
    ("inf in a narrow type", lambda: regressor(dtype="float64"), (with_value(X, INF).astype("float32"), Y), {},
     VALUE, INF, ["row 7"]),
    ("text", regressor, (np.array([["a"] * 3] * 12), Y), {}, TYPE, "str32", ["x"]),
    ("text in a list", regressor, ([["a", "b", "c"]] * 12, Y), {}, TYPE, "<U1 (list)", ["numbers"]),
    ("complex", regressor, (X + 1j, Y), {}, TYPE, "complex128", ["x"]),
    ("ragged", regressor, ([[1, 2, 3], [1]], Y[:2]), {}, TYPE, "list", []),
    ("None", regressor, (None, Y), {}, TYPE, "object (NoneType)", []),
    ("label 3", classifier, (X, with_value(LABELS, 3).astype(int)), {}, VALUE, 3, ["0 to 2"]),
    ("label -1", classifier, (X, with_value(LABELS, -1).astype(int)), {}, VALUE, -1, ["0 to 2"]),
    ("label 0.5", classifier, (X, with_value(LABELS, 0.5)), {}, VALUE, 0.5, ["0 to 2"]),
    ("one-hot labels", classifier, (X, np.eye(3)[LABELS]), {}, SHAPE, "(12, 3)", ["categorical_crossentropy"]),
    ("masked x", regressor, (np.ma.masked_greater(X, 1), Y), {}, VALUE, f"{(X > 1).sum()} masked",
     ["x", "filled"]),
    ("masked y", regressor, (X, np.ma.masked_array(Y, Y > 1)), {}, VALUE, f"{(Y > 1).sum()} masked", ["y"]),
    ("masked weights", regressor, (X, Y), {"sample_weight": np.ma.masked_equal(np.arange(12.0), 3)}, VALUE,
     "1 masked", ["sample_weight"]),
    ("a generator", regressor, ((row for row in X), None), {}, TYPE, "generator",
     ["x", "all rows", "train_on_batch"]),
    ("an iterator", regressor, (zip(X, Y), Y), {}, TYPE, "zip", ["x", "all rows"]),
    ("targets from a generator", regressor, (X, (row for row in Y)), {}, TYPE, "generator", ["y", "all rows"]),
    ("a dictionary", regressor, ({"x": X}, Y), {}, TYPE, "dict", ["x", "all rows"]),
    ("batches by index", regressor, (Batches(), None), {}, TYPE, "Batches", ["x", "all rows"]),
    ("text labels", classifier, (X, np.array(["a", "b", "c"] * 4)), {}, TYPE, "str32", ["y", "return_inverse"]),
    ("text labels in a list", classifier, (X, ["a", "b", "c"] * 4), {}, TYPE, "<U1 (list)",
     ["y", "return_inverse"]),
    ("text labels of objects", classifier, (X, np.array(["a", "b", "c"] * 4, object)), {}, TYPE, "object",
     ["y", "return_inverse"]),
    ("validation features", regressor, (X, Y), {"validation_data": (X[:, :2], Y)}, SHAPE, "('batch', 2)", []),
    ("validation lengths", regressor, (X, Y), {"validation_data": (X, Y[:3])}, SHAPE, "12 and 3", []),
    ("validation NaN", regressor, (X, Y), {"validation_data": (X, with_value(Y, NAN))}, VALUE, NAN, ["row 7"]),
    ("validation labels", classifier, (X, LABELS), {"validation_data": (X, LABELS + 1)}, VALUE, 3, []),
    ("validation without y", regressor, (X, Y), {"validation_data": (X, None)}, TYPE, None, ["validation"]),
    ("validation of one", regressor, (X, Y), {"validation_data": (X,)}, TYPE, "tuple", ["(x, y)"]),
    ("validation array", regressor, (X, Y), {"validation_data": X}, TYPE, "ndarray", ["(x, y)"]),
]  # fmt: skip


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize(
    ("make", "data", "kwargs", "expected", "received", "words"), [d[1:] for d in DATA], ids=[d[0] for d in DATA]
)
def test_data_that_do_not_fit(make, data, kwargs, expected, received, words, first):
    model = make() if first else trained(make)
    good = (X, LABELS if make is classifier else Y)
    if first and received in ("('batch', 2)", "('batch', 3, 1)"):
        model.build((3,))
    before = snapshot(model)
    refused(lambda: model.fit(*data, verbose=0, callbacks=Chatty(), **kwargs), expected, received, *words)
    assert snapshot(model) == before
    if "validation_data" not in kwargs:
        refused(lambda: model.train_on_batch(*data, **kwargs), expected, received, *words)
        assert snapshot(model) == before
        if not first:
            refused(lambda: model.evaluate(*data, verbose=0, **kwargs), expected, received, *words)
            if data[1] is good[1] and not kwargs:
                refused(lambda: model.predict(data[0]), expected, received, *words)
            assert snapshot(model) == before
    if first and model.backend.name == "jax":  # compiling each takes long
        model.build((3,))
    else:
        history = model.fit(*good, verbose=0)  # a correct call works right after
        assert np.isfinite(history.history["loss"]).all()


def test_a_failed_first_fit_does_not_settle_shapes():
    model = regressor()
    refused(lambda: model.fit(np.ones((4, 7)), Y, verbose=0), SHAPE, "4 and 12")
    refused(lambda: model.fit(np.ones((12, 7)), Y * NAN, verbose=0), VALUE, NAN)
    model.fit(X, Y, verbose=0)
    assert model.input_shape == (3,)


@pytest.mark.parametrize("labels", [LABELS, LABELS.astype(float), LABELS[:, None], LABELS.astype("uint8"),
                                    LABELS.tolist()])  # fmt: skip
def test_labels_that_do_fit(labels):
    assert classifier().fit(X, labels, verbose=0).history["loss"][0] > 0


def test_targets_of_cross_entropies():
    for loss, layer, y, received in (
        ("binary_crossentropy", Dense(1, activation="sigmoid"), with_value(LABELS % 2, 2.0), 2.0),
        ("binary_crossentropy", Dense(1), with_value(LABELS % 2, -1.0), -1.0),
        ("categorical_crossentropy", Dense(3, activation="softmax"), np.eye(3)[LABELS] * 1.5, 1.5),
        ("perceptron", Dense(1), with_value(LABELS % 2, 5.0), 5.0),
    ):
        model = xn.Sequential([layer], seed=0)
        model.compile("sgd", loss)
        refused(lambda: model.fit(X, y, verbose=0), VALUE, received, "targets")  # noqa: B023
    model = xn.Sequential([Dense(1, activation="softmax")], seed=0)
    model.compile("sgd", "sparse_categorical_crossentropy")
    refused(lambda: model.fit(X, LABELS, verbose=0), SHAPE, "(12, 1)", "binary_crossentropy")


@pytest.mark.parametrize(
    ("activation", "loss", "y"),
    [("softmax", SparseCategoricalCrossentropy(from_logits=True), LABELS),
     ("softmax", CategoricalCrossentropy(from_logits=True), np.eye(3)[LABELS]),
     ("sigmoid", BinaryCrossentropy(from_logits=True), np.eye(3)[LABELS])],
)  # fmt: skip
def test_probabilities_are_not_scores(activation, loss, y):
    received = f"{type(loss).__name__}(from_logits=True)"
    model = xn.Sequential([Dense(3, activation=activation)], seed=0)
    model.compile("sgd", loss)  # the shapes are unknown
    refused(lambda: model.fit(X, y, verbose=0), VALUE, received, activation, "from_logits=False")
    assert not model.built
    model.compile("sgd", "mse")
    model.fit(X, np.eye(3)[LABELS], verbose=0)
    before = snapshot(model)
    refused(lambda: model.compile("sgd", loss), VALUE, received)
    assert snapshot(model) == before
    model.fit(X, np.eye(3)[LABELS], verbose=0)
    layered = xn.Sequential([Input((3,)), Dense(3), xn.layers.Activation(activation)], seed=0)
    refused(lambda: layered.compile("sgd", loss), VALUE, received)


def test_tables_with_text_name_the_columns():
    for library in ("pandas", "polars"):
        tables = pytest.importorskip(library)
        frame = tables.DataFrame({"a": [1.0, 2.0], "city": ["x", "y"], "b": [1, 2], "land": ["z", "z"]})
        model = regressor()
        refused(lambda: model.fit(frame, [1.0, 2.0], verbose=0), TYPE, "(city, land)", "x", "numeric")  # noqa: B023
        model.fit(frame[["a", "b"]], [1.0, 2.0], verbose=0)
        with pytest.raises(TYPE, match=r"y must .* numeric .*return_inverse"):
            model.fit(frame[["a", "b"]], frame["city"], verbose=0)


def sparse_of(library):
    if library == "scipy":
        return pytest.importorskip("scipy.sparse").csr_array, "toarray"
    torch = pytest.importorskip("torch")
    return lambda a: torch.tensor(a).to_sparse(), "to_dense"


@pytest.mark.parametrize("library", ["scipy", "torch"])
def test_what_is_sparse_names_the_way_out(library):
    make, way = sparse_of(library)
    for name, (x, y, weight) in {
        "x": (make(X), Y, None), "y": (X, make(Y), None), "sample_weight": (X, Y, make(np.ones((12, 1)))),
    }.items():  # fmt: skip
        kind = type(next(a for a in (x, y, weight) if not isinstance(a, np.ndarray) and a is not None)).__name__
        refused(lambda: regressor().fit(x, y, sample_weight=weight, verbose=0), TYPE, kind, name, f".{way}()")  # noqa: B023
    refused(lambda: trained(regressor).predict(make(X)), TYPE, type(make(X)).__name__, f".{way}()")
    refused(lambda: xn.activations.get("relu")(make(X)), TYPE, type(make(X)).__name__, f".{way}()")


def test_a_loader_of_batches():
    data = pytest.importorskip("torch.utils.data")
    torch = pytest.importorskip("torch")
    rows = data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    for given in (data.DataLoader(rows), rows):
        for call in (regressor().fit, trained(regressor).evaluate, trained(regressor).predict):
            refused(lambda: call(given), TYPE, type(given).__name__, "x", "all rows")  # noqa: B023


@pytest.mark.parametrize(
    ("make", "row"), [(lambda: [Dense(1)], np.ones(3)), (lambda: [xn.layers.Flatten(), Dense(1)], np.ones((5, 4)))]
)
def test_one_row_without_its_axis(make, row):
    model = xn.Sequential(make())
    model.compile("sgd", "mse")
    model.fit(row[None], [[1.0]], verbose=0)
    for call in (model.predict, model, lambda x: model.fit(x, row), model.layers[0]):
        refused(lambda: call(row), SHAPE, row.shape, "x[None]")  # noqa: B023
    refused(lambda: model.predict(row.reshape(-1)[:2]), SHAPE, (2,), f"{('batch', *row.shape)}")
    assert model.predict(row[None]).shape == (1, 1)


# Names ------------------------------------------------------------------------------------------------------

UNKNOWN = [
    (lambda: Dense(3, activation="rleu"), "rleu", "'relu'"),
    (lambda: Dense(3, kernel_initializer="glorot_unifrom"), "glorot_unifrom", "'glorot_uniform'"),
    (lambda: Dense(3, kernel_regularizer="l3"), "l3", "l2"),
    (lambda: regressor().compile("adaam", "mse"), "adaam", "'adam'"),
    (lambda: regressor().compile("adam", "msee"), "msee", "'mse'"),
    (lambda: regressor().compile("adam", "mse", ["acuracy"]), "acuracy", "'accuracy'"),
    (lambda: xn.Sequential([], backend="numppy"), "numppy", "'numpy'"),
    (lambda: xn.Sequential([], backend="numpy", dtype="float16"), "float16", "float32"),
    (lambda: regressor().to("jaxx"), "jaxx", "'jax'"),
    (lambda: regressor().fit(X, Y, verbose=3), 3, "auto"),
    (lambda: xn.callbacks.EarlyStopping(mode="up"), "up", "min"),
    (lambda: regressor().get_layer("dnse"), "dnse", "'dense'"),
    (lambda: xn.losses.MeanSquaredError(reduction="avg"), "avg", "mean"),
    (lambda: Adam(epsilon_on="rot"), "rot", "'root'"),
    (lambda: regressor().fit(X, Y, verbose=0, callbacks=xn.callbacks.EarlyStopping()), "val_loss", "loss"),
]


@pytest.mark.parametrize(("call", "name", "near"), UNKNOWN, ids=[str(u[1]) for u in UNKNOWN])
def test_unknown_names(call, name, near):
    refused(call, errors.UnknownNameError, repr(name), near)


@pytest.mark.parametrize(
    ("call", "expected", "received"),
    [
        (lambda: xn.Sequential([3]), TYPE, 3),
        (lambda: xn.Sequential(["dense"]), TYPE, "'dense'"),
        (lambda: xn.Sequential([Dense(2)]).add(None), TYPE, None),
        (lambda: regressor().compile(7, "mse"), TYPE, 7),
        (lambda: regressor().compile("sgd", len), TYPE, len),
        (lambda: regressor().compile("sgd", "mse", [len]), TYPE, len),
        (lambda: regressor().compile("sgd"), VALUE, None),
        (lambda: regressor().compile("sgd", "mse", ["mse", "mse"]), VALUE, ["mse", "mse"]),
        (lambda: regressor().compile("sgd", xn.losses.MeanSquaredError(reduction=None)), VALUE, "'none'"),
        (lambda: regressor().fit(X, Y, verbose=0, callbacks=[print]), TYPE, print),
        (lambda: regressor().fit(X, Y, verbose=0, class_weight=[1, 2]), TYPE, [1, 2]),
        (lambda: regressor().fit(X, Y, verbose=0, class_weight={0: "x"}), TYPE, "'x'"),
        (lambda: regressor().fit(X, Y, verbose=0, class_weight={0: NAN}), VALUE, NAN),
        (lambda: regressor().build((3, 0)), SHAPE, (3, 0)),
        (lambda: regressor().build("3"), SHAPE, "'3'"),
        (lambda: regressor().build(2.5), TYPE, 2.5),
        (lambda: Dense(2, name="a/b"), VALUE, "'a/b'"),
    ],
)
def test_things_of_the_wrong_kind(call, expected, received):
    refused(call, expected, received)


# Numbers ----------------------------------------------------------------------------------------------------


def fit_with(**kwargs):
    return lambda value: trained(regressor).fit(X, Y, **{"verbose": 0, **{key: value for key in kwargs}})


NUMBERS = [  # the call, values outside its documented interval, values inside
    ("batch_size", fit_with(batch_size=0), [0, -1, 2.5, NAN, "8"], [1, 100, 4.0]),
    ("epochs", fit_with(epochs=0), [-1, 1.5, True], [0, 1]),
    ("initial_epoch", fit_with(initial_epoch=0), [-1, 0.5], [0, 1]),
    ("validation_split", fit_with(validation_split=0), [-0.1, 1.0, 1.5, NAN, "half"], [0.0, 0.5]),
    ("validation_freq", fit_with(validation_freq=0), [0, 0.5], [1]),
    ("validation_batch_size", fit_with(validation_batch_size=0), [0, -3], [1]),
    ("steps_per_execution", fit_with(steps_per_execution=0), [0, -1, 1.5], [2]),
    ("steps_per_execution", lambda v: regressor().compile("sgd", "mse", steps_per_execution=v), [0, None], [1, 7]),
    ("learning_rate", SGD, [-0.1, NAN, INF, "fast", None], [0.0, 1e30]),
    ("learning_rate", lambda v: setattr(SGD(), "learning_rate", v), [-1, INF], [0, 1e38]),
    ("momentum", lambda v: SGD(0.1, momentum=v), [-0.1, 1.1], [0, 1]),
    ("beta", lambda v: Momentum(0.1, beta=v), [-0.1, 1.0], [0, 0.99]),
    ("rho", lambda v: RMSprop(rho=v), [-0.1, 1.0], [0]),
    ("epsilon", lambda v: RMSprop(epsilon=v), [-1e-9, NAN], [0.0]),
    ("beta_1", lambda v: Adam(beta_1=v), [-0.1, 1.0], [0]),
    ("beta_2", lambda v: Adam(beta_2=v), [-0.1, 1.0], [0]),
    ("epsilon", lambda v: Adam(epsilon=v), [-1e-9], [0.0]),
    ("units", Dense, [0, -2, 1.5, "3", None], [1, np.int64(2)]),
    ("rate", Dropout, [-0.1, 1.0, NAN], [0, 0.99]),
    ("momentum", lambda v: BatchNormalization(momentum=v), [-0.1, 1.1], [0, 1]),
    ("epsilon", lambda v: BatchNormalization(epsilon=v), [-1.0], [0]),
    ("slope", lambda v: LeakyReLU(v), [NAN, "x"], [0.2]),
    ("l2", xn.regularizers.L2, [-0.1, INF], [0]),
    ("label_smoothing", lambda v: CategoricalCrossentropy(label_smoothing=v), [-0.1, 1.1], [0, 1]),
    ("seed", lambda v: xn.Sequential([Dense(1)], seed=v), [-1, 0.5, "x"], [0, 2**40]),
    ("patience", lambda v: xn.callbacks.EarlyStopping(patience=v), [-1, 1.5], [0]),
    ("min_delta", lambda v: xn.callbacks.EarlyStopping(min_delta=v), [-1, NAN], [0]),
]


@pytest.mark.parametrize(("name", "call", "outside", "inside"), NUMBERS)
def test_numbers_outside_their_interval(name, call, outside, inside):
    for value in outside:
        kind = TYPE if isinstance(value, (str, bool)) or value is None else VALUE
        refused(lambda: call(value), kind, repr(value), f"{name} must")  # noqa: B023
    for value in inside:
        call(value)


def test_sizes_of_evaluate_and_predict():
    model = regressor()
    model.build((3,))
    for call in (lambda v: model.predict(X, batch_size=v), lambda v: model.evaluate(X, Y, batch_size=v)):
        refused(lambda: call(0), VALUE, 0, "batch_size")  # noqa: B023
    refused(lambda: model.fit(X, Y, validation_split=0.99, verbose=0, callbacks=Chatty()), VALUE, 0.99, "12 rows")


# Too early --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [lambda m: m.predict(X), lambda m: m.evaluate(X, Y), lambda m: m.save("never.safetensors"),
     lambda m: m.get_weights(), lambda m: m.set_weights([]), lambda m: m.summary(), lambda m: m.count_params(),
     lambda m: m.weights, lambda m: m.flat_weights, lambda m: m.input_shape, lambda m: m.layers[0].get_weights()],
)  # fmt: skip
def test_before_the_model_is_built(call):
    model = regressor()
    with pytest.raises(errors.NotBuiltError, match="built") as error:
        call(model)
    assert isinstance(error.value, RuntimeError)
    assert not model.built
    model.fit(X, Y, verbose=0)


def test_before_compile():
    model = xn.Sequential([Dense(1)], seed=0)
    model.build((3,))
    for call in (model.fit, model.evaluate, model.train_on_batch):
        refused(lambda: call(X, Y), errors.NotBuiltError, "no loss", "compile")  # noqa: B023
    refused(lambda: xn.Sequential([]).build((3,)), errors.NotBuiltError, "0 layers")


def test_a_failed_compile_keeps_the_former_one():
    model = regressor()
    model.fit(X, Y, verbose=0)
    before = snapshot(model)
    for wrong in (("adaam", "mse"), ("sgd", "msee"), ("sgd", "mse", ["what"]), ("sgd",), ("sgd", "mse", [], 0)):
        with pytest.raises(errors.XpnetError):
            model.compile(*wrong)
    assert snapshot(model) == before
    assert type(model.optimizer) is Adam
    model.fit(X, Y, verbose=0)


def test_weights_that_do_not_fit():
    model = regressor()
    model.fit(X, Y, verbose=0)
    before, weights = snapshot(model), model.get_weights()
    refused(lambda: model.set_weights(weights[:-1]), SHAPE, 7, "8 arrays")
    refused(lambda: model.set_weights([*weights[:-1], np.ones(2)]), SHAPE, (2,), "dense_1/bias", "(1,)")
    with pytest.raises(TYPE, match="numbers"):
        model.set_weights([*weights[:-1], ["x"]])
    with pytest.raises(TYPE, match="numbers"):
        model.set_weights([*weights[:-1], [[1.0], [1.0, 2.0]]])
    refused(lambda: model.layers[0].set_weights(weights[:1]), SHAPE, 1, "2 arrays")
    refused(lambda: model.layers[0].set_weights([weights[0].T, weights[1]]), SHAPE, (4, 3), "(3, 4)")
    assert snapshot(model) == before


def test_shapes_and_layers_that_do_not_fit():
    model = regressor()
    model.build((3,))
    refused(lambda: model.build((4,)), SHAPE, "('batch', 4)", "('batch', 3)")
    refused(lambda: model.add(Dense(1)), VALUE, repr(Dense(1)), "built")
    twice = xn.Sequential([Dense(1, name="a"), Dense(1, name="a")])
    refused(lambda: twice.build((3,)), VALUE, "'a' twice")
    taken = Dense(2)
    owner = xn.Sequential([taken])
    owner.build((3,))
    other = xn.Sequential([Dense(3), taken], seed=1)
    with pytest.raises(VALUE, match="belongs to another model"):
        other.build((3,))
    assert not other.built
    assert not other.layers[0].built
    different = Dense(2, name="shared")
    model = xn.Sequential([different, different])
    refused(lambda: model.build((3,)), SHAPE, "('batch', 2)", "shared")
    model.build((2,))  # the failed build has no effect
    with pytest.raises(SHAPE, match=r"got \('batch', 4\)$"):
        xn.Sequential([Input((3,)), Dense(1)])(np.ones((2, 4)))


# Backends ---------------------------------------------------------------------------------------------------


def test_backends_from_the_environment(monkeypatch):
    class Absent(NumpyBackend):
        name = package = "surely_not_installed"
        install = "pip install surely-not-installed"

        def _namespace(self):
            return __import__(self.package)

    monkeypatch.setitem(BACKENDS, "absent", Absent)
    monkeypatch.delenv("XPNET_DEVICE", raising=False)
    for name, device, expected, received, word in (
        ("numppy", None, errors.UnknownNameError, "'numppy'", "'numpy'"),
        ("absent", None, errors.BackendError, "'surely_not_installed'", "pip install surely-not-installed"),
        ("numpy", "cuda:0", errors.BackendError, "'cuda:0'", "cpu"),
        ("array_api_strict", "device9", errors.BackendError, "'device9'", "device1"),
    ):
        if name == "array_api_strict":
            pytest.importorskip(name)
        monkeypatch.setenv("XPNET_BACKEND", name)
        if device:
            monkeypatch.setenv("XPNET_DEVICE", device)
        refused(regressor, expected, received, word)
        monkeypatch.setenv("XPNET_BACKEND", "numpy")
        monkeypatch.delenv("XPNET_DEVICE", raising=False)
        assert regressor().fit(X, Y, verbose=0).history["loss"]
    monkeypatch.setenv("XPNET_DTYPE", "float128")
    refused(regressor, errors.UnknownNameError, "'float128'", "float64")


def test_cupy_without_a_device_says_so(monkeypatch):
    """Whether CuPy is missing or has no GPU: one error that says what is missing, and no silent fallback."""
    if "cupy" in xn.available_backends():
        pytest.skip("CuPy works here")
    monkeypatch.setenv("XPNET_BACKEND", "cupy")
    monkeypatch.delenv("XPNET_DEVICE", raising=False)
    with pytest.raises(errors.BackendError, match=r"install it with: pip install 'xpnet|no CUDA device"):
        regressor().fit(X, Y, verbose=0)


@pytest.mark.parametrize(
    ("variable", "value", "near"),
    [("XPNET_GRAPH", "fasle", "'false'"), ("XPNET_GRAPH", "2", "off"), ("XPNET_KERNELS", "fats", "'fast'"),
     ("XPNET_DTYPE", "float31", "'float32'")],
)  # fmt: skip
def test_a_word_that_a_variable_does_not_know(monkeypatch, variable, value, near):
    """It is an error, and the model is unchanged."""
    models = (regressor(), trained(regressor)) if variable != "XPNET_DTYPE" else ()
    monkeypatch.setenv(variable, value)
    for model in models:
        model.session._program = None
        before = snapshot(model)
        refused(lambda: model.fit(X, Y, verbose=0), errors.UnknownNameError, repr(value), variable, near)  # noqa: B023
        assert snapshot(model) == before
    if variable == "XPNET_DTYPE":
        refused(lambda: xn.activations.get("relu")(X), errors.UnknownNameError, repr(value), variable, near)
