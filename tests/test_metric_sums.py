"""Metrics that are not means over rows: named sums, their results, and arrays of them in training."""

import numpy as np
import pytest
from cases import METRICS
from test_metrics import BITS, HOT, LABELS, P1, P2, P3, RNG, WEIGHTS, update

import xpnet as xn
from xpnet import losses, metrics
from xpnet.callbacks import Callback, EarlyStopping
from xpnet.errors import InvalidTypeError, InvalidValueError, ShapeError, UnknownNameError
from xpnet.layers import Dense
from xpnet.metrics import Accuracy, ConfusionMatrix, OfLoss, Precision, Recall
from xpnet.optimizers import SGD
from xpnet.testing import assert_close

BEST = P3.argmax(-1)


def called(found, actual, w):
    """Return precision and recall."""
    w = np.broadcast_to(np.reshape(w, (-1, *(1,) * (np.ndim(actual) - 1))), np.shape(actual))
    hits = (w * found * actual).sum()
    return hits / (w * found).sum(), hits / (w * actual).sum()


def precision(found, actual=BITS):
    return lambda w: called(found, actual, w)[0]


def recall(found, actual=BITS):
    return lambda w: called(found, actual, w)[1]


def matrix(target, found, classes):
    def value(w):
        result = np.zeros((classes, classes))
        np.add.at(result, (target, found.astype(int)), w)
        return result

    return value


def several(one, levels):
    return lambda w: [one(level)(w) for level in levels]


def four(score, actual, level, w):
    """Return tp, fp, fn, tn at a threshold."""
    w = np.broadcast_to(np.reshape(w, (-1, *(1,) * (np.ndim(actual) - 1))), np.shape(actual))
    above, actual = score > level, np.asarray(actual) > 0.5
    return [(w * a).sum() for a in (above & actual, above & ~actual, ~above & actual, ~above & ~actual)]


def count(which, level, score=P1, actual=BITS):
    return lambda w: four(score, actual, level, w)[which]


def best(of, under, least, levels, score=P1, actual=BITS):
    """The largest of one share where another is large enough; shares are named by their two counts."""

    def value(w):
        at = [four(score, actual, level, w) for level in levels]
        shares = [[c[i] / (c[i] + c[j]) if c[i] + c[j] else 0.0 for i, j in (of, under)] for c in at]
        return max([0.0, *(share for share, other in shares if other >= least)])

    return value


SENSITIVITY, SPECIFICITY, PRECISE = (0, 2), (3, 1), (0, 1)  # tp / (tp + fn), tn / (tn + fp), tp / (tp + fp)


def area(curve, method, inner, score=P1, actual=BITS):
    """The area under a curve by its definition, the interpolated one by fine steps between thresholds."""

    def value(w):
        levels = [-1.0, *inner, 2.0]
        tp, fp, fn, tn = np.array([four(score, actual, level, w) for level in levels]).T
        share = lambda a, b: np.divide(a, b, out=np.zeros_like(a), where=b != 0)  # noqa: E731
        if curve == "PR" and method == "interpolation":
            steps = np.linspace(0, 1, 20001)
            total = 0.0
            for i in range(len(levels) - 1):
                t = tp[i + 1] + steps * (tp[i] - tp[i + 1])
                f = fp[i + 1] + steps * (fp[i] - fp[i + 1])
                if tp[i] > tp[i + 1]:
                    total += np.trapezoid(share(t, t + f)[1:], t[1:]) + (t[1] - t[0]) * share(t, t + f)[1]
            return total / (tp[0] + fn[0])
        recall, precise = share(tp, tp + fn), share(tp, tp + fp)
        if curve == "ROC":
            x, y = share(fp, fp + tn), recall
        elif curve == "PR":
            x, y = recall, precise
        else:
            odds = share(tp + fn, tn + fp)
            x = np.where(tp > 0, np.maximum(1 - odds * share(fn, tp), 0), 0)
            y = np.where(tp > 0, 1 - odds * share(fp, tp), 1)
        pairs = np.stack([y[:-1], y[1:]])
        heights = {"interpolation": pairs.mean(0), "minoring": pairs.min(0), "majoring": pairs.max(0)}[method]
        return ((x[:-1] - x[1:]) * heights).sum()

    return value


def f_scores(beta, called, actual=HOT, average=None):
    def value(w):
        sums = [np.array([(w[:, None] * a).sum(0) for a in (called * actual, called, actual)])]
        hits, found, real = sums[0].sum(1) if average == "micro" else sums[0]
        p, r = hits / (found + 1e-7), hits / (real + 1e-7)
        score = (1 + beta**2) * p * r / (beta**2 * p + r + 1e-7)
        how = {"macro": np.mean, "weighted": lambda s: (s * real).sum() / (real.sum() + 1e-7)}
        return how.get(average, np.asarray)(score)

    return value


