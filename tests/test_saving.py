"""Model files, copies and pickles: they preserve a model, and a damaged file is refused."""

import copy
import json
import os
import pickle
import tracemalloc
from pathlib import Path

import cases
import numpy as np
import pytest

import xpnet as xn
from xpnet.backend import available_backends, get_backend
from xpnet.errors import FileFormatError, NotBuiltError, UnknownNameError, XpnetError
from xpnet.layers import BatchNormalization, Dense, Dropout, Flatten, Layer, PReLU
from xpnet.optimizers import SGD, Adam, AdamW, RMSprop
from xpnet.regularizers import L2

GOLDEN = Path(__file__).parent / "golden" / "version1.safetensors"
RNG = np.random.default_rng(0)
X = RNG.standard_normal((22, 3))
LABELS = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)


class Scale(Layer):
    """A user-defined layer."""

    def build(self, input_shape):
        self.add_weight("scale", input_shape, "ones")
        return input_shape

    def forward(self, ctx, params, x):
        def backward(dy, into, want_dx=True):
            return (dy * params["scale"] if want_dx else None), {"scale": ctx.xp.sum(dy * x, axis=-2)}

        return x * params["scale"], backward


def make(*more, seed=7, **kwargs):
    shared = Dense(5, activation="tanh", kernel_regularizer=L2(0.01), name="shared")
    frozen = Dense(5, name="frozen")
    frozen.trainable = False
    layers = [Dense(5), shared, PReLU(), Dropout(0.3), shared, BatchNormalization(), frozen, *more,
              Dense(3, activation="softmax")]  # fmt: skip
    model = xn.Sequential(layers, seed=seed, name="mine", **kwargs)
    model.compile(Adam(0.02), "sparse_categorical_crossentropy", ["accuracy"])
    return model


def fit(model, epochs=1, **kwargs):
    return model.fit(X, LABELS, batch_size=6, epochs=epochs, verbose=0, **kwargs).history


def same(a, b):
    """Equal bit for bit on NumPy, up to rounding elsewhere."""
    tolerance = 0.0 if get_backend().name == "numpy" else 1e-5
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.fixture
def file(tmp_path):
    """A trained model and its file."""
    model = make()
    fit(model)
    path = tmp_path / "model.safetensors"
    model.save(path)
    return model, path


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The weights of a trained model, and its file as bytes."""
    model, path = make(), tmp_path_factory.mktemp("content") / "model"
    fit(model)
    model.save(path)
    return model.get_weights(), path.read_bytes()


@pytest.fixture
def spoilt(content, tmp_path):
    """A file to damage."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content[1])
    return path


# Round trips ------------------------------------------------------------------------------------------------


def test_all_comes_back(file):
    model, path = file
    again = xn.load_model(path)
    same(again.get_weights(), model.get_weights())
    same([again.predict(X)], [model.predict(X)])
    host = model.backend.host
    same([host(s) for s in again.state.slots], [host(s) for s in model.state.slots])
    assert (again.step, again.epoch, again.seed, again.name) == (4, 1, 7, "mine")
    assert float(host(again.state.age)) == 4.0
    assert again.layers[1] is again.layers[4]
    assert not again.get_layer("frozen").trainable
    assert repr(again.layers) == repr(model.layers)
    assert repr(again.compiled) == repr(model.compiled)
    assert again.evaluate(X, LABELS) == pytest.approx(model.evaluate(X, LABELS), rel=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        AdamW(0.02, 0.1, global_clipnorm=0.5),
        SGD(0.02, 0.9, weight_decay=0.1, clipnorm=0.5),
        RMSprop(clipvalue=0.5),
    ],
)
def test_decay_and_clipping_come_back(optimizer, tmp_path):
    model = make()
    model.compile(optimizer, "sparse_categorical_crossentropy")
    fit(model)
    model.save(tmp_path / "model")
    again = xn.load_model(tmp_path / "model")
    assert repr(again.compiled) == repr(model.compiled)
    assert again.compiled.optimizer.get_config() == optimizer.get_config()
    fit(model)
    fit(again)
    same(again.get_weights(), model.get_weights())


