"""What holds for every loss, whatever its numbers: signs, finite derivatives, rows, empty batches (hypothesis)."""

import numpy as np
import pytest
from cases import LOSSES
from hypothesis import given, settings
from hypothesis import strategies as st

from xpnet.backend import get_backend
from xpnet.losses import GaussianNLL, SparseCategoricalCrossentropy
from xpnet.testing import assert_close

COMPILED = get_backend().name == "jax"  # each operation for each shape, so that few must do
UNITS = 4
MAY_BE_NEGATIVE = {"cosine", "poisson", "poisson_logs", "gaussian", "gaussian_full", "gaussian_logs"}
OVERFLOWS = {"poisson_logs"}  # exp
# what the predictions of a loss are, where they are not any numbers
PROBABILITIES = ("focal", "bce", "dice", "tversky")
SHARES = ("cce", "sparse", "kld", "focal_classes")
POSITIVE = ("poisson", "msle", "gaussian", "gaussian_full")
REDUCTIONS = ["sum_over_batch_size", "sum", "mean_with_sample_weight", "none"]
LARGE = st.floats(-1e4, 1e4, width=32)
UNIT = st.floats(0, 1, width=32)


def kind(name):
    """Return what kind of predictions the loss of a row takes."""
    if "logits" in name or "logs" in name:
        return "any"
    for kind, names in (("share", SHARES), ("positive", POSITIVE), ("probability", PROBABILITIES)):
        if name in names or any(name.startswith(f"{n}_") for n in names):
            return kind
    return "any"


def predictions(draw, name, rows):
    size = rows * UNITS
    made = kind(name)
    numbers = UNIT if made in ("share", "probability") else LARGE
    p = np.array(draw(st.lists(numbers, min_size=size, max_size=size)), np.float32).reshape(rows, UNITS)
    if made == "share":
        p = p + np.float32(1e-3)
        p = p / p.sum(-1, keepdims=True)
    return np.abs(p) if made == "positive" else p


def targets(draw, name, rows):
    """Return targets as those of the row are: labels, bits, shares or numbers."""
    cls, _, y, _ = LOSSES[name]
    if cls is SparseCategoricalCrossentropy:
        return np.array(draw(st.lists(st.integers(0, UNITS - 1), min_size=rows, max_size=rows)), np.int32)
    units = y.shape[-1]
    chosen = draw(st.lists(st.integers(0, len(y) - 1), min_size=rows, max_size=rows))
    return np.asarray(y[chosen], np.float32).reshape(rows, units)


@st.composite
def batches(draw, name):
    rows = draw(st.sampled_from((3,) if COMPILED else (1, 3)))
    return targets(draw, name, rows), predictions(draw, name, rows)


def made(name, **more):
    cls, kwargs, *_ = LOSSES[name]
    return cls(**kwargs, **more)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=2 if COMPILED else 25, deadline=None, derandomize=True)
@given(data=st.data())
def test_values_and_derivatives(name, data):
    """In float32: finite for |x| <= 1e4, and not negative where the mathematics says so."""
    y, p = data.draw(batches(name))
    backend = get_backend(dtype="float32")
    values, grad = (backend.host(a) for a in made(name, reduction="none").value_and_grad(y, backend.array(p)))
    assert values.dtype == grad.dtype == np.float32
    if name not in OVERFLOWS or p.max() < 80:
        assert np.isfinite(values).all(), (y, p, values)
        assert np.isfinite(grad).all(), (y, p, grad)
    if name not in MAY_BE_NEGATIVE:
        # rounding of sums to which positive and negative terms add up
        slack = 1e-6 if name in ("dice", "tversky") or name.startswith("kld") else 0.0
        assert (values >= -slack).all(), (y, p, values)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=2 if COMPILED else 10, deadline=None, derandomize=True)
@given(data=st.data())
def test_rows_do_not_depend_on_each_other(name, data):
    """A batch is its rows: one at a time, together, or along leading axes."""
    y, p = data.draw(batches(name))
    y, p = np.concatenate([y, y]), np.concatenate([p, p])
    backend = get_backend(dtype="float64")
    loss, rows = made(name, reduction="none"), len(p) // 2
    value, grad = (backend.host(a) for a in loss.value_and_grad(y, backend.array(p, "float64")))
    one, one_grad = loss.value_and_grad(y[:1], backend.array(p[:1], "float64"))
    assert_close(backend.host(one), value[:1], rtol=1e-12)
    assert_close(backend.host(one_grad), grad[:1], rtol=1e-12)
    shape = (2, rows)
    deep, deep_grad = loss.value_and_grad(
        y.reshape(*shape, *y.shape[1:]), backend.array(p.reshape(*shape, UNITS), "float64")
    )
    assert_close(backend.host(deep), value.reshape(shape), rtol=1e-12)
    assert_close(backend.host(deep_grad), grad.reshape(*shape, UNITS), rtol=1e-12)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "none"] if COMPILED else REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_batch_costs_nothing(backend, name, reduction):
    cls, _, y, _ = LOSSES[name]
    for weight in (None, np.zeros(0, np.float32)):
        value, grad = made(name, reduction=reduction).value_and_grad(
            y[:0].astype(np.int32 if cls.sparse else np.float32), backend.zeros((0, UNITS)), weight
        )
        assert tuple(value.shape) == ((0,) if reduction == "none" else ())
        assert not np.any(backend.host(value))
        assert tuple(grad.shape) == (0, UNITS)


@settings(max_examples=2 if COMPILED else 50, deadline=None, derandomize=True)
@given(st.lists(LARGE, min_size=3, max_size=3))
def test_a_variance_may_be_any_number(numbers):
    """Below `eps`, or as a logarithm: value and derivative stay finite."""
    m, v, y = (np.float32(a) for a in numbers)
    for loss in (GaussianNLL(), GaussianNLL(log_variance=True)):
        value, grad = loss.value_and_grad(np.array([[y]]), np.array([[m, v]]))
        assert np.isfinite(value)
        assert np.isfinite(grad).all()
