"""BLAS uses one thread while any step runs, and its previous number of threads when none does."""

import ctypes
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import xpnet as xn
from xpnet.kernels.host import helpers, limits, threads, turns

if xn.get_backend().name != "numpy":
    pytest.skip("tests NumPy's BLAS", allow_module_level=True)


class Fake:
    """A BLAS with two threads, whose number is per process or per thread."""

    def __init__(self, shared):
        self.shared, self.numbers = shared, {}

    def _key(self):
        return None if self.shared else threading.get_ident()

    def get(self):
        return self.numbers.get(self._key(), 2)

    def set(self, number):
        self.numbers[self._key()] = number


@pytest.fixture(params=[True, False], ids=["number of the process", "number of each thread"])
def blas(request, monkeypatch):
    blas = Fake(request.param)
    monkeypatch.setattr(limits, "_blas", lambda: [blas])
    monkeypatch.setattr(limits, "DEFAULT_THREADS", 2)
    return blas


@pytest.fixture
def real():
    pytest.importorskip("threadpoolctl")
    if not limits._blas():
        pytest.skip("NumPy has no BLAS whose number of threads can be set")
    return limits._blas()


def in_thread(function):
    """Return a function's result, or raise its exception, after running it in a new thread."""
    results = []

    def run():
        try:
            results.append((function(), None))
        except BaseException as error:  # noqa: BLE001 - raised below
            results.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    ((result, error),) = results
    if error is not None:
        raise error
    return result


def test_one_thread_meanwhile(real):
    def inside():
        with threads.single_threaded_blas():
            assert [b.get() for b in real] == [1] * len(real)
            assert np.geterr()["over"] == "ignore"
            raise KeyError

    before, errors = [b.get() for b in real], np.geterr()
    for run in (lambda: inside(), lambda: in_thread(inside)):
        with pytest.raises(KeyError):
            run()
        assert [b.get() for b in real] == before
        assert np.geterr() == errors


