"""Penalties on the weights, and their gradients."""

import numpy as np
import pytest
from cases import REGULARIZERS

import xpnet as xn
from xpnet import regularizers
from xpnet.errors import InvalidTypeError, InvalidValueError, ShapeError, UnknownNameError
from xpnet.kernels.context import Context
from xpnet.regularizers import L1, L1L2, L2, OrthogonalRegularizer, Regularizer
from xpnet.testing import assert_close

W = np.array([[1.0, -2.0], [0.0, 3.0]])


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [
        (L1(0.5), 3.0),
        (L2(0.5), 7.0),
        (L1L2(0.5, 0.25), 6.5),
        (L1(0), 0.0),
        (L1L2(), 0.0),
        (L1(), 0.06),
        (L2(), 0.14),
    ],
)
def test_values(backend64, penalty, expected):
    assert_close(penalty(backend64.array(W)), backend64.scalar(expected))


@pytest.mark.parametrize("name", REGULARIZERS)
def test_values_and_gradients(backend64, name):
    penalty, value = REGULARIZERS[name]
    w, h = np.random.default_rng(1).standard_normal((4, 3)), 1e-6
    found, slope = penalty.at(Context(backend64), backend64.array(w))
    assert found.shape == ()
    assert_close(found, backend64.scalar(value(w)), rtol=1e-12)
    assert_close(penalty(backend64.array(w)), found, rtol=1e-12)
    numeric = [(value(w + h * e.reshape(4, 3)) - value(w - h * e.reshape(4, 3))) / (2 * h) for e in np.eye(12)]
    assert_close(slope, backend64.array(np.reshape(numeric, (4, 3))), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_orthogonal_at_its_edges(backend64, mode):
    penalty = OrthogonalRegularizer(0.5, mode)
    for w, value in ((np.eye(3), 0.0), (np.zeros((3, 3)), 0.0), (np.ones((1, 1)), 0.0), (np.ones((2, 2)), 0.5)):
        found, slope = penalty.at(Context(backend64), backend64.array(w))
        assert_close(found, backend64.scalar(value), rtol=1e-12)
        assert_close(slope, backend64.zeros(w.shape), atol=1e-12)


class Fourth(Regularizer):
    """One of a user's own."""

    factor: float = xn.setting(default=0.5)

    def at(self, ctx, w):
        return self.factor * ctx.xp.sum(w**4), 4.0 * self.factor * w**3


class Doubled(L2):
    """A formula of its own beside the numbers of another."""

    def at(self, ctx, w):
        value, slope = super().at(ctx, w)
        return 2.0 * value, 2.0 * slope


X, Y = np.random.default_rng(0).standard_normal((2, 12, 3))


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("penalty", [Fourth(0.3), OrthogonalRegularizer(0.7), Doubled(0.2), L1L2(0.1, 0.2)])
def test_a_step_descends_on_loss_and_penalty(graph, penalty):
    """Linear regression, against gradient descent by NumPy."""
    layer = xn.layers.Dense(3, kernel_regularizer=penalty, bias_regularizer=Fourth(0.1))
    model = xn.Sequential([layer], seed=1, dtype="float64")
    model.compile(xn.optimizers.SGD(0.1), "mse", graph=graph)
    model.build((3,))
    w, b = model.get_weights()
    host = Context(xn.get_backend("numpy", dtype="float64"))
    for _ in range(5):
        error = X @ w + b - Y
        (value, dw), (more, db) = penalty.at(host, w), Fourth(0.1).at(host, b)
        assert float(np.asarray(model.evaluate(X, Y, verbose=0))) == pytest.approx(
            (error**2).mean() + value + more, rel=1e-10
        )
        model.train_on_batch(X, Y)
        w = w - 0.1 * (X.T @ error * 2 / error.size + dw)
        b = b - 0.1 * (error.sum(0) * 2 / error.size + db)
    for found, wanted in zip(model.get_weights(), (w, b), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_an_own_one_is_saved_and_its_settings_count_from_the_next_step_on(tmp_path):
    layer = xn.layers.Dense(3, kernel_regularizer=Fourth(0.3))
    model = xn.Sequential([layer], seed=1)
    model.compile(xn.optimizers.SGD(0.0), "mse")
    first = model.train_on_batch(X, Y)
    model.save(tmp_path / "model")
    again = xn.load_model(tmp_path / "model", custom_objects={"Fourth": Fourth})
    assert repr(again.layers[0].kernel_regularizer) == "Fourth(factor=0.3)"
    layer.kernel_regularizer.factor = 0.6
    second = model.train_on_batch(X, Y)
    w = model.get_weights()[0].astype(np.float64)
    for loss, factor in ((first, 0.3), (second, 0.6)):
        assert float(np.asarray(loss)) == pytest.approx(
            ((X @ w - Y) ** 2).mean() + factor * (w**4).sum(), rel=1e-5
        )


def test_the_notes_penalty_is_lambda_over_2m():
    lam, m = 0.7, 50
    assert_close(np.asarray(L2(lam / (2 * m))(W)), lam / (2 * m) * (W**2).sum())


def test_gradient_against_central_differences(backend64):
    penalty, h = L1L2(0.3, 0.2), 1e-6
    w = np.array([0.5, -1.5, 2.0])
    ctx = Context(backend64)
    flat = backend64.array(w)
    value, grad = ctx.ops.penalize(ctx, flat, backend64.zeros(3), ((0, 3, penalty.l1, penalty.l2),))
    assert_close(value, penalty(flat), check_dtype=False)
    numeric = [(float(penalty(w + h * e)) - float(penalty(w - h * e))) / (2 * h) for e in np.eye(3)]
    assert_close(backend64.host(grad), numeric, rtol=1e-7)


@pytest.mark.parametrize(("identifier", "kind"), [("l1", L1), ("L2", L2), ("l1l2", L1L2), (L1, L1), (L2(0.1), L2)])
def test_get(identifier, kind):
    assert type(regularizers.get(identifier)) is kind


def test_none_stays_none():
    assert regularizers.get(None) is None


@pytest.mark.parametrize(
    ("make", "error", "ends"),
    [
        (lambda: L1(-1), InvalidValueError, "l1 must be a finite number >= 0; got -1"),
        (lambda: L1L2(0, float("nan")), InvalidValueError, "l2 must be a finite number >= 0; got nan"),
        (lambda: L2("much"), InvalidTypeError, "got 'much'"),
        (lambda: regularizers.get("l3"), UnknownNameError, "got 'l3'"),
        (lambda: regularizers.get("l1_l2"), UnknownNameError, "pass L1L2(l1=0.01, l2=0.01); got 'l1_l2'"),
        (lambda: regularizers.get(abs), InvalidTypeError, "got <built-in function abs>"),
        (lambda: OrthogonalRegularizer(-1), InvalidValueError, "factor must be a finite number >= 0; got -1"),
        (lambda: OrthogonalRegularizer(mode="both"), UnknownNameError, "got 'both'"),
        (lambda: OrthogonalRegularizer()([1.0, 2.0]), ShapeError, "of shape (in, out); got shape (2,)"),
    ],
)
def test_errors(make, error, ends):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value).endswith(ends)