def determination(y, p, how=None, regressors=0):
    def value(w):
        w = w[:, None]
        spread = (w * (y - (w * y).sum(0) / w.sum()) ** 2).sum(0)
        score = 1 - (w * (y - p) ** 2).sum(0) / spread
        score = score if how is None else np.average(score, weights=spread if how == "spread" else None)
        return 1 - (1 - score) * (y.size - 1) / (y.size - regressors - 1)

    return value


def evenly(n):
    return np.arange(n) / (n - 1)


HALF = np.where(P3.max(-1, keepdims=True) == P3, 1.0, 0.0)
BOTH = RNG.integers(0, 2, (40, 3))

# metric, targets, predictions, the result from the rows' weights
TABLE = {
    "huber": (lambda: OfLoss("huber"), HOT, P3, lambda w: np.average(((P3 - HOT) ** 2).mean(-1) / 2, weights=w)),
    "precision": (Precision, BITS, P1, precision(P1 > 0.5)),
    "recall": (Recall, BITS, P1, recall(P1 > 0.5)),
    "precision, signs": (Precision, 2 * BITS - 1, P1[:, None], precision(P1 > 0.5)),
    "precision, one-hot": (lambda: Precision(0.4), HOT, P3, precision(P3 > 0.4, HOT)),
    "recall, one-hot": (lambda: Recall(0.4), HOT, P3, recall(P3 > 0.4, HOT)),
    "precision, sparse": (lambda: Precision(0.4), LABELS, P3, precision(P3 > 0.4, HOT)),
    "recall, sparse column": (lambda: Recall(0.4), LABELS[:, None], P3, recall(P3 > 0.4, HOT)),
    "precision, thresholds": (
        lambda: Precision([0.2, 0.7]), BITS, P1[:, None], several(lambda t: precision(t < P1), (0.2, 0.7))
    ),
    "recall, thresholds": (
        lambda: Recall((0.2, 0.4, 0.7)), HOT, P3, several(lambda t: recall(t < P3, HOT), (0.2, 0.4, 0.7))
    ),
    "precision, top": (lambda: Precision(top_k=1), LABELS, P3, precision(np.eye(3)[BEST], HOT)),
    "recall, top": (lambda: Recall(top_k=2), HOT, P3, recall(P3.min(-1, keepdims=True) < P3, HOT)),
    "precision, class": (lambda: Precision(class_id=1), HOT, P3, precision(P3[:, 1] > 0.5, HOT[:, 1])),
    "recall, class": (lambda: Recall(0.3, 1, 2), LABELS, P3, recall((P3[:, 2] > 0.3) & (BEST == 2), HOT[:, 2])),
    "thresholds in any order": (
        lambda: Precision([0.7, 0.2, 0.5]), BITS, P1, several(lambda t: precision(t < P1), (0.7, 0.2, 0.5))
    ),
    "true positives": (metrics.TruePositives, BITS, P1, count(0, 0.5)),
    "false positives": (lambda: metrics.FalsePositives(0.2), LABELS, P3, count(1, 0.2, P3, HOT)),
    "false negatives": (lambda: metrics.FalseNegatives(0.7), BITS, P1[:, None], count(2, 0.7)),
    "true negatives": (
        lambda: metrics.TrueNegatives([0.6, 0.2]), HOT, P3, several(lambda t: count(3, t, P3, HOT), (0.6, 0.2))
    ),
    "sensitivity": (
        lambda: metrics.SensitivityAtSpecificity(0.6, 31), BITS, P1,
        best(SENSITIVITY, SPECIFICITY, 0.6, evenly(31)),
    ),
    "specificity": (
        lambda: metrics.SpecificityAtSensitivity(0.7), BITS, P1, best(SPECIFICITY, SENSITIVITY, 0.7, evenly(200))
    ),
    "precision at recall": (
        lambda: metrics.PrecisionAtRecall(0.5, 12, 1), HOT, P3,
        best(PRECISE, SENSITIVITY, 0.5, evenly(12), P3[:, 1], HOT[:, 1]),
    ),
    "recall at precision": (
        lambda: metrics.RecallAtPrecision(0.45), LABELS, P3, best(SENSITIVITY, PRECISE, 0.45, evenly(200), P3, HOT)
    ),
    "one threshold": (
        lambda: metrics.RecallAtPrecision(0.1, 1), BITS, P1, best(SENSITIVITY, PRECISE, 0.1, [0.5])
    ),
    "area": (metrics.AUC, BITS, P1, area("ROC", "interpolation", evenly(200)[1:-1])),
    "area, thresholds": (
        lambda: metrics.AUC(thresholds=[0.8, 0.3]), BITS, P1, area("ROC", "interpolation", (0.3, 0.8))
    ),
    **{
        f"area, {curve} {method}": (
            lambda curve=curve, method=method: metrics.AUC(10, curve, method), HOT, P3,
            area(curve, method, evenly(10)[1:-1], P3, HOT),
        )
        for curve in ("ROC", "PR", "PRGAIN")
        for method in ("interpolation", "minoring", "majoring")
        if (curve, method) != ("PR", "interpolation")
    },
    "area, scores": (
        lambda: metrics.AUC(50, from_logits=True), BITS, np.log(P1 / (1 - P1)),
        area("ROC", "interpolation", evenly(50)[1:-1]),
    ),
    "area, labels": (
        lambda: metrics.AUC(50, multi_label=True), BOTH, P3,
        lambda w: np.mean([
            area("ROC", "interpolation", evenly(50)[1:-1], P3[:, i], BOTH[:, i])(w) for i in range(3)
        ]),
    ),
    "area, weighted labels": (
        lambda: metrics.AUC(50, "PR", "minoring", multi_label=True, label_weights=[1, 0, 2.5]), BOTH, P3,
        lambda w: sum(
            s / 3.5 * area("PR", "minoring", evenly(50)[1:-1], P3[:, i], BOTH[:, i])(w)
            for i, s in ((0, 1), (2, 2.5))
        ),
    ),
    "area, label weights": (
        lambda: metrics.AUC(50, label_weights=[1, 1, 0]), BOTH, P3,
        area("ROC", "interpolation", evenly(50)[1:-1], P3[:, :2], BOTH[:, :2]),
    ),
    "F": (lambda: metrics.FBetaScore(beta=2.0), HOT, P3, f_scores(2.0, HALF)),
    "F, weighted": (
        lambda: metrics.FBetaScore("weighted", 0.5, 0.3), BOTH, P3, f_scores(0.5, P3 > 0.3, BOTH, "weighted")
    ),
    "F1, macro": (lambda: metrics.F1Score("macro"), HOT, P3, f_scores(1.0, HALF, HOT, "macro")),
    "F1, micro": (lambda: metrics.F1Score("micro", 0.4), HOT, P3, f_scores(1.0, P3 > 0.4, HOT, "micro")),
    "R2": (metrics.R2Score, BITS, P1, determination(BITS[:, None], P1[:, None], "mean")),
    "R2, units": (lambda: metrics.R2Score(None), HOT + 20, P3 + 20, determination(HOT, P3)),
    "R2, adjusted": (
        lambda: metrics.R2Score("variance_weighted_average", 5), HOT, P3, determination(HOT, P3, "spread", 5)
    ),
    "root of squares": (
        metrics.RootMeanSquaredError, HOT, P3, lambda w: np.sqrt(np.average(((P3 - HOT) ** 2).mean(-1), weights=w))
    ),
    "matrix": (ConfusionMatrix, LABELS, P3, matrix(LABELS, BEST, 3)),
    "matrix, one-hot": (ConfusionMatrix, HOT, P3, matrix(LABELS, BEST, 3)),
    "matrix, larger": (lambda: ConfusionMatrix(5), LABELS[:, None], P3, matrix(LABELS, BEST, 5)),
    "matrix, binary": (ConfusionMatrix, BITS, P1, matrix(BITS, P1 > 0.5, 2)),
    "matrix, signs": (ConfusionMatrix, 2 * BITS - 1, P1[:, None], matrix(BITS, P1 > 0.5, 2)),
}  # fmt: skip


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", TABLE)
def test_values_over_batches(backend64, name, weighted):
    make, y, p, value = TABLE[name]
    metric = make()
    for part in (slice(0, 7), slice(7, 8), slice(8, 40)):
        metric.update_state(y[part], backend64.array(p[part]), WEIGHTS[part] if weighted else None)
    assert_close(metric.result(), backend64.array(value(WEIGHTS if weighted else np.ones(40))))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", TABLE)
