"""`fit` that fails, is interrupted, is observed from other threads, or runs very long: what it leaves behind."""

import copy
import threading

import numpy as np
import pytest

import xpnet as xn
from xpnet.backend import get_backend
from xpnet.callbacks import Callback, EarlyStopping, History
from xpnet.errors import BusyError, UnknownNameError
from xpnet.kernels.context import Context
from xpnet.layers import BatchNormalization, Dense, Dropout, Layer
from xpnet.metrics import Metric
from xpnet.optimizers import SGD, Adam
from xpnet.training import saving
from xpnet.training.access import Access, _after_fork

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((40, 3)), RNG.standard_normal((40, 1))
EXACT = {"rtol": 0 if get_backend().name != "jax" else 1e-5}  # jax fuses a scan of steps differently


def make(optimizer="adam", layers=(), metrics=("mae",), **kwargs):
    model = xn.Sequential(
        [Dense(8, activation="relu"), *layers, BatchNormalization(), Dropout(0.2), Dense(1)], seed=3
    )
    model.compile(optimizer, "mse", list(metrics), **kwargs)
    return model


def same(model, other, **tolerance):
    a, b = model.session.snapshot(), other.session.snapshot()
    assert a.step == b.step
    assert a.age == b.age
    for x, y in zip((a.weights, a.stats, *a.slots), (b.weights, b.stats, *b.slots), strict=True):
        np.testing.assert_allclose(x, y, **{**EXACT, **tolerance})


# Exceptions of user-defined parts -----------------------------------------------------------------------------


class Counts:
    """Raises at the n-th training call."""

    calls = 0

    def count(self):
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("mine")


class Fails(Layer, Counts):
    def __init__(self, at, name=None):
        super().__init__(name=name)
        self.at = at

    def forward(self, ctx, params, x):
        if ctx.training:
            self.count()
        return x, lambda dy, into, want_dx=True: (dy, {})


class FailingMetric(Metric, Counts):
    def __init__(self, at):
        super().__init__("mine")
        self.at = at

    def rows(self, ctx, y, p):
        self.count()
        return y[..., 0]


class FailingAdam(Adam, Counts):
    def __init__(self, at):
        super().__init__(0.01)
        self.at = at

    def apply(self, *args, **kwargs):
        result = super().apply(*args, **kwargs)
        self.count()
        return result


