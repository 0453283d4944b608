"""Losses: each value beside its derivative.

A loss gives, for every row, a value and the derivative by the prediction, in one function: `Loss.terms`, or `at`
of a loss that is `Elementwise`. From scores ("logits") cross-entropies are stable and dz = a - y exactly. A model
that ends in softmax or sigmoid is joined with its cross-entropy (`fuses`), so that its scores are used.
"""

from __future__ import annotations

from typing import Any

from ..errors import InvalidTypeError
from .base import Elementwise, Loss, registry
from .classification import *
from .regression import *

__all__ = ["Elementwise", "Loss", "get", *registry.exports()]


def get(identifier: Any) -> Loss:
    """Return a loss from a name or an object.

    Raises:
        UnknownNameError: no loss has that name. InvalidTypeError: it is a bare function.
    """
    if callable(identifier) and not isinstance(identifier, (Loss, type)):
        raise InvalidTypeError(
            f"a loss needs its derivative too: derive from xpnet.losses.Loss and define terms; got {identifier!r}"
        )
    return registry.get(identifier)
