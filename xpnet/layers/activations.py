"""Layers that apply an activation function."""

from __future__ import annotations

from typing import Any

from .. import activations, initializers, regularizers
from ..backend import Array
from ..context import Context
from .base import Backward, Layer

__all__ = ["Activation", "LeakyReLU", "PReLU", "ReLU", "Sigmoid", "Softmax", "Tanh"]


class Activation(Layer):
    """y = f(x).

    Args:
        activation: a name or an `xpnet.activations.Activation`. name, dtype, trainable: see `Layer`.

    Raises:
        UnknownNameError: no activation has that name.

    >>> Activation("relu")([[-1.0, 2.0]]).tolist()
    [[0.0, 2.0]]
    """

    ends_in_activation = True

    def __init__(
        self, activation: Any, name: str | None = None, dtype: str | None = None, trainable: bool = True
    ) -> None:
        super().__init__(name=name, dtype=dtype, trainable=trainable)
        self.activation = activations.get(activation)

    def forward(self, ctx: Context, params: dict[str, Array], x: Array) -> tuple[Array, Backward]:
        """Return f(x); the backward is f'(x) dy."""
        xp, f = ctx.xp, self.activation
        y = f.forward(xp, x)

        def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
            return (f.backward(xp, dy, x, y) if want_dx else None), {}

        return y, backward


class _Fixed(Activation):
    function: type[activations.Activation]

    def __init__(self, name: str | None = None, dtype: str | None = None, trainable: bool = True) -> None:
        super().__init__(self.function(), name=name, dtype=dtype, trainable=trainable)


class ReLU(_Fixed):
    """y = max(x, 0). Args: name, dtype, trainable (see `Layer`)."""

    function = activations.ReLU


class Sigmoid(_Fixed):
    """y = 1 / (1 + exp(-x)). Args: name, dtype, trainable (see `Layer`)."""

    function = activations.Sigmoid


class Tanh(_Fixed):
    """y = tanh(x). Args: name, dtype, trainable (see `Layer`)."""

    function = activations.Tanh


class Softmax(_Fixed):
    """y = exp(x) / sum(exp(x)) along the last axis. Args: name, dtype, trainable (see `Layer`)."""

    function = activations.Softmax


class LeakyReLU(Activation):
    """y = x for x > 0, else negative_slope * x.

    Args:
        negative_slope: 0.01 as in PyTorch (Keras has 0.3 here). name, dtype, trainable: see `Layer`.
    """

    def __init__(
        self,
        negative_slope: float = 0.01,
        name: str | None = None,
        dtype: str | None = None,
        trainable: bool = True,
    ) -> None:
        leaky = activations.LeakyReLU(negative_slope)
        super().__init__(leaky, name=name, dtype=dtype, trainable=trainable)
        self.negative_slope = leaky.negative_slope


class PReLU(Layer):
    """y = x for x > 0, else alpha * x, with a learned alpha of the input's shape (K. He et al., ICCV 2015).

    Args:
        alpha_initializer, alpha_regularizer: where alpha starts (Keras: zeros), and its penalty.
        name, dtype, trainable: see `Layer`.

    d/dalpha = x dy where x <= 0, summed over the batch.

    >>> PReLU(alpha_initializer="ones")([[-3.0, 3.0]]).tolist()
    [[-3.0, 3.0]]
    """

    def __init__(
        self,
        alpha_initializer: Any = "zeros",
        alpha_regularizer: Any = None,
        name: str | None = None,
        dtype: str | None = None,
        trainable: bool = True,
    ) -> None:
        super().__init__(name=name, dtype=dtype, trainable=trainable)
        self.alpha_initializer = initializers.get(alpha_initializer)
        self.alpha_regularizer = regularizers.get(alpha_regularizer)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Declare alpha, one for each input."""
        self.add_weight("alpha", input_shape, self.alpha_initializer, regularizer=self.alpha_regularizer)
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
