"""Mistakes in parts that users write are named, at the first step or at `save`; nothing is lost."""

import re

import numpy as np
import pytest

import xpnet as xn
from xpnet.errors import InvalidTypeError, InvalidValueError, ShapeError, UnknownNameError
from xpnet.layers import Dense, Layer, Stateless
from xpnet.losses import Loss
from xpnet.metrics import Metric
from xpnet.optimizers import Optimizer

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((8, 3)), RNG.standard_normal((8, 2))


class Scale(Layer):
    """Right unless a test says otherwise."""

    def build(self, input_shape):
        self.add_weight("s", input_shape, "ones")
        return input_shape

    def forward(self, ctx, params, x):
        return x * params["s"], lambda dy, into, want_dx=True: (dy * params["s"], self.grads(ctx, dy, x))

    def grads(self, ctx, dy, x):
        return {"s": ctx.xp.sum(dy * x, axis=-2)}


class OnlyY(Scale):
    def forward(self, ctx, params, x):
        return x * params["s"]


class OnlyYOfCall(Stateless):
    def call(self, ctx, x):
        return 2.0 * x


class NoFunction(Scale):
    def forward(self, ctx, params, x):
        return x, x


class OfEachRow(Scale):
    def grads(self, ctx, dy, x):
        return {"s": dy * x}


class OfNoShape(Scale):
    def grads(self, ctx, dy, x):
        return {"s": ctx.xp.sum(dy * x)}


class Misnamed(Scale):
    def grads(self, ctx, dy, x):
        return {"scale": ctx.xp.sum(dy * x, axis=-2)}


class Missing(Scale):
    def grads(self, ctx, dy, x):
        return {}


class WrongInput(Scale):
    def forward(self, ctx, params, x):
        return x * params["s"], lambda dy, into, want_dx=True: (dy[:, :1], self.grads(ctx, dy, x))


class NoInput(Scale):
    def forward(self, ctx, params, x):
        return x * params["s"], lambda dy, into, want_dx=True: (None, self.grads(ctx, dy, x))


def model_of(*layers, loss="mse"):
    model = xn.Sequential([Dense(2), *layers], seed=0)
    model.compile("sgd", loss)
    return model


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (OnlyY, InvalidTypeError, r"OnlyY.forward must return the output and its backward"),
        (OnlyYOfCall, InvalidTypeError, r"OnlyYOfCall.call must return the output and its backward function"),
        (NoFunction, InvalidTypeError, r"NoFunction.forward must return the output and its backward"),
        (OfEachRow, ShapeError, r"layer 'own': the gradient of 's' must have shape \(2,\); got \(8, 2\)$"),
        (OfNoShape, ShapeError, r"layer 'own': the gradient of 's' must have shape \(2,\); got \(\)$"),
        (Misnamed, UnknownNameError, r"unknown gradient of layer 'own'. Known: s; got 'scale'$"),
        (Missing, InvalidValueError, r"must return the gradients of all its weights; got none for \['own/s'\]$"),
        (WrongInput, ShapeError, r"must return the derivative by its input, of shape \(8, 2\); got \(8, 1\)"),
        (NoInput, ShapeError, r"must return the derivative by its input, of shape \(8, 2\); got None$"),
    ],
)  # fmt: skip
def test_what_a_layer_returns_is_checked(layer, error, message):
    model = model_of(layer(name="own"))
    with pytest.raises(error) as raised:
        model.fit(X, Y, batch_size=8, verbose=0)
    assert re.search(message, str(raised.value).splitlines()[0])  # JAX adds lines
    good = model_of(Scale(name="own"))
    good.fit(X, Y, batch_size=8, verbose=0)


def test_the_first_layer_need_not_return_the_derivative_by_its_input():
    class First(Scale):
        def forward(self, ctx, params, x):
            def backward(dy, into, want_dx=True):
                return (dy * params["s"] if want_dx else None), self.grads(ctx, dy, x)

            return x * params["s"], backward

    model = xn.Sequential([First(), Dense(2)], seed=0)
    model.compile("sgd", "mse")
    assert len(model.fit(X, Y, verbose=0).history["loss"]) == 1


