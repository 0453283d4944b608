"""Metrics over three uneven batches, beside Keras (on PyTorch) and scikit-learn."""

import inspect

import numpy as np
import pytest

import xpnet as xn
from xpnet import metrics

keras = pytest.importorskip("keras")
RNG = np.random.default_rng(12)
N, UNITS = 57, 6
BATCHES = (slice(0, 23), slice(23, 24), slice(24, N))

PROBABILITIES = RNG.dirichlet(np.ones(UNITS), N)
CLASSES = RNG.integers(0, UNITS, N)
HOT = np.eye(UNITS)[CLASSES]
COLUMN = RNG.uniform(0, 1, (N, 1))
BITS = (RNG.uniform(0, 1, (N, 1)) < 0.3 + 0.4 * COLUMN).astype(float)
ORDER = np.argsort(-PROBABILITIES) * 1.0
SCORES = RNG.standard_normal((N, UNITS))
REAL = SCORES + 0.5 * RNG.standard_normal((N, UNITS))
FAR = 1e4 + REAL  # targets far from 0
MULTI = RNG.integers(0, 2, (N, UNITS)).astype(float)
SHARES = [1, 2, 0, 3, 0.5, 1]
UNIT = RNG.uniform(0, 1, (N, UNITS))

BINARY, ONE_HOT, SPARSE = (BITS, COLUMN), (HOT, PROBABILITIES), (CLASSES, PROBABILITIES)
LABELS, NUMBERS = (MULTI, UNIT), (REAL, SCORES)
COUNTS = ("TruePositives", "TrueNegatives", "FalsePositives", "FalseNegatives")
AREAS = [
    {"curve": curve, "summation_method": method}
    for curve in ("ROC", "PR", "PRGAIN")
    for method in ("interpolation", "minoring", "majoring")
]
ROWS = [  # name, settings, targets and predictions
    *((name, {}, BINARY) for name in ("BinaryAccuracy", "RootMeanSquaredError", "LogCoshError", *COUNTS)),
    ("BinaryAccuracy", {"threshold": 0.3}, LABELS),
    ("CategoricalAccuracy", {}, ONE_HOT),
    ("SparseCategoricalAccuracy", {}, SPARSE),
    *(("TopKCategoricalAccuracy", settings, ONE_HOT) for settings in ({}, {"k": 1}, {"k": 3})),
    *(("SparseTopKCategoricalAccuracy", settings, SPARSE) for settings in ({}, {"k": 2})),
    ("SparseTopKCategoricalAccuracy", {"k": 2, "from_sorted_ids": True}, (CLASSES, ORDER)),
    *((name, {"thresholds": [0.1, 0.4, 0.8]}, LABELS) for name in COUNTS),
    *((name, {"thresholds": 0.7}, ONE_HOT) for name in COUNTS),
    *(
        (name, settings, pair)
        for name in ("Precision", "Recall")
        for settings, pair in (
            ({}, BINARY),
            ({"thresholds": [0.2, 0.9, 0.5]}, BINARY),
            ({"thresholds": 0.3}, LABELS),
            ({"thresholds": [0.0, 0.5, 1.0]}, LABELS),
            ({"top_k": 2}, ONE_HOT),
            ({"top_k": 3, "class_id": 1, "thresholds": 0.1}, ONE_HOT),
            ({"class_id": 2, "thresholds": [0.2, 0.4]}, LABELS),
        )
    ),
    *(
        (name, {argument: value, **settings}, pair)
        for name, argument in (
            ("SensitivityAtSpecificity", "specificity"),
            ("SpecificityAtSensitivity", "sensitivity"),
            ("PrecisionAtRecall", "recall"),
            ("RecallAtPrecision", "precision"),
        )
        for value in (0.0, 0.45, 0.8, 1.0)
        for settings, pair in (({}, BINARY), ({"num_thresholds": 7, "class_id": 2}, LABELS))
    ),
    ("SensitivityAtSpecificity", {"specificity": 0.3, "num_thresholds": 1}, BINARY),
    *(("AUC", settings, BINARY) for settings in AREAS),
    *(("AUC", {"num_thresholds": 9, **settings}, LABELS) for settings in AREAS),
    *(("AUC", {"multi_label": True, **settings}, LABELS) for settings in AREAS),
    ("AUC", {"multi_label": True, "num_labels": UNITS, "label_weights": SHARES, "curve": "PR"}, LABELS),
    ("AUC", {"multi_label": True, "label_weights": SHARES, "num_thresholds": 20}, LABELS),
    ("AUC", {"label_weights": SHARES, "num_thresholds": 20}, LABELS),
    ("AUC", {"thresholds": [0.9, 0.1, 0.33, 0.6]}, BINARY),
    ("AUC", {"thresholds": [0.3, 0.4], "multi_label": True, "curve": "pr"}, LABELS),
    ("AUC", {"from_logits": True}, (MULTI, SCORES)),
    *(
        (name, {"average": average, "threshold": threshold}, pair)
        for name in ("FBetaScore", "F1Score")
        for average in (None, "micro", "macro", "weighted")
        for threshold, pair in ((None, ONE_HOT), (0.4, LABELS))
    ),
    ("FBetaScore", {"beta": 0.5, "average": "weighted"}, ONE_HOT),
    *(
        ("R2Score", {"class_aggregation": how, "num_regressors": r}, NUMBERS)
        for how in (None, "uniform_average", "variance_weighted_average")
        for r in (0, 3)
    ),
    *(
        (name, {}, NUMBERS)
        for name in ("RootMeanSquaredError", "LogCoshError", "CosineSimilarity", "MeanSquaredError",
                     "MeanAbsoluteError", "PearsonCorrelation", "ConcordanceCorrelation")
    ),
    *((name, {}, (FAR, 1e4 + SCORES)) for name in ("PearsonCorrelation", "ConcordanceCorrelation")),
    ("BinaryCrossentropy", {}, LABELS),
    ("BinaryCrossentropy", {"from_logits": True, "label_smoothing": 0.1}, (MULTI, SCORES)),
    ("CategoricalCrossentropy", {"label_smoothing": 0.1}, ONE_HOT),
    ("SparseCategoricalCrossentropy", {"from_logits": True}, (CLASSES, SCORES)),
]  # fmt: skip
IDS = [f"{i}-{name}" for i, (name, _, _) in enumerate(ROWS)]
WEIGHTS = {  # whose sums are exact in float32: in them Keras on PyTorch adds up weights by bin
    "none": None,
    "rows": RNG.integers(0, 128, N) / 64,
    "column": RNG.integers(0, 128, (N, 1)) / 64,
    "some_0": RNG.integers(0, 2, N).astype(float),
    "all_0": np.zeros(N),
}


