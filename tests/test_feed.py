"""Sources of batches: the host, or a data set on the device, from which a captured step takes its batches.

The device is that of cupy_capture.py.
"""

import gc

import numpy as np
import pytest
from cupy_capture import clean_start, pretended_cupy

import xpnet as xn
from xpnet.backend import get_backend
from xpnet.backend.tree import leaves
from xpnet.callbacks import Callback
from xpnet.errors import NonFiniteError
from xpnet.layers import Dense, Dropout, Flatten
from xpnet.training.data import Data
from xpnet.training.feed import DeviceFeed, Feed, make_feed

if get_backend().name != "numpy":
    pytest.skip("it is the same on every backend under test: run once, with NumPy", allow_module_level=True)

RNG = np.random.default_rng(0)
X = RNG.standard_normal((22, 6))
CLASSES = np.argmax(X[:, :3], axis=1)
ONE_HOT = np.eye(3)[CLASSES]
WEIGHTS = RNG.uniform(0.5, 2.0, 22)


@pytest.fixture(autouse=True)
def device(monkeypatch):
    clean_start(monkeypatch)
    with pretended_cupy(monkeypatch) as engine:
        yield engine


def make(loss="sparse_categorical_crossentropy", backend="cupy", dtype="float32", device=None, **kwargs):
    layers = [Flatten(), Dense(5, activation="tanh"), Dropout(0.4), Dense(3, activation="softmax")]
    model = xn.Sequential(layers, seed=1, backend=backend, dtype=dtype, device=device)
    model.compile("adam", loss, ["accuracy"], **kwargs)
    return model


def fed_by(model, x, y, sample_weight=None, class_weight=None):
    """Return the feed of a fit to these data."""
    model.build(np.shape(x)[1:])
    return make_feed(model.session, model.session.program(), Data(x, y, sample_weight), class_weight)


def trained(device, held, x, y, loss="sparse_categorical_crossentropy", dtype="float32", compiled=None, **kwargs):
    device.free = 1 << 30 if held else -(1 << 30)
    model = make(loss, dtype=dtype, **(compiled or {}))
    weighting = {name: kwargs.get(name) for name in ("sample_weight", "class_weight")}
    assert isinstance(fed_by(model, x, y, **weighting), DeviceFeed) == held
    history = model.fit(x, y, batch_size=8, epochs=4, verbose=0, **kwargs).history
    return history, [np.array(model.backend.host(a)) for a in leaves(model.state)]


def the_same(device, x, y, **kwargs):
    """Train from data on the device and from the host: the bits are equal."""
    (history, state), (other, others) = (trained(device, held, x, y, **kwargs) for held in (True, False))
    assert history == other
    for a, b in zip(state, others, strict=True):
        assert a.tobytes() == b.tobytes()
    return history


def on_device(a):
    return get_backend("cupy").xp.asarray(a)


