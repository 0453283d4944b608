"""Layers that prepare inputs: their scale, bins and classes."""

from __future__ import annotations

import math
from typing import Any

from ..backend import Array, np
from ..core.convert import numeric
from ..core.ops import one_hot
from ..core.settings import flag, optional, part, setting
from ..errors import InvalidValueError, NotBuiltError, ShapeError, number, one_of
from ..initializers import Initializer
from ..kernels.context import Context
from .base import Backward, Layer, Stateless, registry
from .embedding import LARGEST_CLASS

__all__ = ["CategoryEncoding", "Discretization", "Normalization", "Rescaling"]

SMALLEST_DEVIATION = 1e-7  # Keras' epsilon


@registry.register
class Rescaling(Stateless):
    """y = scale x + offset; dx = scale dy.

    Args:
        scale, offset: finite numbers. name, dtype, trainable: see `Layer`.

    Keras also takes one scale for each channel: `Normalization(mean=..., variance=...)` does that here.

    >>> Rescaling(0.5, -1.0)([[2.0, 6.0]]).tolist()
    [[0.0, 2.0]]
    """

    scale: float = setting(number)
    offset: float = setting(number, default=0.0)

    def call(self, ctx: Context, x: Array) -> tuple[Array, Any]:
        """Return scale x + offset."""
        return x * self.scale + self.offset, lambda dy: dy * self.scale


class Given(Initializer):
    """The values that a setting gives, broadcast to the shape of the weight."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Return the values."""
        return np.array(np.broadcast_to(np.asarray(self.value, np.float64), shape))


def _axes(axis: Any) -> tuple[int, ...]:
    """Return None, an integer or several as a tuple of integers."""
    several = () if axis is None else axis if isinstance(axis, (tuple, list)) else (axis,)
    return tuple(number("axis", a, integer=True) for a in several)


def _table(name: str, value: Any) -> Any:
    """Return None, a number or an array of finite numbers as nested lists."""
    host = None if value is None else numeric(value, name).astype(np.float64)
    if host is not None and not np.isfinite(host).all():
        raise InvalidValueError(f"{name} must be finite numbers; got {value!r}")
    return None if host is None else host.tolist()


def _finite(data: Any, axes: int) -> np.ndarray:
    """Return data for `adapt` as a float64 host array. Args: axes: how many it must have beside the rows.

    Raises:
        ShapeError: no rows. InvalidValueError: a number is not finite.
    """
    host = numeric(data, "data").astype(np.float64)
    if host.ndim < 1 + axes or host.size == 0:
        raise ShapeError(f"adapt takes arrays of at least {1 + axes} axes, which are not empty; got {host.shape}")
    if not np.isfinite(host).all():
        raise InvalidValueError(f"adapt takes finite numbers only; got {host[~np.isfinite(host)][0]}")
    return host