def test_further_axes_are_rows(backend64, name, weighted):
    """All axes but the last are rows; a weight of the batch applies to all its rows."""
    make, y, p, value = TABLE[name]
    metric, few = make(), np.arange(1.0, 6.0)
    p = p.reshape(5, 8, *(p.shape[1:] or (1,)))
    metric.update_state(y.reshape(5, 8, *y.shape[1:]), backend64.array(p), few if weighted else None)
    assert_close(metric.result(), backend64.array(value(np.repeat(few, 8) if weighted else np.ones(40))))


@pytest.mark.parametrize("weight", [np.ones(40), WEIGHTS], ids=["plain", "weighted"])
def test_interpolated_precision_and_recall(backend64, weight):
    """The closed form, beside the area of its definition in 20,000 steps between thresholds."""
    for metric, y, p, inner in (
        (metrics.AUC(10, "PR"), BITS, P1, evenly(10)[1:-1]),
        (metrics.AUC(thresholds=[0.3, 0.5], curve="pr"), HOT, P3, (0.3, 0.5)),
    ):
        metric.update_state(y, backend64.array(p), weight)
        found = float(backend64.host(metric.result()))
        assert found == pytest.approx(area("PR", "interpolation", inner, p, y)(weight), rel=2e-4)


@pytest.mark.parametrize("name", TABLE)
def test_the_shape_of_the_result(name):
    make, y, p, value = TABLE[name]
    metric = make().for_shapes(y.shape, p.shape if p.ndim > 1 else (40, 1))
    assert metric.result_shape() == np.shape(value(np.ones(40)))


