"""Which array library, which device, which precision; host <-> device; `compile(step)`.

This file and `kernels/` are the only places where an array library is named. A `Backend` is made once and
carried along; everything else computes with its `xp`, a namespace of the Python array API standard.

Which backend does the work, strongest first: an explicit argument or `use_backend(...)`; the environment
variable `XPNET_BACKEND` (with `XPNET_DEVICE` and `XPNET_DTYPE`); the library of the arrays passed in; NumPy.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np

from .errors import BackendError, InvalidTypeError, InvalidValueError, unknown_name
from .tree import Stack, Tree, tree_map

__all__ = ["BACKENDS", "Backend", "available_backends", "get_backend", "np", "use_backend"]

Array = Any  # an array of whichever library: the standard has no common type

# Precisions by name, and the 16-bit dtype that the factors of products are rounded to. Weights, sums and all
# that is not a product stay in float32 under a "mixed" one (P. Micikevicius et al., ICLR 2018).
POLICIES = {"float32": None, "float64": None, "mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}

LARGEST_COUNT = 2**63 - 1  # of steps and epochs: see `Backend.count`


class Backend:
    """One array library on one device, computing in one floating precision.

    Args:
        device: the device's name in the library's own spelling (`"cpu"`, `"cuda:1"`), or None for its default.
        dtype: `"float32"`, `"float64"`, `"mixed_float16"` or `"mixed_bfloat16"`.

    Attributes:
        xp: the array API namespace. policy: the precision as it was named.
        dtype, dtype_name: the floating dtype of all arrays, and its name.
        narrow: the name of the dtype that factors of products are rounded to, None without such.
        device: what `xp` takes as `device=`. inplace: whether twins may write into arrays.
        wide: whether there are 64-bit numbers.

    Raises:
        BackendError: the library is not installed, has no such device, or lacks the precision.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    install: ClassVar[str]
    inplace: bool = False
    wide: bool = True
    pooled: ClassVar[bool] = False  # freed memory is handed out again by the library, not by the system

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
        return get_backend, (self.name, self.device_name, self.policy)

    # What differs from library to library -------------------------------------------------------------

    def _namespace(self) -> Any:
        return importlib.import_module(self.package)

    def _device(self, device: str | None) -> Any:
        if device not in (None, "cpu"):
            raise self._no_device(device, self.devices())
        return None

    @classmethod
    def devices(cls) -> list[str]:
        """Return the names of the devices that this machine has for the library."""
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
        """Return a copy of host data on this device, of the named dtype or else its own."""
        return self.feed(fresh(x, dtype))

    def feed(self, x: np.ndarray) -> Array:
        """Hand over a host array that nobody else will write to; it may be used without a copy."""
        return self.xp.asarray(x, device=self.device)

    def copy(self, x: Array) -> Array:
        """Return a copy that later steps do not touch."""
        return self.xp.asarray(x, copy=True)

    def device_of(self, x: Array) -> str | None:
        """Return the name of the device that an array of this library is on (None: the default)."""
        return None

    @classmethod
    def traced(cls, x: Any) -> bool:
        """Return whether `x`, an array of this library, stands for numbers that are not known yet."""
        return False

    @staticmethod
    def shares(x: Array, y: Array) -> bool:
        """Return whether two arrays of this library may share memory that can be written to."""
        return False

    @classmethod
    def nearest(cls, dtype: str) -> str:
        """Return the precision that arrays of `dtype` are computed in: their own, where the library can now."""
        return dtype

    def when(self, ok: Array, update: Callable[[Tree], Tree], kept: Tree) -> Tree:
        """Return `update(kept)` where the 0-d boolean array `ok` holds, else `kept`: no host sync."""
        return tree_map(partial(self.xp.where, ok), update(kept), kept)

    def here(self) -> AbstractContextManager[Any]:
        """Return a context in which the library computes on this device, where arrays alone do not decide that."""
        return nullcontext()

    def jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, compiled where the library can."""
        return function

    def compile(self, step: Callable[..., Tree]) -> Callable[..., None]:
        """Return `run(state, batches, commit)`, which takes one step per batch.

        Each step is `step(state, batch, finish) -> state` (see `training.make_step`). `commit(state, finish)`
        makes the calls that end it and takes the new state over: between two of them the state is that of a whole
        step.
        """

        def run(state: Tree, batches: Sequence[Tree], commit: Any) -> None:
            with self.here(), np.errstate(all="ignore"):  # the guard finds what is not finite
                for batch in batches:
                    finish: list[Any] = []
                    state = step(state, batch, finish)
                    commit(state, finish)

        return run

    # The same everywhere ------------------------------------------------------------------------------

    def bring(self, x: Array) -> Array:
        """Return `x`, an array of any known library, as an array of this one on this device."""
        if self.owns(x):
            return self.xp.asarray(x, device=self.device)
        return self.array(plain(host_of(x)))

    def zeros(self, shape: int | tuple[int, ...], dtype: Any = None) -> Array:
        """Return zeros on this device, in the backend's floating dtype unless told otherwise."""
        return self.xp.zeros(shape, dtype=dtype or self.dtype, device=self.device)

    def scalar(self, value: Any, dtype: Any = None) -> Array:
        """Return a 0-d array on this device."""
        return self.xp.asarray(value, dtype=dtype or self.dtype, device=self.device)

    def count(self, value: int) -> Array:
        """Return a count of steps as an array: int64, 0-d; or two words, uint32, shape (2,), the lower first."""
        if self.wide:
            return self.scalar(value, self.xp.int64)
        return self.array([value & 0xFFFFFFFF, value >> 32], "uint32")

    def counted(self, count: Array) -> int:
        """Return the number that `count` made an array of."""
        host = self.host(count)
        return int(host) if host.ndim == 0 else int(host[0]) | int(host[1]) << 32

    def with_dtype(self, dtype: str | None) -> Backend:
        """Return the backend on the same device that computes in `dtype`."""
        return self if dtype in (None, self.policy) else get_backend(self.name, self.device_name, dtype)

    @classmethod
    def _no_device(cls, device: object, known: list[str]) -> BackendError:
        return BackendError(f"backend {cls.name!r} has no such device here; found {known}; got {device!r}")


