"""The layers; each defines its forward pass and its derivative in one function."""

from .activations import Activation, LeakyReLU, PReLU, ReLU, Sigmoid, Softmax, Tanh
from .base import Layer, registry
from .dense import Dense
from .dropout import Dropout
from .normalization import BatchNormalization
from .shape import Flatten, Input

__all__ = [
    "Activation",
    "BatchNormalization",
    "Dense",
    "Dropout",
    "Flatten",
    "Input",
    "Layer",
    "LeakyReLU",
    "PReLU",
    "ReLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "get",
]

registry.add(
    Activation, BatchNormalization, Dense, Dropout, Flatten, Input, LeakyReLU, PReLU, ReLU, Sigmoid, Softmax, Tanh
)  # fmt: skip
get = registry.get
