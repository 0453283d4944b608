"""User-defined classes are restored from a file wherever a config contains them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import xpnet as xn
from xpnet import activations, initializers, layers, losses
from xpnet.backend import get_backend
from xpnet.core.config import Configurable, custom_object_scope, plain
from xpnet.errors import InvalidTypeError, UnknownNameError
from xpnet.layers import Dense, Input, Layer
from xpnet.optimizers import SGD

RNG = np.random.default_rng(0)
X = RNG.standard_normal((12, 3))
Y = X[:, :2] * 2


class Swish(activations.Activation):
    def __init__(self, beta=1.0):
        self.beta = beta

    def forward(self, xp, z):
        return z / (1.0 + xp.exp(-self.beta * z))

    def backward(self, xp, da, z, a):
        s = 1.0 / (1.0 + xp.exp(-self.beta * z))
        return da * (s + self.beta * a * (1.0 - s))


class Tanh(Swish):
    """Has the name of a layer and of an activation of xpnet."""


class Fan(initializers.Initializer):
    def __init__(self, inner="he_normal", factor=0.5):
        self.inner, self.factor = initializers.get(inner), factor

    def draw(self, rng, shape):
        return self.factor * self.inner.draw(rng, shape)


class Ridge(xn.regularizers.Regularizer):
    def __init__(self, strength=0.1):
        self.strength = self.l2 = strength


class Wrapped(Layer):
    """A layer around layers."""

    def __init__(self, inner, name=None, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.inner = [layers.get(layer) for layer in inner]

    def build(self, input_shape):
        for layer in self.inner:
            input_shape = layer.ensure_built(input_shape)
        return input_shape

    def forward(self, ctx, params, x):
        backs = []
        for layer in self.inner:
            x, back = layer.forward(ctx, {}, x)
            backs.append(back)

        def backward(dy, into, want_dx=True):
            for back in reversed(backs):
                dy = back(dy, {})[0]
            return dy, {}

        return x, backward


class Halving(Configurable):
    """A schedule, of a kind unknown to xpnet."""

    def __init__(self, start=0.1, every=2):
        self.start, self.every = start, every

    def __call__(self, age):
        return self.start * 0.5 ** (age / self.every)


class Scheduled(SGD):
    def __init__(self, schedule, name=None, dtype=None):
        super().__init__(0.1, name=name, dtype=dtype)
        self.schedule = schedule

    def apply(self, ctx, w, g, slots, lr, age, factor=None):
        return w - g * self.schedule(age), slots


class Huber(losses.MeanSquaredError):
    def __init__(self, weights=(1, 2), reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(reduction, name, dtype)
        self.weights = weights


class Times(losses.Loss):
    """A loss around another, which it keeps unchanged."""

    def __init__(self, inner, factor=2.0, reduction="sum_over_batch_size", name=None, dtype=None):
        super().__init__(reduction, name, dtype)
        self.inner, self.factor = inner, factor

    def check(self, y, shape):
        self.inner.check(y, shape)

    def terms(self, ctx, y, p, weight):
        value, slope = self.inner.terms(ctx, y, p, weight)
        return value * self.factor, slope * self.factor


class Passed(xn.metrics.MeanSquaredError):
    def __init__(self, through=None, name=None, dtype=None):
        super().__init__(name, dtype)
        self.through = through


OWN = {
    cls.__name__: cls
    for cls in (Swish, Tanh, Fan, Ridge, Wrapped, Halving, Scheduled, Huber, Times, Passed)
}  # fmt: skip
PARTS = {
    "activation": ([Dense(2, Swish(2.0))], "sgd", "mse"),
    "activation of a known name": ([Dense(2, Tanh(2.0)), Dense(2, "tanh"), layers.Tanh()], "sgd", "mse"),
    "initializer": ([Dense(2, kernel_initializer=Fan("ones", 2))], "sgd", "mse"),
    "initializer in an initializer": ([Dense(2, kernel_initializer=Fan(Fan("ones")))], "sgd", "mse"),
    "regularizer": ([Dense(2, bias_regularizer=Ridge(0.5))], "sgd", "mse"),
    "layers in a layer": (
        [Dense(2), Wrapped([layers.Activation(Swish()), Wrapped([layers.ReLU()])])],
        "sgd",
        "mse",
    ),
    "schedule": ([Dense(2)], Scheduled(Halving(0.2)), "mse"),
    "loss": ([Dense(2)], "sgd", Huber()),
    "loss in a loss": ([Dense(2)], "sgd", Times(Times(Huber()))),
    "known loss in a loss": ([Dense(2)], "sgd", Times(losses.MeanSquaredError(reduction="sum"))),
}


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("front", [[], [Input((3,))]], ids=["", "Input"])
def test_parts_of_parts_come_back(kind, front, tmp_path):
    parts, optimizer, loss = PARTS[kind]
    with custom_object_scope(OWN):
        parts = [type(p).from_config(p.get_config()) for p in parts]
    model = xn.Sequential([*front, *parts], seed=3)
    model.compile(optimizer, loss, [Passed([{"f": Swish(3.0)}])])
    model.fit(X, Y, epochs=2, verbose=0)
    model.save(tmp_path / "own")
    again = xn.load_model(tmp_path / "own", custom_objects=OWN)
    assert [layer.get_config() for layer in again.layers] == [layer.get_config() for layer in model.layers]
    for a, b in zip(
        again.compiled[:2] + tuple(again.compiled.metrics), model.compiled[:2] + tuple(model.compiled.metrics)
    ):
        assert repr(a) != object.__repr__(a)
        assert (type(a), plain(a)) == (type(b), plain(b))
    assert type(again.compiled.metrics[0].through[0]["f"]) is Swish
    model.fit(X, Y, epochs=2, verbose=0)
    again.fit(X, Y, epochs=2, verbose=0)
    tolerance = 0.0 if get_backend().name == "numpy" else 1e-5
    for one, other in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("part", "missing"),
    [(Dense(2, Swish()), "Swish"), (Dense(2, kernel_initializer=Fan(Fan())), "Fan"), (Wrapped([]), "Wrapped")],
)
def test_what_is_not_passed_is_named(part, missing, tmp_path):
    with custom_object_scope(OWN):
        model = xn.Sequential([type(part).from_config(part.get_config())], seed=1)
    model.build((3,))
    model.save(tmp_path / "own")
    for some in (None, {}, {k: v for k, v in OWN.items() if k != missing}):
        with pytest.raises(UnknownNameError, match=f"own: unknown .* got '{missing}'$"):
            xn.load_model(tmp_path / "own", custom_objects=some)


def test_a_scope_is_of_its_thread_and_ends():
    config = {"class_name": "Dense", "config": Dense(2, Swish(4.0)).get_config()}
    with custom_object_scope(OWN):
        assert layers.get(config).activation.beta == 4.0
        assert type(activations.get("Swish")) is Swish
        with ThreadPoolExecutor(1) as other, pytest.raises(UnknownNameError):
            other.submit(layers.get, config).result()
        with custom_object_scope({"Swish": Tanh}):
            assert type(layers.get(config).activation) is Tanh
        assert type(layers.get(config).activation) is Swish
        with pytest.raises(ZeroDivisionError), custom_object_scope({"Fan": Fan}):
            raise ZeroDivisionError
    with pytest.raises(UnknownNameError):
        layers.get(config)
    assert layers.registry.get(config, OWN).activation.beta == 4.0
    with pytest.raises(UnknownNameError):
        layers.get(config)


def test_they_must_be_a_dictionary(tmp_path):
    model = xn.Sequential([Input((3,)), Dense(2)], seed=1)
    model.save(tmp_path / "own")
    with pytest.raises(InvalidTypeError, match=r"own: custom objects must be a dictionary .*; got \["):
        xn.load_model(tmp_path / "own", custom_objects=[Swish])


def test_a_class_of_another_kind_is_not_taken():
    with custom_object_scope({"Dense": Swish}):
        assert type(layers.get({"class_name": "Dense", "config": {"units": 2}})) is Dense
        with pytest.raises(UnknownNameError, match="unknown loss"):
            losses.get("Swish")
