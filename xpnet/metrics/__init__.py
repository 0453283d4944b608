"""Metrics: sums over batches, computed on the device, and the results computed from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import losses
from ..errors import InvalidTypeError
from .accuracy import *
from .base import Metric, Unweighted, registry
from .confusion import *
from .curves import *
from .f_score import *
from .from_losses import *
from .of_loss import *
from .reduction import *
from .regression import *

__all__ = ["Metric", "Unweighted", "get", *registry.exports()]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any:  # the classes made in `from_losses`
        ...


def get(identifier: Any) -> Metric:
    """Return a metric from a name or an object; a name becomes its key in the history.

    A loss, or the name of a loss of your own, becomes the metric `OfLoss`.

    Raises:
        UnknownNameError: no metric and no loss has that name. InvalidTypeError: it is a function.
    """
    if isinstance(identifier, losses.Loss):
        return OfLoss(identifier)
    if callable(identifier) and not isinstance(identifier, (Metric, type)):
        raise InvalidTypeError(
            f"a metric must derive from xpnet.metrics.Metric; for a function of targets and predictions pass "
            f"xpnet.metrics.MeanMetricWrapper(function); got {identifier!r}"
        )
    if isinstance(identifier, str) and identifier not in registry and identifier in losses.registry:
        return OfLoss(losses.get(identifier), name=identifier)
    metric = registry.get(identifier)
    if isinstance(identifier, str):
        metric.name = identifier
    return metric
