"""History, early stopping, progress, user-defined callbacks, and Ctrl-C."""

import inspect
import io
import itertools
import operator
import os
import signal
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import xpnet as xn
from xpnet import losses, metrics
from xpnet.callbacks import Callback, EarlyStopping, History, ProgressBar
from xpnet.errors import InvalidValueError, UnknownNameError
from xpnet.layers import Dense
from xpnet.metrics import CategoricalAccuracy, MeanSquaredError, Metric
from xpnet.optimizers import SGD

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((20, 3)), RNG.standard_normal((20, 1))


def make(**kwargs):
    model = xn.Sequential([Dense(1)], seed=1)
    model.compile(SGD(0.05), "mse", ["mae"], **kwargs)
    return model


def test_history():
    model = make()
    history = model.fit(X, Y, epochs=3, verbose=0, validation_split=0.2)
    assert isinstance(history, History)
    assert list(history.history) == ["loss", "mae", "val_loss", "val_mae"]
    assert all(len(values) == 3 for values in history.history.values())
    assert all(type(v) is float for values in history.history.values() for v in values)
    assert history.epoch == [0, 1, 2]
    own = History()
    assert model.fit(X, Y, epochs=5, initial_epoch=3, verbose=0, callbacks=own) is own
    assert own.epoch == [3, 4]
    assert model.fit(X, Y, epochs=2, initial_epoch=2, verbose=0).history == {}


def test_the_history_is_the_mean_over_the_rows():
    """A smaller last batch counts by its rows; with a rate of 0 the loss equals that of `evaluate`."""
    model = make()
    model.optimizer.learning_rate = 0.0
    history = model.fit(X, Y, batch_size=8, verbose=0).history
    assert [history["loss"][0], history["mae"][0]] == pytest.approx(model.evaluate(X, Y), rel=1e-5)


class Recorder(Callback):
    def __init__(self, name, log):
        self.name, self.log = name, log

    def __getattribute__(self, attribute):
        if attribute.startswith("on_"):

            def note(*args, logs=None, self=self):
                numbers = [a for a in args if isinstance(a, int)]
                logs = next((a for a in args if isinstance(a, dict)), None)
                self.log.append((self.name, attribute[3:], *numbers, *(sorted(logs) if logs else ())))

            return note  # fmt: skip
        return super().__getattribute__(attribute)

    def on_train_batch_end(self, batch, logs=None):
        """Overridden, so that it is called."""


def test_hooks_come_in_the_order_of_keras():
    log = []
    make().fit(X, Y, batch_size=10, epochs=2, verbose=0, callbacks=[Recorder("a", log), Recorder("b", log)],
               validation_data=(X, Y), validation_freq=2)  # fmt: skip
    batches = [(hook, n, *keys) for n in (0, 1) for hook, keys in
               (("train_batch_begin", ()), ("train_batch_end", ("loss", "mae")))]  # fmt: skip
    expected = [
        ("train_begin",),
        ("epoch_begin", 0), *batches, ("epoch_end", 0, "loss", "mae"),
        ("epoch_begin", 1), *batches, ("epoch_end", 1, "loss", "mae", "val_loss", "val_mae"),
        ("train_end", "loss", "mae", "val_loss", "val_mae"),
    ]  # fmt: skip
    assert log == [(name, *entry) for entry in expected for name in "ab"]


def test_logs_are_dictionaries_in_every_hook():
    """As in Keras, so a hook needs no default."""
    told = {}

    class Strict(Callback):
        def on_train_begin(self, logs):
            told["train_begin"] = logs

        def on_epoch_begin(self, epoch, logs):
            told["epoch_begin"] = logs

        def on_train_batch_begin(self, batch, logs):
            told["batch_begin"] = logs

        def on_train_batch_end(self, batch, logs):
            told["batch_end"] = logs

        def on_epoch_end(self, epoch, logs):
            told["epoch_end"] = logs

        def on_train_end(self, logs):
            told["train_end"] = logs

    make().fit(X, Y, verbose=0, callbacks=Strict())
    assert len(told) == len([n for n, _ in inspect.getmembers(Callback) if n.startswith("on_")])
    assert all(isinstance(logs, dict) for logs in told.values()), told


