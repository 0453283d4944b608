"""Layers that drop inputs, add noise or penalize: statistics, shapes of masks, seeds, terms of the objective."""

import math

import numpy as np
import pytest

import xpnet as xn
from xpnet.core.random import DRAW, Stream, normals
from xpnet.errors import InvalidTypeError, InvalidValueError, NonFiniteError, ShapeError
from xpnet.kernels.context import Context
from xpnet.layers import (
    ActivityRegularization,
    AlphaDropout,
    Dense,
    Dropout,
    GaussianDropout,
    GaussianNoise,
    Input,
    SpatialDropout1D,
    Stateless,
)
from xpnet.regularizers import L1, L1L2, L2
from xpnet.testing import assert_close, check_gradients

RNG = np.random.default_rng(0)
X = RNG.standard_normal((400, 300))
POLICIES = ["mixed_bfloat16", *(["mixed_float16"] if hasattr(xn.get_backend().xp, "float16") else [])]
NAMES = {
    "noise": lambda **kwargs: GaussianNoise(0.5, **kwargs),
    "gaussian": lambda **kwargs: GaussianDropout(0.2, **kwargs),
    "alpha": lambda **kwargs: AlphaDropout(0.1, **kwargs),
    "dropout": lambda **kwargs: Dropout(0.3, **kwargs),
    "spatial": lambda **kwargs: SpatialDropout1D(0.3, **kwargs),
}


def near(found, wanted, deviation):
    assert abs(found - wanted) < 5 * deviation


# Normal numbers -----------------------------------------------------------------------------------------


def test_normals_are_the_formula_on_raw_bits():
    raw = [int(word) for word in Stream(7).at(DRAW, 3, 11).bit_generator.random_raw(20)]
    expected = []
    for word in raw:
        radius = math.sqrt(-2 * math.log(((word & 0xFFFFFFFF) + 1) / 2**32))
        angle = 2 * math.pi * (word >> 32) / 2**32
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    found = normals(Stream(7), 3, 11, (3, 13), "float64")
    np.testing.assert_allclose(found.reshape(-1), expected[:39], rtol=1e-14)
    single = normals(Stream(7), 3, 11, (3, 13), "float32")
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single, found.astype(np.float32))


@pytest.mark.parametrize("rows", [0, 1, 2, 5])
def test_the_noise_of_a_smaller_batch_is_a_prefix(rows):
    large = normals(Stream(3), 1, 2, (6, 5), "float64")
    np.testing.assert_array_equal(normals(Stream(3), 1, 2, (rows, 5), "float64"), large[:rows])


def test_moments_and_quantiles_of_normals():
    a = normals(Stream(0), 0, 0, (1000, 500), "float64")
    n = a.size
    near(a.mean(), 0, 1 / math.sqrt(n))
    near(a.var(), 1, math.sqrt(2 / n))
    near((a**3).mean(), 0, math.sqrt(15 / n))
    near((a**4).mean(), 3, math.sqrt(96 / n))
    for quantile, share in ((1.0, 0.8413447461), (2.0, 0.9772498681), (-3.0, 0.0013498980)):
        near((a < quantile).mean(), share, math.sqrt(share * (1 - share) / n))
    near((a[:, ::2] * a[:, 1::2]).mean(), 0, math.sqrt(2 / n))  # the two of a word
    assert np.isfinite(a).all()


def test_normals_never_change_silently():
    found = normals(Stream(2024), 3, 5, (4,), "float64")
    np.testing.assert_allclose(found, GOLDEN, rtol=1e-13)


GOLDEN = [0.6652268054916018, 0.9241211872840738, -0.18382872933693503, 0.4484100916757986]


# Statistics ---------------------------------------------------------------------------------------------


