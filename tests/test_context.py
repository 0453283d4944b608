"""The context of a part: library, precision, memory, and the conversion of results for the caller."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import xpnet
from xpnet import Sequential, activations, layers, losses, metrics, optimizers, regularizers
from xpnet.backend import get_backend, host_of, library_of, use_backend
from xpnet.errors import InvalidTypeError, InvalidValueError, NotBuiltError, ShapeError
from xpnet.kernels.context import Arena, Context, enter, numeric
from xpnet.testing import assert_close


def test_the_arena_hands_out_the_same_buffers_again(backend):
    arena = Arena(backend.xp)
    first = [arena.empty((2, 3), backend.dtype), arena.empty((2, 3), backend.dtype)]
    assert first[0] is not first[1]
    arena.restart()
    second = [arena.empty((2, 3), backend.dtype), arena.empty((2, 3), backend.dtype)]
    assert [a is b for a, b in zip(first, second)] == [True, True]


def test_the_arena_makes_another_buffer_for_another_shape_or_dtype(backend):
    arena, xp = Arena(backend.xp), backend.xp
    old = arena.empty((2,), xp.float32)
    for shape, dtype in (((3,), xp.float32), ((3,), xp.float64)):
        arena.restart()
        new = arena.empty(shape, dtype)
        assert new is not old
        assert (new.shape, new.dtype) == (shape, dtype)
        old = new


def test_empty(backend):
    memory = Context(backend).empty((2, 3))
    assert (memory.shape, memory.dtype) == ((2, 3), backend.dtype)
    arena = Arena(backend.xp)
    ctx = Context(backend, arena=arena)
    assert ctx.inplace
    assert not Context(backend).inplace
    first = ctx.empty((2,))
    assert ctx.empty((2,)) is not first
    assert ctx.restart({}).empty((2,)) is first


def test_draws_and_statistics_are_kept_by_place(backend):
    mask = backend.array(np.array([True, False]))
    ctx = Context(backend, True, {"3/keep": mask})
    ctx.place = (3, "bn_1")
    assert ctx.draw("keep") is mask
    ctx.set_statistic("moving_mean", mask)
    assert ctx.carry == {"bn_1/moving_mean": mask}
    assert ctx.restart({}) is ctx  # the next step's masks; nothing else remains from the last step
    assert (ctx.draws, ctx.carry) == ({}, {})


@pytest.mark.parametrize(
    ("given", "expected"),
    [(3, 3.0), ([1, 2], [1.0, 2.0]), ([[True, False]], [[1.0, 0.0]]), (np.array([1, 2], "uint8"), [1.0, 2.0])],
)
def test_asarray(backend, given, expected):
    found = Context(backend).asarray(given)
    assert_close(found, backend.array(expected, "float32"))
    assert library_of(found) == backend.name


def test_asarray_in_another_dtype(backend):
    found = Context(backend).asarray([1.0, 2.0], backend.xp.int32)
    assert_close(found, backend.array([1, 2], "int32"))


# enter: the caller's library and precision --------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (["float32"], "float32"),
        (["float64"], "float64"),
        (["float32", "float64"], "float64"),
        (["int64", "float32"], "float32"),
        (["int64"], "float32"),
        ([], "float32"),
    ],
)
def test_the_widest_floating_dtype_decides(backend, monkeypatch, dtypes, expected):
    monkeypatch.delenv("XPNET_DTYPE", raising=False)
    ctx, _ = enter(*(backend.array([1, 2], d) for d in dtypes), [1, 2], None)
    assert ctx.backend.dtype_name == expected
    assert enter(*(backend.array([1, 2], d) for d in dtypes), dtype="float64")[0].backend.dtype_name == "float64"


def test_the_first_array_decides_where_the_result_goes(backend):
    ctx, leave = enter(backend.array([1.0], "float32"), np.ones(1))
    assert library_of(leave(ctx.asarray([2.0]))) == backend.name
    ctx, leave = enter(np.ones(1, np.float32), backend.array([1.0], "float32"))
    assert library_of(leave(ctx.asarray([2.0]))) == "numpy"
    ctx, leave = enter([1.0], None, backend.array([1.0], "float32"))
    assert library_of(leave(ctx.asarray([2.0]))) == backend.name


def test_without_a_choice_the_arrays_decide_where_the_work_is_done(backend, monkeypatch):
    array = backend.array([1.0], "float32")
    monkeypatch.delenv("XPNET_BACKEND", raising=False)
    monkeypatch.delenv("XPNET_DEVICE", raising=False)
    assert enter([1.0], array)[0].backend.name == backend.name
    with use_backend("numpy"):
        ctx, leave = enter(array)
        assert ctx.backend.name == "numpy"
        assert library_of(leave(ctx.asarray(array))) == backend.name


# What is not an array of numbers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "ends"),
    [
        (["a"], "got dtype <U1 (list)"),
        ([[1.0], [1.0, 2.0]], "got list"),
        ([None], "got dtype object (list)"),
        ([1j], "got dtype complex128 (list)"),
        (np.array(["2020-01-01"], "datetime64[D]"), "got dtype datetime64[D] (ndarray)"),
        (object(), "got dtype object (object)"),
    ],
)
def test_numeric_refuses(given, ends):
    with pytest.raises(InvalidTypeError) as caught:
        numeric(given)
    assert str(caught.value).endswith(ends)


@pytest.mark.parametrize("given", [1, 1.5, True, [1, 2], [[True]], np.float32(2), np.arange(3, dtype="uint16")])
def test_numeric_accepts(given):
    np.testing.assert_array_equal(numeric(given), np.asarray(given))


def test_a_context_knows_its_backend():
    ctx = Context(get_backend("numpy", dtype="float64"))
    assert (ctx.xp, ctx.dtype, ctx.training) == (np, np.float64, False)


# Parts used alone ---------------------------------------------------------------------------------------


def layer_of_ones(x):
    layer = layers.Dense(2, "tanh", kernel_initializer="ones")
    layer(x)
    layer.set_weights([np.ones((3, 2), x.dtype), np.zeros(2, x.dtype)])
    return layer(x)


def updated(x):
    optimizer = optimizers.Adam(0.1, clipnorm=1.0)
    return optimizer.update(x[0], x[1], optimizer.init(x[0]))[0]


def measured(x):
    metric = metrics.MeanSquaredError()
    metric.update_state(x, x[:, ::-1], x[:, 0])
    return metric.result()


PARTS = {
    "activation": lambda x: activations.get("sigmoid")(x),
    "derivative": lambda x: activations.get("softmax").derivative(x),
    "loss": lambda x: losses.MeanSquaredError()(x, x[:, ::-1]),
    "gradient": lambda x: losses.MeanAbsoluteError().value_and_grad(x, x[:, ::-1])[1],
    "regularizer": lambda x: regularizers.L1L2(0.1, 0.1)(x),
    "layer": layer_of_ones,
    "optimizer": updated,
    "metric": measured,
}
ALONE = np.array([[-1.0, 0.25, 0.5], [0.125, 2.0, -0.5]])


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("dtype", "precision"),
    [("float64", "float64"), (">f8", "float64"), ("longdouble", "float64"), ("float32", "float32"),
     (">f4", "float32"), ("float16", "float32"), (">f2", "float32")],
)  # fmt: skip
def test_a_part_computes_in_the_precision_of_what_it_is_given(part, dtype, precision, backend):
    expected = np.asarray(PARTS[part](ALONE))
    found = PARTS[part](ALONE.astype(dtype))
    assert library_of(found) == "numpy"
    assert found.dtype == precision
    np.testing.assert_allclose(found, expected, rtol=1e-12 if precision == "float64" else 1e-5)


def test_a_part_reads_tables(backend):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({0: ALONE[:, 0], 1: pd.array(ALONE[:, 1], dtype="Float64"), 2: ALONE[:, 2]})
    found = activations.get("tanh")(frame)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.tanh(ALONE), rtol=1e-12)
    assert activations.get("tanh")(pd.Series([1, 2], dtype="Int64")).dtype == np.float32


@pytest.mark.parametrize("part", PARTS)
def test_a_part_does_not_mind_what_numpy_was_told(part, backend):
    large, small = np.float32([[-1e4, 1e-30, 88.0], [1e30, -1e-38, 1e4]]), np.full((2, 3), 1e-38, "float32")
    tiny = np.full((2, 3), 1e-310)
    with np.errstate(all="raise"):
        for x in (large, small, tiny):
            assert PARTS[part](x).shape == PARTS[part](ALONE).shape


@pytest.mark.parametrize(
    "part",
    [lambda: activations.get("linear"), layers.Flatten, lambda: layers.Dropout(0.5), lambda: layers.Input((3,)),
     lambda: layers.Activation("linear")],
)  # fmt: skip
def test_a_result_has_memory_of_its_own(part, backend):
    for x in (backend.array(ALONE, "float32"), ALONE.astype("float32"), pandas_frame(ALONE.astype("float32"))):
        found = part()(x)
        if library_of(found) != "jax":  # JAX arrays can't be written to
            found[0, 0] = 99.0
        assert host_of(x)[0, 0] == -1.0


def pandas_frame(values):
    return pytest.importorskip("pandas").DataFrame(values)


def test_numbers_of_what_is_traced(backend, monkeypatch):
    """Inside JAX's transformations values are unknown; code that needs none of them works."""
    jax = pytest.importorskip("jax")
    if backend.name not in ("jax", "numpy"):
        pytest.skip("one of the two is enough")
    monkeypatch.delenv("XPNET_BACKEND", raising=False)
    x = jax.numpy.asarray(ALONE, "float32")
    for name in ("activation", "derivative", "loss", "gradient", "regularizer", "optimizer"):
        part = PARTS[name]
        assert_close(jax.jit(part)(x), part(x), rtol=1e-5, message=name)
        assert_close(jax.vmap(part)(x[None])[0], part(x), rtol=1e-5, message=name)
    dense = layers.Dense(2, "tanh")
    assert_close(jax.jit(dense)(x), dense(x), rtol=1e-5)
    assert_close(jax.vmap(dense)(x[None])[0], dense(x), rtol=1e-5)
    sigmoid, target = activations.get("sigmoid"), np.array([2, 0])
    assert_close(jax.grad(lambda z: sigmoid(z).sum())(x), sigmoid.derivative(x), rtol=1e-5)
    cross = losses.SparseCategoricalCrossentropy(from_logits=True)
    for y in (target, jax.numpy.asarray(target)):
        expected = cross.value_and_grad(y, x)[1]
        assert_close(jax.grad(lambda p: cross(y, p))(x), expected, rtol=1e-5)  # noqa: B023
        assert_close(jax.jit(jax.grad(cross, 1))(y, x), expected, rtol=1e-5)
    adam = optimizers.Adam(0.1)
    state, start = adam.init(x[0]), np.asarray(x[0])
    for weights in (x[0], start):  # on the host, too
        found, after = jax.jit(lambda g: adam.update(weights, g, state))(x[1])  # noqa: B023
        assert_close(found, adam.update(x[0], x[1], state)[0], rtol=1e-5)
        assert float(after.age) == 1.0


