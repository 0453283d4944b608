"""Constraints on weights: their formulas, and the steps that end with them."""

import numpy as np
import pytest
from cases import CONSTRAINTS

import xpnet as xn
from xpnet import constraints
from xpnet.backend import get_backend
from xpnet.constraints import Constraint, MaxNorm, MinMaxNorm, NonNeg, UnitNorm
from xpnet.errors import InvalidTypeError, InvalidValueError, NonFiniteError, ShapeError, UnknownNameError
from xpnet.layers import BatchNormalization, Dense, PReLU
from xpnet.testing import assert_close

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((24, 4)), RNG.standard_normal((24, 3))
W = RNG.standard_normal((4, 3))


class Within(Constraint):
    """One of a user's own."""

    limit: float = xn.setting(default=0.3)

    def apply(self, xp, w):
        return xp.where(xp.abs(w) < self.limit, w, self.limit * xp.sign(w))


class Broken(Constraint):
    """Gives NaN once a weight is large."""

    def apply(self, xp, w):
        return w + 0.0 * xp.sqrt(9.0 - w)


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_values(backend64, name):
    constraint, value = CONSTRAINTS[name]
    for w in (W, 0.1 * W, 10.0 * W):
        given = backend64.array(w)
        assert_close(constraint(given), backend64.array(value(w)), rtol=1e-12)
        assert_close(given, backend64.array(w))
    assert_close(constraint(backend64.zeros((4, 3))), backend64.zeros((4, 3)))


def linear(kernel=None, bias=None, optimizer="sgd", **kwargs):
    """Return a linear model."""
    model = xn.Sequential([Dense(3, kernel_constraint=kernel, bias_constraint=bias)], seed=1, dtype="float64")
    model.compile(optimizer, "mse", **kwargs)
    model.build((4,))
    return model


