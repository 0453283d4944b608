"""Penalties on the weights: l1 * sum(|w|) + l2 * sum(w^2)."""

import numpy as np
import pytest

from xpnet import regularizers
from xpnet.errors import InvalidTypeError, InvalidValueError, UnknownNameError
from xpnet.kernels.context import Context
from xpnet.regularizers import L1, L1L2, L2
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
    ],
)
def test_errors(make, error, ends):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value).endswith(ends)