def both(name, settings, y, p, weight):
    """Return the results of xpnet and Keras after each of three batches."""
    mine = getattr(metrics, name)(**settings)
    theirs = getattr(keras.metrics, name)(**settings, dtype="float64")
    found = []
    for part in BATCHES:
        w = None if weight is None else weight[part]
        mine.update_state(y[part], p[part], w)
        theirs.update_state(y[part], np.asarray(p[part], np.float64), sample_weight=w)
        found.append((np.asarray(mine.result()), keras.ops.convert_to_tensor(theirs.result()).numpy().copy()))
    return found


@pytest.mark.filterwarnings("ignore:.*adjusted R2.*:UserWarning", "ignore:.*Adjusted R2.*:UserWarning")
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_like_keras(row, weights, agree):
    name, settings, (y, p) = row
    weight = WEIGHTS[weights]
    if weights == "column" and name in ("FBetaScore", "F1Score"):
        weight = weight[:, 0]  # all that Keras takes there
    for mine, theirs in both(name, settings, y, p, weight):
        agree(mine, theirs)


UNIT_WEIGHTS = RNG.integers(0, 128, (N, UNITS)) / 64


@pytest.mark.parametrize(
    ("name", "settings", "pair"),
    [
        *((name, {}, LABELS) for name in ("BinaryAccuracy", *COUNTS, "RootMeanSquaredError", "R2Score")),
        ("Precision", {"thresholds": [0.2, 0.6]}, LABELS),
        ("Recall", {"top_k": 2}, ONE_HOT),
        ("AUC", {}, LABELS),
        ("AUC", {"multi_label": True, "curve": "PR"}, LABELS),
        ("SensitivityAtSpecificity", {"specificity": 0.4}, LABELS),
    ],
)
def test_a_weight_for_each_output(name, settings, pair, agree):
    for mine, theirs in both(name, settings, *pair, UNIT_WEIGHTS):
        agree(mine, theirs)