class NoSuper(Scale):
    def __init__(self, units):
        self.units = units


class NoSuperLoss(Loss):
    def __init__(self, power):
        self.power = power


class NoSuperMetric(Metric):
    def __init__(self):
        self.power = 1


class NoSuperOptimizer(Optimizer):
    def __init__(self, rate):
        self.rate = rate


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: model_of(NoSuper(3)), "NoSuper"), (lambda: model_of(loss=NoSuperLoss(2)), "NoSuperLoss"),
        (lambda: model_of().compile("sgd", "mse", [NoSuperMetric()]), "NoSuperMetric"),
        (lambda: model_of().compile(NoSuperOptimizer(0.1), "mse"), "NoSuperOptimizer"),
    ],
)  # fmt: skip
def test_a_constructor_that_does_not_call_its_bases(make, name):
    with pytest.raises(
        InvalidTypeError, match=rf"{name}.__init__ must call super\(\).__init__\(\); got a \w+ without"
    ):
        make()


class Forgetful(Scale):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.kept = units


class ForgetfulLoss(Loss):
    def __init__(self, power=2):
        super().__init__()
        self.kept = power

    targets = xn.losses.MeanSquaredError.targets

    def terms(self, ctx, y, p, weight):
        return ctx.xp.mean((p - y) ** 2, axis=-1), (p - y) * weight


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: model_of(Forgetful(3)), r"Forgetful.__init__ must keep its argument 'units' as self.units"),
        (lambda: model_of(loss=ForgetfulLoss()), r"ForgetfulLoss.__init__ must keep its argument 'power'"),
    ],
)
def test_an_argument_that_is_not_kept_is_told_when_saving(model, message, tmp_path):
    model = model()
    model.fit(X, Y, verbose=0)
    with pytest.raises(InvalidValueError, match=message):
        model.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_config_of_ones_own_is_enough(tmp_path):
    class Own(Forgetful):
        def __init__(self, units, **kwargs):
            super().__init__(units, **kwargs)

        def get_config(self):
            return {**super().get_config(), "units": self.kept}

    model = model_of(Own(3))
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model")
    again = xn.load_model(tmp_path / "model", custom_objects={"Own": Own})
    assert again.layers[-1].kept == 3


class Scalar(ForgetfulLoss):
    def terms(self, ctx, y, p, weight):
        return ctx.xp.mean((p - y) ** 2), (p - y) * weight


class OnlyValues(ForgetfulLoss):
    def terms(self, ctx, y, p, weight):
        return ctx.xp.mean((p - y) ** 2, axis=-1)


class OfEachUnit(ForgetfulLoss):
    def terms(self, ctx, y, p, weight):
        return (p - y) ** 2, (p - y) * weight


@pytest.mark.parametrize(
    ("loss", "shape"), [(Scalar, r"\(\)"), (OnlyValues, r"\(8,\)"), (OfEachUnit, r"\(8, 2\)")]
)
def test_what_a_loss_returns_is_checked(loss, shape):
    model = model_of(loss=loss())
    with pytest.raises(ShapeError) as raised:
        model.fit(X, Y, batch_size=8, verbose=0)
    message = rf"^{loss.__name__} must return one value per row, shape \(8,\), and .* of shape {shape}$"
    assert re.search(message, str(raised.value).splitlines()[0])


def test_rows_of_a_metric_may_be_booleans():
    class Above(Metric):
        def rows(self, ctx, y, p):
            return ctx.xp.all(p > y, axis=-1)

    model = model_of()
    model.compile("sgd", "mse", [Above()])
    found = model.fit(X, Y - 10.0, verbose=0).history
    assert found[model.metrics_names[1]] == [1.0]
