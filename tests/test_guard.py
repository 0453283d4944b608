"""A step whose loss, gradient or new weights are not finite changes nothing and stops `fit`."""

import numpy as np
import pytest

import xpnet as xn
from xpnet.callbacks import Callback
from xpnet.errors import NonFiniteError
from xpnet.layers import BatchNormalization, Dense, Dropout
from xpnet.optimizers import SGD, Adam, Momentum, RMSprop

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((20, 3)), RNG.standard_normal((20, 1))


CHOICES = {"numpy": ["1", "numpy", "0"], "torch": ["1", "0"]}


@pytest.fixture(autouse=True, params=CHOICES.get(xn.get_backend().name, [None]))
def kernels(request, monkeypatch):
    """Twins on the CPU write in place, so the guard is tested with and without them."""
    if request.param is not None:
        monkeypatch.setenv("XPNET_KERNELS", request.param)


def everything(model):
    """All that a step may change, as host copies."""
    host, state = model.backend.host, model.state
    arrays = {name: np.array(host(getattr(state, name))) for name in ("step", "ok", "weights", "stats", "age")}
    slots = {f"slot {i}": np.array(host(s)) for i, s in enumerate(state.slots)}
    return {**arrays, **slots, "counters": np.array([model.step, model.epoch])}


def assert_equal_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name


def make(optimizer, *layers, loss="mse", dtype="float32"):
    model = xn.Sequential(
        layers or [Dense(4, activation="tanh", name="first"), BatchNormalization(name="norm"),
                   Dense(1, name="last")],
        seed=1,
        dtype=dtype,
    )  # fmt: skip
    model.compile(optimizer, loss)
    return model


def broken_row(value):
    x = X.copy()
    x[13] = value  # the second batch of 10 without shuffling; the fourth of 4
    return x