class NumpyBackend(Backend):
    """NumPy: the host's own library, native in the standard since 2.1."""

    name = package = "numpy"
    install = "pip install numpy"
    inplace = True

    @classmethod
    def owns(cls, x: Any) -> bool:
        """Return whether `x` is an array of NumPy, without a mask."""
        module = type(x).__module__.split(".")
        return module[0] == "numpy" and module[1:2] != ["ma"]

    @staticmethod
    def shares(x: Array, y: Array) -> bool:
        """Return whether their memory overlaps."""
        return bool(np.may_share_memory(x, y))

    def feed(self, x: np.ndarray) -> Array:
        """Return `x` itself: host memory is the device's."""
        return x

    def bring(self, x: Array) -> Array:
        """Return a plain NumPy array itself: this is asked for at every batch."""
        return x if type(x) is np.ndarray else super().bring(x)

    def when(self, ok: Array, update: Callable[[Tree], Tree], kept: Tree) -> Tree:
        """Decide with a plain `if`: memory is the host's. A recording notes it."""
        if hasattr(ok, "tape"):
            return ok.tape.when(ok, update, kept)
        return update(kept) if ok else kept


class StrictBackend(Backend):
    """array-api-strict: the standard and nothing beside it, for testing."""

    name = package = "array_api_strict"
    install = "pip install array-api-strict"

    def _device(self, device: str | None) -> Any:
        if device in (None, "cpu"):
            return None
        if device not in self.devices():
            raise self._no_device(device, self.devices())
        return self.xp.Device(device)

    @classmethod
    def devices(cls) -> list[str]:
        """Return strict's own device names; the last ones are pretended."""
        importlib.import_module(cls.package)
        return ["CPU_DEVICE", "device1", "device2"]

    @staticmethod
    def host(x: Array) -> np.ndarray:
        """Return `x` as a NumPy array."""
        strict = importlib.import_module("array_api_strict")
        return np.from_dlpack(x.to_device(strict.Device("CPU_DEVICE")))

    @staticmethod
    def shares(x: Array, y: Array) -> bool:
        """Return whether the memory overlaps of the NumPy arrays that are inside."""
        # not by way of `host`, which copies what is on a pretended device
        return bool(np.may_share_memory(np.from_dlpack(x), np.from_dlpack(y)))

    def device_of(self, x: Array) -> str | None:
        """Return the pretended device."""
        name = str(x.device).partition("'")[2].rstrip("')")
        return None if name == "CPU_DEVICE" else name

    def when(self, ok: Array, update: Callable[[Tree], Tree], kept: Tree) -> Tree:
        """Decide with a plain `if`: memory is the host's."""
        return update(kept) if ok else kept