@pytest.mark.skipif(get_backend().name == "jax", reason="JAX runs the Python of parts once, before the first step")
@pytest.mark.parametrize("per_execution", [1, 3, 7])
@pytest.mark.parametrize("at", [1, 2, 5, 10])
@pytest.mark.parametrize("part", ["layer", "metric", "optimizer"])
def test_an_exception_of_a_part_leaves_the_last_whole_step(part, at, per_execution):
    """The weights, slots, statistics and counters of the steps before it, and no others."""

    def build(at):
        return {
            "layer": lambda: make(layers=[Fails(at)]),
            "metric": lambda: make(metrics=[FailingMetric(at)]),
            "optimizer": lambda: make(FailingAdam(at)),
        }[part]()

    model, whole = build(at), build(0)
    with pytest.raises(RuntimeError, match="mine"):
        model.fit(X, Y, batch_size=4, epochs=2, verbose=0, steps_per_execution=per_execution)
    assert model.step == at - 1

    class Stop(Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if self.model.step == at - 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        whole.fit(X, Y, batch_size=4, epochs=2, verbose=0, callbacks=[Stop()])
    whole.session.program()  # creates the slots
    model.session.program()
    same(model, whole)


# Rates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_execution", [1, 2])
def test_a_rate_that_is_set_before_a_batch_counts_for_it(per_execution):
    class Sets(Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.optimizer.learning_rate = 0.1 / (batch + 1)

    model, by_hand = (xn.Sequential([Dense(1)], seed=0) for _ in range(2))
    for m in (model, by_hand):
        m.compile(SGD(0.0), "mse")
    model.fit(X, Y, batch_size=4, shuffle=False, verbose=0, callbacks=[Sets()], steps_per_execution=per_execution)
    for i in range(10):
        by_hand.optimizer.learning_rate = 0.1 / (i // per_execution + 1)
        by_hand.train_on_batch(X[4 * i : 4 * i + 4], Y[4 * i : 4 * i + 4])
    same(model, by_hand, rtol=1e-6)


# Many steps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [2**31 - 3, 2**32 - 3, 2**40])
def test_steps_go_on_beyond_32_bits(first, tmp_path):
    model, plain = make(graph=True), make(graph=False)
    for m in (model, plain):
        m.build((3,))
        m.session.state = m.state._replace(step=m.backend.count(first))
        m.fit(X, Y, batch_size=4, epochs=1, verbose=0)
        assert m.step == first + 10
    same(model, plain, rtol=1e-5)
    model.save(tmp_path / "model")
    assert xn.load_model(tmp_path / "model").step == first + 10
    masks = [model.network.masks(model.session.stream, step, 4) for step in (first, first + 2**32)]
    assert any((a != b).any() for a, b in zip(*(m.values() for m in masks)))


def test_means_over_many_batches_are_exact():
    """For float32 losses of about 0.1, a million at a time: in float32 the sum would be off by 1 %."""
    backend, network = get_backend(), make()
    network.build((3,))
    from xpnet.core.ops import add_up
    from xpnet.training.step import host_sums, read_sums, zero_sums

    def many(sums):
        for _ in range(2000):
            sums = add_up(Context(backend), sums, [(value, 1.0), (1.0, 1.0)])
        return sums

    value = backend.scalar(0.1)
    start = zero_sums(backend, ())
    big = add_up(Context(backend), start, [(backend.scalar(1e6), 1.0), (1e7, 1.0)])
    total, weight = host_sums(backend, many(big))
    assert total == pytest.approx(1e6 + 2000 * float(np.float32(0.1)), rel=1e-9)
    assert weight == 1e7 + 2000
    assert read_sums(backend, big, ["loss"], ())["loss"] == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["step", "epoch"])
def test_counters_are_not_set_beyond_what_a_file_can_hold(name, tmp_path):
    model = make()
    model.build((3,))
    setattr(model, name, 2**63 - 1)
    model.save(tmp_path / "model")
    assert getattr(xn.load_model(tmp_path / "model"), name) == 2**63 - 1
    with pytest.raises(xn.errors.InvalidValueError, match=str(2**63)):
        setattr(model, name, 2**63)
    assert getattr(model, name) == 2**63 - 1


# Interrupted runs -----------------------------------------------------------------------------------------------


class Save(Callback):
    """Saves at a batch or the end of an epoch, and ends the run there as a kill would."""

    def __init__(self, path, epoch, batch=None):
        self.path, self.epoch, self.batch, self.now = path, epoch, batch, -1

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, self.batch):
            self.model.save(self.path)
            raise InterruptedError

    def on_epoch_end(self, epoch, logs=None):
        if self.batch is None and epoch == self.epoch:
            self.model.save(self.path)
            raise InterruptedError


class Seen(Callback):
    """A user-defined callback with a state."""

    def __init__(self):
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(epoch)

    def get_state(self):
        return {"epochs": self.epochs, "last": np.asarray(self.epochs[-1:])}

    def set_state(self, state):
        assert state["last"].tolist() == state["epochs"][-1:]
        self.epochs = state["epochs"]


@pytest.mark.parametrize("before", [True, False], ids=["saver first", "saver last"])
@pytest.mark.parametrize("batch", [None, 0, 3, 9])
@pytest.mark.parametrize("cut", [0, 5, 8])
@pytest.mark.parametrize("per_execution", [1, 3])
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path, cut, batch, before, per_execution):
    if batch is not None and batch % per_execution:
        pytest.skip("no execution begins at that batch")
    path, epochs = tmp_path / "model", 30
    batch = None if batch is None else batch // per_execution

    def run(model, extra=(), **kwargs):
        stop, seen = EarlyStopping("val_loss", patience=9, mode="max", restore_best_weights=True), Seen()
        callbacks = [*extra, stop, seen] if before else [stop, seen, *extra]
        history = model.fit(
            X, Y, batch_size=4, epochs=epochs, verbose=0, callbacks=callbacks, steps_per_execution=per_execution,
            validation_data=(X[:9], Y[:9] * 0.1), **kwargs,
        )  # fmt: skip
        return history, stop, seen

    whole = make()
    history, stop, seen = run(whole)
    assert stop.stopped_epoch > cut  # it does stop
    with pytest.raises(InterruptedError):
        run(make(), [Save(path, cut, batch)])
    model = xn.load_model(path)
    assert model.epoch == cut + (batch is None)
    resumed_history, resumed_stop, resumed_seen = run(model, initial_epoch=model.epoch)
    same(model, whole)
    assert model.epoch == whole.epoch
    assert resumed_history.epoch == history.epoch
    for name, values in history.history.items():
        np.testing.assert_allclose(resumed_history.history[name], values, **EXACT)
    assert (resumed_stop.stopped_epoch, resumed_stop.best_epoch) == (stop.stopped_epoch, stop.best_epoch)
    assert resumed_seen.epochs == seen.epochs


