"""PyTorch, through array_api_compat."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from .base import Array, Backend
from .tree import Tree


class TorchBackend(Backend):
    """PyTorch tensors, through array_api_compat; xpnet computes its own derivatives, without autograd."""

    name = "torch"
    package = "array_api_compat.torch"
    install = "pip install torch"

    def __init__(self, device: str | None = None, dtype: str = "float32") -> None:
        super().__init__(device, dtype)
        # twins read numbers on the host before they write: on a GPU each step would wait for that
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
        """Return a tensor that shares host memory on the CPU; read-only memory is copied (PyTorch warns of it)."""
        torch = importlib.import_module("torch")
        writeable = x if x.flags.writeable else x.copy()
        return torch.from_numpy(np.ascontiguousarray(writeable).reshape(x.shape)).to(self.device)

    def bring(self, x: Array) -> Array:
        """Convert `x`, detached from PyTorch's autograd."""
        return super().bring(x.detach() if self.owns(x) else x)

    def copy(self, x: Array) -> Array:
        """Return a copy."""
        return x.clone()

    @staticmethod
    def shares(x: Array, y: Array) -> bool:
        """Return whether both are views of the same storage."""
        return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()

    def device_of(self, x: Array) -> str | None:
        """Return the tensor's device."""
        return None if x.device.type == "cpu" else str(x.device)

    def here(self) -> AbstractContextManager[Any]:
        """Leave a user's `torch.inference_mode()`: tensors made in it can't be modified outside."""
        return self.xp.inference_mode(False) if self.xp.is_inference_mode_enabled() else nullcontext()

    def when(self, ok: Array, update: Callable[[Tree], Tree], kept: Tree) -> Tree:
        """Select with an `if` on the CPU; on a GPU without waiting for it."""
        if self.device.type == "cpu":
            return update(kept) if ok else kept
        return super().when(ok, update, kept)