class Spy(Callback):
    """Keeps the arguments of callbacks."""

    def __init__(self, stop_at=None):
        self.stop_at, self.logs, self.begun = stop_at, [], []

    def on_train_begin(self, logs=None):
        self.begun.append((self.model.built, dict(self.params)))

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append(logs)
        if (self.model.epoch, batch) == self.stop_at:
            self.model.stop_training = True


def test_what_callbacks_are_told():
    model, spy = make(), Spy()
    history = model.fit(X, Y, batch_size=8, epochs=1, verbose=0, callbacks=spy).history
    assert spy.model is model
    assert spy.begun == [(True, {"epochs": 1, "steps": 3, "verbose": 0, "metrics": ["loss", "mae"]})]
    assert len(spy.logs) == 3
    assert spy.logs[-1] == {name: values[0] for name, values in history.items()}
    assert spy.logs[0] != spy.logs[1]
    many = Spy()
    make(steps_per_execution=2).fit(X, Y, batch_size=8, verbose=0, callbacks=many)
    assert len(many.logs) == 2
    assert many.logs[-1] == pytest.approx(spy.logs[-1], rel=1e-5)


def test_training_stops_when_it_is_told_to():
    class Stop(Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    model = make()
    assert len(model.fit(X, Y, epochs=9, verbose=0, callbacks=Stop()).history["loss"]) == 2
    assert len(model.fit(X, Y, epochs=1, verbose=0).history["loss"]) == 1  # the request to stop is cleared
    spy = Spy(stop_at=(3, 1))  # in the middle of an epoch
    history = model.fit(X, Y, batch_size=4, epochs=2, verbose=0, callbacks=spy)
    assert (len(spy.logs), len(history.history["loss"])) == (2, 1)


# Early stopping ---------------------------------------------------------------------------------------------


class Script(Callback):
    """Replaces the losses with given values, and sets the weights to the number of their epoch."""

    def __init__(self, values, name="loss"):
        self.values, self.name = values, name

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.values[epoch]
        self.model.set_weights([np.full((3, 1), epoch), np.zeros(1)])


@pytest.mark.parametrize(
    ("values", "kwargs", "epochs", "best"),
    [
        ([5, 4, 3, 2, 1], {}, 5, 4),
        ([5, 4, 6, 2, 1], {}, 3, 1),
        ([5, 4, 6, 2, 9, 9, 9], {"patience": 2}, 6, 3),
        ([5, 4, 4, 4, 1], {"patience": 2}, 4, 1),
        ([5, 4, 3.5, 3.2, 1], {"patience": 2, "min_delta": 1.0}, 5, 4),
        ([5, 4.5, 4.2, 3.9, 3.8, 3.7], {"patience": 2, "min_delta": 1.0}, 3, 0),
        ([1, 2, 3, 2, 1], {"mode": "max"}, 4, 2),
        ([1, 2, 3], {"mode": "min", "patience": 2}, 3, 0),
        ([9, 9, 9, 9, 1], {"start_from_epoch": 3}, 5, 4),
        ([5, 4, 3, 2], {"baseline": 1.0, "patience": 2}, 4, 3),
        ([5, 4, 5, 2], {"baseline": 1.0, "patience": 2}, 3, 1),
        ([9, 1, 9, 9, 9, 9], {"baseline": 2.0, "patience": 3}, 5, 1),
        ([0.5, 0.4, 0.3, 0.2, 0.1, 0.04, 0.03, 0.2, 0.3], {"baseline": 0.05, "patience": 2}, 9, 6),
        ([0.5, float("nan"), 0.1], {"patience": 1}, 2, 0),
        ([float("nan"), 0.5, 0.1, 0.01], {"patience": 2}, 3, 0),
    ],
)
def test_early_stopping(values, kwargs, epochs, best):
    """Keras 3's numbers."""
    model = make()
    stop = EarlyStopping("loss", restore_best_weights=True, **kwargs)
    history = model.fit(X, Y, epochs=len(values), verbose=0, callbacks=[Script(values), stop])
    assert len(history.history["loss"]) == epochs
    assert stop.stopped_epoch == (epochs - 1 if model.stop_training else 0)
    assert model.get_weights()[0][0, 0] == best == stop.best_epoch


def test_early_stopping_keeps_the_last_weights_unless_told():
    model = make()
    model.fit(X, Y, epochs=9, verbose=0, callbacks=[Script([1, 2] * 5), EarlyStopping("loss")])
    assert model.get_weights()[0][0, 0] == 1


SCRIPTS = {
    "falls": [0.5, 0.4, 0.3, 0.2, 0.1, 0.04, 0.03, 0.2, 0.3],
    "grows": [0.1, 0.3, 0.2, 0.5, 0.4, 0.7, 0.6, 0.5, 0.4],
    "flat": [0.5, 0.25, 0.25, 0.5, 0.25, 0.125, 0.125, 0.125, 0.0625],
    "nan": [float("nan"), 0.5, 0.25, 0.5, 0.75, 0.5, 0.25, 0.5, 0.25],
}
SETTINGS = [
    {
        "mode": mode,
        "patience": patience,
        "baseline": baseline,
        "min_delta": delta,
        "start_from_epoch": start,
        "restore_best_weights": restore,
    }
    for mode, patience, baseline, (delta, start, restore) in itertools.product(
        ("min", "max"), (0, 1, 2, 4), (None, 0.05, 0.45), ((0.0, 0, True), (0.17, 0, False), (0.0, 2, True))
    )
]  # Values from Keras 3.


def scripted(stop, values):
    """Run a callback by hand over the epochs; return its state after each of them, and the restored epoch."""
    weights, known = [np.zeros(1)], []
    model = SimpleNamespace(
        stop_training=False, get_weights=lambda: [w.copy() for w in weights], metrics=[],
        set_weights=lambda new: weights.__setitem__(0, new[0]),
    )  # fmt: skip
    stop.set_model(model)
    stop.set_params({"metrics": ["loss"]})
    stop.on_train_begin({})
    for epoch, value in enumerate(values):
        weights[0] = np.array([epoch])
        stop.on_epoch_end(epoch, {"loss": value})
        known.append((stop.wait, stop.best, stop.best_epoch, stop.stopped_epoch))
        if model.stop_training:
            break
    stop.on_train_end({})
    return known, int(weights[0][0])


@pytest.mark.parametrize("script", SCRIPTS)
def test_early_stopping_like_keras(monkeypatch, script):
    """72 settings, epoch by epoch, with numbers on which float32 and float64 agree."""
    if "keras" not in sys.modules:
        monkeypatch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND") or "numpy")
    with warnings.catch_warnings():  # Keras's own warnings do not matter
        warnings.simplefilter("ignore")
        keras = pytest.importorskip("keras", exc_type=ImportError)
    assert len(SETTINGS) == 72
    for settings in SETTINGS:
        mine = scripted(EarlyStopping("loss", **settings), SCRIPTS[script])
        theirs = scripted(keras.callbacks.EarlyStopping("loss", **settings), SCRIPTS[script])
        np.testing.assert_equal(mine, theirs, str(settings))


def test_the_best_value_has_its_own_sign():
    stop = EarlyStopping("mae", mode="max", patience=9)
    assert stop.best is None
    make().fit(X, Y, epochs=3, verbose=0, callbacks=[Script([1, 3, 2], "mae"), stop])
    assert (stop.best, stop.best_epoch) == (3, 1)


class R2(Metric):
    """A user-defined metric that does not declare a direction."""

    default_name = "r2"

    def rows(self, ctx, y, p):
        return 1.0 - ctx.xp.mean((p - y) * (p - y), axis=-1)


class Halved(MeanSquaredError):
    """Overrides its base class, so that the direction is unknown."""

    def rows(self, ctx, y, p):
        return 1.0 / (1.0 + super().rows(ctx, y, p))


class Growing(R2):
    direction = "max"


class Renamed(MeanSquaredError):
    default_name = "loss_of_accuracy"


def fit_scripted(metric, values, monitor=None, **kwargs):
    model = xn.Sequential([Dense(1)], seed=1)
    model.compile(SGD(0.05), "mse", **{kwargs.pop("where", "metrics"): [metric]})
    model.build((3,))
    name = f"val_{model.metrics_names[1]}" if monitor is None else monitor
    stop = EarlyStopping(name, restore_best_weights=True, **kwargs)
    model.fit(X, Y, epochs=len(values), verbose=0, validation_split=0.5, callbacks=[Script(values, name), stop])
    return stop.stopped_epoch, model.get_weights()[0][0, 0]


@pytest.mark.parametrize(
    ("metric", "grows"),
    [
        ("mse", False),
        ("mae", False),
        ("accuracy", True),
        ("binary_accuracy", True),
        (CategoricalAccuracy(name="score"), True),  # the metric declares it, not the name
        (MeanSquaredError(name="accuracy"), False),
        (Renamed(), False),
        (Growing(), True),
    ],
)
def test_the_direction_comes_from_the_metric(metric, grows):
    assert fit_scripted(metric, [1, 2, 3, 2, 1]) == ((3, 2) if grows else (1, 0))
    assert fit_scripted(metric, [1, 2, 3, 2, 1], where="weighted_metrics") == ((3, 2) if grows else (1, 0))
    assert fit_scripted(metric, [1, 2, 3, 2, 1], "val_loss") == (1, 0)
    assert fit_scripted(metric, [1, 2, 3, 2, 1], mode="min") == (1, 0)
    assert fit_scripted(metric, [1, 2, 3, 2, 1], mode="max") == (3, 2)


def test_the_directions_of_all_metrics():
    """More of the better in all scores, less in errors and losses; nobody knows for values and functions."""
    less = {"RootMeanSquaredError", "LogCoshError", "FalsePositives", "FalseNegatives", "OfLoss"}
    unknown = {"Mean", "Sum", "MeanMetricWrapper", "ConfusionMatrix"}
    for cls in set(metrics.registry.classes.values()):
        name = cls.__name__
        wanted = None if name in unknown else "max"
        if name in less or (name in losses.registry.classes and name != "CosineSimilarity"):
            wanted = "min"
        assert cls.direction == wanted, name
    assert metrics.MeanMetricWrapper("huber").direction == "min"


@pytest.mark.parametrize("metric", [R2(), Halved(), R2(name="accuracy"), metrics.MeanMetricWrapper(operator.sub)])
def test_an_unknown_direction_is_an_error_before_the_first_epoch(metric):
    model = xn.Sequential([Dense(1)], seed=1)
    model.compile(SGD(0.05), "mse", [metric])
    model.build((3,))
    before = model.get_weights()
    with pytest.raises(InvalidValueError, match=r"mode='max' or 'min', or .*got mode 'auto' and direction None$"):
        model.fit(X, Y, verbose=0, validation_split=0.5, callbacks=EarlyStopping(f"val_{metric.name}"))
    assert (model.step, model.epoch) == (0, 0)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    assert fit_scripted(metric, [1, 2, 1], mode="max") == (2, 1)
    metric.direction = "max"  # of this object
    assert fit_scripted(metric, [1, 2, 1]) == (2, 1)
    metric.direction = "up"
    with pytest.raises(InvalidValueError, match=r"got mode 'auto' and direction 'up'$"):
        fit_scripted(metric, [1, 2, 1])
    del metric.direction


def test_what_early_stopping_prints(capsys):
    """Keras's text, at the end of training."""
    fit_scripted("mae", [1, 2, 1], verbose=1)
    told = "Epoch 2: early stopping\nRestoring model weights from the end of the best epoch: 1.\n"
    assert capsys.readouterr().out == told


@pytest.mark.parametrize("restore", [True, False])
@pytest.mark.parametrize("cut", range(1, 6))
def test_early_stopping_goes_on_from_its_state(cut, restore):
    values = [5.0, 3.0, 4.0, 2.0, 4.0, 4.0, 4.0, 4.0]

    def run(stop, first, last):
        model = SimpleNamespace(stop_training=False, epoch=0, weights=None)
        model.get_weights = lambda: [np.array([model.epoch])]
        model.set_weights = lambda new: setattr(model, "weights", int(new[0][0]))
        stop.set_model(model)
        stop.set_params({"metrics": ["loss"]})
        for epoch in range(first, last):
            model.epoch = epoch
            stop.on_epoch_end(epoch, {"loss": values[epoch]})
            if model.stop_training:
                break
        return model

    kwargs = {"monitor": "loss", "mode": "min", "patience": 3, "restore_best_weights": restore}
    whole, first, second = (EarlyStopping(**kwargs) for _ in range(3))
    run(whole, 0, 8)
    run(first, 0, cut)
    state = first.get_state()
    second.set_params({"metrics": ["loss"]})
    second.on_train_begin({})
    second.set_state(state)
    run(first, cut, cut + 1)  # what it was given stays its own
    model = run(second, cut, 8)
    assert second.get_state() == whole.get_state()
    assert second.stopped_epoch == 6
    second.on_train_end({})
    assert model.weights == (3 if restore else None)


def test_the_history_goes_on_from_its_state():
    model, history = make(), History()
    model.fit(X, Y, epochs=2, verbose=0, callbacks=history)
    state, again = history.get_state(), History()
    again.set_state(state)
    model.fit(X, Y, epochs=4, initial_epoch=2, verbose=0, callbacks=again)
    assert again.epoch == [0, 1, 2, 3]
    assert [len(values) for values in again.history.values()] == [4, 4]
    assert again.history["loss"][:2] == history.history["loss"] == state["history"]["loss"]
    assert (Callback().get_state(), Callback().set_state({"a": 1})) == ({}, None)


def test_an_unknown_monitor_is_found_before_the_first_epoch():
    model = make()
    model.build((3,))
    before = model.get_weights()
    for monitor, kwargs in (("val_loss", {}), ("lss", {"validation_split": 0.2})):
        with pytest.raises(UnknownNameError, match=f"monitor .*'loss'.* got '{monitor}'$"):
            model.fit(X, Y, verbose=0, callbacks=EarlyStopping(monitor), **kwargs)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    assert (model.step, model.epoch) == (0, 0)
    model.fit(X, Y, verbose=0, validation_split=0.2, callbacks=EarlyStopping("val_mae"))


def test_restored_weights_are_the_best_ones_of_real_training():
    model = make()
    model.compile(SGD(0.4), "mse")  # too fast
    stop = EarlyStopping("val_loss", patience=3, restore_best_weights=True)
    history = model.fit(X, Y, epochs=30, verbose=0, validation_data=(X, Y), callbacks=stop).history["val_loss"]
    assert model.evaluate(X, Y) == pytest.approx(min(history), rel=1e-5)
    assert stop.best_epoch == int(np.argmin(history))


# Progress ---------------------------------------------------------------------------------------------------


def test_verbose(capsys, monkeypatch):
    model = make()
    model.fit(X, Y, epochs=2, verbose=0)
    assert capsys.readouterr() == ("", "")
    model.fit(X, Y, batch_size=5, epochs=2, verbose=2, validation_split=0.2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["Epoch 1/2", "Epoch 2/2"]
    assert all(f" {name} " in line for line in lines for name in ("loss", "mae", "val_loss", "val_mae"))
    model.fit(X, Y, batch_size=5, epochs=2, verbose=1, validation_split=0.2)
    out, err = capsys.readouterr()
    assert out == ""
    for part in ("Epoch 1/2: 100%", "Epoch 2/2: 100%", "4/4", "loss ", "mae ", "val_mae "):
        assert part in err
    for terminal, expected in ((True, 1), (False, 2)):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal, raising=False)
        assert ProgressBar("auto", 1, 1).verbose == expected
    model.fit(X, Y)
    assert capsys.readouterr().out.startswith("Epoch 1/1: loss ")


def test_the_bar_looks_at_the_device_only_now_and_then(monkeypatch):
    bar = ProgressBar(1, 1, 10)
    bar.begin(0)
    assert not bar.advance(1)
    monkeypatch.setattr(bar, "_next", 0.0)
    assert bar.advance(1)
    bar.show({"loss": 1.0})
    assert not bar.advance(1)
    bar.close()
    assert not bar.advance(1)


# Ctrl-C -----------------------------------------------------------------------------------------------------


class Interrupt(Callback):
    def __init__(self, hook, at, times=1):
        self.at, self.times = at, times
        setattr(self, hook, self.press)

    def press(self, number=None, logs=None):
        if number == self.at:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("hook", ["on_train_batch_begin", "on_epoch_begin", "on_epoch_end"])
@pytest.mark.parametrize("per_execution", [1, 2])
def test_an_interrupted_model_can_go_on(hook, per_execution):
    model = make(steps_per_execution=per_execution)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, batch_size=4, epochs=3, verbose=0, callbacks=Interrupt(hook, 1))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    host = model.backend.host
    steps = model.backend.counted(model.state.step)
    where = {"on_epoch_end": (10, 2), "on_epoch_begin": (5, 1)}
    assert (model.step, model.epoch) == where.get(hook, (per_execution, 0))
    assert steps == model.step == float(host(model.state.age))  # whole steps only
    assert bool(host(model.state.ok))
    assert np.isfinite(model.fit(X, Y, batch_size=4, verbose=0).history["loss"]).all()
    assert model.step == steps + 5