def test_what_can_not_be_traced_says_so(backend, monkeypatch):
    jax = pytest.importorskip("jax")
    for name in ("XPNET_BACKEND", "XPNET_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    x = jax.numpy.asarray(ALONE, "float32")
    metric, model = metrics.MeanSquaredError(), Sequential([layers.Dense(1)])
    model(x)
    dropout = layers.Dropout(0.5)
    for error, call in (
        (InvalidTypeError, lambda x: metric.update_state(x, x)),
        (InvalidTypeError, model.predict),
        (InvalidValueError, lambda x: dropout(x, training=True)),
        (ShapeError, lambda x: losses.MeanSquaredError()(x[:1], x)),
    ):
        with pytest.raises(error, match="; got "):
            jax.jit(call)(x)
    with pytest.raises(NotBuiltError):  # no part of it remains
        metric.result()
    with use_backend("numpy"), pytest.raises(InvalidTypeError, match=r"jax\.jit.*; got .*Tracer"):
        jax.jit(activations.get("relu"))(x)


RANKS = """
import jax, numpy as np, xpnet as xn
from xpnet.layers import BatchNormalization, Dense, Dropout, PReLU
jax.config.update("jax_numpy_rank_promotion", "raise")
x = jax.numpy.asarray(np.random.default_rng(0).standard_normal((8, 3, 4)), "float32")
for loss, y in ("sparse_categorical_crossentropy", np.ones((8, 3), int)), ("mse", np.ones((8, 3, 5))):
    layers = [Dense(6, "relu"), BatchNormalization(), PReLU(), Dropout(0.5), Dense(5, "softmax")]
    model = xn.Sequential(layers, seed=0)
    model.compile(xn.optimizers.Adam(clipnorm=1.0), loss, ["accuracy"])
    model.fit(x, y, verbose=0, sample_weight=np.ones(8), validation_split=0.5)
    model.predict(x)
    xn.losses.get(loss).value_and_grad(y, model(x))
    model.layers[0](x)
    xn.activations.get("softmax").derivative(x)
"""


def run_python(code, **variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("XPNET_")}
    environment = {**kept, "PYTHONPATH": str(Path(xpnet.__file__).parent.parent), **variables}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ranks_are_not_promoted():
    pytest.importorskip("jax")
    run_python(RANKS)


NARROW = """
import sys, warnings, numpy as np
sys.path.insert(0, {tests!r})
from test_context import ALONE, PARTS
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    kinds = [str(np.asarray(part(ALONE)).dtype) for part in PARTS.values()]
print(len(caught), *sorted(set(kinds)), "float64" in str(caught[0].message))
"""


def test_jax_without_x64_computes_host_data_in_float32_and_says_so_once():
    pytest.importorskip("jax")
    code = NARROW.format(tests=str(Path(__file__).parent))
    out = run_python(code, XPNET_BACKEND="jax", JAX_ENABLE_X64="0")
    assert out.split() == ["1", "float32", "True"]
    with_x64 = code.replace(', "float64" in str(caught[0].message)', "")
    assert run_python(with_x64, XPNET_BACKEND="jax", JAX_ENABLE_X64="1").split() == ["0", "float64"]
