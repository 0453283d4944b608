"""The arguments of `fit`, converted and checked once, as one record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..callbacks import Callback, check_callbacks, resolve_verbose
from ..errors import InvalidTypeError, number
from .data import Data, class_factors

__all__ = ["Job", "make_job", "rows_at_a_time", "training_data"]


class Job(NamedTuple):
    """The checked arguments of one call of `Sequential.fit`."""

    data: Data
    validation: Data | None
    validation_split: float
    batch_size: int
    epochs: int
    initial_epoch: int
    shuffle: bool
    verbose: Any
    callbacks: list[Callback]
    class_weight: Mapping[int, float] | None
    validation_batch_size: int
    validation_freq: int
    steps_per_execution: int

    def split(self) -> Job:
        """Return the job with the last rows split off for validation, if `validation_split` is set."""
        if self.validation is not None or not self.validation_split:
            return self
        data, validation = self.data.split(self.validation_split)
        return self._replace(data=data, validation=validation, batch_size=min(self.batch_size, len(data)))


def make_job(
    x: Any,
    y: Any,
    *,
    batch_size: int | None,
    epochs: int,
    verbose: Any,
    callbacks: Any,
    validation_split: float,
    validation_data: Any,
    shuffle: bool,
    class_weight: Mapping[int, float] | None,
    sample_weight: Any,
    initial_epoch: int,
    validation_batch_size: int | None,
    validation_freq: int,
    steps_per_execution: int,
) -> Job:
    """Return the arguments of `fit`, converted; `Session.admit` checks that they fit the model.

    Raises:
        InvalidTypeError, InvalidValueError, ShapeError: an argument is invalid.
    """
    size = rows_at_a_time(batch_size, 32)
    resolve_verbose(verbose)
    numbers = {
        "epochs": number("epochs", epochs, 0, integer=True),
        "initial_epoch": number("initial_epoch", initial_epoch, 0, integer=True),
        "validation_freq": number("validation_freq", validation_freq, 1, integer=True),
        "validation_split": number("validation_split", validation_split, 0, 1, open_high=True),
        "validation_batch_size": rows_at_a_time(validation_batch_size, size, "validation_batch_size"),
        "steps_per_execution": number("steps_per_execution", steps_per_execution, 1, integer=True),
    }
    found, factors = check_callbacks(callbacks), class_factors(class_weight)
    data = training_data(x, y, sample_weight)
    return Job(
        data=data,
        validation=_validation(validation_data),
        batch_size=min(size, len(data)),
        shuffle=bool(shuffle),
        verbose=verbose,
        callbacks=found,
        class_weight=factors,
        **numbers,
    )


def training_data(x: Any, y: Any, sample_weight: Any = None, what: str = "") -> Data:
    """Return inputs, targets and weights as one object. Args: what: prefix of error messages."""
    data = Data(x, y, sample_weight)  # first, so that errors in x are reported first
    if y is None:
        raise InvalidTypeError(f"{what}targets y are needed; got None")
    return data


def _validation(given: Any) -> Data | None:
    if given is None:
        return None
    if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
        raise InvalidTypeError(
            f"validation_data must be (x, y) or (x, y, sample_weight); got {type(given).__name__}"
        )
    x, y, *weight = given
    return training_data(x, y, weight[0] if weight else None, "validation_data: ")


def rows_at_a_time(batch_size: int | None, default: int = 1024, what: str = "batch_size") -> int:
    """Return the checked batch size, or the default if it is None."""
    return number(what, default if batch_size is None else batch_size, 1, integer=True)
