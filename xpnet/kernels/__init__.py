"""Faster twins of `xpnet.ops`, by library. This table shows every one there is.

`XPNET_KERNELS=0` runs the bodies of `ops.py` everywhere.
"""

from __future__ import annotations

import importlib
import os
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from .. import ops

__all__ = ["RECORDERS", "TWINS", "enabled", "ops_for", "recorder_for"]

TWINS: dict[str, tuple[str, ...]] = {
    "numpy": (
        "affine",
        "dropout",
        "softmax_cross_entropy",
        "pack",
        "penalize",
        "finite",
        "sgd",
        "momentum",
        "rmsprop",
        "adam",
    ),
}


RECORDERS = {"numpy": "tape"}  # modules that record a step, so that it can be replayed


def ops_for(backend_name: str) -> SimpleNamespace:
    """Return the operations for a backend: the bodies of `ops.py`, and the twins in their place."""
    return _table(backend_name, enabled())


def enabled() -> bool:
    """Return whether twins are used."""
    return os.environ.get("XPNET_KERNELS", "1") != "0"


def recorder_for(backend_name: str) -> Any:
    """Return the module that records a step on a backend (see `xpnet.replay`), or None."""
    if not enabled() or os.environ.get("XPNET_GRAPH", "1") == "0" or backend_name not in RECORDERS:
        return None
    return importlib.import_module(f"{__name__}.{RECORDERS[backend_name]}")


@lru_cache
def _table(backend_name: str, use_twins: bool) -> SimpleNamespace:
    table = {name: getattr(ops, name) for name in ops.__all__}
    if use_twins and TWINS.get(backend_name):
        module = importlib.import_module(f"{__name__}.{backend_name}")
        table.update({name: getattr(module, name) for name in TWINS[backend_name]})
    return SimpleNamespace(**table)
