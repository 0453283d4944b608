"""xpnet's own contestants, and the matrix products alone."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import xpnet as xn

from .. import kernels
from ..backend import get_backend, np
from ..backend.tree import Stack, tree_map
from ..callbacks import Callback, EarlyStopping
from ..training import loop
from ..training.data import Data
from ..training.step import zero_sums
from .cases import Case, DataSet
from .gpu import by_cupy, kernels_of
from .jobs import MAX_EPOCHS, Make, Runner, check_reached, epochs, goal_of, passes, stacks

__all__ = ["bare_epoch", "epoch", "prediction", "products_only", "step", "to98", "twins"]


@contextlib.contextmanager
def twins(name: str | None) -> Iterator[None]:
    """Choose the kernels of programs made and first run within the block.

    Args:
        name: `"numpy"` or `"fast"`; None keeps xpnet's choice.

    Raises:
        MissingExtraError: these kernels are not installed.
    """
    with kernels.using(name or kernels.chosen()):
        kernels.chosen()
        yield


def network(case: Case, backend: str, metrics: Any = None, per_execution: int = 1) -> Any:
    """Return the case's network, built and compiled."""
    layers: list[Any] = [xn.layers.Input((case.layers[0],))]
    for n in case.layers[1:-1]:
        layers.append(xn.layers.Dense(n, activation="relu"))
        if case.dropout:
            layers.append(xn.layers.Dropout(case.dropout))
    layers.append(xn.layers.Dense(case.layers[-1], activation="softmax"))
    model = xn.Sequential(layers, seed=0, dtype=case.dtype, backend=backend)
    optimizer = {"adam": xn.optimizers.Adam, "sgd": xn.optimizers.SGD}[case.optimizer]
    model.compile(optimizer(case.rate), "sparse_categorical_crossentropy", metrics, per_execution)
    return model


def prepared(case: Case, model: Any, data: DataSet, count: int, stacked: bool = False) -> Any:
    """Return the training program and its first batches with their masks, on the device."""
    program, columns, size = model.session.program(), Data(data.x, data.y), case.batch

    def place(a: Any) -> Any:
        return model.backend.copy(model.backend.bring(a))

    if stacked:
        stack: Any = loop.make_batches(model.session, program, columns, slice(0, count * size), 0, count)
        batches: Any = Stack(tree_map(place, stack.tree), count)
    else:
        bounds = [slice(i * size, min((i + 1) * size, len(columns))) for i in range(count)]
        parts = [loop.make_batches(model.session, program, columns, rows, 0)[0] for rows in bounds]
        batches = [tree_map(place, part) for part in parts]
    lr = model.backend.scalar(case.rate)
    model.session.state = model.state._replace(lr=lr, sums=zero_sums(model.backend, program.metrics))
    return program, batches


def at_hand(case: Case, model: Any, *arrays: np.ndarray) -> tuple[Any, ...]:
    """Return the arrays to pass to `fit` and `predict`: on the GPU if the case's device is one."""
    return arrays if case.device == "cpu" else tuple(model.backend.array(a) for a in arrays)


