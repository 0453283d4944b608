"""Shared work runs once, and its results do not depend on which thread ran it."""

import threading
import time
from collections import deque
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest

import xpnet as xn
from xpnet.kernels.host import helpers, tape, threads

if xn.get_backend().name != "numpy":
    pytest.skip("threads share NumPy's work", allow_module_level=True)

RNG = np.random.default_rng(0)


def pretend(monkeypatch, count):
    """Pretend that BLAS has this number of threads."""
    monkeypatch.setattr(threads, "count", lambda: count)
    monkeypatch.setattr(threads, "allowed", lambda: count)
    return count


@pytest.fixture(params=[1, 2, 5])
def count(request, monkeypatch):
    return pretend(monkeypatch, request.param)


@pytest.fixture
def two(monkeypatch):
    return pretend(monkeypatch, 2)


@pytest.fixture(params=["spinning", "sleeping"])
def waiting(request, monkeypatch):
    """Make new helpers, which spin for work or sleep at once."""
    if request.param == "sleeping":
        monkeypatch.setattr(helpers, "_spin", lambda: None)
    elif helpers._spin() is None:
        pytest.skip("needs numba, and POSIX")
    helpers.forget()
    yield
    helpers.forget()


def test_every_call_is_made_once(count, waiting):
    done, who = [], set()

    def call(i):
        who.add(threading.get_ident())
        time.sleep(0.002)
        done.append(i)

    for _ in range(3):
        done.clear()
        threads.share([lambda i=i: call(i) for i in range(20)])
        assert sorted(done) == list(range(20))
    assert (len(who) > 1) == (count > 1)


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_helpers_come_whether_awake_or_asleep(two, waiting, pause):
    """Each call waits for the other, so two threads are needed."""
    for _ in range(20):
        together = threading.Barrier(2)
        threads.share([lambda b=together: b.wait(30)] * 2)
        time.sleep(pause)
    (helper,) = helpers.free(1)
    deadline = time.monotonic() + 30
    while not helper.asleep and time.monotonic() < deadline:
        time.sleep(0.001)
    assert helper.asleep


def test_what_a_helper_has_begun_is_waited_for(two, waiting):
    begun, done = threading.Event(), []
    here = threading.get_ident()

    def call():
        if threading.get_ident() == here:
            assert begun.wait(30)
        else:
            begun.set()
            time.sleep(0.05)
            done.append(True)

    threads.share([call, call])
    assert done


def test_a_helper_that_never_begins_is_not_waited_for(count, waiting, monkeypatch):
    monkeypatch.setattr(helpers.Helper, "ask", lambda self, job: None)
    done = []
    start = time.monotonic()
    threads.share([lambda i=i: done.append(i) for i in range(8)])
    assert done == list(range(8))
    assert time.monotonic() - start < 10


def test_who_comes_second_works_alone(count, waiting):
    """Several threads may share work at once, as may a call that is itself shared."""
    done = []

    def call(i):
        time.sleep(0.001)
        threads.share([lambda: done.append(i)] * 2)

    def work():
        threads.share([lambda i=i: call(i) for i in range(10)])

    callers = [threading.Thread(target=work) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(done) == [i for i in range(10) for _ in range(6)]


def test_what_a_piece_raises_comes_out(count, waiting):
    def bad():
        time.sleep(0.002)
        raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            threads.share([bad] * 6)
    done = []
    threads.share([lambda: done.append(1)] * 3)
    assert done == [1] * 3


@pytest.mark.parametrize("where", ["here", "in a helper"])
def test_what_nobody_has_begun_when_a_piece_fails_is_not_done(two, waiting, where):
    begun, done, here = threading.Event(), [], threading.get_ident()

    def call():
        fails = (threading.get_ident() == here) == (where == "here")
        if threading.get_ident() == here:
            assert begun.wait(30)
        begun.set()
        time.sleep(0.0 if fails else 0.05)
        if fails:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads.share([call, call, *[lambda: done.append(1)] * (where == "here")])
    time.sleep(0.02)
    assert not done


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 100, 1000])
@pytest.mark.parametrize("piece", [1, 10, 64])
def test_parts_cover_everything_once(count, size, piece):
    parts = threads.split(size, piece)
    assert np.concatenate([np.arange(size)[p] for p in parts]).tolist() == list(range(size))
    assert len(parts) <= count
    assert count > 1 or len(parts) == 1