@registry.register
class Normalization(Layer):
    """y = (x - mean) / d with d = max(sqrt(variance), 1e-7); with `invert` its inverse, y = d x + mean.

    Args:
        axis: the axes that have a mean and a variance for each index: an integer, a tuple, or None for one mean
            and variance of all numbers. Axis 0 is the batch, and can't be one of them.
        mean, variance: both or neither: numbers or arrays that fit the sizes of those axes, variance >= 0. Without
            them they are 0 and 1 until `adapt` computes them.
        invert: whether to apply the inverse. name, dtype, trainable: see `Layer`.

    Raises:
        InvalidValueError: only one of mean and variance, or a negative variance.
        ShapeError: they, or the axes, do not fit the inputs.

    dx = dy / d, or d dy. mean and variance are statistics, which training does not change; they are
    saved with the weights. Keras keeps no weights if they are given, and a third one, `count`, if not.

    >>> layer = Normalization()
    >>> layer.adapt([[1.0, 10.0], [3.0, 30.0]])
    >>> layer([[1.0, 20.0]]).tolist()
    [[-1.0, 0.0]]
    """

    axis: Any = part(_axes, default=-1, fixed=True)
    mean: Any = setting(_table, default=None, fixed=True)
    variance: Any = setting(_table, default=None, fixed=True)
    invert: bool = setting(flag, default=False)

    def check_settings(self) -> None:
        """Raise unless mean and variance come together, of one shape."""
        if (self.mean is None) != (self.variance is None):
            raise InvalidValueError(
                f"mean and variance must be given together; got mean={self.mean} and variance={self.variance}"
            )
        if np.shape(self.mean) != np.shape(self.variance):
            shapes = np.shape(self.mean), np.shape(self.variance)
            raise ShapeError(f"mean and variance must have one shape; got {shapes[0]} and {shapes[1]}")
        if self.variance is not None and np.min(self.variance) < 0:
            raise InvalidValueError(f"variance must be >= 0; got {self.variance}")

    def _kept(self, input_shape: tuple[int, ...]) -> list[int]:
        """Return the axes of a row, from 0, that have a mean for each index."""
        n = len(input_shape) + 1
        kept = sorted(axis + n if axis < 0 else axis for axis in self.axis)
        if kept and not (kept[0] > 0 and kept[-1] < n and len(set(kept)) == len(kept)):
            raise ShapeError(
                f"axis must name axes from 1 to {n - 1} of inputs of shape {('batch', *input_shape)}; "
                f"got {self.axis}"
            )
        return [axis - 1 for axis in kept]

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Declare mean and variance, one number for each index of the axes."""
        shape = tuple(input_shape[axis] for axis in self._kept(input_shape))
        given = np.shape(self.mean)
        if len(given) > len(shape) or any(a not in (1, b) for a, b in zip(given[::-1], shape[::-1])):
            raise ShapeError(f"mean and variance must fit the shape {shape} of the axes {self.axis}; got {given}")
        self.add_weight("mean", shape, "zeros" if self.mean is None else Given(self.mean), trainable=False)
        first = "ones" if self.variance is None else Given(self.variance)
        self.add_weight("variance", shape, first, trainable=False)
        return input_shape

    def adapt(self, data: Any) -> None:
        """Set mean and (biased) variance to those of the data; build the layer if it is not built.

        Args:
            data: shape (rows, ...): an array of any library, or a list.

        Raises:
            InvalidValueError: mean and variance were given, or the data are not finite.
            ShapeError: no rows, or other features than the layer was built for.
        """
        if self.mean is not None:
            raise InvalidValueError(f"adapt computes mean and variance, which were given; got mean={self.mean}")
        host = _finite(data, 1)
        self.ensure_built(host.shape[1:])
        kept = [axis + 1 for axis in self._kept(host.shape[1:])]
        others = tuple(axis for axis in range(host.ndim) if axis not in kept)
        self.set_weights([host.mean(axis=others), host.var(axis=others)])

    def forward(self, ctx: Context, params: dict[str, Array], x: Array) -> tuple[Array, Backward]:
        """Normalize, or invert that."""
        xp, row = ctx.xp, self.input_shape or ()
        kept = self._kept(row)
        sizes = [size if axis in kept else 1 for axis, size in enumerate(row)]
        lead = params["mean"].shape[: params["mean"].ndim - len(kept)]
        mean, variance = (xp.reshape(params[name], (*lead, 1, *sizes)) for name in ("mean", "variance"))
        deviation = xp.sqrt(variance)
        deviation = xp.maximum(deviation, xp.full_like(deviation, SMALLEST_DEVIATION))
        slope = deviation if self.invert else 1.0 / deviation
        y = x * slope + mean if self.invert else (x - mean) * slope
        return y, lambda dy, into, want_dx=True: (dy * slope if want_dx else None, {})


def encode(ctx: Context, x: Array, classes: int, mode: str) -> Array:
    """Return class numbers as vectors: see `CategoryEncoding`. Args: mode: its `output_mode`."""
    xp = ctx.xp
    whole = xp.where(x == xp.floor(x), x, xp.full_like(x, math.nan))
    if mode == "one_hot" and x.shape[-1] == 1:
        whole = whole[..., 0]
    hot = one_hot(ctx, whole, classes, x.dtype)
    if mode == "one_hot":
        return hot
    return xp.max(hot, axis=-2) if mode == "multi_hot" else xp.sum(hot, axis=-2)


def encoded_shape(input_shape: tuple[int, ...], classes: int, mode: str) -> tuple[int, ...]:
    """Return the shape of a row that `encode` returns."""
    if not input_shape:
        raise ShapeError("class numbers must have shape (batch, n) to be encoded; got shape (batch,)")
    keep = mode == "one_hot" and input_shape[-1] != 1
    return (*(input_shape if keep else input_shape[:-1]), classes)


MODES = ("multi_hot", "one_hot", "count")


@registry.register
class CategoryEncoding(Stateless):
    """Turn class numbers into vectors of `num_tokens` numbers.

    Args:
        num_tokens: number of classes, at most 2^24.
        output_mode: `"one_hot"`: each number becomes a vector that is 1 at its place: (..., n) becomes
            (..., n, num_tokens), and (..., 1) becomes (..., num_tokens). `"multi_hot"`: the n numbers of the last
            axis become one vector, 1 where a class is among them; `"count"`: how often it is.
        name, dtype, trainable: see `Layer`.

    Raises:
        InvalidValueError: num_tokens is not a positive integer; numbers that are no classes (see `Embedding`).
            UnknownNameError: another output_mode.

    dx = 0. Keras' `sparse` and `count_weights` are left out.

    >>> CategoryEncoding(4, "count")([[0, 3, 3]]).tolist()
    [[1.0, 0.0, 0.0, 2.0]]
    """

    num_tokens: int = setting(number, 1, LARGEST_CLASS, integer=True, fixed=True)
    output_mode: str = setting(one_of, MODES, default="multi_hot", fixed=True)

    @property
    def classes(self) -> int | None:
        """The number of classes."""
        return self.num_tokens

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the vectors."""
        return encoded_shape(input_shape, self.num_tokens, self.output_mode)

    def call(self, ctx: Context, x: Array) -> tuple[Array, Any]:
        """Return the vectors."""
        return encode(ctx, x, self.num_tokens, self.output_mode), lambda dy: ctx.xp.zeros_like(x)


