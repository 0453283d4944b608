"""What `fit`, `evaluate` and `predict` accept: libraries, tables, dtypes, memory maps; never written to."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

import xpnet as xn
from xpnet.backend import available_backends, get_backend, library_of
from xpnet.errors import InvalidTypeError, InvalidValueError, ShapeError
from xpnet.layers import Dense
from xpnet.optimizers import SGD
from xpnet.testing import assert_close
from xpnet.training import feed
from xpnet.training.data import BLOCK_ELEMENTS, Column, Data, blocks, class_weights

RNG = np.random.default_rng(0)
X = RNG.integers(0, 100, (20, 3)).astype("float64") / 64  # exact in every floating dtype
Y = (X @ [[1.0], [-2.0], [0.5]]) / 2


def train(x, y, **kwargs):
    model = xn.Sequential([Dense(1)], seed=3, backend=kwargs.pop("backend", None))
    model.compile(SGD(0.1), "mse")
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, **kwargs)
    return model


@pytest.fixture(scope="module")
def expected():
    model = train(X, Y)
    return model.get_weights(), model.evaluate(X, Y), model.predict(X)


def read_only(a):
    a = np.array(a)
    a.flags.writeable = False
    return a


def strided(a):
    return np.repeat(np.repeat(np.asfortranarray(a), 2, axis=0), 2, axis=1)[::2, ::2]


class Mine(np.ndarray):
    """A foreign subclass."""


FORMS = {
    "float64": lambda a: a,
    "float32": lambda a: a.astype("float32"),
    "float16": lambda a: a.astype("float16"),
    "big endian": lambda a: a.astype(">f8"),
    "big endian float32": lambda a: a.astype(">f4"),
    "long double": lambda a: a.astype("longdouble"),
    "big endian float16": lambda a: a.astype(">f2"),
    "read only": read_only,
    "read only float32": lambda a: read_only(a.astype("float32")),
    "not contiguous": strided,
    "backwards": lambda a: a[::-1].copy()[::-1],
    "list": lambda a: a.tolist(),
    "tuple of arrays": lambda a: tuple(a),
    "subclass": lambda a: a.view(Mine),
    "matrix": lambda a: a.view(np.matrix),
    "a mask that hides nothing": lambda a: np.ma.masked_array(a, np.zeros(a.shape, bool)),
}


@pytest.mark.parametrize("form", FORMS)
def test_numpy_in_any_form(form, expected):
    x, y = FORMS[form](X), FORMS[form](Y)
    kept = np.array(x), np.array(y)
    model = train(x, y, validation_data=(x, y), sample_weight=FORMS[form](np.ones((20, 1))))
    found = model.get_weights(), model.evaluate(x, y), model.predict(x)
    for a, b in zip(found[0], expected[0]):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert found[1] == pytest.approx(expected[1], rel=1e-4)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-5, atol=1e-6)
    assert type(found[2]) is np.ndarray
    np.testing.assert_array_equal(x, kept[0])  # inputs are never written to
    np.testing.assert_array_equal(y, kept[1])


@pytest.mark.parametrize("name", available_backends())
def test_arrays_of_any_library(name, expected):
    home = get_backend(name, "cpu" if name != "cupy" else None)
    model = train(home.array(X, "float32"), home.array(Y, "float32"), sample_weight=home.array(np.ones(20)))
    for a, b in zip(model.get_weights(), expected[0]):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    mixed = train(X, home.array(Y, "float32"), validation_data=(home.array(X, "float32"), Y))
    np.testing.assert_allclose(mixed.predict(X), expected[2], rtol=1e-5, atol=1e-6)
    assert model.evaluate(home.array(X), Y) == pytest.approx(expected[1], rel=1e-4)


def test_tensors_that_require_gradients(expected):
    torch = pytest.importorskip("torch")
    x, y = torch.tensor(X, requires_grad=True), torch.tensor(Y, requires_grad=True)
    model = train(x, y)
    np.testing.assert_allclose(model.get_weights()[0], expected[0][0], rtol=1e-5, atol=1e-6)
    result = model.predict(x)
    assert library_of(result) == "torch"
    assert not result.requires_grad
    assert x.grad is None
    parameter = train(torch.nn.Parameter(x), y)
    np.testing.assert_allclose(parameter.get_weights()[0], expected[0][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_tables_and_series(library, expected):
    tables = pytest.importorskip(library)
    frame = tables.DataFrame({"a": X[:, 0], "b": X[:, 1], "c": X[:, 2]})
    model = train(frame, tables.Series(Y[:, 0]), sample_weight=tables.Series(np.ones(20)))
    np.testing.assert_allclose(model.get_weights()[0], expected[0][0], rtol=1e-5, atol=1e-6)
    assert model.evaluate(frame, tables.DataFrame({"y": Y[:, 0]})) == pytest.approx(expected[1], rel=1e-4)
    assert type(model.predict(frame)) is np.ndarray
    mixed = tables.DataFrame({"a": [1, 2], "b": [0.5, 1.5], "c": [True, False]})
    np.testing.assert_array_equal(Column(mixed, "x").values, [[1, 0.5, 1], [2, 1.5, 0]])
    with pytest.raises(InvalidValueError, match=r"row 1 got nan$"):
        Data(tables.DataFrame({"a": [1.0, None]})).check(1e30)


def with_columns(names):
    return lambda pd: pd.DataFrame(X, columns=names(pd))


PANDAS = {
    "numbers for names": with_columns(lambda pd: [0, 1, 2]),
    "tuples for names": with_columns(lambda pd: pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)])),
    "one name": with_columns(lambda pd: ["a", "a", "a"]),
    "nullable": lambda pd: pd.DataFrame(X).astype("Float64"),
    "two kinds": lambda pd: pd.DataFrame({0: X[:, 0], 1: pd.array(X[:, 1], dtype="Float64"), ("b", 2): X[:, 2]}),
    "arrow": lambda pd: pd.DataFrame(X, columns=["a", "b", "c"]).astype("float64[pyarrow]"),
    "lists": lambda pd: pd.Series(X.tolist()),
}


@pytest.mark.parametrize("form", PANDAS)
def test_frames_of_pandas(form, expected):
    pd = pytest.importorskip("pandas")
    if form == "arrow":
        pytest.importorskip("pyarrow")
    frame = PANDAS[form](pd)
    weights = pd.Series([1] * 20, dtype="Int64")
    model = train(frame, pd.Series(Y[:, 0]).astype("Float64"), sample_weight=weights)
    np.testing.assert_allclose(model.get_weights()[0], expected[0][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.predict(frame), expected[2], rtol=1e-5, atol=1e-6)
    text = frame.assign(**{"city": "x"}) if form in ("one name", "nullable", "arrow") else None
    if text is not None:
        with pytest.raises(InvalidTypeError, match=r"x must have numeric columns only.*\(city\)$"):
            Column(text, "x")


def test_kinds_that_know_gaps():
    """Without missing values they are numbers; a missing value is NaN, which is reported with its row."""
    pd = pytest.importorskip("pandas")
    for dtype, values in (("Int64", [1, 0]), ("Float64", [0.5, 1]), ("boolean", [True, False])):
        np.testing.assert_array_equal(Column(pd.Series(values, dtype=dtype), "y").values, np.array(values))
        mixed = pd.DataFrame({0: pd.Series(values, dtype=dtype), "b": pd.Series([True, False], dtype="boolean")})
        np.testing.assert_array_equal(Column(mixed, "x").values, np.column_stack([values, [1, 0]]))
        gap = pd.Series([values[0], None], dtype=dtype)
        for given in (gap, pd.DataFrame({"a": gap, "b": [True, False]})):
            with pytest.raises(InvalidValueError, match=r"missing values of a table are NaN\); in row 1 got nan$"):
                Data(np.ones(2), given).check(1e30)
    labels = pd.Series([0, 1] * 10, dtype="Int64")
    model = xn.Sequential([Dense(2, activation="softmax")], seed=0)
    model.compile(SGD(0.1), "sparse_categorical_crossentropy")
    assert model.fit(X, labels, verbose=0).history["loss"][0] > 0


@pytest.mark.parametrize("library", ["pyarrow", "polars"])
def test_columns_of_lists_and_gaps(library):
    tables = pytest.importorskip(library)
    make = tables.array if library == "pyarrow" else lambda values: tables.Series(values, strict=False)
    np.testing.assert_array_equal(Column(make(X.tolist()), "x").values, X)
    np.testing.assert_array_equal(Column(make([[[1, 2], [3, 4]], [[5, 6], [7, 8]]]), "x").values.shape, (2, 2, 2))
    for values in ([1, None], [0.5, None], [True, None]):
        with pytest.raises(InvalidValueError, match=r"row 1 got nan$"):
            Data(make(values)).check(1e30)
    with pytest.raises(InvalidTypeError, match="x must be an array of numbers"):
        Column(make([[1, 2], [3]]), "x")
    with pytest.raises(InvalidTypeError, match=r"y must .*return_inverse"):
        Column(make(["a", "b"]), "y")


def test_tables_of_pyarrow(expected):
    pa = pytest.importorskip("pyarrow")
    columns = {name: X[:, i] for i, name in enumerate("abc")}
    for table in (pa.table(columns), pa.record_batch(columns)):
        model = train(table, pa.chunked_array([Y[:5, 0], Y[5:, 0]]), sample_weight=pa.array([True] * 20))
        np.testing.assert_allclose(model.get_weights()[0], expected[0][0], rtol=1e-5, atol=1e-6)
    fixed = pa.array(X.tolist(), pa.list_(pa.float64(), 3))
    np.testing.assert_array_equal(Column(fixed, "x").values, X)
    mixed = pa.table({"a": [1, 2], "b": [True, False]})
    np.testing.assert_array_equal(Column(mixed, "x").values, [[1, 1], [2, 0]])
    with pytest.raises(InvalidTypeError, match=r"numeric columns only.*\(b\)$"):
        Column(pa.table({"a": [1, 2], "b": ["x", "y"]}), "x")


@pytest.mark.parametrize("kernels", ["bodies", "numpy", "fast"])
@pytest.mark.parametrize("kind", [">i4", ">i8", ">u2"])
def test_the_byte_order_does_not_matter(kind, kernels, monkeypatch):
    if kernels == "fast":
        pytest.importorskip("numba")
    monkeypatch.setenv("XPNET_KERNELS", kernels)
    labels, weights = np.arange(20) % 3, np.arange(20.0) + 1
    found = []
    for x, y, w in ((X, labels, weights), (X.astype(">f4"), labels.astype(kind), weights.astype(">f4"))):
        model = xn.Sequential([Dense(4, activation="relu"), Dense(3, activation="softmax")], seed=1)
        model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
        model.fit(x, y, batch_size=6, epochs=3, verbose=0)  # without weights, for which a compiled loop is used
        arguments = {"sample_weight": w, "class_weight": {1: 2.0}, "validation_split": 0.2, "verbose": 0}
        history = model.fit(x, y, batch_size=6, epochs=3, **arguments).history
        model.set_weights([np.asarray(a, dtype=x.dtype) for a in model.get_weights()])
        model.train_on_batch(x, y, w)
        found.append((history["loss"], history["val_loss"], model.evaluate(x, y), model.predict(x)))
    for a, b in zip(*found):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_images_of_bytes():
    images = RNG.integers(0, 256, (12, 4, 4)).astype("uint8")
    labels = (np.arange(12) % 3).astype("uint8")
    found = []
    for x in (images, images.astype("float32")):
        model = xn.Sequential([xn.layers.Flatten(), Dense(3, activation="softmax")], seed=1)
        model.compile(SGD(1e-4), "sparse_categorical_crossentropy", ["accuracy"])
        model.fit(x, labels, batch_size=5, verbose=0)
        found.append(model.predict(x))
    np.testing.assert_allclose(*found, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64"])
def test_integers_and_booleans(dtype):
    x = RNG.integers(0, 2, (20, 3))
    one, other = train(x.astype(dtype), x[:, :1].astype(dtype)), train(x.astype("float32"), x[:, :1] * 1.0)
    np.testing.assert_allclose(one.get_weights()[0], other.get_weights()[0], rtol=1e-6)


def test_one_feature_without_an_axis():
    one, other = train(X[:, 0], Y[:, 0]), train(X[:, :1], Y)
    np.testing.assert_array_equal(one.get_weights()[0], other.get_weights()[0])
    assert one.predict(X[:, 0].tolist()).shape == (20, 1)
    assert one.input_shape == (1,)


def test_numbers_beyond_single_precision():
    model = xn.Sequential([Dense(1)], seed=0, dtype="float64")
    model.compile(SGD(0.0), "mae")
    assert np.isfinite(model.fit(X * 1e39, Y, verbose=0).history["loss"][0])
    with pytest.raises(InvalidValueError, match=r"at most 3.4e\+38; in row 4 got 1e\+39$"):
        train(np.where(np.arange(20)[:, None] == 4, 1e39, X), Y)
    largest = float(np.finfo("float32").max)
    Data(np.array([largest, -largest])).check(largest)
    with pytest.raises(InvalidValueError, match="row 1"):
        Data(np.array([1.0, np.nextafter(largest, 1e39)])).check(largest)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_found_in_any_dtype(dtype, value):
    a = np.ones((4, 2), dtype=dtype)
    a[2, 1] = value
    for name in available_backends():
        if name == "array_api_strict" and dtype == "float16":
            continue  # the standard lacks it
        home = get_backend(name, "cpu" if name != "cupy" else None)
        with pytest.raises(InvalidValueError, match=f"x must be finite .* in row 2 got {value}$"):
            Data(home.array(a)).check(1.7e308)


# Without copies ---------------------------------------------------------------------------------------------


def test_a_memory_map_is_read_batch_by_batch(tmp_path):
    rows, features = 120_000, 100  # 48 MB
    x = np.memmap(tmp_path / "x", dtype="float32", mode="w+", shape=(rows, features))
    x[:, 0] = 1.0
    x.flush()
    x = np.memmap(tmp_path / "x", dtype="float32", mode="r", shape=(rows, features))
    y = np.zeros(rows, dtype="float32")
    model = xn.Sequential([Dense(1)], seed=0)
    model.compile(SGD(0.1), "mse")
    model.fit(x[:4096], y[:4096], batch_size=4096, verbose=0)  # compile, and allocate what persists
    tracemalloc.start()
    try:
        model.fit(x, y, batch_size=4096, verbose=0, validation_split=0.25)
        model.predict(x)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 2, peak


def test_columns_keep_the_array_itself():
    for a in (X, read_only(X), X[:, :2], np.asfortranarray(X)):
        assert Column(a, "x").values is a
        assert np.shares_memory(Data(a)._part(slice(2, 9)).x.values, a)
    home = get_backend()
    array = home.array(X)
    assert Column(array, "x").values is array
    taken = Column(array, "x").move(array, home, "float64")
    assert library_of(taken) == home.name


@pytest.mark.parametrize(
    "shape", [(1,), (BLOCK_ELEMENTS + 1,), (7, BLOCK_ELEMENTS), (3, BLOCK_ELEMENTS + 5), (1000, 999), (5, 0)]
)
def test_blocks_cover_every_row_once(shape):
    rows = [i for part in blocks(shape) for i in range(part.start, part.stop)]
    assert rows == list(range(shape[0]))
    assert all(
        (p.stop - p.start == 1) or (p.stop - p.start) * np.prod(shape[1:]) <= BLOCK_ELEMENTS for p in blocks(shape)
    )


def test_the_row_is_named_behind_the_first_block():
    x = np.zeros((BLOCK_ELEMENTS + 100,))
    x[BLOCK_ELEMENTS + 50] = np.nan
    with pytest.raises(InvalidValueError, match=f"row {BLOCK_ELEMENTS + 50} got nan"):
        Data(x).check(1e30)


# Batches ----------------------------------------------------------------------------------------------------


def test_a_batch(backend):
    data = Data(X, np.arange(20), np.linspace(1, 2, 20))
    rows = np.array([3, 0, 17])
    x, y, weight = data.batch(rows, backend, (), "int32", {0: 4.0})
    assert_close(backend.xp.asarray(x, device=backend.device), backend.array(X[rows], "float32"))
    np.testing.assert_array_equal(backend.host(y), rows)
    assert str(y.dtype).endswith("int32")
    np.testing.assert_allclose(backend.host(weight), np.linspace(1, 2, 20)[rows] * [1, 4, 1], rtol=1e-6)
    x, y, weight = data.batch(slice(4, 6), backend, (1,))
    assert (x.shape, y.shape, weight.shape) == ((2, 3), (2, 1), (2,))
    assert Data(X).batch(slice(0, 1), backend)[1:] == (None, None)


@pytest.mark.parametrize("y", [[0, 1, 2, 1], [[0], [1], [2], [1]], np.eye(3)[[0, 1, 2, 1]]])
def test_weights_of_classes(y, backend):
    found = class_weights(backend, backend.array(np.array(y, dtype="float32")), {1: 5, 2: 0.5})
    np.testing.assert_array_equal(backend.host(found), [1, 5, 0.5, 5])


STEPS = np.array([[0, 1, 2], [2, 2, 1], [1, 0, 0]])  # classes of three rows, three steps each
OF_STEPS = np.array([1.0, 10.0, 100.0])[STEPS] * [[1.0], [2.0], [3.0]]
LAYERS = {
    "sparse_categorical_crossentropy": (lambda: Dense(3, activation="softmax"), STEPS),
    "categorical_crossentropy": (lambda: Dense(3, activation="softmax"), np.eye(3)[STEPS]),
    "mse": (lambda: Dense(1), STEPS[..., None] * 1.0),
}


@pytest.mark.parametrize("given", ["both", "classes", "rows"])
@pytest.mark.parametrize("loss", LAYERS)
def test_weights_of_classes_of_steps(loss, given):
    """Outputs (rows, steps, units): a weight for each step of each row, times the row's weight."""
    layer, y = LAYERS[loss]
    x = np.random.default_rng(4).standard_normal((3, 3, 4))
    classes = {"class_weight": {1: 10.0, 2: 100.0}} if given != "rows" else {}
    rows = {"sample_weight": [1.0, 2.0, 3.0]} if given != "classes" else {}
    wanted = OF_STEPS / ([[1.0], [2.0], [3.0]] if given == "classes" else 1.0)
    wanted = np.ones((3, 3)) * [[1.0], [2.0], [3.0]] if given == "rows" else wanted
    model = xn.Sequential([layer()], seed=2, dtype="float64")
    model.compile(xn.optimizers.SGD(0.0), loss, weighted_metrics=["mae"])
    p = np.asarray(model(x))
    values = {
        "mse": lambda: (p - y)[..., 0] ** 2,
        "categorical_crossentropy": lambda: -np.log((p * y).sum(-1)),
        "sparse_categorical_crossentropy": lambda: -np.log((p * np.eye(3)[y]).sum(-1)),
    }[loss]()
    names = ["loss", "mae"] if loss != "sparse_categorical_crossentropy" else ["loss"]
    if len(names) == 1:
        model.compile(xn.optimizers.SGD(0.0), loss)
    scores = [(values * wanted).mean()]
    if len(names) == 2:
        scores.append(np.average(np.abs(p - y).mean(-1), weights=wanted))
    found = model.train_on_batch(x, y, **classes, **rows)
    assert np.atleast_1d(found) == pytest.approx(scores, rel=1e-9)
    for size, per_execution in ((3, 1), (2, 1), (1, 3)):
        history = model.fit(x, y, batch_size=size, verbose=0, steps_per_execution=per_execution, **classes, **rows)
        assert [history.history[n][0] for n in names] == pytest.approx(scores, rel=1e-9)


