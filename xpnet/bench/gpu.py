"""GPU-specific parts: timing by events, kernel counts of graphs, matrix products alone, the GPU's name."""

from __future__ import annotations

import ctypes
import importlib
import os
import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

from ..backend import get_backend, np
from ..kernels.cuda import blas, graph
from .cases import Case, DataSet
from .jobs import Runner

__all__ = ["by_cupy", "by_torch", "describe", "kernels_in", "kernels_of", "one_product", "products_only"]

PEAK_SIZE = 4096  # size of the square product that defines the measured peak
KERNEL_NODE = 0  # CU_GRAPH_NODE_TYPE_KERNEL, cuda.h


# Clocks -------------------------------------------------------------------------------------------------


def by_cupy(action: Callable[[], None]) -> float:
    """Return the duration of a call in seconds, between CUDA events on CuPy's current stream.

    Work that a step does on its own stream is included, because the streams wait for each other.
    """
    cuda = importlib.import_module("cupy").cuda
    start, end = cuda.Event(), cuda.Event()
    start.record()
    action()
    end.record()
    end.synchronize()
    return float(cuda.get_elapsed_time(start, end)) / 1e3


def by_torch(action: Callable[[], None]) -> float:
    """Return the duration of a call in seconds, between CUDA events on PyTorch's current stream."""
    cuda = importlib.import_module("torch").cuda
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    start.record()
    action()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


# Kernels ------------------------------------------------------------------------------------------------


def kernels_in(handle: int) -> int | None:
    """Return the number of kernels in a CUDA graph, without copies.

    Args:
        handle: the graph's handle as an integer (cudaGraph_t and CUgraph are the same).

    Returns:
        None if the driver can't be loaded or returns an error.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    whole, count, kind, found = ctypes.c_void_p(handle), ctypes.c_size_t(0), ctypes.c_int(-1), 0
    if driver.cuGraphGetNodes(whole, None, ctypes.byref(count)):
        return None
    nodes = (ctypes.c_void_p * count.value)()
    if driver.cuGraphGetNodes(whole, nodes, ctypes.byref(count)):
        return None
    for node in nodes:
        if driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)):
            return None
        found += kind.value == KERNEL_NODE
    return found


def kernels_of(run: Any, steps: int = 1) -> float | None:
    """Return the kernels per step of xpnet, counted in its captured graph; None if there is no such graph.

    Args:
        run: the `Replay` that takes the steps, see `xpnet.training.replay`. steps: steps per graph.
    """
    plays = [play for play, _ in getattr(run, "recordings", {}).values()]
    if len(plays) != 1:  # not captured
        return None
    found = kernels_in(plays[0].graph.graph)
    return None if found is None else found / steps


# Products -----------------------------------------------------------------------------------------------


class Buffers(NamedTuple):
    """Buffers for products: gradients of kernels; outputs of layers, then the derivatives with respect to them."""

    grads: tuple[Any, ...]
    outputs: tuple[Any, ...]


def captured(step: Callable[[Buffers, Any], Buffers], buffers: Buffers) -> Runner:
    """Return a contestant that launches some products as one graph."""
    recorder = graph.Recorder(get_backend("cupy").device)
    with recorder.step_context():
        play: Any = recorder.record(step, buffers, ())

    def run(n: int, kept: Any = (step, buffers)) -> None:  # `kept`: a graph does not keep its memory alive
        with recorder.step_context():
            for _ in range(n):
                play()
        recorder.stream.synchronize()

    return Runner(run, clock=by_cupy, kernels=lambda: kernels_in(play.graph.graph))


def _factor(case: Case, *shape: int) -> Any:
    """Return normal random numbers on the GPU, in the form that `blas.matmul` takes for the case's precision."""
    values = np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)
    if case.precision == "bfloat16":  # the upper half of float32
        return get_backend("cupy").array(values.view(np.uint32) >> 16, "uint16")
    return get_backend("cupy").array(values, case.stored)


def _buffers(case: Case, *shapes: tuple[int, ...]) -> tuple[Any, ...]:
    """Return buffers for results."""
    return tuple(get_backend("cupy").array(np.zeros(shape, case.stored)) for shape in shapes)


def products_only(case: Case, data: DataSet) -> Runner:
    """Make a step's matrix products with cuBLAS into fixed buffers, as one graph: a lower bound for a step."""
    sizes = list(zip(case.layers, case.layers[1:]))
    weights = [_factor(case, *size) for size in sizes]
    acts = [_factor(case, case.batch, n) for n in case.layers]

    def step(buffers: Buffers, batch: Any) -> Buffers:
        for i, w in enumerate(weights):
            blas.matmul(acts[i], w, buffers.outputs[i])
        for i in range(len(weights) - 1, -1, -1):
            blas.matmul(acts[i].T, acts[i + 1], buffers.grads[i])
            if i:
                blas.matmul(acts[i + 1], weights[i].T, buffers.outputs[i - 1])
        return buffers

    return captured(
        step, Buffers(_buffers(case, *sizes), _buffers(case, *((case.batch, n) for n in case.layers[1:])))
    )


def one_product(case: Case, data: DataSet) -> Runner:
    """Make a square 4096-wide product with cuBLAS in the precision of the case: the measured peak of the GPU.

    The result of bfloat16 factors is float32, as in a step.
    """
    a, b = _factor(case, PEAK_SIZE, PEAK_SIZE), _factor(case, PEAK_SIZE, PEAK_SIZE)

    def step(buffers: Buffers, batch: Any) -> Buffers:
        blas.matmul(a, b, buffers.outputs[0])
        return buffers

    return captured(step, Buffers((), _buffers(case, (PEAK_SIZE, PEAK_SIZE))))._replace(flops=2 * PEAK_SIZE**3)


# The machine --------------------------------------------------------------------------------------------


def describe() -> dict[str, str]:
    """Return the GPU's name and the versions of driver and CUDA.

    Raises:
        BackendError: CuPy is not installed, or there is no GPU.
    """
    get_backend("cupy")
    runtime = importlib.import_module("cupy").cuda.runtime
    about = {"name": runtime.getDeviceProperties(0)["name"].decode(), "driver": _driver()}
    for name, number in (("driver's CUDA", runtime.driverGetVersion()), ("CUDA", runtime.runtimeGetVersion())):
        about[name] = f"{number // 1000}.{number % 1000 // 10}"
    return {name: value for name, value in about.items() if value}


def _driver() -> str:
    """Return the driver's version, or "" without nvidia-smi."""
    call = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(call, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
