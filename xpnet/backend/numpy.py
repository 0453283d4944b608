"""NumPy: the host's array library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .base import Array, Backend
from .tree import Tree


class NumpyBackend(Backend):
    """NumPy: the host's array library, which implements the standard natively since 2.1."""

    name = package = "numpy"
    install = "pip install numpy"
    inplace = True

    @classmethod
    def owns(cls, x: Any) -> bool:
        """Return whether `x` is an unmasked NumPy array."""
        module = type(x).__module__.split(".")
        return module[0] == "numpy" and module[1:2] != ["ma"]

    @staticmethod
    def shares(x: Array, y: Array) -> bool:
        """Return whether their memory overlaps."""
        return bool(np.may_share_memory(x, y))

    def feed(self, x: np.ndarray) -> Array:
        """Return `x` itself: the host is the device."""
        return x

    def bring(self, x: Array) -> Array:
        """Return a plain NumPy array unchanged, without further checks: every batch passes here."""
        return x if type(x) is np.ndarray else super().bring(x)

    def when(self, ok: Array, update: Callable[[Tree], Tree], kept: Tree) -> Tree:
        """Select with a plain `if`: the flag is in host memory. A recording records the choice."""
        if hasattr(ok, "tape"):
            return ok.tape.when(ok, update, kept)
        return update(kept) if ok else kept
