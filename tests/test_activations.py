"""Activations: values, derivatives, limits, and the caller's library and dtype."""

import numpy as np
import pytest
from cases import ACTIVATIONS

from xpnet import activations
from xpnet.activations import Activation, LeakyReLU
from xpnet.backend import library_of
from xpnet.errors import InvalidTypeError, InvalidValueError, UnknownNameError
from xpnet.testing import assert_close

Z = np.array([[-30.0, -3.0, -1.0, -0.25], [0.25, 1.0, 3.0, 30.0]])

TRAINABLE = [name for name in ACTIVATIONS if name != "step"]


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_in_the_callers_library_and_dtype(backend, name, dtype):
    z = backend.array(Z, dtype)
    assert_close(activations.get(name)(z), backend.array(ACTIVATIONS[name](Z), dtype))


@pytest.mark.parametrize("name", [n for n in TRAINABLE if n != "softmax"])
def test_derivative_against_central_differences(backend64, name):
    f, h = activations.get(name), 1e-5
    z = np.array([-4.0, -1.0, -0.1, 0.1, 0.5, 2.0])
    value = ACTIVATIONS[name]
    numeric = (value(z + h) - value(z - h)) / (2 * h)
    assert_close(f.derivative(backend64.array(z)), backend64.array(numeric), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("slope", [0.3, 0.0, -0.3])
def test_slopes_of_both_signs(backend64, slope):
    """The derivative takes the sign of z from the output only if the output has it."""
    z = backend64.array([-2.0, -0.5, 0.0, 0.5, 2.0])
    wanted = backend64.array([slope, slope, slope, 1.0, 1.0])
    assert_close(LeakyReLU(slope).derivative(z), wanted)


def test_softmax_derivative_is_the_matrix(backend64):
    f, h = activations.get("softmax"), 1e-5
    z = np.random.default_rng(0).standard_normal((3, 2, 4))
    matrix = backend64.host(f.derivative(backend64.array(z)))
    assert matrix.shape == (3, 2, 4, 4)
    for j, e in enumerate(np.eye(4)):
        numeric = (ACTIVATIONS["softmax"](z + h * e) - ACTIVATIONS["softmax"](z - h * e)) / (2 * h)
        np.testing.assert_allclose(matrix[..., j], numeric, atol=1e-9)


@pytest.mark.parametrize("name", TRAINABLE)
def test_backward_is_the_derivative_transposed(backend64, name):
    f, h, rng = activations.get(name), 1e-6, np.random.default_rng(1)
    z, da, d = rng.uniform(0.1, 1, (5, 3)) * rng.choice([-1, 1], (5, 3)), *rng.standard_normal((2, 5, 3))
    on = backend64.array(z)
    dz = f.backward(backend64.xp, backend64.array(da), on, f.forward(backend64.xp, on))
    numeric = (da * (ACTIVATIONS[name](z + h * d) - ACTIVATIONS[name](z - h * d))).sum() / (2 * h)
    np.testing.assert_allclose((backend64.host(dz) * d).sum(), numeric, rtol=1e-7)


@pytest.mark.parametrize(
    ("name", "at", "value", "slope"),
    [
        ("relu", 0.0, 0.0, 0.0),
        ("relu", -0.0, 0.0, 0.0),
        ("leaky_relu", 0.0, 0.0, 0.01),
        ("leaky_relu", -2.0, -0.02, 0.01),
        ("leaky_relu", 2.0, 2.0, 1.0),
        ("sigmoid", 0.0, 0.5, 0.25),
        ("tanh", 0.0, 0.0, 1.0),
        ("tanh", 0.5, 0.46211715726000973, 0.7864477329659274),  # 1 - a^2, not (1 - a)^2 = 0.289
        ("linear", 7.0, 7.0, 1.0),
    ],
)
def test_by_hand(backend64, name, at, value, slope):
    f, z = activations.get(name), backend64.array([at])
    assert_close(f(z), backend64.array([value]))
    assert_close(f.derivative(z), backend64.array([slope]))


def test_step_is_0_at_0_and_cannot_be_trained_through(backend):
    f = activations.get("step")
    assert backend.host(f(backend.array([-1e-30, -0.0, 0.0, 1e-30], "float32"))).tolist() == [0, 0, 0, 1]
    with pytest.raises(InvalidValueError, match=r"can't be trained.*'perceptron'.*got activation 'step'$"):
        f.derivative(backend.array([1.0], "float32"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "limits"),
    [("sigmoid", (0.0, 1.0)), ("tanh", (-1.0, 1.0)), ("relu", (0.0, None)), ("step", (0.0, 1.0))],
)
@pytest.mark.parametrize("size", [1e3, 1e4, 1e30, np.inf])
def test_far_out_they_reach_their_limits(backend, dtype, name, limits, size):
    """Warnings are errors, so an overflow in exp would show."""
    f, z = activations.get(name), backend.array([-size, size], dtype)
    wanted = [limits[0], size if limits[1] is None else limits[1]]
    assert_close(f(z), backend.array(wanted, dtype), rtol=0, atol=0)
    if name != "step":
        assert_close(f.derivative(z), backend.array([0.0, float(name == "relu")], dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigmoid_is_accurate_in_its_tail(backend, dtype):
    z = np.array([-80.0, -40.0, -20.0])
    assert_close(activations.get("sigmoid")(backend.array(z, dtype)), backend.array(np.exp(z), dtype), rtol=1e-5)


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4, 3e38])
def test_softmax_of_large_scores(backend, shift):
    z = backend.array([[shift, shift, shift]], "float32")
    assert_close(activations.get("softmax")(z), backend.array([[1 / 3] * 3], "float32"))


def test_softmax_far_apart(backend):
    z = backend.array([[-1e4, 1e4, 0.0]], "float32")
    assert_close(activations.get("softmax")(z), backend.array([[0.0, 1.0, 0.0]], "float32"), rtol=0, atol=0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_numpy_in_numpy_out_whatever_the_backend(name):
    result = activations.get(name)(Z.astype(np.float32))
    assert type(result) is np.ndarray
    assert result.dtype == np.float32


@pytest.mark.parametrize("given", [[[-1.0, 2.0]], [[-1, 2]], np.array([[-1, 2]])])
def test_lists_and_integers_become_the_chosen_dtype(monkeypatch, given):
    for dtype in ("float32", "float64"):
        monkeypatch.setenv("XPNET_DTYPE", dtype)
        result = activations.get("relu")(given)
        assert library_of(result) == "numpy"
        assert str(result.dtype) == dtype
        assert result.tolist() == [[0.0, 2.0]]
    monkeypatch.delenv("XPNET_DTYPE")
    assert str(activations.get("relu")(given).dtype) == "float32"


def test_shapes_pass_through(backend):
    for shape in [(), (1,), (0, 3), (2, 3, 4)]:
        assert activations.get("tanh")(backend.zeros(shape)).shape == shape


def test_leaky_slope():
    assert LeakyReLU(0.2)(np.array([-1.0, 1.0])).tolist() == [-0.2, 1.0]
    assert LeakyReLU(0.2).derivative(np.array([-1.0, 1.0])).tolist() == [0.2, 1.0]
    assert LeakyReLU.from_config(LeakyReLU(0.2).get_config()).negative_slope == 0.2


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_names(name):
    assert activations.get(name).name == name
    assert activations.get(type(activations.get(name)).__name__).name == name


def test_none_is_linear():
    assert activations.get(None).name == "linear"


def test_an_activation_of_ones_own():
    class ReLU(Activation):  # the same name does not make it the known class
        def forward(self, xp, z):
            return z * z * z

        def backward(self, xp, da, z, a):
            return da * (3.0 * z * z)

    f = activations.get(ReLU())
    assert f(np.array([2.0])).tolist() == [8.0]
    assert f.derivative(np.array([2.0])).tolist() == [12.0]
    assert f.name.endswith(".ReLU")


@pytest.mark.parametrize(
    ("identifier", "error", "ends"),
    [
        ("rleu", UnknownNameError, "got 'rleu'"),
        (np.tanh, InvalidTypeError, "got <ufunc 'tanh'>"),
        (3, InvalidTypeError, "got 3"),
    ],
)
def test_errors(identifier, error, ends):
    with pytest.raises(error) as caught:
        activations.get(identifier)
    assert str(caught.value).endswith(ends)


@pytest.mark.parametrize(
    "x", ["text", [["a"]], [[1.0], [1.0, 2.0]], np.array(["a"]), np.array([1j]), np.array([None]), None]
)
def test_what_is_no_array_of_numbers_is_an_error(x):
    with pytest.raises(InvalidTypeError, match=r"numbers.*got"):
        activations.get("relu")(x)
