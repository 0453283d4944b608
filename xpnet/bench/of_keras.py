"""Keras 3 on the backend named by KERAS_BACKEND, else on JAX."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

from .cases import Case, DataSet
from .jobs import Runner, epochs, passes

__all__ = ["epoch", "prediction", "step"]


def network(case: Case, metrics: Any = None) -> Any:
    """Return Keras and the case's network, compiled."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    keras.utils.set_random_seed(0)
    layers: list[Any] = [keras.Input((case.layers[0],), dtype=case.dtype)]
    for n in case.layers[1:-1]:
        layers.append(keras.layers.Dense(n, activation="relu", dtype=case.dtype))
        if case.dropout:
            layers.append(keras.layers.Dropout(case.dropout, dtype=case.dtype))
    layers.append(keras.layers.Dense(case.layers[-1], activation="softmax", dtype=case.dtype))
    model = keras.Sequential(layers)
    optimizer = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}[case.optimizer]
    model.compile(optimizer(case.rate), "sparse_categorical_crossentropy", metrics=metrics)
    return keras, model


def step(case: Case, data: DataSet) -> Runner:
    """Return a contestant that calls `train_on_batch`."""
    _, model = network(case)
    x, y = data.x[: case.batch], data.y[: case.batch]

    def run(n: int) -> None:
        for _ in range(n):
            model.train_on_batch(x, y)

    return Runner(run, lambda: float(model.evaluate(x, y, verbose=0)))


def epoch(case: Case, data: DataSet) -> Runner:
    """Return a contestant that calls `fit` like xpnet's row: with a progress bar, a metric and a callback."""
    keras, model = network(case, ["accuracy"])

    def run(n: int) -> None:
        stop = keras.callbacks.EarlyStopping("loss", patience=n)
        with contextlib.redirect_stdout(io.StringIO()):
            model.fit(data.x, data.y, batch_size=case.batch, epochs=n, verbose=1, callbacks=[stop])

    return epochs(run, lambda x: model.predict(x, verbose=0), data)


def prediction(case: Case, data: DataSet) -> Runner:
    """Return a contestant that calls `predict`."""
    _, model = network(case)
    model.set_weights(case.weights())
    return passes(lambda: model.predict(data.x, batch_size=case.batch, verbose=0), case, data)
