"""The context of a step, or of a call to a single part: what layers, losses and optimizers compute with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from .. import kernels
from ..backend import Array, Backend, give_back, library_of, np, resolve
from ..core.convert import check_real, is_table, kind_of, numeric
from .finish import Branch, Pieces
from .host.threads import parts_of

__all__ = ["Arena", "Context", "check_real", "enter", "numeric"]


class Arena:
    """Buffers that persist from step to step: the n-th request of a step gets the n-th buffer."""

    def __init__(self, xp: Any, device: Any = None) -> None:
        self._xp, self._device = xp, device
        self._buffers: list[Array] = []
        self._kinds: list[tuple[tuple[int, ...], Any]] = []
        self._next = 0

    def restart(self) -> None:
        """Begin a step: return the same buffers again."""
        self._next = 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return a buffer with arbitrary content."""
        i = self._next
        self._next = i + 1
        if i < len(self._kinds) and self._kinds[i] == (shape, dtype):
            return self._buffers[i]
        # the sequence of requests has changed: discard the buffers from here on
        buffer = self._xp.empty(shape, dtype=dtype, device=self._device)
        self._kinds[i:], self._buffers[i:] = [(shape, dtype)], [buffer]
        return buffer


class Context:
    """The namespace, the operations and the data of one step.

    Attributes:
        backend, xp, dtype: where and in what precision to compute.
        ops: the fused operations (`xpnet.core.ops`, or their twins from `xpnet.kernels`).
        training: whether this is a training step.
        draws: this step's masks and noise. carry: new running statistics on their way out.
        place: (position in the model, path) of the layer that is being computed, such as (2, "residual") or,
            for a sublayer, ("2/0", "residual/dense").
        frozen: the paths of the layers that were not trainable when the model was laid out; None: a layer alone.
        losses: what layers add to the objective in this step, 0-d arrays (see `add_loss`).
        loss_scale: what the derivative of the objective is multiplied by on its way back, 0-d; None for 1.
        inplace: whether there is memory for twins to write to.
        apply_update: 0-d boolean: whether the update is applied. Twins that write in place on a GPU read it there.
        overwrite: whether twins may overwrite weights and slots, in deferred calls (`defer`).
        finish: the deferred calls, which end the step (see `xpnet.kernels.finish`).
        tape: the recorder of this step, or None (see `xpnet.training.replay`).
    """

    __slots__ = (
        "_arena",
        "apply_update",
        "backend",
        "carry",
        "draws",
        "dtype",
        "finish",
        "frozen",
        "inplace",
        "loss_scale",
        "losses",
        "ops",
        "overwrite",
        "place",
        "tape",
        "training",
        "xp",
    )

    def __init__(
        self,
        backend: Backend,
        training: bool = False,
        draws: Mapping[str, Array] | None = None,
        arena: Arena | None = None,
    ) -> None:
        self.backend, self.xp, self.dtype = backend, backend.xp, backend.dtype
        self.inplace = arena is not None  # whether twins may write to `empty` and `into`
        self.ops = kernels.ops_for(backend.name) if training else kernels.inference_ops(backend.name)
        self.training = training
        self.draws = draws or {}
        self.carry: dict[str, Array] = {}
        self.losses: list[Array] = []
        self.loss_scale: Array | None = None
        self.apply_update: Array | None = None
        self.overwrite = self.inplace
        self.finish: list[Any] = []
        self.tape: Any = None
        self.place: tuple[int | str, str] = (0, "")
        self.frozen: Collection[str] | None = None
        self._arena = arena

    def restart(self, draws: Mapping[str, Array], tape: Any = None) -> Context:
        """Begin the next step with its masks and noise, in the same memory."""
        self.draws, self.carry, self.tape = draws, {}, tape
        self.losses, self.loss_scale, self.finish = [], None, []
        if self._arena is not None:
            self._arena.restart()
        return self

    def draw(self, name: str) -> Array:
        """Return the mask or noise that the current layer declared with `add_draw`, for this batch."""
        return self.draws[f"{self.place[0]}/{name}"]

    def add_loss(self, value: Array, slope: Array) -> Callable[[Array], Array]:
        """Add a term to the objective, and return the function from dy to dy with the term's derivative.

        Args:
            value: the term, 0-d. slope: its derivative by an output y of the layer; the backward pass of the layer
                starts from the dy that the returned function gives.
        """
        self.losses.append(value)
        return lambda dy: dy + (slope if self.loss_scale is None else slope * self.loss_scale)

    def set_statistic(self, name: str, value: Array) -> None:
        """Set a running statistic of the current layer to a new value."""
        self.carry[f"{self.place[1]}/{name}"] = value

    def statistic(self, name: str, otherwise: Array) -> Array:
        """Return the value that an earlier use of the current layer set in this step, else `otherwise`."""
        return self.carry.get(f"{self.place[1]}/{name}", otherwise)

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        """Return memory that a twin may write to until the end of the step."""
        if self._arena is None:
            return self.xp.empty(shape, dtype=dtype or self.dtype, device=self.backend.device)
        buffer = self._arena.empty(shape, dtype or self.dtype)
        return buffer if self.tape is None else self.tape.trace(buffer)

    def launch(self, kernel: Callable[..., None], *args: Any) -> None:
        """Call a kernel: a function that writes to its array arguments and may read their values on the host."""
        if self.tape is None:
            kernel(*args)
        else:
            self.tape.launch(kernel, *args)

    def defer(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Defer a call that overwrites the state to the end of the step.

        Args:
            function: implemented in C (NumPy's, PyTorch's, a compiled loop), see `xpnet.kernels.finish`.
        """
        if self.tape is None:
            self.finish.append(partial(function, *args, **kwargs))
        else:
            self.tape.defer(function, *args, **kwargs)

    def defer_when(self, flag: Array, block: Callable[[], Any]) -> None:
        """Defer the calls that the block defers; skip them if the flag (0-d, on the host) is false by then."""
        home = self if self.tape is None else self.tape
        before, home.finish = home.finish, []
        try:
            block()
            calls = home.finish
        finally:
            home.finish = before
        home.finish.append(Branch(flag if self.tape is None else self.tape.plain(flag), calls))

    def defer_in_parts(self, loop: Callable[..., None], numbers: Array, arrays: Sequence[Array]) -> None:
        """Defer `loop(numbers, *arrays)` on 1-D arrays; threads share large ones."""
        pieces = parts_of(arrays)
        if self.tape is not None:
            numbers, pieces = self.tape.plain((numbers, pieces))
        calls = [partial(loop, numbers, *piece) for piece in pieces]
        (self if self.tape is None else self.tape).finish.append(Pieces(calls) if len(calls) > 1 else calls[0])

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """Convert `x` (an array of any library, a list, a number) to this backend, in `dtype` or the model's."""
        dtype = self.dtype if dtype is None else dtype
        if library_of(x) is None:
            x = np.array(numeric(x))  # copied: the memory of a table must not be shared
        check_real(x)
        return self.xp.astype(self.backend.bring(x), dtype, copy=False)


def enter(*arrays: Any, dtype: str | None = None) -> tuple[Context, Callable[[Array], Array]]:
    """Return the context for a part used without a model, on the caller's arrays.

    Args:
        arrays: the caller's arrays, lists or numbers. Unless a backend was chosen, the first array determines the
            library; the widest floating dtype among them determines the precision. If the library can't compute in
            float64 as configured (JAX without x64), the precision is float32, with one warning.
        dtype: the part's own dtype, or None.

    Returns:
        The context, and a function that converts a result to the library of the first argument, in separate
        memory.
    """
    widest = _widest(arrays) if dtype is None else None
    if widest is None:
        backend = resolve(arrays, dtype=dtype)
    else:
        backend = resolve(arrays, dtype="float32")
        backend = backend.with_dtype(_nearest(backend, widest))
    first = next((a for a in arrays if library_of(a) is not None), None)

    def leave(result: Array) -> Array:
        if any(backend.owns(a) and backend.shares(result, a) for a in arrays):
            result = backend.copy(result)
        return give_back(result, first, backend)

    return Context(backend), leave


def _widest(arrays: Sequence[Any]) -> str | None:
    """Return float64 or float32, the wider among the arrays and tables; None if neither occurs."""
    given = [numeric(a) if is_table(a) else a for a in arrays]
    kinds = {kind_of(a) for a in given if hasattr(a, "dtype")}
    if kinds & {"float64", "float80", "float96", "float128", "longdouble"}:
        return "float64"
    return "float32" if "float32" in kinds else None


def _nearest(backend: Backend, dtype: str) -> str:
    near = backend.nearest(dtype)
    if near != dtype:
        _say_once(
            f"backend {backend.name!r} can't compute in {dtype} as configured: parts used alone compute in {near}"
        )
    return near


@lru_cache
def _say_once(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=6)