def test_whoever_has_asked_threadpoolctl_first(real):
    """From threadpoolctl 3.8 on, numbers set by other threads are ignored until that thread has ended."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    controllers = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
    asked, done = threading.Event(), threading.Event()

    def first():
        for controller in controllers:
            getattr(controller, "clear_controlling_thread", lambda force: None)(force=True)
            controller.set_num_threads(controller.get_num_threads())
        asked.set()
        done.wait(60)

    thread = threading.Thread(target=first)
    thread.start()
    assert asked.wait(60)
    before = [b.get() for b in real]
    try:
        for b in real:
            b.set(2)  # also on a single core
        with threads.single_threaded_blas():
            assert [b.get() for b in real] == [1] * len(real)
        assert [b.get() for b in real] == [2] * len(real)
    finally:
        for b, number in zip(real, before):
            b.set(number)
        done.set()
        thread.join()


def test_nothing_is_shared_out_where_the_caller_has_limited_blas(real):
    threadpoolctl = pytest.importorskip("threadpoolctl")
    with threadpoolctl.threadpool_limits(1):
        with threads.single_threaded_blas():
            assert limits.allowed() == 1
        assert [b.get() for b in real] == [1] * len(real)


def test_what_somebody_else_sets_meanwhile_stays(blas):
    with threads.single_threaded_blas():
        blas.set(3)
        with threads.single_threaded_blas():
            assert blas.get() == 1
            assert limits.allowed() == 3
    assert blas.get() == 3


def test_blocks_that_overlap(blas):
    """In one thread and in two; the first to begin may be the first to end."""
    entered, leave, numbers = threading.Event(), threading.Event(), []

    def other():
        with threads.single_threaded_blas():
            numbers.append((blas.get(), limits.allowed()))
            entered.set()
            assert leave.wait(30)
            numbers.append((blas.get(), limits.allowed()))
        numbers.append((blas.get(), limits.allowed()))

    with threads.single_threaded_blas():
        assert (blas.get(), limits.allowed()) == (1, 2)
        with threads.single_threaded_blas():
            assert (blas.get(), limits.allowed()) == (1, 2)
        assert (blas.get(), limits.allowed()) == (1, 2)
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(30)
    assert blas.get() == (1 if blas.shared else 2)
    leave.set()
    thread.join()
    assert numbers == [(1, 2), (1, 2), (2, 1)]
    assert blas.get() == 2


def test_many_blocks_in_many_threads(blas):
    def work():
        for i in range(200):
            try:
                with threads.single_threaded_blas():
                    assert blas.get() == 1
                    with threads.single_threaded_blas():
                        assert blas.get() == 1
                    if i % 3:
                        raise KeyError
            except KeyError:
                pass
        return blas.get() if not blas.shared else 2

    results = []
    workers = [threading.Thread(target=lambda: results.append(work())) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [2] * 4
    assert blas.get() == 2


# What remains if an exception is raised where a block begins or ends


class Struck(BaseException):
    """The exception thrown."""


@pytest.mark.parametrize("nested", [False, True])
def test_blocks_that_ended_without_leaving(blas, nested, monkeypatch):
    """The traceback is kept, with the frame in which the exception was raised."""
    errors, kept = np.geterr(), []

    def struck(*args):
        raise Struck

    for name in ("_settle", "_limit", "_restore", "_clear"):
        with monkeypatch.context() as m:
            m.setattr(limits, name, struck)
            try:
                with threads.single_threaded_blas():
                    if nested or name == "_clear":
                        with threads.single_threaded_blas():
                            limits._here.entries.append(limits._here.entries[0])
            except BaseException as error:  # noqa: BLE001
                kept.append(error)
        with threads.single_threaded_blas():
            assert blas.get() == 1
            assert limits.allowed() == 2
        assert (blas.get(), np.geterr()) == (2, errors)
        assert (limits._inside, limits._before, limits._here.entries) == ([], {}, [])
    assert len(kept) == 4


def test_what_a_thread_left_behind_when_it_ended(blas, monkeypatch):
    def work():
        with threads.single_threaded_blas():
            monkeypatch.setattr(limits, "_settle", None)

    before = limits._settle
    with pytest.raises(TypeError):
        in_thread(work)
    monkeypatch.setattr(limits, "_settle", before)
    with threads.single_threaded_blas():
        assert blas.get() == 1
    assert blas.get() == 2


@pytest.fixture
def attacked(blas, monkeypatch):
    """Return a function that begins and ends blocks and shares work until stopped, and one that checks."""
    monkeypatch.setattr(threads, "count", lambda: 2)
    monkeypatch.setattr(turns, "MAX_TURN", 1e-4)
    helpers.forget()
    helpers.free(1)
    gc.collect()  # exceptions raised in code that the collector calls are lost
    gc.disable()
    errors, running, late = np.geterr(), [], []

    def work(go_on):
        me = threading.get_ident()

        def piece():
            if threading.get_ident() == me:
                time.sleep(1e-4)
            else:
                running.append(1)
                time.sleep(5e-4)
                running.pop()

        try:
            while go_on():
                with threads.single_threaded_blas():
                    threads.share([piece] * 4)
        except Struck:
            late.extend(running)
            raise

    def check():
        with threads.single_threaded_blas():
            assert (blas.get(), limits.allowed()) == (1, 2)
            assert set(np.geterr().values()) == {"ignore"}
        assert (blas.get(), np.geterr()) == (2, errors)
        assert (limits._inside, limits._before, limits._here.entries) == ([], {}, [])
        assert not late
        assert not running
        assert helpers.free(1)
        together = threading.Barrier(2)
        with threads.single_threaded_blas():
            threads.share([lambda: together.wait(30)] * 2)

    yield work, check
    gc.enable()
    helpers.forget()


def survive(function):
    """Call a function until it ends without a thrown exception, of which there are up to two."""
    try:
        try:
            function()
        except Struck:
            function()
    except Struck:
        function()


def test_exceptions_sent_into_a_thread(attacked):
    """One or two at a time, some hundreds in all."""
    work, check = attacked
    send, rng, failed, stop = ctypes.pythonapi.PyThreadState_SetAsyncExc, random.Random(0), [], threading.Event()
    ready, quiet, checked = threading.Event(), threading.Event(), threading.Event()

    def go_on():
        ready.set()
        return not quiet.is_set()

    def victim():
        try:
            while not stop.is_set():
                survive(lambda: work(go_on))
                check()
                ready.clear()
                quiet.clear()
                checked.set()
        except BaseException as error:  # noqa: BLE001 - reported below
            failed.append(error)

    thread = threading.Thread(target=victim)
    thread.start()
    for _ in range(300):
        assert ready.wait(30)
        for _ in range(rng.randint(1, 2)):
            time.sleep(rng.random() * 1e-3)
            send(ctypes.c_ulong(thread.ident), ctypes.py_object(Struck))
        send(ctypes.c_ulong(thread.ident), None)  # cancel any exception not yet raised
        checked.clear()
        quiet.set()
        while not checked.wait(0.1):
            assert thread.is_alive(), failed
    stop.set()
    quiet.set()
    thread.join(30)
    assert not failed


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals")
def test_signal_handlers_that_raise(attacked):
    work, check = attacked
    rng, left, armed = random.Random(0), 0, False

    def struck(number, frame):
        nonlocal left
        left -= 1
        if left >= 0:
            raise Struck

    def attack():
        nonlocal armed
        if not armed:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, 1e-4 + rng.random() * 1e-3, 2e-5 + rng.random() * 3e-4)
        work(lambda: left > 0)

    former = signal.signal(signal.SIGALRM, struck)
    try:
        for _ in range(300):
            left, armed = rng.randint(1, 2), False
            survive(attack)
            signal.setitimer(signal.ITIMER_REAL, 0)
            check()
    finally:
        signal.signal(signal.SIGALRM, former)


def test_a_thread_that_rests_lets_others_have_its_turn(monkeypatch):
    monkeypatch.setattr(turns, "MAX_TURN", 60.0)
    monkeypatch.setattr(turns, "_turn", turns.Turn(lock=threading.Lock()))
    for _ in range(3):
        turns.release(turns.acquire())  # this thread's turn, which lasts a minute
        other = threading.Thread(target=lambda: turns.release(turns.acquire()), daemon=True)
        other.start()
        other.join(20)
        assert not other.is_alive()


# The same bits, whichever thread trains first, and in forked processes

SCRIPT = """
import hashlib, os, signal, sys, threading, time
import numpy as np, xpnet as xn
from xpnet.kernels.host import limits, threads
threads.MIN_PRODUCT, threads.MIN_PASS = 1000, 100
x = np.random.default_rng(0).standard_normal((256, 40))
y = x[:, :1] ** 2