@pytest.mark.parametrize("name", TABLE)
def test_config_round_trip(name):
    metric = TABLE[name][0]()
    config = {**metric.get_config(), "name": "mine", "dtype": "float64"}
    again = metrics.get({"class_name": type(metric).__name__, "config": config})
    assert again.get_config() == config
    assert (type(again), again.name, again.dtype) == (type(metric), "mine", "float64")


# Against others -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=["plain", "weighted"])
def test_like_scikit_learn(weight):
    sk = pytest.importorskip("sklearn.metrics")
    kwargs = {"sample_weight": weight}
    table = [
        (Precision(), BITS, P1, sk.precision_score(BITS, P1 > 0.5, **kwargs)),
        (Recall(), BITS, P1, sk.recall_score(BITS, P1 > 0.5, **kwargs)),
        (Precision(0.4), HOT, P3, sk.precision_score(HOT, P3 > 0.4, average="micro", **kwargs)),
        (Precision(class_id=0), LABELS, P3, sk.precision_score(LABELS == 0, P3[:, 0] > 0.5, **kwargs)),
        (Recall(top_k=2), LABELS, P3, sk.top_k_accuracy_score(LABELS, P3, k=2, **kwargs)),
        (ConfusionMatrix(), LABELS, P3, sk.confusion_matrix(LABELS, BEST, **kwargs)),
        (ConfusionMatrix(), BITS, P1, sk.confusion_matrix(BITS, P1 > 0.5, **kwargs)),
    ]
    for metric, y, p, wanted in table:
        metric.update_state(y, p, weight)
        np.testing.assert_allclose(metric.result(), wanted, rtol=1e-9)


@pytest.fixture
def keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    pytest.importorskip("torch")
    return pytest.importorskip("keras")


def in_two_batches(mine, theirs, y, weight):
    for part in (slice(0, 15), slice(15, 40)):
        w = None if weight is None else weight[part]
        mine.update_state(y[part], P3[part], w)
        theirs.update_state(y[part], P3[part], sample_weight=w)
    np.testing.assert_allclose(mine.result(), np.asarray(theirs.result()), rtol=1e-6)


@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"thresholds": 0.3}, {"thresholds": [0.1, 0.35, 0.9]}, {"top_k": 1}, {"top_k": 2, "class_id": 1},
     {"class_id": 2, "thresholds": [0.2, 0.4]}, {"thresholds": 0.45, "top_k": 2}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", ["Precision", "Recall"])
def test_calls_like_keras(keras, name, settings, weight):
    in_two_batches(getattr(metrics, name)(**settings), getattr(keras.metrics, name)(**settings), HOT, weight)


@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    ("name", "y"),
    [("mean_squared_error", HOT), ("mean_absolute_error", HOT), ("huber", HOT), ("binary_crossentropy", HOT),
     ("categorical_crossentropy", HOT), ("sparse_categorical_crossentropy", LABELS)],
)  # fmt: skip
def test_losses_like_keras(keras, name, y, weight):
    theirs = keras.metrics.MeanMetricWrapper(getattr(keras.losses, name))
    in_two_batches(metrics.get(name), theirs, y, weight)


# Names, user-defined sums, errors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identifier", "cls", "key"),
    [
        ("huber", metrics.Huber, "huber"),
        ("Huber", metrics.Huber, "Huber"),
        ("bce", metrics.BinaryCrossentropy, "bce"),
        (losses.Huber(2.0), OfLoss, "huber"),
        (losses.Huber(name="mine"), OfLoss, "mine"),
        (OfLoss("perceptron"), OfLoss, "perceptron_criterion"),
        ("precision", Precision, "precision"),
        ("confusion_matrix", ConfusionMatrix, "confusion_matrix"),
    ],
)
def test_names(identifier, cls, key):
    metric = metrics.get(identifier)
    assert (type(metric), metric.name) == (cls, key)


def test_a_loss_by_name_in_a_model():
    model = xn.Sequential([Dense(3)], seed=1)
    model.compile("sgd", "mse", ["huber", losses.Huber(0.1, name="narrow")])
    model.build((3,))
    p, y = np.asarray(model.predict(HOT)), HOT[::-1]
    wanted = [float(losses.get(loss)(y, p)) for loss in ("mse", "huber", losses.Huber(0.1))]
    assert list(model.evaluate(HOT, y, return_dict=True)) == ["loss", "huber", "narrow"]
    assert model.evaluate(HOT, y) == pytest.approx(wanted, rel=1e-5)