def test_weights_of_classes_on_a_device_that_feeds_itself():
    """The data set is held there, with its weights: see `feed._hold`."""
    b = xn.get_backend("numpy", dtype="float32")

    class Maker:
        fits = staticmethod(lambda device, size: True)
        can_pick = staticmethod(lambda values, device: True)

    model = SimpleNamespace(backend=b)
    for y, dtype, shape in ((STEPS, "int32", (3,)), (np.eye(3)[STEPS], None, (3, 3)), (STEPS, None, (3, 1))):
        program = SimpleNamespace(maker=Maker, target_dtype=dtype, target_shape=shape)
        data = Data(np.zeros((3, 3, 4)), y, [1.0, 2.0, 3.0])
        weight = feed._hold(model, program, data, {1: 10.0, 2: 100.0})[2]
        np.testing.assert_array_equal(weight, OF_STEPS)
        np.testing.assert_array_equal(feed._hold(model, program, data, None)[2], [1, 2, 3])


def test_splits():
    first, last = Data(X, Y, np.ones(20)).split(0.25)
    assert (len(first), len(last)) == (15, 5)
    np.testing.assert_array_equal(last.x.values, X[15:])
    np.testing.assert_array_equal(last.y.values, Y[15:])
    assert len(last.weight) == 5
    for share, kind in ((0.99, InvalidValueError), (1.0, InvalidValueError), ("x", InvalidTypeError)):
        with pytest.raises(kind):
            Data(X).split(share)


