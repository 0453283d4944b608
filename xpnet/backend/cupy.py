"""CuPy: NVIDIA GPUs, through array_api_compat."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from ..errors import BackendError
from .base import Array, Backend
from .tree import Tree, tree_map


class CupyBackend(Backend):  # needs a GPU
    """CuPy: CUDA, through array_api_compat."""

    inplace = pooled = checked = True
    name = "cupy"
    package = "array_api_compat.cupy"
    special = "cupyx.scipy.special"
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
        """Return the CUDA devices that the driver reports."""
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
        """Copy `x` to the host, after waiting for it."""
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
        """Select on the device; kernels that write in place have already applied the flag (`ctx.apply_update`)."""
        return tree_map(lambda new, old: new if new is old else self.xp.where(ok, new, old), update(kept), kept)

    def here(self) -> AbstractContextManager[Any]:
        """Make this device current: CuPy computes there, on its streams, whichever device holds the arrays."""
        return self.device
