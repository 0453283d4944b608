"""What a contestant hands over, and how it is checked that a whole job does its work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..backend import host_of, np
from ..errors import XpnetError
from .cases import Case, DataSet

__all__ = ["Make", "Runner", "epochs", "passes"]

CHECKED = 1000  # rows whose predictions are compared with the formula's


class Runner(NamedTuple):
    """A contestant, made ready.

    Attributes:
        run: `run(n)` takes n steps (trains n epochs, predicts n times) and waits for them; n is a multiple of
            `unit`. loss: the loss now, which must fall; None where nothing is learned.
    """

    run: Callable[[int], None]
    loss: Callable[[], float] | None = None
    unit: int = 1


Make = Callable[[Case, DataSet], Runner]


def epochs(run: Callable[[int], None], probabilities: Callable[[np.ndarray], Any], data: DataSet) -> Runner:
    """Return a contestant that trains whole epochs.

    Args:
        run: `run(n)` trains n epochs. probabilities: of the classes for some rows, as it has learned them.
    """

    def loss() -> float:
        p = np.asarray(host_of(probabilities(data.x_test)), dtype=np.float64)
        return float(-np.mean(np.log(np.maximum(p[np.arange(len(p)), data.y_test], 1e-30))))

    return Runner(run, loss)


def passes(predict: Callable[[], Any], case: Case, data: DataSet) -> Runner:
    """Return a contestant that predicts all rows with the weights of the case; its first output is checked.

    Args:
        predict: returns the classes' probabilities for all rows.
    """
    seen: list[bool] = []

    def run(n: int) -> None:
        for _ in range(n):
            p = predict()
        if not seen:
            seen.append(True)
            _check(np.asarray(host_of(p)), case, data)

    return Runner(run)


def _check(p: np.ndarray, case: Case, data: DataSet) -> None:
    """Raise if outputs are not what the formula gives in float64."""
    if p.shape != (len(data.x), case.layers[-1]):
        raise XpnetError(f"predictions must have shape {(len(data.x), case.layers[-1])}; got {p.shape}")
    weights = case.weights()
    a = data.x[:CHECKED].astype(np.float64)
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2]):
        a = np.maximum(a @ kernel + bias, 0)
    z = a @ weights[-2] + weights[-1]
    e = np.exp(z - z.max(axis=1, keepdims=True))
    worst = float(np.abs(p[:CHECKED] - e / e.sum(axis=1, keepdims=True)).max())
    if not worst < 1e-3:
        raise XpnetError(f"predictions must be within 1e-3 of the formula's; got a difference of {worst:.2g}")