@pytest.mark.parametrize(
    ("x", "kind"), [([], ShapeError), (3.0, ShapeError), (np.zeros((0, 3)), ShapeError),
                    ("text", InvalidTypeError), ([["a"]], InvalidTypeError), ({"a": 1}, InvalidTypeError),
                    (X + 0j, InvalidTypeError),
                    (np.array(["2020-01-01"], dtype="datetime64"), InvalidTypeError)],
)  # fmt: skip
def test_what_is_no_column(x, kind):
    with pytest.raises(kind):
        Column(x, "x")


@pytest.mark.parametrize(
    "view", [np.asfortranarray, lambda x: np.repeat(x, 2, axis=1)[:, ::2], lambda x: x[::-1][::-1]]
)
@pytest.mark.parametrize("reuse", [True, False])
def test_rows_of_a_table_are_not_taken_from_a_copy_of_it(monkeypatch, view, reuse):
    """`take` would first make a contiguous copy of the whole array, for each batch."""

    def refuse(*args, **kwargs):
        raise AssertionError("a copy of the whole array")

    x = np.arange(60.0).reshape(20, 3)
    rows = np.array([3, 0, 19, 3], dtype=np.int32)
    given = view(x)
    if not given.flags.c_contiguous:
        monkeypatch.setattr("xpnet.training.data.gather", refuse)
        monkeypatch.setattr(np, "take", refuse)
    np.testing.assert_array_equal(Column(given, "x").take(rows, reuse), x[rows])