def test_gaussian_noise(backend):
    y = backend.host(GaussianNoise(0.5, seed=1)(backend.array(X, "float32"), training=True))
    n = (y - X.astype(np.float32)) / 0.5
    near(n.mean(), 0, 1 / math.sqrt(X.size))
    near(n.var(), 1, math.sqrt(2 / X.size))
    near((n * X).mean(), 0, 1 / math.sqrt(X.size))


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_gaussian_dropout(backend, rate):
    m = backend.host(GaussianDropout(rate, seed=1)(backend.array(np.ones(X.shape), "float32"), training=True))
    variance = rate / (1 - rate)
    near(m.mean(), 1, math.sqrt(variance / m.size))
    near(m.var(), variance, variance * math.sqrt(2 / m.size))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_alpha_dropout_keeps_mean_and_variance(backend, rate):
    layer = AlphaDropout(rate, seed=1)
    y = backend.host(layer(backend.array(X, "float32"), training=True))
    near(y.mean(), X.mean(), 2 / math.sqrt(X.size))
    near(y.var(), X.var(), 4 / math.sqrt(X.size))
    p = -1.7580993408473766
    a = ((1 - rate) * (1 + rate * p * p)) ** -0.5
    dropped = np.isclose(y, a * p - a * p * rate, rtol=1e-5)
    near(dropped.mean(), rate, math.sqrt(rate * (1 - rate) / X.size))
    np.testing.assert_allclose(y[~dropped], (a * X - a * p * rate)[~dropped], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_inference_changes_nothing(backend, name):
    x = backend.array(X[:5], "float32")
    np.testing.assert_array_equal(backend.host(NAMES[name]()(x)), backend.host(x))


@pytest.mark.parametrize("layer", [GaussianNoise(0), GaussianDropout(0), AlphaDropout(0), SpatialDropout1D(0)])
def test_a_rate_of_0_draws_nothing(backend, layer):
    x = backend.array(X[:5], "float32")
    np.testing.assert_array_equal(backend.host(layer(x, training=True)), backend.host(x))
    assert layer.draws == []


# Masks of other shapes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Dropout, AlphaDropout])
@pytest.mark.parametrize("shape", [(None, 1, None), (None, 4, 1), (1, None, None), (1, 1, 6), (8, 1, 1)])
def test_noise_shape(backend64, cls, shape):
    """Along axes of size 1 all inputs are dropped together, and elsewhere not."""
    layer, x = cls(0.5, shape, seed=2), np.ones((8, 4, 6))
    y = backend64.host(layer(backend64.array(x), training=True))
    for axis, size in enumerate(shape):
        first = np.take(y, [0], axis)
        assert (y == first).all() == (size == 1)
    check_gradients(layer, (8, 4, 6), backend=backend64)


def test_spatial_dropout_drops_features_of_whole_sequences(backend):
    layer = SpatialDropout1D(0.4, seed=1)
    y = backend.host(layer(backend.array(np.ones((500, 7, 3)), "float32"), training=True))
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
    np.testing.assert_allclose(y[y != 0], 1 / 0.6, rtol=1e-6)
    near((y[:, 0] != 0).mean(), 0.6, math.sqrt(0.24 / 1500))


@pytest.mark.parametrize(
    ("call", "error", "ends"),
    [
        (lambda: Dropout(0.5, (None, 2, 6))(np.ones((3, 4, 6))), ShapeError,
         "must be 1, None or that of the inputs, ('batch', 4, 6); got noise_shape (None, 2, 6)"),
        (lambda: Dropout(0.5, (None, 1))(np.ones((3, 4, 6))), ShapeError, "got noise_shape (None, 1)"),
        (lambda: Dropout(0.5, (8, 1, 1))(np.ones((3, 4, 6)), training=True), ShapeError,
         "noise_shape is for batches of 8 rows; got 3"),
        (lambda: AlphaDropout(0.5, 3), InvalidTypeError, "must be a tuple of integers and None; got 3"),
        (lambda: AlphaDropout(0.5, (None, 0)), InvalidValueError, "noise_shape must be an integer >= 1; got 0"),
        (lambda: AlphaDropout(1), InvalidValueError, "rate must be a finite number >= 0 and < 1; got 1"),
        (lambda: GaussianDropout(1.0), InvalidValueError, "got 1.0"),
        (lambda: GaussianNoise(-0.1), InvalidValueError, "stddev must be a finite number >= 0; got -0.1"),
        (lambda: GaussianNoise(0.1, -1), InvalidValueError, "seed must be an integer >= 0; got -1"),
        (lambda: SpatialDropout1D(2), InvalidValueError, "got 2"),
        (lambda: ActivityRegularization(-1), InvalidValueError, "l1 must be a finite number >= 0; got -1"),
    ],
)  # fmt: skip
def test_errors(call, error, ends):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).endswith(ends)


