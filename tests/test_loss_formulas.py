"""Losses: each row of the table by a formula in NumPy, axes, ignored classes, and weights of leading axes."""

import numpy as np
import pytest
from cases import (
    BITS,
    DEEP,
    FEW,
    HOT,
    IGNORED,
    LABELS,
    LOSSES,
    MOMENTS,
    POSITIVE,
    PROBABILITIES,
    SCORES,
    SHARES,
    SOFT,
)

import xpnet as xn
from xpnet import losses, metrics
from xpnet.errors import InvalidTypeError, InvalidValueError, NonFiniteError, ShapeError
from xpnet.layers import Dense, Input
from xpnet.losses import (
    CategoricalFocalCrossentropy,
    Dice,
    GaussianNLL,
    Hinge,
    KLDivergence,
    LogCosh,
    MeanSquaredError,
    Poisson,
    Quantile,
    SparseCategoricalCrossentropy,
    Tversky,
)
from xpnet.testing import assert_close, check_gradients

RNG = np.random.default_rng(3)
EPS = 1e-7


# Formulas -------------------------------------------------------------------------------------------------


def positive(a):
    return np.maximum(a, 0)


def above(a):
    return np.maximum(a, EPS)


def normalized(p):
    return p / p.sum(-1, keepdims=True)


def softmax(z):
    return normalized(np.exp(z))


def smooth(y, s, chance):
    return y * (1 - s) + s * chance


def unit(a):
    return a / np.linalg.norm(a, axis=-1, keepdims=True)


def focal(y, p, gamma=2.0, weight=1.0):
    miss = y * (1 - p) + (1 - y) * p
    return (weight * miss**gamma * -(y * np.log(p) + (1 - y) * np.log(1 - p))).mean(-1)


def focal_classes(y, p, alpha=0.25, gamma=2.0):
    return -(y * alpha * (1 - p) ** gamma * np.log(p)).sum(-1)


def likelihood(y, m, v):
    return (0.5 * (np.log(v) + (y - m) ** 2 / v)).mean(-1)


def of_label(p, labels=LABELS):
    return -np.log(p[np.arange(6), labels])