def test_nothing_called_positive_is_0(backend64):
    for metric in (Precision(), Recall()):
        metric.update_state([0, 0], backend64.array([0.1, 0.2]))
        assert_close(metric.result(), backend64.scalar(0.0))


def test_equal_outputs_are_called_from_the_first_on(backend64):
    metric = Recall(top_k=1)
    metric.update_state([0, 0, 2, 0], backend64.array([[0.4, 0.4, 0.2]] * 2 + [[0.3, 0.3, 0.3]] * 2))
    assert_close(metric.result(), backend64.scalar(0.75))


def test_a_class_that_does_not_exist_spoils_the_matrix(backend64):
    metric = ConfusionMatrix()
    metric.update_state([0, 3], backend64.array([[0.8, 0.2, 0.0]] * 2))
    assert np.isnan(np.asarray(backend64.host(metric.result()))).any()


class Spread(metrics.Metric):
    """The standard deviation of each output's error: three sums, and a formula."""

    sums = {"errors": (3,), "squares": (3,), "rows": ()}

    def counts(self, ctx, y, p, weight):
        error = p - y
        return ctx.xp.sum(error, axis=0), ctx.xp.sum(error * error, axis=0), float(error.shape[0])

    def compute(self, xp, errors, squares, rows):
        return xp.sqrt(squares / rows - (errors / rows) ** 2)


def test_sums_of_ones_own(backend64):
    metric = Spread()
    for part in (slice(0, 7), slice(7, 40)):
        metric.update_state(HOT[part], backend64.array(P3[part]))
    assert_close(metric.result(), backend64.array((P3 - HOT).std(0)))


def test_counts_must_have_the_shapes_of_the_sums():
    class Odd(Spread):
        def counts(self, ctx, y, p, weight):
            return super().counts(ctx, y, p, weight)[:2]

    text = r"^Odd.counts must return .* \[\(3,\), \(3,\), \(\)\]; got \[\(3,\), \(3,\)\]"
    with pytest.raises(ShapeError, match=text):
        Odd().update_state(HOT, P3)
    model = xn.Sequential([Dense(3)], seed=1)
    model.compile("sgd", "mse", [Odd()])
    with pytest.raises(ShapeError, match=text):
        model.fit(HOT, HOT, verbose=0)


def test_one_metric_takes_one_number_of_outputs():
    metric, two = ConfusionMatrix(), np.stack([1 - P1, P1], axis=1)
    metric.update_state(LABELS, P3)
    with pytest.raises(ShapeError, match=r"\[\(3, 3\)\]: call reset_state .* got \[\(2, 2\)\]$"):
        metric.update_state(BITS, two)
    metric.reset_state()
    metric.update_state(BITS, two)
    assert metric.result().shape == (2, 2)


