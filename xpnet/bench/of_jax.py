"""Plain JAX: a step under `jit` with donated state, and several steps or an epoch in one `lax.scan`.

JAX has no events, so it is timed by the host's clock on a GPU, too, until the state is ready.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from ..backend import np
from .cases import STEPS_PER_CALL, Case, DataSet
from .jobs import Make, Runner, epochs, passes, stacks

__all__ = ["epoch", "prediction", "step"]


def place(case: Case) -> Any:
    """Return the device of the case (None: JAX's default) and set its precision for everything traced later.

    Raises:
        ImportError: which leaves the contestant out: there is no such device.
    """
    import jax

    if case.device == "cpu":
        return None
    try:
        device = jax.devices(case.device)[0]
    except RuntimeError as error:
        raise ImportError(f"JAX {jax.__version__} finds no CUDA device: {error}") from error
    if case.precision in ("float32", "tf32"):  # JAX's default may be TF32
        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if case.tf32 else "float32")
    return device


def scores(weights: Any, x: Any, drop: Callable[[int, Any], Any] | None = None) -> Any:
    """Return the scores of the classes; `drop(i, a)` is applied after hidden layer i."""
    import jax

    for i, (w, b) in enumerate(weights[:-1]):
        x = jax.nn.relu(x @ w + b)
        x = x if drop is None else drop(i, x)
    w, b = weights[-1]
    return x @ w + b


def loss_of(weights: Any, x: Any, y: Any, drop: Any = None, half: bool = False) -> Any:
    """Return the mean cross-entropy; with `half`, of scores computed in bfloat16."""
    import jax
    import jax.numpy as jnp

    if half:
        weights, x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (weights, x))
    z = scores(weights, x, drop)
    logs = jax.nn.log_softmax(z.astype(jnp.float32) if half else z)
    return -jnp.mean(jnp.take_along_axis(logs, y[:, None], axis=1))


def make_step(case: Case) -> Any:
    """Return `step(state, x, y) -> state` and the first state: (weights, m, v, steps taken)."""
    import jax
    import jax.numpy as jnp

    dtype, half = jnp.dtype(case.stored), case.precision == "bfloat16"
    sizes = list(zip(case.layers, case.layers[1:]))
    keys = jax.random.split(jax.random.key(0), len(sizes))
    weights = [
        (jax.random.normal(k, s, dtype) * (2.0 / s[0]) ** 0.5, jnp.zeros(s[1], dtype)) for k, s in zip(keys, sizes)
    ]
    m, v = (jax.tree.map(jnp.zeros_like, weights) for _ in range(2))

    def step(state: Any, x: Any, y: Any) -> Any:
        weights, m, v, t = state
        key = jax.random.fold_in(jax.random.key(1), t)

        def drop(i: int, a: Any) -> Any:
            keep = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - case.dropout, a.shape)
            return jnp.where(keep, a / (1 - case.dropout), 0)

        g = jax.grad(loss_of)(weights, x, y, drop if case.dropout else None, half)
        t = t + 1
        if case.optimizer == "sgd":
            return jax.tree.map(lambda w, g: w - case.rate * g, weights, g), m, v, t
        age = t.astype(dtype)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        rate = case.rate * jnp.sqrt(1 - 0.999**age) / (1 - 0.9**age)
        weights = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-7), weights, m, v)
        return weights, m, v, t

    return step, (weights, m, v, jnp.zeros((), jnp.int32))


def step(scan: bool = False) -> Make:
    """Return a step on one batch, or a `lax.scan` over stacked batches, on the device."""

    def make(case: Case, data: DataSet) -> Runner:
        import jax

        device = place(case)
        one, first = make_step(case)
        state = [first]
        x, y = data.x[: case.batch], data.y[: case.batch]
        if scan:
            stacks(case)
            rows = STEPS_PER_CALL * case.batch
            x, y = (
                data.x[:rows].reshape(STEPS_PER_CALL, case.batch, -1),
                data.y[:rows].reshape(STEPS_PER_CALL, case.batch),
            )
        x, y = jax.device_put(x, device), jax.device_put(y, device)

        def many(state: Any, xs: Any, ys: Any) -> Any:
            return jax.lax.scan(lambda s, batch: (one(s, *batch), None), state, (xs, ys))[0]

        fast, unit = jax.jit(many if scan else one, donate_argnums=0), STEPS_PER_CALL if scan else 1

        def run(n: int) -> None:
            for _ in range(n // unit):
                state[0] = fast(state[0], x, y)
            jax.block_until_ready(state[0])

        return Runner(run, lambda: float(loss_of(state[0][0], data.x_test, data.y_test)), unit)

    return make


@cache
def jitted(case: Case, scan: bool) -> Any:
    """Return `train(state, x, y, rows) -> state`, or with `scan` an epoch, `train(state, x, y, key) -> state`.

    It is cached, so a second training does not compile again, as with PyTorch.
    """
    import jax

    one, _ = make_step(case)

    def on_rows(state: Any, x: Any, y: Any, rows: Any) -> Any:
        return one(state, x[rows], y[rows])

    def on_epoch(state: Any, x: Any, y: Any, key: Any) -> Any:
        full = len(x) // case.batch * case.batch
        order = jax.random.permutation(key, len(x))
        batches = order[:full].reshape(-1, case.batch)
        state = jax.lax.scan(lambda s, rows: (on_rows(s, x, y, rows), None), state, batches)[0]
        return on_rows(state, x, y, order[full:]) if full < len(x) else state

    return jax.jit(on_epoch if scan else on_rows, donate_argnums=0)


def epoch(scan: bool = False) -> Make:
    """Return a shuffled epoch over data on the device: one `jit` call per step, or one per epoch."""

    def make(case: Case, data: DataSet) -> Runner:
        import jax

        device = place(case)
        _, first = make_step(case)
        fast, state, rng = jitted(case, scan), [first], np.random.default_rng(0)
        x, y = jax.device_put(data.x, device), jax.device_put(data.y, device)

        def run(n: int) -> None:
            for _ in range(n):
                if scan:
                    state[0] = fast(state[0], x, y, jax.random.key(rng.integers(2**31)))
                    continue
                order = rng.permutation(len(x))
                for start in range(0, len(x), case.batch):
                    state[0] = fast(state[0], x, y, order[start : start + case.batch])
            jax.block_until_ready(state[0])

        return epochs(run, lambda x: jax.nn.softmax(scores(state[0][0], x)), data)

    return make


def prediction(case: Case, data: DataSet) -> Runner:
    """Return a contestant that computes the probabilities under `jit`, batch by batch."""
    import jax
    import jax.numpy as jnp

    device = place(case)
    arrays = [jax.device_put(a, device) for a in case.weights()]
    weights = list(zip(arrays[::2], arrays[1::2]))
    forward = jax.jit(lambda weights, x: jax.nn.softmax(scores(weights, x)))
    x = jax.device_put(data.x, device)

    def predict() -> Any:
        parts = [forward(weights, x[i : i + case.batch]) for i in range(0, len(x), case.batch)]
        return jax.block_until_ready(jnp.concatenate(parts))

    return passes(predict, case, data)
