"""Optimizers: each is its settings, the slots that it keeps, the numbers of an update, and a formula."""

from .adam import Adam, AdamW
from .adaptive import Adagrad, RMSprop
from .base import Optimizer, OptimizerState, get, registry
from .descent import SGD, Momentum
from .lamb import Lamb

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Lamb", "Momentum", "Optimizer", "OptimizerState", "RMSprop", "get"]

registry.add(SGD, Momentum, RMSprop, Adagrad, Adam, AdamW, Lamb)
