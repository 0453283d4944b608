"""Compare twins with the definitions in `core/ops.py` on the user's device, before a model uses them.

Once per process each twin gets fixed numbers, and the bodies on NumPy compute the expected results. Products use
small integers, which every precision multiplies and adds exactly; no other input is near a discontinuity or a
pole. So any difference beyond rounding is an error, and then the bodies run instead. Kernels generated from
formulas are checked later, when first used (`generated.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from ..backend import Backend, NumpyBackend, np
from ..core.random import Stream, keep_mask, normals
from . import chosen, maker_for, recorder_for
from .compare import TOLERANCE, close
from .context import Arena, Context
from .cuda.blas import precision
from .finish import make

__all__ = ["right", "usable"]

ROWS, INPUTS, UNITS = 600, 5, 37  # several chunks of rows, and a number of units that is no multiple of a warp
SIZE = 3000  # length of flat arrays: several blocks
Arrays = dict[str, list[Any]]  # by operation

_RELU = SimpleNamespace(
    name="relu",
    forward=lambda xp, z: xp.maximum(z, xp.zeros_like(z)),
    backward=lambda xp, dy, z, y: xp.where(y > 0, dy, xp.zeros_like(y)),
)


def usable(backend: Backend) -> bool:
    """Return whether a backend's twins are enabled and pass their check: only then may they write in place."""
    if chosen() == "bodies":
        return False
    return not backend.checked or right(backend)


def right(backend: Backend) -> bool:
    """Return whether a device's kernels give the expected results; if not, warn once."""
    return _right(backend, precision())