@pytest.mark.parametrize(
    ("call", "error", "ends"),
    [
        (lambda: Precision(1.5), InvalidValueError, "got 1.5"),
        (lambda: Precision([0.5, "0.7"]), InvalidTypeError, "got '0.7'"),
        (lambda: Recall([]), InvalidValueError, "got []"),
        (lambda: Recall(top_k=0), InvalidValueError, "got 0"),
        (lambda: Recall(class_id=-1), InvalidValueError, "got -1"),
        (lambda: update(Recall(class_id=2), [1, 0], P2), ShapeError, "the 2 outputs; got 2"),
        (lambda: update(Precision(), [[1, 0, 1]] * 2, P2), ShapeError, "got (2, 3)"),
        (lambda: ConfusionMatrix(1), InvalidValueError, "got 1"),
        (lambda: update(ConfusionMatrix(2), LABELS, P3), ShapeError, ">= 3 for 3 outputs; got 2"),
        (lambda: update(ConfusionMatrix(), [[1, 0, 1]] * 2, P2), ShapeError, "got (2, 3)"),
        (lambda: metrics.BinaryAccuracy(0.8), InvalidTypeError, "name must be a string or None; got 0.8"),
        (lambda: metrics.TruePositives(2), InvalidValueError, "got 2"),
        (lambda: metrics.AUC(1), InvalidValueError, "got 1"),
        (lambda: metrics.AUC(curve="rock"), UnknownNameError, "got 'ROCK'"),
        (lambda: metrics.AUC(summation_method="mean"), UnknownNameError, "got 'mean'"),
        (lambda: metrics.AUC(num_labels=3), InvalidValueError, "multi_label=True; got num_labels 3"),
        (lambda: metrics.AUC(label_weights=3), InvalidTypeError, "got 3"),
        (lambda: metrics.AUC(label_weights=[1, -1]), InvalidValueError, "got -1"),
        (lambda: update(metrics.AUC(multi_label=True, num_labels=2), HOT, P3), ShapeError, "3 outputs; got 2"),
        (lambda: update(metrics.AUC(label_weights=[1, 2]), HOT, P3), ShapeError, "3 outputs; got (1.0, 2.0)"),
        (lambda: metrics.SensitivityAtSpecificity(1.5), InvalidValueError, "got 1.5"),
        (lambda: metrics.PrecisionAtRecall(0.5, 0), InvalidValueError, "got 0"),
        (lambda: update(metrics.RecallAtPrecision(0.5, class_id=4), HOT, P3), ShapeError, "3 outputs; got 4"),
        (lambda: metrics.FBetaScore("mean"), UnknownNameError, "got 'mean'"),
        (lambda: metrics.FBetaScore(beta=0), InvalidValueError, "got 0"),
        (lambda: metrics.F1Score(threshold=0), InvalidValueError, "got 0"),
        (
            lambda: update(metrics.F1Score(), LABELS, P3),
            ShapeError,
            "F1Score takes targets of the outputs' shape (40, 3); got (40,)",
        ),
        (lambda: metrics.R2Score("mean"), UnknownNameError, "got 'mean'"),
        (lambda: metrics.R2Score(num_regressors=-1), InvalidValueError, "got -1"),
        (lambda: metrics.TopKCategoricalAccuracy(0), InvalidValueError, "got 0"),
        (lambda: update(metrics.TopKCategoricalAccuracy(), LABELS, P3), ShapeError, "got (40,)"),
        (lambda: update(metrics.PearsonCorrelation(axis=2), HOT, P3), ShapeError, "2 axes; got 2"),
        (lambda: update(metrics.ConcordanceCorrelation(), BITS, P1), ShapeError, "got outputs of shape (40, 1)"),
        (lambda: update(metrics.CosineSimilarity(axis=0), HOT, P3, WEIGHTS), ShapeError, "got axis 0"),
        (lambda: update(Accuracy(), [1, 0], P2, [[1.0, 2.0]] * 2), ShapeError, "shape (2,); got (2, 2)"),
        (lambda: update(Precision(), [1, 0], P2, [[1.0, 2.0, 3.0]] * 2), ShapeError, "shape (2,); got (2, 3)"),
        (lambda: metrics.Mean()([1.0, 2.0], [1.0, 2.0, 3.0]), ShapeError, "shape (2,); got (3,)"),
        (lambda: metrics.MeanMetricWrapper(3), InvalidTypeError, "got 3"),
        (lambda: metrics.MeanMetricWrapper(lambda y, p: 1.0)(HOT, P3), ShapeError, "shape (40, ...); got ()"),
        (lambda: metrics.MeanMetricWrapper(lambda y, p: p[:, 0])(HOT, P3, HOT), ShapeError, "got shape (40, 3)"),
        (lambda: OfLoss("cce"), UnknownNameError, "got 'cce'"),
        (lambda: update(OfLoss("categorical_crossentropy"), [1, 0], P2), ShapeError, "got (2,)"),
        (lambda: update(OfLoss("sparse_categorical_crossentropy"), P2, P2), ShapeError, "got (2, 2)"),
    ],
)
def test_errors(call, error, ends):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).endswith(ends)


def test_metrics_of_values_have_no_place_in_a_model():
    model = xn.Sequential([Dense(3)], seed=1)
    model.compile("sgd", "mse", [metrics.Mean()])
    with pytest.raises(InvalidTypeError, match=r"such as MeanMetricWrapper\(function\); got Mean, which takes"):
        model.fit(HOT, HOT, verbose=0)


def test_functions_in_a_model(tmp_path):
    """They are trained with, and refused where the model is saved; losses are saved."""

    def worst(y, p):
        return abs(y - p)

    model = xn.Sequential([Dense(3)], seed=1)
    model.compile("sgd", "mse", [metrics.MeanMetricWrapper(worst), metrics.MeanMetricWrapper(losses.Huber(0.1))])
    model.build((3,))
    p = np.asarray(model.predict(HOT))
    found = model.evaluate(HOT, HOT, return_dict=True)
    assert found["worst"] == pytest.approx(abs(HOT - p).mean(), rel=1e-5)
    with pytest.raises(InvalidTypeError, match=r"got <function .*worst"):
        model.save(tmp_path / "model")
    model.compile("sgd", "mse", [metrics.MeanMetricWrapper(losses.Huber(0.1))])
    model.save(tmp_path / "model")
    again = xn.load_model(tmp_path / "model")
    assert again.evaluate(HOT, HOT, return_dict=True) == pytest.approx({k: found[k] for k in ("loss", "huber")})


