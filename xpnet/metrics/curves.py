"""Metrics of a curve over many thresholds: the best value under a constraint, and the area under the curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..activations import Sigmoid
from ..backend import Array, floating
from ..core.settings import flag, optional, part, setting
from ..errors import InvalidTypeError, InvalidValueError, ShapeError, number, one_of
from ..kernels.context import Context
from .base import Metric, for_outputs, ratio, registry, text
from .thresholds import Calls, four_counts, grid, threshold_list

__all__ = ["AUC", "PrecisionAtRecall", "RecallAtPrecision", "SensitivityAtSpecificity", "SpecificityAtSensitivity"]

SIGMOID = Sigmoid()


class _Constrained(Calls):
    """Base class: the largest value of one ratio where another is at least the required one; 0 if nowhere."""

    direction = "max"
    pair: ClassVar[tuple[str, str]]  # the names of the ratio to maximize and of the required one, a setting

    num_thresholds: int = setting(number, 1, integer=True, default=200, kw_only=True)
    class_id: int | None = setting(optional(number), 0, integer=True, default=None, kw_only=True)

    @property
    def levels(self) -> Sequence[float]:
        """The thresholds: evenly spaced from 0 to 1, or 0.5 only."""
        n = self.num_thresholds
        return [0.5] if n == 1 else [i / (n - 1) for i in range(n)]

    def bins(self, xp: Any, p: Array) -> Array:
        """Return how many thresholds are below each score."""
        return super().bins(xp, p) if self.num_thresholds == 1 else grid(xp, p, self.num_thresholds)

    def sides(self, ctx: Context, y: Array, p: Array) -> tuple[Array, Array]:
        """Return the score of each output that counts, and whether it is positive."""
        scores, actual = super().sides(ctx, y, p)
        return self.one_class(scores, self.class_id), self.one_class(actual, self.class_id)

    def compute(self, xp: Any, *sums: Array) -> Array:
        """Return the largest ratio where the required one is large enough, or 0."""
        ratios, (wanted, required) = _ratios(xp, *four_counts(xp, sums[0])), self.pair
        enough = ratios[required] >= getattr(self, required)
        return xp.max(xp.where(enough, ratios[wanted], xp.zeros_like(ratios[wanted])))


def _ratios(xp: Any, tp: Array, fp: Array, fn: Array, tn: Array) -> dict[str, Array]:
    """Return the ratios of the four counts at each threshold, by name."""
    recall = ratio(xp, tp, tp + fn)
    return {
        "recall": recall,
        "sensitivity": recall,
        "precision": ratio(xp, tp, tp + fp),
        "specificity": ratio(xp, tn, tn + fp),
    }


@registry.register
class SensitivityAtSpecificity(_Constrained):
    """The best sensitivity tp / (tp + fn) at thresholds where the specificity tn / (tn + fp) is high enough.

    Args:
        specificity: the least specificity, in [0, 1]. num_thresholds: evenly spaced from 0 to 1; 1 means 0.5 only.
        class_id: the only output that counts. name, dtype: see `Metric`.

    Scores are probabilities in [0, 1]. The result is 0 if no threshold qualifies. As in Keras, thresholds are not
    interpolated.

    >>> metric = SensitivityAtSpecificity(0.5)
    >>> metric.update_state([0, 0, 0, 1, 1], [0, 0.3, 0.8, 0.3, 0.8])
    >>> float(metric.result())
    0.5
    """

    default_name = "sensitivity_at_specificity"
    pair = "sensitivity", "specificity"
    specificity: float = setting(number, 0, 1)


@registry.register
class SpecificityAtSensitivity(_Constrained):
    """The best specificity tn / (tn + fp) at thresholds where the sensitivity tp / (tp + fn) is high enough.

    Args:
        sensitivity: the least sensitivity, in [0, 1].
        num_thresholds, class_id, name, dtype: see `SensitivityAtSpecificity`.

    >>> metric = SpecificityAtSensitivity(0.5)
    >>> metric.update_state([0, 0, 0, 1, 1], [0, 0.3, 0.8, 0.3, 0.8])
    >>> round(float(metric.result()), 4)
    0.6667
    """

    default_name = "specificity_at_sensitivity"
    pair = "specificity", "sensitivity"
    sensitivity: float = setting(number, 0, 1)


@registry.register
class PrecisionAtRecall(_Constrained):
    """The best precision tp / (tp + fp) at thresholds where the recall tp / (tp + fn) is high enough.

    Args:
        recall: the least recall, in [0, 1].
        num_thresholds, class_id, name, dtype: see `SensitivityAtSpecificity`.

    >>> metric = PrecisionAtRecall(0.5)
    >>> metric.update_state([0, 0, 0, 1, 1], [0, 0.3, 0.8, 0.3, 0.8])
    >>> float(metric.result())
    0.5
    """

    default_name = "precision_at_recall"
    pair = "precision", "recall"
    recall: float = setting(number, 0, 1)


@registry.register
class RecallAtPrecision(_Constrained):
    """The best recall tp / (tp + fn) at thresholds where the precision tp / (tp + fp) is high enough.

    Args:
        precision: the least precision, in [0, 1].
        num_thresholds, class_id, name, dtype: see `SensitivityAtSpecificity`.

    >>> metric = RecallAtPrecision(0.8)
    >>> metric.update_state([0, 0, 1, 1], [0, 0.5, 0.3, 0.9])
    >>> float(metric.result())
    0.5
    """

    default_name = "recall_at_precision"
    pair = "recall", "precision"
    precision: float = setting(number, 0, 1)


def _curve(name: str, value: Any) -> str:
    """Check the name of a curve, in upper or lower case."""
    return one_of(name, value.upper() if isinstance(value, str) else value, ("ROC", "PR", "PRGAIN"))


def _weights(name: str, value: Any) -> Any:
    """Check label weights: a sequence of numbers >= 0."""
    try:
        return tuple(number(name, w, 0) for w in value)
    except TypeError as error:
        raise InvalidTypeError(f"{name} must be a list of numbers; got {value!r}") from error


@registry.register
class AUC(Calls):
    """The area under the ROC curve, the precision-recall curve or its gain form, from sums by threshold.

    Args:
        num_thresholds: >= 2, evenly spaced from 0 to 1, both ends included. The error falls with their number.
        curve: `"ROC"` (recall over false positive rate), `"PR"` (precision over recall) or `"PRGAIN"` (precision
            gain over recall gain). summation_method: `"interpolation"`, `"minoring"` (the lower end of each
            interval counts) or `"majoring"` (the higher end). name, dtype: see `Metric`.
        thresholds: those between the ends, numbers in [0, 1]; they replace `num_thresholds`.
        multi_label: whether to average the areas of the outputs instead of counting all outputs together.
            num_labels: their number, for multi_label only; None takes the number of outputs. label_weights: one
            number >= 0 per output, None for ones: of the average, or of the counts without multi_label.
        from_logits: whether predictions are scores, to which the sigmoid is applied; else they are in [0, 1].

    Formulas: `"interpolation"` is the trapezoidal rule. For `"PR"` it interpolates the true positives linearly
    between thresholds instead (J. Davis, M. Goadrich, "The relationship between precision-recall and ROC
    curves", ICML 2006). Gains: P. Flach, M. Kull, "Precision-recall-gain curves", NeurIPS 2015. As in Keras, every
    score is above the first threshold, and none above the last.

    Memory: 2 (num_thresholds + 1) sums, for each output with `multi_label` or `label_weights`.

    >>> metric = AUC(num_thresholds=3)
    >>> metric.update_state([0, 0, 1, 1], [0, 0.5, 0.3, 0.9])
    >>> float(metric.result())
    0.75
    """

    default_name = "auc"
    direction = "max"
    units = 0

    num_thresholds: int = setting(number, 2, integer=True, default=200)
    curve: str = setting(_curve, default="ROC")
    summation_method: str = setting(one_of, ("interpolation", "minoring", "majoring"), default="interpolation")
    name: str = setting(text, default=None, kw_only=True)
    dtype: str | None = part(floating, default=None, kw_only=True)
    thresholds: Any = setting(threshold_list, default=None)
    multi_label: bool = setting(flag, default=False)
    num_labels: int | None = setting(optional(number), 1, integer=True, default=None)
    label_weights: Any = setting(optional(_weights), default=None)
    from_logits: bool = setting(flag, default=False)

    def check_settings(self) -> None:
        """Raise if `num_labels` is given without `multi_label`."""
        if self.num_labels is not None and not self.multi_label:
            raise InvalidValueError(f"num_labels needs multi_label=True; got num_labels {self.num_labels}")

    @property
    def levels(self) -> Sequence[float]:
        """The thresholds, the ends included."""
        if self.thresholds is None:
            return [i / (self.num_thresholds - 1) for i in range(self.num_thresholds)]
        inner = self.thresholds if isinstance(self.thresholds, tuple) else (self.thresholds,)
        return [0.0, *sorted(inner), 1.0]

    @property
    def sums(self) -> Mapping[str, tuple[int, ...]]:
        """The weights by bin and truth, for each output where outputs count differently."""
        labels = (self.units,) if self.multi_label or self.label_weights is not None else ()
        return {"bins": (*labels, len(self.levels) + 1, 2)}

    def for_shapes(self, targets: tuple[int, ...], outputs: tuple[int, ...]) -> Metric:
        """Return the metric for this number of outputs."""
        for name, n in (("num_labels", self.num_labels), ("label_weights", len(self.label_weights or ()) or None)):
            if n not in (None, outputs[-1]):
                raise ShapeError(f"{name} must fit the {outputs[-1]} outputs; got {getattr(self, name)!r}")
        return for_outputs(self, units=outputs[-1])

    def bins(self, xp: Any, p: Array) -> Array:
        """Return how many thresholds are below each score, between 1 and their number - 1."""
        if self.thresholds is None:
            found = grid(xp, p, self.num_thresholds)
            return xp.maximum(found, xp.ones_like(found))
        found = xp.ones_like(p, dtype=xp.int32)
        for level in self.levels[1:-1]:
            found = found + xp.astype(p > level, xp.int32)
        return found

    def sides(self, ctx: Context, y: Array, p: Array) -> tuple[Array, Array]:
        """Return the probability of each output, and whether it is positive."""
        scores, actual = super().sides(ctx, y, p)
        return SIGMOID.forward(ctx.xp, scores) if self.from_logits else scores, actual

    def compute(self, xp: Any, *sums: Array) -> Array:
        """Return the area, or the mean of the areas of the outputs."""
        bins = sums[0]
        if bins.ndim == 2:
            return self.area(xp, *four_counts(xp, bins))
        weights = (1.0,) * bins.shape[0] if self.label_weights is None else self.label_weights
        each = self.area(xp, *four_counts(xp, bins)) if self.multi_label else bins
        total = 0.0 * xp.sum(each, axis=0)
        for i in range(bins.shape[0]):
            total = total + weights[i] * each[i, ...]
        return total / (sum(weights) or 1.0) if self.multi_label else self.area(xp, *four_counts(xp, total))

    def area(self, xp: Any, tp: Array, fp: Array, fn: Array, tn: Array) -> Array:
        """Return the area under the curve through the points of the thresholds (the last axis)."""
        if self.curve == "PR" and self.summation_method == "interpolation":
            return _interpolated(xp, tp, fp, fn)
        recall = ratio(xp, tp, tp + fn)
        if self.curve == "ROC":
            x, y = ratio(xp, fp, fp + tn), recall
        elif self.curve == "PR":
            x, y = recall, ratio(xp, tp, tp + fp)
        else:
            x, y = _gains(xp, tp, fp, fn, tn)
        if self.summation_method == "interpolation":
            heights = (y[..., :-1] + y[..., 1:]) / 2.0
        else:
            choose = xp.minimum if self.summation_method == "minoring" else xp.maximum
            heights = choose(y[..., :-1], y[..., 1:])
        return xp.sum((x[..., :-1] - x[..., 1:]) * heights, axis=-1)


def _interpolated(xp: Any, tp: Array, fp: Array, fn: Array) -> Array:
    """Return the area under precision over recall, with tp linear in the number of calls c between thresholds.

    With tp = slope c + intercept the area of an interval is the integral of tp / c over tp, divided by tp + fn:
    slope (dtp + intercept log(c_left / c_right)) / (tp + fn).
    """
    calls = tp + fp
    dtp, more, less = tp[..., :-1] - tp[..., 1:], calls[..., :-1], calls[..., 1:]
    slope = ratio(xp, dtp, more - less)
    intercept = tp[..., 1:] - slope * less
    both = (more > 0) & (less > 0)
    ones = xp.ones_like(less)
    log = xp.log(xp.where(both, more, ones) / xp.where(both, less, ones))
    return xp.sum(ratio(xp, slope * (dtp + intercept * log), tp[..., 1:] + fn[..., 1:]), axis=-1)


def _gains(xp: Any, tp: Array, fp: Array, fn: Array, tn: Array) -> tuple[Array, Array]:
    """Return recall gain 1 - (P / N) fn / tp, at least 0, and precision gain 1 - (P / N) fp / tp.

    At tp = 0 they are 0 and 1.
    """
    odds = ratio(xp, tp + fn, tn + fp)
    recall = xp.where(tp == 0, xp.zeros_like(tp), 1.0 - odds * ratio(xp, fn, tp))
    precision = 1.0 - odds * ratio(xp, fp, tp)
    return xp.where(recall > 0, recall, xp.zeros_like(recall)), precision
