"""Activations: values, derivatives, limits, and the caller's library and dtype."""

import math
import textwrap

import numpy as np
import pytest
from cases import ACTIVATIONS, ELEMENTWISE, NAMED

from xpnet import activations
from xpnet.activations import Activation, LeakyReLU, ReLU
from xpnet.backend import library_of
from xpnet.core.special import erf, plain_erf
from xpnet.errors import InvalidTypeError, InvalidValueError, ShapeError, UnknownNameError
from xpnet.testing import assert_close

Z = np.array([[-30.0, -3.0, -1.0, -0.25], [0.25, 1.0, 3.0, 30.0]])

TRAINABLE = [name for name in ACTIVATIONS if name != "step"]
KERAS = """
    celu elu exponential gelu get glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear
    log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign sparse_plus
    sparse_sigmoid sparsemax squareplus swish tanh tanh_shrink threshold"""
ALONG_AXIS = [name for name in TRAINABLE if name not in ELEMENTWISE]


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_in_the_callers_library_and_dtype(backend, name, dtype):
    f, value = ACTIVATIONS[name]
    z = np.asarray(Z, dtype).astype(np.float64)
    assert_close(f(backend.array(z, dtype)), backend.array(value(z), dtype))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_derivative_against_central_differences(backend64, name):
    (f, value), h = ACTIVATIONS[name], 1e-5
    z = np.array([-4.1, -1.2, -0.1, 0.1, 0.6, 1.1, 2.2])
    numeric = (value(z + h) - value(z - h)) / (2 * h)
    assert_close(f.derivative(backend64.array(z)), backend64.array(numeric), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("slope", [0.3, 0.0, -0.3])
def test_slopes_of_both_signs(backend64, slope):
    """The derivative takes the sign of z from the output only if the output has it."""
    z = backend64.array([-2.0, -0.5, 0.0, 0.5, 2.0])
    wanted = backend64.array([slope, slope, slope, 1.0, 1.0])
    assert_close(LeakyReLU(slope).derivative(z), wanted)


@pytest.mark.parametrize("axis", [-1, 1, 0, -2])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "sparsemax", "glu"])
def test_derivative_along_an_axis_is_the_matrix(backend64, name, axis):
    (f, value), h = (type(ACTIVATIONS[name][0])(axis), ACTIVATIONS[name][1]), 1e-5
    z = np.random.default_rng(0).standard_normal((4, 2, 6))
    matrix = backend64.host(f.derivative(backend64.array(z)))
    moved = np.moveaxis(z, axis, -1)
    size = moved.shape[-1]
    assert matrix.shape == (*moved.shape[:-1], size // 2 if name == "glu" else size, size)
    for j, e in enumerate(np.eye(size)):
        numeric = (value(moved + h * e) - value(moved - h * e)) / (2 * h)
        np.testing.assert_allclose(matrix[..., j], numeric, atol=1e-9)


@pytest.mark.parametrize("name", ALONG_AXIS)
def test_axes_from_both_ends(backend64, name):
    f, z = ACTIVATIONS[name][0], backend64.array(np.random.default_rng(2).standard_normal((4, 2, 6)))
    a = f(z)
    assert_close(type(f)(f.axis + 3)(z), a)
    da = backend64.xp.cos(a)
    found = [g.backward(backend64.xp, da, z, a) for g in (f, type(f)(f.axis + 3))]
    assert_close(*found)


@pytest.mark.parametrize("name", TRAINABLE)
def test_backward_is_the_derivative_transposed(backend64, name):
    (f, value), h, rng = ACTIVATIONS[name], 1e-6, np.random.default_rng(1)
    z, d = rng.uniform(0.1, 1, (6, 4)) * rng.choice([-1, 1], (6, 4)), rng.standard_normal((6, 4))
    da = rng.standard_normal(f.output_shape(z.shape))
    on = backend64.array(z)
    dz = f.backward(backend64.xp, backend64.array(da), on, f.forward(backend64.xp, on))
    numeric = (da * (value(z + h * d) - value(z - h * d))).sum() / (2 * h)
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
        ("relu6", 6.0, 6.0, 0.0),
        ("elu", 0.0, 0.0, 1.0),
        ("selu", 0.0, 0.0, 1.7580993408473766),
        ("celu", 0.0, 0.0, 1.0),
        ("threshold", 1.0, 0.0, 0.0),
        ("exponential", 1.0, 2.718281828459045, 2.718281828459045),
        ("gelu", 0.0, 0.0, 0.5),
        ("gelu", 1.0, 0.8413447460685429, 1.0833154705876864),
        ("silu", 1.0, 0.7310585786300049, 0.9276705118714867),
        ("softplus", 0.0, 0.6931471805599453, 0.5),
        ("log_sigmoid", 0.0, -0.6931471805599453, 0.5),
        ("softsign", -3.0, -0.75, 0.0625),
        ("mish", 0.0, 0.0, 0.6),
        ("squareplus", 0.0, 1.0, 0.5),
        ("squareplus", -1.5, 0.5, 0.2),
        ("sparse_plus", 0.0, 0.25, 0.5),
        ("sparse_plus", 3.0, 3.0, 1.0),
        ("sparse_sigmoid", 0.5, 0.75, 0.5),
        ("hard_sigmoid", 1.5, 0.75, 1 / 6),
        ("hard_silu", 1.5, 1.125, 1.0),
        ("hard_silu", 3.0, 3.0, 1.0),
        ("hard_silu", -3.0, 0.0, 0.0),
        ("hard_tanh", -1.0, -1.0, 0.0),
        ("hard_shrink", 0.5, 0.0, 0.0),
        ("soft_shrink", -0.75, -0.25, 1.0),
        ("tanh_shrink", 0.5, 0.03788284273999027, 0.21355226703407257),
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
    [
        ("sigmoid", (0.0, 1.0)),
        ("tanh", (-1.0, 1.0)),
        ("relu", (0.0, None)),
        ("step", (0.0, 1.0)),
        ("relu6", (0.0, 6.0)),
        ("elu", (-1.0, None)),
        ("celu", (-1.0, None)),
        ("hard_sigmoid", (0.0, 1.0)),
        ("sparse_sigmoid", (0.0, 1.0)),
        ("hard_tanh", (-1.0, 1.0)),
        ("softplus", (0.0, None)),
        ("sparse_plus", (0.0, None)),
        ("threshold", (0.0, None)),
    ],
)
@pytest.mark.parametrize("size", [1e3, 1e4, 1e30, np.inf])
def test_far_out_they_reach_their_limits(backend, dtype, name, limits, size):
    """Warnings are errors, so an overflow in exp would show."""
    f, z = activations.get(name), backend.array([-size, size], dtype)
    wanted = [limits[0], size if limits[1] is None else limits[1]]
    assert_close(f(z), backend.array(wanted, dtype), rtol=0, atol=0)
    if name != "step":
        assert_close(f.derivative(z), backend.array([0.0, float(limits[1] is None)], dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [n for n in ELEMENTWISE if n not in ("exponential", "tanh")])
def test_values_and_slopes_far_out(backend, name, dtype):
    """Where sums cancel and exp overflows, up to |z| = 10000: against the functions in float64."""
    (f, value), z = ACTIVATIONS[name], np.array([-1e4, -300.0, -40.0, 40.0, 300.0, 1e4])
    with np.errstate(all="ignore"):
        wanted, h = value(z), 0.25
        slopes = (value(z + h) - value(z - h)) / (2 * h)
    if name.startswith("squareplus"):
        wanted[:3] = f.b / (2 * (np.sqrt(z[:3] ** 2 + f.b) - z[:3]))
    found, slope = f(backend.array(z, dtype)), f.derivative(backend.array(z, dtype))
    assert_close(found, backend.array(wanted, dtype), rtol=3e-6, atol=1e-30)
    assert_close(slope, backend.array(slopes, dtype), rtol=1e-3, atol=1e-7)


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


@pytest.mark.parametrize("name", NAMED)
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


@pytest.mark.parametrize("name", NAMED)
def test_names(name):
    assert activations.get(name).name == name
    assert activations.get(type(activations.get(name)).__name__).name == name
    assert type(getattr(activations, name)) is type(activations.get(name))


def test_the_names_that_keras_has():
    names = KERAS.split()
    assert set(names) <= set(activations.__all__)
    assert activations.get("swish").name == "silu"
    assert activations.get("hard_swish").name == "hard_silu"


def test_functions_take_settings_for_one_call():
    x = np.array([-1.0, 0.5, 3.0])
    assert activations.relu(x, 0.5, 2.0).tolist() == [-0.5, 0.5, 2.0]
    assert activations.threshold(x, 1.0, default_value=9.0).tolist() == [9.0, 9.0, 3.0]
    np.testing.assert_array_equal(activations.softmax(x[:, None], axis=0)[:, 0], activations.softmax(x))
    assert repr(activations.relu) == "ReLU()"
    with pytest.raises(TypeError, match="max_valu"):
        activations.relu(x, max_valu=1.0)
    with pytest.raises(InvalidValueError, match=r"b must be .* > 0; got 0$"):
        activations.squareplus(x, 0)


def test_glu_needs_an_even_number(backend):
    with pytest.raises(ShapeError, match=r"even number of elements along axis -1; got \(2, 3\)$"):
        activations.get("glu")(backend.zeros((2, 3)))


def test_a_relu_with_settings_at_its_corners(backend64):
    f, z = ReLU(0.5, max_value=6.0, threshold=1.0), backend64.array([0.0, 1.0, 1.5, 6.0, 7.0, np.nan])
    assert_close(f(z), backend64.array([-0.5, 0.0, 1.5, 6.0, 6.0, np.nan]))
    assert_close(f.derivative(z[:5]), backend64.array([0.5, 0.5, 1.0, 0.0, 0.0]))
    assert_close(ReLU(max_value=1.0)(backend64.array([-np.inf, np.inf])), backend64.array([0.0, 1.0]))


@pytest.mark.parametrize("name", [n for n in TRAINABLE if n != "relu_slope"])
def test_nan_stays_nan(backend, name):
    f, z = ACTIVATIONS[name][0], backend.array(np.full((2, 2), np.nan), "float32")
    assert np.isnan(backend.host(f(z))).all()


def test_sparsemax_of_equal_and_of_far_scores(backend):
    f = activations.sparsemax
    z = backend.array([[1e4, 1e4, -1e4, 0.0], [3.0, 3.0, 3.0, 3.0], [1e4, 9999.5, 0.0, 0.0]], "float32")
    wanted = [[0.5, 0.5, 0.0, 0.0], [0.25] * 4, [0.75, 0.25, 0.0, 0.0]]
    assert_close(f(z), backend.array(wanted, "float32"), rtol=0, atol=0)
    a = f(z)
    dz = f.backward(backend.xp, backend.array(np.eye(4)[:3], "float32"), z, a)
    wanted = [[0.5, -0.5, 0.0, 0.0], [-0.25, 0.75, -0.25, -0.25], [0.0] * 4]
    assert_close(dz, backend.array(wanted, "float32"), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_erf(backend, dtype):
    """In its own library, or by a polynomial: against the C library's."""
    x = np.concatenate([np.linspace(-7, 7, 4001), 10.0 ** -np.arange(1, 30)]).astype(dtype)
    wanted = np.vectorize(math.erf)(x.astype(np.float64))
    single = dtype == "float32"
    for found in (
        erf(backend.xp, backend.array(x, dtype)),
        plain_erf(backend.xp, backend.array(x, dtype), single),
    ):
        np.testing.assert_allclose(backend.host(found), wanted, rtol=6e-7 if single else 3e-15)
    odd = backend.array([np.nan, np.inf, -np.inf, 1e30, 0.0, -0.0], dtype)
    assert_close(plain_erf(backend.xp, odd, single), backend.array([np.nan, 1.0, -1.0, 1.0, 0.0, 0.0], dtype))


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


def test_a_bare_function_is_refused_with_the_lines_that_an_activation_takes():
    def square(z):
        return z * z

    with pytest.raises(InvalidTypeError) as caught:
        activations.get(square)
    lines = str(caught.value).splitlines()
    assert len(lines[1:-1]) == 6
    space = {}
    exec("import xpnet\n" + textwrap.dedent("\n".join(lines[1:-1])), space)
    f = activations.get(space["Square"]())
    assert f([3.0]).tolist() == [9.0]
    assert f.derivative([3.0]).tolist() == [6.0]
    with pytest.raises(InvalidTypeError, match="the name 'tanh'; got"):
        activations.get(np.tanh)


@pytest.mark.parametrize(
    "x", ["text", [["a"]], [[1.0], [1.0, 2.0]], np.array(["a"]), np.array([1j]), np.array([None]), None]
)
def test_what_is_no_array_of_numbers_is_an_error(x):
    with pytest.raises(InvalidTypeError, match=r"numbers.*got"):
        activations.get("relu")(x)