def test_labels_that_are_no_class_are_no_hits(backend64):
    metric = metrics.SparseTopKCategoricalAccuracy(k=2)
    metric.update_state([0, 3, -1, 2], backend64.array([[0.5, 0.3, 0.2]] * 4))
    assert_close(metric.result(), backend64.scalar(0.25))


def test_equal_outputs_do_not_count_against_the_target(backend64):
    metric = metrics.TopKCategoricalAccuracy(k=1)
    metric.update_state(np.eye(3)[[0, 1, 2, 2]], backend64.array([[0.4, 0.4, 0.2]] * 3 + [[-np.inf, 0.0, 0.0]]))
    assert_close(metric.result(), backend64.scalar(0.75))


def test_the_cosine_of_zeros_is_0(backend64):
    metric = metrics.CosineSimilarity()
    metric.update_state([[0.0, 1.0], [0.0, 1.0]], backend64.array([[0.0, 0.0], [0.0, 2.0]]))
    assert_close(metric.result(), backend64.scalar(0.5))


def test_rows_of_zeros_call_nothing(backend64):
    metric = metrics.F1Score("micro")
    metric.update_state([[1, 0], [1, 0]], backend64.array([[0.0, 0.0], [0.7, 0.3]]))
    assert_close(metric.result(), backend64.scalar(2 / 3), rtol=1e-6)


def test_a_metric_is_called_as_in_keras(backend64):
    metric = metrics.AUC(num_thresholds=3)
    assert_close(metric([0, 0, 1, 1], backend64.array([0, 0.5, 0.3, 0.9])), backend64.scalar(0.75))


@pytest.mark.parametrize("p", [[np.nan, 0.2, 0.7, 0.9], [-5.0, 0.2, 0.7, 9.0]])
def test_scores_outside_of_the_unit_interval(backend64, p):
    """They are in the first and the last bin, and NaN is in the first."""
    metric, wanted = metrics.AUC(), metrics.AUC()
    metric.update_state([0, 1, 0, 1], backend64.array(p))
    wanted.update_state([0, 1, 0, 1], backend64.array([0.0, 0.2, 0.7, 1.0]))
    assert_close(metric.result(), wanted.result())


@pytest.mark.parametrize("wide", [False, True])
def test_targets_far_from_0_in_float32(monkeypatch, wide):
    """Their squares are around 1e8, of which float32 has no digit left for the variance."""
    monkeypatch.setattr(xn.backend.Backend, "wide", wide)
    x = np.float32(1e4 + 3 * RNG.standard_normal((57, 2)))
    y = np.float32(x + RNG.standard_normal((57, 2)))
    model = xn.Sequential([Dense(2)], seed=1, backend="numpy", dtype="float32")
    model.compile("sgd", "mse", [metrics.R2Score(None)])
    model.build((2,))
    model.set_weights([np.eye(2), np.zeros(2)])
    found = model.evaluate(x, y, batch_size=16, return_dict=True)["r2_score"]
    x, y = np.float64(x), np.float64(y)
    np.testing.assert_allclose(found, 1 - ((y - x) ** 2).sum(0) / ((y - y.mean(0)) ** 2).sum(0), rtol=1e-5)


# In training --------------------------------------------------------------------------------------------

X = RNG.standard_normal((40, 4))
ARRAYS = [ConfusionMatrix(), Precision([0.2, 0.3, 0.4]), Recall(class_id=1, thresholds=0.2), "accuracy", Spread()]


def model_of(plain=ARRAYS, weighted=(), **kwargs):
    model = xn.Sequential([Dense(3, "softmax")], seed=2, **kwargs)
    model.compile(SGD(0.0), "categorical_crossentropy", list(plain), weighted_metrics=list(weighted))
    model.build((4,))
    return model


def alone(metric, p, weight=None):
    metric = metrics.get(metric)
    metric.reset_state()
    metric.update_state(HOT, p, weight)
    return np.asarray(metric.result())


