"""The table of contestants: xpnet's rows and those of its peers.

Each peer is written as its own documentation advises. A contestant whose library is not installed raises
ImportError when it is made, and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..backend import BACKENDS
from ..errors import unknown_name
from . import gpu, of_jax, of_keras, of_sklearn, of_torch, ours
from .cases import STEPS_PER_CALL, Case
from .jobs import Make, until

__all__ = ["BASE", "CONTESTANTS", "FAST", "GPU", "ON_GPU", "PEAK", "PRODUCTS", "Contestant", "choose", "rows_for"]

PRODUCTS, BASE, FAST = "products only", "xpnet numpy", "xpnet fast"
PEAK, GPU = f"one {gpu.PEAK_SIZE}-wide product", "xpnet cupy"


class Contestant(NamedTuple):
    """One row of a table.

    Attributes:
        make: returns its runner for a case and its data. library: a peer's name, or `"xpnet"`.
        backend: xpnet's backend. usual: whether it takes part by default.
    """

    make: Make
    library: str
    backend: str = ""
    usual: bool = True


def _on_backends(of: Any) -> dict[str, Contestant]:
    """Return xpnet's rows on each backend, made with `of(backend, kernels)`; those for the CPU are usual."""
    rows = {BASE: Contestant(of("numpy", "numpy"), "xpnet", "numpy")}
    rows[FAST] = Contestant(of("numpy", "fast"), "xpnet", "numpy")
    for name in BACKENDS:
        rows.setdefault(f"xpnet {name}", Contestant(of(name, None), "xpnet", name, usual=name in ("torch", "jax")))
    return rows


def _ours(make: Make, backend: str) -> Contestant:
    return Contestant(make, "xpnet", backend)


CONTESTANTS: dict[str, dict[str, Contestant]] = {
    "step": {
        PRODUCTS: Contestant(ours.products_only, "numpy"),
        **_on_backends(ours.step),
        f"xpnet jax, {STEPS_PER_CALL} steps a scan": _ours(ours.step("jax", None, STEPS_PER_CALL), "jax"),
        "torch eager": Contestant(of_torch.step("eager"), "torch"),
        "torch fused": Contestant(of_torch.step("fused"), "torch"),
        "torch compiled": Contestant(of_torch.step("compiled"), "torch", usual=False),
        "jax jit": Contestant(of_jax.step(), "jax"),
        f"jax, {STEPS_PER_CALL} steps a scan": Contestant(of_jax.step(scan=True), "jax"),
        "sklearn partial_fit": Contestant(of_sklearn.step("partial_fit"), "sklearn"),
        "sklearn fit": Contestant(of_sklearn.step("fit"), "sklearn"),
        "keras train_on_batch": Contestant(of_keras.step, "keras", usual=False),
    },
    "mnist": {
        **_on_backends(ours.epoch),
        f"{BASE}, bare steps": _ours(ours.bare_epoch("numpy"), "numpy"),
        f"{FAST}, bare steps": _ours(ours.bare_epoch("fast"), "numpy"),
        f"xpnet jax, {STEPS_PER_CALL} steps a scan": _ours(ours.epoch("jax", None, STEPS_PER_CALL), "jax"),
        "torch eager": Contestant(of_torch.epoch("eager"), "torch"),
        "torch fused": Contestant(of_torch.epoch("fused"), "torch"),
        "torch fused, DataLoader": Contestant(of_torch.epoch("fused", loader=True), "torch"),
        "torch compiled": Contestant(of_torch.epoch("compiled"), "torch"),
        "jax jit": Contestant(of_jax.epoch(), "jax"),
        "jax, an epoch a scan": Contestant(of_jax.epoch(scan=True), "jax"),
        "sklearn fit, no dropout": Contestant(of_sklearn.epoch, "sklearn"),
        "keras fit": Contestant(of_keras.epoch, "keras"),
    },
    "to98": {
        **_on_backends(ours.to98),
        "torch fused": Contestant(until(of_torch.epoch("fused")), "torch"),
        "torch compiled": Contestant(until(of_torch.epoch("compiled")), "torch", usual=False),
        "jax jit": Contestant(until(of_jax.epoch()), "jax"),
        "jax, an epoch a scan": Contestant(until(of_jax.epoch(scan=True)), "jax"),
    },
    "predict": {
        **_on_backends(ours.prediction),
        "torch inference_mode": Contestant(of_torch.prediction, "torch"),
        "jax jit": Contestant(of_jax.prediction, "jax"),
        "sklearn predict_proba": Contestant(of_sklearn.prediction, "sklearn"),
        "keras predict": Contestant(of_keras.prediction, "keras"),
    },
}

