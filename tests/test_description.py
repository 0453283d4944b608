"""A file's description of its model: names, settings and counters are restored, or refused at once."""

import json
import sys

import numpy as np
import pytest

import xpnet as xn
from xpnet.errors import InvalidTypeError, InvalidValueError, XpnetError
from xpnet.layers import Dense, Input, Layer
from xpnet.optimizers import SGD, Adam
from xpnet.training import saving
from xpnet.training.network import name_layers

X = np.random.default_rng(0).standard_normal((8, 3))


class Noted(Layer):
    """A layer that keeps any argument."""

    def __init__(self, note=None, name=None, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.note = note

    def forward(self, ctx, params, x):
        return x, lambda dy, into, want_dx=True: (dy, {})


class Odd(Noted):
    """A layer with a weight whose name is not text."""

    def build(self, input_shape):
        self.add_weight("\ud800", (1,), trainable=False)
        return input_shape


class Telling(Noted):
    """A layer with its own `get_config`."""

    def get_config(self):
        return {"note": self.note, "name": self.name}


def there_and_back(model, path, **kwargs):
    model.save(path)
    return xn.load_model(path, custom_objects={"Noted": Noted, "Telling": Telling}, **kwargs)


def fitted(*layers, optimizer="adam", **kwargs):
    model = xn.Sequential([*layers, Dense(1)], seed=1)
    model.compile(optimizer, "mse", **kwargs)
    model.fit(X, X[:, :1], verbose=0)
    return model


# Names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize(
    "name", ["optimizer", "optimizer.0", "optimizer.0.", "__metadata__", "0", "stats", "ä \0\n'"]
)
def test_a_layer_may_have_any_name(name, version, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "VERSION", version)
    model = fitted(Dense(2, name=name))
    again = there_and_back(model, tmp_path / "model")
    assert again.layers[0].name == name
    for one, other in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    host = model.backend.host
    for one, other in zip(again.state.slots, model.state.slots, strict=True):
        np.testing.assert_array_equal(again.backend.host(one), host(other))
        assert host(other).any()


@pytest.mark.parametrize(
    "model",
    [
        lambda: xn.Sequential([Input((3,)), Dense(1, name="\ud800")]),
        lambda: xn.Sequential([Input((3,)), Dense(1)], name="a\udfff"),
        lambda: fitted(optimizer=Adam(name="\ud800")),
        lambda: fitted(Noted({"\udc00": 1})),
        lambda: fitted(Noted({1: "a", "1": "b"})),
        lambda: fitted(Odd()),
    ],
)
def test_what_is_no_text_is_not_saved(model, tmp_path):
    with pytest.raises(InvalidValueError, match=r"can't be written to a file; got |must be valid Unicode; got "):
        model().save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_what_json_can_not_say_is_not_saved(tmp_path):
    around = []
    around.append(around)
    for note, error in ((len, InvalidTypeError), ({1, 2}, InvalidTypeError), (around, XpnetError)):
        with pytest.raises(error, match=r"config .*; got "):
            fitted(Noted([note])).save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_naming_many_layers_takes_steps_in_proportion():
    steps = 0

    def count(frame, event, arg):
        nonlocal steps
        steps += 1
        return count if frame.f_code is name_layers.__code__ else None

    layers = [Dense(1) for _ in range(2000)] + [Dense(1, name="dense_7")]
    before = sys.gettrace()
    sys.settrace(count)
    try:
        name_layers(layers)
    finally:
        sys.settrace(before)
    assert steps < 40 * len(layers)
    assert [layer.name for layer in layers[:8]] == ["dense", *(f"dense_{i}" for i in (1, 2, 3, 4, 5, 6, 8))]
    assert len({layer.name for layer in layers}) == len(layers)


# Settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [True, False])
def test_graph_is_saved(graph, tmp_path):
    model = fitted(graph=graph)
    assert there_and_back(model, tmp_path / "model").compiled.graph is graph


def test_older_files_do_not_say_graph(tmp_path, monkeypatch):
    model = fitted()
    real = saving._compile_config
    monkeypatch.setattr(saving, "_compile_config", lambda m: {k: v for k, v in real(m).items() if k != "graph"})
    assert there_and_back(model, tmp_path / "model").compiled.graph is True


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(np.float32(0.1), np.float64(0.5), np.bool_(True), clipnorm=np.float32(1)),
        SGD(0.1, clipvalue=np.float16(1)),
        Adam(np.float32(0.1), np.float32(0.5), epsilon=np.float64(1e-3), global_clipnorm=np.asarray(1.0)),
        Adam(weight_decay=np.int64(1), clipnorm=np.int32(2)),
    ],
)
def test_numbers_of_numpy_are_saved(optimizer, tmp_path):
    model = fitted(Dense(np.int64(2)), optimizer=optimizer)
    again = there_and_back(model, tmp_path / "model")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    assert json.loads(json.dumps(again.optimizer.get_config())) == again.optimizer.get_config()


@pytest.mark.parametrize("layer", [Noted, Telling])
def test_numbers_of_numpy_are_saved_wherever_they_are(layer, tmp_path):
    note = {
        "sizes": (np.int64(1), [np.float32(0.5)]),
        "mask": np.array([True, False]),
        "inner": Noted(np.uint8(3)),
    }
    again = there_and_back(fitted(layer(note)), tmp_path / "model").layers[0].note
    assert (again["sizes"], again["mask"], again["inner"].note) == ([1, [0.5]], [True, False], 3)
    assert type(again["inner"]) is Noted


# Counters ---------------------------------------------------------------------------------------------------


def test_steps_of_64_bits_come_back(tmp_path):
    model = fitted()
    for step in (2**31, 2**63 - 1):
        model.session.state = model.state._replace(step=model.backend.count(step))
        assert there_and_back(model, tmp_path / "model").step == step
