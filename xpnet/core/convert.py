"""Convert user data (arrays of any library, lists, numbers, tables) to numeric arrays on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backend import Array, host_of, library_of, np
from ..errors import InvalidTypeError, InvalidValueError

__all__ = ["check_classes", "check_real", "is_table", "kind_of", "numeric"]

NUMERIC_KINDS = "fiub"  # NumPy's letters for floats, integers and booleans
ENCODE_HINT = "; encode text as numbers first, labels for example with np.unique(labels, return_inverse=True)[1]"


def numeric(x: Any, what: str = "the argument") -> np.ndarray:
    """Return an array, list, table or number as a numeric host array; missing values of a table become NaN.

    Args:
        x: the data. what: its name in error messages.

    Raises:
        InvalidTypeError: not numeric, rows of different lengths, sparse, or an iterator or loader.
        InvalidValueError: has masked values.
    """
    kind = type(x).__name__
    _check_dense(x, what)
    if hasattr(x, "filled") and np.any(x.mask):
        raise InvalidValueError(
            f"{what} must not have masked values: fill them with x.filled(value), or remove their rows; got "
            f"{int(np.sum(x.mask))} masked"
        )
    if library_of(x) is None and not _is_complete(x):
        raise InvalidTypeError(
            f"{what} must hold all rows: an array, a list, or a table of pandas, polars or pyarrow (to train on "
            f"single batches, call train_on_batch); got {kind}"
        )
    try:
        host = host_of(x)
        if host.dtype.kind not in NUMERIC_KINDS and is_table(x):
            return _from_columns(x, what)
    except ValueError as error:  # ragged lists
        if isinstance(error, InvalidValueError):
            raise
        raise InvalidTypeError(f"{what} must be an array of numbers ({error}); got {kind}") from error
    if host.dtype.kind not in NUMERIC_KINDS:
        raise InvalidTypeError(
            f"{what} must be an array of numbers{_to_encode(host)}; got dtype {host.dtype} ({kind})"
        )
    return host


def check_real(x: Array, what: str = "the argument") -> str:
    """Return the dtype name of an array of a known library.

    Raises:
        InvalidTypeError: its elements are not real numbers, or it is sparse.
    """
    _check_dense(x, what)
    kind = kind_of(x)
    if not kind.startswith(("float", "int", "uint", "bool", "bfloat", "longdouble")):
        raise InvalidTypeError(f"{what} must consist of real numbers{_to_encode(x)}; got dtype {kind}")
    return kind


def check_classes(x: np.ndarray, classes: int, what: str = "x") -> None:
    """Raise unless a host array consists of class numbers, integers from 0 to classes - 1.

    >>> check_classes(np.asarray([0.0, 2.0]), 3)
    """
    wrong = ~((x >= 0) & (x < classes) & (x == np.floor(x)))
    if wrong.any():
        raise InvalidValueError(
            f"{what} must consist of class numbers, integers from 0 to {classes - 1}; got {x[wrong][0]}"
        )


def kind_of(x: Array) -> str:
    """Return the name of an array's dtype, without the library's name or the byte order."""
    return getattr(x.dtype, "name", None) or str(x.dtype).rpartition(".")[2]


def is_table(x: Any) -> bool:
    """Return whether `x` is a table, series or column of pandas, polars or pyarrow."""
    return library_of(x) is None and (hasattr(x, "to_numpy") or hasattr(x, "column_names"))


def _check_dense(x: Any, what: str) -> None:
    layout = str(getattr(x, "layout", "strided"))  # PyTorch's; its dense tensors have `to_dense` too
    ways = ["toarray", "todense"] if layout.endswith("strided") else ["to_dense"]
    way = next((name for name in ways if hasattr(x, name)), None)
    if way is not None:
        raise InvalidTypeError(f"{what} must be dense: call its .{way}() first; got a sparse {type(x).__name__}")


def _is_complete(x: Any) -> bool:
    """Return whether `x` holds all its elements, unlike a generator, loader or dictionary."""
    if is_table(x) or isinstance(x, (Sequence, str, bytes, memoryview)):
        return True
    if any(hasattr(x, name) for name in ("__array__", "__array_interface__", "__dlpack__", "__buffer__")):
        return True
    return not (hasattr(x, "__iter__") or hasattr(x, "__getitem__"))


def _to_encode(x: Any) -> str:
    kind = getattr(x.dtype, "kind", None)
    text = kind == "O" and any(isinstance(element, str) for element in x.reshape(-1)[:100])
    return ENCODE_HINT if text or kind in ("U", "S", "T") else ""


def _from_columns(table: Any, what: str) -> np.ndarray:
    """Return a table with columns of mixed types, missing values or lists as one array."""
    columns = _columns_of(table)
    found = [(name, _numbers(column)) for name, column in columns]
    texts = [name for name, part in found if part is None]
    if texts:
        host = np.asarray(table)
        shown = ", ".join(texts) or type(table).__name__
        raise InvalidTypeError(
            f"{what} must have numeric columns only{_to_encode(host)}; got dtype {host.dtype} ({shown})"
        )
    parts = [part for _, part in found if part is not None]
    return (
        np.stack([np.asarray(p, dtype=np.float64) for p in parts], axis=1)
        if hasattr(table, "columns")
        else parts[0]
    )


def _columns_of(table: Any) -> list[tuple[str, Any]]:
    """Return the columns with their names; a series is its own only column."""
    if not hasattr(table, "columns"):
        return [("", table)]
    if hasattr(table, "column_names"):
        return list(zip(table.column_names, table.columns))
    if hasattr(table, "iloc"):  # by position: names may be numbers or tuples, or repeat
        return [(str(name), table.iloc[:, i]) for i, name in enumerate(table.columns)]
    return [(name, table[name]) for name in table.columns]


def _numbers(column: Any) -> np.ndarray | None:
    """Return a column as numbers, missing values as NaN; None if it is not numeric."""
    host = np.asarray(column)
    if host.dtype.kind == "O":
        host = np.array([_plain(e) for e in host])
    return host if host.dtype.kind in NUMERIC_KINDS else None


def _plain(element: Any) -> Any:
    """Convert an element of a column for NumPy: arrays to lists, missing values to NaN."""
    if isinstance(element, np.ndarray):
        return [_plain(e) for e in element] if element.dtype.kind == "O" else element.tolist()
    return float("nan") if element is None or type(element).__name__ == "NAType" else element