@pytest.mark.parametrize("shape", [(40, 30, 200), (200, 30, 40), (17, 1, 301)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_in_pieces(count, monkeypatch, shape, transposed):
    monkeypatch.setattr(threads, "MIN_PRODUCT", 1000)
    m, k, n = shape
    a, b = RNG.standard_normal((m, k)), RNG.standard_normal((k, n))
    if transposed:
        a, b = RNG.standard_normal((k, m)).T, RNG.standard_normal((n, k)).T
    assert (threads.pieces(a, b) is None) == (count == 1)
    if count > 1:
        out = np.full((m, n), np.nan)
        threads.matmul_in_pieces(a, b, out)
        np.testing.assert_allclose(out, a @ b, rtol=1e-12)


def test_small_products_stay_whole(count):
    assert threads.pieces(np.ones((32, 64)), np.ones((64, 64))) is None


def test_a_sum_in_parts(count, monkeypatch):
    monkeypatch.setattr(threads, "MIN_PASS", 10)
    a = RNG.standard_normal(1003)
    assert threads.sum_of_squares(a) == pytest.approx((a * a).sum(), rel=1e-12)
    a[700] = np.nan
    assert np.isnan(threads.sum_of_squares(a))


@pytest.mark.parametrize("shape", [(100,), (100, 3), (100, 2, 5)])
def test_rows_in_parts(count, monkeypatch, shape):
    monkeypatch.setattr(threads, "MIN_GATHER", 16)
    monkeypatch.setattr(threads, "blas_threads", lambda: count)
    parts, share = [], threads.share
    monkeypatch.setattr(threads, "share", lambda calls, most: (parts.extend(calls), share(parts, most)))
    values, rows = RNG.standard_normal(shape), RNG.integers(0, 100, 77).astype(np.int32)
    out = np.full((77, *shape[1:]), np.nan)
    assert threads.gather(values, rows, out) is out
    np.testing.assert_array_equal(out, values[rows])
    assert len(parts) == (min(count, 77 * out[0].size // 16) if count > 1 else 0)


def test_arrays_in_parts(count, monkeypatch):
    monkeypatch.setattr(threads, "MIN_PASS", 100)
    x, y = np.arange(1000.0), np.empty(1000)
    parts = threads.parts_of((x, y))
    assert len(parts) == count
    for a, b in parts:
        b[:] = 2.0 * a
    np.testing.assert_array_equal(y, 2.0 * x)


@pytest.mark.parametrize("strikes", [0, 1])
def test_what_ends_a_step_is_made_once_whatever_is_thrown(count, monkeypatch, strikes):
    """Pieces on several threads, then the other calls; an exception during the wait is raised last."""
    x, order = np.zeros(64), []
    real, left = threads.Job.begin, [strikes]

    def begin(job):
        real(job)
        if left[0]:
            left[0] -= 1
            raise KeyboardInterrupt

    monkeypatch.setattr(threads.Job, "begin", begin)
    monkeypatch.setattr(threads, "allowed", lambda: count)
    pieces = deque(partial(np.add, x[i : i + 1], 1.0, x[i : i + 1]) for i in range(64))
    last = deque([partial(order.append, "last")])
    with pytest.raises(KeyboardInterrupt) if strikes else nullcontext():
        threads.finish_shared(pieces, last)
    assert x.tolist() == [1.0] * 64
    assert order == ["last"]


@pytest.mark.parametrize("error", [ValueError, IndexError])
def test_a_piece_that_raises_is_told(count, monkeypatch, error):
    monkeypatch.setattr(threads, "allowed", lambda: count)

    def fails():
        raise error("mine")

    x = np.zeros(8)
    pieces = [partial(np.add, x[i : i + 1], 1.0, x[i : i + 1]) for i in range(8)]
    with pytest.raises(error, match="mine"):
        threads.finish_shared(deque([*pieces[:4], fails, *pieces[4:]]), deque())
    assert x.tolist() == [1.0] * 8  # the others were made


def test_helpers_do_not_warn_of_what_the_guard_finds(two, waiting):
    together = threading.Barrier(2)
    large, out = np.full(1000, 1e300), np.empty((2, 1000))

    def call(i):
        together.wait(30)
        np.multiply(large, large, out=out[i])

    with np.errstate(all="ignore"):
        threads.share([lambda: call(0), lambda: call(1)])
    assert np.isinf(out).all()


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop", "momentum"])
def test_a_network_learns_the_same_with_threads(count, monkeypatch, optimizer):
    """Equal to one thread up to rounding; bit-equal each time."""
    monkeypatch.delenv("XPNET_GRAPH", raising=False)
    x, y = RNG.standard_normal((64, 40)), RNG.integers(0, 3, 64)

    def weights():
        model = xn.Sequential([xn.layers.Dense(50, activation="relu"), xn.layers.Dense(3)], seed=0)
        loss = xn.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss)
        model.fit(x, y, batch_size=32, epochs=4, verbose=0)
        return model.get_weights()

    with monkeypatch.context() as m:
        m.setattr(threads, "count", lambda: 1)
        expected = weights()
    monkeypatch.setattr(threads, "MIN_PRODUCT", 1000)
    monkeypatch.setattr(threads, "MIN_PASS", 100)
    monkeypatch.setattr(tape, "step_context", nullcontext)  # reads the BLAS threads
    first, second = weights(), weights()
    for a, b, c in zip(first, second, expected):
        assert a.tobytes() == b.tobytes()
        np.testing.assert_allclose(a, c, rtol=1e-4, atol=1e-6)