def fit(epochs=3):
    model = xn.Sequential([xn.layers.Dense(150, activation="relu"), xn.layers.Dense(1)], seed=0)
    model.compile("adam", "mse")
    model.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
    wide = xn.Sequential([xn.layers.Dense(784), xn.layers.Dense(512)], seed=0, backend="numpy")
    scores = wide(np.ones((1024, 1024), np.float32) / 3), np.asarray(model.evaluate(x, y))
    return hashlib.sha256(b"".join(a.tobytes() for a in (*model.get_weights(), *scores))).hexdigest()

def in_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]
"""

FIRST = {
    "the main thread": "print(fit(), in_thread(fit))",
    "another thread": "print(in_thread(fit), fit())",
    "a limit on BLAS": """
from threadpoolctl import threadpool_limits
with threadpool_limits(1):
    one = fit()
print(one, fit(), in_thread(fit))""",
    "several at once": """
results = []
workers = [threading.Thread(target=lambda: results.append(fit())) for _ in range(4)]
for w in workers: w.start()
for w in workers: w.join()
print(*results)""",
    "a core taken away": """
if hasattr(os, "sched_setaffinity"): os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
print(fit())""",
}


needs_twins = pytest.mark.skipif(
    os.environ.get("XPNET_KERNELS") in ("0", "bodies"), reason="the bodies do not limit BLAS"
)


def run(code):
    environment = {**os.environ, "XPNET_BACKEND": "numpy"}
    script = [sys.executable, "-W", "ignore", "-c", SCRIPT + code]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@needs_twins
def test_bits_do_not_depend_on_who_trains_first():
    pytest.importorskip("threadpoolctl")
    assert len({bits for code in FIRST.values() for bits in run(code)}) == 1


def parts(before="", **variables):
    """Return into how many parts a new process splits work."""
    code = before + "from xpnet.kernels.host import threads; print(threads.count())"
    environment = {**os.environ, "XPNET_BACKEND": "numpy", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_the_number_of_parts_is_what_blas_uses_by_default(real):
    limited = "import numpy, threadpoolctl; threadpoolctl.threadpool_limits(1)\n"
    assert parts(limited) == parts() == threads.count()
    assert parts(OMP_NUM_THREADS="1") == 1
    assert parts(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="2") == 1
    assert parts(OMP_NUM_THREADS="many") == threads.count()


FORKS = """
limits.DEFAULT_THREADS = 2
expected, before, stop = fit(), limits.blas_threads(), False