class TorchBackend(Backend):
    """PyTorch tensors, through array_api_compat; xpnet has its own derivatives and records no graph."""

    name = "torch"
    package = "array_api_compat.torch"
    install = "pip install torch"

    def __init__(self, device: str | None = None, dtype: str = "float32") -> None:
        super().__init__(device, dtype)
        # the twins look at numbers on the host before they write: on a GPU every step would wait for that
        self.inplace = self.device.type == "cpu"

    def _device(self, device: str | None) -> Any:
        torch = importlib.import_module("torch")
        wanted = "cuda:0" if device == "cuda" else device or "cpu"
        if wanted not in self.devices():
            raise self._no_device(device, self.devices())
        return torch.device(wanted)

    @classmethod
    def devices(cls) -> list[str]:
        """Return the CPU and the CUDA devices."""
        cuda = importlib.import_module("torch").cuda
        return ["cpu", *(f"cuda:{i}" for i in range(cuda.device_count()))]

    @classmethod
    def owns(cls, x: Any) -> bool:
        """Return whether `x` is a tensor (or a parameter)."""
        return type(x).__module__.partition(".")[0] == "torch" and hasattr(x, "detach")

    @staticmethod
    def host(x: Array) -> np.ndarray:
        """Return `x` as a NumPy array (bfloat16, which NumPy lacks, as float32)."""
        torch = importlib.import_module("torch")
        return np.asarray((x.float() if x.dtype == torch.bfloat16 else x).detach().cpu())

    def feed(self, x: np.ndarray) -> Array:
        """Use host memory where the device is the host (never read-only memory: PyTorch warns of it)."""
        torch = importlib.import_module("torch")
        writeable = x if x.flags.writeable else x.copy()
        return torch.from_numpy(np.ascontiguousarray(writeable).reshape(x.shape)).to(self.device)

    def bring(self, x: Array) -> Array:
        """Return `x` outside PyTorch's own differentiation."""
        return super().bring(x.detach() if self.owns(x) else x)

    def copy(self, x: Array) -> Array:
        """Return a copy."""
        return x.clone()

    @staticmethod
    def shares(x: Array, y: Array) -> bool:
        """Return whether both are views of one storage."""
        return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()

    def device_of(self, x: Array) -> str | None:
        """Return the tensor's device."""
        return None if x.device.type == "cpu" else str(x.device)

    def here(self) -> AbstractContextManager[Any]:
        """Leave a user's `torch.inference_mode()`: what was made in it can't be written to outside of it."""
        return self.xp.inference_mode(False) if self.xp.is_inference_mode_enabled() else nullcontext()

    def when(self, ok: Array, update: Callable[[Tree], Tree], kept: Tree) -> Tree:
        """Decide with an `if` on the CPU; on a GPU without waiting for it."""
        if self.device.type == "cpu":
            return update(kept) if ok else kept
        return super().when(ok, update, kept)