@pytest.mark.parametrize(
    ("model", "x", "culprit"),
    [
        # 1e38 * 1e38: the product of the first layer overflows
        (lambda: make(SGD(0.01, momentum=0.9), Dense(2, kernel_initializer="ones", name="first"),
                      Dense(1, name="last")), broken_row(3e38), "the output of layer 'first'"),
        # finite outputs, whose squared difference is not
        (lambda: make(Momentum(0.01), Dense(1, kernel_initializer="ones", name="only")), broken_row(1e25),
         "the loss, after layer 'only',"),
        # |p - y| and its slope are finite, but not slope times inputs
        (lambda: make(RMSprop(1e-6), Dense(1, kernel_initializer="zeros", use_bias=False, name="only"),
                      loss=xn.losses.MeanAbsoluteError(reduction="sum")),
         np.vstack([X[:10], np.full((10, 3), 3e38)]), "the gradient of layer 'only'"),
    ],
    ids=["forward", "loss", "gradient"],
)  # fmt: skip
@pytest.mark.parametrize("per_execution", [1, 4])
def test_overflow_on_the_way(model, x, culprit, per_execution):
    model = model()
    rate = model.optimizer.learning_rate
    twin_x, size = x.copy(), 10
    twin = xn.Sequential([type(l).from_config(l.get_config()) for l in model.layers], seed=1)
    twin.compile(type(model.optimizer).from_config(model.optimizer.get_config()), model.loss)
    twin.fit(twin_x[:10], np.ones((10, 1)), batch_size=size, shuffle=False, verbose=0)  # the preceding step
    with pytest.raises(NonFiniteError, match=f"epoch 1, step 2 of the epoch: {culprit} is not finite") as error:
        model.fit(x, np.ones((20, 1)), batch_size=size, shuffle=False, epochs=3, verbose=0,
                  steps_per_execution=per_execution)  # fmt: skip
    assert str(error.value).endswith(f"got learning rate {rate:g}")
    assert isinstance(error.value, ArithmeticError)
    found, expected = everything(model), everything(twin)
    assert found.pop("counters").tolist() == [1, 0]  # one step is counted, but no epoch
    del expected["counters"]
    if model.backend.name in ("numpy", "torch") or per_execution == 1:
        assert_equal_bits(found, expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
    model.fit(X, Y, batch_size=10, verbose=0)
    assert model.step == 3
    assert not np.array_equal(everything(model)["weights"], found["weights"])


def test_overflow_in_the_new_weights():
    model = make(SGD(0.01))
    model.fit(X, Y, batch_size=10, verbose=0)
    before = everything(model)
    model.optimizer.learning_rate = 3e38  # valid: finite
    with pytest.raises(
        NonFiniteError, match="epoch 1, step 1 of the epoch: the learning rate exceeds 1e"
    ) as error:
        model.fit(X, Y * 1000, batch_size=20, verbose=0)
    assert str(error.value).endswith("got learning rate 3e+38")
    assert_equal_bits(everything(model), before)
    model.optimizer.learning_rate = 0.01
    assert model.fit(X, Y, batch_size=10, verbose=0).history["loss"][0] < 100
    assert (model.step, model.epoch) == (4, 2)


def test_weights_beyond_the_limit_are_not_trained():
    """Also finite ones: an update of them may not be finite."""
    model = make(SGD(0.01), Dense(1, kernel_initializer="zeros", name="only"))
    model.build((3,))
    model.set_weights([np.full((3, 1), 2e18), np.zeros(1)])
    before = everything(model)
    with pytest.raises(NonFiniteError, match="step 1 of the epoch: the kernel of layer 'only' exceeds 1e"):
        model.fit(X * 0.0, Y, verbose=0)
    assert_equal_bits(everything(model), before)


@pytest.mark.parametrize("clip", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_clipping_does_not_hide_what_is_not_finite(clip):
    model = make(Adam(0.01, **{clip: 0.5}), Dense(1, kernel_initializer="zeros", use_bias=False, name="only"),
                 loss=xn.losses.MeanAbsoluteError(reduction="sum"))  # fmt: skip
    model.fit(X, Y, verbose=0)
    before = everything(model)
    with pytest.raises(NonFiniteError, match="the gradient of layer 'only' is not finite"):
        model.fit(np.full((20, 3), 3e38), np.ones((20, 1)), verbose=0)
    assert_equal_bits(everything(model), before)
    model.fit(X, Y, verbose=0)


@pytest.mark.parametrize("optimizer", [Adam, RMSprop])
def test_nothing_divided_by_nothing(optimizer):
    """With epsilon = 0 a weight whose gradient is always 0 is updated by 0 / 0."""
    model = make(optimizer(0.01, epsilon=0.0), Dense(1, name="only"))
    x = X.copy()
    x[:, 1] = 0.0
    model.build((3,))
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 1 .* the new kernel of layer 'only' is not finite"):
        model.fit(x, Y, verbose=0)
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)
    after = everything(model)
    assert not any(after[slot].any() for slot in after if slot.startswith("slot"))
    assert (model.step, model.epoch, float(after["age"])) == (0, 0, 0.0)
    model.fit(X, Y, verbose=0)


def test_the_layer_that_is_named_is_the_first_one_concerned():
    model = make(Adam(0.01, epsilon=0.0), Dense(2, activation="tanh", name="sound"), Dense(2, name="bad"))
    model.build((3,))
    kernel, bias, last, shift = model.get_weights()
    last[:, 1] = 0.0  # the second output is exact: no gradient, no movement, 0 / 0
    model.set_weights([kernel, bias, last, shift])
    with pytest.raises(NonFiniteError, match="the new kernel of layer 'bad'"):
        model.fit(X, np.hstack([Y, 0 * Y]), verbose=0)


def test_statistics_stay_as_they_were():
    # the mean of squares of such a batch overflows, and so would the running variance
    model = make(Adam(0.01), BatchNormalization(name="norm"), Dense(1, name="last"))
    model.fit(X, Y, verbose=0)
    before = everything(model)
    assert before["stats"].any()
    with pytest.raises(NonFiniteError, match="'norm'"):
        model.fit(X * 1e25, Y, verbose=0)
    assert_equal_bits(everything(model), before)


@pytest.mark.parametrize("per_execution", [1, 4])
def test_a_later_epoch(per_execution):
    """Weights grow until they overflow: the guard names epoch and step, and the counters agree."""
    model = make(SGD(100.0), Dense(1, name="only"))
    with pytest.raises(NonFiniteError) as error:
        model.fit(X, Y, batch_size=4, epochs=50, verbose=0, steps_per_execution=per_execution)
    assert f"epoch {model.epoch + 1}, step {model.step - 5 * model.epoch + 1} of" in str(error.value)
    assert model.epoch > 0
    state = everything(model)
    assert np.isfinite(state["weights"]).all()
    assert (int(state["step"]), float(state["age"])) == (model.step, model.step)
    assert bool(state["ok"])


def test_one_bad_step_counts_no_batch_behind_it():
    model = make(SGD(0.01), Dense(4, name="first"), Dropout(0.3), Dense(1, kernel_initializer="ones", name="last"))
    with pytest.raises(NonFiniteError, match="epoch 1, step 4 of"):
        model.fit(broken_row(3e38), Y, batch_size=4, shuffle=False, epochs=2, verbose=0, steps_per_execution=2)
    assert (model.step, model.epoch) == (3, 0)


def test_train_on_batch_is_guarded_too():
    model = make(Adam(0.01))
    model.train_on_batch(X, Y)
    before = everything(model)
    with pytest.raises(NonFiniteError, match="step 2: the loss, after layer 'last', is"):
        model.train_on_batch(X, Y * 1e30)
    assert_equal_bits(everything(model), before)
    assert np.isfinite(model.train_on_batch(X, Y))


def test_penalties_that_overflow():
    model = make(SGD(0.01), Dense(1, kernel_regularizer=xn.regularizers.L2(1.0), name="only"))
    model.build((3,))
    weights = [np.full((3, 1), 1e20), np.zeros(1)]
    model.set_weights(weights)
    with pytest.raises(NonFiniteError, match="not finite"):
        model.fit(X * 0.0, Y, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], np.float32(weights[0]))


