"""CUDA kernels generated from formulas: one per structure of a formula, checked before use.

When a formula of a new structure is first used on a device, its kernel is compiled and compared with the
formula's results on NumPy. A kernel that gives other results is not used, with one warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from ...backend import Backend, NumpyBackend
from ...core import ops
from ...fusion.activation import Z, activation_graphs
from ...fusion.cuda import activation_source, derivative_source, update_source
from ...fusion.update import update_graph
from ..compare import TOLERANCE, close
from .launch import NULL, STORAGE_DTYPE, WARPS, kernel_made_by, over

__all__ = ["ActivationKernels", "UpdateKernel", "activation_kernels", "update_kernel"]

Array = Any  # a CuPy array

ROWS, UNITS, SIZE = 67, 37, 3000  # shapes of the arrays in checks: no multiples of a warp

_verdicts: dict[Any, bool] = {}  # by device and kernel: whether it passed its check


class ActivationKernels(NamedTuple):
    """The kernels that apply an activation and pull a derivative back through it.

    Attributes:
        bias_act, act_backward: the kernels. constants, slopes: the constants of each.
        linear: whether y = z and dz = dy.
        keeps_scores: whether the derivative reads z, so that y needs separate memory.
    """

    bias_act: Any
    act_backward: Any
    constants: tuple[Any, ...]
    slopes: tuple[Any, ...]
    linear: bool
    keeps_scores: bool

    def forward(self, z: Array, bias: Array | None, y: Array) -> None:
        """Overwrite z with z + bias and write f(z + bias) to y, shape (rows, units); y may be z."""
        sizes = map(np.int32, z.shape)
        self.bias_act(*over(z.size), (z, NULL if bias is None else bias, y, *self.constants, *sizes))

    def backward(
        self, dy: Array, z: Array, y: Array, dz: Array | None, sums: Array | None, chunks: int = 1
    ) -> None:
        """Write dz, and sums of its columns over chunks of rows, shape (chunks, units); None: not needed."""
        out = (NULL if a is None else a for a in (dz, sums))
        rows, units = dy.shape
        grid = (-(-units // WARPS[0]), chunks)
        self.act_backward(grid, WARPS, (dy, z, y, *out, *self.slopes, np.int32(rows), np.int32(units)))


def activation_kernels(backend: Backend, activation: Any) -> ActivationKernels | None:
    """Return the kernels for an activation; None if its formulas are not elementwise, or the check failed."""
    graphs = activation_graphs(activation)
    if graphs is None:
        return None
    forward, backward = graphs
    dtype, real = backend.dtype_name, np.dtype(backend.dtype_name).type
    key = (dtype, backend.narrow, forward.key, backward.key)

    def made() -> ActivationKernels:
        return ActivationKernels(
            kernel_made_by(activation_source, forward.key, dtype),
            kernel_made_by(derivative_source, backward.key, dtype, backend.narrow),
            tuple(map(real, forward.constants)),
            tuple(map(real, backward.constants)),
            all(graph.nodes[graph.outputs[0]] == ("array", (0,), 1, False) for graph in (forward, backward)),
            Z in backward.reads,
        )

    def check() -> bool:
        return _activation_right(backend, activation, made())

    return made() if _right(backend, key, f"the activation {activation.name!r}", check) else None


def _activation_right(backend: Backend, activation: Any, kernels: ActivationKernels) -> bool:
    host, share = NumpyBackend(dtype=backend.dtype_name), TOLERANCE[backend.dtype_name]
    rng = np.random.default_rng(0)
    z, dy, bias = (rng.normal(0, 2, shape).astype(host.dtype) for shape in ((ROWS, UNITS), (ROWS, UNITS), UNITS))
    on_z, on_dy, on_bias, on_y, on_sums = (backend.array(a) for a in (z, dy, bias, z, bias))
    on_dz = backend.array(dy.astype(STORAGE_DTYPE[backend.narrow]) if backend.narrow else dy)
    kernels.forward(on_z, on_bias, on_y)
    kernels.backward(on_dy, on_z, on_y, on_dz, on_sums)
    with np.errstate(all="ignore"):
        z = z + bias
        y = activation.forward(host.xp, z)
        dz = activation.backward(host.xp, dy, z, y)
    pairs = [(on_z, z), (on_y, y), (on_sums, dz.sum(0)), *([] if backend.narrow else [(on_dz, dz)])]
    return all(close(backend.host(a), np.asarray(b, host.dtype), share) for a, b in pairs)


class UpdateKernel(NamedTuple):
    """The kernel of an optimizer's update, and its constants."""

    kernel: Any
    constants: tuple[Any, ...]

    def launch(
        self, arrays: Sequence[Array], new: Sequence[Array], numbers: Sequence[Array | None], ok: Array | None
    ) -> tuple[Any, ...]:
        """Return the kernel's grid, block and arguments.

        Args:
            arrays: w, g and the slots. new: memory for the new weights and slots; empty if they overwrite the old
                ones. numbers: lr, age, and factor or None. ok: whether to write anything; None means yes.
        """
        n = arrays[0].size
        pointers = (NULL if a is None else a for a in (*arrays, *new, *numbers))
        return *over(n), (*pointers, *self.constants, NULL if ok is None else ok, np.int64(n))


