"""array-api-strict: the standard and nothing else."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from .base import Array, Backend
from .tree import Tree


class StrictBackend(Backend):
    """array-api-strict: the standard and nothing else, for tests."""

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
        """Return array-api-strict's device names; all but the first are simulated."""
        importlib.import_module(cls.package)
        return ["CPU_DEVICE", "device1", "device2"]

    @staticmethod
    def host(x: Array) -> np.ndarray:
        """Return `x` as a NumPy array."""
        strict = importlib.import_module("array_api_strict")
        return np.from_dlpack(x.to_device(strict.Device("CPU_DEVICE")))

    @staticmethod
    def shares(x: Array, y: Array) -> bool:
        """Return whether the memory of the underlying NumPy arrays overlaps."""
        # not through `host`, which copies arrays of simulated devices
        return bool(np.may_share_memory(np.from_dlpack(x), np.from_dlpack(y)))

    def device_of(self, x: Array) -> str | None:
        """Return the simulated device; None for the CPU."""
        name = str(x.device).partition("'")[2].rstrip("')")
        return None if name == "CPU_DEVICE" else name

    def when(self, ok: Array, update: Callable[[Tree], Tree], kept: Tree) -> Tree:
        """Select with a plain `if`: the flag is in host memory."""
        return update(kept) if ok else kept
