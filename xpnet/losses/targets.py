"""What a loss takes as targets, and the checks of it: on the host, before the first step.

A loss declares one of these: `targets = PROBABILITIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..backend import np
from ..errors import InvalidValueError, ShapeError

__all__ = ["ANYTHING", "CLASS_NUMBERS", "LIKE_OUTPUTS", "ONE_HOT", "PROBABILITIES", "SIGNS", "Targets"]

Shape = tuple[int, ...]


class Targets(NamedTuple):
    """One kind of targets.

    Attributes:
        check_shape: `check_shape(who, targets, outputs)` raises unless targets of the shape `targets` fit outputs
            of the shape `outputs`, both with the batch axis. `who` is the class that the error names.
        check_values: `check_values(who, y, outputs)` raises unless the numbers of the host array `y` are allowed.
    """

    check_shape: Callable[[str, Shape, Shape], None]
    check_values: Callable[[str, np.ndarray, Shape], None]

    def check(self, who: str, y: np.ndarray, outputs: Shape) -> None:
        """Raise unless the host array `y` fits outputs of that shape."""
        self.check_shape(who, y.shape, outputs)
        self.check_values(who, y, outputs)


# Shapes -----------------------------------------------------------------------------------------------------


def _any_shape(who: str, targets: Shape, outputs: Shape) -> None:
    pass


def _same_shape(who: str, targets: Shape, outputs: Shape) -> None:
    column = outputs[-1] == 1
    if targets != outputs and not (column and targets == outputs[:-1]):
        raise ShapeError(
            f"{who} takes targets of the outputs' shape {outputs}"
            f"{f' or {outputs[:-1]}' if column else ''}; got {targets}"
        )


def _one_hot_shape(who: str, targets: Shape, outputs: Shape) -> None:
    _several_classes(who, outputs)
    if targets != outputs:
        raise ShapeError(
            f"{who} takes one-hot targets of shape {outputs} (for class numbers there is "
            f"'sparse_categorical_crossentropy'); got {targets}"
        )


def _one_number_a_row(who: str, targets: Shape, outputs: Shape) -> None:
    _several_classes(who, outputs)
    if targets not in (outputs[:-1], (*outputs[:-1], 1)):
        raise ShapeError(
            f"{who} takes class numbers of shape {outputs[:-1]} (for one-hot targets there is "
            f"'categorical_crossentropy'); got {targets}"
        )


def _several_classes(who: str, outputs: Shape) -> None:
    if outputs[-1] < 2:
        raise ShapeError(
            f"{who} needs an output for each of two or more classes (for one output there is "
            f"'binary_crossentropy'); got outputs of shape {outputs}"
        )


# Values -----------------------------------------------------------------------------------------------------


def _any_values(who: str, y: np.ndarray, outputs: Shape) -> None:
    pass


def _in_unit_interval(who: str, y: np.ndarray, outputs: Shape) -> None:
    _refuse(who, "targets in [0, 1]", y[~((y >= 0) & (y <= 1))])


def _plus_minus_one(who: str, y: np.ndarray, outputs: Shape) -> None:
    _refuse(who, "targets -1 (or 0) and 1", y[~np.isin(y, (-1, 0, 1))])


def _labels(who: str, y: np.ndarray, outputs: Shape) -> None:
    classes = outputs[-1]
    right = (y >= 0) & (y < classes) & (y == np.floor(y))
    _refuse(who, f"labels that are whole numbers from 0 to {classes - 1}", y[~right])


def _refuse(who: str, takes: str, wrong: np.ndarray) -> None:
    if wrong.size:
        raise InvalidValueError(f"{who} takes {takes}; got {wrong.flat[0].item()!r}")


ANYTHING = Targets(_any_shape, _any_values)
LIKE_OUTPUTS = Targets(_same_shape, _any_values)
PROBABILITIES = Targets(_same_shape, _in_unit_interval)  # of each output
SIGNS = Targets(_same_shape, _plus_minus_one)
ONE_HOT = Targets(_one_hot_shape, _in_unit_interval)  # probabilities of the classes
CLASS_NUMBERS = Targets(_one_number_a_row, _labels)
