"""Initializers of weights. Names and defaults are those of Keras 3; numbers are drawn on the host."""

from __future__ import annotations

import math
from typing import Any

from .backend import Array, get_backend, np
from .core.config import Configurable, Registry
from .core.random import INIT, Stream, fresh_seed
from .core.settings import optional, setting
from .errors import InvalidValueError, ShapeError, number, one_of

__all__ = [
    "Constant",
    "GlorotNormal",
    "GlorotUniform",
    "HeNormal",
    "HeUniform",
    "Identity",
    "Initializer",
    "LecunNormal",
    "LecunUniform",
    "Ones",
    "Orthogonal",
    "RandomNormal",
    "RandomUniform",
    "TruncatedNormal",
    "VarianceScaling",
    "Zeros",
    "get",
]


class Initializer(Configurable):
    """Base class; subclasses define `draw`."""

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Return a float64 host array of this shape, drawn from `rng`."""
        raise TypeError(f"{type(self).__name__} must define draw(rng, shape)")

    def values(self, stream: Stream, slot: int, shape: tuple[int, ...]) -> np.ndarray:
        """Return the host array for a parameter's slot, from its own seed if set, else from the stream."""
        seed = getattr(self, "seed", None)  # not every initializer draws
        stream, slot = (stream, slot) if seed is None else (Stream(seed), 0)
        return self.draw(stream.at(INIT, slot, 0), shape)

    def __call__(self, shape: tuple[int, ...], dtype: str | None = None) -> Array:
        """Return an array of this shape on the current backend."""
        backend = get_backend(dtype=dtype)
        return backend.array(self.values(Stream(fresh_seed()), 0, tuple(shape)), backend.dtype_name)


registry: Registry[Initializer] = Registry("initializer", Initializer)


@registry.register("zero")
class Zeros(Initializer):
    """All zeros.

    >>> float(Zeros()((2,))[0])
    0.0
    """

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Return zeros."""
        return np.zeros(shape)


@registry.register("one")
class Ones(Initializer):
    """All ones."""

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Return ones."""
        return np.ones(shape)


@registry.register
class Constant(Initializer):
    """A constant.

    Args:
        value: a finite number.
    """

    value: float = setting(number, default=0.0)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Return the constant."""
        return np.full(shape, float(self.value))


@registry.register("normal")
class RandomNormal(Initializer):
    """Normally distributed numbers.

    Args:
        mean, stddev: of the distribution. seed: an integer, or None to use the model's seed.
    """

    mean: float = setting(number, default=0.0)
    stddev: float = setting(number, 0, default=0.05)
    seed: int | None = setting(optional(number), 0, integer=True, default=None)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Return mean + stddev * N(0, 1)."""
        return rng.normal(self.mean, self.stddev, shape)


@registry.register("uniform")
class RandomUniform(Initializer):
    """Uniform numbers in [minval, maxval).

    Args:
        minval, maxval: the interval. seed: an integer, or None to use the model's seed.
    """

    minval: float = setting(number, default=-0.05)
    maxval: float = setting(number, default=0.05)
    seed: int | None = setting(optional(number), 0, integer=True, default=None)

    def check_settings(self) -> None:
        """Check that the interval is not empty."""
        if self.maxval < self.minval:
            raise InvalidValueError(f"maxval must be at least minval, {self.minval:g}; got {self.maxval:g}")

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Return uniform numbers."""
        return rng.uniform(self.minval, self.maxval, shape)


def _truncated(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return numbers from N(0, 1), each drawn again while it is beyond two standard deviations."""
    values = rng.standard_normal(shape)
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.standard_normal(int(outside.sum()))
    return values


@registry.register
class TruncatedNormal(Initializer):
    """Normally distributed numbers within two standard deviations of the mean; others are drawn again.

    As in Keras, `stddev` is that of the distribution before it is truncated: that of the numbers is 0.88 stddev.

    Args:
        mean, stddev: of the distribution. seed: an integer, or None to use the model's seed.
    """

    mean: float = setting(number, default=0.0)
    stddev: float = setting(number, 0, default=0.05)
    seed: int | None = setting(optional(number), 0, integer=True, default=None)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Return mean + stddev * N(0, 1), truncated."""
        return self.mean + self.stddev * _truncated(rng, shape)


def _distribution(name: str, value: Any) -> str:
    """Check a distribution's name; as in Keras, "normal" is the truncated one."""
    known = ("uniform", "truncated_normal", "untruncated_normal")
    value = value.lower() if isinstance(value, str) else value
    return known[1] if value == "normal" else one_of(name, value, known)


