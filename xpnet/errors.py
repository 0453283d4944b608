"""xpnet's exceptions: one hierarchy, each also derived from the matching built-in exception.

Every message says what was wrong, what was expected, and ends with what was received.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from typing import Any

__all__ = [
    "BackendError",
    "BusyError",
    "DownloadError",
    "FileFormatError",
    "InvalidTypeError",
    "InvalidValueError",
    "MissingExtraError",
    "NonFiniteError",
    "NotBuiltError",
    "ShapeError",
    "UnknownNameError",
    "XpnetError",
]


YES, NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")  # values of environment switches


class XpnetError(Exception):
    """Base class of all exceptions that xpnet raises."""


class InvalidValueError(XpnetError, ValueError):
    """An argument or a data set contains a value outside the documented range."""


class ShapeError(InvalidValueError):
    """An array has a shape that does not fit."""


class UnknownNameError(InvalidValueError):
    """An unknown name (of a layer, a loss, a backend, ...)."""


class InvalidTypeError(XpnetError, TypeError):
    """An argument has a type that can't be used, such as a table with text columns."""


class NotBuiltError(XpnetError, RuntimeError):
    """A layer or model was used before the necessary `build`, `compile`, ..."""


class BusyError(XpnetError, RuntimeError):
    """A model was to be trained or changed while another call trains it."""


class NonFiniteError(XpnetError, ArithmeticError):
    """A loss, a gradient or the new weights of a training step are NaN or infinite."""


class BackendError(XpnetError, ImportError):
    """The requested array library, device or precision is not available."""


class MissingExtraError(XpnetError, ImportError):
    """A feature needs an optional package; the message names the extra to install."""


class FileFormatError(XpnetError, ValueError):
    """A file is truncated, altered, of another format, or of a newer version."""


class DownloadError(XpnetError, OSError):
    """A data set is not on this machine and could not be downloaded."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """Return the error for an unknown `name`, with the closest known names.

    >>> unknown_name("activation", "rleu", ["relu", "tanh"])
    UnknownNameError("unknown activation; did you mean 'relu'? Known: relu, tanh; got 'rleu'")
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name).lower(), names, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    return UnknownNameError(f"unknown {kind}{hint} Known: {', '.join(names)}; got {name!r}")


def one_of(kind: str, value: Any, known: Iterable[str]) -> str:
    """Return `value` if it is one of the known names, else raise `UnknownNameError`.

    >>> one_of("mode", "min", ("min", "max"))
    'min'
    """
    names = tuple(known)
    if value not in names:
        raise unknown_name(kind, value, names)
    return value


def switch(variable: str, default: bool) -> bool:
    """Return whether an environment variable is switched on; `default` if it is unset or empty.

    Raises:
        UnknownNameError: the value is neither a yes nor a no.

    >>> switch("XPNET_SURELY_NOT_SET", True)
    True
    """
    word = os.environ.get(variable, "").strip()
    if not word:
        return default
    return one_of(variable, word.lower(), YES + NO) in YES


def number(
    what: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    open_low: bool = False,
    open_high: bool = False,
    integer: bool = False,
) -> Any:
    """Return `value` as a Python number, or raise if it is outside the interval.

    >>> number("rate", 0.2, 0, 1, open_high=True)
    0.2
    >>> number("units", 0, 1, integer=True)
    Traceback (most recent call last):
    ...
    xpnet.errors.InvalidValueError: units must be an integer >= 1; got 0
    """
    kind = "an integer" if integer else "a finite number"
    bounds = []
    if low is not None:
        bounds.append(f"{'>' if open_low else '>='} {low}")
    if high is not None:
        bounds.append(f"{'<' if open_high else '<='} {high}")
    expected = f"{what} must be {kind}{' ' + ' and '.join(bounds) if bounds else ''}"
    if isinstance(value, (str, bytes, bool)) or value is None:
        raise InvalidTypeError(f"{expected}; got {value!r}")
    try:
        result = float(value)
        if integer and result == int(result):
            result = int(value)
    except (TypeError, ValueError, OverflowError) as error:
        kind_of = InvalidTypeError if isinstance(error, TypeError) else InvalidValueError
        raise kind_of(f"{expected}; got {value!r}") from error
    outside = (
        not -float("inf") < result < float("inf")
        or (integer and not isinstance(result, int))
        or (low is not None and (result <= low if open_low else result < low))
        or (high is not None and (result >= high if open_high else result > high))
    )
    if outside:
        raise InvalidValueError(f"{expected}; got {value!r}")
    return result
