"""The layers; each defines its forward pass and its derivative in one function."""

from .activations import *
from .base import Layer, Stateless, registry
from .dense import *
from .dropout import *
from .normalization import *
from .shape import *
from .variable import Variable

__all__ = ["Layer", "Stateless", "Variable", "get", *registry.exports()]

get = registry.get
