"""Small helpers of Keras' `utils`."""

from __future__ import annotations

import random
from typing import Any

from .backend import Array, np
from .core.random import set_first_seed
from .errors import InvalidValueError, number
from .kernels.context import enter, numeric

__all__ = ["set_random_seed", "to_categorical"]


def to_categorical(x: Any, num_classes: int | None = None) -> Array:
    """Return class numbers as one-hot rows, in the library of `x`.

    Args:
        x: integers, shape (...) or (..., 1). num_classes: None for the largest + 1.

    Returns:
        Array of the shape (..., num_classes).

    Raises:
        InvalidValueError: a number is negative, not an integer, or not below `num_classes`.

    >>> to_categorical([0, 2]).tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    ctx, leave = enter(x)
    host = np.asarray(numeric(x))
    if host.ndim > 1 and host.shape[-1] == 1:
        host = host[..., 0]
    if num_classes is None:
        num_classes = max(1, int(host.max(initial=0)) + 1)
    top = number("num_classes", num_classes, 1, integer=True)
    wrong = host[(host < 0) | (host >= top) | (host != np.floor(host))]
    if wrong.size:
        raise InvalidValueError(f"class numbers must be integers from 0 to {top - 1}; got {wrong[0]}")
    return leave(ctx.backend.array(np.eye(top)[host.astype(np.int64)], ctx.backend.dtype_name))


def set_random_seed(seed: int) -> None:
    """Seed Python's and NumPy's random numbers, and the models made without a seed from now on.

    Args:
        seed: an integer, 0 to 2^32 - 1.

    >>> import xpnet as xn
    >>> set_random_seed(7)
    >>> first = xn.Sequential().seed
    >>> set_random_seed(7)
    >>> xn.Sequential().seed == first
    True
    """
    number("seed", seed, 0, 2**32 - 1, integer=True)
    random.seed(seed)
    np.random.seed(seed)
    set_first_seed(seed)
