"""Twins, faster versions of `xpnet.core.ops`, by library. The table `TWINS` lists all of them.

`XPNET_KERNELS=bodies` (or 0) runs the bodies of `ops.py` everywhere, `numpy` NumPy's twins, `fast` those with
loops compiled by numba; if unset, the fastest installed ones run. `XPNET_GRAPH=0` (or no) disables recording.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..core import ops
from ..errors import NO, YES, MissingExtraError, switch, unknown_name
from .host.threads import single_threaded_blas

__all__ = ["CHOICES", "RECORDERS", "TWINS", "chosen", "maker_for", "ops_for", "recorder_for", "records", "using"]

_GRADIENT = ("pack", "penalize", "within_limits", "tally")
_CLIPPING = ("clip_factor", "clip_parts")
_NETWORK = ("affine", "dropout", "softmax_cross_entropy")
TWINS: dict[str, dict[str, tuple[str, ...]]] = {  # by backend: module -> operations; later modules take precedence
    "numpy": {
        "host.numpy": (
            *("product", "activate", *_NETWORK, "confusion", "row_total", "sum_rows"),
            *(*_GRADIENT, "update"),
        ),
        "host.numba": (*_NETWORK, "normalize", "update"),
    },
    "torch": {
        "torch": (
            *("activate", "affine", "normalize", "softmax_cross_entropy", "row_total", "sum_rows"),
            *(*_GRADIENT, "update"),
        )
    },
    "jax": {"jax": ("pack", "product", "sum_rows")},
    "cupy": {
        "cuda.layers": ("product", *_NETWORK, "hits", "confusion", "row_total"),
        "cuda.flat": (*_GRADIENT, *_CLIPPING, "join", "rescale", "update"),
    },
}
RECORDERS = {"numpy": "host.tape", "cupy": "cuda.graph"}  # modules that record steps for replay
MAKERS = {"cupy": "cuda.device"}  # modules that make masks and batches within a recorded step
CHOICES = ("bodies", "numpy", "fast")
_chosen: ContextVar[str | None] = ContextVar("xpnet_kernels", default=None)


def chosen() -> str:
    """Return the selected twins: one of `CHOICES`.

    Raises:
        UnknownNameError: XPNET_KERNELS has another value. MissingExtraError: `fast` was requested without numba.
    """
    word = _chosen.get() or os.environ.get("XPNET_KERNELS", "").strip() or "1"
    name = word.lower()
    name = "bodies" if name in NO else name
    name = ("fast" if _has_numba() else "numpy") if name in YES else name
    if name not in CHOICES:
        raise unknown_name("XPNET_KERNELS", word, CHOICES)
    if name == "fast" and not _has_numba():
        raise MissingExtraError("XPNET_KERNELS=fast needs numba: pip install 'xpnet[fast]'; got 'fast'")
    return name


@contextmanager
def using(name: str) -> Iterator[None]:
    """Select the twins, one of `CHOICES`, for steps that are compiled and first run in a block of code.

    >>> with using("bodies"):
    ...     chosen()
    'bodies'
    """
    if name not in CHOICES:
        raise unknown_name("kernels", name, CHOICES)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def ops_for(backend_name: str) -> SimpleNamespace:
    """Return the operations for training steps on a backend: twins where they exist, else bodies."""
    return _table(backend_name, chosen())


def inference_ops(backend_name: str) -> SimpleNamespace:
    """Return the operations for inference: bodies, but NumPy's products as in a step."""
    return _inference(chosen()) if backend_name == "numpy" else BODIES


def inference_context(backend: Any) -> AbstractContextManager[Any]:
    """Return a context for inference: on NumPy, BLAS runs as in a step, even while other threads train."""
    if backend.name != "numpy" or chosen() == "bodies":
        return np.errstate(all="ignore")
    return single_threaded_blas()


def records(backend: Any) -> bool:
    """Return whether steps on a backend are recorded, if its twins pass their check.

    Raises:
        UnknownNameError, MissingExtraError: see `chosen`. InvalidValueError: XPNET_GRAPH is not a switch.
    """
    bodies = chosen() == "bodies"
    return switch("XPNET_GRAPH", True) and not bodies and backend.name in RECORDERS


def recorder_for(backend: Any) -> Any:
    """Return the recorder for steps on a backend for which `records` is true (see `xpnet.training.replay`)."""
    module = importlib.import_module(f"{__name__}.{RECORDERS[backend.name]}")
    return module.Recorder(backend.device) if hasattr(module, "Recorder") else module


def maker_for(backend: Any) -> Any:
    """Return the module that makes masks and batches in a backend's recorded steps; None if the host does."""
    name = MAKERS.get(backend.name)
    return importlib.import_module(f"{__name__}.{name}") if name else None


@lru_cache
def _table(backend_name: str, choice: str) -> SimpleNamespace:
    table = {name: getattr(ops, name) for name in ops.__all__}
    for module, names in TWINS.get(backend_name, {}).items():
        if choice == "bodies" or (module == "host.numba" and choice != "fast"):
            continue
        try:
            twins = importlib.import_module(f"{__name__}.{module}")
        except ImportError as error:
            if module != "host.numba":
                raise
            warnings.warn(  # numba refuses a NumPy newer than it supports
                f"numba is installed but can't be used, so NumPy's own loops run; got {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            continue
        table.update({name: getattr(twins, name) for name in names})
    return SimpleNamespace(**table)


@lru_cache
def _inference(choice: str) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(BODIES), "product": _table("numpy", choice).product})


@lru_cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


BODIES = _table("", "bodies")