def _boundaries(name: str, value: Any) -> tuple[float, ...]:
    found = np.asarray(_table(name, value))
    if found.ndim != 1 or len(found) == 0 or (np.diff(found) < 0).any():
        raise InvalidValueError(f"{name} must be at least one number, in ascending order; got {value!r}")
    return tuple(found.tolist())


@registry.register
class Discretization(Stateless):
    """y = how many boundaries are <= x: the number, from 0, of the bin that x is in.

    Args:
        bin_boundaries: the n boundaries of n + 1 bins, in ascending order. None: `adapt` computes them.
        num_bins: how many bins `adapt` makes, at least 2; with bin_boundaries, n + 1 or None.
        epsilon: the accuracy of `adapt`, in (0, 1]: it uses about 1 / epsilon of the values.
        output_mode: `"int"`, or one of those of `CategoryEncoding`, which encodes the numbers.
        name, dtype, trainable: see `Layer`.

    Raises:
        InvalidValueError: neither or a wrong number of boundaries. NotBuiltError: used before `adapt`.

    dx = 0. Boundaries from `adapt` are settings too, which `get_config` returns. Keras computes them in float32,
    here it is float64.

    >>> Discretization([0.0, 1.0])([[-1.0, 0.0, 0.5, 7.0]]).tolist()
    [[0.0, 1.0, 1.0, 2.0]]
    """

    bin_boundaries: Any = setting(optional(_boundaries), default=None)
    num_bins: int | None = setting(optional(number), 2, integer=True, default=None)
    epsilon: float = setting(number, 0, 1, open_low=True, default=0.01)
    output_mode: str = setting(one_of, ("int", *MODES), default="int", fixed=True)

    def check_settings(self) -> None:
        """Raise unless there are boundaries or a number of bins, which agree."""
        found, bins = self.bin_boundaries, self.num_bins
        if found is None and bins is None:
            raise InvalidValueError("bin_boundaries or num_bins must be given; got None and None")
        if found is not None and bins not in (None, len(found) + 1):
            raise InvalidValueError(f"{len(found)} bin_boundaries make {len(found) + 1} bins; got num_bins={bins}")

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the numbers or vectors."""
        if self.bin_boundaries is None:
            raise NotBuiltError("Discretization has no boundaries yet: call adapt(data) first; got None")
        bins = len(self.bin_boundaries) + 1
        return input_shape if self.output_mode == "int" else encoded_shape(input_shape, bins, self.output_mode)

    def adapt(self, data: Any) -> None:
        """Set the boundaries to the quantiles 1 / num_bins, 2 / num_bins, ... of all numbers of the data.

        Between values it interpolates; the k-th smallest of n values is the quantile k / n. As in Keras.

        Args:
            data: of any shape: an array of any library, or a list.

        Raises:
            InvalidValueError: no num_bins; fewer numbers than bins, or not finite.
        """
        values, epsilon = np.sort(_finite(data, 0).reshape(-1)), self.epsilon
        if self.num_bins is None or len(values) < self.num_bins:
            raise InvalidValueError(
                f"adapt needs num_bins, and as many numbers; got {self.num_bins} and {len(values)}"
            )
        step = max(len(values) * epsilon, 1.0)
        values = values[int(step - 1.0) :: int(step)]
        shares = np.arange(1, len(values) + 1) / len(values)
        if len(values) * epsilon >= 1.0:
            at = epsilon + np.arange(0.0, 1.0, epsilon)
            values, shares = np.interp(at, shares, values), np.interp(at, shares, shares)
        at = np.arange(1, self.num_bins) / self.num_bins
        self.bin_boundaries = np.interp(at, shares / shares[-1], values)

    def call(self, ctx: Context, x: Array) -> tuple[Array, Any]:
        """Count the boundaries."""
        y = ctx.xp.zeros_like(x)
        for boundary in self.bin_boundaries:
            y = y + ctx.xp.astype(x >= boundary, x.dtype)
        if self.output_mode != "int":
            y = encode(ctx, y, len(self.bin_boundaries) + 1, self.output_mode)
        return y, lambda dy: ctx.xp.zeros_like(x)
