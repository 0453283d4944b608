"""Names <-> classes, objects <-> plain dictionaries."""

import fractions
import json

import numpy as np
import pytest

from xpnet import layers
from xpnet.core.config import Configurable, Registry, snake_case
from xpnet.errors import InvalidTypeError, InvalidValueError, UnknownNameError


class Thing(Configurable):
    def __init__(self, size=1, inner=None, shape=()):
        self.size, self.inner, self.shape = size, inner, shape


class BigThing(Thing):
    def __init__(self, size=100):
        super().__init__(size)


THINGS = Registry("thing", Thing)
THINGS.add(Thing, BigThing, huge=BigThing)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("HeNormal", "he_normal"),
        ("PReLU", "prelu"),
        ("LeakyReLU", "leaky_relu"),
        ("ReLU", "relu"),
        ("SGD", "sgd"),
        ("RMSprop", "rmsprop"),
        ("L1L2", "l1l2"),
        ("MeanSquaredError", "mean_squared_error"),
        ("BatchNormalization", "batch_normalization"),
    ],
)
def test_snake_case(name, expected):
    assert snake_case(name) == expected


@pytest.mark.parametrize("name", ["BigThing", "big_thing", "BIG_THING", "huge", BigThing])
def test_get_by_name_or_class(name):
    found = THINGS.get(name)
    assert type(found) is BigThing
    assert found.size == 100


def test_get_keeps_objects_and_reads_dictionaries():
    thing = Thing(5)
    assert THINGS.get(thing) is thing
    made = THINGS.get({"class_name": "Thing", "config": {"size": 7}})
    assert (type(made), made.size) == (Thing, 7)


def test_custom_objects_come_first():
    class Mine(Thing):
        pass

    assert type(THINGS.get("mine", {"mine": Mine})) is Mine
    assert type(THINGS.get({"class_name": "Thing", "config": {}}, {"Thing": Mine})) is Mine


@pytest.mark.parametrize(
    ("identifier", "error", "says", "ends"),
    [
        ("big_thin", UnknownNameError, "did you mean 'big_thing'", "got 'big_thin'"),
        ({"class_name": "Nothing", "config": {}}, UnknownNameError, "unknown thing", "got 'Nothing'"),
        ({"class_name": None, "config": {}}, UnknownNameError, "unknown thing", "got None"),
        (
            {"class_name": "Thing", "config": {"colour": 1}},
            InvalidValueError,
            "thing Thing can't be made",
            "got {'colour': 1}",
        ),
        ({"class_name": "Thing"}, InvalidTypeError, "a name or an object of Thing", "got {'class_name': 'Thing'}"),
        (3.5, InvalidTypeError, "a name or an object of Thing", "got 3.5"),
        (None, InvalidTypeError, "a name or an object of Thing", "got None"),
        (int, InvalidTypeError, "a name or an object of Thing", "got <class 'int'>"),
    ],
)
def test_get_refuses(identifier, error, says, ends):
    with pytest.raises(error) as caught:
        THINGS.get(identifier)
    assert says in str(caught.value)
    assert str(caught.value).endswith(ends)


def test_config_is_plain_and_nested():
    config = Thing(2, BigThing(), (3, 4)).get_config()
    assert config == {"size": 2, "inner": {"class_name": "BigThing", "config": {"size": 100}}, "shape": [3, 4]}
    assert json.loads(json.dumps(config)) == config
    again = Thing.from_config(config)
    assert (type(again.inner), again.get_config()) == (BigThing, config)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(1.5), 1.5),
        (np.float64(0.1), 0.1),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.asarray(2.5), 2.5),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (fractions.Fraction(1, 4), 0.25),
        ((np.int32(1), [np.float16(2)]), [1, [2.0]]),
        ({np.int64(1): {"a": (np.float32(3),)}}, {1: {"a": [3.0]}}),
        ([BigThing(np.int64(5))], [{"class_name": "BigThing", "config": {"size": 5}}]),
    ],
)
def test_numbers_of_numpy_become_plain(value, expected):
    config = Thing(1, value).get_config()
    assert config["inner"] == expected
    assert repr(config["inner"]) == repr(expected)  # the types too
    assert json.loads(json.dumps(config))


def test_parts_are_made_at_any_depth():
    class Mine(Thing):
        pass

    config = Thing(1, [{"a": Mine(2, (Mine(3), BigThing()))}]).get_config()
    made = THINGS.get({"class_name": "Thing", "config": config}, {"Mine": Mine})
    inner = made.inner[0]["a"]
    assert (type(inner), inner.size, type(inner.inner[0]), type(inner.inner[1])) == (Mine, 2, Mine, BigThing)
    with pytest.raises(UnknownNameError, match=r"custom_objects.* got 'Mine'$"):
        THINGS.get({"class_name": "Thing", "config": config})


def test_repr_is_the_call_without_defaults():
    assert repr(Thing(2)) == "Thing(size=2)"
    assert repr(Thing(2, BigThing(), (3, 4))) == "Thing(size=2, inner=BigThing(), shape=(3, 4))"


def test_a_wrong_type_in_a_config_stays_one():
    with pytest.raises(InvalidTypeError, match="units"):
        layers.get({"class_name": "Dense", "config": {"units": None}})
