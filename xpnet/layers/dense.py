"""Fully connected layers."""

from __future__ import annotations

from typing import Any

from .. import activations, constraints, initializers, regularizers
from ..backend import Array
from ..core.settings import flag, part, setting
from ..errors import ShapeError, number
from ..kernels.context import Context
from .base import Backward, Layer, registry

__all__ = ["Dense", "Maxout"]

LINEAR = activations.get("linear")


@registry.register
class Dense(Layer):
    """y = f(x W + b) on the last axis.

    Args:
        units: size of the output's last axis.
        activation: f, a name or an `xpnet.activations.Activation`; None is linear.
        use_bias: whether there is a b.
        kernel_initializer, bias_initializer: initial values of W, shape (in, units), and b, shape (units,).
        kernel_regularizer, bias_regularizer: penalties (see `xpnet.regularizers`), or None.
        activity_regularizer: the same on the outputs; the penalty is divided by the number of rows.
        kernel_constraint, bias_constraint: apply after each update (see `xpnet.constraints`); or None.
        name, dtype, trainable: see `Layer`.

    Raises:
        InvalidValueError: units is not a positive integer. UnknownNameError: unknown name.

    With dz = f'(z) dy:  dW = x^T dz,  db = sum over rows of dz,  dx = dz W^T  (see `xpnet.core.ops.affine`).
    In the notes, A = f(W X + b) with samples as columns, so their W is the transpose: `kernel = W.T`.

    >>> layer = Dense(2, use_bias=False, kernel_initializer="ones")
    >>> layer([[1.0, 2.0, 3.0]]).tolist()
    [[6.0, 6.0]]
    """

    ends_in_activation = True

    units: int = setting(number, 1, integer=True, fixed=True)
    activation: Any = part(activations.get, default=None)
    use_bias: bool = setting(flag, default=True, fixed=True)
    kernel_initializer: Any = part(initializers.get, default="glorot_uniform", fixed=True)
    bias_initializer: Any = part(initializers.get, default="zeros", fixed=True)
    kernel_regularizer: Any = part(regularizers.get, default=None)
    bias_regularizer: Any = part(regularizers.get, default=None)
    activity_regularizer: Any = part(regularizers.get, default=None)
    kernel_constraint: Any = part(constraints.get, default=None)
    bias_constraint: Any = part(constraints.get, default=None)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Declare kernel (in, units) and bias (units,)."""
        if not input_shape:
            raise ShapeError("Dense takes inputs of shape (batch, ..., features); got shape (batch,)")
        shape = (input_shape[-1], self.units)
        rules = {"regularizer": self.kernel_regularizer, "constraint": self.kernel_constraint}
        self.add_weight("kernel", shape, self.kernel_initializer, **rules)
        if self.use_bias:
            rules = {"regularizer": self.bias_regularizer, "constraint": self.bias_constraint}
            self.add_weight("bias", shape[1:], self.bias_initializer, **rules)
        return self.activation.output_shape((0, *input_shape[:-1], self.units))[1:]

    def forward(self, ctx: Context, params: dict[str, Array], x: Array) -> tuple[Array, Backward]:
        """Return f(x W + b) and its backward."""
        y, backward = ctx.ops.affine(ctx, x, params["kernel"], params.get("bias"), self.activation)
        if self.activity_regularizer is not None:
            backward = self.penalize_outputs(ctx, y, backward, self.activity_regularizer.at)
        return y, backward


@registry.register
class Maxout(Layer):
    """y = the largest of `pieces` linear functions x W_k + b_k, for each unit (I. Goodfellow et al., ICML 2013).

    Args:
        units: size of the output's last axis. pieces: how many functions each unit has, at least 1.
        use_bias: whether there is a b.
        kernel_initializer, bias_initializer: initial values of the kernel, shape (in, units * pieces), in which
            the functions of a unit lie side by side, and of the bias, shape (units * pieces,).
        kernel_regularizer, bias_regularizer, kernel_constraint, bias_constraint: see `Dense`.
        name, dtype, trainable: see `Layer`.

    Raises:
        InvalidValueError: units or pieces is not a positive integer. UnknownNameError: unknown name.

    dz_k = dy for the largest function, shared equally where several are the largest, else 0; then as in `Dense`.
    Keras 3 and PyTorch have no such layer.

    >>> layer = Maxout(1, 2, use_bias=False)
    >>> layer.ensure_built((1,))
    (1,)
    >>> layer.set_weights([[[1.0, -1.0]]])  # |x|
    >>> layer([[3.0], [-2.0]]).tolist()
    [[3.0], [2.0]]
    """

    units: int = setting(number, 1, integer=True, fixed=True)
    pieces: int = setting(number, 1, integer=True, default=2, fixed=True)
    use_bias: bool = setting(flag, default=True, fixed=True)
    kernel_initializer: Any = part(initializers.get, default="glorot_uniform", fixed=True)
    bias_initializer: Any = part(initializers.get, default="zeros", fixed=True)
    kernel_regularizer: Any = part(regularizers.get, default=None)
    bias_regularizer: Any = part(regularizers.get, default=None)
    kernel_constraint: Any = part(constraints.get, default=None)
    bias_constraint: Any = part(constraints.get, default=None)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Declare kernel (in, units * pieces) and bias (units * pieces,)."""
        if not input_shape:
            raise ShapeError("Maxout takes inputs of shape (batch, ..., features); got shape (batch,)")
        size = self.units * self.pieces
        rules = {"regularizer": self.kernel_regularizer, "constraint": self.kernel_constraint}
        self.add_weight("kernel", (input_shape[-1], size), self.kernel_initializer, **rules)
        if self.use_bias:
            rules = {"regularizer": self.bias_regularizer, "constraint": self.bias_constraint}
            self.add_weight("bias", (size,), self.bias_initializer, **rules)
        return (*input_shape[:-1], self.units)

    def forward(self, ctx: Context, params: dict[str, Array], x: Array) -> tuple[Array, Backward]:
        """Return the largest of the linear functions and its backward."""
        xp = ctx.xp
        z, back = ctx.ops.affine(ctx, x, params["kernel"], params.get("bias"), LINEAR)
        pieces = xp.reshape(z, (*z.shape[:-1], self.units, self.pieces))
        y = xp.max(pieces, axis=-1)

        def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
            largest = xp.astype(pieces == xp.expand_dims(y, axis=-1), dy.dtype)
            share = dy / xp.sum(largest, axis=-1)
            return back(xp.reshape(largest * xp.expand_dims(share, axis=-1), z.shape), into, want_dx)

        return y, backward