@pytest.mark.parametrize("name", ["PearsonCorrelation", "ConcordanceCorrelation", "CosineSimilarity"])
def test_along_the_batch(name, agree):
    whole = [(slice(0, 30),), (slice(30, N),)]
    mine, theirs = getattr(metrics, name)(axis=0), getattr(keras.metrics, name)(axis=0, dtype="float64")
    for part in whole:
        mine.update_state(REAL[part], SCORES[part])
        theirs.update_state(REAL[part], SCORES[part])
        agree(mine.result(), float(theirs.result()))


@pytest.mark.parametrize("name", ["Mean", "Sum"])
def test_of_values(name, agree):
    mine, theirs = getattr(metrics, name)(dtype="float64"), getattr(keras.metrics, name)(dtype="float64")
    batches = [
        (2.5, None), (SCORES[0], None), (SCORES, None), (SCORES, 0.25), (SCORES[:9], WEIGHTS["rows"][:9]),
        (SCORES, WEIGHTS["column"]), (SCORES, UNIT_WEIGHTS),
        (np.float64(3.0), 2.0), (SCORES[:4].tolist(), [0] * 4),
        (SCORES.reshape(19, 3, 6), WEIGHTS["rows"].reshape(19, 3)),
    ]  # fmt: skip
    for values, weight in batches:
        agree(mine(values, sample_weight=weight), float(theirs(values, sample_weight=weight)))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_function(weights, agree):
    def cubes(y, p, power=3):
        return abs(y - p) ** power

    mine = metrics.MeanMetricWrapper(cubes, power=2.5)
    theirs = keras.metrics.MeanMetricWrapper(cubes, power=2.5, dtype="float64")
    weight = WEIGHTS[weights]
    for part in BATCHES:
        w = None if weight is None else weight[part]
        mine.update_state(REAL[part], SCORES[part], w)
        theirs.update_state(keras.ops.convert_to_tensor(REAL[part]), keras.ops.convert_to_tensor(SCORES[part]), w)
    agree(mine.result(), float(theirs.result()))
    assert mine.name == "cubes"


NAMES = sorted({name for name, _, _ in ROWS} | {"Mean", "Sum", "MeanMetricWrapper"})