@pytest.mark.parametrize("way", ["file", "deepcopy", "pickle"])
@pytest.mark.parametrize("kernels", ["1", "0"] if get_backend().name == "numpy" else ["1"])
def test_training_goes_on_as_if_it_had_not_stopped(way, kernels, tmp_path, monkeypatch):
    monkeypatch.setenv("XPNET_KERNELS", kernels)
    straight, stopped = make(), make()
    history = fit(straight, 4)
    first = fit(stopped, 2)
    if way == "file":
        stopped.save(tmp_path / "half")
        stopped = xn.load_model(tmp_path / "half")
    else:
        stopped = copy.deepcopy(stopped) if way == "deepcopy" else pickle.loads(pickle.dumps(stopped))
    second = fit(stopped, 2)
    for name, values in history.items():
        same([first[name] + second[name]], [values])
    same(stopped.get_weights(), straight.get_weights())
    host = straight.backend.host
    same([host(s) for s in stopped.state.slots], [host(s) for s in straight.state.slots])
    assert (stopped.step, stopped.epoch) == (straight.step, straight.epoch) == (16, 4)


def test_copies_are_of_their_own(file):
    model, path = file
    weights = model.get_weights()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), xn.load_model(path)):
        fit(other)
        assert not np.allclose(other.get_weights()[0], weights[0])
        same(other.layers[0].get_weights(), other.get_weights()[:2])
    same(model.get_weights(), weights)
    same(model.layers[0].get_weights(), weights[:2])


def test_pickles_hold_host_arrays(file):
    model, _ = file
    text = pickle.dumps(model)
    assert not any(word in text for word in (b"jaxlib", b"torch.", b"array_api_strict._array", b"torch\n_"))
    assert pickle.loads(text).backend is model.backend
    unbuilt = xn.Sequential([Dense(2)], seed=1)
    again = copy.deepcopy(unbuilt)
    assert not again.built
    same([again(X)], [unbuilt(X)])


@pytest.mark.parametrize("name", available_backends())
def test_files_do_not_know_their_backend(name, file):
    model, path = file
    device = "cpu" if name != "cupy" else None
    other = xn.load_model(path, backend=name, device=device)
    assert (other.backend.name, other.backend.dtype_name) == (name, "float32")
    np.testing.assert_allclose(other.predict(X), model.predict(X), rtol=1e-4, atol=1e-6)
    if name == "numpy":
        expected, found = fit(model), fit(other)
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_precision_of_a_file(tmp_path):
    model = make(dtype="float64")
    fit(model)
    model.save(tmp_path / "wide")
    again = xn.load_model(tmp_path / "wide")
    assert again.backend.dtype_name == "float64"
    same(again.get_weights(), model.get_weights())
    narrow = xn.load_model(tmp_path / "wide", dtype="float32")
    assert narrow.predict(X).dtype == np.float32
    np.testing.assert_allclose(narrow.predict(X), model.predict(X), rtol=1e-4)


def test_before_training_and_without_compile(tmp_path):
    for model in (make(), xn.Sequential([Dense(3)], seed=1)):
        model.build((3,))
        model.save(str(tmp_path / "early"))
        again = xn.load_model(str(tmp_path / "early"))
        same(again.get_weights(), model.get_weights())
        assert (again.compiled is None) == (model.compiled is None)
        assert again.step == 0
        if again.compiled:
            same([fit(again)["loss"]], [fit(model)["loss"]])
        else:
            with pytest.raises(NotBuiltError):
                fit(again)


def test_the_rate_that_was_set_is_kept(file):
    model, path = file
    model.optimizer.learning_rate = 0.125
    model.save(path)
    assert xn.load_model(path).optimizer.learning_rate == 0.125


