"""Mixed precision: products of factors rounded to 16 bits, everything else in float32."""

import copy
import pickle

import numpy as np
import pytest

import xpnet as xn
from xpnet import ops
from xpnet.backend import BACKENDS, get_backend
from xpnet.context import Context
from xpnet.errors import BackendError, UnknownNameError
from xpnet.layers import BatchNormalization, Dense, Dropout

HERE = get_backend(dtype="float32")
HAS_FLOAT16 = hasattr(HERE.xp, "float16")
POLICIES = ["mixed_bfloat16", *(["mixed_float16"] if HAS_FLOAT16 else [])]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 6)).astype(np.float32)
CLASSES = np.argmax(X[:, :3], axis=1)


def bits(a, policy):
    """Return float32 numbers rounded to the nearest of 16 bits, in float64; at a tie to the even one."""
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
        pytest.skip("this library has it")
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
    """Where a library has no bfloat16; ties may go the other way."""
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
    """It learns as float32 does; weights and results are float32."""
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
    """Losses of all libraries that are here are near each other."""
    curves = []
    for name in BACKENDS:
        try:
            model = model_of("mixed_bfloat16", backend=name)
        except BackendError:
            continue
        curves.append(model.fit(X, CLASSES, batch_size=16, epochs=5, verbose=0).history["loss"])
    for curve in curves[1:]:
        np.testing.assert_allclose(curve, curves[0], rtol=5e-3)