def test_an_interrupt_does_not_wait_for_a_callback():
    model, seen = make(), []

    class Sleeps(Callback):
        def on_epoch_begin(self, epoch, logs=None):
            signal.raise_signal(signal.SIGINT)
            seen.append("not here")

    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, verbose=0, callbacks=Sleeps())
    assert seen == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    model.fit(X, Y, verbose=0)


def test_a_handler_that_a_callback_sets_stays():
    def mine(*_):
        """Do nothing."""

    class Sets(Callback):
        def on_epoch_begin(self, epoch, logs=None):
            signal.signal(signal.SIGINT, mine)

    try:
        make().fit(X, Y, verbose=0, callbacks=Sets())
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("verbose", ["auto", 1, 2])
@pytest.mark.parametrize("closed", [False, True])
def test_a_program_without_a_console(monkeypatch, verbose, closed):
    """sys.stderr and sys.stdout are None (pythonw), or closed."""
    stream = io.StringIO() if closed else None
    if closed:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    stopping = EarlyStopping("loss")
    assert len(make().fit(X, Y, epochs=2, verbose=verbose, callbacks=stopping).history["loss"]) == 2


@pytest.mark.parametrize("epochs", [{"epochs": 0}, {"epochs": 2, "initial_epoch": 2}, {"initial_epoch": 5}])
def test_no_epoch_at_all(epochs):
    """As in Keras: an empty history; the callbacks are called at the beginning and the end."""
    seen = []

    class Hears(Callback):
        def on_train_begin(self, logs=None):
            seen.append("begin")

        def on_epoch_begin(self, epoch, logs=None):
            seen.append(epoch)

        def on_train_end(self, logs=None):
            seen.append("end")

    model = make()
    stopping = EarlyStopping("loss", restore_best_weights=True)
    history = model.fit(X, Y, verbose=0, callbacks=[Hears(), stopping], **epochs)
    assert (history.history, history.epoch, seen, model.step) == ({}, [], ["begin", "end"], 0)


def test_a_bar_is_closed_when_training_is_interrupted(capsys):
    with pytest.raises(KeyboardInterrupt):
        make().fit(X, Y, batch_size=4, verbose=1, callbacks=Interrupt("on_train_batch_begin", 2))
    assert capsys.readouterr().err.endswith("\n")


def test_somebody_elses_handler_is_left_alone():
    pressed = []
    former = signal.signal(signal.SIGINT, lambda *_: pressed.append(1))
    try:
        make().fit(X, Y, verbose=0, callbacks=Interrupt("on_epoch_begin", 0))
        assert pressed == [1]
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, former)


def test_a_callback_that_fails_restores_the_handler():
    class Fails(Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise RuntimeError("mine")

    model = make()
    with pytest.raises(RuntimeError, match="mine"):
        model.fit(X, Y, verbose=0, callbacks=Fails())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    model.fit(X, Y, verbose=0)
