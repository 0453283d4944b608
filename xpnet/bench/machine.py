"""Describe the machine of a benchmark: processor, system, BLAS, versions."""

from __future__ import annotations

import importlib
import os
import platform
from importlib import metadata
from typing import Any

__all__ = ["describe", "in_words"]

PACKAGES = (
    "xpnet",
    "numpy",
    "numba",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "nvmath-python",
    "torch",
    "jax",
    "jaxlib",
    "scikit-learn",
    "keras",
)
RELEVANT_VARIABLES = (
    "OPENBLAS_CORETYPE",
    "XPNET_KERNELS",
    "XPNET_GRAPH",
    "KERAS_BACKEND",
)  # variables that affect the results


def describe() -> dict[str, Any]:
    """Return the properties of the machine that matter for the figures."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "system": f"{platform.system()} {platform.machine()}",
        "blas": _blas(),
        "variables": {name: os.environ[name] for name in RELEVANT_VARIABLES if name in os.environ},
        "versions": {"python": platform.python_version(), **_versions()},
    }


def in_words(machine: dict[str, Any]) -> str:
    """Return the description as one line.

    >>> about = {"processor": "A", "cores": 4, "usable_cores": 2, "system": "Linux x86_64", "blas": []}
    >>> in_words({**about, "variables": {"B": "1"}, "versions": {"python": "3.11"}})
    'A, 2 of 4 cores, Linux x86_64; B=1; python 3.11'
    """
    cores, usable = machine["cores"], machine["usable_cores"]
    counted = f"{cores} cores" if usable == cores else f"{usable} of {cores} cores"
    parts = [f"{machine['processor']}, {counted}, {machine['system']}", *machine["blas"]]
    if "gpu" in machine:
        name, *versions = machine["gpu"].items()
        parts.insert(0, ", ".join([name[1], *(" ".join(pair) for pair in versions)]))
    parts += [f"{name}={value}" for name, value in machine["variables"].items()]
    return "; ".join([*parts, ", ".join(f"{name} {version}" for name, version in machine["versions"].items())])


def _processor() -> str:
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        if models:
            return models[0]
    return platform.processor() or platform.machine()


def _blas() -> list[str]:
    """Return NumPy's BLAS and the kernels it chose for this processor; nothing without threadpoolctl."""
    try:
        info = importlib.import_module("threadpoolctl").threadpool_info()
    except ImportError:
        return []
    pools = [pool for pool in info if pool["user_api"] == "blas"]
    return [
        f"{pool['internal_api']} {pool['version']} with its {pool.get('architecture', 'usual')} kernels"
        for pool in pools
    ]


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # not installed: its contestants are reported as left out
    return found
