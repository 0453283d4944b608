"""Settings: declared once, checked at every assignment, visible in signatures."""

import copy
import inspect
import pickle

import pytest

import xpnet as xn
from xpnet.core.config import Configurable, fingerprint, is_described
from xpnet.core.settings import flag, optional, part
from xpnet.errors import InvalidTypeError, InvalidValueError, XpnetError, number, one_of
from xpnet.layers import Dense, Input


class Base(Configurable):
    name: str | None = xn.setting(default=None, kw_only=True)


class Ramp(Base):
    start: float = xn.setting(number, 0)
    mode: str = xn.setting(one_of, ("up", "down"), default="up")
    limit: float | None = xn.setting(optional(number), 0, default=None)
    activation: object = part(xn.activations.get, default="tanh")

    def check_settings(self):
        if self.limit is not None and self.limit < self.start:
            raise InvalidValueError(f"limit must be at least start, {self.start}; got {self.limit}")


class Steep(Ramp):
    """A subclass with another default and an additional required setting."""

    slope: float = xn.setting(number)
    mode: str = xn.setting(one_of, ("up", "down"), default="down")


class Upwards(Ramp):
    """A subclass that fixes the mode."""

    mode = "up"


class Own(Ramp):
    """A class with its own constructor."""

    def __init__(self, start):
        super().__init__(start, "down")
        self.twice = 2 * start


def signature(cls):
    return str(inspect.signature(cls)).replace("'", "")


def test_the_signature_follows_keras_order():
    assert list(inspect.signature(Ramp).parameters) == ["start", "mode", "limit", "activation", "name"]
    assert list(inspect.signature(Steep).parameters) == ["slope", "start", "mode", "limit", "activation", "name"]
    assert list(inspect.signature(Upwards).parameters) == ["start", "limit", "activation", "name"]
    assert signature(Own) == "(start)"
    assert inspect.signature(Ramp).parameters["start"].annotation in (float, "float")
    assert inspect.signature(Ramp).parameters["mode"].default == "up"


def test_values_are_checked_and_kept():
    ramp = Ramp(1, "down", activation="relu", name="r")
    assert (ramp.start, type(ramp.start), ramp.mode, ramp.limit, ramp.name) == (1.0, float, "down", None, "r")
    assert repr(ramp) == "Ramp(start=1.0, mode='down', activation=ReLU(), name='r')"
    assert repr(Ramp.from_config(ramp.get_config())) == repr(ramp)
    assert Steep(2, 1).get_config()["mode"] == "down"
    assert "mode" not in Upwards(1).get_config()
    assert (Upwards(1).mode, Own(3).twice, Own(3).mode) == ("up", 6, "down")


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies(make):
    ramp = make(Ramp(1, activation="relu"))
    assert repr(ramp) == "Ramp(start=1.0, activation=ReLU())"
    with pytest.raises(InvalidValueError):
        ramp.start = -1


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: Ramp(), TypeError, r"^Ramp\(\) missing a required argument: 'start'$"),
        (lambda: Ramp(1, colour=2), TypeError, r"^Ramp\(\) got an unexpected keyword argument 'colour'$"),
        (lambda: Ramp(1, start=2), TypeError, r"^Ramp\(\) multiple values for argument 'start'$"),
        (lambda: Ramp(-1), InvalidValueError, "start must be .* got -1"),
        (lambda: Ramp("1"), InvalidTypeError, "start must be .* got '1'"),
        (lambda: Ramp(1, "sideways"), InvalidValueError, "unknown mode.* got 'sideways'"),
        (lambda: Ramp(2, limit=1), InvalidValueError, "at least start, 2.0; got 1.0"),
        (lambda: Ramp(1, activation="rleu"), InvalidValueError, "did you mean 'relu'"),
        (lambda: Steep(start=1), TypeError, "'slope'"),
        (lambda: Upwards(1, mode="up"), TypeError, "'mode'"),
    ],
)
def test_what_the_constructor_refuses(call, error, says):
    with pytest.raises(error, match=says):
        call()


@pytest.mark.parametrize(
    ("name", "value"), [("start", -1), ("start", None), ("mode", "sideways"), ("limit", 0.5), ("activation", 3)]
)
def test_what_an_assignment_refuses_changes_nothing(name, value):
    ramp = Ramp(1)
    before = repr(ramp)
    with pytest.raises(XpnetError):
        setattr(ramp, name, value)
    assert repr(ramp) == before


def test_an_assignment_is_converted():
    ramp = Ramp(1)
    ramp.activation, ramp.limit = "relu", 3
    assert repr(ramp) == "Ramp(start=1.0, limit=3.0, activation=ReLU())"
    assert flag("trainable", 0) is False


def test_a_fingerprint_tells_settings_apart():
    ramp = Ramp(1, activation=xn.activations.LeakyReLU(0.1))
    before = fingerprint(ramp)
    ramp.start, ramp.noted = 1, "no setting"
    assert fingerprint(ramp) == before
    ramp.activation.negative_slope = 0.2  # a setting of a part
    assert fingerprint(ramp) != before
    ramp.activation.negative_slope = 0.1
    assert fingerprint(ramp) == before
    ramp.mode = "down"
    assert fingerprint(ramp) != before
    assert fingerprint(ramp, ["mode"]) != fingerprint(ramp)
    ramp.mode, one = "up", fingerprint(ramp, ["mode"])
    assert fingerprint(ramp, ["mode"]) == one
    assert fingerprint([1, {"a": (ramp,)}]) == fingerprint([1, {"a": (ramp,)}])
    assert fingerprint([1]) != fingerprint([1.0]) != fingerprint([True])
    assert fingerprint(Base("a")) == fingerprint(Base("a")) != fingerprint(Base("b"))
    assert fingerprint([Ramp(1)]) != fingerprint([Ramp(1)])  # another object may have another hidden state


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("units", 5),
        ("use_bias", False),
        ("kernel_initializer", "zeros"),
        ("bias_initializer", xn.initializers.Ones()),
    ],
)
def test_what_has_decided_shapes_can_not_change(name, value):
    layer = Dense(2)
    setattr(layer, name, value)  # not built yet
    layer = Dense(2)
    xn.Sequential([Input((3,)), layer])
    before = layer.get_config()
    with pytest.raises(InvalidValueError, match=f"{name} can't change once a layer is built.* got "):
        setattr(layer, name, value)
    assert layer.get_config() == before
    setattr(layer, name, getattr(layer, name))  # its current value


def test_every_layer_can_be_frozen():
    for cls in set(xn.layers.registry.classes.values()):
        assert inspect.signature(cls).parameters["trainable"].default is True, cls


def test_a_fingerprint_holds_settings_that_the_constructor_does_not_take():
    own = Own(1)
    before = fingerprint(own)
    own.limit = 5.0
    assert fingerprint(own) != before
    assert is_described(Ramp(1))
    assert not is_described(own)  # `twice`
    assert is_described(own, "twice")
