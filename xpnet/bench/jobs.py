"""The interface of contestants, and checks that whole jobs do their work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ..backend import host_of, np
from ..errors import XpnetError
from .cases import STEPS_PER_CALL, Case, DataSet

__all__ = [
    "GOAL",
    "MAX_EPOCHS",
    "Make",
    "Runner",
    "check_reached",
    "epochs",
    "goal_of",
    "passes",
    "stacks",
    "until",
    "wall",
]

CHECKED_ROWS = 1000  # rows whose predictions are compared with the formula's
GOAL, MAX_EPOCHS = 0.98, 30  # share of the test images to classify correctly, and the maximum number of epochs


def wall(action: Callable[[], None]) -> float:
    """Return the duration of a call in seconds by the host's clock."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


class Runner(NamedTuple):
    """A contestant, ready to run.

    Attributes:
        run: `run(n)` takes n steps (trains n epochs, predicts n times) and waits for them; n is a multiple of
            `unit`. loss: returns the current loss, which must fall; None if nothing is learned.
        clock: returns the duration of a call in seconds. kernels: returns the GPU kernels per step after warm-up,
            or None if unknown. flops: operations of one unit of work, if not those of the case. accuracy: returns
            the share of test rows that are classified correctly.
    """

    run: Callable[[int], None]
    loss: Callable[[], float] | None = None
    unit: int = 1
    clock: Callable[[Callable[[], None]], float] = wall
    kernels: Callable[[], float | None] | None = None
    flops: int | None = None
    accuracy: Callable[[], float] | None = None


Make = Callable[[Case, DataSet], Runner]


def stacks(case: Case) -> None:
    """Raise if batches of this size are not stacked.

    Raises:
        ImportError: which leaves the contestant out.
    """
    if case.batches < STEPS_PER_CALL:
        raise ImportError(
            f"batches of {case.batch} x {case.layers[0]} numbers are not stacked {STEPS_PER_CALL} at a time"
        )


def epochs(run: Callable[[int], None], probabilities: Callable[[np.ndarray], Any], data: DataSet) -> Runner:
    """Return a contestant that trains whole epochs.

    Args:
        run: `run(n)` trains n epochs. probabilities: returns the class probabilities of some rows.
    """

    def found() -> np.ndarray:
        return np.asarray(host_of(probabilities(data.x_test)), dtype=np.float64)

    def loss() -> float:
        p = found()
        return float(-np.mean(np.log(np.maximum(p[np.arange(len(p)), data.y_test], 1e-30))))

    return Runner(run, loss, accuracy=lambda: float(np.mean(np.argmax(found(), axis=1) == data.y_test)))


def goal_of(data: DataSet) -> float:
    """Return the accuracy at which training ends.

    Raises:
        ImportError: which leaves the contestant out: the data are not MNIST.
    """
    if data.source != "MNIST":
        raise ImportError("MNIST is not available: set XPNET_DATA to a folder that contains it")
    return GOAL


def check_reached(accuracy: float, goal: float) -> None:
    """Raise if training has ended below its goal."""
    if not accuracy >= goal:
        raise XpnetError(f"accuracy must reach {goal:g} within {MAX_EPOCHS} epochs; got {accuracy:.4f}")


def until(make: Make) -> Make:
    """Return a contestant that trains a new model until the goal is reached, evaluating it after each epoch.

    The time starts with data on the host and includes work repeated for each training, such as capturing a graph,
    but not compilation, which an earlier training has done.

    Args:
        make: makes a contestant that trains whole epochs, see `epochs`.
    """

    def made(case: Case, data: DataSet) -> Runner:
        goal = goal_of(data)
        make(case, data)  # raises ImportError now if the contestant is to be left out

        def train() -> None:
            runner, accuracy = make(case, data), 0.0
            assert runner.accuracy is not None
            for _ in range(MAX_EPOCHS):
                runner.run(1)
                accuracy = runner.accuracy()
                if accuracy >= goal:
                    break
            check_reached(accuracy, goal)

        def run(n: int) -> None:
            for _ in range(n):
                train()

        return Runner(run)

    return made


def passes(predict: Callable[[], Any], case: Case, data: DataSet) -> Runner:
    """Return a contestant that predicts all rows with the weights of the case; its first output is checked.

    Args:
        predict: returns the class probabilities of all rows.
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
    """Raise if outputs differ from the formula in float64."""
    if p.shape != (len(data.x), case.layers[-1]):
        raise XpnetError(f"predictions must have shape {(len(data.x), case.layers[-1])}; got {p.shape}")
    weights = case.weights()
    a = data.x[:CHECKED_ROWS].astype(np.float64)
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2]):
        a = np.maximum(a @ kernel + bias, 0)
    z = a @ weights[-2] + weights[-1]
    e = np.exp(z - z.max(axis=1, keepdims=True))
    worst = float(np.abs(p[:CHECKED_ROWS] - e / e.sum(axis=1, keepdims=True)).max())
    if not worst < 1e-3:
        raise XpnetError(f"predictions must be within 1e-3 of the formula's; got a difference of {worst:.2g}")