# Seeds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_of_the_layers_own(name):
    """The layer's draws follow from its seed and the step, and no longer from the model's seed."""

    def drawn(model_seed, step, **own):
        model = xn.Sequential([Input((3,)), NAMES[name](**own)], seed=model_seed)
        (values,) = model.network.masks(model.session.stream, step, 50, "float64").values()
        return values.tobytes()

    nine, eight = {"seed": 9}, {"seed": 8}
    assert drawn(1, 0, **nine) == drawn(2, 0, **nine)
    assert len({drawn(1, 0, **nine), drawn(1, 1, **nine), drawn(1, 0, **eight), drawn(1, 0), drawn(2, 0)}) == 5
    layer = NAMES[name](seed=4)
    np.testing.assert_array_equal(layer(X, training=True), layer(X, training=True))
    assert (NAMES[name]()(X, training=True) != NAMES[name]()(X, training=True)).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_noise_has_the_models_precision(backend, dtype):
    seen = []

    class Own(Stateless):
        def build(self, input_shape):
            self.add_draw("noise", input_shape)
            return input_shape

        def call(self, ctx, x):
            seen.append(str(ctx.draw("noise").dtype).rpartition(".")[2])
            return x, lambda dy: dy

    model = xn.Sequential([Input((4,)), Own()], dtype=dtype)
    model.compile("sgd", "mse")
    model.fit(X[:8, :4], X[:8, :4], batch_size=4, verbose=0)
    assert set(seen) == {dtype}


def test_every_step_has_noise_of_its_own(backend):
    """With a rate of 0 the weights stay, and the loss of a model that gives 0 is the noise's variance."""
    losses = []
    for seed in (1, 1, 2):
        model = xn.Sequential([Input((4,)), GaussianNoise(2.0)], seed=seed)
        model.compile("sgd", "mse")
        x = np.zeros((1000, 4), np.float32)
        losses.append(model.fit(x, x, batch_size=500, epochs=2, verbose=0).history["loss"])
    assert losses[0] == losses[1]
    assert len({value for history in losses for value in history}) == 4
    for value in losses[0]:
        near(value, 4, 4 * math.sqrt(2 / 4000))
    assert model.evaluate(x, x, verbose=0) == 0


# What layers add to the objective -----------------------------------------------------------------------


def trained(layers, x, y, loss="mse", epochs=5, dtype="float64"):
    """Return weights and losses of a model that begins with weights by their order alone."""
    model = xn.Sequential([Input(x.shape[1:]), *layers], seed=3, dtype=dtype)
    rng = np.random.default_rng(1)
    model.set_weights([rng.standard_normal(w.shape) for w in model.get_weights()])
    model.compile("sgd", loss)
    history = model.fit(x, y, batch_size=len(x), epochs=epochs, verbose=0, shuffle=False)
    return model.get_weights(), np.array(history.history["loss"])


def test_the_penalty_on_outputs_is_part_of_the_loss(backend):
    x, y = RNG.standard_normal((6, 3)), np.zeros((6, 2))
    model = xn.Sequential([Input((3,)), Dense(2), ActivityRegularization(0.5, 0.25)], seed=1, dtype="float64")
    model.compile("sgd", "mse")
    a = x @ model.get_weights()[0]
    wanted = (a * a).mean() + (0.5 * np.abs(a).sum() + 0.25 * (a * a).sum()) / 6
    assert model.evaluate(x, y, verbose=0) == pytest.approx(wanted, rel=1e-12)
    kernel, bias = model.get_weights()
    loss = model.fit(x, y, batch_size=6, epochs=1, verbose=0).history["loss"][0]
    assert loss == pytest.approx(wanted, rel=1e-12)
    da = 2 * a / a.size + (0.5 * np.sign(a) + 0.5 * a) / 6
    assert_close(model.get_weights()[0], kernel - 0.01 * x.T @ da)
    assert_close(model.get_weights()[1], bias - 0.01 * da.sum(0))