_EPOCHS_ON_GPU = {
    "torch fused": Contestant(of_torch.epoch("fused"), "torch"),
    "torch compiled": Contestant(of_torch.epoch("compiled"), "torch"),
    "torch graph": Contestant(of_torch.epoch("graph"), "torch"),
    "jax jit": Contestant(of_jax.epoch(), "jax"),
    "jax, an epoch a scan": Contestant(of_jax.epoch(scan=True), "jax"),
}
ON_GPU: dict[str, dict[str, Contestant]] = {  # instead of CONTESTANTS, with the data on the GPU
    "step": {
        PEAK: Contestant(gpu.one_product, "cublas"),
        PRODUCTS: Contestant(gpu.products_only, "cublas"),
        GPU: _ours(ours.step("cupy"), "cupy"),
        f"{GPU}, {STEPS_PER_CALL} steps a graph": _ours(ours.step("cupy", None, STEPS_PER_CALL), "cupy"),
        "torch fused": Contestant(of_torch.step("fused"), "torch"),
        "torch compiled": Contestant(of_torch.step("compiled"), "torch"),
        "torch graph": Contestant(of_torch.step("graph"), "torch"),
        "jax jit": Contestant(of_jax.step(), "jax"),
        f"jax, {STEPS_PER_CALL} steps a scan": Contestant(of_jax.step(scan=True), "jax"),
    },
    "mnist": {GPU: _ours(ours.epoch("cupy"), "cupy"), **_EPOCHS_ON_GPU},
    "to98": {
        GPU: _ours(ours.to98("cupy"), "cupy"),
        **{name: c._replace(make=until(c.make)) for name, c in _EPOCHS_ON_GPU.items()},
    },
    "predict": {
        GPU: _ours(ours.prediction("cupy"), "cupy"),
        "torch inference_mode": Contestant(of_torch.prediction, "torch"),
        "jax jit": Contestant(of_jax.prediction, "jax"),
    },
}


def rows_for(case: Case) -> dict[str, Contestant]:
    """Return the contestants that can take part in a case."""
    return (CONTESTANTS if case.device == "cpu" else ON_GPU)[case.kind]


def choose(
    kind: str,
    names: Sequence[str] = (),
    peers: Sequence[str] = (),
    backends: Sequence[str] = (),
    device: str = "cpu",
) -> list[str]:
    """Return the names of the contestants to time on a kind of case; the reference rows always take part.

    Args:
        names: contestants by name; if given, only those of `peers` and `backends` are added.
        peers: libraries, with all their rows; if empty, the usual rows of all libraries.
        backends: xpnet's backends, likewise. device: see `Case`.

    Raises:
        UnknownNameError: unknown contestant, peer or backend.
    """
    table = CONTESTANTS if device == "cpu" else ON_GPU
    always = (PRODUCTS, BASE) if device == "cpu" else (PEAK, PRODUCTS, GPU)
    known = {name: c for rows in table.values() for name, c in rows.items()}
    libraries = {c.library for c in known.values()} - {"xpnet", "numpy", "cublas"}
    for what, given, those in (
        ("contestant", names, known),
        ("peer", peers, libraries),
        ("backend", backends, BACKENDS),
    ):
        for name in given:
            if name not in those:
                raise unknown_name(what, name, those)

    def takes_part(name: str, c: Contestant) -> bool:
        if name in (*always, *names):
            return True
        own, given = (c.backend, backends) if c.library == "xpnet" else (c.library, peers)
        return own in given if given else c.usual and not names

    return [name for name, c in table[kind].items() if takes_part(name, c)]