@lru_cache
def _right(backend: Backend, of_products: str) -> bool:
    try:
        recorder = recorder_for(backend)  # its stream and cuBLAS handle are reused by the next recorder
        with recorder.step_context():
            wrong = list(_wrong(backend))
    except Exception as error:  # noqa: BLE001 - the libraries' own exceptions; reported in the warning
        wrong = [f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"]
    if wrong:
        warnings.warn(
            f"xpnet's own CUDA kernels are not used on {backend.device!r}, because they fail their check there "
            f"({', '.join(wrong)}); training continues without them",
            RuntimeWarning,
            stacklevel=2,
        )
    return not wrong


def _wrong(backend: Backend) -> Iterator[str]:
    """Yield the operations whose results differ from those of their bodies on NumPy."""
    body, twin = Context(NumpyBackend(dtype=backend.policy)), Context(backend, True, None, Arena(backend.xp))
    with np.errstate(all="ignore"):
        wanted = _layers(body) | _losses(body) | _flat(body) | _sums(body)
        found = _layers(twin) | _losses(twin) | _flat(twin) | _sums(twin)
    wanted["masks and noise"], found["masks and noise"] = _draws(backend)
    wanted["batches"], found["batches"] = _batches(backend)
    for name, arrays in wanted.items():
        pairs = zip((backend.host(a) for a in found[name]), map(np.asarray, arrays), strict=True)
        if not all(close(a, b, TOLERANCE[backend.dtype_name]) for a, b in pairs):
            yield name


def _maker(ctx: Context) -> tuple[np.random.Generator, Callable[[Any], Any]]:
    """Return a random generator with a fixed seed, and a function that copies arrays to the device."""
    return np.random.default_rng(0), lambda a: ctx.backend.array(a, ctx.backend.dtype_name)


def _layers(ctx: Context) -> Arrays:
    rng, put = _maker(ctx)
    found: Arrays = {}
    shapes = (ROWS, INPUTS), (INPUTS, UNITS), UNITS, (ROWS, UNITS)
    x, w, b, dy = (put(rng.integers(-3, 4, shape) * 1.0) for shape in shapes)
    y, backward = ctx.ops.affine(ctx, x, w, b, _RELU)
    dx, grads = backward(dy, {})
    found["affine"] = [y, grads["bias"], dx, grads["kernel"]]
    found["product"] = [ctx.ops.product(ctx, x, w), ctx.ops.product(ctx, ctx.xp.matrix_transpose(x), dy)]
    x, dy = (put(rng.standard_normal(SIZE)) for _ in range(2))
    y, drop = ctx.ops.dropout(ctx, x, ctx.backend.array(rng.random(SIZE) > 0.3), 0.3)
    found["dropout"] = [y, drop(dy)]
    return found


def _losses(ctx: Context) -> Arrays:
    rng, put = _maker(ctx)
    z, soft, weight = (put(rng.uniform(0.1, 4.0, shape)) for shape in ((ROWS, UNITS), (ROWS, UNITS), ROWS))
    labels = ctx.backend.array(rng.integers(0, UNITS, ROWS), "int32")
    return {
        "softmax_cross_entropy": [
            *ctx.ops.softmax_cross_entropy(ctx, z, labels, weight),
            *ctx.ops.softmax_cross_entropy(ctx, z, soft, 0.25),
        ],
        "hits": [ctx.ops.hits(ctx, z, labels)],
        "confusion": [ctx.ops.confusion(ctx, labels, labels[::-1] + 0, weight, UNITS)],
        "row_total": [ctx.ops.row_total(ctx, weight, weight, 0.5), ctx.ops.row_total(ctx, weight, None, 0.5)],
    }


def _flat(ctx: Context) -> Arrays:
    rng, put = _maker(ctx)
    ops, scalar = ctx.ops, ctx.backend.scalar

    def flag(value: bool) -> Any:
        return scalar(value, ctx.xp.bool)

    def draws(count: int) -> list[Any]:
        return [put(rng.uniform(0.1, 4.0, SIZE)) for _ in range(count)]

    def within_limits(rate: float, value: float, *flats: Any) -> Any:
        return ops.within_limits(ctx, flag(True), scalar(rate), 1e6, flats, scalar(value), put(np.ones(UNITS)))

    segments = ((0, SIZE // 2, 0.01, 0.02), (SIZE // 2, SIZE, 0.0, 0.1))
    bad = put(np.where(np.arange(SIZE) == SIZE - 1, np.nan, 1.0))
    norm = ops.clip_factor(ctx, *draws(1), 1.0, scalar(2.0))
    found = {
        "penalize": [*ops.penalize(ctx, *draws(2), segments)],
        "within_limits": [
            within_limits(0.1, 1.0, *draws(2)), within_limits(0.1, 1.0, bad),
            within_limits(0.1, np.inf, *draws(1)), within_limits(1e30, 1.0, *draws(1)),
            within_limits(0.1, 1.0, *(1e6 * a for a in draws(2))),
        ],
        "clipping": [norm, ops.clip_parts(ctx, *draws(1), 1.0, None, (slice(0, 9), slice(9, SIZE)))],
    }  # fmt: skip
    if ctx.backend.narrow == "float16":
        states = (flag(False), flag(True), ctx.backend.count(7), scalar(64.0), scalar(3.0))
        found["rescale"] = [*ops.rescale(ctx, *states)]
        ended(ctx)
    return found


def _sums(ctx: Context) -> Arrays:
    backend, scalar = ctx.backend, ctx.backend.scalar

    def tally(*parts: Any) -> list[Any]:
        yes, sums = scalar(True, ctx.xp.bool), backend.array([1.0, 2.0, 3.0], "float64")
        found = ctx.ops.tally(ctx, yes, yes, backend.count(7), scalar(8.0), sums, parts)
        ended(ctx)
        return [*found]

    return {
        "tally": tally((scalar(2.0), 3.0), (5.0, 1.0), (scalar(9.0), 1.0)),
        "tally of arrays": tally((backend.array([6.0, 7.0, 8.0], backend.dtype_name), 0.5)),
    }


def ended(ctx: Context) -> None:
    """Make the deferred calls, which end a step."""
    make(ctx.finish)
    ctx.finish.clear()


def _draws(backend: Backend) -> tuple[list[Any], list[Any]]:
    stream, shape, maker, xp = Stream(5), (ROWS, UNITS), maker_for(backend), backend.xp
    place = stream.key, 2, backend.count(11)
    found = [
        maker.keep_mask(xp.empty(shape, dtype=xp.bool), *place, 0.4),
        maker.normals(xp.empty(shape, dtype=backend.dtype), *place),
    ]
    return [keep_mask(stream, 2, 11, shape, 0.4), normals(stream, 2, 11, shape, backend.dtype_name)], found


def _batches(backend: Backend) -> tuple[list[Any], list[Any]]:
    rng = np.random.default_rng(0)
    rows, data = rng.permutation(ROWS).astype(np.int32), rng.integers(0, 256, (ROWS, UNITS)).astype(np.uint8)
    found = maker_for(backend).pick(backend.array(data), backend.array(rows), backend.dtype)
    return [data[rows].astype(backend.dtype_name)], [found]