def update_kernel(
    backend: Backend, optimizer: Any, slots: int, decay: float, scaled: bool, in_place: bool
) -> UpdateKernel | None:
    """Return the kernel for `ops.update`; None if the formula is not elementwise, or the check failed.

    Args:
        slots: how many there are. decay: see `ops.update`. scaled: whether there is a factor.
        in_place: whether new weights and slots overwrite the old ones.
    """
    graph = update_graph(optimizer, slots, decay, scaled)
    if graph is None:
        return None
    dtype = backend.dtype_name
    key = (dtype, in_place, graph.key)

    def made() -> UpdateKernel:
        kernel = kernel_made_by(update_source, graph.key, dtype, in_place=in_place)
        return UpdateKernel(kernel, tuple(map(np.dtype(dtype).type, graph.constants)))

    def check() -> bool:
        return _update_right(backend, optimizer, slots, decay, scaled, in_place, made())

    return made() if _right(backend, key, f"the optimizer {optimizer!r}", check) else None


@np.errstate(all="ignore")
def _update_right(
    backend: Backend, optimizer: Any, count: int, decay: float, scaled: bool, in_place: bool, made: UpdateKernel
) -> bool:
    """Compare the fourth update after three by the formula; first launch it with ok false, as if rejected."""
    host, rng = NumpyBackend(dtype=backend.dtype_name), np.random.default_rng(0)
    lr, age, factor = host.scalar(0.1), host.scalar(0.0), host.scalar(0.5) if scaled else None

    def draw() -> np.ndarray:
        return rng.standard_normal(SIZE).astype(host.dtype)

    w, slots = draw(), optimizer.first_slots(host, (SIZE,))[:count]
    for _ in range(4):
        old, g, age = (w, *slots), draw(), age + host.scalar(1.0)
        w, slots = ops.update(SimpleNamespace(xp=host.xp), optimizer, w, g, slots, lr, age, decay, factor)
    arrays = [backend.array(a) for a in (old[0], g, *old[1:])]
    new = [] if in_place else [backend.array(a) for a in old]
    numbers = [None if a is None else backend.scalar(float(a)) for a in (lr, age, factor)]
    for ok in (False, True):
        made.kernel(*made.launch(arrays, new, numbers, backend.scalar(ok, backend.xp.bool)))
    share = TOLERANCE[backend.dtype_name]
    results = new or [arrays[0], *arrays[2:]]
    return all(close(backend.host(a), np.asarray(b), share) for a, b in zip(results, (w, *slots), strict=True))


def _right(backend: Backend, key: tuple[Any, ...], what: str, check: Callable[[], bool]) -> bool:
    """Return whether kernels pass `check` on a device, run once per process; if not, warn."""
    if not backend.checked:
        return True
    key = (backend.device, *key)
    if key not in _verdicts:
        try:
            why = "" if check() else "its results differ from those of the formula"
        except Exception as error:  # noqa: BLE001 - the libraries' own exceptions; reported in the warning
            why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        _verdicts[key] = not why
        if why:
            warnings.warn(
                f"the CUDA kernel made from {what} is not used on {backend.device!r} ({why}); training continues "
                "without it",
                RuntimeWarning,
                stacklevel=3,
            )
    return _verdicts[key]
