"""Kinds of targets, and their checks, which run on the host before the first step.

A loss declares one of them: `targets = PROBABILITIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..backend import np
from ..errors import InvalidValueError, ShapeError

__all__ = [
    "ANYTHING",
    "CLASS_NUMBERS",
    "COUNTS",
    "HALF_OF_OUTPUTS",
    "LIKE_OUTPUTS",
    "ONE_HOT",
    "PROBABILITIES",
    "SIGNS",
    "Targets",
]

Shape = tuple[int, ...]


class Targets(NamedTuple):
    """One kind of targets.

    Attributes:
        check_shape: `check_shape(who, targets, outputs, axis)` raises unless targets of the shape `targets` fit
            outputs of the shape `outputs`, both with the batch axis. `who` is the class that the error names,
            `axis` that of the classes, if there are any.
        check_values: `check_values(who, y, classes)` raises unless all values of the host array `y` are allowed.
            `classes` is the number of outputs along `axis`.
    """

    check_shape: Callable[[str, Shape, Shape, Any], None]
    check_values: Callable[[str, np.ndarray, int], None]

    def check(self, who: str, y: np.ndarray, outputs: Shape, axis: Any = -1) -> None:
        """Raise unless the host array `y` fits outputs of that shape."""
        self.check_shape(who, y.shape, outputs, axis)
        self.check_values(who, y, outputs[axis] if isinstance(axis, int) else 0)


# Shapes -----------------------------------------------------------------------------------------------------


def _any_shape(who: str, targets: Shape, outputs: Shape, axis: Any) -> None:
    pass


def _same_shape(who: str, targets: Shape, outputs: Shape, axis: Any) -> None:
    column = outputs[-1] == 1
    if targets != outputs and not (column and targets == outputs[:-1]):
        raise ShapeError(
            f"{who} takes targets of the outputs' shape {outputs}"
            f"{f' or {outputs[:-1]}' if column else ''}; got {targets}"
        )


def _one_hot_shape(who: str, targets: Shape, outputs: Shape, axis: Any) -> None:
    _several_classes(who, outputs, axis)
    if targets != outputs:
        raise ShapeError(
            f"{who} takes one-hot targets of shape {outputs} (for class numbers there is "
            f"'sparse_categorical_crossentropy'); got {targets}"
        )


def _one_number_a_row(who: str, targets: Shape, outputs: Shape, axis: Any) -> None:
    _several_classes(who, outputs, axis)
    place = axis % len(outputs)
    rows, column = ((*outputs[:place], *kept, *outputs[place + 1 :]) for kept in ((), (1,)))
    if targets not in (rows, column):
        raise ShapeError(
            f"{who} takes class numbers of shape {rows} (for one-hot targets there is "
            f"'categorical_crossentropy'); got {targets}"
        )


def _half_shape(who: str, targets: Shape, outputs: Shape, axis: Any) -> None:
    if outputs[-1] % 2:
        raise ShapeError(f"{who} needs a mean and a variance for each target; got outputs of shape {outputs}")
    half = (*outputs[:-1], outputs[-1] // 2)
    if targets != half and not (half[-1] == 1 and targets == half[:-1]):
        raise ShapeError(f"{who} takes targets of shape {half} for outputs of shape {outputs}; got {targets}")


def _several_classes(who: str, outputs: Shape, axis: int) -> None:
    if outputs[axis] < 2:
        raise ShapeError(
            f"{who} needs an output for each of two or more classes (for one output there is "
            f"'binary_crossentropy'); got outputs of shape {outputs}"
        )


# Values -----------------------------------------------------------------------------------------------------


def _any_values(who: str, y: np.ndarray, classes: int) -> None:
    pass


def _in_unit_interval(who: str, y: np.ndarray, classes: int) -> None:
    _refuse(who, "targets in [0, 1]", y[~((y >= 0) & (y <= 1))])


def _not_negative(who: str, y: np.ndarray, classes: int) -> None:
    _refuse(who, "targets >= 0", y[~(y >= 0)])


def _plus_minus_one(who: str, y: np.ndarray, classes: int) -> None:
    _refuse(who, "targets -1 (or 0) and 1", y[~np.isin(y, (-1, 0, 1))])


def _labels(who: str, y: np.ndarray, classes: int) -> None:
    right = (y >= 0) & (y < classes) & (y == np.floor(y))
    _refuse(who, f"labels that are whole numbers from 0 to {classes - 1}", y[~right])


def _refuse(who: str, takes: str, wrong: np.ndarray) -> None:
    if wrong.size:
        raise InvalidValueError(f"{who} takes {takes}; got {wrong.flat[0].item()!r}")


ANYTHING = Targets(_any_shape, _any_values)
LIKE_OUTPUTS = Targets(_same_shape, _any_values)
COUNTS = Targets(_same_shape, _not_negative)
PROBABILITIES = Targets(_same_shape, _in_unit_interval)  # of each output
HALF_OF_OUTPUTS = Targets(_half_shape, _any_values)  # for a mean and a variance of each
SIGNS = Targets(_same_shape, _plus_minus_one)
ONE_HOT = Targets(_one_hot_shape, _in_unit_interval)  # probabilities of the classes
CLASS_NUMBERS = Targets(_one_number_a_row, _labels)
