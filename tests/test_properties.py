"""What holds for every part and all numbers: found by searching for what breaks it."""

import cases
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from xpnet.backend import get_backend
from xpnet.core.random import Stream
from xpnet.kernels.context import Context
from xpnet.testing import assert_close

BACKEND = get_backend()
COMPILED = BACKEND.name == "jax"  # each operation for each shape, so that few must do
FEW = settings(
    max_examples=3 if COMPILED else 40, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip

TRAINABLE = [name for name in cases.ACTIVATIONS if name != "step"]
FINITE = [name for name in TRAINABLE if name != "exponential"]
LARGE = st.floats(-1e4, 1e4, width=32)
ANY = array_shapes(min_dims=2, max_dims=3, max_side=4).map(lambda s: (*s[:-2], 2 * s[-2], 2 * s[-1]))

SHAPES = st.just((2, 4, 6)) if COMPILED else ANY


def numbers(shape=SHAPES):
    return arrays(np.float32, shape, elements=LARGE)


# Activations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FINITE)
@FEW
@given(z=numbers())
def test_values_and_gradients_are_finite(name, z):
    f, xp = cases.ACTIVATIONS[name][0], BACKEND.xp
    on = BACKEND.array(z)
    with np.errstate(all="ignore"):
        a = f.forward(xp, on)
        dz = f.backward(xp, xp.ones_like(a), on, a)
    assert a.shape == f.output_shape(z.shape)
    assert dz.shape == z.shape
    assert np.isfinite(BACKEND.host(a)).all()
    assert np.isfinite(BACKEND.host(dz)).all()


@pytest.mark.parametrize("name", ["softmax", "softmax_columns", "sparsemax", "sparsemax_columns"])
@FEW
@given(z=numbers())
def test_probabilities_sum_to_1(name, z):
    f = cases.ACTIVATIONS[name][0]
    p = BACKEND.host(f(BACKEND.array(z)))
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(f.axis), 1.0, rtol=3e-6)


@pytest.mark.parametrize("name", ["log_softmax", "log_softmax_columns"])
@FEW
@given(z=numbers())
def test_logarithms_of_probabilities(name, z):
    f = cases.ACTIVATIONS[name][0]
    logs = BACKEND.host(f(BACKEND.array(z)))
    assert (logs <= 0).all()
    np.testing.assert_allclose(np.exp(logs).sum(f.axis), 1.0, rtol=3e-6)


@pytest.mark.parametrize("name", TRAINABLE)
@FEW
@given(shape=array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3), rows=st.integers(0, 2))
def test_activations_with_leading_axes(name, shape, rows):
    """Of any sizes, 0 and 1 among them: each matrix as it would be alone."""
    f = cases.ACTIVATIONS[name][0]
    z = np.random.default_rng(rows).standard_normal((*shape, 2 * rows, 4)).astype(np.float32)
    if rows == 0 and name.endswith("columns"):
        return  # nothing has no maximum
    a = f(BACKEND.array(z))
    assert a.shape == f.output_shape(z.shape)
    for index in np.ndindex(shape):
        assert_close(BACKEND.host(a)[index], BACKEND.host(f(BACKEND.array(z[index]))), rtol=1e-6, atol=1e-7)


# Layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("name", cases.LAYERS)
def test_layers_of_empty_and_one_row_batches(name, lead, rows, training):
    """Alone, and as several models along a leading axis."""
    layer = cases.LAYERS[name]()
    shape = layer.ensure_built((3,))
    if training and not rows and any(not spec.trainable for spec in layer.specs):
        return  # no rows have no mean
    x = np.full((*lead, rows, 3), 0.5 if layer.classes is None else 1.0, np.float32)
    x = BACKEND.array(x)
    masks = {
        f"0/{d.name}": np.broadcast_to(d.draw(Stream(1), 0, 0, rows, "float32"), (*lead, rows, *d.shape))
        for d in layer.draws
    }
    params = {s.name: s.initializer.values(Stream(1), i, s.shape) for i, s in enumerate(layer.specs)}
    params = {k: BACKEND.array(np.broadcast_to(v, (*lead, *v.shape)), "float32") for k, v in params.items()}
    ctx = Context(BACKEND, training, {k: BACKEND.array(v) for k, v in masks.items()})
    with np.errstate(all="ignore"):
        y, backward = layer.forward(ctx, params, x)
        dx, grads = backward(BACKEND.xp.ones_like(y), {})
    assert y.shape == (*lead, rows, *shape)
    assert dx.shape == x.shape
    assert {k: v.shape for k, v in grads.items()} == {k: params[k].shape for k in grads}
    if rows:
        assert np.isfinite(BACKEND.host(y)).all()
        assert np.isfinite(BACKEND.host(dx)).all()
