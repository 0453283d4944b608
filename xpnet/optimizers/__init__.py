"""Optimizers: each is its settings, the slots that it keeps, the numbers of an update, and a formula."""

from .. import schedules  # where Keras has them
from .adam import *
from .adaptive import *
from .base import Optimizer, OptimizerState, get, registry
from .descent import *
from .lamb import *

__all__ = ["Optimizer", "OptimizerState", "get", "schedules", *registry.exports()]
