"""The layers; each defines its forward pass and its derivative in one function."""

from .activations import *
from .base import Layer, Stateless, registry
from .combine import *
from .container import Container, add_gradients
from .dense import *
from .dropout import *
from .embedding import *
from .normalization import *
from .penalty import *
from .preprocessing import *
from .shape import *
from .variable import Variable

__all__ = ["Container", "Layer", "Stateless", "Variable", "add_gradients", "get", *registry.exports()]

get = registry.get
