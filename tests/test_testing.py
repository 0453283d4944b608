"""The test helpers detect errors."""

import numpy as np
import pytest
from cases import REGULARIZERS

from xpnet.backend import get_backend
from xpnet.layers import Dense, Layer
from xpnet.losses import MeanSquaredError
from xpnet.regularizers import OrthogonalRegularizer
from xpnet.testing import assert_close, check_gradients

ONE = np.array([1.0, 2.0])


@pytest.mark.parametrize(
    ("actual", "expected", "says"),
    [
        (ONE, [1.0, 2.0], None),
        (ONE, ONE + 1e-13, None),
        (ONE, [1.0, 2.0 + 1e-6], "Not equal to tolerance"),
        (ONE, ONE[None], r"shape: expected \(1, 2\); got \(2,\)"),
        (np.float64(1.0), 1.0, None),
        (ONE, ONE.astype("float32"), "dtype: expected float32; got float64"),
        (ONE.astype("float32"), (ONE * (1 + 1e-5)).astype("float32"), None),
        (ONE.astype("float32"), (ONE * (1 + 1e-3)).astype("float32"), "Not equal to tolerance"),
        (np.array([1, 2]), [1, 2], None),
        (np.array([1, 2]), [1, 3], "Not equal to tolerance"),
        (np.array([True]), [False], "Not equal"),
        (np.array([np.nan]), [np.nan], None),
        (np.array([np.nan]), [0.0], "Not equal|nan location"),
        (np.array([np.inf]), [1e300], "Not equal|inf location"),
    ],
)
def test_assert_close(actual, expected, says):
    if says is None:
        assert_close(actual, expected)
    else:
        with pytest.raises(AssertionError, match=says):
            assert_close(actual, expected)


def test_assert_close_sees_another_library_or_device(backend):
    here, there = backend.array(ONE), ONE
    if backend.name == "numpy":
        strict = pytest.importorskip("array_api_strict")
        there = strict.asarray(ONE)
        with pytest.raises(AssertionError, match=r"device: expected .*device1.*; got "):
            assert_close(there, strict.asarray(ONE, device=strict.Device("device1")))
    with pytest.raises(AssertionError, match=r"library: expected .*; got "):
        assert_close(here, there)
    assert_close(here, there, check_library=False)


def test_assert_close_options():
    assert_close(ONE, ONE.astype("float32"), check_dtype=False)
    assert_close(ONE, [1.0, 2.1], atol=0.2)
    assert_close(ONE, [1.0, 2.1], rtol=0.1)
    with pytest.raises(AssertionError, match="my message"):
        assert_close(ONE, ONE[:1], message="my message")


class Wrong(Layer):
    """y = x * scale, with derivatives multiplied by the factors in `break_`."""

    def __init__(self, dx=1.0, dscale=1.0, shape=None, drop=False):
        super().__init__()
        self.dx, self.dscale, self.shape, self.drop = dx, dscale, shape, drop

    def build(self, input_shape):
        self.add_weight("scale", input_shape, "ones")
        return input_shape

    def forward(self, ctx, params, x):
        scale = params["scale"]

        def backward(dy, into, want_dx=True):
            d = self.dscale * ctx.xp.sum(dy * x, axis=-2)
            d = d if self.shape is None else ctx.xp.reshape(d, self.shape)
            return self.dx * dy * scale, {} if self.drop else {"scale": d}

        return x * scale, backward


def test_check_gradients_accepts_what_is_right(backend64):
    check_gradients(Wrong(), (5, 3), backend=backend64)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"dx": 1.0 + 1e-4}, r"derivative along x \(the input\) should be .*; got "),
        ({"dx": -1.0}, r"derivative along x \(the input\)"),
        ({"dx": float("nan")}, r"derivative along x \(the input\) should be .*; got nan"),
        ({"dscale": 0.999}, "derivative along scale should be"),
        ({"shape": (1, 3)}, r"gradient of scale must have shape \(3,\); got \(1, 3\)"),
        ({"shape": (3, 1)}, r"gradient of scale must have shape \(3,\); got \(3, 1\)"),
        ({"drop": True}, r"returned no gradient for \['scale'\]; got \[\]"),
    ],
)
def test_check_gradients_finds_what_is_wrong(backend64, kwargs, says):
    with pytest.raises(AssertionError, match=says):
        check_gradients(Wrong(**kwargs), (5, 3), backend=backend64)


def test_check_gradients_finds_a_wrong_loss(backend64):
    class Half(MeanSquaredError):
        def terms(self, ctx, y, p, weight):
            value, slope = super().terms(ctx, y, p, weight)
            return value, 0.5 * slope

    y = np.zeros((4, 2))
    check_gradients(MeanSquaredError(), (4, 2), y_true=y, backend=backend64)
    with pytest.raises(AssertionError, match="derivative along y_pred should be"):
        check_gradients(Half(), (4, 2), y_true=y, backend=backend64)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_check_gradients_of_regularizers(backend64, name):
    check_gradients(REGULARIZERS[name][0], (4, 3), backend=backend64)


def test_check_gradients_finds_a_wrong_regularizer(backend64):
    class Wider(OrthogonalRegularizer):
        def at(self, ctx, w):
            value, slope = super().at(ctx, w)
            return value, 1.01 * slope

    with pytest.raises(AssertionError, match="the derivative along w should be"):
        check_gradients(Wider(1.0), (4, 3), backend=backend64)


def test_check_gradients_takes_inputs_and_a_tolerance(backend64):
    check_gradients(Wrong(dx=1.01), (5, 3), backend=backend64, tolerance=0.1)
    with pytest.raises(AssertionError):  # relu's derivative at 0 differs from that of either side
        check_gradients(Dense(4, "relu", use_bias=False), (5, 3), inputs=np.zeros((5, 3)), backend=backend64)


def test_check_gradients_works_on_the_chosen_backend():
    check_gradients(Dense(2), (3, 2), backend=get_backend("numpy"))
    check_gradients(Dense(2), (3, 2), backend="numpy")
