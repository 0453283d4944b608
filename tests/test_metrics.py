"""Metrics: means over the rows of several batches, weights, shapes; values of scikit-learn."""

import numpy as np
import pytest
from cases import CLASSES, METRICS, ONE, ONE_HOT, THREE, YES

import xpnet as xn
from xpnet import metrics
from xpnet.errors import InvalidTypeError, InvalidValueError, NotBuiltError, ShapeError, UnknownNameError
from xpnet.layers import Dense
from xpnet.metrics import (
    Accuracy,
    BinaryAccuracy,
    CategoricalAccuracy,
    MeanAbsoluteError,
    MeanSquaredError,
    SparseCategoricalAccuracy,
)
from xpnet.optimizers import SGD
from xpnet.testing import assert_close
from xpnet.training import saving

RNG = np.random.default_rng(0)
P3, LABELS, HOT, P1, BITS = THREE, CLASSES, ONE_HOT, ONE, YES
MEANS = [name for name, row in METRICS.items() if row[-1] is not None]
WEIGHTS = RNG.uniform(0, 2, 40)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", MEANS)
def test_values_over_batches(backend64, name, weighted):
    cls, settings, y, p, rows = METRICS[name]
    metric = cls(**settings)
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
    metric = BinaryAccuracy(threshold=threshold)
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
        (MeanSquaredError, MeanSquaredError, "mean_squared_error"),
        (Accuracy(name="hits"), Accuracy, "hits"),
    ],
)
def test_names(identifier, cls, key):
    metric = metrics.get(identifier)
    assert (type(metric), metric.name) == (cls, key)


@pytest.mark.parametrize("name", METRICS)
def test_config_round_trip(name):
    cls, settings, *_ = METRICS[name]
    metric = cls(**settings, name="mine", dtype="float64")
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
        (lambda: BinaryAccuracy(threshold="half"), InvalidTypeError, "got 'half'"),
        (lambda: BinaryAccuracy(threshold=float("nan")), InvalidValueError, "got nan"),
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


# In training: `metrics` without weights, `weighted_metrics` with them ---------------------------------------

X = RNG.standard_normal((40, 3))
FACTORS = {0: 5.0, 1: 0.0, 2: 0.5}
OF_CLASSES = np.array([FACTORS[int(c)] for c in LABELS])


def classifier(*plain, weighted=(), **kwargs):
    """A model that does not learn, its hits, and its absolute errors."""
    model = xn.Sequential([Dense(3, activation="softmax")], seed=2)
    model.compile(SGD(0.0), "categorical_crossentropy", list(plain), weighted_metrics=list(weighted), **kwargs)
    p = np.asarray(model(X))
    return model, (p.argmax(-1) == LABELS).astype(float), np.abs(p - HOT).mean(-1)


@pytest.mark.parametrize("per_execution", [1, 3])
@pytest.mark.parametrize(
    ("weights", "row_weights"),
    [
        ({}, np.ones(40)),
        ({"sample_weight": WEIGHTS}, WEIGHTS),
        ({"class_weight": FACTORS}, OF_CLASSES),
        ({"class_weight": FACTORS, "sample_weight": WEIGHTS}, OF_CLASSES * WEIGHTS),
    ],
    ids=["none", "rows", "classes", "both"],
)
def test_weights_count_in_weighted_metrics_only(weights, row_weights, per_execution):
    model, hits, errors = classifier("accuracy", "mae", weighted=["accuracy", CategoricalAccuracy(name="own")],
                                     steps_per_execution=per_execution)  # fmt: skip
    names = ["loss", "accuracy", "mae", "weighted_accuracy", "own"]  # as in Keras
    wanted = [hits.mean(), errors.mean(), *[np.average(hits, weights=row_weights)] * 2]
    history = model.fit(
        X, HOT, batch_size=7, epochs=1, verbose=0, validation_data=(X, HOT, row_weights), **weights
    )
    found = history.history
    assert model.metrics_names == names
    assert list(found) == [*names, *(f"val_{n}" for n in names)]
    assert [found[n][0] for n in names[1:]] == pytest.approx(wanted, rel=1e-5)
    assert [found[f"val_{n}"][0] for n in names[1:]] == pytest.approx(wanted, rel=1e-5)
    assert model.evaluate(X, HOT, sample_weight=row_weights)[1:] == pytest.approx(wanted, rel=1e-5)
    scores = model.train_on_batch(X, HOT, return_dict=True, **weights)
    assert list(scores) == names
    assert list(scores.values())[1:] == pytest.approx(wanted, rel=1e-5)
    losses = [found["loss"][0], found["val_loss"][0], scores["loss"]]
    values = -np.log(np.asarray(model.predict(X))[np.arange(40), LABELS]) * row_weights
    assert losses == pytest.approx([values.mean()] * 3, rel=1e-5)