ERRORS, SIGN, SIGMA = SCORES - SOFT, BITS * 2 - 1, PROBABILITIES
LEFT, NEAR = (BITS * SIGMA).sum(-1), smooth(SOFT, 0.1, 0.5)
FORMULAS = {  # name -> the values of the rows
    "mape": 100 * np.abs(ERRORS / SOFT).mean(-1),
    "msle": ((np.log(1 + POSITIVE) - np.log(1 + above(FEW))) ** 2).mean(-1),
    "msle_below_0": ((np.log1p(above(SCORES)) - np.log1p(above(SCORES[::-1]))) ** 2).mean(-1),
    "log_cosh": np.log(np.cosh(3 * SCORES - SOFT)).mean(-1),
    "quantile": np.abs(ERRORS).mean(-1) / 2,
    "quantile_high": (0.9 * positive(-ERRORS) + 0.1 * positive(ERRORS)).mean(-1),
    "cosine": -(unit(SOFT) * unit(SCORES)).sum(-1),
    "hinge": positive(1 - SIGN * SCORES).mean(-1),
    "hinge_bits": positive(1 - SIGN * SCORES).mean(-1),
    "squared_hinge": (positive(1 - SIGN * SCORES) ** 2).mean(-1),
    "categorical_hinge": positive(1 + np.where(HOT, 0, SCORES).max(-1) - SCORES[np.arange(6), LABELS]),
    "kld": (SOFT * np.log(SOFT / SHARES)).sum(-1),
    "kld_hot": (above(HOT) * np.log(above(HOT) / SIGMA)).sum(-1),
    "poisson": (POSITIVE - FEW * np.log(POSITIVE + EPS)).mean(-1),
    "poisson_logs": (np.exp(SCORES) - FEW * SCORES).mean(-1),
    "gaussian": likelihood(FEW[:, :2], MOMENTS[:, :2], MOMENTS[:, 2:]),
    "gaussian_full": likelihood(FEW[:, :2], MOMENTS[:, :2], MOMENTS[:, 2:]) + np.log(2 * np.pi) / 2,
    "gaussian_logs": likelihood(FEW[:, :2], SCORES[:, :2], np.exp(SCORES[:, 2:])),
    "focal": focal(BITS, SIGMA),
    "focal_balanced": focal(NEAR, SIGMA, 1.5, NEAR * 0.3 + (1 - NEAR) * 0.7),
    "focal_logits": focal(BITS, SIGMA),
    "focal_logits_half": focal(smooth(BITS, 0.2, 0.5), SIGMA, 0.5, np.where(BITS, 0.9 * 0.25 + 0.1 * 0.75, 0.7)),
    "focal_0": -(SOFT * np.log(SIGMA) + (1 - SOFT) * np.log(1 - SIGMA)).mean(-1),
    "focal_classes": focal_classes(HOT, SHARES),
    "focal_classes_alphas": (
        focal_classes(smooth(SOFT, 0.1, 0.25), normalized(SIGMA), np.array([0.1, 0.2, 0.3, 0.4]), 0.5)
    ),
    "focal_classes_logits": focal_classes(HOT, softmax(SCORES)),
    "focal_classes_logits_half": focal_classes(smooth(HOT, 0.2, 0.25), softmax(SCORES), 0.5, 0.5),
    "dice": 1 - 2 * LEFT / (BITS.sum(-1) + SIGMA.sum(-1) + EPS),
    "tversky": 1
    - (SOFT * SIGMA).sum(-1)
    / (SOFT * SIGMA + 0.3 * SOFT * (1 - SIGMA) + 0.6 * (1 - SOFT) * SIGMA + EPS / 4).sum(-1),
    "sparse_smooth": 0.8 * of_label(SHARES) - 0.2 * np.log(SHARES).mean(-1),
    "sparse_logits_smooth": 0.8 * of_label(softmax(SCORES)) - 0.2 * np.log(softmax(SCORES)).mean(-1),
    "sparse_ignore": of_label(SHARES, positive(IGNORED)) * (LABELS != 1),
    "sparse_logits_ignore": (
        (0.9 * of_label(softmax(SCORES)) - 0.1 * np.log(softmax(SCORES)).mean(-1)) * (LABELS != 1)
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_the_rows_by_their_formula(backend64, name):
    cls, settings, y, p = LOSSES[name]
    assert_close(
        cls(**settings, reduction="none")(y, backend64.array(p)), backend64.array(FORMULAS[name]), rtol=1e-9
    )


def test_every_new_row_has_a_formula():
    by_hand = {"mse", "mae", "huber", "bce", "cce", "sparse", "perceptron"}  # in test_losses.py
    assert {name for name in LOSSES if name not in FORMULAS and name.partition("_")[0] not in by_hand} == set()


@pytest.mark.parametrize(
    ("loss", "y", "p", "value", "grad"),
    [
        (Hinge(), [1.0, -1.0], [1.0, -1.0], 0.0, [0.0, 0.0]),  # at the kink
        (Quantile(0.25), [1.0, 1.0, 1.0], [1.0, 3.0, -1.0], 2 / 3, [0.0, 0.25, -0.25 / 3]),
        (losses.CosineSimilarity(), [[1.0, 0.0]], [[0.0, 0.0]], 0.0, [[-1e7, 0.0]]),
        (losses.CosineSimilarity(), [[1.0, 0.0]], [[5e-8, 0.0]], -0.5, [[-1e7, 0.0]]),
        (losses.MeanSquaredLogarithmicError(), [[0.0]], [[-1.0]], 0.0, [[0.0]]),
        (losses.CategoricalHinge(), [[1.0, 0.0]], [[2.0, 0.5]], 0.0, [[0.0, 0.0]]),
        (losses.CategoricalHinge(), [[1.0, 0.0, 0.0]], [[1.0, 0.5, 0.5]], 0.5, [[-1.0, 1.0, 0.0]]),
        (KLDivergence(), [[0.0, 1.0]], [[0.0, 1.0]], 0.0, [[0.0, -1.0]]),
        (Dice(), [[0.0, 0.0]], [[0.0, 0.0]], 1.0, [[0.0, 0.0]]),
        (losses.BinaryFocalCrossentropy(gamma=0.5), [[1.0]], [[1.0]], 0.0, [[0.0]]),
        (CategoricalFocalCrossentropy(1.0, 0.5, True), [[1.0, 0.0]], [[0.0, -np.inf]], 0.0, [[0.0, 0.0]]),
    ],
)
def test_at_the_edges(backend64, loss, y, p, value, grad):
    found = loss.value_and_grad(y, backend64.array(p, "float64"))
    assert_close(found[0], backend64.scalar(value), atol=1e-6)
    assert_close(found[1], backend64.array(grad, "float64"), atol=1e-6)


def test_log_cosh_is_exact_for_small_errors_and_finite_for_large_ones(backend64):
    """d^2 / 2 - d^4 / 12 and |d| - log 2."""
    for d in (1e-9, 1e-5, 1e-3):
        assert float(LogCosh()([0.0], backend64.array([d]))) == pytest.approx(
            d * d / 2 - d**4 / 12, rel=1e-9, abs=0
        )
    assert float(LogCosh()([0.0], backend64.array([-1e6]))) == pytest.approx(1e6 - np.log(2))


# Axes -----------------------------------------------------------------------------------------------------


def deep(name, **more):
    cls, settings, y, p = DEEP[name]
    return cls(**settings, **more), y.reshape((2, 4) if y.ndim == 1 else (2, 3, 4)), p.reshape(2, 3, 4)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight", "none"])
@pytest.mark.parametrize("name", DEEP)
def test_gradients_along_axes(backend64, name, reduction):
    loss, y, p = deep(name, reduction=reduction)
    check_gradients(loss, p.shape, y_true=y, inputs=p, backend=backend64)


@pytest.mark.parametrize(
    "name", [name for name in DEEP if not isinstance(DEEP[name][1].get("axis"), tuple | None)]
)
def test_an_axis_is_the_last_one_of_moved_predictions(backend64, name):
    loss, y, p = deep(name, reduction="none")
    last = type(loss)(**{**DEEP[name][1], "axis": -1}, reduction="none")
    moved = np.moveaxis(p, loss.axis, -1)
    wanted = last.value_and_grad(y if y.ndim < 3 else np.moveaxis(y, loss.axis, -1), backend64.array(moved.copy()))
    value, grad = loss.value_and_grad(y, backend64.array(p))
    assert_close(value, wanted[0])
    assert_close(np.moveaxis(backend64.host(grad), loss.axis, -1), backend64.host(wanted[1]))


def test_several_axes(backend64):
    p, y = backend64.array(PROBABILITIES.reshape(2, 3, 4)), BITS.reshape(2, 3, 4)
    rows = Dice(axis=(1, 2), reduction="none")(y, p)
    assert_close(rows, Dice(axis=-1, reduction="none")(y.reshape(2, 12), backend64.xp.reshape(p, (2, 12))))
    assert_close(Tversky(axis=[-1, 1], reduction="none")(y, p), rows, rtol=1e-6)
    whole = Dice()(y.reshape(1, 24), backend64.xp.reshape(p, (1, 24)))
    assert_close(Dice()(y, p), whole)
    for weight in ([1.0, 3.0], np.ones((2, 3)) * 2.0):  # one value for all: it counts for the mean of the weights
        value, grad = Dice().value_and_grad(y, p, weight)
        assert_close(value, whole * 2.0)
        assert_close(grad, 2.0 * Dice().value_and_grad(y, p)[1])


def test_an_axis_in_training(backend64):
    """A model of sequences whose classes lie on axis 1: the gradient of its step is that of the loss."""
    x, y = RNG.standard_normal((5, 3, 4)), RNG.integers(0, 3, (5, 2))
    loss = SparseCategoricalCrossentropy(from_logits=True, axis=1)
    model = xn.Sequential([Input((3, 4)), Dense(2)], seed=0, dtype="float64", backend=backend64)
    model.compile(xn.optimizers.SGD(1.0), loss)
    before, p = model.get_weights(), model.predict(x)
    value, grad = loss.value_and_grad(y, p)
    assert model.train_on_batch(x, y) == pytest.approx(float(value))
    kernel = before[0] - np.einsum("bcf,bcu->fu", x, grad)
    np.testing.assert_allclose(model.get_weights()[0], kernel, rtol=1e-9)
    assert model.evaluate(x, y) == pytest.approx(float(loss(y, model.predict(x))))
    with pytest.raises(InvalidValueError, match=r"class_weight needs classes on the last axis.*got axis 1$"):
        model.fit(x, y, class_weight={0: 2.0}, verbose=0)
    with pytest.raises(InvalidValueError, match=r"got axis 1$"):
        model.train_on_batch(x, y, class_weight={0: 2.0})


def test_softmax_is_joined_along_the_last_axis_only():
    for axis, joined in ((-1, True), (2, True), (1, False)):
        loss = losses.CategoricalCrossentropy(axis=axis)
        assert (loss.fused_activation((1, 4, 4)) == "softmax") == joined


# Classes that do not count, and smoothing -----------------------------------------------------------------


@pytest.mark.parametrize("from_logits", [False, True])
def test_ignored_rows_do_not_count_at_all(backend64, from_logits):
    """As if they were not there, even where their predictions are not finite."""
    p, rows = np.array(SCORES if from_logits else SHARES), IGNORED != -1
    p[~rows] = np.nan
    for reduction in ("sum_over_batch_size", "sum", "mean_with_sample_weight"):
        loss = SparseCategoricalCrossentropy(from_logits, reduction=reduction, ignore_class=-1)
        value, grad = loss.value_and_grad(IGNORED, backend64.array(p))
        wanted, wanted_grad = loss.value_and_grad(IGNORED[rows], backend64.array(p[rows]))
        assert_close(value, wanted)
        assert_close(backend64.host(grad)[rows], backend64.host(wanted_grad))
        assert not backend64.host(grad)[~rows].any()
        metric = metrics.OfLoss(loss)
        metric.update_state(IGNORED, backend64.array(p))
        assert_close(
            metric.result(), loss(IGNORED, backend64.array(p)) / (int(rows.sum()) if reduction == "sum" else 1)
        )


def test_an_ignored_class_in_training_and_as_a_metric(backend64):
    loss = SparseCategoricalCrossentropy(ignore_class=255)
    x, y = RNG.standard_normal((40, 3)), RNG.integers(0, 4, 40)
    y[::3] = 255
    rows, weight = y != 255, RNG.random(40)
    results = []
    for some in (np.ones(40, bool), rows):
        model = xn.Sequential([Dense(4, "softmax")], seed=0, dtype="float64", backend=backend64)
        model.compile(
            xn.optimizers.SGD(0.1), loss, [loss], weighted_metrics=[metrics.OfLoss(loss, name="weighted")]
        )
        model.fit(x[some], y[some], batch_size=40, epochs=3, sample_weight=weight[some], verbose=0)
        results.append(
            [*model.evaluate(x[some], y[some], sample_weight=weight[some]), *model.get_weights()[0].flat]
        )
    np.testing.assert_allclose(*results, rtol=1e-9)


def test_smoothed_class_numbers_are_smoothed_one_hot_targets(backend64):
    for from_logits, p in ((False, SHARES), (True, SCORES)):
        settings = {"from_logits": from_logits, "label_smoothing": 0.3}
        hot = losses.CategoricalCrossentropy(**settings).value_and_grad(HOT, backend64.array(p))
        sparse = SparseCategoricalCrossentropy(**settings).value_and_grad(LABELS, backend64.array(p))
        assert_close(sparse[0], hot[0])
        assert_close(sparse[1], hot[1])


# Weights of leading axes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight", "none"])
@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 3), (2, 3, 1), (2, 1, 1), ()], ids=str)
def test_weights_broadcast_from_the_first_axis(backend64, shape, reduction):
    loss, p, y = MeanSquaredError(reduction), backend64.array(SCORES.reshape(2, 3, 4)), SOFT.reshape(2, 3, 4)
    weight = RNG.random(shape)
    full = np.broadcast_to(np.reshape(weight, (*shape[:2], *(1,) * (2 - len(shape[:2])))), (2, 3))
    value, grad = loss.value_and_grad(y, p, weight)
    wanted, wanted_grad = loss.value_and_grad(y.reshape(6, 4), backend64.array(SCORES), full.reshape(6))
    assert_close(backend64.host(value).reshape(-1), backend64.host(wanted).reshape(-1))
    assert_close(backend64.host(grad).reshape(6, 4), backend64.host(wanted_grad))


