"""Data sets from arrays, lists and tables; cast and moved to the device batch by batch.

The data set itself is never copied. It is checked in blocks.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..backend import Array, Backend, home_of, host_of, library_of, np, traced
from ..core.convert import check_classes, check_real, is_table, numeric
from ..errors import InvalidTypeError, InvalidValueError, ShapeError, number
from ..kernels.host.threads import gather
from ..losses.base import without_ones

__all__ = ["Column", "Data", "blocks", "class_factors", "class_weights", "weigh"]

Rows = Any  # a slice, or an array of row numbers

BLOCK_ELEMENTS = 1 << 18  # elements that are checked at a time
MAX_FINITE = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38, "float32": 3.4028234663852886e38}


class Column:
    """One array of a data set; its first axis is the rows.

    Args:
        values: a NumPy, CuPy, ... array, a list, or a pandas, polars or pyarrow table or series.
        what: its name in error messages.

    Raises:
        InvalidTypeError: not numeric. InvalidValueError: has masked values. ShapeError: has no rows.
    """

    def __init__(self, values: Any, what: str) -> None:
        self.gaps = is_table(values)  # whether NaN may stand for a missing value
        if library_of(values) is None:
            values = numeric(values, what)
        elif traced(values):
            raise InvalidTypeError(
                f"{what} must be a concrete array: call a model outside of jax.jit, jax.grad and jax.vmap; got "
                f"{type(values).__name__}"
            )
        self.kind = check_real(values, what)
        self.native = getattr(values.dtype, "isnative", True)  # byte order
        if values.ndim == 0 or values.shape[0] == 0:
            raise ShapeError(f"{what} must have rows; got shape {tuple(values.shape)}")
        self.what, self.values, self.home = what, values, home_of(values)
        self._buffer: np.ndarray | None = None

    def __len__(self) -> int:
        return int(self.values.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a row."""
        return tuple(int(n) for n in self.values.shape[1:])

    def part(self, rows: slice) -> Column:
        """Return a range of rows as a view."""
        return Column(self.values[rows, ...], self.what)

    def take(self, rows: Rows, reuse: bool = False) -> Array:
        """Return rows in the data's own library; with `reuse`, in a buffer that the next call overwrites."""
        if isinstance(rows, slice):
            return self.values[rows, ...]
        if isinstance(self.values, np.ndarray):
            if not self.values.flags.c_contiguous:  # e.g. from a table: `take` would first copy the whole array
                return self.values[rows]
            if not reuse:
                return np.take(self.values, rows, axis=0)
            if self._buffer is None or len(self._buffer) < len(rows):
                self._buffer = np.empty((len(rows), *self.shape), self.values.dtype)
            return gather(self.values, rows, self._buffer[: len(rows)])
        return self.home.xp.take(self.values, self.home.array(rows), axis=0)

    def move(self, taken: Array, backend: Backend, dtype: str) -> Array:
        """Return the result of `take` on the model's device, in the named dtype."""
        if self.home.name == backend.name:
            if self.kind == dtype and self.native:
                return backend.bring(taken)
            with np.errstate(all="ignore"):  # values may underflow in the model's precision
                return backend.xp.astype(backend.bring(taken), getattr(backend.xp, dtype), copy=False)
        with np.errstate(all="ignore"):
            return backend.feed(np.ascontiguousarray(host_of(taken), dtype=dtype))

    def check_finite(self, limit: float) -> None:
        """Raise if a value is NaN, infinite, or too large for the model's precision.

        Raises:
            InvalidValueError: names the first such row.
        """
        if not self.kind.startswith(("float", "bfloat")):
            return
        xp, limit = self.home.xp, min(limit, MAX_FINITE.get(self.kind, limit))
        for rows in blocks(self.values.shape):
            block = self.values[rows, ...]
            if not (self._small(block, limit) or bool(xp.all(xp.abs(block) <= limit))):
                host = host_of(block).reshape(block.shape[0], -1)
                row, place = np.argwhere(~(np.abs(host) <= limit))[0]
                hint = " (missing values of a table are NaN)" if self.gaps else ""
                raise InvalidValueError(
                    f"{self.what} must be finite numbers of at most {limit:.3g}{hint}; in row {rows.start + row} "
                    f"got {host[row, place]}"
                )

    def _small(self, block: Array, limit: float) -> bool:
        """Return whether the norm of a block is at most `limit`: one pass, false for NaN and infinity."""
        if self.kind not in ("float32", "float64"):
            return False
        flat = self.home.xp.reshape(block, (-1,))
        with np.errstate(all="ignore"):
            square = self.home.xp.vecdot(flat, flat)
        return bool(square <= min(limit * limit, MAX_FINITE.get(self.kind, sys.float_info.max)))


