"""Choose the backend: an explicit choice, the environment, or the library of the arrays passed in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ..errors import InvalidValueError, unknown_name
from .base import BACKENDS, POLICIES, Array, Backend, library_of, make_backend, traced

_chosen: ContextVar[Backend | None] = ContextVar("xpnet_backend", default=None)


def get_backend(name: str | Backend | None = None, device: str | None = None, dtype: str | None = None) -> Backend:
    """Return a backend: by name, else as set by `use_backend` or the environment, else NumPy.

    Args:
        name: `"numpy"`, `"cupy"`, `"torch"`, `"jax"` or `"array_api_strict"`, a `Backend`, or None.
        device: a device's name; None takes `XPNET_DEVICE` (if it applies to this backend) or the default.
        dtype: a precision, see `Backend`; None takes `XPNET_DTYPE`, else `"float32"`.

    Raises:
        BackendError: it is not installed, or has no such device or precision.
        UnknownNameError: no backend has that name.

    >>> get_backend("numpy", dtype="float64")
    <Backend numpy, device None, float64>
    """
    return resolve((), name, device, dtype)


def resolve(
    arrays: Sequence[Any],
    name: str | Backend | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Backend:
    """Return the backend that computes with `arrays`; `xpnet.backend` states the priorities."""
    if isinstance(name, Backend):
        backend = name if device in (None, name.device_name) else make_backend(type(name), device, name.policy)  # type: ignore[arg-type]
        return backend.with_dtype(dtype)
    chosen = _chosen.get()
    if name is None and chosen is not None:
        return resolve((), chosen, device, dtype)
    variable = os.environ.get("XPNET_BACKEND") or None
    for candidate, origin in ((name, "backend"), (variable, "backend in XPNET_BACKEND")):
        if candidate is not None and candidate not in BACKENDS:
            raise unknown_name(origin, candidate, BACKENDS)
    wanted = os.environ.get("XPNET_DTYPE") or "float32"
    if wanted not in POLICIES:  # checked even if an argument overrides it
        raise unknown_name("dtype in XPNET_DTYPE", wanted, POLICIES)
    dtype = dtype or wanted
    if device is None and variable in (None, name or variable):
        device = os.environ.get("XPNET_DEVICE") or None
    given = [a for a in arrays if library_of(a) is not None]
    if name is None and variable is None and given:
        home = home_of(next((a for a in given if traced(a)), given[0]))
        return make_backend(type(home), device or home.device_name, dtype)  # type: ignore[arg-type]
    name = name or variable or "numpy"
    return make_backend(BACKENDS[name], device, dtype)  # type: ignore[arg-type]


@contextmanager
def use_backend(name: str | Backend, device: str | None = None, dtype: str | None = None) -> Iterator[Backend]:
    """Choose the backend for a block of code, in this thread (or task) only.

    >>> with use_backend("numpy", dtype="float64") as backend:
    ...     get_backend().dtype_name
    'float64'
    """
    backend = get_backend(name, device, dtype)
    token = _chosen.set(backend)
    try:
        yield backend
    finally:
        _chosen.reset(token)


def is_explicit(name: str | Backend | None = None) -> bool:
    """Return whether a backend was chosen explicitly, so that arrays do not decide."""
    return name is not None or _chosen.get() is not None or bool(os.environ.get("XPNET_BACKEND"))


def home_of(x: Any) -> Backend:
    """Return the backend for the library and device of `x`; NumPy for anything unknown."""
    library = make_backend(BACKENDS[library_of(x) or "numpy"], None, "float32")  # type: ignore[arg-type]
    return make_backend(type(library), library.device_of(x), "float32")  # type: ignore[arg-type]


def give_back(x: Array, like: Any, backend: Backend) -> Array:
    """Convert `x`, a result of `backend`, to the library and device of the caller's `like`.

    Traced arrays are returned unchanged.
    """
    if backend.traced(x):
        return x
    home = home_of(like)
    there = home.name == backend.name and home.device_name == backend.device_of(x)
    return x if there else home.array(backend.host(x))


def probe() -> list[dict[str, Any]]:
    """Return a report on every backend: whether it is available here, on which devices, or why not.

    >>> probe()[0]["name"], probe()[0]["available"]
    ('numpy', True)
    """
    report = []
    for name, cls in BACKENDS.items():
        row: dict[str, Any] = {"name": name, "available": False, "version": None, "devices": []}
        try:
            row["version"] = cls.version()
            row["devices"] = cls.devices()
            make_backend(cls, None, "float32")  # type: ignore[arg-type]
            row.update(available=True, reason=None, install=None)
        except (ImportError, OSError) as error:
            row.update(reason=str(error), install=cls.install)
        report.append(row)
    return report


def available_backends() -> list[str]:
    """Return the names of the backends available on this machine.

    >>> "numpy" in available_backends()
    True
    """
    return [row["name"] for row in probe() if row["available"]]


def floating(dtype: str | None) -> str | None:
    """Return `dtype` if it is None or names a precision of xpnet, else raise.

    >>> floating("float64")
    'float64'
    """
    if dtype is not None and not isinstance(dtype, str):
        raise InvalidValueError(f"dtype must be one of {tuple(POLICIES)} or None; got {dtype!r}")
    if dtype is not None and dtype not in POLICIES:
        raise unknown_name("dtype", dtype, POLICIES)
    return dtype