def test_a_run_that_ended_leaves_nothing_to_go_on_with(tmp_path):
    model = make()
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0)
    model.save(tmp_path / "model")
    again = xn.load_model(tmp_path / "model")
    assert again.session.unfinished is None
    assert again.fit(X, Y, batch_size=4, epochs=1, verbose=0).epoch == [0]


def test_other_data_begin_the_epoch_anew(tmp_path):
    with pytest.raises(InterruptedError):
        make().fit(X, Y, batch_size=4, verbose=0, callbacks=[Save(tmp_path / "model", 0, 5)])
    model = xn.load_model(tmp_path / "model")
    assert model.session.unfinished.steps == model.step == 5
    model.fit(X[:20], Y[:20], batch_size=4, verbose=0)
    assert model.step == 10
    model = xn.load_model(tmp_path / "model")
    model.fit(X, Y, batch_size=4, verbose=0)
    assert model.step == 10
    model.fit(X, Y, batch_size=4, verbose=0)  # the next run is complete
    assert model.step == 20


def test_a_step_by_hand_ends_what_was_unfinished(tmp_path):
    model = make()
    with pytest.raises(InterruptedError):
        model.fit(X, Y, batch_size=4, verbose=0, callbacks=[Save(tmp_path / "model", 0, 5)])
    model.train_on_batch(X[:4], Y[:4])
    model.save(tmp_path / "model")
    assert xn.load_model(tmp_path / "model").session.unfinished is None


def cut_off(tmp_path):
    """Return a model loaded from a file, five steps into an epoch of ten."""
    with pytest.raises(InterruptedError):
        make().fit(X, Y, batch_size=4, verbose=0, callbacks=[Save(tmp_path / "model", 0, 5)])
    return xn.load_model(tmp_path / "model")


def test_a_run_that_can_not_begin_leaves_what_was_unfinished(tmp_path):
    model = cut_off(tmp_path)
    with pytest.raises(UnknownNameError):
        model.fit(X, Y, batch_size=4, verbose=0, callbacks=[EarlyStopping("nothing")])
    model.fit(X, Y, batch_size=4, verbose=0)
    assert model.step == 10