@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 5), (40, 5, 1)], ids=str)
def test_weights_of_leading_axes_in_fit(shape):
    """In `fit`, `evaluate`, validation and weighted metrics, with the weights of classes."""
    x, y, weight = RNG.standard_normal((40, 5, 3)), RNG.integers(0, 4, (40, 5)), RNG.random(shape)
    factors = np.where(y == 1, 2.0, 1.0)
    full = np.broadcast_to(weight.reshape(40, -1), (40, 5))
    results = []
    for given, classes in ((weight, {1: 2.0}), (full * factors, None)):
        model = xn.Sequential([Dense(4, "softmax")], seed=0, dtype="float64", backend="numpy")
        model.compile(
            "sgd", "sparse_categorical_crossentropy", weighted_metrics=["sparse_categorical_crossentropy"]
        )
        logs = model.fit(
            x, y, batch_size=16, epochs=2, verbose=0, sample_weight=given, class_weight=classes,
            validation_data=(x, y, full),
        ).history  # fmt: skip
        results.append([*logs["loss"], *logs["val_loss"], *model.evaluate(x, y, sample_weight=full)])
        p = model.predict(x)
    np.testing.assert_allclose(*results, rtol=1e-9)
    values = -np.log(np.take_along_axis(p, y[..., None], -1))[..., 0]
    assert results[0][-2:] == pytest.approx([(values * full).mean(), (values * full).sum() / full.sum()])
    assert model.evaluate(x, y, sample_weight=weight)[0] == pytest.approx((values * full).mean())