class Data:
    """Inputs with optional targets and weights, all with the same number of rows.

    Args:
        x: shape (rows, ...); (rows,) is taken as (rows, 1). y: targets or None.
        sample_weight: shape (rows,) or (rows, ...), or None.

    Raises:
        ShapeError: no rows, or their numbers differ. InvalidTypeError: an argument is not numeric.
    """

    def __init__(self, x: Any, y: Any = None, sample_weight: Any = None) -> None:
        self.x = Column(x, "x")
        self.given_shape = tuple(int(n) for n in self.x.values.shape)  # for error messages
        if not self.x.shape:
            self.x = Column(self.x.home.xp.reshape(self.x.values, (-1, 1)), "x")
        self.y = None if y is None else Column(y, "y")
        self.weight = None if sample_weight is None else Column(sample_weight, "sample_weight")
        for column in (self.y, self.weight):
            if column is not None and len(column) != len(self.x):
                raise ShapeError(
                    f"x and {column.what} must have the same number of rows; got {len(self.x)} and {len(column)}"
                )

    def __len__(self) -> int:
        return len(self.x)

    def split(self, share: float) -> tuple[Data, Data]:
        """Split off the last `share` of the rows; return both parts.

        Raises:
            InvalidValueError: one of the parts would be empty.
        """
        share = number("validation_split", share, 0, 1, open_low=True, open_high=True)
        cut = int(len(self) * (1 - share))
        if not 0 < cut < len(self):
            raise InvalidValueError(f"validation_split of {len(self)} rows leaves an empty part; got {share}")
        return self._part(slice(0, cut)), self._part(slice(cut, len(self)))

    def _part(self, rows: slice) -> Data:
        parts = [None if c is None else c.part(rows).values for c in (self.x, self.y, self.weight)]
        return Data(*parts)

    def check(
        self,
        limit: float,
        check_targets: Callable[[np.ndarray, int], None] | None = None,
        classes: int | None = None,
    ) -> None:
        """Check all rows, block by block: finite numbers and valid targets.

        Args:
            limit: the largest number of the model's precision.
            check_targets: called with host targets and their number of rows, once per block.
            classes: if not None, x must consist of class numbers from 0 to classes - 1.
        """
        self.x.check_finite(limit)
        if classes is not None:
            for rows in blocks(self.x.values.shape):
                check_classes(host_of(self.x.values[rows, ...]), classes)
        if self.weight is not None:
            self.weight.check_finite(limit)
        if self.y is not None:
            self.y.check_finite(limit)
            if check_targets is not None:
                for rows in blocks(self.y.values.shape):
                    host = host_of(self.y.values[rows, ...])
                    check_targets(host, host.shape[0])

    def batch(
        self,
        rows: Rows,
        backend: Backend,
        target_shape: tuple[int, ...] | None = None,
        target_dtype: str | None = None,
        weights_of_classes: Mapping[int, float] | None = None,
        reuse: bool = False,
    ) -> tuple[Array, Array | None, Array | None]:
        """Return x, y and weights of some rows on the model's device.

        Args:
            rows: a slice, or row numbers on the host. target_shape: of a row of y. target_dtype: of y.
            weights_of_classes: factors by class, see `class_weights`. reuse: whether to reuse the last batch's
                host memory; allowed if its step has ended.
        """
        x = self.x.move(self.x.take(rows, reuse), backend, backend.dtype_name)
        y = weight = None
        if self.y is not None:
            taken = self.y.take(rows, reuse)
            if target_shape is not None and tuple(taken.shape[1:]) != target_shape:
                taken = self.y.home.xp.reshape(taken, (taken.shape[0], *target_shape))
            y = self.y.move(taken, backend, target_dtype or backend.dtype_name)
            if weights_of_classes:
                weight = class_weights(backend, y, weights_of_classes, target_dtype == "int32")
        if self.weight is not None:
            own = self.weight.move(self.weight.take(rows, reuse), backend, backend.dtype_name)
            weight = weigh(backend, own, weight)
        return x, y, weight


def blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield the rows of an array of this shape in blocks of about `BLOCK_ELEMENTS` elements.

    >>> [(s.start, s.stop) for s in blocks((5, 1 << 17))]
    [(0, 2), (2, 4), (4, 5)]
    """
    rows = max(1, BLOCK_ELEMENTS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def class_weights(backend: Backend, y: Array, factors: Mapping[int, float], sparse: bool = False) -> Array:
    """Return the weight of each target, shape (rows, ...): the factor of its class, 1 if it has none.

    Args:
        y: class numbers (rows,), or with `sparse` (rows, ...); one output (rows, ..., 1), or one-hot
            (rows, ..., classes).
    """
    xp = backend.xp
    if y.ndim > 1 and not sparse:
        y = xp.argmax(y, axis=-1) if y.shape[-1] > 1 else xp.reshape(y, y.shape[:-1])
    one = backend.scalar(1.0)
    weight = xp.broadcast_to(one, y.shape)
    for label, factor in factors.items():
        weight = xp.where(y == label, one * factor, weight)
    return weight


def weigh(backend: Backend, own: Array, of_classes: Array | None) -> Array:
    """Return row weights times the weights of their classes (or None), both of shape (rows, ...).

    Trailing axes of size 1 of the row weights are dropped.
    """
    own = backend.xp.reshape(own, without_ones(tuple(own.shape)))
    if of_classes is None:
        return own
    axes = max(own.ndim, of_classes.ndim)
    own, of_classes = (backend.xp.reshape(a, (*a.shape, *[1] * (axes - a.ndim))) for a in (own, of_classes))
    return of_classes * own


def class_factors(class_weight: Any) -> dict[int, float] | None:
    """Return `class_weight` as a dict from class to factor, or None.

    Raises:
        InvalidTypeError, InvalidValueError: not such a dict.
    """
    if class_weight is None:
        return None
    if not isinstance(class_weight, Mapping):
        raise InvalidTypeError(f"class_weight must be a dict from class to factor; got {class_weight!r}")
    return {
        number("class_weight's classes", k, integer=True): float(number("class_weight's factors", v))
        for k, v in class_weight.items()
    }