RULES = [
    (MaxNorm(0.6), NonNeg()), (None, "unit_norm"), ("non_neg", None), (MinMaxNorm(0.5, 0.7, 0.5), None),
    (Within(), MaxNorm(0.1)),
]  # fmt: skip


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize(("kernel", "bias"), RULES)
def test_steps(graph, kernel, bias):
    """Momentum on a linear model, against NumPy: the slots stay those of the plain update."""
    model = linear(kernel, bias, xn.optimizers.SGD(0.2, momentum=0.9), graph=graph)
    rules = [constraints.get(rule) for rule in (kernel, bias)]
    values, slots = model.get_weights(), [0.0, 0.0]
    for _ in range(6):
        w, b = values
        error = (X @ w + b - Y) * 2 / Y.size
        slots = [0.9 * s - 0.2 * g for s, g in zip(slots, (X.T @ error, error.sum(0)))]
        values = [v + s for v, s in zip(values, slots)]
        values = [v if rule is None else rule.apply(np, v) for v, rule in zip(values, rules)]
        model.train_on_batch(X, Y)
    for found, wanted in zip(model.get_weights(), values, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "lamb"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_they_hold_after_each_step_in_each_layer(optimizer, dtype):
    layers = [
        Dense(6, "tanh", kernel_constraint=MaxNorm(0.1)), BatchNormalization(gamma_constraint=UnitNorm()),
        PReLU("ones", alpha_constraint=MinMaxNorm(0.2, 0.3)),
        BatchNormalization(beta_constraint="non_neg", scale=False),
        Dense(3, bias_constraint=UnitNorm()),
    ]  # fmt: skip
    model = xn.Sequential(layers, seed=1, dtype=dtype)
    model.compile(optimizer, "mse", steps_per_execution=2)
    model.optimizer.learning_rate = 0.1
    for _ in range(3):
        model.fit(X, Y, batch_size=10, epochs=1, verbose=0)
        kernel, gamma, alpha, beta, bias = (
            layers[i].get_weights()[k] for i, k in ((0, 0), (1, 0), (2, 0), (3, 0), (4, 1))
        )
        assert np.sqrt((kernel**2).sum(0)).max() == pytest.approx(0.1, rel=1e-5)
        assert np.sqrt((gamma**2).sum()) == pytest.approx(1.0, rel=1e-5)
        assert 0.2 - 1e-5 < np.sqrt((alpha**2).sum()) < 0.3 + 1e-5
        assert beta.min() >= 0.0
        assert np.sqrt((bias**2).sum()) == pytest.approx(1.0, rel=1e-5)


def test_first_values_and_what_is_not_trained_stay():
    frozen, free = Dense(4, kernel_constraint=MaxNorm(0.01)), Dense(3, kernel_constraint=MaxNorm(0.01))
    frozen.trainable = False
    model = xn.Sequential([frozen, free], seed=1)
    model.compile("sgd", "mse")
    model.build((4,))
    before = model.get_weights()
    assert np.abs(before[2]).max() > 0.01
    model.train_on_batch(X, Y)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    assert np.sqrt((model.get_weights()[2] ** 2).sum(0)).max() == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("optimizer", ["adam", xn.optimizers.Adam(epsilon=0.0)])
def test_a_rejected_step_changes_nothing(graph, optimizer):
    model = linear(MaxNorm(0.6), NonNeg(), optimizer, graph=graph)
    for _ in range(3):
        model.train_on_batch(X, Y)
    before = [model.backend.host(a).copy() for a in (model.state.weights, *model.state.slots, model.state.age)]
    with pytest.raises(NonFiniteError):
        model.train_on_batch(X * 1e200, Y)
    after = [model.backend.host(a) for a in (model.state.weights, *model.state.slots, model.state.age)]
    for a, b in zip(after, before, strict=True):
        np.testing.assert_array_equal(a, b)
    model.train_on_batch(X, Y)
    assert (model.backend.host(model.state.weights) != before[0]).any()


def test_a_constraint_that_gives_nan_is_named():
    model = linear(Broken())
    for _ in range(3):
        model.train_on_batch(X, Y)
    before = model.get_weights()
    with pytest.raises(NonFiniteError, match="the new kernel of layer 'dense' is not finite"):
        model.train_on_batch(X, Y * 1e4)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(not hasattr(get_backend().xp, "float16"), reason="this library has no float16")
def test_a_step_that_is_too_large_for_16_bits_costs_itself_only():
    model = xn.Sequential([Dense(3, kernel_constraint=UnitNorm())], seed=1, dtype="mixed_float16")
    model.compile(xn.optimizers.SGD(0.1), "mse")
    model.build((4,))
    before = model.get_weights()[0]
    model.train_on_batch(X * 100, Y * 1e4)
    np.testing.assert_array_equal(model.get_weights()[0], before)
    model.train_on_batch(X, Y)
    np.testing.assert_allclose(np.sqrt((model.get_weights()[0] ** 2).sum(0)), 1.0, rtol=1e-5)


def test_their_settings_count_from_the_next_step_on():
    model = linear(Within(0.3))
    layer = model.layers[0]
    for limit in (0.3, 0.2):
        layer.kernel_constraint.limit = limit
        model.train_on_batch(X, Y)
        assert np.abs(layer.get_weights()[0]).max() == pytest.approx(limit)
    layer.kernel_constraint = None
    model.optimizer.learning_rate = 1.0
    model.train_on_batch(X, Y)
    assert np.abs(layer.get_weights()[0]).max() > 0.21


def test_they_are_saved(tmp_path):
    model = linear(MaxNorm(0.6, axis=[0, 1]), Within(0.1))
    model.save(tmp_path / "model")
    again = xn.load_model(tmp_path / "model", custom_objects={"Within": Within})
    assert repr(again.layers[0]) == repr(model.layers[0])
    assert "kernel_constraint=MaxNorm(max_value=0.6, axis=(0, 1))" in repr(again.layers[0])
    for trained in (model, again):
        trained.train_on_batch(X, Y)
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("identifier", "kind"),
    [
        ("max_norm", MaxNorm),
        ("MinMaxNorm", MinMaxNorm),
        ("non_neg", NonNeg),
        (UnitNorm, UnitNorm),
        (None, type(None)),
    ],
)
def test_get(identifier, kind):
    assert type(constraints.get(identifier)) is kind


@pytest.mark.parametrize(
    ("make", "error", "ends"),
    [
        (lambda: MaxNorm(-1), InvalidValueError, "max_value must be a finite number >= 0; got -1"),
        (lambda: MaxNorm(axis="0"), InvalidTypeError, "axis must be an integer; got '0'"),
        (lambda: MaxNorm(axis=(0, 0.5)), InvalidValueError, "each axis of axis must be an integer; got 0.5"),
        (lambda: MinMaxNorm(2, 1), InvalidValueError, "max_value must be at least min_value, 2; got 1"),
        (lambda: MinMaxNorm(rate=2), InvalidValueError, "got 2"),
        (lambda: UnitNorm(1)([1.0, 2.0]), ShapeError, "an axis of the weights, of shape (2,); got 1"),
        (lambda: constraints.get("max_nrom"), UnknownNameError, "got 'max_nrom'"),
        (lambda: Dense(2, kernel_constraint=abs), InvalidTypeError, "got <built-in function abs>"),
        (lambda: Dense(2, bias_constraint=3), InvalidTypeError, "got 3"),
        (lambda: Constraint()([1.0]), TypeError, "Constraint must define apply(xp, w)"),
    ],
)
def test_errors(make, error, ends):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value).endswith(ends)