@pytest.mark.parametrize("name", NAMES)
def test_names_and_the_order_of_arguments(name):
    mine, theirs = (inspect.signature(getattr(home, name)).parameters for home in (metrics, keras.metrics))
    shared = list(theirs)[: len(mine)]  # a metric of a loss has the settings of the loss
    assert list(mine)[: len(shared)] == shared
    assert set(theirs) - set(mine) <= {"axis", "ignore_class"}
    for argument in shared:
        if argument != "name":
            assert mine[argument].default == theirs[argument].default, argument
    required = {a: 0.5 for a, p in theirs.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    if "fn" not in required:
        made = getattr(keras.metrics, name)(**required)
        if theirs["name"].default is not None:
            assert getattr(metrics, name)(**required).name == made.name
        direction = {"up": "max", "down": "min", None: None}[getattr(made, "_direction", None)]
        assert direction in (None, getattr(metrics, name)(**required).direction)


@pytest.mark.parametrize("weights", ["none", "rows", "some_0", "all_0"])
def test_a_model_takes_weights_in_weighted_metrics_only(weights, agree):
    def chosen(home):
        return [
            "accuracy", home.AUC(name="auc"), home.Precision(thresholds=0.2, name="precision"),
            home.F1Score("micro"), home.MeanAbsoluteError(), home.TopKCategoricalAccuracy(2),
        ]  # fmt: skip

    model = xn.Sequential([xn.layers.Dense(UNITS, "softmax")], seed=3, dtype="float64")
    theirs = keras.Sequential([keras.Input((UNITS,)), keras.layers.Dense(UNITS, "softmax", dtype="float64")])
    for one, home in ((model, metrics), (theirs, keras.metrics)):
        one.compile("sgd", "categorical_crossentropy", metrics=chosen(home), weighted_metrics=chosen(home))
    model.build((UNITS,))
    theirs.set_weights(model.get_weights())
    kwargs = {"sample_weight": WEIGHTS[weights], "batch_size": 16, "verbose": 0, "return_dict": True}
    kwargs["sample_weight"] = None if weights == "none" else WEIGHTS[weights]
    found, wanted = model.evaluate(SCORES, HOT, **kwargs), theirs.evaluate(SCORES, HOT, **kwargs)
    names = {"accuracy", "auc", "precision", "f1_score", "mean_absolute_error", "top_k_categorical_accuracy"}
    assert set(found) == {"loss"} | names | {f"weighted_{name}" for name in names}
    for name in found:
        agree(found[name], wanted[name], 1e-6)  # Keras has its own accuracy in float32


@pytest.mark.parametrize("weights", ["none", "rows", "column", "some_0"])
def test_like_scikit_learn(weights, agree):
    sk = pytest.importorskip("sklearn.metrics")
    flat = None if WEIGHTS[weights] is None else WEIGHTS[weights].reshape(-1)
    kwargs = {"sample_weight": flat}
    called = UNIT > 0.4
    table = [
        (metrics.R2Score(), REAL, SCORES, sk.r2_score(REAL, SCORES, **kwargs), 1e-10),
        (metrics.R2Score(), FAR, 1e4 + SCORES, sk.r2_score(FAR, 1e4 + SCORES, **kwargs), 1e-7),
        (metrics.R2Score(None), FAR, 1e4 + SCORES,
         sk.r2_score(FAR, 1e4 + SCORES, multioutput="raw_values", **kwargs), 1e-7),
        (metrics.R2Score("variance_weighted_average"), REAL, SCORES,
         sk.r2_score(REAL, SCORES, multioutput="variance_weighted", **kwargs), 1e-10),
        (metrics.RootMeanSquaredError(), BITS, COLUMN, sk.root_mean_squared_error(BITS, COLUMN, **kwargs), 1e-10),
        (metrics.TopKCategoricalAccuracy(k=2), HOT, PROBABILITIES,
         sk.top_k_accuracy_score(CLASSES, PROBABILITIES, k=2, **kwargs), 1e-10),
        (metrics.FBetaScore(beta=2.0, threshold=0.4), MULTI, UNIT,
         sk.fbeta_score(MULTI, called, beta=2.0, average=None, **kwargs), 1e-6),  # Keras' 1e-7 in denominators
        *((metrics.F1Score(how, 0.4), MULTI, UNIT, sk.f1_score(MULTI, called, average=how, **kwargs), 1e-6)
          for how in ("micro", "macro", "weighted")),
        (metrics.AUC(num_thresholds=20001), BITS, COLUMN, sk.roc_auc_score(BITS, COLUMN, **kwargs), 1e-10),
        (metrics.AUC(thresholds=np.unique(COLUMN).tolist()), BITS, COLUMN,
         sk.roc_auc_score(BITS, COLUMN, **kwargs), 1e-10),
        (metrics.AUC(num_thresholds=20001, multi_label=True), MULTI, UNIT,
         sk.roc_auc_score(MULTI, UNIT, **kwargs), 1e-10),
        (metrics.AUC(), BITS, COLUMN, sk.roc_auc_score(BITS, COLUMN, **kwargs), 0.01),  # within its bins
    ]  # fmt: skip
    for metric, y, p, wanted, rtol in table:
        for part in BATCHES:
            metric.update_state(y[part], p[part], None if flat is None else flat[part])
        agree(metric.result(), wanted, rtol)


def test_far_targets_in_float32():
    """Around 1e4 float32 has three digits: the sums of squares, around 1e8, would have none to tell apart."""
    y, p = (np.float32(1e4 + 3 * a) for a in (REAL, SCORES))
    metric = metrics.R2Score()
    for part in BATCHES:
        metric.update_state(y[part], p[part])
    y, p = np.float64(y), np.float64(p)
    wanted = np.mean(1 - ((y - p) ** 2).sum(0) / ((y - y.mean(0)) ** 2).sum(0))
    assert float(metric.result()) == pytest.approx(wanted, rel=1e-5)
