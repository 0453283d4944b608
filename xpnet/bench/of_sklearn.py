"""scikit-learn's MLPClassifier."""

from __future__ import annotations

import warnings
from typing import Any

from ..backend import np
from .cases import Case, DataSet
from .jobs import Make, Runner, epochs, passes

__all__ = ["epoch", "prediction", "step"]

BATCHES_PER_EPOCH = 20  # per epoch of "sklearn fit" in the table of steps


def network(case: Case, data: DataSet, shuffle: bool = True) -> Any:
    """Return the case's classifier after one step, which makes its weights; each `fit` adds an epoch."""
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(
        case.layers[1:-1],
        solver=case.optimizer,
        alpha=0.0,
        batch_size=case.batch,
        learning_rate_init=case.rate,
        momentum=0.0,  # for "sgd"
        random_state=0,
        shuffle=shuffle,
        max_iter=1,
    )
    rows = slice(0, case.batch)
    model.partial_fit(data.x[rows], data.y[rows], classes=np.arange(case.layers[-1]))
    return model.set_params(warm_start=True)  # set now: with it, a partial_fit batch must contain all classes


def fit(model: Any, x: np.ndarray, y: np.ndarray, times: int) -> None:
    """Call `fit` a number of times."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "not converged" after one epoch
        for _ in range(times):
            model.fit(x, y)


def step(method: str) -> Make:
    """Return `partial_fit` on a batch, or epochs of `fit` over 20 batches."""

    def make(case: Case, data: DataSet) -> Runner:
        model = network(case, data, shuffle=False)
        model.set_params(warm_start=method == "fit")
        rows = slice(0, case.batch * BATCHES_PER_EPOCH if method == "fit" else case.batch)
        x, y = data.x[rows], data.y[rows]

        def run(n: int) -> None:
            if method == "fit":
                fit(model, x, y, n // BATCHES_PER_EPOCH)
                return
            for _ in range(n):
                model.partial_fit(x, y)

        return epochs(run, model.predict_proba, data)._replace(unit=BATCHES_PER_EPOCH if method == "fit" else 1)

    return make


def epoch(case: Case, data: DataSet) -> Runner:
    """Return an epoch of `fit`, without dropout, which scikit-learn does not have."""
    model = network(case, data)
    return epochs(lambda n: fit(model, data.x, data.y, n), model.predict_proba, data)


def prediction(case: Case, data: DataSet) -> Runner:
    """Return a contestant that calls `predict_proba`, which takes all rows at once."""
    model, weights = network(case, data), case.weights()
    model.coefs_, model.intercepts_ = weights[::2], weights[1::2]
    return passes(lambda: model.predict_proba(data.x), case, data)
