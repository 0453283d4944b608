"""xpnet: neural networks in the Python array API standard, on NumPy, CuPy, PyTorch or JAX arrays.

>>> import xpnet as xn
>>> model = xn.Sequential([xn.layers.Dense(8, activation="tanh"), xn.layers.Dense(1)], seed=0)
>>> model.compile(optimizer=xn.optimizers.Adam(1e-2), loss="mse")
>>> x = [[i / 50] for i in range(100)]
>>> history = model.fit(x, [row[0] ** 2 for row in x], epochs=20, verbose=0)
>>> history.history["loss"][-1] < history.history["loss"][0]
True
"""

from . import (
    activations,
    backend,
    callbacks,
    datasets,
    errors,
    initializers,
    layers,
    losses,
    metrics,
    optimizers,
    regularizers,
    schedules,
    utils,
)
from .backend import available_backends, get_backend, use_backend
from .core.config import custom_object_scope
from .core.settings import setting
from .layers import Input
from .model import Sequential, load_model, model_from_json

__version__ = "0.1.0"

__all__ = [
    "Input",
    "Sequential",
    "__version__",
    "activations",
    "available_backends",
    "backend",
    "callbacks",
    "custom_object_scope",
    "datasets",
    "errors",
    "get_backend",
    "initializers",
    "layers",
    "load_model",
    "losses",
    "metrics",
    "model_from_json",
    "optimizers",
    "regularizers",
    "schedules",
    "setting",
    "use_backend",
    "utils",
]


def __dir__() -> list[str]:
    """Return what users use: the rooms below are importable, but not part of the interface."""
    return __all__
