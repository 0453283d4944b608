"""F scores: one number from precision and recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..backend import Array
from ..core.settings import optional, setting
from ..errors import number, one_of
from ..kernels.context import Context
from .base import Metric, for_outputs, registry, same_shape, unit_total

__all__ = ["F1Score", "FBetaScore"]

EPSILON = 1e-7  # Keras adds it to each denominator


def _average(name: str, value: Any) -> Any:
    return value if value is None else one_of(name, value, ("micro", "macro", "weighted"))


@registry.register
class FBetaScore(Metric):
    """(1 + beta^2) precision recall / (beta^2 precision + recall), of each class or averaged.

    With c = 1 for outputs called positive, else 0: precision = sum(c y) / sum(c), recall = sum(c y) / sum(y)
    (C. van Rijsbergen, "Information retrieval", 1979). As in Keras, 1e-7 is added to each denominator.

    Args:
        average: None (a result for each class, shape (units,)), `"micro"` (one score of the sums over all
            classes), `"macro"` (the mean of the classes' scores) or `"weighted"` (their mean weighted by sum(y)).
        beta: > 0: how much recall counts compared with precision.
        threshold: p > threshold is called positive, in (0, 1]; None calls the largest output of each row positive,
            all of them if several are equal, and none if they are all 0. name, dtype: see `Metric`.

    Targets are 0 or 1 in the outputs' shape, such as one-hot.

    >>> metric = FBetaScore(beta=2.0, threshold=0.5)
    >>> metric.update_state([[1, 1, 1], [1, 0, 0], [1, 1, 0]], [[0.2, 0.6, 0.7], [0.2, 0.6, 0.6], [0.6, 0.8, 0]])
    >>> [round(score, 4) for score in metric.result().tolist()]
    [0.3846, 0.9091, 0.8333]
    """

    default_name = "fbeta_score"
    direction = "max"
    unit_weights = True
    units = 0

    average: str | None = setting(_average, default=None)
    beta: float = setting(number, 0, open_low=True, default=1.0)
    threshold: float | None = setting(optional(number), 0, 1, open_low=True, default=None)

    @property
    def sums(self) -> Mapping[str, tuple[int, ...]]:
        """By class: true positives, all calls, all positives."""
        return dict.fromkeys(("hits", "called", "actual"), (self.units,))

    def for_shapes(self, targets: tuple[int, ...], outputs: tuple[int, ...]) -> Metric:
        """Return the metric for this number of outputs."""
        return for_outputs(self, units=outputs[-1])

    def counts(self, ctx: Context, y: Array, p: Array, weight: Array | None) -> Sequence[Array]:
        """Return the batch's sums."""
        xp = ctx.xp
        y = same_shape(self, y, p, xp)
        if self.threshold is None:
            called = (p >= xp.max(p, axis=-1, keepdims=True)) & (xp.abs(p) > 1e-9)
        else:
            called = p > self.threshold
        called = xp.astype(called, p.dtype)
        return [unit_total(ctx, a, weight) for a in (called * y, called, y)]

    def compute(self, xp: Any, *sums: Array) -> Array:
        """Return the scores of the classes, or their average."""
        hits, called, actual = (xp.sum(a) for a in sums) if self.average == "micro" else sums
        precision, recall = hits / (called + EPSILON), hits / (actual + EPSILON)
        square = self.beta * self.beta
        score = (1.0 + square) * (precision * recall / (square * precision + recall + EPSILON))
        if self.average == "weighted":
            return xp.sum(score * actual) / (xp.sum(actual) + EPSILON)
        return xp.sum(score) / max(score.shape[0], 1) if self.average == "macro" else score


@registry.register
class F1Score(FBetaScore):
    """2 precision recall / (precision + recall): `FBetaScore` with beta = 1.

    Args:
        average, threshold, name, dtype: see `FBetaScore`.

    >>> metric = F1Score("micro", threshold=0.5)
    >>> metric.update_state([[1, 1], [1, 0]], [[0.2, 0.6], [0.7, 0.6]])
    >>> round(float(metric.result()), 4)
    0.6667
    """

    default_name = "f1_score"
    direction = "max"
    beta = 1.0
