"""Losses: each value beside its derivative.

For every row a loss returns a value and the derivative by the prediction, from one function: `Loss.terms`, or `at`
of an `Elementwise` loss. From scores ("logits") cross-entropies are stable and dz = a - y exactly. If a model ends
in softmax or sigmoid, its cross-entropy is fused with that activation (`fuses`) and computed from the scores.
"""

from __future__ import annotations

from typing import Any

from ..errors import InvalidTypeError
from .base import Elementwise, Loss, registry
from .classification import *
from .focal import *
from .hinge import *
from .overlap import *
from .probabilistic import *
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
