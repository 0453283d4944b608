"""Mixed precision: products of factors rounded to 16 bits, everything else in float32."""

import copy
import pickle

import numpy as np
import pytest

import xpnet as xn
from xpnet.backend import BACKENDS, get_backend
from xpnet.core import ops
from xpnet.errors import BackendError, NonFiniteError, UnknownNameError
from xpnet.kernels.context import Context
from xpnet.layers import BatchNormalization, Dense, Dropout

HERE = get_backend(dtype="float32")
HAS_FLOAT16 = hasattr(HERE.xp, "float16")
POLICIES = ["mixed_bfloat16", *(["mixed_float16"] if HAS_FLOAT16 else [])]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 6)).astype(np.float32)
CLASSES = np.argmax(X[:, :3], axis=1)


def bits(a, policy):
    """Return float32 numbers rounded to 16 bits, ties to even, in float64."""
    if policy == "mixed_float16":
        return a.astype(np.float16).astype(np.float64)
    raw = a.astype(np.float32).view(np.uint32)
    return ((raw + 0x7FFF + (raw >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)


def model_of(policy, backend=None, optimizer="adam"):
    layers = [Dense(8, activation="tanh"), BatchNormalization(), Dropout(0.2), Dense(3, activation="softmax")]
    model = xn.Sequential(layers, seed=1, dtype=policy, backend=backend)
    model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"])
    return model


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_names_two_precisions(policy):
    backend = get_backend(dtype=policy)
    assert (backend.policy, backend.dtype_name, backend.narrow) == (policy, "float32", policy[6:])
    assert backend.dtype == HERE.dtype
    assert policy in repr(backend)
    assert pickle.loads(pickle.dumps(backend)) is backend
    assert backend.with_dtype("float32").narrow is None
    assert backend.with_dtype(policy) is backend
    with xn.use_backend(HERE.name, HERE.device_name, dtype=policy):
        assert get_backend().narrow == policy[6:]
    assert get_backend("numpy", dtype="float64").narrow is None


def test_the_environment_may_say_it(monkeypatch):
    monkeypatch.setenv("XPNET_DTYPE", "mixed_bfloat16")
    assert get_backend().narrow == "bfloat16"
    model = xn.Sequential([Dense(2)])
    model.build((3,))
    assert model.backend.policy == "mixed_bfloat16"


def test_names_that_are_not_known():
    with pytest.raises(UnknownNameError, match=r"did you mean 'mixed_float16'.*got 'mixed_float61'"):
        get_backend(dtype="mixed_float61")
    with pytest.raises(UnknownNameError, match="got 'bfloat16'"):
        xn.Sequential([Dense(2)], dtype="bfloat16").build((3,))


def test_a_library_without_float16():
    if HAS_FLOAT16:
        pytest.skip("this library has float16")
    with pytest.raises(BackendError, match=r"no float16; use 'mixed_bfloat16'.*got 'mixed_float16'"):
        get_backend(dtype="mixed_float16")


@pytest.mark.parametrize("policy", POLICIES)
def test_factors_are_rounded_and_sums_are_not(policy):
    ctx = Context(get_backend(dtype=policy))
    a, b = RNG.standard_normal((7, 200)).astype(np.float32), RNG.standard_normal((200, 5)).astype(np.float32)
    found = ops.product(ctx, *(ctx.backend.array(m) for m in (a, b)))
    assert found.dtype == HERE.dtype
    exact = bits(a, policy) @ bits(b, policy)
    np.testing.assert_allclose(np.asarray(ctx.backend.host(found)), exact, rtol=1e-5, atol=1e-5)
    assert np.abs(exact - a.astype(np.float64) @ b).max() > 1e-3


def test_eight_bits_without_a_dtype_of_eight_bits():
    """For libraries without bfloat16; ties may round the other way."""
    numpy = Context(get_backend("numpy", dtype="mixed_bfloat16"))
    a = np.concatenate([RNG.standard_normal(1000), 10.0 ** RNG.uniform(-37, 33, 1000), [0.0, -0.0]])
    a = a.astype(np.float32)
    np.testing.assert_array_equal(ops._narrowed(numpy, a), bits(a, "mixed_bfloat16").astype(np.float32))


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_are_near_those_of_float32(policy):
    found = []
    for dtype in ("float32", policy):
        ctx = Context(get_backend(dtype=dtype), training=True)
        x, w, b, dy = (ctx.backend.array(a) for a in (X, X[:6, :4] * 0.5, X[0, :4], X[:, 2:]))
        y, backward = ctx.ops.affine(ctx, x, w, b, xn.activations.get("tanh"))
        dx, grads = backward(dy, {})
        found.append([np.asarray(ctx.backend.host(a)) for a in (y, dx, grads["kernel"], grads["bias"])])
    for exact, mixed in zip(*found):
        assert mixed.dtype == np.float32
        np.testing.assert_allclose(mixed, exact, rtol=0.05, atol=0.05)
    assert any((a != b).any() for a, b in zip(*found))


@pytest.mark.parametrize("policy", POLICIES)
def test_training(policy):
    """It learns as in float32; weights and results are float32."""
    losses = []
    for dtype in ("float32", policy):
        model = model_of(dtype, optimizer=xn.optimizers.Adam(0.02))
        losses.append(model.fit(X, CLASSES, batch_size=16, epochs=20, verbose=0).history["loss"])
        assert all(w.dtype == np.float32 for w in model.get_weights())
        assert model.predict(X).dtype == np.float32
    assert losses[1][-1] < 0.6 * losses[1][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
    assert losses[1] != losses[0]


@pytest.mark.parametrize("policy", POLICIES)
def test_files_copies_and_moves_keep_the_policy(policy, tmp_path):
    model = model_of(policy)
    model.fit(X, CLASSES, epochs=2, verbose=0)
    model.save(tmp_path / "mixed.safetensors")
    loaded = xn.load_model(tmp_path / "mixed.safetensors")
    for other in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.backend.policy == policy
        np.testing.assert_array_equal(other.predict(X), model.predict(X))
        other.fit(X, CLASSES, epochs=1, verbose=0)
    wide = xn.load_model(tmp_path / "mixed.safetensors", dtype="float32")
    assert wide.backend.policy == "float32"
    assert model.to("numpy").backend.policy == policy
    assert model.to(dtype="float32").backend.narrow is None
    for a, b in zip(wide.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_backends_agree():
    """The losses of all installed libraries are close."""
    curves = []
    for name in BACKENDS:
        try:
            model = model_of("mixed_bfloat16", backend=name)
        except BackendError:
            continue
        curves.append(model.fit(X, CLASSES, batch_size=16, epochs=5, verbose=0).history["loss"])
    for curve in curves[1:]:
        np.testing.assert_allclose(curve, curves[0], rtol=5e-3)


# The scale of the loss ----------------------------------------------------------------------------------

needs_float16 = pytest.mark.skipif(not HAS_FLOAT16, reason="this library has no float16")


def linear(policy, rate=0.01, **kwargs):
    """Return a model whose gradients scale with its targets."""
    layers = [Dense(4, use_bias=False), Dropout(0.5), Dense(1, use_bias=False, **kwargs)]
    model = xn.Sequential(layers, seed=1, dtype=policy)
    model.compile(xn.optimizers.SGD(rate), "mse")
    model.build((6,))
    return model


def state_of(model):
    """Return the step counter, the number of updates, the scale and the good steps in a row."""
    host = model.backend.host
    return [float(host(a)) for a in (model.state.step, model.state.age, *model.state.scale)]


@needs_float16
def test_gradients_that_are_too_small_for_16_bits_are_not_lost():
    targets = X[:, :1] * 1e-5
    moved = {}
    for policy in ("float32", "mixed_float16"):
        model = linear(policy)
        model.set_weights([w * 1e-5 for w in model.get_weights()])
        before = model.get_weights()
        model.fit(X, targets, batch_size=60, epochs=1, verbose=0)
        moved[policy] = [a - b for a, b in zip(model.get_weights(), before)]
    last = moved["mixed_float16"][1]
    assert np.abs(last).min() > 0
    np.testing.assert_allclose(last, moved["float32"][1], rtol=0.05, atol=1e-12)


@needs_float16
@pytest.mark.parametrize("graph", [True, False])
def test_gradients_that_are_too_large_make_the_scale_smaller(graph):
    """Such steps change no weight and do not end training; they count, so that the masks advance."""
    model, exact = linear("mixed_float16", 1e-6), linear("float32", 1e-6)
    model.compile(xn.optimizers.SGD(1e-6), "mse", graph=graph)
    before, (step, age, scale, streak) = model.get_weights(), state_of(model)
    assert (step, age, scale, streak) == (0, 0, ops.FIRST_SCALE, 0)
    targets = np.full((60, 1), 3000.0)
    history = model.fit(X, targets, batch_size=60, epochs=1, verbose=0, shuffle=False).history
    assert state_of(model) == [1, 0, ops.FIRST_SCALE / 2, 0]
    assert np.isfinite(history["loss"][0])  # no step was accepted, but its loss is finite
    for a, b in zip(model.get_weights(), before):
        np.testing.assert_array_equal(a, b)
    model.fit(X, targets, batch_size=60, epochs=19, verbose=0, shuffle=False)
    step, age, scale, streak = state_of(model)
    assert step == model.step == 20
    held = round(np.log2(ops.FIRST_SCALE / scale))
    assert 2 <= held <= 10
    assert (age, streak) == (20 - held, 20 - held)
    exact.session.state = exact.state._replace(step=exact.backend.count(held))  # the same masks for the same steps
    exact.fit(X, targets, batch_size=60, epochs=20 - held, verbose=0, shuffle=False)
    for a, b in zip(model.get_weights(), exact.get_weights()):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=2e-4)


@needs_float16
def test_what_no_scale_mends_ends_the_training():
    model = linear("mixed_float16", kernel_regularizer="l2")
    model.fit(X, X[:, :1], batch_size=20, epochs=1, verbose=0)
    model.set_weights([w * np.float32(1e6) for w in model.get_weights()])  # products beyond 65504
    before = model.get_weights()
    with pytest.raises(NonFiniteError, match="epoch 16, step 1 "):
        model.fit(X, X[:, :1], batch_size=60, epochs=30, verbose=0)
    assert state_of(model)[2] == 1.0
    for a, b in zip(model.get_weights(), before):
        np.testing.assert_array_equal(a, b)


@needs_float16
def test_good_steps_make_the_scale_larger(monkeypatch):
    monkeypatch.setattr(ops, "GOOD_STEPS", 3.0)
    monkeypatch.setattr(ops, "LARGEST_SCALE", 4 * ops.FIRST_SCALE)
    model, seen = linear("mixed_float16"), []
    for _ in range(10):
        model.train_on_batch(X, X[:, :1] * 0.01)
        seen.append(state_of(model)[2:])
    first = ops.FIRST_SCALE
    assert seen[:7] == [[first, 1], [first, 2], [2 * first, 0], [2 * first, 1], [2 * first, 2], [4 * first, 0],
                        [4 * first, 1]]  # fmt: skip
    assert seen[8:] == [[4 * first, 0], [4 * first, 1]]


@needs_float16
def test_penalties_are_not_scaled():
    found = []
    for policy in ("float32", "mixed_float16"):
        model = linear(policy, kernel_regularizer="l2")
        model.fit(X, X[:, :1], batch_size=20, epochs=3, verbose=0)
        found.append(model.get_weights())
    for a, b in zip(*found):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=1e-3)


@needs_float16
def test_clipping_is_of_the_gradient_as_it_is():
    found = []
    for policy in ("float32", "mixed_float16"):
        model = linear(policy)
        model.compile(xn.optimizers.SGD(0.1, global_clipnorm=0.01), "mse")
        model.fit(X, X[:, :1] * 5, batch_size=20, epochs=3, verbose=0)
        found.append(model.get_weights())
    for a, b in zip(*found):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=1e-3)


@needs_float16
def test_the_scale_is_kept_in_files_copies_and_moves(tmp_path):
    model = linear("mixed_float16", 1e-6)
    model.fit(X, np.full((60, 1), 3000.0), batch_size=60, epochs=4, verbose=0)
    scale = state_of(model)[2:]
    assert scale[0] < ops.FIRST_SCALE
    model.save(tmp_path / "scaled.safetensors")
    for other in (xn.load_model(tmp_path / "scaled.safetensors"), copy.deepcopy(model), model.to("numpy")):
        assert state_of(other)[2:] == scale
    assert model.to(dtype="float32").state.scale == ()
    assert state_of(model.to(dtype="mixed_float16"))[2:] == [ops.FIRST_SCALE, 0]
