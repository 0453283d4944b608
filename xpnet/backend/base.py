"""The base class of backends: one array library on one device, computing in one precision."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np

from ..errors import BackendError, unknown_name
from .tree import Tree, tree_map

Array = Any  # an array of any library; the standard defines no common type

# Precisions by name, and the 16-bit dtype to which factors of products are rounded. Under a "mixed" policy
# weights, sums and everything else stay in float32 (P. Micikevicius et al., ICLR 2018).
POLICIES = {"float32": None, "float64": None, "mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}
LARGEST_COUNT = 2**63 - 1  # largest number of steps and epochs: see `Backend.count`


class Backend:
    """One array library on one device, computing in one floating-point precision.

    Args:
        device: the library's name of the device (`"cpu"`, `"cuda:1"`), or None for its default.
        dtype: `"float32"`, `"float64"`, `"mixed_float16"` or `"mixed_bfloat16"`.

    Attributes:
        xp: the array API namespace. policy: the `dtype` argument.
        dtype, dtype_name: the floating dtype of all arrays, and its name.
        narrow: the name of the dtype to which factors of products are rounded, or None.
        device: what `xp` accepts as `device=`. inplace: whether twins may write to arrays.
        wide: whether 64-bit numbers are available.

    Raises:
        BackendError: the library is not installed, has no such device, or lacks the precision.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    install: ClassVar[str]
    inplace: bool = False
    wide: bool = True
    checked: ClassVar[bool] = False  # twins are compared with their bodies on the device at hand
    pooled: ClassVar[bool] = False  # freed memory is handed out again by the library, not by the system
    special: ClassVar[str | None] = None  # the library's module of special functions, beside its namespace

    def __init__(self, device: str | None = None, dtype: str = "float32") -> None:
        if dtype not in POLICIES:
            raise unknown_name("dtype", dtype, POLICIES)
        self.xp = self._namespace()
        self.device_name = device
        self.device = self._device(device)
        self.policy, self.narrow = dtype, POLICIES[dtype]
        self.dtype_name = dtype if self.narrow is None else "float32"
        self.dtype = getattr(self.xp, self.dtype_name)
        if self.narrow == "float16" and not hasattr(self.xp, "float16"):
            raise BackendError(
                f"backend {self.name!r} has no float16; use 'mixed_bfloat16' or 'float32'; got {dtype!r}"
            )

    def __repr__(self) -> str:
        return f"<Backend {self.name}, device {self.device!s}, {self.policy}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return make_backend, (type(self), self.device_name, self.policy)

    # Differs between libraries --------------------------------------------------------------------------

    def _namespace(self) -> Any:
        return importlib.import_module(self.package)

    def _device(self, device: str | None) -> Any:
        if device not in (None, "cpu"):
            raise self._no_device(device, self.devices())
        return None

    @classmethod
    def devices(cls) -> list[str]:
        """Return the names of the library's devices on this machine."""
        return ["cpu"]

    @classmethod
    def version(cls) -> str:
        """Return the version of the library."""
        return str(importlib.import_module(cls.package.replace("array_api_compat.", "")).__version__)

    @classmethod
    def owns(cls, x: Any) -> bool:
        """Return whether `x` is an array of this library."""
        return type(x).__module__.partition(".")[0] == cls.package

    @staticmethod
    def host(x: Array) -> np.ndarray:
        """Return `x` as a NumPy array (which may share its memory)."""
        return np.asarray(x)

    def array(self, x: Any, dtype: str | None = None) -> Array:
        """Copy host data to this device, with the named dtype or its own."""
        return self.feed(fresh(x, dtype))

    def feed(self, x: np.ndarray) -> Array:
        """Pass in a host array that no one else will write to; it may be used without a copy."""
        return self.xp.asarray(x, device=self.device)

    def copy(self, x: Array) -> Array:
        """Return a copy that later steps do not modify."""
        return self.xp.asarray(x, copy=True)

    def device_of(self, x: Array) -> str | None:
        """Return the name of the device of an array of this library; None for the default device."""
        return None

    @classmethod
    def traced(cls, x: Any) -> bool:
        """Return whether the numbers of `x`, an array of this library, are not known yet."""
        return False

    @staticmethod
    def shares(x: Array, y: Array) -> bool:
        """Return whether two arrays of this library may share writable memory."""
        return False

    @classmethod
    def nearest(cls, dtype: str) -> str:
        """Return the precision used for arrays of `dtype`: their own if the library allows it now."""
        return dtype

    def when(self, ok: Array, update: Callable[[Tree], Tree], kept: Tree) -> Tree:
        """Return `update(kept)` if the 0-d boolean array `ok` is true, else `kept`, without a host sync."""
        return tree_map(partial(self.xp.where, ok), update(kept), kept)

    def here(self) -> AbstractContextManager[Any]:
        """Return a context that makes this device current, for libraries that need it."""
        return nullcontext()

    def jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, compiled if the library supports it."""
        return function

    def compile(self, step: Callable[..., Tree]) -> Callable[..., None]:
        """Return `run(state, batches, commit)`, which takes one step per batch.

        Each step is `step(state, batch, finish) -> state` (see `training.step.make_step`). `commit(state, finish)`
        makes the calls that end it and stores the new state: between steps the state is complete.
        """

        def run(state: Tree, batches: Sequence[Tree], commit: Any) -> None:
            with self.here(), np.errstate(all="ignore"):  # the guard detects non-finite results
                for batch in batches:
                    finish: list[Any] = []
                    state = step(state, batch, finish)
                    commit(state, finish)

        return run

    # Common to all -------------------------------------------------------------------------------------

    def bring(self, x: Array) -> Array:
        """Convert `x`, an array of any known library, to an array of this one on this device."""
        if self.owns(x):
            return self.xp.asarray(x, device=self.device)
        return self.array(plain(host_of(x)))

    def zeros(self, shape: int | tuple[int, ...], dtype: Any = None) -> Array:
        """Return zeros on this device, by default in the backend's floating dtype."""
        return self.xp.zeros(shape, dtype=dtype or self.dtype, device=self.device)

    def scalar(self, value: Any, dtype: Any = None) -> Array:
        """Return a 0-d array on this device."""
        return self.xp.asarray(value, dtype=dtype or self.dtype, device=self.device)

    def count(self, value: int) -> Array:
        """Return a step count as an array: int64, 0-d; or two words, uint32, shape (2,), the lower first."""
        if self.wide:
            return self.scalar(value, self.xp.int64)
        return self.array([value & 0xFFFFFFFF, value >> 32], "uint32")

    def counted(self, count: Array) -> int:
        """Return the integer from which `count` made this array."""
        host = self.host(count)
        return int(host) if host.ndim == 0 else int(host[0]) | int(host[1]) << 32

    def with_dtype(self, dtype: str | None) -> Backend:
        """Return the backend for the same device and the precision `dtype`."""
        return self if dtype in (None, self.policy) else make_backend(type(self), self.device_name, dtype)  # type: ignore[arg-type]

    @classmethod
    def _no_device(cls, device: object, known: list[str]) -> BackendError:
        return BackendError(f"backend {cls.name!r} has no such device here; found {known}; got {device!r}")