# Models ---------------------------------------------------------------------------------------------------


def test_divergence_and_focal_losses_start_from_the_scores():
    """Where softmax gives 0, the clipped loss has no derivative; that of the scores has one."""
    x = np.full((1, 1), 300.0)
    for name, y in (("kl_divergence", [[0.0, 1.0]]), ("categorical_focal_crossentropy", [[0.0, 1.0]])):
        model = xn.Sequential([Input((1,)), Dense(2, "softmax", use_bias=False)], dtype="float64", backend="numpy")
        model.compile(xn.optimizers.SGD(1e-3), name)
        model.set_weights([np.array([[1.0, -1.0]])])
        assert not np.any(losses.get(name).value_and_grad(y, model.predict(x))[1][:, 1])
        model.train_on_batch(x, y)
        assert model.get_weights()[0][0, 1] > -1.0


@pytest.mark.parametrize("loss", ["binary_crossentropy", "mse", "hinge"])
def test_softmax_over_one_output_warns(loss):
    x, y = RNG.standard_normal((4, 3)), np.array([0.0, 1.0, 1.0, 0.0])
    for units, activation, warned in ((1, "softmax", True), (1, "sigmoid", False), (2, "softmax", False)):
        model = xn.Sequential([Dense(units, activation)], backend="numpy")
        model.compile("sgd", loss)
        targets = y if units == 1 else np.stack([y, 1 - y], axis=-1)
        if not warned:
            model.fit(x, targets, verbose=0)
            continue
        with pytest.warns(UserWarning, match=r"'softmax' over one output.*'sigmoid'; got outputs of shape .*1\)$"):
            model.fit(x, targets, verbose=0)