def test_a_model_gives_what_the_metrics_give_alone():
    """In fit, evaluate and train_on_batch, on batches of different sizes; weights count in weighted metrics."""
    own = [ConfusionMatrix(name="own"), Recall([0.2, 0.3], name="recalls")]
    model = model_of(weighted=own)
    names = ["confusion_matrix", "precision", "recall", "accuracy", "metric", "own", "recalls"]
    assert model.metrics_names == ["loss", *names]
    p = np.asarray(model.predict(X))
    wanted = [*(alone(m, p) for m in ARRAYS), *(alone(m, p, WEIGHTS) for m in own)]
    data = {"sample_weight": WEIGHTS, "batch_size": 7}
    history = model.fit(X, HOT, epochs=4, verbose=0, validation_data=(X, HOT, WEIGHTS), **data).history
    found = [
        *({name: history[name][epoch] for name in names} for epoch in range(4)),
        {name: history[f"val_{name}"][-1] for name in names},
        model.evaluate(X, HOT, return_dict=True, **data),
        dict(zip(model.metrics_names, model.evaluate(X, HOT, **data))),
        model.train_on_batch(X, HOT, WEIGHTS, return_dict=True),
    ]
    for scores in found:
        for name, value in zip(names, wanted):
            assert np.shape(scores[name]) == value.shape, name
            assert isinstance(scores[name], float if value.ndim == 0 else np.ndarray)
            np.testing.assert_allclose(scores[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("sparse", [False, True])
def test_every_metric_in_a_model(sparse):
    """Recorded or compiled steps give what the metric gives alone, weighted and not."""
    rows = {
        name: row
        for name, row in METRICS.items()
        if np.shape(row[3]) == (40, 3) and (np.shape(row[2]) != (40, 3)) == sparse and "ids" not in name
    }

    def made(prefix=""):
        return [cls(**settings, name=prefix + name) for name, (cls, settings, *_) in rows.items()]

    y = LABELS if sparse else HOT
    model = xn.Sequential([Dense(3, "softmax")], seed=2)
    loss = f"{'sparse_' if sparse else ''}categorical_crossentropy"
    model.compile(SGD(0.0), loss, made(), weighted_metrics=made("w_"))
    history = model.fit(X, y, batch_size=8, epochs=4, verbose=0, sample_weight=WEIGHTS).history
    p = np.asarray(model.predict(X))
    assert len(rows) > (5 if sparse else 20)
    for metric, weight in [*((m, None) for m in made()), *((m, WEIGHTS) for m in made("w_"))]:
        metric.update_state(y, p, weight)
        for epoch in (0, 3):
            np.testing.assert_allclose(
                history[metric.name][epoch], metric.result(), rtol=2e-4, atol=1e-5, err_msg=metric.name
            )


def test_early_stopping_needs_a_number():
    model = model_of()
    for name, mode in (("confusion_matrix", "min"), ("val_precision", "auto"), ("metric", "max")):
        stop = EarlyStopping(name, mode=mode)
        with pytest.raises(InvalidValueError, match=rf"compares numbers.* got monitor '{name}'$"):
            model.fit(X, HOT, verbose=0, validation_split=0.5, callbacks=[stop])
    assert model.step == 0
    stop = EarlyStopping("recall")
    model.fit(X, HOT, epochs=3, verbose=0, callbacks=[stop])
    assert stop.stopped_epoch == 1


def test_the_bar_shows_numbers_only(capsys):
    model_of().fit(X, HOT, verbose=2)
    text = capsys.readouterr().out
    assert "recall 0." in text
    assert "confusion" not in text
    assert "[" not in text


class Save(Callback):
    """Saves the model once, after a batch or an epoch, and ends the run there."""

    def __init__(self, path, batch):
        self.path, self.batch = path, batch

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.batch:
            self.model.save(self.path)
            raise InterruptedError

    def on_epoch_end(self, epoch, logs=None):
        if self.batch is None:
            self.model.save(self.path)
            raise InterruptedError


@pytest.mark.parametrize("batch", [2, None])
def test_a_run_that_was_cut_off_goes_on_with_arrays(tmp_path, batch):
    wanted = model_of().fit(X, HOT, batch_size=7, epochs=2, verbose=0).history
    with pytest.raises(InterruptedError):
        model_of().fit(X, HOT, batch_size=7, epochs=2, verbose=0, callbacks=[Save(tmp_path / "model", batch)])
    model = xn.load_model(tmp_path / "model", custom_objects={"Spread": Spread})
    epochs = 2 if batch is not None else 1  # at an epoch's end the callback was called before it raised
    found = model.fit(X, HOT, batch_size=7, epochs=2, initial_epoch=2 - epochs, verbose=0).history
    assert set(found) == set(wanted)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-7, err_msg=name)


class Counted(metrics.Metric):
    """Counts hits as integers."""

    sums = {"hits": (), "rows": ()}

    def counts(self, ctx, y, p, weight):
        hits = ctx.xp.argmax(p, axis=-1) == ctx.xp.astype(y, ctx.xp.int64)
        return ctx.xp.sum(ctx.xp.astype(hits, ctx.xp.int32)), float(p.shape[0])

    def compute(self, xp, hits, rows):
        return hits / rows


def test_counts_may_be_integers(backend64):
    metric = Counted()
    metric.update_state(LABELS, backend64.array(P3))
    assert float(backend64.host(metric.result())) == pytest.approx(np.mean(P3.argmax(-1) == LABELS))
    model = xn.Sequential([Dense(3, "softmax")], seed=0)
    model.compile(SGD(0.1), "sparse_categorical_crossentropy", [Counted(name="own"), "accuracy"])
    history = model.fit(P3, LABELS, batch_size=7, epochs=2, verbose=0).history
    assert history["own"] == pytest.approx(history["accuracy"])