def test_the_accuracy_of_the_same_rows_is_the_same():
    """With weights in training, or as validation data."""
    model, *_ = classifier("accuracy")
    found = model.fit(X, HOT, verbose=0, class_weight={0: 100.0}, validation_data=(X, HOT)).history
    assert found["accuracy"] == pytest.approx(found["val_accuracy"], rel=1e-6)


def test_weights_that_are_all_0():
    """Metrics ignore them; a weighted one is 0, as in Keras, also when used alone."""
    model, hits, errors = classifier("accuracy", "mae", weighted=["mae"])
    zeros = np.zeros(40)
    found = model.fit(X, HOT, verbose=0, sample_weight=zeros, validation_data=(X, HOT, zeros)).history
    for prefix in ("", "val_"):
        assert found[f"{prefix}loss"] == found[f"{prefix}weighted_mae"] == [0.0]
        assert found[f"{prefix}accuracy"] == pytest.approx([hits.mean()], rel=1e-5)
        assert found[f"{prefix}mae"] == pytest.approx([errors.mean()], rel=1e-5)
    assert model.evaluate(X, HOT, sample_weight=zeros)[3] == 0.0


def test_the_result_of_weights_that_are_all_0(backend):
    metric = MeanSquaredError()
    metric.update_state([[1.0], [2.0]], backend.array([[3.0], [5.0]], "float32"), [0.0, 0.0])
    assert_close(metric.result(), backend.array(0.0, "float32"))
    metric.update_state([[1.0], [2.0]], backend.array([[3.0], [5.0]], "float32"), [1.0, 0.0])
    assert_close(metric.result(), backend.array(4.0, "float32"))


def test_one_object_may_be_both():
    metric = MeanAbsoluteError(name="mae")
    model, _, errors = classifier(metric, weighted=[metric])
    scores = model.evaluate(X, HOT, sample_weight=WEIGHTS, return_dict=True)
    assert [scores["mae"], scores["weighted_mae"]] == pytest.approx(
        [errors.mean(), np.average(errors, weights=WEIGHTS)], rel=1e-5
    )


class Squares(MeanSquaredError):
    """A user-defined metric with its own sums."""

    def counts(self, ctx, y, p, weight):
        total, count = super().counts(ctx, y, p, weight)
        return 2.0 * total, count


def test_own_metrics_may_be_weighted():
    model, *_ = classifier(Squares(name="plain"), weighted=[Squares(name="own")])
    errors = 2.0 * ((np.asarray(model.predict(X)) - HOT) ** 2).mean(-1)
    found = model.fit(X, HOT, batch_size=10, epochs=4, verbose=0, sample_weight=WEIGHTS).history
    assert [found["plain"][-1], found["own"][-1]] == pytest.approx(
        [errors.mean(), np.average(errors, weights=WEIGHTS)], rel=1e-5
    )


def test_names_must_differ():
    for plain, weighted in ((["mae", "mae"], []), ([], ["mae", "mae"]), (["mae", "weighted_mae"], ["mae"])):
        plain = [MeanAbsoluteError(name=n) for n in plain]
        with pytest.raises(InvalidValueError, match=r"different names; got \["):
            classifier(*plain, weighted=weighted)


def test_weighted_metrics_are_saved(tmp_path, monkeypatch):
    model, *_ = classifier("accuracy", weighted=["mae", CategoricalAccuracy(name="own")])
    scores = model.evaluate(X, HOT, sample_weight=WEIGHTS, return_dict=True)
    model.save(tmp_path / "new")
    again = xn.load_model(tmp_path / "new")
    assert again.metrics_names == ["loss", "accuracy", "mae", "own"]
    assert again.evaluate(X, HOT, sample_weight=WEIGHTS, return_dict=True) == pytest.approx(scores, rel=1e-6)

    def former(model):
        return {k: v for k, v in config(model).items() if k != "weighted_metrics"}

    config = saving._compile_config
    monkeypatch.setattr(saving, "_compile_config", former)
    model.save(tmp_path / "old")
    assert xn.load_model(tmp_path / "old").metrics_names == ["loss", "accuracy"]