TARGETS = {
    "classes": (CLASSES, "sparse_categorical_crossentropy"),
    "bytes": (CLASSES.astype(np.uint8), "sparse_categorical_crossentropy"),
    "one-hot": (ONE_HOT, "categorical_crossentropy"),
    "one-hot of integers": (ONE_HOT.astype(int), "categorical_crossentropy"),
    "a column": (CLASSES[:, None], "sparse_categorical_crossentropy"),
}
INPUTS = {
    "float64": X,
    "float32": X.astype(np.float32),
    "bytes": (40 * np.abs(X)).astype(np.uint8),
    "int16": (40 * X).astype(np.int16),
    "booleans": X > 0,
    "images": X.reshape(22, 3, 2),
    "every other row": np.repeat(X, 2, axis=0)[::2],
    "columns first": np.asfortranarray(X),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("x", INPUTS)
def test_inputs(device, x, dtype):
    the_same(device, INPUTS[x], CLASSES, dtype=dtype)


@pytest.mark.parametrize("y", TARGETS)
def test_targets(device, y):
    target, loss = TARGETS[y]
    the_same(device, X, target, loss=loss)


@pytest.mark.parametrize(
    "kwargs",
    [{"sample_weight": WEIGHTS}, {"sample_weight": WEIGHTS[:, None]}, {"class_weight": {0: 3.0}},
     {"sample_weight": WEIGHTS, "class_weight": {1: 0.5, 2: 2.0}}, {"shuffle": False},
     {"compiled": {"steps_per_execution": 2}}, {"steps_per_execution": 5, "shuffle": False}],
    ids=str,
)  # fmt: skip
def test_ways_to_fit(device, kwargs):
    the_same(device, X, CLASSES, **kwargs)


def test_memory_maps(device, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, X)
    the_same(device, np.load(path, mmap_mode="r"), CLASSES)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int32"])
def test_data_on_the_device_stay_where_they_are(device, dtype):
    host = (40 * np.abs(X)).astype(dtype)
    x, y = on_device(host), on_device(CLASSES.astype(np.int32))
    model = make()
    feed = fed_by(model, x, y)
    assert isinstance(feed, DeviceFeed)
    held = [cell.cell_contents for cell in feed.run.step.__closure__]
    assert any(a is x for a in held)
    found = [trained(device, True, a, b)[1] for a, b in ((x, y), (host, CLASSES))]
    for a, b in zip(*found, strict=True):
        assert a.tobytes() == b.tobytes()
    assert x.values.tobytes() == host.tobytes()


def test_data_on_the_device_that_must_be_rearranged(device):
    wide = on_device(np.repeat(X, 2, axis=1))
    for x in (wide[:, ::2], on_device(X.astype(np.int16))):
        host = x.get()
        found = [trained(device, True, a, CLASSES)[1] for a in (x, host)]
        for a, b in zip(*found, strict=True):
            assert a.tobytes() == b.tobytes()


def test_bytes_stay_bytes(device):
    """28 x 28 pixels of an image take 784 bytes, not 3,136."""
    pixels = np.zeros((64, 784), np.uint8)
    for x, size in ((pixels, 64 * (784 + 4)), (pixels.astype(np.float64), 64 * (784 * 4 + 4))):
        model, y = make(), np.zeros(64, int)
        fed_by(model, x, y)
        gc.collect()
        device.free = 2 * size - 2 - device.pool.free_bytes()
        assert type(fed_by(model, x, y)) is Feed
        device.free += 2
        assert isinstance(fed_by(model, x, y), DeviceFeed)


@pytest.mark.parametrize("switch", ["XPNET_GRAPH", "graph=False", "XPNET_KERNELS", "backend"])
def test_only_recorded_steps_take_their_own_batches(monkeypatch, switch):
    if switch.startswith("X"):
        monkeypatch.setenv(switch, "0")
    model = make(graph=switch != "graph=False", backend="numpy" if switch == "backend" else "cupy")
    assert type(fed_by(model, X, CLASSES)) is Feed


@pytest.mark.parametrize("held", [True, False])
def test_a_step_that_is_held_back_is_found_again(device, held):
    """The host makes the batch once more, in the epoch's order and with its masks."""
    device.free = 1 << 30 if held else -(1 << 30)
    layers = [Dense(4, kernel_initializer="ones", name="first"), Dropout(0.5), Dense(3, activation="softmax")]
    model = xn.Sequential(layers, seed=1, backend="cupy")
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(X, CLASSES, batch_size=4, epochs=1, verbose=0)
    spoilt = X.copy()
    spoilt[7] = 3e38
    step = np.flatnonzero(model.session.stream.permutation(22, model.epoch) == 7)[0] // 4 + 1
    with pytest.raises(NonFiniteError, match=f"epoch 1, step {step} .* the output of layer 'first' is not finite"):
        model.fit(spoilt, CLASSES, batch_size=4, epochs=2, verbose=0)


def test_the_data_set_is_let_go_after_the_fit(device):
    def in_use():
        gc.collect()
        return sum(block.raw.size for block in device._blocks if block.used)

    model = make()
    model.fit(X, CLASSES, batch_size=8, epochs=3, verbose=0)
    before = in_use()
    model.fit(np.zeros((4096, 6)), np.zeros(4096, int), batch_size=2048, epochs=3, verbose=0)
    assert in_use() == before


def test_a_batch_is_brought_while_the_step_before_is_still_at_work(device):
    device.free = -(1 << 30)
    model = make()
    overlapped = []

    class Look(Callback):
        def on_train_batch_begin(self, batch, logs=None):
            recorder = model.session.program().recorder
            if recorder.stream._done < recorder.stream._asked:  # the last step has not run
                with recorder.feeding():
                    copied = on_device(np.ones(3))
                recorder.feeder.run()
                assert copied.memory[0] == 1.0
                overlapped.append(recorder.stream._done < recorder.stream._asked)

    model.fit(X, CLASSES, batch_size=8, epochs=5, verbose=0, callbacks=Look())
    assert overlapped[0] is False  # an uncaptured step reads the batch itself
    assert sum(overlapped) > 5


def test_memory_that_is_in_pieces(device, monkeypatch):
    """There seems to be space for the data set, but it is fragmented."""

    def alloc(size):
        if size == X.size * 4:
            raise MemoryError
        return device.pool.malloc(size)

    monkeypatch.setattr(device, "alloc", alloc)
    model = make()
    assert type(fed_by(model, X, CLASSES)) is Feed
    model.fit(X, CLASSES, batch_size=8, epochs=2, verbose=0)
    assert model.step == 6


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("held", [True, False])
def test_another_device_than_the_current_one(device, held, graph):
    """Everything a model does, on "cuda:1": in that device's memory, on its streams."""
    device.devices, device.free = 2, (1 << 30) * (1 if held else -1)
    models = [make(device=f"cuda:{i}", graph=graph) for i in range(2)]
    kwargs = {"batch_size": 8, "epochs": 3, "verbose": 0, "class_weight": {0: 3.0}, "sample_weight": WEIGHTS}
    found = []
    for model in models:
        model.build((6,))
        before = {id(block) for block in device._blocks}
        log = model.fit(X, CLASSES, validation_data=(X, ONE_HOT.argmax(1)), **kwargs).history
        found.append([log, model.evaluate(X, CLASSES), model.predict(X).tolist(),
                      model.train_on_batch(X, CLASSES), [w.tolist() for w in model.get_weights()]])  # fmt: skip
        used = {block.device for block in device._blocks if id(block) not in before}
        assert used == {int(model.backend.device_name[-1])}
    assert found[0] == found[1]
    models[0].to(device="cuda:1")
    assert models[0].evaluate(X, CLASSES) == models[1].evaluate(X, CLASSES)


def test_rows_are_uploaded_once_an_epoch(device, monkeypatch):
    """A step needs nothing from the host."""
    sizes, upload = [], device.upload
    monkeypatch.setattr(device, "upload", lambda host: (sizes.append(host.nbytes), upload(host))[1])
    model = make()
    model.build((6,))
    model.fit(X, CLASSES, batch_size=4, epochs=1, verbose=0)
    sizes.clear()
    model.fit(X, CLASSES, batch_size=4, epochs=5, verbose=0)
    assert sizes.count(22 * 4) == 5 + 1  # the order of each epoch, and the targets
    assert sum(s > 8 for s in sizes) == 5 + 2