BACKENDS: dict[str, type[Backend]] = {}  # by name; filled by `xpnet.backend`


@lru_cache(maxsize=64)
def make_backend(cls: type[Backend], device: str | None, dtype: str) -> Backend:
    """Return the backend for a class, device and precision; the same object at every call.

    Raises:
        BackendError: the library is not installed, has no such device, or lacks the precision.
    """
    try:
        return cls(device, dtype)
    except BackendError:
        raise
    except (ImportError, OSError) as error:
        raise BackendError(
            f"backend {cls.name!r} is not installed here or can't be loaded ({error}); "
            f"install it with: {cls.install}; got {cls.name!r}"
        ) from error


def special_function(xp: Any, name: str) -> Callable[[Array], Array] | None:
    """Return the function of that name that the library of a namespace has beside it; None without one."""
    package = getattr(xp, "__name__", None)
    module = next((cls.special for cls in BACKENDS.values() if cls.package == package), None)
    return None if module is None else getattr(importlib.import_module(module), name, None)


def library_of(x: Any) -> str | None:
    """Return the name of the backend to whose library the array `x` belongs; None for anything else.

    >>> library_of(np.zeros(3)), library_of([1, 2])
    ('numpy', None)
    """
    return next((name for name, cls in BACKENDS.items() if cls.owns(x) and hasattr(x, "shape")), None)


def host_of(x: Any) -> np.ndarray:
    """Convert an array of any known library, or anything NumPy can read, to a NumPy array."""
    library = library_of(x)
    return np.asarray(x) if library is None else BACKENDS[library].host(x)


def traced(x: Any) -> bool:
    """Return whether `x` is an array whose numbers are not known yet, as under `jax.jit`."""
    library = library_of(x)
    return library is not None and BACKENDS[library].traced(x)


def fresh(x: Any, dtype: str | None) -> np.ndarray:
    """Copy host data, with the named dtype or its own; numbers too small for the dtype become 0."""
    with np.errstate(all="ignore"):
        return in_order(np.array(x, dtype=dtype))


def in_order(x: np.ndarray) -> np.ndarray:
    """Return host data in this machine's byte order, the only one that all libraries read."""
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def plain(x: np.ndarray) -> np.ndarray:
    """Convert host data to a dtype that all libraries read: floats become float32 or float64.

    >>> plain(np.ones(1, np.longdouble)).dtype.name, plain(np.ones(1, ">f2")).dtype.name
    ('float64', 'float32')
    """
    if x.dtype.char == "g":  # long double: 64 bits or more, depending on the machine
        return x.astype(np.float64)
    narrow = x.dtype.name.startswith(("float", "bfloat")) and x.dtype.itemsize < 4
    return x.astype(np.float32) if narrow else in_order(x)