def train():
    while not stop:
        fit(20)

def child():
    assert limits.blas_threads() == before
    assert (limits._inside, limits._before, limits._here.entries) == ([], {}, [])
    assert fit() == expected
    together = threading.Barrier(2)
    with threads.single_threaded_blas():
        assert limits.blas_threads() == 1
        threads.share([lambda: together.wait(30)] * 2, 2)
    assert limits.blas_threads() == before

workers = [threading.Thread(target=train) for _ in range(2)]
for w in workers: w.start()
ended = []
for _ in range(60):
    time.sleep(1e-3)
    number = os.fork()
    if not number:
        signal.alarm(60)
        try:
            child()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    ended.append(os.waitpid(number, 0)[1])
stop = True
for w in workers: w.join()
assert fit() == expected
print(sum(status != 0 for status in ended))
"""


@needs_twins
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_children_forked_while_threads_train():
    assert run(FORKS) == ["0"]


HELD = """
import subprocess
class Slow:
    shared = True
    number = 2
    def get(self): return self.number
    def set(self, number):
        if number == 1 and threading.current_thread() is not threading.main_thread(): time.sleep(1)
        self.number = number
slow = Slow()
slow.get_num_threads, slow.set_num_threads = slow.get, slow.set
limits._blas = lambda: [slow]

def enter():
    with threads.single_threaded_blas(): pass

worker = threading.Thread(target=enter)
worker.start()
time.sleep(0.2)
number = os.fork()
if not number:
    signal.alarm(20)
    enter()
    os._exit(0 if slow.number == 2 else 1)
print(os.waitpid(number, 0)[1])
worker.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_another_thread_enters_a_block():
    assert run(HELD) == ["0"]


# Turns


@pytest.fixture
def slow_turns(monkeypatch):
    monkeypatch.setattr(turns, "_turn", turns.Turn(lock=threading.Lock()))
    monkeypatch.setattr(turns, "_last", turns._Last())
    monkeypatch.setattr(turns, "MAX_TURN", 0.2)
    monkeypatch.setattr(turns, "SHORT_STEP", 0.1)


def test_a_turn_lasts_for_more_than_a_step(slow_turns):
    turns.release(turns.acquire())
    assert turns._turn.thread == threading.get_ident()
    time.sleep(0.25)
    turns.release(turns.acquire())
    assert turns._turn.thread == 0
    assert not turns._turn.lock.locked()


def test_a_turn_that_nobody_ends_is_over(slow_turns):
    in_thread(turns.acquire)
    begun = time.monotonic()
    turns.acquire()
    assert time.monotonic() - begun > 0.1
    assert turns._turn.thread == threading.get_ident()


def test_long_steps_take_no_turns(slow_turns):
    begun = turns.acquire()
    time.sleep(0.15)
    turns.release(begun)
    assert turns._turn.thread == 0
    turns.acquire()
    assert turns._turn.thread == 0


def test_a_lock_that_an_exception_has_left_locked(slow_turns):
    turns._turn.lock.acquire()
    turns.acquire()
    assert turns._turn.thread == threading.get_ident()
    assert turns._turn.lock.locked()