def test_an_epoch_that_can_not_begin_leaves_it_too(tmp_path):
    model = cut_off(tmp_path)

    class Fails(Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        model.fit(X, Y, batch_size=4, verbose=0, callbacks=[Fails()])
    assert model.session.unfinished.steps == 5


def test_a_step_that_is_held_back_leaves_it_too(tmp_path):
    model = cut_off(tmp_path)
    model.optimizer.learning_rate = 1e7
    with pytest.raises(xn.errors.NonFiniteError):
        model.train_on_batch(X, Y)
    assert model.session.unfinished.steps == 5


def test_what_is_unfinished_goes_from_file_to_file(tmp_path):
    model = cut_off(tmp_path)
    model.save(tmp_path / "second")
    again = xn.load_model(tmp_path / "second")
    assert again.session.unfinished.steps == 5
    for each in (model, again):
        each.fit(X, Y, batch_size=4, verbose=0)
    same(model, again)
    assert model.step == again.step == 10


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_epoch_goes_on_with_its_sums_in_another_precision(tmp_path, dtype):
    """The mean is that of the whole epoch, although the model moves in mid-epoch."""
    model, path = make(), tmp_path / "model"
    loss = make().fit(X, Y, batch_size=4, verbose=0).history["loss"]
    with pytest.raises(InterruptedError):
        model.fit(X, Y, batch_size=4, verbose=0, callbacks=[Save(path, 0, 5)])
    model.to(dtype=dtype)
    model.save(path)
    np.testing.assert_allclose(
        xn.load_model(path).fit(X, Y, batch_size=4, verbose=0).history["loss"], loss, rtol=1e-5
    )


@pytest.mark.parametrize("halves", [False, True])
def test_sums_of_an_older_file(tmp_path, monkeypatch, halves):
    """Pairs of a sum and its weight, once in two arrays that must be added."""
    path, saved = tmp_path / "model", []

    def older(run, host):
        found = cut_off(run, host)
        pairs = np.reshape(found.sums, (-1, 2))
        saved.append(pairs)
        return found._replace(sums=np.stack([pairs - 0.25, np.full_like(pairs, 0.25)]) if halves else pairs)

    cut_off = saving._cut_off
    wanted = make(metrics=["mae"]).fit(X, Y, batch_size=4, verbose=0).history
    monkeypatch.setattr(saving, "_cut_off", older)
    with pytest.raises(InterruptedError):
        make(metrics=["mae"]).fit(X, Y, batch_size=4, verbose=0, callbacks=[Save(path, 0, 5)])
    model = xn.load_model(path)
    np.testing.assert_allclose(model.session.unfinished.sums, saved[0].reshape(-1), rtol=1e-12)
    found = model.fit(X, Y, batch_size=4, verbose=0).history
    assert model.step == 10
    assert found == {name: pytest.approx(values, rel=1e-5) for name, values in wanted.items()}


def test_a_callback_s_state_comes_back_as_it_was(tmp_path):
    class Knows(Callback):
        state = {"a.b": np.zeros(2), "a": {"b": np.ones(2)}}

        def get_state(self):
            return self.state

    def save(callback):
        make().fit(X, Y, batch_size=4, verbose=0, callbacks=[callback, Save(tmp_path / "model", 0, 5)])

    with pytest.raises(InterruptedError):
        save(Knows())
    found = dict(xn.load_model(tmp_path / "model").session.unfinished.callbacks)["Knows"]
    assert found["a.b"].tolist() == [0.0, 0.0]
    assert found["a"]["b"].tolist() == [1.0, 1.0]
    Knows.state = {1: 5}
    with pytest.raises(xn.errors.InvalidTypeError, match=r"must be strings; got \[1\]"):
        save(Knows())


# Other threads ---------------------------------------------------------------------------------------------------


def in_thread(function, *args):
    errors = []

    def work():
        try:
            function(*args)
        except BaseException as error:  # noqa: BLE001 - examined by the caller
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, errors


def test_others_see_the_last_whole_step(tmp_path):
    """A model saved meanwhile has the state that the training thread saw between two steps."""
    known, found, model = {}, {}, make()

    class Note(Callback):
        def on_train_batch_begin(self, batch, logs=None):
            known[self.model.step] = self.model.get_weights()
            self.model.stop_training = len(found) > 5

    thread, errors = in_thread(lambda: model.fit(X, Y, batch_size=4, epochs=10_000, verbose=0, callbacks=[Note()]))
    while thread.is_alive():
        if not model.built:
            continue
        model.save(tmp_path / "model")
        loaded = xn.load_model(tmp_path / "model")
        found[loaded.step] = loaded.get_weights()
        model.get_weights()
        assert np.isfinite(model.predict(X)).all()
        assert np.isfinite(model.evaluate(X, Y)[0])
    thread.join()
    assert errors == []
    known[model.step] = model.get_weights()
    assert len(found) > 5
    for step, weights in found.items():
        for a, b in zip(weights, known[step], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_step_waits_for_who_looks_at_its_state():
    """A prediction that began before training: its weights are not overwritten meanwhile."""
    model, looked = make(SGD(0.05)), []
    model.fit(X, Y, batch_size=4, epochs=1, verbose=0)
    with model.session.reading() as (weights, _):
        before = np.array(model.backend.host(weights))
        thread, errors = in_thread(lambda: model.fit(X, Y, batch_size=4, epochs=1, verbose=0))
        thread.join(0.3)
        looked.append(thread.is_alive())
        np.testing.assert_array_equal(model.backend.host(weights), before)
    thread.join()
    assert errors == []
    assert looked == [True]
    assert model.step == 20


def test_predictions_of_other_threads_are_of_one_step():
    """Equal batches give equal outputs."""
    model, x = make(SGD(0.05)), np.ones((3000, 3), np.float32)
    model.fit(X, Y, batch_size=4, epochs=1, verbose=0)
    thread, errors = in_thread(lambda: [model.fit(X, Y, batch_size=4, epochs=5, verbose=0) for _ in range(20)])
    while thread.is_alive():
        y = model.predict(x, batch_size=100).reshape(30, 100)
        assert (y == y[0]).all()
    thread.join()
    assert errors == []


class Waits(Callback):
    """Waits before each batch until training may continue."""

    def __init__(self):
        self.started, self.go_on = threading.Event(), threading.Event()

    def on_train_batch_begin(self, batch, logs=None):
        self.started.set()
        self.go_on.wait(20)


def trained_in_a_thread():
    """Return a model that waits before its first step, a function that releases it, the thread and its errors."""
    model, waits = make(), Waits()
    thread, errors = in_thread(lambda: model.fit(X, Y, batch_size=4, verbose=0, callbacks=[waits]))
    assert waits.started.wait(20)
    return model, waits.go_on, thread, errors


def test_a_model_is_trained_by_one_call_at_a_time():
    model, go_on, thread, errors = trained_in_a_thread()
    for call in (
        lambda: model.fit(X, Y, verbose=0),
        lambda: model.train_on_batch(X, Y),
        lambda: model.compile("sgd", "mse"),
        lambda: model.to(dtype="float64"),
        lambda: model.add(Dense(2)),
        model.pop,
    ):
        with pytest.raises(BusyError, match=r"got a call in thread 'MainThread'$"):
            call()
    copied = copy.deepcopy(model)
    go_on.set()
    thread.join()
    assert errors == []
    same(copied, make_built())
    model.fit(X, Y, batch_size=4, verbose=0)
    model.compile("sgd", "mse")


def make_built():
    model = make()
    model.build((3,))
    model.session.program()
    return model


@pytest.mark.parametrize("name", ["fit", "train_on_batch", "compile", "to"])
def test_a_callback_can_not_train_or_change_its_model(name):
    model = make()
    call = {
        "fit": lambda: model.fit(X, Y, verbose=0),
        "train_on_batch": lambda: model.train_on_batch(X, Y),
        "compile": lambda: model.compile("sgd", "mse"),
        "to": lambda: model.to(dtype="float64"),
    }[name]

    class Calls(Callback):
        def on_epoch_end(self, epoch, logs=None):
            call()

    with pytest.raises(BusyError):
        model.fit(X, Y, batch_size=4, verbose=0, callbacks=[Calls()])
    assert model.step == 10
    call()  # now


def test_three_threads_train_models_of_their_own():
    models = [make() for _ in range(3)]
    threads = [in_thread(lambda m=m: m.fit(X, Y, batch_size=4, epochs=5, verbose=0)) for m in models]
    for thread, errors in threads:
        thread.join()
        assert errors == []
    for model in models[1:]:
        same(model, models[0])


def test_a_call_that_fails_undoes_nothing_of_what_another_thread_trains():
    model = make()
    model.build((3,))
    inside, ended = threading.Event(), threading.Event()

    class Bad:
        """Invalid rows, requested while the model trains."""

        def __array__(self, dtype=None, copy=None):
            inside.set()
            ended.wait(30)
            return np.ones((2, 7))

    thread, errors = in_thread(model, Bad())
    assert inside.wait(30)
    model.fit(X, Y, batch_size=8, verbose=0)
    ended.set()
    thread.join()
    assert [type(error) for error in errors] == [xn.errors.ShapeError]
    assert model.step == 5


def test_weights_are_not_set_while_another_thread_trains():
    model, refused = make(), []
    model.build((3,))
    weights = model.get_weights()

    class Meanwhile(Callback):
        def on_train_batch_end(self, batch, logs=None):
            model.set_weights(model.get_weights())  # the training thread may
            for call in ((model.set_weights, weights), (model.layers[0].set_weights, weights[:2])):
                thread, errors = in_thread(*call)
                thread.join()
                refused.extend(errors)

    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[Meanwhile()])
    assert [type(error) for error in refused] == [BusyError] * 10
    model.set_weights(weights)


def test_a_forked_process_finds_nobody_training():
    """The child's actions, in this process: the parent's threads, which train or hold the lock, do not exist."""
    access, held, go_on = Access(), threading.Event(), threading.Event()

    def holds():
        with access.lock:
            held.set()
            go_on.wait(20)

    with access.train("fit"):
        thread, errors = in_thread(holds)
        assert held.wait(20)
        _after_fork()
        assert not access.training
        with access.train("fit"), access.lock:
            assert access.training
    go_on.set()
    thread.join()
    assert errors == []


def test_history_is_there_after_an_interrupt():
    model, history = make(), History()
    with pytest.raises(InterruptedError):
        model.fit(
            X, Y, batch_size=4, epochs=3, verbose=0, callbacks=[history, Save("none", 1, 2)][:1] + [Raises(2)]
        )
    assert history.epoch == [0, 1]


class Raises(Callback):
    def __init__(self, epoch):
        self.at = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.at:
            raise InterruptedError
