"""Layers that drop inputs or add noise in training."""

from __future__ import annotations

import math
from typing import Any

from ..backend import Array
from ..core.settings import optional, setting
from ..errors import InvalidTypeError, ShapeError, number
from ..kernels.context import Context
from .base import Stateless, registry

__all__ = ["AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "SpatialDropout1D"]


def _noise_shape(name: str, value: Any) -> tuple[int | None, ...] | None:
    """Return a shape with the batch axis, in which None stands for the size of the inputs."""
    if value is None:
        return None
    if not isinstance(value, (list, tuple)):
        raise InvalidTypeError(f"{name} must be a tuple of integers and None; got {value!r}")
    return tuple(None if n is None else number(name, n, 1, integer=True) for n in value)


class _Masked(Stateless):
    """What layers with a boolean mask share; a subclass may define `masked` and `mask_shape`."""

    rate: float = setting(number, 0, 1, open_high=True)
    noise_shape: tuple[int | None, ...] | None = setting(_noise_shape, default=None)
    seed: int | None = setting(optional(number), 0, integer=True, default=None)

    def mask_shape(self, input_shape: tuple[int, ...]) -> tuple[int | None, ...]:
        """Return the mask's shape, see `Dropout`."""
        return (None, *input_shape) if self.noise_shape is None else self.noise_shape

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Declare the mask."""
        sizes, given = (None, *input_shape), self.mask_shape(input_shape)
        found = tuple(size if n is None else n for n, size in zip(given, sizes))
        if len(given) != len(sizes) or any(n not in (1, size) for n, size in zip(found[1:], input_shape)):
            raise ShapeError(
                f"each size of the mask must be 1, None or that of the inputs, {('batch', *input_shape)}; got "
                f"noise_shape {given}"
            )
        if self.rate:
            self.add_draw("keep", [n or 1 for n in found[1:]], self.rate, self.seed)
        return input_shape

    def call(self, ctx: Context, x: Array) -> tuple[Array, Any]:
        """Return the masked input in training, x otherwise."""
        if not (ctx.training and self.draws):
            return x, lambda dy: dy
        keep, features = ctx.draw("keep"), len(self.input_shape or ())
        rows = self.mask_shape(self.input_shape or ())[0]
        if rows == 1:  # one mask for all rows
            keep = keep[(..., slice(1), *[slice(None)] * features)]
        elif rows is not None and rows != x.shape[-1 - features]:
            raise ShapeError(f"noise_shape is for batches of {rows} rows; got {x.shape[-1 - features]}")
        return self.masked(ctx, x, keep, self.draws[0].rate)  # the rate of the mask

    def masked(self, ctx: Context, x: Array, keep: Array, rate: Any) -> tuple[Array, Any]:
        """Return y, and the function from dy to dx. Args: keep: boolean, broadcasts with x."""
        return ctx.ops.dropout(ctx, x, keep, rate)


@registry.register
class Dropout(_Masked):
    """In training, set each input to 0 with probability `rate` and divide the others by 1 - rate; otherwise y = x.

    N. Srivastava et al., JMLR 15, 2014. The masks are functions of the seed, the layer's position and the step
    (see `xpnet.core.random`), bit-equal on every backend.

    Args:
        rate: in [0, 1).
        noise_shape: of the mask, with the batch axis, such as `(None, 1, None)`: a size of 1 drops inputs along
            that axis together, None is the inputs' size. None instead of a tuple: the inputs' shape.
        seed: of this layer's masks; None: the model's. Called alone, a layer with a seed repeats its mask.
        name, dtype, trainable: see `Layer`.

    Raises:
        InvalidValueError: rate is outside [0, 1). ShapeError: noise_shape does not fit the inputs.

    >>> Dropout(0.5)([[1.0, 2.0]]).tolist()
    [[1.0, 2.0]]
    """


@registry.register
class SpatialDropout1D(_Masked):
    """In training, drop features of whole sequences: `Dropout` with the same mask at all steps of a sequence.

    J. Tompson et al., "Efficient object localization using convolutional networks", CVPR 2015.

    Args:
        rate: in [0, 1). seed: see `Dropout`. name, dtype, trainable: see `Layer`.

    Inputs have shape (batch, steps, features); there may be several axes of steps, or none (Keras takes one).

    Raises:
        InvalidValueError: rate is outside [0, 1).

    >>> y = SpatialDropout1D(0.5)([[[1.0] * 8] * 9], training=True)
    >>> bool((y == y[:, :1]).all())
    True
    """

    noise_shape = None

    def mask_shape(self, input_shape: tuple[int, ...]) -> tuple[int | None, ...]:
        """Return a shape that is 1 along all steps."""
        return (None, *(1,) * (len(input_shape) - 1), *input_shape[-1:])


@registry.register
class AlphaDropout(_Masked):
    """In training, set inputs to the least value of selu instead of 0, and keep mean 0 and variance 1.

    y = a (x where kept, else p) + b, with p = -1.7580993408473766, a = ((1 - rate) (1 + rate p^2))^-1/2 and
    b = -a p rate; dx = a dy where kept, else 0. Outside training y = x. For networks of selu units: G. Klambauer
    et al., "Self-normalizing neural networks", NIPS 2017. The masks are those of `Dropout`.

    Args:
        rate: in [0, 1). noise_shape, seed: see `Dropout`. name, dtype, trainable: see `Layer`.

    Raises:
        InvalidValueError: rate is outside [0, 1). ShapeError: noise_shape does not fit the inputs.

    >>> AlphaDropout(0.5)([[1.0, 2.0]]).tolist()
    [[1.0, 2.0]]
    """

    def masked(self, ctx: Context, x: Array, keep: Array, rate: Any) -> tuple[Array, Any]:
        """Return a (x keep + p (1 - keep)) + b."""
        p = -1.6732632423543772 * 1.0507009873554805  # -alpha scale of selu
        a = ((1.0 - rate) * (1.0 + rate * p * p)) ** -0.5
        slope = a * ctx.xp.astype(keep, x.dtype)
        return x * slope + (a * p * (1.0 - rate) - p * slope), lambda dy: dy * slope


@registry.register
class GaussianNoise(Stateless):
    """In training, y = x + stddev n, with standard normal numbers n; otherwise y = x. dx = dy.

    The noise is a function of the seed, the layer's position and the step. The host draws it, so it is bit-equal
    on every backend. Steps captured on a GPU draw it there, equal up to rounding (see
    `xpnet.core.random.normals`).

    Args:
        stddev: >= 0 (Keras allows at most 1). seed: of this layer's noise; None: the model's. Called alone, a
            layer with a seed repeats its noise. name, dtype, trainable: see `Layer`.

    Raises:
        InvalidValueError: stddev is negative.

    >>> GaussianNoise(0.5)([[1.0, 2.0]]).tolist()
    [[1.0, 2.0]]
    """

    stddev: float = setting(number, 0)
    seed: int | None = setting(optional(number), 0, integer=True, default=None)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Declare the noise."""
        if self.stddev:
            self.add_draw("noise", input_shape, seed=self.seed)
        return input_shape

    def call(self, ctx: Context, x: Array) -> tuple[Array, Any]:
        """Return x with noise."""
        if not (ctx.training and self.draws):
            return x, lambda dy: dy
        return x + self.stddev * ctx.draw("noise"), lambda dy: dy


@registry.register
class GaussianDropout(Stateless):
    """In training, y = x m, with normal m of mean 1 and variance rate / (1 - rate); otherwise y = x. dx = m dy.

    The mean and variance of m are those of `Dropout`: N. Srivastava et al., JMLR 15, 2014, section 10. The noise
    is drawn as in `GaussianNoise`.

    Args:
        rate: in [0, 1). seed: see `GaussianNoise`. name, dtype, trainable: see `Layer`.

    Raises:
        InvalidValueError: rate is outside [0, 1).

    >>> GaussianDropout(0.5)([[1.0, 2.0]]).tolist()
    [[1.0, 2.0]]
    """

    rate: float = setting(number, 0, 1, open_high=True)
    seed: int | None = setting(optional(number), 0, integer=True, default=None)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Declare the noise."""
        if self.rate:
            self.add_draw("noise", input_shape, seed=self.seed)
        return input_shape

    def call(self, ctx: Context, x: Array) -> tuple[Array, Any]:
        """Return x times m."""
        if not (ctx.training and self.draws):
            return x, lambda dy: dy
        m = 1.0 + math.sqrt(self.rate / (1.0 - self.rate)) * ctx.draw("noise")
        return x * m, lambda dy: dy * m