class JaxBackend(Backend):
    """JAX: the whole step is one `jax.jit` with donated state; several steps are one `lax.scan`."""

    name = "jax"
    package = "jax.numpy"
    install = "pip install jax"

    def __init__(self, device: str | None = None, dtype: str = "float32") -> None:
        super().__init__(device, dtype)
        import jax

        self._jax = jax
        self.wide = bool(jax.config.jax_enable_x64)
        if self.nearest(dtype) != dtype:
            raise BackendError(
                "JAX computes in float64 only when it is told to before its first use: set the environment "
                "variable JAX_ENABLE_X64=1, or call jax.config.update('jax_enable_x64', True); got 'float64'"
            )

    @classmethod
    def version(cls) -> str:
        """Return JAX's version."""
        return str(importlib.import_module("jax").__version__)

    def _device(self, device: str | None) -> Any:
        jax = importlib.import_module("jax")
        if device is None:
            return None
        platform, _, index = device.partition(":")
        try:
            return jax.devices(platform)[int(index or 0)]
        except (RuntimeError, IndexError, ValueError) as error:
            raise self._no_device(device, self.devices()) from error

    @classmethod
    def devices(cls) -> list[str]:
        """Return the devices of JAX's default platform, and the CPU."""
        jax = importlib.import_module("jax")
        return sorted({f"{d.platform}:{d.id}" for d in (*jax.devices(), *jax.devices("cpu"))})

    @classmethod
    def owns(cls, x: Any) -> bool:
        """Return whether `x` is a JAX array or tracer."""
        return type(x).__module__.partition(".")[0] in ("jax", "jaxlib") and hasattr(x, "aval")

    def array(self, x: Any, dtype: str | None = None) -> Array:
        """Return a copy as a JAX array."""
        return self._jax.device_put(fresh(x, dtype), self.device)

    def feed(self, x: np.ndarray) -> Array:
        """Pass a fresh host array on as it is: `jit` takes it in faster than `device_put` does."""
        return x if self.device is None else self._jax.device_put(x, self.device)

    @classmethod
    def traced(cls, x: Any) -> bool:
        """Return whether `x` is what `jax.jit`, `jax.grad` or `jax.vmap` hand to the function they trace."""
        return isinstance(x, importlib.import_module("jax").core.Tracer)

    @classmethod
    def nearest(cls, dtype: str) -> str:
        """Return float32 for float64 where `jax_enable_x64` is off."""
        narrow = dtype == "float64" and not importlib.import_module("jax").config.jax_enable_x64
        return "float32" if narrow else dtype

    @staticmethod
    def host(x: Array) -> np.ndarray:
        """Return `x` as a NumPy array.

        Raises:
            InvalidTypeError: it is traced: its numbers are not known yet.
        """
        if JaxBackend.traced(x):
            raise InvalidTypeError(
                "the numbers of an array must be known here, which inside of jax.jit, jax.grad and jax.vmap they "
                "are not: call this outside of them, or on JAX arrays without another backend; got "
                f"{type(x).__name__}"
            )
        return np.asarray(x)

    def device_of(self, x: Array) -> str | None:
        """Return the array's device, None for JAX's default one and for what is traced."""
        if self.traced(x):
            return None
        device = next(iter(x.devices()))
        return None if device == self._jax.devices()[0] else f"{device.platform}:{device.id}"

    def copy(self, x: Array) -> Array:
        """Return a copy."""
        return self.xp.array(x, copy=True)

    def when(self, ok: Array, update: Callable[[Tree], Tree], kept: Tree) -> Tree:
        """Decide with `lax.cond`, on the device."""
        return self._jax.lax.cond(ok, update, lambda unchanged: unchanged, kept)

    def jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `jax.jit(function)`."""
        return self._jax.jit(function)

    def compile(self, step: Callable[..., Tree]) -> Callable[..., None]:
        """Return `run(state, batches, commit)`: one `jit` for a single step, one `lax.scan` for several.

        The state is donated: what was handed in is lost when the new state is there.
        """
        jax = self._jax

        def single(state: Tree, batch: Tree) -> tuple[Any, ...]:
            return tuple(step(state, batch))  # no named tuple: C code makes it

        def scan(state: Tree, stacked: Tree) -> tuple[Any, ...]:
            return tuple(jax.lax.scan(lambda s, b: (step(s, b), None), state, stacked)[0])

        one, many = (jax.jit(function, donate_argnums=0) for function in (single, scan))
        compiled: set[Any] = set()

        def stack(*arrays: Array) -> Array:
            return (np if isinstance(arrays[0], np.ndarray) else self.xp).stack(arrays)

        def run(state: Tree, batches: Sequence[Tree], commit: Any) -> None:
            batch = batches.tree if isinstance(batches, Stack) else batches[0]
            if len(batches) > 1 and not isinstance(batches, Stack):
                batch = tree_map(stack, *batches)
            parts = batch if isinstance(batch, tuple) else (batch,)
            key = len(batches), parts[0].shape, *map(type, parts)
            if key not in compiled:  # by much of Python's code, which may be interrupted when the state is lost
                state = tree_map(self.copy, state)
            commit.result(many if len(batches) > 1 else one, state, batch)
            compiled.add(key)

        return run


class CupyBackend(Backend):  # needs a GPU
    """CuPy: CUDA, through array_api_compat."""

    inplace = pooled = True
    name = "cupy"
    package = "array_api_compat.cupy"
    install = "pip install 'xpnet[cuda13]' (CUDA 13) or 'xpnet[cuda12]' (CUDA 12)"

    def _device(self, device: str | None) -> Any:
        found = self.devices()
        if not found:
            raise BackendError(
                "backend 'cupy' found no CUDA device: it needs an NVIDIA GPU and its driver; got "
                f"XPNET_DEVICE={device!r}"
                if device
                else "backend 'cupy' needs an NVIDIA GPU and its driver; found no CUDA device"
            )
        wanted = "cuda:0" if device in (None, "cuda") else str(device)
        if wanted not in found:
            raise self._no_device(device, found)
        return importlib.import_module("cupy").cuda.Device(int(wanted.partition(":")[2]))

    @classmethod
    def devices(cls) -> list[str]:
        """Return the CUDA devices that the driver shows."""
        runtime = importlib.import_module("cupy").cuda.runtime
        try:
            return [f"cuda:{i}" for i in range(runtime.getDeviceCount())]
        except runtime.CUDARuntimeError:  # no driver, or no device
            return []

    @classmethod
    def owns(cls, x: Any) -> bool:
        """Return whether `x` is a CuPy array."""
        return type(x).__module__.partition(".")[0] == "cupy"

    @staticmethod
    def host(x: Array) -> np.ndarray:
        """Copy `x` to the host (and wait for it)."""
        return x.get()

    def device_of(self, x: Array) -> str | None:
        """Return the array's device."""
        return f"cuda:{x.device.id}"

    def copy(self, x: Array) -> Array:
        """Return a copy."""
        return x.copy()

    @staticmethod
    def shares(x: Array, y: Array) -> bool:
        """Return whether their memory overlaps."""
        return bool(importlib.import_module("cupy").may_share_memory(x, y))

    def when(self, ok: Array, update: Callable[[Tree], Tree], kept: Tree) -> Tree:
        """Choose on the device; what was written in place, the kernels have held back themselves (`ctx.gate`)."""
        return tree_map(lambda new, old: new if new is old else self.xp.where(ok, new, old), update(kept), kept)

    def here(self) -> AbstractContextManager[Any]:
        """Make this device the current one: CuPy computes there, on its streams, wherever the arrays are."""
        return self.device


