"""Layers that apply an activation function."""

from __future__ import annotations

from typing import Any

from .. import activations, constraints, initializers, regularizers
from ..backend import Array
from ..core.settings import part, setting
from ..errors import number
from ..kernels.context import Context
from .base import Backward, Layer, Stateless, registry

__all__ = ["Activation", "LeakyReLU", "PReLU", "ReLU", "Sigmoid", "Softmax", "Tanh"]


@registry.register
class Activation(Stateless):
    """y = f(x).

    Args:
        activation: a name or an `xpnet.activations.Activation`. name, dtype, trainable: see `Layer`.

    Raises:
        UnknownNameError: no activation has that name.

    >>> Activation("relu")([[-1.0, 2.0]]).tolist()
    [[0.0, 2.0]]
    """

    ends_in_activation = True

    activation: Any = part(activations.get)

    def call(self, ctx: Context, x: Array) -> tuple[Array, Any]:
        """Return f(x); dx = f'(x) dy."""
        return ctx.ops.activate(ctx, x, self.activation)


@registry.register
class ReLU(Activation):
    """y = max(x, 0). Args: name, dtype, trainable (see `Layer`)."""

    activation = activations.ReLU()


@registry.register
class Sigmoid(Activation):
    """y = 1 / (1 + exp(-x)). Args: name, dtype, trainable (see `Layer`)."""

    activation = activations.Sigmoid()


@registry.register
class Tanh(Activation):
    """y = tanh(x). Args: name, dtype, trainable (see `Layer`)."""

    activation = activations.Tanh()


@registry.register
class Softmax(Activation):
    """y = exp(x) / sum(exp(x)) along the last axis. Args: name, dtype, trainable (see `Layer`)."""

    activation = activations.Softmax()


@registry.register
class LeakyReLU(Activation):
    """y = x for x > 0, else negative_slope * x.

    Args:
        negative_slope: 0.01 as in PyTorch (Keras has 0.3 here). name, dtype, trainable: see `Layer`.
    """

    negative_slope: float = setting(number, default=0.01)

    @property  # type: ignore[misc]
    def activation(self) -> activations.Activation:
        """The function with the current slope: one object while the slope stays, so that it is traced once."""
        found = vars(self).get("_function")
        if found is None or found.negative_slope != self.negative_slope:
            found = vars(self)["_function"] = activations.LeakyReLU(self.negative_slope)
        return found


@registry.register
class PReLU(Layer):
    """y = x for x > 0, else alpha * x, with a learned alpha of the input's shape (K. He et al., ICCV 2015).

    Args:
        alpha_initializer: initial values of alpha: zeros, as in Keras.
        alpha_regularizer, alpha_constraint: its penalty, and what applies after each update; or None.
        name, dtype, trainable: see `Layer`.

    d/dalpha = x dy where x <= 0, summed over the batch.

    >>> PReLU(alpha_initializer="ones")([[-3.0, 3.0]]).tolist()
    [[-3.0, 3.0]]
    """

    alpha_initializer: Any = part(initializers.get, default="zeros", fixed=True)
    alpha_regularizer: Any = part(regularizers.get, default=None)
    alpha_constraint: Any = part(constraints.get, default=None)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Declare alpha, with one element per input feature."""
        rules = {"regularizer": self.alpha_regularizer, "constraint": self.alpha_constraint}
        self.add_weight("alpha", input_shape, self.alpha_initializer, **rules)
        return input_shape

    def forward(self, ctx: Context, params: dict[str, Array], x: Array) -> tuple[Array, Backward]:
        """Return max(x, 0) + alpha min(x, 0) and its backward."""
        xp = ctx.xp
        batch_axis = -1 - len(self.input_shape or ())
        alpha = xp.expand_dims(params["alpha"], axis=batch_axis)
        negative = xp.minimum(x, xp.zeros_like(x))

        def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
            dx = xp.where(x > 0, dy, alpha * dy) if want_dx else None
            return dx, {"alpha": xp.sum(dy * negative, axis=batch_axis)}

        return xp.maximum(x, xp.zeros_like(x)) + alpha * negative, backward
