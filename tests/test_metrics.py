"""Metrics: means over rows that add up, weighted, from the shapes; the numbers of scikit-learn."""

import numpy as np
import pytest

from xpnet import metrics
from xpnet.errors import InvalidTypeError, InvalidValueError, NotBuiltError, ShapeError, UnknownNameError
from xpnet.metrics import (
    Accuracy,
    BinaryAccuracy,
    CategoricalAccuracy,
    MeanAbsoluteError,
    MeanSquaredError,
    SparseCategoricalAccuracy,
)
from xpnet.testing import assert_close

RNG = np.random.default_rng(0)
P3 = RNG.dirichlet(np.ones(3), 40)
LABELS = RNG.integers(0, 3, 40)
HOT = np.eye(3)[LABELS]
P1 = RNG.uniform(0, 1, 40)
BITS = RNG.integers(0, 2, 40)
WEIGHTS = RNG.uniform(0, 2, 40)

# metric, targets, predictions, the value of each row
CASES = {
    "mse": (MeanSquaredError, HOT, P3, ((P3 - HOT) ** 2).mean(-1)),
    "mae": (MeanAbsoluteError, HOT, P3, np.abs(P3 - HOT).mean(-1)),
    "binary": (BinaryAccuracy, BITS, P1, (P1 > 0.5) == BITS),
    "binary_units": (BinaryAccuracy, HOT, P3, ((P3 > 0.5) == HOT).mean(-1)),
    "categorical": (CategoricalAccuracy, HOT, P3, P3.argmax(-1) == LABELS),
    "sparse": (SparseCategoricalAccuracy, LABELS, P3, P3.argmax(-1) == LABELS),
    "accuracy_binary": (Accuracy, BITS, P1, (P1 > 0.5) == BITS),
    "accuracy_column": (Accuracy, BITS, P1[:, None], (P1 > 0.5) == BITS),
    "accuracy_categorical": (Accuracy, HOT, P3, P3.argmax(-1) == LABELS),
    "accuracy_sparse": (Accuracy, LABELS, P3, P3.argmax(-1) == LABELS),
    "accuracy_sparse_column": (Accuracy, LABELS[:, None], P3, P3.argmax(-1) == LABELS),
}


def test_every_metric_is_a_case():
    assert {cls for cls, *_ in CASES.values()} == set(metrics.registry.classes.values())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_values_over_batches(backend64, name, weighted):
    cls, y, p, rows = CASES[name]
    metric = cls()
    for part in (slice(0, 7), slice(7, 8), slice(8, 40)):
        metric.update_state(y[part], backend64.array(p[part]), WEIGHTS[part] if weighted else None)
    wanted = np.average(rows, weights=WEIGHTS if weighted else None)
    assert_close(metric.result(), backend64.scalar(float(wanted)))
    assert 0.1 < wanted < 0.9


def test_weighted_and_unweighted_batches_add_up(backend64):
    for weights in ([None, WEIGHTS[:20]], [WEIGHTS[:20], None]):
        metric = SparseCategoricalAccuracy()
        for part, weight in zip((slice(0, 20), slice(20, 40)), weights, strict=True):
            metric.update_state(LABELS[part], backend64.array(P3[part]), weight)
        both = np.concatenate([np.ones(20) if w is None else w for w in weights])
        assert_close(metric.result(), backend64.scalar(np.average(P3.argmax(-1) == LABELS, weights=both)))


def test_the_result_stays_in_the_library_and_dtype(backend):
    metric = MeanSquaredError()
    metric.update_state(np.zeros((2, 1), np.float32), backend.array([[1.0], [3.0]], "float32"))
    assert_close(metric.result(), backend.array(5.0, "float32"))


def test_further_axes_are_rows(backend64):
    metric = SparseCategoricalAccuracy()
    metric.update_state(LABELS.reshape(5, 8), backend64.array(P3.reshape(5, 8, 3)), np.arange(5.0))
    rows = (P3.argmax(-1) == LABELS).reshape(5, 8).mean(-1)
    assert_close(metric.result(), backend64.scalar(np.average(rows, weights=np.arange(5.0))))


def test_reset():
    metric = BinaryAccuracy()
    metric.update_state([1, 1], [0.0, 0.0])
    metric.reset_state()
    metric.update_state([1, 1, 1, 1], [1.0, 1.0, 1.0, 0.0])
    assert float(metric.result()) == 0.75


@pytest.mark.parametrize(
    ("threshold", "y", "p", "value"),
    [
        (0.5, [0, 1, 1, 0, 0], [0.5, 0.6, 0.5, 0.4, 0.5], 0.8),  # 0.5 itself is class 0
        (0.8, [0, 1], [0.7, 0.9], 1.0),
        (0.0, [-1, 1, -1], [-3.0, 2.0, 0.1], 2 / 3),  # targets +-1 and scores
    ],
)
def test_threshold(threshold, y, p, value):
    metric = BinaryAccuracy(threshold)
    metric.update_state(y, p)
    assert float(metric.result()) == pytest.approx(value)