def test_classes_of_ones_own(tmp_path):
    model = make(Scale())
    fit(model)
    model.save(tmp_path / "own")
    same(xn.load_model(tmp_path / "own", custom_objects={"Scale": Scale}).get_weights(), model.get_weights())
    with pytest.raises(UnknownNameError, match=r"own: unknown layer.* got 'Scale'$"):
        xn.load_model(tmp_path / "own")


def test_tensors_can_be_read_by_others(file):
    safetensors = pytest.importorskip("safetensors.numpy")
    model, path = file
    tensors = safetensors.load_file(path)
    np.testing.assert_array_equal(tensors["shared/kernel"], model.get_layer("shared").get_weights()[0])
    assert tensors["optimizer.0"].shape == (model.network.layout.size,)


GOLDEN_PREDICTIONS = [
    [0.304869, 0.357284, 0.337847],
    [0.309632, 0.356301, 0.334068],
    [0.182930, 0.353584, 0.463485],
    [0.107246, 0.315493, 0.577261],
]


def test_the_file_of_version_1_still_loads():
    """Made once on NumPy with `model = make(); fit(model, 2); model.save(GOLDEN)`, and never again."""
    model = xn.load_model(GOLDEN)
    assert (model.step, model.epoch, model.seed) == (8, 2, 7)
    x = np.arange(12.0).reshape(4, 3) / 6 - 1
    np.testing.assert_allclose(model.predict(x), GOLDEN_PREDICTIONS, rtol=1e-4)
    straight = make()
    fit(straight, 3)
    fit(model)  # training continues as it would have then
    np.testing.assert_allclose(model.predict(x), straight.predict(x), rtol=1e-3)


# Damaged files ----------------------------------------------------------------------------------------------


