"""What a GPU has beside: clocks by events, the kernels of a graph, the matrix products alone, its name."""

from __future__ import annotations

import ctypes
import importlib
import os
import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

from ..backend import get_backend, np
from ..kernels import blas, graph
from .cases import Case, DataSet
from .jobs import Runner

__all__ = ["by_cupy", "by_torch", "describe", "kernels_in", "kernels_of", "one_product", "products_only"]

SIDE = 4096  # of the square product that is the measured peak
KERNEL = 0  # CU_GRAPH_NODE_TYPE_KERNEL, cuda.h


# Clocks -------------------------------------------------------------------------------------------------


def by_cupy(action: Callable[[], None]) -> float:
    """Return the seconds that a call takes, between CUDA events on CuPy's current stream.

    What a step does on a stream of its own lies between them: the streams wait for each other.
    """
    cuda = importlib.import_module("cupy").cuda
    start, end = cuda.Event(), cuda.Event()
    start.record()
    action()
    end.record()
    end.synchronize()
    return float(cuda.get_elapsed_time(start, end)) / 1e3


def by_torch(action: Callable[[], None]) -> float:
    """Return the seconds that a call takes, between CUDA events on PyTorch's current stream."""
    cuda = importlib.import_module("torch").cuda
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    start.record()
    action()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


# Kernels ------------------------------------------------------------------------------------------------


def kernels_in(handle: int) -> int | None:
    """Return how many kernels a CUDA graph has, copies not counted.

    Args:
        handle: the address that CUDA knows the graph by (cudaGraph_t and CUgraph are the same).

    Returns:
        None where the driver can't be asked, or does not say.
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
        found += kind.value == KERNEL
    return found


def kernels_of(run: Any, steps: int = 1) -> float | None:
    """Return the kernels a step of xpnet, from the graph that it was captured as.

    Args:
        run: what takes the steps, see `xpnet.replay`. steps: how many there are in a graph.
    """
    plays = [play for play, _ in getattr(run, "recordings", {}).values()]
    if len(plays) != 1:  # not captured
        return None
    found = kernels_in(plays[0].graph.graph)
    return None if found is None else found / steps


# Products -----------------------------------------------------------------------------------------------


class Room(NamedTuple):
    """What products are written to: gradients of kernels; outputs of layers, and then derivatives by these."""

    grads: tuple[Any, ...]
    outputs: tuple[Any, ...]


def captured(step: Callable[[Room, Any], Room], room: Room) -> Runner:
    """Return what launches some products as one graph."""
    recorder = graph.Recorder(get_backend("cupy").device)
    with recorder.surroundings():
        play: Any = recorder.record(step, room, ())

    def run(n: int, kept: Any = (step, room)) -> None:  # a graph does not keep the memory that it works on
        with recorder.surroundings():
            for _ in range(n):
                play()
        recorder.stream.synchronize()

    return Runner(run, clock=by_cupy, kernels=lambda: kernels_in(play.graph.graph))


def _factor(case: Case, *shape: int) -> Any:
    """Return normal random numbers on the GPU, as `blas.product` takes factors in the precision of the case."""
    values = np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)
    if case.precision == "bfloat16":  # the upper half of float32
        return get_backend("cupy").array(values.view(np.uint32) >> 16, "uint16")
    return get_backend("cupy").array(values, case.stored)


def _rooms(case: Case, *shapes: tuple[int, ...]) -> tuple[Any, ...]:
    """Return memory for results."""
    return tuple(get_backend("cupy").array(np.zeros(shape, case.stored)) for shape in shapes)


def products_only(case: Case, data: DataSet) -> Runner:
    """The matrix products of a step by cuBLAS into given memory, as one graph: the floor for a step."""
    sizes = list(zip(case.layers, case.layers[1:]))
    weights = [_factor(case, *size) for size in sizes]
    acts = [_factor(case, case.batch, n) for n in case.layers]

    def step(room: Room, batch: Any) -> Room:
        for i, w in enumerate(weights):
            blas.product(acts[i], w, room.outputs[i])
        for i in range(len(weights) - 1, -1, -1):
            blas.product(acts[i].T, acts[i + 1], room.grads[i])
            if i:
                blas.product(acts[i + 1], weights[i].T, room.outputs[i - 1])
        return room

    return captured(step, Room(_rooms(case, *sizes), _rooms(case, *((case.batch, n) for n in case.layers[1:]))))


def one_product(case: Case, data: DataSet) -> Runner:
    """A square product by cuBLAS, 4096 wide, in the precision of the case: what the GPU's peak is taken to be.

    The result of factors of bfloat16 is written in float32, as it is in a step.
    """
    a, b = _factor(case, SIDE, SIDE), _factor(case, SIDE, SIDE)

    def step(room: Room, batch: Any) -> Room:
        blas.product(a, b, room.outputs[0])
        return room

    return captured(step, Room((), _rooms(case, (SIDE, SIDE))))._replace(flops=2 * SIDE**3)


# The machine --------------------------------------------------------------------------------------------


def describe() -> dict[str, str]:
    """Return the GPU's name, and the versions of driver and CUDA.

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
    """Return the driver's own version, or nothing where nvidia-smi is not there to ask."""
    call = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(call, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
