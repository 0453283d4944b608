"""Test helpers: comparison of arrays of any library, and gradient checks."""

from __future__ import annotations

from typing import Any

from .backend import Array, Backend, get_backend, host_of, library_of, np
from .core.random import Stream
from .kernels.context import Context
from .layers import Layer
from .losses import Loss
from .regularizers import Regularizer

__all__ = ["assert_close", "check_gradients"]

TOLERANCES = {"float64": (1e-9, 1e-12), "float32": (1e-4, 1e-6)}  # relative, absolute


def assert_close(
    actual: Any,
    expected: Any,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    check_library: bool = True,
    check_dtype: bool = True,
    message: str = "",
) -> None:
    """Assert that two arrays agree in library, device, dtype, shape and values.

    Args:
        actual: an array of any library. expected: an array; for a number or list only values and shape are
            compared.
        rtol, atol: tolerances; None derives them from the narrower floating dtype (integers: equal).
        check_library, check_dtype: whether those must agree. message: prefix of the error message.

    Raises:
        AssertionError: they differ; the message says how.

    >>> assert_close(np.asarray([1.0, 2.0]), [1.0, 2.0 + 1e-13])
    """
    plain = library_of(expected) is None
    if check_library and not plain:
        found, wanted = library_of(actual), library_of(expected)
        assert found == wanted, f"{message} library: expected {wanted}; got {found}"
        places = [str(getattr(a, "device", "cpu")) for a in (actual, expected)]
        assert places[0] == places[1], f"{message} device: expected {places[1]}; got {places[0]}"
    a, e = host_of(actual), host_of(expected)
    if check_dtype and not plain:
        assert a.dtype == e.dtype, f"{message} dtype: expected {e.dtype}; got {a.dtype}"
    assert a.shape == e.shape, f"{message} shape: expected {e.shape}; got {a.shape}"
    kinds = [str(x.dtype) for x in (a, e) if x.dtype.kind == "f"]
    default = TOLERANCES["float32" if "float32" in kinds else "float64"] if kinds else (0.0, 0.0)
    np.testing.assert_allclose(
        a, e, rtol=default[0] if rtol is None else rtol, atol=default[1] if atol is None else atol, err_msg=message
    )


def check_gradients(
    part: Layer | Loss | Regularizer,
    input_shape: tuple[int, ...],
    *,
    y_true: Any = None,
    inputs: Any = None,
    backend: str | Backend | None = None,
    training: bool = True,
    seed: int = 0,
    tolerance: float = 1e-6,
) -> None:
    """Compare the derivatives of a part with central differences in random directions, in float64.

    For L = sum(r * f(x, w)) with random r, plus what the layer adds to the objective, the derivative along a
    random direction d must equal (L(+h d) - L(-h d)) / 2h, for the input and each parameter alone and for all of
    them together. Inputs and parameters are drawn away from 0, where functions such as ReLU have kinks.

    Args:
        part: a layer, a loss (with `y_true`), or a regularizer.
        input_shape: of the input or prediction, with the batch axis; or of the weights that are penalized.
        y_true: targets of a loss. inputs: host values instead of random ones.
        backend: where to compute, in float64. training: whether to run the layer in training, with fixed masks and
            noise.
        seed: seed of all random numbers. tolerance: on |difference| / (1 + |derivative|).

    Raises:
        AssertionError: a derivative differs; the message names it and gives both values.

    >>> from xpnet.layers import Dense
    >>> check_gradients(Dense(3, activation="tanh"), (5, 4))
    """
    work = get_backend(backend).with_dtype("float64")
    rng = np.random.default_rng(seed)
    x = _away_from_zero(rng, input_shape) if inputs is None else np.array(inputs, dtype=np.float64)
    if isinstance(part, Loss):
        _check_loss(part, work, rng, x, y_true, tolerance)
        return
    if isinstance(part, Regularizer):
        _check_regularizer(part, work, rng, x, tolerance)
        return
    if part.classes is not None:
        x = rng.integers(0, part.classes, input_shape).astype(np.float64) if inputs is None else x
    part.ensure_built(input_shape[1:])
    values = {s.name: _away_from_zero(rng, s.shape) for s in part.specs}
    for name in values:
        if "variance" in name:
            values[name] = np.abs(values[name])
    masks = {
        f"0/{d.name}": work.array(d.draw(Stream(seed), i, 0, input_shape[0], "float64"))
        for i, d in enumerate(part.draws)
    }

    def run(point: dict[str, np.ndarray]) -> tuple[Array, Any, Any]:
        ctx = Context(work, training, masks)
        params = {s.name: work.array(point[s.name]) for s in part.specs}
        y, backward = part.forward(ctx, params, work.array(point["x (the input)"]))
        return y, backward, ctx.losses

    def value(point: dict[str, np.ndarray]) -> float:
        y, _, own = run(point)
        return float((work.host(y) * r).sum()) + sum(float(work.host(term)) for term in own)

    y, backward, _ = run({**values, "x (the input)": x})
    r = rng.standard_normal(tuple(y.shape))
    dx, grads = backward(work.array(r), {})
    found = {"x (the input)": work.host(dx), **{name: work.host(g) for name, g in grads.items()}}
    if part.classes is not None:  # there is nothing between two class numbers
        del found["x (the input)"]
    missing = {s.name for s in part.specs if s.trainable} - set(found)
    assert not missing, f"{part!r} returned no gradient for {sorted(missing)}; got {sorted(grads)}"
    point = {**values, "x (the input)": x}
    _compare(repr(part), point, found, value, rng, tolerance)


def _check_loss(loss: Loss, work: Backend, rng: Any, p: np.ndarray, y_true: Any, tolerance: float) -> None:
    def value(point: dict[str, np.ndarray]) -> float:
        return float(work.host(loss(y_true, work.array(point["y_pred"]))).sum())

    grad = work.host(loss.value_and_grad(y_true, work.array(p))[1])
    _compare(repr(loss), {"y_pred": p}, {"y_pred": grad}, value, rng, tolerance)


def _check_regularizer(part: Regularizer, work: Backend, rng: Any, w: np.ndarray, tolerance: float) -> None:
    def value(point: dict[str, np.ndarray]) -> float:
        return float(work.host(part.at(Context(work), work.array(point["w"]))[0]))

    slope = work.host(part.at(Context(work), work.array(w))[1])
    _compare(repr(part), {"w": w}, {"w": slope}, value, rng, tolerance)


def _compare(who: str, point: Any, found: Any, value: Any, rng: Any, tolerance: float) -> None:
    h = 1e-6
    directions = {name: rng.standard_normal(np.shape(a)) for name, a in point.items() if name in found}
    for moved in [*([name] for name in directions), list(directions)]:
        ends = [
            {n: a + sign * h * directions[n] if n in moved else a for n, a in point.items()} for sign in (1, -1)
        ]
        numeric = (value(ends[0]) - value(ends[1])) / (2 * h)
        for n in moved:
            assert found[n].shape == np.shape(point[n]), (
                f"{who}: the gradient of {n} must have shape {np.shape(point[n])}; got {found[n].shape}"
            )
        exact = sum(float((found[n] * directions[n]).sum()) for n in moved)
        assert abs(numeric - exact) <= tolerance * (1 + abs(numeric)), (
            f"{who}: the derivative along {', '.join(moved)} should be {numeric:.12g}; got {exact:.12g}"
        )


def _away_from_zero(rng: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return numbers of both signs with magnitudes from 0.1 to 1.5."""
    return rng.uniform(0.1, 1.5, shape) * rng.choice([-1.0, 1.0], shape)
