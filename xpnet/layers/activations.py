"""Layers that apply an activation function."""

from __future__ import annotations

from typing import Any, ClassVar

from .. import activations, constraints, initializers, regularizers
from ..backend import Array
from ..core.settings import optional, part, setting
from ..errors import number
from ..kernels.context import Context
from .base import Backward, Layer, Stateless, registry

__all__ = ["ELU", "Activation", "LeakyReLU", "PReLU", "ReLU", "Sigmoid", "Softmax", "Tanh"]


class Applied(Stateless):
    """Base class of the layers that apply `activation`, a function."""

    ends_in_activation = True

    activation: ClassVar[Any] = None

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of f(x), which is that of x except for functions such as `"glu"`."""
        return self.activation.output_shape((0, *input_shape))[1:]

    def call(self, ctx: Context, x: Array) -> tuple[Array, Any]:
        """Return f(x); dx = f'(x) dy."""
        return ctx.ops.activate(ctx, x, self.activation)


@registry.register
class Activation(Applied):
    """y = f(x).

    Args:
        activation: a name or an object of `xpnet.activations.Activation`. name, dtype, trainable: see `Layer`.

    Raises:
        UnknownNameError: no activation has that name.

    >>> Activation("relu")([[-1.0, 2.0]]).tolist()
    [[0.0, 2.0]]
    """

    activation: Any = part(activations.get)  # type: ignore[misc]


class Function(Applied):
    """Base class of the layers of one function, which have its settings.

    A subclass sets `function`, a class, and declares settings of the same names.
    """

    function: ClassVar[type[activations.Activation]]

    def check_settings(self) -> None:
        """Make the function of the settings as they are now: a new object, so that it is traced anew."""
        settings = {name: getattr(self, name) for name in self.function._settings}
        vars(self)["activation"] = self.function(**settings)


@registry.register
class ReLU(Function):
    """y = max(x, 0), with a limit, a slope and a threshold: see `xpnet.activations.ReLU`.

    Args:
        max_value: upper limit, >= 0; None means no limit. negative_slope: the slope below the threshold, >= 0.
        threshold: >= 0; above it the slope is 1. name, dtype, trainable: see `Layer`.

    >>> ReLU(max_value=6.0)([[-1.0, 2.0, 9.0]]).tolist()
    [[0.0, 2.0, 6.0]]
    """

    function = activations.ReLU

    max_value: float | None = setting(optional(number), 0, default=None)
    negative_slope: float = setting(number, 0, default=0.0)
    threshold: float = setting(number, 0, default=0.0)


@registry.register
class LeakyReLU(Function):
    """y = x for x > 0, else negative_slope * x.

    Args:
        negative_slope: 0.01 as in PyTorch (Keras has 0.3 here). name, dtype, trainable: see `Layer`.
    """

    function = activations.LeakyReLU

    negative_slope: float = setting(number, default=0.01)


@registry.register
class ELU(Function):
    """y = x for x > 0, else alpha (exp(x) - 1).

    Args:
        alpha: y approaches -alpha as x goes to minus infinity. name, dtype, trainable: see `Layer`.
    """

    function = activations.Elu

    alpha: float = setting(number, default=1.0)


@registry.register
class Sigmoid(Function):
    """y = 1 / (1 + exp(-x)). Args: name, dtype, trainable (see `Layer`)."""

    function = activations.Sigmoid


@registry.register
class Tanh(Function):
    """y = tanh(x). Args: name, dtype, trainable (see `Layer`)."""

    function = activations.Tanh


@registry.register
class Softmax(Function):
    """y = exp(x) / sum(exp(x)) along an axis.

    Args:
        axis: counted in the whole array with its batch axis; -1 is the last one.
        name, dtype, trainable: see `Layer`.
    """

    function = activations.Softmax

    axis: int = setting(number, integer=True, default=-1)


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
