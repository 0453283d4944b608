"""What a part computes with: library, precision, memory, and the way back to the caller."""

import numpy as np
import pytest

from xpnet.backend import get_backend, library_of, use_backend
from xpnet.context import Arena, Context, enter, numeric
from xpnet.errors import InvalidTypeError
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
    ctx.record("moving_mean", mask)
    assert ctx.carry == {"bn_1/moving_mean": mask}
    assert ctx.restart({}) is ctx  # the next step's masks; nothing of the last one is left
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


# What is no array of numbers ----------------------------------------------------------------------------


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