def test_ties_go_to_the_first_class(backend):
    metric = SparseCategoricalAccuracy()
    metric.update_state([0, 1], backend.array([[0.5, 0.5], [0.5, 0.5]], "float32"))
    assert float(metric.result()) == 0.5


def test_a_column_and_a_row_of_numbers_are_the_same(backend64):
    for y_shape, p_shape in (((40,), (40, 1)), ((40, 1), (40,)), ((40, 1), (40, 1))):
        metric = MeanSquaredError()
        metric.update_state(BITS.reshape(y_shape), backend64.array(P1.reshape(p_shape)))
        assert_close(metric.result(), backend64.scalar(((P1 - BITS) ** 2).mean()))


@pytest.mark.parametrize("weight", [None, WEIGHTS])
def test_like_scikit_learn(weight):
    sk = pytest.importorskip("sklearn.metrics")
    table = [
        (Accuracy(), LABELS, P3, sk.accuracy_score(LABELS, P3.argmax(-1), sample_weight=weight)),
        (Accuracy(), BITS, P1, sk.accuracy_score(BITS, P1 > 0.5, sample_weight=weight)),
        (MeanSquaredError(), HOT, P3, sk.mean_squared_error(HOT, P3, sample_weight=weight)),
        (MeanAbsoluteError(), HOT, P3, sk.mean_absolute_error(HOT, P3, sample_weight=weight)),
    ]
    for metric, y, p, wanted in table:
        metric.update_state(y, p, weight)
        assert float(metric.result()) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    ("identifier", "cls", "key"),
    [
        ("accuracy", Accuracy, "accuracy"),
        ("acc", Accuracy, "acc"),
        ("mse", MeanSquaredError, "mse"),
        ("mean_squared_error", MeanSquaredError, "mean_squared_error"),
        ("mae", MeanAbsoluteError, "mae"),
        ("binary_accuracy", BinaryAccuracy, "binary_accuracy"),
        ("sparse_categorical_accuracy", SparseCategoricalAccuracy, "sparse_categorical_accuracy"),
        (MeanSquaredError, MeanSquaredError, "mse"),
        (Accuracy(name="hits"), Accuracy, "hits"),
    ],
)
def test_names(identifier, cls, key):
    metric = metrics.get(identifier)
    assert (type(metric), metric.name) == (cls, key)


@pytest.mark.parametrize("cls", [cls for cls, *_ in CASES.values()])
def test_config_round_trip(cls):
    metric = cls(name="mine", dtype="float64")
    again = metrics.get({"class_name": cls.__name__, "config": metric.get_config()})
    assert again.get_config() == metric.get_config()
    assert (type(again), again.name, again.dtype) == (cls, "mine", "float64")


def update(metric, *arguments):
    metric.update_state(*arguments)


P2 = [[0.1, 0.9], [0.8, 0.2]]


@pytest.mark.parametrize(
    ("call", "error", "ends"),
    [
        (lambda: metrics.get("accurcy"), UnknownNameError, "got 'accurcy'"),
        (lambda: metrics.get(abs), InvalidTypeError, "got <built-in function abs>"),
        (lambda: Accuracy().result(), NotBuiltError, "got 0 batches"),
        (lambda: BinaryAccuracy("half"), InvalidTypeError, "got 'half'"),
        (lambda: BinaryAccuracy(float("nan")), InvalidValueError, "got nan"),
        (lambda: Accuracy(dtype="int8"), UnknownNameError, "got 'int8'"),
        (lambda: update(Accuracy(), [1, 0, 1], P2), ShapeError, "got (3,)"),
        (lambda: update(MeanSquaredError(), [[1, 0, 1]] * 2, P2), ShapeError, "got (2, 3)"),
        (
            lambda: update(MeanSquaredError(), np.zeros((2, 2, 3)), np.zeros((2, 3, 2))),
            ShapeError,
            "got (2, 2, 3)",
        ),
        (lambda: update(BinaryAccuracy(), [1, 0], P2), ShapeError, "got (2,)"),
        (lambda: update(CategoricalAccuracy(), [1, 0], P2), ShapeError, "got (2,)"),
        (lambda: update(SparseCategoricalAccuracy(), P2, P2), ShapeError, "got (2, 2)"),
        (lambda: update(Accuracy(), [[1, 0, 1]] * 2, P2), ShapeError, "got (2, 3)"),
        (lambda: update(Accuracy(), [1, 0], P2, [1.0, 1.0, 1.0]), ShapeError, "got (3,)"),
        (lambda: update(Accuracy(), 1, 0.5), ShapeError, "got ()"),
    ],
)
def test_errors(call, error, ends):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).endswith(ends)
