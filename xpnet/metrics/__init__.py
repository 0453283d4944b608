"""Metrics: sums that add up over batches on the device, and what they come to."""

from __future__ import annotations

from typing import Any

from .. import losses
from ..errors import InvalidTypeError
from .accuracy import *
from .base import Metric, Unweighted, registry
from .confusion import *
from .of_loss import *

__all__ = ["Metric", "Unweighted", "get", *registry.exports()]


def get(identifier: Any) -> Metric:
    """Return a metric from a name or an object; a name becomes its key in the history.

    A loss, or the name of one, becomes the metric `OfLoss`.

    Raises:
        UnknownNameError: no metric and no loss has that name. InvalidTypeError: it is a bare function.
    """
    if isinstance(identifier, losses.Loss):
        return OfLoss(identifier)
    if callable(identifier) and not isinstance(identifier, (Metric, type)):
        raise InvalidTypeError(f"a metric must derive from xpnet.metrics.Metric; got {identifier!r}")
    if isinstance(identifier, str) and identifier not in registry and identifier in losses.registry:
        return OfLoss(losses.get(identifier), name=identifier)
    metric = registry.get(identifier)
    if isinstance(identifier, str):
        metric.name = identifier
    return metric
