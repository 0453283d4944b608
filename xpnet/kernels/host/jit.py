"""Compile loops with numba and cache them on disk; damaged cache files are detected and recompiled.

Each cache file ends with a checksum. Without it, a damaged file would raise arbitrary `pickle` errors, or its
damaged machine code would run.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.compiler_lock import global_compiler_lock

__all__ = ["loop", "sum_loop"]

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


def sum_loop(function: Any) -> Any:
    """Compile a loop that adds up: as `loop`, in any order of the sums, so that vector instructions make them."""
    return loop(function, fastmath={"contract", "reassoc", "nsz"})


def loop(function: Any, **options: Any) -> Any:
    """Compile a loop at its first use; cache it on disk if possible. Args: options: numba's, beside `OPTIONS`."""
    compiled = numba.njit(**{**OPTIONS, **options})(function)
    try:
        compiled._cache = _Cache(function)
    except (RuntimeError, OSError) as error:  # neither the source's folder nor the user's cache is writable
        _tell(error)
    return compiled


class _Cache(FunctionCache):
    """Numba's cache of one loop; if the cache fails, the loop is recompiled."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        name = f"{self._impl.filename_base}.sum"  # numba's own files have no checksum
        self._cache_file = _Files(self._cache_path, name, self._impl.locator.get_source_stamp())

    def load_overload(self, *args: Any) -> Any:
        """Return a compiled loop, or None if it must be compiled."""
        loaded = None
        try:
            loaded = super().load_overload(*args)
        except Exception as error:  # noqa: BLE001 - any kind; reported as a warning
            self._cache_file.error = error
        _tell(self._cache_file.error)
        return loaded

    def save_overload(self, *args: Any) -> None:
        """Save a compiled loop, if possible."""
        try:
            super().save_overload(*args)
        except Exception as error:  # noqa: BLE001 - likewise
            self._cache_file.error = error
        _tell(self._cache_file.error)


class _Files(IndexDataCacheFile):
    """The cache files of a loop, each with a checksum at its end."""

    error: Exception | None = None  # why a file could not be used

    def _load_index(self) -> Any:
        try:
            _check(self._index_path)
            return super()._load_index()
        except FileNotFoundError:
            return {}
        except OSError as error:
            self.error = error
            return {}  # so that it is rewritten

    def _load_data(self, name: str) -> Any:
        try:
            _check(self._data_path(name))
            return super()._load_data(name)
        except FileNotFoundError:
            raise  # numba expects that
        except OSError as error:
            self.error = error
            raise

    @contextmanager
    def _open_for_write(self, path: str) -> Iterator[io.BytesIO]:
        content = io.BytesIO()
        yield content
        data = content.getvalue()
        with super()._open_for_write(path) as file:
            file.write(data + hashlib.sha256(data).digest())


def _check(path: str) -> None:
    """Verify a file's checksum.

    Raises:
        OSError: it can't be read, or is damaged.
    """
    with open(path, "rb") as file:
        content = file.read()
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise OSError(f"{path} is damaged")


_told = False


def _tell(error: Exception | None) -> None:
    """Warn about a failing cache, once per process."""
    global _told
    if error is not None and not _told:
        _told = True
        warnings.warn(
            "numba's cache of compiled loops fails: each process compiles them again until it works; got "
            f"{type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )


# else a child forked while another thread compiles would wait for the lock forever
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )
