"""JAX."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import BackendError, InvalidTypeError
from .base import Array, Backend, fresh
from .tree import Stack, Tree, tree_map


class JaxBackend(Backend):
    """JAX: the whole step is one `jax.jit` with donated state; several steps are one `lax.scan`."""

    name = "jax"
    package = "jax.numpy"
    special = "jax.lax"
    install = "pip install jax"

    def __init__(self, device: str | None = None, dtype: str = "float32") -> None:
        super().__init__(device, dtype)
        import jax

        self._jax = jax
        self.wide = bool(jax.config.jax_enable_x64)
        if self.nearest(dtype) != dtype:
            raise BackendError(
                "JAX computes in float64 only if this is enabled before its first use: set the environment "
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
        """Return a fresh host array unchanged: `jit` transfers it faster than `device_put`."""
        return x if self.device is None else self._jax.device_put(x, self.device)

    @classmethod
    def traced(cls, x: Any) -> bool:
        """Return whether `x` is a tracer, which `jax.jit`, `jax.grad` and `jax.vmap` pass to functions."""
        return isinstance(x, importlib.import_module("jax").core.Tracer)

    @classmethod
    def nearest(cls, dtype: str) -> str:
        """Return float32 for float64 if `jax_enable_x64` is off."""
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
                "the numbers of an array must be known here, but inside jax.jit, jax.grad and jax.vmap they are "
                "not: call this outside of them, or on JAX arrays without another backend; got "
                f"{type(x).__name__}"
            )
        return np.asarray(x)

    def device_of(self, x: Array) -> str | None:
        """Return the array's device; None for JAX's default device and for traced arrays."""
        if self.traced(x):
            return None
        device = next(iter(x.devices()))
        return None if device == self._jax.devices()[0] else f"{device.platform}:{device.id}"

    def copy(self, x: Array) -> Array:
        """Return a copy."""
        return self.xp.array(x, copy=True)

    def when(self, ok: Array, update: Callable[[Tree], Tree], kept: Tree) -> Tree:
        """Select with `lax.cond`, on the device."""
        return self._jax.lax.cond(ok, update, lambda unchanged: unchanged, kept)

    def jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `jax.jit(function)`."""
        return self._jax.jit(function)

    def compile(self, step: Callable[..., Tree]) -> Callable[..., None]:
        """Return `run(state, batches, commit)`: one `jit` for a single step, one `lax.scan` for several.

        The state is donated: the state passed in becomes invalid when the new one exists.
        """
        jax = self._jax

        def single(state: Tree, batch: Tree) -> tuple[Any, ...]:
            return tuple(step(state, batch))  # a plain tuple, which C code makes

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
            if (
                key not in compiled
            ):  # compiling runs Python code, which an exception may interrupt after the donation
                state = tree_map(self.copy, state)
            commit.result(many if len(batches) > 1 else one, state, batch)
            compiled.add(key)

        return run