def test_a_mean_and_a_variance():
    """A model learns the noise of the data: 0.1 and 1."""
    rng = np.random.default_rng(1)
    x = np.repeat(np.eye(2), 400, axis=0)
    y = np.concatenate([rng.normal(1.0, 0.1, 400), rng.normal(-2.0, 1.0, 400)])
    model = xn.Sequential([Dense(2)], seed=0, dtype="float64", backend="numpy")
    model.compile(xn.optimizers.Adam(0.03), GaussianNLL(log_variance=True))
    model.fit(x, y, batch_size=200, epochs=300, verbose=0)
    (m0, s0), (m1, s1) = model.predict(np.eye(2))
    assert (m0, m1) == pytest.approx((y[:400].mean(), y[400:].mean()), abs=0.02)
    assert np.exp([s0 / 2, s1 / 2]) == pytest.approx([y[:400].std(), y[400:].std()], rel=0.05)
    assert model.evaluate(x, y[:, None]) == pytest.approx(model.evaluate(x, y))


@pytest.mark.parametrize("name", [*losses.registry.classes, "MSE", "KLD"])
def test_every_loss_is_a_metric_by_its_name(name):
    metric = metrics.get(name)
    if isinstance(metric, metrics.OfLoss) and name not in metrics.registry:
        assert type(metric.loss) is losses.registry.find(name)
        assert metric.name == name
        assert metric.direction == "min"


def test_a_metric_of_a_loss_gets_the_name_of_its_class():
    names = [metrics.get(loss).name for loss in (KLDivergence(), GaussianNLL(), LogCosh(), Dice(name="mine"))]
    assert names == ["kl_divergence", "gaussian_nll", "log_cosh", "mine"]


