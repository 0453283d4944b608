"""The contestants: each trains the same network as its own documentation advises.

A contestant is a function of a case that returns `(run, loss)`: `run(n)` takes n steps and waits for them,
`loss()` returns the training loss now. What is not installed raises ImportError and is left out.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

from ..backend import get_backend, np
from .cases import Case

__all__ = ["CONTESTANTS", "Contestant"]

Contestant = Callable[[Case], tuple[Callable[[int], None], Callable[[], float]]]


def xpnet_on(backend: str, steps_per_execution: int = 1) -> Contestant:
    """Return xpnet on a backend: the step that `fit` runs, on one batch."""

    def make(case: Case) -> Any:
        import xpnet as xn

        from .. import loop
        from ..data import Data
        from ..training import zero_sums

        *hidden, classes = case.layers[1:]
        layers = [xn.layers.Dense(n, activation="relu") for n in hidden]
        where = get_backend(backend, dtype=case.dtype)
        top = xn.layers.Dense(classes, activation="softmax")
        model = xn.Sequential([xn.layers.Input((case.layers[0],)), *layers, top], seed=0, backend=where)
        optimizer = {"adam": xn.optimizers.Adam, "sgd": xn.optimizers.SGD}[case.optimizer]
        model.compile(optimizer(case.rate), "sparse_categorical_crossentropy")
        x, y = case.data()
        program = model.program()
        batch = loop.make_batch(model, program, Data(x, y), slice(0, case.batch), 0)
        batches = [batch] * steps_per_execution
        model.state = model.state._replace(lr=where.scalar(case.rate), sums=zero_sums(where, []))

        def run(n: int) -> None:
            state = model.state
            for _ in range(max(1, n // steps_per_execution)):
                state = program.run(state, batches)
            model.state = state
            where.host(state.age)

        return run, lambda: model.evaluate(x, y)

    return make


def products_only(case: Case) -> Any:
    """The matrix products of a step with NumPy into given memory: the floor for a NumPy program."""
    x, _ = case.data()
    rng = np.random.default_rng(0)
    sizes = list(zip(case.layers, case.layers[1:]))
    weights = [rng.standard_normal(s).astype(case.dtype) for s in sizes]
    acts = [x, *(rng.standard_normal((case.batch, n)).astype(case.dtype) for n in case.layers[1:])]
    grads = [np.empty_like(w) for w in weights]
    room = [np.empty_like(a) for a in acts]

    def run(n: int) -> None:
        for _ in range(n):
            for i, w in enumerate(weights):
                np.matmul(acts[i], w, out=room[i + 1])
            for i in range(len(weights) - 1, -1, -1):
                np.matmul(acts[i].T, acts[i + 1], out=grads[i])
                if i:
                    np.matmul(acts[i + 1], weights[i].T, out=room[i])

    return run, None


def torch_with(mode: str) -> Contestant:
    """Return PyTorch: eager with its default Adam, with fused Adam, or the whole step compiled."""

    def make(case: Case) -> Any:
        import torch

        torch.manual_seed(0)
        layers: list[Any] = []
        for a, b in zip(case.layers, case.layers[1:]):
            layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers[:-1]).to(getattr(torch, case.dtype))
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[case.optimizer]
        optimizer = kind(model.parameters(), lr=case.rate, **({} if mode == "eager" else {"fused": True}))
        loss_of = torch.nn.CrossEntropyLoss()
        x, y = map(torch.from_numpy, case.data())

        def forward_backward() -> None:
            loss_of(model(x), y).backward()

        compute = torch.compile(forward_backward) if mode == "compiled" else forward_backward

        def run(n: int) -> None:
            for _ in range(n):
                optimizer.zero_grad(set_to_none=True)
                compute()
                optimizer.step()

        def loss() -> float:
            with torch.no_grad():
                return float(loss_of(model(x), y))

        return run, loss

    return make


def jax_by_hand(scan: int = 0) -> Contestant:
    """Return a hand-written JAX step under `jit` with donated state, or a `lax.scan` over several."""

    def make(case: Case) -> Any:
        import jax
        import jax.numpy as jnp

        dtype = jnp.dtype(case.dtype)
        sizes = list(zip(case.layers, case.layers[1:]))
        keys = jax.random.split(jax.random.key(0), len(sizes))
        weights = [
            (jax.random.normal(k, s, dtype) * (2.0 / s[0]) ** 0.5, jnp.zeros(s[1], dtype))
            for k, s in zip(keys, sizes)
        ]
        zeros = jax.tree.map(jnp.zeros_like, weights)
        x, y = map(jax.device_put, case.data())

        def loss_of(weights: Any, x: Any, y: Any) -> Any:
            for w, b in weights[:-1]:
                x = jax.nn.relu(x @ w + b)
            w, b = weights[-1]
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x @ w + b), y[:, None], axis=1))

        def step(state: Any, x: Any, y: Any) -> Any:
            weights, m, v, t = state
            g = jax.grad(loss_of)(weights, x, y)
            if case.optimizer == "sgd":
                return jax.tree.map(lambda w, g: w - case.rate * g, weights, g), m, v, t + 1
            t = t + 1
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
            v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
            rate = case.rate * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            weights = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-7), weights, m, v)
            return weights, m, v, t

        def many(state: Any, x: Any, y: Any) -> Any:
            return jax.lax.scan(lambda s, _: (step(s, x, y), None), state, length=scan)[0]

        fast = jax.jit(many if scan else step, donate_argnums=0)
        state = [(weights, zeros, jax.tree.map(jnp.copy, zeros), jnp.zeros((), dtype))]

        def run(n: int) -> None:
            for _ in range(max(1, n // (scan or 1))):
                state[0] = fast(state[0], x, y)
            jax.block_until_ready(state[0])

        return run, lambda: float(loss_of(state[0][0], x, y))

    return make


def sklearn_with(method: str) -> Contestant:
    """Return scikit-learn's MLPClassifier: `partial_fit` on a batch, or epochs of `fit` over many batches."""

    def make(case: Case) -> Any:
        from sklearn.neural_network import MLPClassifier

        x, y = case.data()
        classes = np.arange(case.layers[-1])
        model = MLPClassifier(
            case.layers[1:-1],
            solver=case.optimizer,
            alpha=0.0,
            batch_size=case.batch,
            learning_rate_init=case.rate,
            random_state=0,
            shuffle=False,
            warm_start=method == "fit",
            max_iter=1,
        )
        per_epoch = 1 if method == "partial_fit" else 20
        xs, ys = np.tile(x, (per_epoch, 1)), np.tile(y, per_epoch)

        def run(n: int) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that one epoch has not converged
                for _ in range(max(1, n // per_epoch)):
                    if method == "fit":
                        model.fit(xs, ys)
                    else:
                        model.partial_fit(x, y, classes=classes)

        run(per_epoch)

        def loss() -> float:
            p = model.predict_proba(x)[np.arange(len(y)), y]
            return float(-np.mean(np.log(np.maximum(p, 1e-30))))

        return run, loss

    return make


def keras_step(case: Case) -> Any:
    """Keras 3 on the backend it is set to: `train_on_batch` of a compiled model."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    keras.utils.set_random_seed(0)
    *hidden, classes = case.layers[1:]
    model = keras.Sequential(
        [
            keras.Input((case.layers[0],)),
            *(keras.layers.Dense(n, activation="relu") for n in hidden),
            keras.layers.Dense(classes, activation="softmax"),
        ]
    )
    kind = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}[case.optimizer]
    model.compile(kind(case.rate), "sparse_categorical_crossentropy")
    x, y = case.data()

    def run(n: int) -> None:
        for _ in range(n):
            model.train_on_batch(x, y)

    return run, lambda: float(model.evaluate(x, y, verbose=0))


CONTESTANTS: dict[str, Contestant] = {
    "products only": products_only,
    "xpnet numpy": xpnet_on("numpy"),
    "xpnet torch": xpnet_on("torch"),
    "xpnet jax": xpnet_on("jax"),
    "xpnet jax, 50 steps a scan": xpnet_on("jax", 50),
    "torch eager": torch_with("eager"),
    "torch fused": torch_with("fused"),
    "torch compiled": torch_with("compiled"),
    "jax jit": jax_by_hand(),
    "jax, 50 steps a scan": jax_by_hand(50),
    "sklearn partial_fit": sklearn_with("partial_fit"),
    "sklearn fit": sklearn_with("fit"),
    "keras": keras_step,
}
