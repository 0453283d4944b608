"""Optimizers. Each declares its settings, its slots, the numbers of an update, and a formula."""

from .. import schedules  # where Keras has them
from .adafactor import *
from .adam import *
from .adaptive import *
from .base import Optimizer, OptimizerState, get, registry
from .descent import *
from .ftrl import *
from .lamb import *
from .lbfgs import *
from .muon import *

__all__ = ["Optimizer", "OptimizerState", "get", "schedules", *registry.exports()]
