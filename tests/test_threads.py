"""Work that is shared out is done once, whoever does it, and its results do not depend on who did."""

import threading
import time
from contextlib import nullcontext

import numpy as np
import pytest

import xpnet as xn
from xpnet.kernels import tape, threads

if xn.get_backend().name != "numpy":
    pytest.skip("threads share NumPy's work", allow_module_level=True)

RNG = np.random.default_rng(0)


@pytest.fixture(params=[1, 2, 5])
def count(request, monkeypatch):
    """Pretend that BLAS was told to use so many threads."""
    threads._helpers.cache_clear()
    monkeypatch.setattr(threads, "count", lambda: request.param)
    monkeypatch.setattr(threads._now, "threads", request.param, raising=False)
    yield request.param
    threads._helpers.cache_clear()


def test_every_call_is_made_once(count):
    done, who = [], set()

    def call(i):
        who.add(threading.get_ident())
        time.sleep(0.002)
        done.append(i)

    threads.share([lambda i=i: call(i) for i in range(20)])
    assert sorted(done) == list(range(20))
    assert (len(who) > 1) == (count > 1)


def test_a_helper_that_never_begins_is_not_waited_for(count):
    if count == 1:
        pytest.skip("no helpers")
    gate = threading.Event()
    for _ in range(count - 1):  # all helpers are busy with something else
        threads._helpers(threads.os.getpid()).submit(gate.wait, 30)
    done = []
    start = time.monotonic()
    threads.share([lambda i=i: done.append(i) for i in range(8)])
    assert done == list(range(8))
    assert time.monotonic() - start < 10
    gate.set()


def test_what_a_piece_raises_comes_out(count):
    def bad():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads.share([bad] * 3)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 100, 1000])
@pytest.mark.parametrize("piece", [1, 10, 64])
def test_parts_cover_everything_once(count, size, piece):
    parts = threads.split(size, piece)
    assert np.concatenate([np.arange(size)[p] for p in parts]).tolist() == list(range(size))
    assert len(parts) <= max(1, 2 * count)
    assert count > 1 or len(parts) == 1


@pytest.mark.parametrize("shape", [(40, 30, 200), (200, 30, 40), (17, 1, 301)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_in_pieces(count, monkeypatch, shape, transposed):
    monkeypatch.setattr(threads, "PIECE", 1000)
    m, k, n = shape
    a, b = RNG.standard_normal((m, k)), RNG.standard_normal((k, n))
    if transposed:
        a, b = RNG.standard_normal((k, m)).T, RNG.standard_normal((n, k)).T
    assert (threads.pieces(a, b) is None) == (count == 1)
    if count > 1:
        out = np.full((m, n), np.nan)
        threads.product(a, b, out)
        np.testing.assert_allclose(out, a @ b, rtol=1e-12)


def test_small_products_stay_whole(count):
    assert threads.pieces(np.ones((32, 64)), np.ones((64, 64))) is None


def test_a_loop_in_parts(count, monkeypatch):
    monkeypatch.setattr(threads, "PART", 10)
    x, y = RNG.standard_normal(1003), np.zeros(1003)
    pieces = []

    def loop(factor, x, y, more):
        pieces.append(x.size)
        y[:] = factor * x + more

    threads.in_parts(loop, 2.0, (x, y), 1.0)
    np.testing.assert_array_equal(y, 2.0 * x + 1.0)
    assert sum(pieces) == 1003
    assert (len(pieces) > 1) == (count > 1)


def test_blas_keeps_to_one_thread_meanwhile():
    pytest.importorskip("threadpoolctl")

    def now():
        return [blas.get_num_threads() for blas in threads._blas()]

    def inside():
        with threads.Alone():
            assert now() == [1] * len(before)
            assert np.geterr()["over"] == "ignore"
            raise KeyError

    before = now()
    assert before
    with pytest.raises(KeyError):
        inside()
    assert now() == before
    assert np.geterr()["over"] != "ignore"


def test_nothing_is_shared_out_where_the_caller_has_limited_blas():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    with threadpoolctl.threadpool_limits(1), threads.Alone():
        assert threads._now.threads == 1


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop", "momentum"])
def test_a_network_learns_the_same_with_threads(count, monkeypatch, optimizer):
    """Up to rounding as on one thread; bit by bit the same each time."""
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
    monkeypatch.setattr(threads, "PIECE", 1000)
    monkeypatch.setattr(threads, "PART", 100)
    monkeypatch.setattr(tape, "surroundings", nullcontext)  # it asks BLAS, which this test does not
    first, second = weights(), weights()
    for a, b, c in zip(first, second, expected):
        assert a.tobytes() == b.tobytes()
        np.testing.assert_allclose(a, c, rtol=1e-4, atol=1e-6)
