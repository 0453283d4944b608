"""Recordings, replayed on other numbers, give the function's results; what can't be recorded is refused."""

import math

import numpy as np
import pytest

import xpnet as xn
from xpnet.kernels.finish import make
from xpnet.kernels.host import tape
from xpnet.kernels.host.tape import CannotRecord, Tape

if xn.get_backend().name != "numpy":
    pytest.skip("the tape records NumPy", allow_module_level=True)

RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((2, 6, 4))
K = np.array([3, 0, 1, 2, 0, 3])


def record(step, state, batch):
    """Take a step to its end, and return a function that takes it again to its end."""
    play = tape.record(step, state, batch)
    make(play.finish)
    return lambda: make(play())


def softmax(a, b, k):
    e = np.exp(a - np.max(a, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def in_place(a, b, k):
    c = np.multiply(a, b, out=np.empty((6, 4)))
    c += 1.0
    c *= c.T[:, :4].T[:1]
    return np.subtract(c, 2, out=c)


def assigned(a, b, k):
    c = a * 1.0
    c[2:4] = b[:2]
    c[np.arange(6), k] -= 1.0
    c[0, ...] = 5.0
    return c


def into_plain_memory(a, b, k):
    room = np.zeros((6, 4))
    np.copyto(room, a)
    np.add(room, b, out=room)
    return np.copy(room) if isinstance(room, list) else np.add(a, room)


def looked_up(a, b, k):
    return np.stack([a[np.arange(6), k], np.take(b, [1, 2, 3, 1, 2, 3], axis=0)[:, 1]]) + b[1, 2]


FUNCTIONS = {
    "operators": lambda a, b, k: (a + 2 * b - 1) / (b**2 + 1) @ a.T,
    "comparisons": lambda a, b, k: np.where((a > 0.5) | (b >= 0) & ~(a < b), a, -b),
    "number first": lambda a, b, k: 1.0 - a + (2 * b),
    "numpy's number": lambda a, b, k: np.float32(0.5) * a + np.float64(2.0),
    "softmax": softmax,
    "in place": in_place,
    "assigned": assigned,
    "plain memory": into_plain_memory,
    "looked up": looked_up,
    "all reductions": lambda a, b, k: np.stack(
        [np.sum(a), np.max(a), np.min(b), np.mean(a * b), a.sum(), b.mean(), b.max(), np.sum(a, 0)[1],
         np.vecdot(a, b)[2]]
    ),
    "truth": lambda a, b, k: np.stack([np.all(a > -9), np.any(a > 2), np.all(a > 0), np.isfinite(a).all()]),
    "argmax": lambda a, b, k: np.argmax(a, axis=-1) == k,
    "whole numbers": lambda a, b, k: (k + 1) * 2 - k // 2,
    "views": lambda a, b, k: np.reshape(a.T[1:3], (-1,))[::2] + np.expand_dims(b, 0)[0, :, 1],
    "joined": lambda a, b, k: np.concat([a.reshape(-1), np.matrix_transpose(b)[1]], axis=-1),
    "cast": lambda a, b, k: np.astype(a > 0, np.float32) * np.astype(b, np.float32),
    "like": lambda a, b, k: np.zeros_like(a) + np.ones_like(b) * np.full_like(a, 3.0) + a,
    "two results": lambda a, b, k: np.add(*np.modf(a)),
    "spread": lambda a, b, k: np.broadcast_to(a[:1], (6, 4)) * b,
    "at": lambda a, b, k: (c := a * 1.0, np.add.at(c, (k, 0), 1.0), c)[-1],
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_replay_is_the_function(name):
    function = FUNCTIONS[name]
    place = np.zeros_like(function(A, B, K))
    a, b, k = A.copy(), B.copy(), K.copy()
    play = record(lambda state, batch: (function(*batch),), (place,), (a, b, k))
    np.testing.assert_array_equal(place, function(A, B, K))
    for _ in range(3):
        a[...], b[...], k[...] = RNG.standard_normal((6, 4)), RNG.standard_normal((6, 4)), RNG.integers(0, 4, 6)
        play()
        np.testing.assert_array_equal(place, function(a, b, k))
        np.testing.assert_array_equal(place, function(a.copy(), b.copy(), k.copy()))


def test_state_is_carried_on_and_views_of_it_are_followed():
    state = (np.zeros(3), np.array(0, np.int32), np.ones(2))

    def step(s, b):
        w = np.add(s[0], b[0], out=s[0])  # in place
        return w, s[1] + 1, s[2] * s[0][:2]  # the new second half of the first, and separate memory

    play = record(step, state, (np.array([1.0, 2.0, 3.0]),))
    play()
    assert [a.tolist() for a in state] == [[2.0, 4.0, 6.0], 2, [2.0, 8.0]]
    assert state[1].dtype == np.int32


def test_a_block_runs_if_its_flag_is_set():
    flag, count, total = np.array(True), np.array(0), np.array(0.0)

    def step(s, b):
        def update(kept):
            return kept[0] + 1, kept[1] + b[0] * 2

        return b[1].tape.when(b[1], update, s)

    amount = np.array(5.0)
    play = record(step, (count, total), (amount, flag))
    amount[()], flag[()] = 7.0, False
    play()
    assert (count, total) == (1, 10.0)
    flag[()] = True
    play()
    assert (count, total) == (2, 24.0)


def test_a_kernel_looks_at_the_numbers_of_each_replay():
    seen = []

    def kernel(x, y, word):
        seen.append((float(x), word))
        y[()] = -1.0 if x > 2 else 1.0

    place, x = np.array(0.0), np.array(1.0)

    def step(s, b):
        y = b[0].tape.trace(np.empty(()))
        b[0].tape.launch(kernel, b[0], y, "word")
        return (y * 10,)

    play = record(step, (place,), (x,))
    assert place == 10.0
    x[()] = 3.0
    play()
    assert place == -10.0
    assert seen == [(1.0, "word"), (3.0, "word")]


@pytest.mark.parametrize(
    "function",
    [
        lambda a: a if a[0, 0] > 0 else -a,
        lambda a: a * float(a[0, 0]),
        lambda a: a * math.exp(a[0, 0]),
        lambda a: a[: int(a[0, 0])],
        lambda a: np.ones(4)[np.asarray(a[0, 0], int) :] if range(a[0, 0]) else a,
        lambda a: a * a.item(0),
        lambda a: np.asarray(a.tolist()),
        lambda a: a.astype(np.float32),
        lambda a: a.copy(),
        lambda a: a.take([0, 1]),
        lambda a: a.flatten(),
        lambda a: np.nonzero(a)[0],
        lambda a: np.array(np.array_equal(a, a)) * a,
    ],
)
def test_what_is_not_the_same_calls_each_time_is_refused(function):
    with pytest.raises(CannotRecord):
        record(lambda s, b: (function(b[0]),), (np.zeros((6, 4)),), (A.copy(),))


def test_a_held_back_step_is_not_recorded():
    state = (np.zeros(2),)

    def step(s, b):
        return b[0].tape.when(b[0], lambda kept: (kept[0] + 1,), s)

    with pytest.raises(CannotRecord):
        record(step, state, (np.array(False),))
    assert state[0].tolist() == [0.0, 0.0]


def test_nothing_is_copied_onto_itself():
    tape = Tape()
    a = tape.trace(np.zeros(3))
    tape.store(a, a[...])
    assert tape.finish == []
    tape.store(a, a[::-1])
    assert len(tape.finish) == 1
