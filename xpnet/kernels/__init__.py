"""Faster twins of `xpnet.core.ops`, by library. This table shows every one there is.

`XPNET_KERNELS=bodies` (or 0) runs the bodies of `ops.py` everywhere, `numpy` NumPy's own twins, `fast` those with
loops compiled by numba; unset, the fastest that is installed. `XPNET_GRAPH=0` (or no) records no steps.
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
TWINS: dict[str, dict[str, tuple[str, ...]]] = {  # by backend: module -> operations; later ones go before
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
RECORDERS = {"numpy": "host.tape", "cupy": "cuda.graph"}  # modules that record a step, so that it can be replayed
MAKERS = {"cupy": "cuda.device"}  # modules that make masks and batches in a recorded step
CHOICES = ("bodies", "numpy", "fast")
_chosen: ContextVar[str | None] = ContextVar("xpnet_kernels", default=None)


def chosen() -> str:
    """Return which twins are used: one of `CHOICES`.

    Raises:
        UnknownNameError: XPNET_KERNELS is something else. MissingExtraError: numba is asked for and missing.
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
    """Choose the twins for what is compiled and run first in a block of code: one of `CHOICES`.

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
    """Return the operations for steps on a backend: the bodies of `ops.py`, and the twins in their place."""
    return _table(backend_name, chosen())


def inference_ops(backend_name: str) -> SimpleNamespace:
    """Return the operations outside of training steps: bodies, with NumPy's products as in a step."""
    return _inference(chosen()) if backend_name == "numpy" else BODIES


def inference_context(backend: Any) -> AbstractContextManager[Any]:
    """Return a context for inference: on NumPy BLAS works as in a step, whoever trains meanwhile."""
    if backend.name != "numpy" or chosen() == "bodies":
        return np.errstate(all="ignore")
    return single_threaded_blas()


def records(backend: Any) -> bool:
    """Return whether steps on a backend are recorded, provided that its twins are right.

    Raises:
        UnknownNameError, MissingExtraError: see `chosen`. InvalidValueError: XPNET_GRAPH is no switch.
    """
    bodies = chosen() == "bodies"
    return switch("XPNET_GRAPH", True) and not bodies and backend.name in RECORDERS


def recorder_for(backend: Any) -> Any:
    """Return what records steps on a backend that `records` (see `xpnet.training.replay`)."""
    module = importlib.import_module(f"{__name__}.{RECORDERS[backend.name]}")
    return module.Recorder(backend.device) if hasattr(module, "Recorder") else module


def maker_for(backend: Any) -> Any:
    """Return what makes masks and batches in the recorded steps of a backend, or None: the host does."""
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
            warnings.warn(  # numba refuses a NumPy that is newer than itself
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