@pytest.mark.parametrize("name", available_backends())
@pytest.mark.parametrize(
    "layers", [[xn.layers.Flatten], [lambda: xn.layers.Dropout(0.5)], [lambda: xn.layers.Activation("linear")],
               [lambda: xn.layers.Input((3,)), xn.layers.Flatten]],
)  # fmt: skip
def test_outputs_do_not_share_memory_with_inputs(layers, name):
    """Even if no layer computes anything."""
    if name == "jax":
        pytest.skip("JAX's arrays can't be written to")
    home = get_backend(name, "cpu" if name != "cupy" else None)
    x = home.array(X, "float32")
    model = xn.Sequential([make() for make in layers])
    for outputs in (model(x), model.predict(x), model.predict(x[:5, ...])):
        outputs[0, 0] = 99.0
        assert not (home.host(x) == 99.0).any()


@pytest.mark.parametrize("how", ["fit", "train_on_batch", "evaluate", "predict", "set_weights"])
def test_numbers_too_small_for_the_precision_are_zero(how):
    """Whatever NumPy's error settings are."""
    tiny, labels = X * 1e-300, np.arange(20) % 3
    model = xn.Sequential([Dense(4, activation="sigmoid"), Dense(3, activation="softmax")], seed=0)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.build((3,))
    weights = [w.astype("float64") * 1e-300 for w in model.get_weights()]
    calls = {
        "fit": lambda: model.fit(tiny, labels, sample_weight=np.full(20, 1e-300), validation_data=(tiny, labels),
                                 class_weight={0: 1e-300}, verbose=0),
        "train_on_batch": lambda: model.train_on_batch(tiny, labels),
        "evaluate": lambda: model.evaluate(tiny, labels),
        "predict": lambda: model.predict(tiny),
        "set_weights": lambda: model.set_weights(weights),
    }  # fmt: skip
    with np.errstate(all="raise"):
        calls[how]()
    assert all(np.isfinite(w).all() for w in model.get_weights())