def test_sample_weights_leave_the_penalty_alone():
    x, y = np.ones((4, 3)), np.zeros((4, 3))
    model = xn.Sequential([Input((3,)), ActivityRegularization(l1=1.0)], dtype="float64")
    model.compile("sgd", "mse")
    assert model.evaluate(x, y, sample_weight=np.zeros(4), verbose=0) == pytest.approx(3.0)


@pytest.mark.parametrize("kind", [L1(0.1), L2(0.1), L1L2(0.1, 0.2)])
def test_dense_with_a_penalty_is_dense_and_a_layer(backend, kind):
    x, y = RNG.standard_normal((8, 3)), np.eye(4)[RNG.integers(0, 4, 8)]
    own = [Dense(5, "tanh", activity_regularizer=kind), Dense(4, "softmax", activity_regularizer=kind)]
    apart = [layer for part in (Dense(5, "tanh"), Dense(4, "softmax"))
             for layer in (part, ActivityRegularization(kind.l1, kind.l2))]  # fmt: skip
    found, wanted, plain = (
        trained(layers, x, y, "categorical_crossentropy") for layers in (own, apart, apart[::2])
    )
    assert_close(found[1], wanted[1], rtol=1e-12)
    assert (found[1] > plain[1] + 0.01).all()
    for a, b in zip(found[0], wanted[0], strict=True):
        assert_close(a, b, rtol=1e-12)


def test_a_penalty_on_softmax_is_on_its_outputs():
    """Not on the scores, from which the loss would otherwise start."""
    layer = Dense(3, "softmax", activity_regularizer="l2")
    assert layer.without_activation("softmax") is None
    layer.activity_regularizer = None
    assert layer.without_activation("softmax") is not None


@pytest.mark.parametrize("policy", POLICIES)
def test_a_scaled_loss_has_the_same_penalty(backend, policy):
    """The derivative of the penalty is scaled as the loss is."""
    x, y = 0.3 * RNG.standard_normal((8, 3)), np.zeros((8, 2))  # no derivative overflows float16
    found, wanted = (
        trained([Dense(2), ActivityRegularization(l2=2.0)], x, y, epochs=20, dtype=dtype)[1]
        for dtype in (policy, "float32")
    )
    np.testing.assert_allclose(found, wanted, rtol=0.05)
    assert found[-1] < 0.9 * found[0]


def test_the_guard_names_the_penalty():
    model = xn.Sequential([Input((2,)), Dense(2, kernel_initializer="ones"), ActivityRegularization(l2=1e30)])
    model.compile("sgd", "mse")
    with pytest.raises(NonFiniteError, match="the penalty on outputs"):
        model.fit(np.full((4, 2), 1e8, np.float32), np.zeros((4, 2)), verbose=0)


def test_a_layer_of_ones_own_adds_a_term(backend64):
    class Centred(Stateless):
        """y = x, and the objective grows by the square of its mean."""

        def call(self, ctx, x):
            mean = ctx.xp.mean(x)
            slope = ctx.xp.zeros_like(x) + 2.0 * mean / math.prod(x.shape)
            return x, ctx.add_loss(mean * mean, slope)

    check_gradients(Centred(), (5, 3), backend=backend64)
    ctx = Context(backend64, True)
    _, backward = Centred().call(ctx, backend64.array(np.full((2, 2), 3.0)))
    assert [float(backend64.host(v)) for v in ctx.losses] == [9.0]
    ctx.loss_scale = backend64.scalar(4.0)
    assert_close(backward(backend64.array(np.ones((2, 2)))), backend64.array(np.full((2, 2), 7.0)))
    assert ctx.restart({}).losses == []