@registry.register
class VarianceScaling(Initializer):
    """Zero-mean numbers of variance scale / n, where n counts the kernel's connections.

    The truncated normal distribution redraws numbers beyond two standard deviations and is widened to keep the
    variance, as in Keras.

    Args:
        scale: a positive number. mode: n is `"fan_in"`, `"fan_out"` or their mean, `"fan_avg"`.
        distribution: `"uniform"`, `"truncated_normal"` (or `"normal"`) or `"untruncated_normal"`.
        seed: an integer, or None to use the model's seed.
    """

    scale: float = setting(number, 0, open_low=True, default=1.0)
    mode: str = setting(one_of, ("fan_in", "fan_out", "fan_avg"), default="fan_in")
    distribution: str = setting(_distribution, default="truncated_normal")
    seed: int | None = setting(optional(number), 0, integer=True, default=None)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Return numbers of variance scale / n."""
        fan_in, fan_out = fans(shape)
        n = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        variance = self.scale / max(1.0, n)
        if self.distribution == "uniform":
            limit = math.sqrt(3 * variance)
            return rng.uniform(-limit, limit, shape)
        if self.distribution == "untruncated_normal":
            return rng.normal(0.0, math.sqrt(variance), shape)
        # 0.8796...: the standard deviation of N(0, 1) truncated at +-2 (scipy.stats.truncnorm(-2, 2).std())
        return _truncated(rng, shape) * (math.sqrt(variance) / 0.87962566103423978)


@registry.register
class Orthogonal(Initializer):
    """A random matrix with orthonormal columns, or rows if it has fewer of these, times a gain.

    With A = Q R, A of normally distributed numbers, it is  gain Q sign(diag(R)):  uniformly distributed among such
    matrices (A. Saxe et al., ICLR 2014; F. Mezzadri, 2007). A kernel of shape (..., out) counts as a matrix of all
    its other axes by out, as in Keras.

    Args:
        gain: a factor. seed: an integer, or None to use the model's seed.

    Raises:
        ShapeError: the weights have fewer than two axes.
    """

    gain: float = setting(number, default=1.0)
    seed: int | None = setting(optional(number), 0, integer=True, default=None)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Return gain Q, on the host: the same numbers on every backend."""
        if len(shape) < 2:
            raise ShapeError(f"Orthogonal needs weights of two axes or more; got shape {shape}")
        rows, columns = math.prod(shape[:-1]), shape[-1]
        q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
        q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
        return self.gain * np.reshape(q.T if rows < columns else q, shape)


@registry.register
class Identity(Initializer):
    """The identity matrix times a gain; what lies beyond the shorter axis of another matrix is 0.

    Args:
        gain: a factor.

    Raises:
        ShapeError: the weights are no matrix.

    >>> weights = Identity(2.0)((2, 3))
    >>> float(weights[1, 1]), float(weights[0, 2])
    (2.0, 0.0)
    """

    gain: float = setting(number, default=1.0)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Return gain I."""
        if len(shape) != 2:
            raise ShapeError(f"Identity needs weights of shape (in, out); got shape {shape}")
        return self.gain * np.eye(*shape)


def fans(shape: tuple[int, ...]) -> tuple[float, float]:
    """Return (fan_in, fan_out) of a kernel of shape (..., in, out).

    >>> fans((784, 128)), fans((5,)), fans((3, 3, 8, 16))
    ((784, 128), (5, 5), (72, 144))
    """
    if len(shape) < 2:
        size = shape[0] if shape else 1
        return size, size
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field


@registry.register
class GlorotUniform(VarianceScaling):
    """Uniform in +-sqrt(6 / (fan_in + fan_out)) (X. Glorot, Y. Bengio, AISTATS 2010).

    Args:
        seed: an integer, or None to use the model's seed.
    """

    scale, mode, distribution = 1.0, "fan_avg", "uniform"


@registry.register
class GlorotNormal(VarianceScaling):
    """Truncated normal of variance 2 / (fan_in + fan_out) (Glorot, Bengio 2010). Args: seed."""

    scale, mode, distribution = 1.0, "fan_avg", "truncated_normal"


@registry.register
class HeUniform(VarianceScaling):
    """Uniform in +-sqrt(6 / fan_in) (K. He et al., ICCV 2015). Args: seed."""

    scale, mode, distribution = 2.0, "fan_in", "uniform"


@registry.register
class HeNormal(VarianceScaling):
    """Truncated normal of variance 2 / fan_in (He et al. 2015). Args: seed."""

    scale, mode, distribution = 2.0, "fan_in", "truncated_normal"


@registry.register
class LecunUniform(VarianceScaling):
    """Uniform in +-sqrt(3 / fan_in) (Y. LeCun et al., "Efficient BackProp", 1998). Args: seed."""

    scale, mode, distribution = 1.0, "fan_in", "uniform"


@registry.register
class LecunNormal(VarianceScaling):
    """Truncated normal of variance 1 / fan_in (LeCun et al. 1998). Args: seed."""

    scale, mode, distribution = 1.0, "fan_in", "truncated_normal"


get = registry.get
