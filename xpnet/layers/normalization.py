"""Batch normalization."""

from __future__ import annotations

from typing import Any

from .. import constraints, initializers, regularizers
from ..backend import Array
from ..core.settings import flag, part, setting
from ..errors import ShapeError, number
from ..kernels.context import Context
from .base import Backward, Layer, registry

__all__ = ["BatchNormalization"]


@registry.register
class BatchNormalization(Layer):
    """y = gamma (x - mean) / sqrt(variance + epsilon) + beta, for each feature of the last axis.

    In training, mean and (biased) variance are those of the batch, and the running statistics are updated:
    `moving = momentum * moving + (1 - momentum) * batch`. Outside training, the running statistics are used.
    S. Ioffe, C. Szegedy, ICML 2015; arguments as in Keras (PyTorch's momentum is 1 - momentum, and its running
    variance is unbiased). If frozen (`trainable=False`), the layer uses the running statistics in training too,
    and does not update them. If used at several positions, it updates them at each, one after the other.

    Args:
        momentum: in [0, 1]. epsilon: >= 0, inside the root. center, scale: whether there are beta and gamma.
        beta_initializer, gamma_initializer, moving_mean_initializer, moving_variance_initializer: initial values.
        beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint: of beta and gamma, or None.
        name, dtype, trainable: see `Layer`.

    >>> BatchNormalization(epsilon=0)([[1.0, 2.0]]).tolist()
    [[1.0, 2.0]]
    """

    momentum: float = setting(number, 0, 1, default=0.99)
    epsilon: float = setting(number, 0, default=1e-3)
    center: bool = setting(flag, default=True, fixed=True)
    scale: bool = setting(flag, default=True, fixed=True)
    beta_initializer: Any = part(initializers.get, default="zeros", fixed=True)
    gamma_initializer: Any = part(initializers.get, default="ones", fixed=True)
    moving_mean_initializer: Any = part(initializers.get, default="zeros", fixed=True)
    moving_variance_initializer: Any = part(initializers.get, default="ones", fixed=True)
    beta_regularizer: Any = part(regularizers.get, default=None)
    gamma_regularizer: Any = part(regularizers.get, default=None)
    beta_constraint: Any = part(constraints.get, default=None)
    gamma_constraint: Any = part(constraints.get, default=None)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Declare gamma and beta, and the running mean and variance, each of shape (features,)."""
        if not input_shape:
            raise ShapeError("BatchNormalization takes inputs of shape (batch, ..., features); got (batch,)")
        features = input_shape[-1:]
        if self.scale:
            rules = {"regularizer": self.gamma_regularizer, "constraint": self.gamma_constraint}
            self.add_weight("gamma", features, self.gamma_initializer, **rules)
        if self.center:
            rules = {"regularizer": self.beta_regularizer, "constraint": self.beta_constraint}
            self.add_weight("beta", features, self.beta_initializer, **rules)
        self.add_weight("moving_mean", features, self.moving_mean_initializer, trainable=False)
        self.add_weight("moving_variance", features, self.moving_variance_initializer, trainable=False)
        return input_shape

    def forward(self, ctx: Context, params: dict[str, Array], x: Array) -> tuple[Array, Backward]:
        """Normalize with the batch's statistics in training, with the running ones otherwise."""
        xp, features = ctx.xp, len(self.input_shape or ())
        axes = tuple(range(-1 - features, -1))
        shape = (*params["moving_mean"].shape[:-1], *(1,) * features, -1)
        rows = {name: xp.reshape(value, shape) for name, value in params.items()}
        gamma, beta = rows.get("gamma"), rows.get("beta")
        if ctx.training and self.learns(ctx):
            y, batch_mean, batch_var, backward = ctx.ops.batch_norm(ctx, x, gamma, beta, axes, self.epsilon)
            keep = self.momentum
            for name, new in (("moving_mean", batch_mean), ("moving_variance", batch_var)):
                ctx.set_statistic(name, keep * ctx.statistic(name, params[name]) + (1.0 - keep) * new)
            return y, backward
        factor = 1.0 / xp.sqrt(rows["moving_variance"] + self.epsilon)
        xh = (x - rows["moving_mean"]) * factor
        y = xh if gamma is None else xh * gamma

        def inference_backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
            grads = {} if gamma is None else {"gamma": xp.sum(dy * xh, axis=axes)}
            if beta is not None:
                grads["beta"] = xp.sum(dy, axis=axes)
            slope = factor if gamma is None else factor * gamma
            return (dy * slope if want_dx else None), grads

        return (y if beta is None else y + beta), inference_backward