BACKENDS: dict[str, type[Backend]] = {
    cls.name: cls for cls in (NumpyBackend, CupyBackend, TorchBackend, JaxBackend, StrictBackend)
}
_chosen: ContextVar[Backend | None] = ContextVar("xpnet_backend", default=None)


@lru_cache(maxsize=64)
def _make(cls: type[Backend], device: str | None, dtype: str) -> Backend:
    try:
        return cls(device, dtype)
    except BackendError:
        raise
    except (ImportError, OSError) as error:
        raise BackendError(
            f"backend {cls.name!r} is not installed here or can't be loaded ({error}); "
            f"install it with: {cls.install}; got {cls.name!r}"
        ) from error


def get_backend(name: str | Backend | None = None, device: str | None = None, dtype: str | None = None) -> Backend:
    """Return a backend: by name, or as `use_backend` and the environment say, else NumPy.

    Args:
        name: `"numpy"`, `"cupy"`, `"torch"`, `"jax"` or `"array_api_strict"`, a `Backend`, or None.
        device: a device's name; None takes `XPNET_DEVICE` (where it belongs to this backend) or the default.
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
    """Return the backend for a piece of work on `arrays`, in the order this file's first lines tell."""
    if isinstance(name, Backend):
        backend = name if device in (None, name.device_name) else _make(type(name), device, name.policy)  # type: ignore[arg-type]
        return backend.with_dtype(dtype)
    chosen = _chosen.get()
    if name is None and chosen is not None:
        return resolve((), chosen, device, dtype)
    variable = os.environ.get("XPNET_BACKEND") or None
    for candidate, origin in ((name, "backend"), (variable, "backend in XPNET_BACKEND")):
        if candidate is not None and candidate not in BACKENDS:
            raise unknown_name(origin, candidate, BACKENDS)
    wanted = os.environ.get("XPNET_DTYPE") or "float32"
    if wanted not in POLICIES:  # even where something goes before it
        raise unknown_name("dtype in XPNET_DTYPE", wanted, POLICIES)
    dtype = dtype or wanted
    if device is None and variable in (None, name or variable):
        device = os.environ.get("XPNET_DEVICE") or None
    given = [a for a in arrays if library_of(a) is not None]
    if name is None and variable is None and given:
        home = home_of(next((a for a in given if traced(a)), given[0]))
        return _make(type(home), device or home.device_name, dtype)  # type: ignore[arg-type]
    name = name or variable or "numpy"
    return _make(BACKENDS[name], device, dtype)  # type: ignore[arg-type]


