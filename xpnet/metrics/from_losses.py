"""A metric class for each registered loss that has none of its own, under the names of the loss."""

from __future__ import annotations

from typing import Any

from .. import losses
from ..core.config import snake_case
from ..core.settings import settings_of
from . import regression  # noqa: F401 - its classes come before those made here
from .base import Metric, registry
from .of_loss import OfLoss

__all__: list[str] = []


def _metric_of(cls: type[losses.Loss]) -> type[OfLoss]:
    """Return the metric class of a loss class: name, dtype and the loss's own settings, as in Keras."""
    own = {name: declared for name, declared in settings_of(cls).items() if name not in settings_of(losses.Loss)}

    def loss(self: Any) -> losses.Loss:
        return cls(**{name: getattr(self, name) for name in own})

    shown = f"{', '.join(('name', 'dtype', *own))}: see `Metric` and `losses.{cls.__name__}`"
    space = {
        "__module__": __name__,
        "__doc__": f"The mean over rows of the loss `losses.{cls.__name__}`. Args: {shown}.",
        "default_name": snake_case(cls.__name__),
        "direction": "min",
        "loss": property(loss, doc="The loss."),
        "name": Metric.name,
        "dtype": Metric.dtype,
        **own,
    }
    return type(cls.__name__, (OfLoss,), space)


for _loss in dict.fromkeys(losses.registry.classes.values()):
    if _loss.__name__ not in registry.classes:
        _made = _metric_of(_loss)
        registry.add(_made, **{name: _made for name, cls in losses.registry.classes.items() if cls is _loss})
        globals()[_loss.__name__] = _made
        __all__ += [_loss.__name__]