def rewrite(path, change):
    """Change the header of a file, with the correct length before it."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    changed = change(header)
    text = json.dumps(header if changed is None else changed).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest)


def describe(**changes):
    """Change the description in the header."""

    def change(header):
        description = json.loads(header["__metadata__"]["description"])
        for key, value in changes.items():
            *way, last = key.split("__")
            place = description
            for part in way:
                place = place[int(part) if part.isdigit() else part]
            place[int(last) if last.isdigit() else last] = value
        header["__metadata__"]["description"] = json.dumps(description)

    return change


def test_truncated_at_any_length(spoilt):
    path = spoilt
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for size in (0, 1, 7, 8, 9, 100, header - 1, header, header + 1, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(FileFormatError, match=f"model.safetensors .*truncated.* got {size} bytes$"):
            xn.load_model(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(FileFormatError, match=f"got {len(data) + 1} bytes$"):
        xn.load_model(path)


def test_any_altered_byte_of_the_data(spoilt):
    path = spoilt
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    for place in {*range(start, len(data), 97), start, len(data) - 1}:
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(FileFormatError, match="altered: its checksum"):
            xn.load_model(path)
        data[place] ^= 1


def test_any_altered_byte_of_the_header(tmp_path):
    model = xn.Sequential([Dense(2), Dropout(0.1), Dense(1)], seed=1)
    model.compile(SGD(0.1, momentum=0.5), "mse")
    model.fit(X, X[:, :1], verbose=0)
    path = tmp_path / "small"
    model.save(path)
    data = bytearray(path.read_bytes())
    stop = 8 + int.from_bytes(data[:8], "little")
    while data[stop - 1] == ord(" "):  # padding has no meaning
        stop -= 1
    spoilers = [1, ord('"'), ord("["), ord("9"), 255]
    for place in range(0, stop, 2 if model.backend.name == "numpy" else 37):
        original, value = data[place], spoilers[place // 2 % 5]
        if value != original:
            data[place] = value
            path.write_bytes(data)
            with pytest.raises(XpnetError):
                pytest.fail(f"byte {place} {xn.load_model(path)}")
        data[place] = original
    path.write_bytes(data)
    same(xn.load_model(path).get_weights(), model.get_weights())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["__metadata__"].update(format="pt"), "not a model file of xpnet; got format 'pt'$"),
        (lambda h: h.pop("__metadata__") and None, "not a model file of xpnet; got format None$"),
        (lambda h: h["__metadata__"].update(version="3"), "newer xpnet.* got '3'$"),
        (lambda h: h["__metadata__"].update(version=2), "header"),
        (lambda h: h["__metadata__"].update(version="0"), "got '0'$"),
        (lambda h: h["__metadata__"].update(description="[]"), "description"),
        (lambda h: h["__metadata__"].update(description="[" * 100_000), "description"),
        (lambda h: h["__metadata__"].update(description=None), "description"),
        (lambda h: h["__metadata__"].update(sha256="0" * 64), "altered.* got '0{64}'$"),
        (lambda h: h.pop("optimizer.0") and None, "leaves a hole before 'optimizer.1'"),
        (lambda h: h.update(odd=h.pop("optimizer.1")), "not those of its model; got .'odd'"),
        (lambda h: h["shared/kernel"].update(shape=[25]), "not those of its model; got .'shared/kernel'"),
        (lambda h: h["shared/kernel"].update(shape=5), "header"),
        (lambda h: h["shared/kernel"].update(shape=[[5], 5]), "header"),
        (lambda h: h["shared/kernel"].update(dtype="F16"), "wrong size; got 100 bytes$"),
        (lambda h: h["shared/kernel"].update(dtype="I32"), "not those of its model"),
        (lambda h: h["shared/kernel"].update(data_offsets=[-100, 0]), "header"),
        (lambda h: h["shared/kernel"].update(data_offsets=["0", "100"]), "header"),
        (lambda h: h["shared/kernel"].update(data_offsets=[0, 100, 200]), "header"),
        (lambda h: h["shared/kernel"].update(data_offsets=[0.5, 100.5]), "header"),
        (lambda h: {**h, "more": h["shared/kernel"]}, "overlaps"),
        (lambda h: {**h, "more": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, "not those.*more"),
        (lambda h: [h], "header"),
        (lambda h: {**h, "__metadata__": [1]}, "header"),
        (describe(model__layers__0__config__units=6), "takes inputs of shape .batch, 6."),
        (describe(model__layers__0__config__units=10**15), "takes inputs of shape"),
        (describe(model__layers__0__config__units="many"), "units must be an integer >= 1; got 'many'"),
        (describe(model__layers__0__config={"wrong": 1}), "Dense can't be made"),
        (describe(model__layers__0__class_name="Dnse"), "unknown layer; did you mean 'dense'"),
        (describe(model__layers__0__class_name=["Dense"]), "unknown layer"),
        (describe(model__layers=[99]), "can't be read"),
        (describe(model__layers=7), "can't be read"),
        (describe(model__input_shape=[10**18]), "not those of its model"),
        (describe(model__input_shape=[-3]), "input_shape must be positive"),
        (describe(model__input_shape=[3.0]), "can't be read"),
        (describe(model__input_shape=[True]), "can't be read"),
        (describe(model__input_shape=3), "can't be read"),
        (describe(model__layers=[-1]), "can't be read"),
        (describe(model__name="\ud800"), "surrogates"),
        (describe(model__layers__0__config__name="\ud800"), "surrogates"),
        (describe(model__name=7), "can't be read"),
        (describe(compile__graph="no"), "can't be read"),
        (describe(compile__metrics={"mse": 1}), "can't be read"),
        (describe(model__input_shape=["3"]), "can't be read"),
        (describe(compile__optimizer__class_name="Adamm"), "unknown optimizer; did you mean 'adam'"),
        (describe(compile__loss={}), "loss"),
        (describe(compile=5), "can't be read"),
        (describe(counters__step="x"), "step must be an integer >= 0; got 'x'$"),
        (describe(counters__step=-1), "step must be an integer >= 0; got -1$"),
        (describe(counters__step=2**63), "step must be at most 9223372036854775807; got 9223372036854775808$"),
        (describe(counters__epoch=10**30), "epoch must be at most"),
        (describe(counters__age=1e300), "age must be at most"),
        (describe(counters__age=float("nan")), "age must be a finite number"),
        (describe(counters__scale=[1e300, 0]), "scale must be"),
        (describe(counters__scale=[2.0]), "scale must have 0 or 2 numbers"),
        (describe(counters=None), "can't be read"),
        (describe(seed=-1), "seed must be an integer >= 0; got -1$"),
        (describe(dtype="float16"), "can't be read|unknown dtype"),
        (describe(dtype="float64"), "not those of its model"),
        (describe(dtype=None), "can't be read|unknown dtype"),
    ],
)  # fmt: skip
def test_headers_that_do_not_fit(change, message, spoilt, content):
    rewrite(spoilt, change)
    for kwargs in ({}, {"dtype": "float32"}):
        with pytest.raises(XpnetError, match=f"(?s).*{message}"):
            xn.load_model(spoilt, **kwargs)
    spoilt.write_bytes(content[1])
    same(xn.load_model(spoilt).get_weights(), content[0])


def test_declared_sizes_are_compared_before_memory_is_taken(tmp_path):
    model = xn.Sequential([Dense(4)], seed=1)
    model.build((3,))
    path = tmp_path / "huge"
    model.save(path)

    def change(header):
        describe(model__layers__0__config__units=10**10)(header)
        header["dense/kernel"]["shape"], header["dense/bias"]["shape"] = [3, 10**10], [10**10]

    rewrite(path, change)
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match=r"wrong size; got 48 bytes$|wrong size; got 16 bytes$"):
            xn.load_model(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80\x04\x95", b"PK\x03\x04" + b"\0" * 60, b"\x93NUMPY\x01\x00" + b" " * 100, b"\xff" * 100,
     (2**40).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"7 ",
     (200_000).to_bytes(8, "little") + b"[" * 200_000],
    ids=["empty", "pickle", "zip", "npy", "ones", "long header", "no model", "number", "deep"],
)  # fmt: skip
def test_other_files(data, tmp_path):
    path = tmp_path / "other.bin"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=r"other\.bin"):
        xn.load_model(path)


def test_a_pickle_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    (tmp_path / "bomb").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FileFormatError):
        xn.load_model(tmp_path / "bomb")
    assert not (tmp_path / "exploded").exists()


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        xn.load_model(tmp_path / "none")
    with pytest.raises(OSError, match=str(tmp_path)):
        xn.load_model(tmp_path)


# Saving that fails ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_file(fails, file, monkeypatch):
    model, path = file
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, full)
    fit(model)
    with pytest.raises(OSError, match="No space"):
        model.save(path)
    monkeypatch.undo()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before
    model.save(path)
    same(xn.load_model(path).get_weights(), model.get_weights())


def test_places_that_can_not_be_written(file, tmp_path):
    model, path = file
    with pytest.raises(FileNotFoundError):
        model.save(tmp_path / "none" / "model")
    with pytest.raises(OSError, match=str(tmp_path)):
        model.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(NotBuiltError, match=r"got 0 weights$"):
        make().save(tmp_path / "unbuilt")
    assert not (tmp_path / "unbuilt").exists()


@pytest.mark.parametrize("name", [name for name in cases.LAYERS if name != "input"])
def test_every_layer_is_saved_and_goes_on(name, tmp_path):
    """A loaded model predicts the same, and the next step, with its masks and noise, leaves the same weights."""
    layer = cases.LAYERS[name]()
    x = X[:8] if layer.classes is None else cases.layer_inputs(layer, (8, 3))
    model = xn.Sequential([*([Dense(3)] if layer.classes is None else []), layer, Flatten(), Dense(2)], seed=5)
    model.compile("adam", "mse")
    model.fit(x, X[:8, :2], batch_size=4, verbose=0)
    model.save(tmp_path / "model")
    again = xn.load_model(tmp_path / "model")
    same([model.predict(x)], [again.predict(x)])
    for each in (model, again):
        each.fit(x, X[:8, :2], batch_size=4, verbose=0)
    same(again.get_weights(), model.get_weights())