def step(backend: str, twin: str | None = None, per_execution: int = 1) -> Make:
    """Return the step that `fit` runs, on prepared batches; several at once are stacked as in `fit`."""

    def make(case: Case, data: DataSet) -> Runner:
        if per_execution > 1:
            stacks(case)
        with twins(twin):
            model = network(case, backend)
            program, batches = prepared(case, model, data, per_execution, per_execution > 1)

        def run(n: int) -> None:
            commit = model.session.commit
            with twins(twin):
                for _ in range(n // per_execution):
                    program.run(model.state, batches, commit)
            model.backend.host(model.state.age)

        runner = Runner(run, lambda: model.evaluate(data.x_test, data.y_test), per_execution)
        if case.device == "cpu":
            return runner
        return runner._replace(clock=by_cupy, kernels=lambda: kernels_of(program.run, per_execution))

    return make


def epoch(backend: str, twin: str | None = None, per_execution: int = 1) -> Make:
    """Return a typical call of `fit`: with a progress bar, a metric and a callback."""

    def make(case: Case, data: DataSet) -> Runner:
        with twins(twin):
            model = network(case, backend, ["accuracy"], per_execution)
        x, y = at_hand(case, model, data.x, data.y)

        def run(n: int) -> None:
            stop = EarlyStopping("loss", patience=n)  # monitors the loss, never stops
            with contextlib.redirect_stderr(io.StringIO()), twins(twin):
                model.fit(x, y, batch_size=case.batch, epochs=n, verbose=1, callbacks=[stop])

        return epochs(run, model.predict, data)

    return make


def to98(backend: str, twin: str | None = None) -> Make:
    """Return `fit` on host data, stopped by a callback after the epoch that reaches the goal."""

    def make(case: Case, data: DataSet) -> Runner:
        goal = goal_of(data)
        with twins(twin):  # raises ImportError now if the contestant is to be left out
            get_backend(backend, dtype=case.dtype)

        class Reached(Callback):
            accuracy = 0.0

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                self.accuracy = logs["val_accuracy"]
                self.model.stop_training = self.accuracy >= goal

        def train() -> None:
            reached, tested = Reached(), (data.x_test, data.y_test)
            with twins(twin):
                model = network(case, backend, ["accuracy"])
                model.fit(data.x, data.y, batch_size=case.batch, epochs=MAX_EPOCHS, verbose=0, callbacks=[reached],
                          validation_data=tested, validation_batch_size=len(data.x_test))  # fmt: skip
            check_reached(reached.accuracy, goal)

        def run(n: int) -> None:
            for _ in range(n):
                train()

        return Runner(run)

    return make


def bare_epoch(twin: str) -> Make:
    """Return the steps of an epoch on NumPy without `fit`: prepared batches, masks drawn, no metrics."""

    def make(case: Case, data: DataSet) -> Runner:
        with twins(twin):
            model = network(case, "numpy")
            program, batches = prepared(case, model, data, -(-len(data.x) // case.batch))

        def run(n: int) -> None:
            commit, first = model.session.commit, model.step
            with twins(twin):
                for step, batch in enumerate(n * batches, first):
                    masks = model.network.masks(model.session.stream, step, len(batch.y), model.backend.dtype_name)
                    program.run(model.state, [batch._replace(draws=masks)], commit)

        return epochs(run, model.predict, data)

    return make


def prediction(backend: str, twin: str | None = None) -> Make:
    """Return `predict` with its default batches."""

    def make(case: Case, data: DataSet) -> Runner:
        with twins(twin):
            model = network(case, backend)
        model.set_weights(case.weights())
        (x,) = at_hand(case, model, data.x)

        def predict() -> Any:
            with twins(twin):
                return model.predict(x)

        runner = passes(predict, case, data)
        return runner if case.device == "cpu" else runner._replace(clock=by_cupy)

    return make


def products_only(case: Case, data: DataSet) -> Runner:
    """Make the matrix products of a step with NumPy into fixed buffers: a lower bound for a NumPy program."""
    rng = np.random.default_rng(0)
    sizes = list(zip(case.layers, case.layers[1:]))
    weights = [rng.standard_normal(s).astype(case.dtype) for s in sizes]
    acts = [data.x[: case.batch]]
    acts += [rng.standard_normal((case.batch, n)).astype(case.dtype) for n in case.layers[1:]]
    grads = [np.empty_like(w) for w in weights]
    outputs = [np.empty_like(a) for a in acts]

    def run(n: int) -> None:
        for _ in range(n):
            for i, w in enumerate(weights):
                np.matmul(acts[i], w, out=outputs[i + 1])
            for i in range(len(weights) - 1, -1, -1):
                np.matmul(acts[i].T, acts[i + 1], out=grads[i])
                if i:
                    np.matmul(acts[i + 1], weights[i].T, out=outputs[i])

    return Runner(run)
