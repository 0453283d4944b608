"""Layers that normalize: over the batch, the features of a row, groups of features, or to a length of 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import constraints, initializers, regularizers
from ..backend import Array
from ..core.settings import flag, part, setting
from ..errors import InvalidValueError, ShapeError, number
from ..kernels.context import Context
from .base import Backward, Layer, Stateless, registry

__all__ = [
    "BatchNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "RMSNormalization",
    "UnitNormalization",
]


def _axes(name: str, value: Any) -> int | tuple[int, ...]:
    """Return an axis as an int, several as a tuple."""
    if isinstance(value, (list, tuple)) and value:
        return tuple(number(name, axis, integer=True) for axis in value)
    return number(name, value, integer=True)


def _negative(layer: Layer, axis: Any, input_shape: tuple[int, ...], batch: bool = False) -> tuple[int, ...]:
    """Return axes of (batch, *input_shape) as sorted negative numbers.

    Args:
        axis: an integer or several. batch: whether the batch axis may be one of them.

    Raises:
        ShapeError: there is no such axis, or one is given twice, or is the batch axis.
    """
    ndim, given = len(input_shape) + 1, axis if isinstance(axis, tuple) else (axis,)
    axes = sorted({a - ndim if a >= 0 else a for a in given})
    if len(axes) < len(given) or axes[-1] >= 0 or axes[0] < -ndim or (axes[0] == -ndim and not batch):
        kind = "different axes" if batch else "different axes other than the batch axis"
        raise ShapeError(
            f"axis of {type(layer).__name__} must name {kind} of inputs of shape {('batch', *input_shape)}; "
            f"got {axis}"
        )
    return tuple(axes)


def _others(axes: Sequence[int], input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of (batch, *input_shape) that are not in `axes`."""
    return tuple(a for a in range(-1 - len(input_shape), 0) if a not in axes)