def test_another_exception_behind_a_bad_step_does_not_leave_it_behind():
    """A callback raises after a step was rejected, before the guard has been read."""

    class Fails(Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 3:
                raise RuntimeError("mine")

    model = make(SGD(0.01), Dense(1, kernel_initializer="ones", name="only"))
    bad = X.copy()
    bad[5] = 3e38  # the second batch of 4
    with pytest.raises(RuntimeError, match="mine"):
        model.fit(bad, Y, batch_size=4, shuffle=False, verbose=0, callbacks=Fails())
    assert model.step == 1
    model.fit(X, Y, batch_size=4, verbose=0)
    assert model.step == 6


def test_infinite_validation_is_only_reported():
    model = make(SGD(0.0), Dense(1, kernel_initializer="ones"))
    history = model.fit(X, Y, verbose=0, validation_data=(X * 1e30, Y))
    assert history.history["val_loss"] == [float("inf")]


class Broken(xn.metrics.Metric):
    """Raises within a step."""

    def rows(self, ctx, y, p):
        raise ZeroDivisionError("a user-defined metric")


def test_a_metric_that_raises_leaves_the_weights_alone():
    model = make(Adam(0.1))
    model.build((3,))
    model.fit(X, Y, verbose=0)
    before = everything(model)["weights"]
    model.compile(Adam(0.1), "mse", [Broken()])
    with pytest.raises(ZeroDivisionError):
        model.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(everything(model)["weights"], before)
    assert model.step == 1


@pytest.mark.parametrize("loss", ["categorical_crossentropy", "sparse_categorical_crossentropy"])
def test_predictions_that_are_no_probabilities_are_the_cause(loss):
    """A head of ReLUs that are all 0: the cause is not the learning rate."""
    labels = np.arange(20) % 3
    y = labels if loss.startswith("sparse") else np.eye(3)[labels]
    model = make(SGD(0.01), Dense(3, "relu", kernel_initializer="zeros", name="last"), loss=loss)
    text = r"layer 'last', is not finite; the predictions are not probabilities: .* end in 'softmax'.*\[0.0, 0.0, "
    with pytest.raises(NonFiniteError, match=text) as error:
        model.fit(X, y, verbose=0)
    assert "smaller" not in str(error.value)
    assert str(error.value).endswith("got learning rate 0.01")
    # for probabilities or scores, the cause may be the rate
    for last, given in (("softmax", loss), (None, xn.losses.get(loss))):
        if last is None:
            given.from_logits = True
        model = make(SGD(0.01), Dense(3, last, kernel_initializer="ones", name="last"), loss=given)
        with pytest.raises(
            NonFiniteError, match="'last' is not finite; a smaller learning rate or scaled inputs may"
        ):
            model.fit(broken_row(3e38), y, verbose=0)


class Changes(xn.callbacks.Callback):
    """Changes the data after the first epoch."""

    def __init__(self, change):
        self.change = change

    def on_epoch_end(self, epoch, logs=None):
        self.change()


LABELS = np.arange(300) % 3


@pytest.mark.parametrize("label", [100_000, 1000, 3, -1, -100, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("rows", [8, 300])
@pytest.mark.parametrize("last", ["softmax", None])
def test_labels_that_change_during_fit_touch_no_memory_that_is_not_ours(last, rows, label):
    model = xn.Sequential([Dense(4, activation="relu"), Dense(3, activation=last)], seed=0)
    loss = xn.losses.SparseCategoricalCrossentropy(from_logits=last is None)
    model.compile("sgd", loss, ["accuracy"])
    x, y, before = np.ones((300, 2), np.float32), LABELS.copy(), []

    def change():
        y[:] = label
        before.extend(model.get_weights())

    with pytest.raises(
        NonFiniteError, match=rf"epoch 2, step 1 .*from 0 to 2; got {label}; the data were changed"
    ):
        model.fit(x, y, batch_size=rows, epochs=3, verbose=0, callbacks=[Changes(change)])
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_that_change_during_fit_are_named():
    model, weight = xn.Sequential([Dense(1)], seed=0), np.ones(10)
    model.compile("sgd", "mse")
    with pytest.raises(NonFiniteError, match="sample weight of the batch is not finite; the data were"):
        model.fit(np.ones((10, 2)), np.ones((10, 1)), sample_weight=weight, epochs=2, verbose=0,
                  callbacks=[Changes(lambda: weight.fill(np.nan))])  # fmt: skip


def test_large_data_that_change_during_fit_are_used():
    """The results equal those of a new `fit` with the changed data; NaN is detected."""
    x, y = np.ones((5000, 60), np.float32), np.ones((5000, 1), np.float32)

    def make():
        model = xn.Sequential([Dense(1)], seed=0)
        model.compile("sgd", "mse")
        return model

    def change():
        x[:], y[:] = 0.5, 2.0

    changed, anew = make(), make()
    changed.fit(x, y, batch_size=500, epochs=2, verbose=0, callbacks=[Changes(change)])
    x[:], y[:] = 1.0, 1.0
    anew.fit(x, y, batch_size=500, verbose=0)
    change()
    anew.fit(x, y, batch_size=500, verbose=0)
    for a, b in zip(changed.get_weights(), anew.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    with pytest.raises(NonFiniteError, match=r"epoch 2, step 1 .*the batch's input is not finite; the data were"):
        changed.fit(x, y, batch_size=500, epochs=2, verbose=0, callbacks=[Changes(lambda: x.fill(np.nan))])
