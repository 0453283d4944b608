"""Metrics that are not means over rows: named sums, their results, and arrays of them in training."""

import numpy as np
import pytest
from test_metrics import BITS, HOT, LABELS, P1, P2, P3, RNG, WEIGHTS, update

import xpnet as xn
from xpnet import losses, metrics
from xpnet.callbacks import Callback, EarlyStopping
from xpnet.errors import InvalidTypeError, InvalidValueError, ShapeError, UnknownNameError
from xpnet.layers import Dense
from xpnet.metrics import ConfusionMatrix, OfLoss, Precision, Recall
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
        ("huber", OfLoss, "huber"),
        ("Huber", OfLoss, "Huber"),
        ("bce", OfLoss, "bce"),
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
    with pytest.raises(ShapeError, match=r"\[\(3, 3\)\]: reset_state .* got \[\(2, 2\)\]$"):
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
        (lambda: OfLoss("cce"), UnknownNameError, "got 'cce'"),
        (lambda: update(OfLoss("categorical_crossentropy"), [1, 0], P2), ShapeError, "got (2,)"),
        (lambda: update(OfLoss("sparse_categorical_crossentropy"), P2, P2), ShapeError, "got (2, 2)"),
    ],
)
def test_errors(call, error, ends):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).endswith(ends)


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
