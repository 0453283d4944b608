"""Activation functions, each beside its derivative.

`forward(xp, z)` returns a = f(z); `backward(xp, da, z, a)` returns dz, the derivative's transpose times da. The
classes take settings; the functions with Keras' names are objects of them with the defaults:

>>> Gelu(approximate=True)
Gelu(approximate=True)
>>> leaky_relu([-1.0, 1.0], negative_slope=0.5).tolist()
[-0.5, 1.0]
"""

from __future__ import annotations

from typing import Any

from ..errors import InvalidTypeError
from .along_axis import *
from .base import Activation, registry
from .bounded import *
from .rectifiers import *
from .shrinking import *
from .smooth import *

linear, relu, relu6, leaky_relu, threshold = Linear(), ReLU(), ReLU6(), LeakyReLU(), Threshold()
elu, selu, celu, gelu, silu, mish = Elu(), Selu(), Celu(), Gelu(), Silu(), Mish()
exponential, softplus, squareplus, sparse_plus = Exponential(), Softplus(), Squareplus(), SparsePlus()
sigmoid, log_sigmoid, sparse_sigmoid, tanh, softsign = Sigmoid(), LogSigmoid(), SparseSigmoid(), Tanh(), Softsign()
hard_sigmoid, hard_silu, hard_tanh, step = HardSigmoid(), HardSilu(), HardTanh(), Step()
hard_shrink, soft_shrink, tanh_shrink = HardShrink(), SoftShrink(), TanhShrink()
softmax, log_softmax, sparsemax, glu = Softmax(), LogSoftmax(), Sparsemax(), Glu()
swish, hard_swish = silu, hard_silu

__all__ = [
    *("Activation", "get", *registry.exports()),
    *("celu", "elu", "exponential", "gelu", "glu", "hard_shrink", "hard_sigmoid", "hard_silu", "hard_swish"),
    *("hard_tanh", "leaky_relu", "linear", "log_sigmoid", "log_softmax", "mish", "relu", "relu6", "selu"),
    *("sigmoid", "silu", "soft_shrink", "softmax", "softplus", "softsign", "sparse_plus", "sparse_sigmoid"),
    *("sparsemax", "squareplus", "step", "swish", "tanh", "tanh_shrink", "threshold"),
]

OWN = """an activation needs its derivative too: pass an object of a class such as
    class Square(xpnet.activations.Activation):
        def forward(self, xp, z):
            return z * z

        def backward(self, xp, da, z, a):
            return da * 2.0 * z
"""


def get(identifier: Any) -> Activation:
    """Return an activation from a name or an object; None is linear.

    Raises:
        UnknownNameError: no activation has that name. InvalidTypeError: it is a bare function.

    >>> get("relu").name, get(None).name
    ('relu', 'linear')
    """
    if callable(identifier) and not isinstance(identifier, (Activation, type)):
        name = getattr(identifier, "__name__", None)
        hint = f"or the name {name!r}; " if name in registry else ""
        raise InvalidTypeError(f"{OWN}{hint}got {identifier!r}")
    return registry.get("linear" if identifier is None else identifier)