@contextmanager
def use_backend(name: str | Backend, device: str | None = None, dtype: str | None = None) -> Iterator[Backend]:
    """Choose the backend for a block of code; in this thread (or task) only.

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
    """Return whether somebody has said which backend to use (so that arrays do not decide)."""
    return name is not None or _chosen.get() is not None or bool(os.environ.get("XPNET_BACKEND"))


def library_of(x: Any) -> str | None:
    """Return the name of the backend whose library `x` is an array of, None for anything else.

    >>> library_of(np.zeros(3)), library_of([1, 2])
    ('numpy', None)
    """
    return next((name for name, cls in BACKENDS.items() if cls.owns(x) and hasattr(x, "shape")), None)


def host_of(x: Any) -> np.ndarray:
    """Return an array of any known library, or whatever NumPy can read, as a NumPy array."""
    library = library_of(x)
    return np.asarray(x) if library is None else BACKENDS[library].host(x)


def traced(x: Any) -> bool:
    """Return whether `x` is an array whose numbers are not known yet, as under `jax.jit`."""
    library = library_of(x)
    return library is not None and BACKENDS[library].traced(x)


def fresh(x: Any, dtype: str | None) -> np.ndarray:
    """Return a copy of host data, of the named dtype or else its own; what is too small for it becomes 0."""
    with np.errstate(all="ignore"):
        return in_order(np.array(x, dtype=dtype))


def in_order(x: np.ndarray) -> np.ndarray:
    """Return host data in the byte order of this machine, the only one that all libraries read."""
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def plain(x: np.ndarray) -> np.ndarray:
    """Return host data in a dtype that all libraries read: floats are float32 or float64.

    >>> plain(np.ones(1, np.longdouble)).dtype.name, plain(np.ones(1, ">f2")).dtype.name
    ('float64', 'float32')
    """
    if x.dtype.char == "g":  # long double: 64 bits and more, as the machine has it
        return x.astype(np.float64)
    narrow = x.dtype.name.startswith(("float", "bfloat")) and x.dtype.itemsize < 4
    return x.astype(np.float32) if narrow else in_order(x)


def home_of(x: Any) -> Backend:
    """Return the backend of the library and device that `x` lives on: NumPy for anything unknown."""
    library = _make(BACKENDS[library_of(x) or "numpy"], None, "float32")  # type: ignore[arg-type]
    return _make(type(library), library.device_of(x), "float32")  # type: ignore[arg-type]


def give_back(x: Array, like: Any, backend: Backend) -> Array:
    """Return `x`, a result of `backend`, in the library (and on the device) of the caller's `like`.

    What is traced stays where it is.
    """
    if backend.traced(x):
        return x
    home = home_of(like)
    there = home.name == backend.name and home.device_name == backend.device_of(x)
    return x if there else home.array(backend.host(x))


def probe() -> list[dict[str, Any]]:
    """Return, for every backend, whether it can run here, on which devices, or why not.

    >>> probe()[0]["name"], probe()[0]["available"]
    ('numpy', True)
    """
    report = []
    for name, cls in BACKENDS.items():
        row: dict[str, Any] = {"name": name, "available": False, "version": None, "devices": []}
        try:
            row["version"] = cls.version()
            row["devices"] = cls.devices()
            _make(cls, None, "float32")  # type: ignore[arg-type]
            row.update(available=True, reason=None, install=None)
        except (ImportError, OSError) as error:
            row.update(reason=str(error), install=cls.install)
        report.append(row)
    return report


def available_backends() -> list[str]:
    """Return the names of the backends that can run on this machine.

    >>> "numpy" in available_backends()
    True
    """
    return [row["name"] for row in probe() if row["available"]]


def floating(dtype: str | None) -> str | None:
    """Return `dtype` if it names a precision that xpnet computes in (or is None), else raise.

    >>> floating("float64")
    'float64'
    """
    if dtype is not None and not isinstance(dtype, str):
        raise InvalidValueError(f"dtype must be one of {tuple(POLICIES)} or None; got {dtype!r}")
    if dtype is not None and dtype not in POLICIES:
        raise unknown_name("dtype", dtype, POLICIES)
    return dtype