def _spread(xp: Any, value: Array | None, own: int, axes: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """Return a parameter whose last `own` axes lie at `axes` of arrays of shape (batch, *shape); None for None."""
    if value is None:
        return None
    sizes = [shape[a] if a in axes else 1 for a in range(-len(shape), 0)]
    return xp.reshape(value, (*value.shape[: value.ndim - own], 1, *sizes))


class _Affine(Layer):
    """What layers with y = gamma * xh + beta share; Keras' arguments in Keras' order."""

    epsilon: float = setting(number, 0, default=1e-3)
    center: bool = setting(flag, default=True, fixed=True)
    scale: bool = setting(flag, default=True, fixed=True)
    beta_initializer: Any = part(initializers.get, default="zeros", fixed=True)
    gamma_initializer: Any = part(initializers.get, default="ones", fixed=True)
    beta_regularizer: Any = part(regularizers.get, default=None)
    gamma_regularizer: Any = part(regularizers.get, default=None)
    beta_constraint: Any = part(constraints.get, default=None)
    gamma_constraint: Any = part(constraints.get, default=None)

    def add_affine(self, shape: tuple[int, ...]) -> None:
        """Declare gamma and beta of this shape, if the settings ask for them."""
        if self.scale:
            rules = {"regularizer": self.gamma_regularizer, "constraint": self.gamma_constraint}
            self.add_weight("gamma", shape, self.gamma_initializer, **rules)
        if self.center:
            rules = {"regularizer": self.beta_regularizer, "constraint": self.beta_constraint}
            self.add_weight("beta", shape, self.beta_initializer, **rules)


@registry.register
class BatchNormalization(_Affine):
    """y = gamma (x - mean) / sqrt(variance + epsilon) + beta, for each feature: each index of `axis`.

    In training, mean and (biased) variance are those of the batch over all other axes, and the running statistics
    are updated: `moving = momentum * moving + (1 - momentum) * batch`. Outside training, the running statistics
    are used. S. Ioffe, C. Szegedy, ICML 2015. PyTorch's momentum is 1 - momentum, and its running variance is
    unbiased. If frozen (`trainable=False`), the layer uses the running statistics in training too, and does not
    update them. If used at several positions, it updates them at each, one after the other.

    Of Keras' arguments, `synchronized` (TensorFlow only: xpnet trains on one device) and `renorm` are left out.

    Args:
        axis: the features' axis, not 0. momentum: in [0, 1]. epsilon: >= 0, inside the root.
        center, scale: whether there are beta and gamma, each of shape (features,).
        beta_initializer, gamma_initializer, moving_mean_initializer, moving_variance_initializer: initial values.
        beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint: of beta and gamma, or None.
        name, dtype, trainable: see `Layer`.

    Raises:
        ShapeError: the inputs have no such axis.

    >>> BatchNormalization(epsilon=0)([[1.0, 2.0]]).tolist()
    [[1.0, 2.0]]
    """

    axis: int = setting(number, default=-1, integer=True, fixed=True)
    momentum: float = setting(number, 0, 1, default=0.99)
    epsilon: float = setting(number, 0, default=1e-3)
    center: bool = setting(flag, default=True, fixed=True)
    scale: bool = setting(flag, default=True, fixed=True)
    beta_initializer: Any = part(initializers.get, default="zeros", fixed=True)
    gamma_initializer: Any = part(initializers.get, default="ones", fixed=True)
    moving_mean_initializer: Any = part(initializers.get, default="zeros", fixed=True)
    moving_variance_initializer: Any = part(initializers.get, default="ones", fixed=True)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Declare gamma and beta, and the running mean and variance, each of shape (features,)."""
        (axis,) = _negative(self, self.axis, input_shape)
        features = (input_shape[axis],)
        self.add_affine(features)
        self.add_weight("moving_mean", features, self.moving_mean_initializer, trainable=False)
        self.add_weight("moving_variance", features, self.moving_variance_initializer, trainable=False)
        return input_shape

    def forward(self, ctx: Context, params: dict[str, Array], x: Array) -> tuple[Array, Backward]:
        """Normalize with the batch's statistics in training, with the running ones otherwise."""
        xp, shape = ctx.xp, self.input_shape or ()
        axis = _negative(self, self.axis, shape)
        axes = _others(axis, shape)
        rows = {name: _spread(xp, value, 1, axis, shape) for name, value in params.items()}
        gamma, beta = rows.get("gamma"), rows.get("beta")
        if ctx.training and self.learns(ctx):
            y, mean, var, backward = ctx.ops.normalize(ctx, x, gamma, beta, axes, self.epsilon)
            keep = self.momentum
            for name, new in (("moving_mean", mean), ("moving_variance", var)):
                old, new = ctx.statistic(name, params[name]), xp.squeeze(new, axis=axes)
                ctx.set_statistic(name, keep * old + (1.0 - keep) * new)
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


@registry.register
class LayerNormalization(_Affine):
    """y = gamma (x - mean) / sqrt(variance + epsilon) + beta, with mean and variance of each row over `axis`.

    The variance is the biased one. J. Ba, J. Kiros, G. Hinton, "Layer normalization", 2016. The same in training
    and outside. The default epsilon is Keras' 1e-3; PyTorch has 1e-5.

    Args:
        axis: the axes to normalize over, an integer or several; 0, the batch axis, is none of them.
        epsilon: >= 0, inside the root. center, scale: whether there are beta and gamma, whose shape is that of the
            inputs' `axis` (in ascending order).
        beta_initializer, gamma_initializer: initial values. beta_regularizer, gamma_regularizer,
            beta_constraint, gamma_constraint: of beta and gamma, or None. name, dtype, trainable: see `Layer`.

    Raises:
        ShapeError: the inputs have no such axis.

    With dxh = gamma dy:  dx = (dxh - mean(dxh) - xh mean(dxh xh)) / sqrt(variance + epsilon)  (`ops.normalize`).

    >>> LayerNormalization(epsilon=0)([[1.0, 3.0], [10.0, 30.0]]).tolist()
    [[-1.0, 1.0], [-1.0, 1.0]]
    """

    axis: Any = setting(_axes, default=-1, fixed=True)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Declare gamma and beta, of the sizes of the normalized axes."""
        self.add_affine(tuple(input_shape[a] for a in _negative(self, self.axis, input_shape)))
        return input_shape

    def forward(self, ctx: Context, params: dict[str, Array], x: Array) -> tuple[Array, Backward]:
        """Normalize each row."""
        shape = self.input_shape or ()
        axes = _negative(self, self.axis, shape)
        gamma, beta = (_spread(ctx.xp, params.get(name), len(axes), axes, shape) for name in ("gamma", "beta"))
        y, _, _, backward = ctx.ops.normalize(ctx, x, gamma, beta, axes, self.epsilon, _others(axes, shape))
        return y, backward


@registry.register
class RMSNormalization(Layer):
    """y = scale x / sqrt(mean(x^2) + epsilon), with the mean of each row over `axis`.

    B. Zhang, R. Sennrich, "Root mean square layer normalization", NeurIPS 2019. The same in training and outside.
    The default epsilon is Keras' 1e-6; PyTorch's is the machine epsilon.

    Args:
        axis: the axes to normalize over, an integer or several; 0, the batch axis, is none of them. The weight
            `scale` has the shape of the inputs' `axis`, and starts at 1.
        epsilon: >= 0, inside the root. name, dtype, trainable: see `Layer`.

    Raises:
        ShapeError: the inputs have no such axis.

    With dxh = scale dy:  dx = (dxh - xh mean(dxh xh)) / sqrt(mean(x^2) + epsilon)  (`ops.normalize`).

    >>> RMSNormalization(epsilon=0)([[1.0, -1.0], [30.0, -30.0]]).tolist()
    [[1.0, -1.0], [1.0, -1.0]]
    """

    axis: Any = setting(_axes, default=-1, fixed=True)
    epsilon: float = setting(number, 0, default=1e-6)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Declare scale, of the sizes of the normalized axes."""
        self.add_weight("scale", [input_shape[a] for a in _negative(self, self.axis, input_shape)], "ones")
        return input_shape

    def forward(self, ctx: Context, params: dict[str, Array], x: Array) -> tuple[Array, Backward]:
        """Normalize each row by its root mean square."""
        shape = self.input_shape or ()
        axes = _negative(self, self.axis, shape)
        scale, others = _spread(ctx.xp, params["scale"], len(axes), axes, shape), _others(axes, shape)
        y, _, _, back = ctx.ops.normalize(ctx, x, scale, None, axes, self.epsilon, others, center=False)

        def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
            dx, grads = back(dy, {}, want_dx)
            return dx, {"scale": grads["gamma"]}

        return y, backward


def _group_count(name: str, value: Any) -> int:
    count = number(name, value, integer=True)
    if count < 1 and count != -1:
        raise InvalidValueError(f"{name} must be an integer >= 1, or -1; got {value!r}")
    return count


@registry.register
class GroupNormalization(_Affine):
    """y = gamma (x - mean) / sqrt(variance + epsilon) + beta, with statistics of groups of a row's features.

    The features (the indices of `axis`) are split into groups of neighbours; mean and (biased) variance are taken
    over a group's features and all other axes of a row. Y. Wu, K. He, "Group normalization", ECCV 2018. The
    default epsilon is Keras' 1e-3; PyTorch has 1e-5, and its features' axis is 1.

    Args:
        groups: how many, a divisor of the number of features; -1: one group a feature (instance normalization).
        axis: the features' axis, not 0. epsilon: >= 0, inside the root.
        center, scale: whether there are beta and gamma, each of shape (features,).
        beta_initializer, gamma_initializer: initial values. beta_regularizer, gamma_regularizer,
            beta_constraint, gamma_constraint: of beta and gamma, or None. name, dtype, trainable: see `Layer`.

    Raises:
        InvalidValueError: groups is neither positive nor -1. ShapeError: the inputs have no such axis, or its size
            is no multiple of groups.

    The derivative is that of `LayerNormalization`, with means over a group.

    >>> GroupNormalization(2, epsilon=0)([[1.0, 3.0, 10.0, 30.0]]).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]
    """

    groups: int = setting(_group_count, default=32)
    axis: int = setting(number, default=-1, integer=True, fixed=True)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Declare gamma and beta of shape (features,)."""
        (axis,) = _negative(self, self.axis, input_shape)
        features = input_shape[axis]
        if features % self.groups:
            raise ShapeError(f"the number of features must be a multiple of groups, {self.groups}; got {features}")
        self.add_affine((features,))
        return input_shape

    def forward(self, ctx: Context, params: dict[str, Array], x: Array) -> tuple[Array, Backward]:
        """Split the features' axis into groups and the features of each, and normalize each group."""
        xp, shape = ctx.xp, self.input_shape or ()
        (axis,) = _negative(self, self.axis, shape)
        groups = shape[axis] if self.groups == -1 else self.groups
        split = (*shape[:axis], groups, shape[axis] // groups, *shape[len(shape) + axis + 1 :])
        both = (axis - 1, axis)

        def grouped(a: Array) -> Array:
            return xp.reshape(a, (*a.shape[: a.ndim - len(shape)], *split))

        gamma, beta = (_spread(xp, params.get(name), 1, both, split) for name in ("gamma", "beta"))
        axes = tuple(a for a in range(-len(split), 0) if a != axis - 1)
        y, _, _, back = ctx.ops.normalize(ctx, grouped(x), gamma, beta, axes, self.epsilon, _others(both, split))

        def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
            dx, grads = back(grouped(dy), {}, want_dx)
            grads = {name: xp.reshape(g, params[name].shape) for name, g in grads.items()}
            return (xp.reshape(dx, x.shape) if want_dx else None), grads

        return xp.reshape(y, x.shape), backward


@registry.register
class UnitNormalization(Stateless):
    """y = x / max(|x|, 1e-12), with the Euclidean norm |x| over `axis`, so that |y| = 1.

    Args:
        axis: the axes of the norm, an integer or several. name, dtype, trainable: see `Layer`.

    Raises:
        ShapeError: the inputs have no such axis.

    dx = (dy - y sum(y dy)) / |x|, the sum over `axis`; dx = 1e12 dy where |x| < 1e-12. As in Keras.

    >>> UnitNormalization()([[0.0, 5.0], [-2.0, 0.0]]).tolist()
    [[0.0, 1.0], [-1.0, 0.0]]
    """

    axis: Any = setting(_axes, default=-1)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Check the axes."""
        _negative(self, self.axis, input_shape, batch=True)
        return input_shape

    def call(self, ctx: Context, x: Array) -> tuple[Array, Any]:
        """Return x divided by its norm."""
        xp, axes = ctx.xp, _negative(self, self.axis, self.input_shape or (), batch=True)
        norm = xp.sqrt(xp.sum(x * x, axis=axes, keepdims=True))
        inverse = 1.0 / xp.maximum(norm, xp.full_like(norm, 1e-12))
        y = x * inverse
        along = xp.astype(norm >= 1e-12, x.dtype)  # where the norm depends on x
        return y, lambda dy: (dy - along * y * xp.sum(y * dy, axis=axes, keepdims=True)) * inverse
