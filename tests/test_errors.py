"""One family of exceptions; every message ends in what was received."""

import numpy as np
import pytest

from xpnet import errors
from xpnet.errors import InvalidTypeError, InvalidValueError, UnknownNameError, XpnetError, number, unknown_name

BUILT_IN = {
    "BackendError": ImportError,
    "DownloadError": OSError,
    "FileFormatError": ValueError,
    "InvalidTypeError": TypeError,
    "InvalidValueError": ValueError,
    "MissingExtraError": ImportError,
    "NonFiniteError": ArithmeticError,
    "NotBuiltError": RuntimeError,
    "BusyError": RuntimeError,
    "ShapeError": ValueError,
    "UnknownNameError": ValueError,
    "XpnetError": Exception,
}


def test_the_table_names_every_exception():
    assert set(errors.__all__) <= set(BUILT_IN) | {"number", "unknown_name"}


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_is_one_of_the_family_and_the_built_in_one(name):
    cls = getattr(errors, name)
    assert issubclass(cls, XpnetError)
    assert issubclass(cls, BUILT_IN[name])


@pytest.mark.parametrize(
    ("name", "near"),
    [("rleu", "'relu'"), ("RELU6", "'relu'"), ("tahn", "'tanh'"), ("zzz", None), (3, None), (None, None)],
)
def test_unknown_name_shows_the_nearest_and_all(name, near):
    error = unknown_name("activation", name, {"tanh", "relu"})
    assert isinstance(error, UnknownNameError)
    assert ("did you mean" in str(error)) == (near is not None)
    assert near is None or f"did you mean {near}" in str(error)
    assert str(error).endswith(f"Known: relu, tanh; got {name!r}")


@pytest.mark.parametrize(
    ("value", "kwargs", "expected"),
    [
        (0.2, {"low": 0, "high": 1}, 0.2),
        (0, {"low": 0}, 0.0),
        (1, {"high": 1}, 1.0),
        (np.float32(0.5), {}, 0.5),
        (3.0, {"integer": True}, 3),
        (np.int64(7), {"integer": True, "low": 1}, 7),
        (2**60 + 1, {"integer": True}, 2**60 + 1),  # not through a float
    ],
)
def test_number_accepts(value, kwargs, expected):
    result = number("x", value, **kwargs)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "kwargs", "error", "bounds"),
    [
        (-0.1, {"low": 0}, InvalidValueError, ">= 0"),
        (0, {"low": 0, "open_low": True}, InvalidValueError, "> 0"),
        (1, {"low": 0, "high": 1, "open_high": True}, InvalidValueError, ">= 0 and < 1"),
        (1.1, {"high": 1}, InvalidValueError, "<= 1"),
        (float("nan"), {}, InvalidValueError, "finite"),
        (float("inf"), {}, InvalidValueError, "finite"),
        (float("nan"), {"integer": True}, InvalidValueError, "an integer"),
        (float("-inf"), {"integer": True}, InvalidValueError, "an integer"),
        (2.5, {"integer": True}, InvalidValueError, "an integer"),
        (10**400, {}, InvalidValueError, "finite"),
        ("0.5", {}, InvalidTypeError, "a finite number"),
        (True, {}, InvalidTypeError, "a finite number"),
        (None, {}, InvalidTypeError, "a finite number"),
        ([1.0], {}, InvalidTypeError, "a finite number"),
        (1j, {}, InvalidTypeError, "a finite number"),
    ],
)
def test_number_refuses(value, kwargs, error, bounds):
    with pytest.raises(error) as caught:
        number("rate", value, **kwargs)
    assert str(caught.value).startswith("rate must be ")
    assert bounds in str(caught.value)
    assert str(caught.value).endswith(f"got {value!r}")


@pytest.mark.parametrize(
    ("word", "expected"),
    [("1", True), ("true", True), ("Yes", True), (" ON ", True), ("0", False), ("False", False), ("no", False),
     ("off", False), ("", "default"), (None, "default")],
)  # fmt: skip
def test_switch_knows_the_usual_words(monkeypatch, word, expected):
    monkeypatch.delenv("XPNET_TEST", raising=False)
    if word is not None:
        monkeypatch.setenv("XPNET_TEST", word)
    for default in (True, False):
        assert errors.switch("XPNET_TEST", default) is (default if expected == "default" else expected)


def test_switch_refuses_other_words(monkeypatch):
    monkeypatch.setenv("XPNET_TEST", "fasle")
    with pytest.raises(UnknownNameError, match=r"XPNET_TEST; did you mean 'false'.*got 'fasle'$"):
        errors.switch("XPNET_TEST", True)