@pytest.mark.parametrize("axis", [None, -1, (0, 2)], ids=str)
def test_a_metric_of_a_loss_along_axes(backend64, axis):
    p, y = backend64.array(PROBABILITIES.reshape(2, 3, 4)), BITS.reshape(2, 3, 4)
    loss = Dice(axis=axis)
    metric = metrics.OfLoss(loss)
    metric.update_state(y, p)
    metric.update_state(y, p)
    assert float(metric.result()) == pytest.approx(float(loss(y, p)))


# Errors ---------------------------------------------------------------------------------------------------

P2, P3 = np.full((2, 2), 0.5), np.full((2, 3, 4), 0.25)


@pytest.mark.parametrize(
    ("call", "error", "ends"),
    [
        (lambda: Quantile(1.5), InvalidValueError, "got 1.5"),
        (lambda: CategoricalFocalCrossentropy(-1.0), InvalidValueError, "got -1.0"),
        (lambda: CategoricalFocalCrossentropy([1.0, "a"]), InvalidTypeError, "got 'a'"),
        (lambda: CategoricalFocalCrossentropy([1.0] * 3)(P2, P2), ShapeError, "2 classes; got (1.0, 1.0, 1.0)"),
        (lambda: GaussianNLL(eps=0), InvalidValueError, "got 0"),
        (lambda: Dice(axis=1.5), InvalidValueError, "got 1.5"),
        (lambda: Dice(axis=2)(P2, P2), ShapeError, "axis must name axes of outputs with 2 axes; got 2"),
        (lambda: SparseCategoricalCrossentropy(ignore_class=0.5), InvalidValueError, "got 0.5"),
        (lambda: SparseCategoricalCrossentropy(ignore_class=9)([9, 8], P2), InvalidValueError, "0 to 1; got 8"),
        (lambda: SparseCategoricalCrossentropy(axis=1)([[0]], P3), ShapeError, "got (1, 1)"),
        (lambda: SparseCategoricalCrossentropy(axis=1)([[0, 1, 3, 0]] * 2, P3), InvalidValueError, "to 2; got 3"),
        (
            lambda: losses.CategoricalCrossentropy(axis=0)(P3[:1], P3[:1]),
            ShapeError,
            "got outputs of shape (1, 3, 4)",
        ),
        (lambda: Poisson()([-1.0], [1.0]), InvalidValueError, "targets >= 0; got -1.0"),
        (lambda: KLDivergence()([[2.0, 0.0]], [[0.5, 0.5]]), InvalidValueError, "targets in [0, 1]; got 2.0"),
        (lambda: Hinge()([0.5], [1.0]), InvalidValueError, "got 0.5"),
        (lambda: GaussianNLL()([1.0], [1.0]), ShapeError, "got outputs of shape (1, 1)"),
        (lambda: GaussianNLL()([[1.0, 2.0]], [[1.0, 1.0]]), ShapeError, "of shape (1, 2); got (1, 2)"),
        (lambda: MeanSquaredError()(P3, P3, np.ones((2, 4))), ShapeError, "leading axes, (2, 3); got (2, 4)"),
        (lambda: MeanSquaredError()(P3, P3, np.ones(3)), ShapeError, "leading axes, (2, 3); got (3,)"),
        (lambda: MeanSquaredError()(P3, P3, P3), ShapeError, "leading axes, (2, 3); got (2, 3, 4)"),
        (lambda: Dice()(P2, P2, np.ones(3)), ShapeError, "sample_weight must have shape (2,); got (3,)"),
    ],
)
def test_errors(call, error, ends):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).endswith(ends)


def test_negative_expectations_are_named():
    model = xn.Sequential([Input((1,)), Dense(1)], backend="numpy")
    model.compile("sgd", "poisson")
    model.set_weights([np.array([[-1.0]]), np.zeros(1)])
    with pytest.raises(NonFiniteError, match=r"predictions must be >= 0.*'softplus'.*log_input=True"):
        model.fit([[1.0], [2.0]], [1.0, 2.0], verbose=0)


@pytest.mark.parametrize("shape", [(4,), (4, 3)], ids=str)
def test_weights_that_do_not_fit_are_refused_before_the_first_step(shape):
    model = xn.Sequential([Dense(2)], backend="numpy")
    model.compile("sgd", "mse")
    with pytest.raises(ShapeError, match=r"sample_weight must have shape \(4,\).*got \(4, 2\)$"):
        model.fit(np.ones((*shape, 1)), np.ones((*shape, 2)), sample_weight=np.ones((4, 2)), verbose=0)
    assert not model.step
