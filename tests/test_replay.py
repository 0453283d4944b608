"""Recorded steps give the same bits as unrecorded ones, for all kinds of models."""

import os
from contextlib import nullcontext

import numpy as np
import pytest
from cases import MODEL_METRICS, loss_heads
from steps import taken

import xpnet as xn
from xpnet import activations, kernels, layers, losses, metrics, optimizers
from xpnet.backend.tree import leaves
from xpnet.callbacks import Callback
from xpnet.layers import BatchNormalization, Dense, Dropout
from xpnet.training.replay import MAX_ATTEMPTS, MAX_SHAPES, Replay

if xn.get_backend().name != "numpy" or os.environ.get("XPNET_KERNELS") in ("0", "bodies"):
    pytest.skip("steps are recorded on NumPy, with its twins", allow_module_level=True)

RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 6))
CLASSES = np.argmax(X[:, :4], axis=1)
ONE_HOT = np.eye(4)[CLASSES]


def train(monkeypatch, graph, make, y, loss, optimizer="adam", chosen=("accuracy",), **kwargs):
    monkeypatch.setenv("XPNET_GRAPH", graph)
    model = xn.Sequential(make(), seed=1, dtype=kwargs.pop("dtype", None))
    model.compile(optimizer, loss, list(chosen), weighted_metrics=kwargs.pop("weighted_metrics", None))
    history = model.fit(X, y, batch_size=16, epochs=4, verbose=0, **kwargs)
    return model, history


def same_with_and_without(monkeypatch, *args, recorded=True, **kwargs):
    (plain, plain_history), (model, history) = (train(monkeypatch, g, *args, **kwargs) for g in "01")
    assert not isinstance(plain.session.program().run, Replay)
    run = model.session.program().run
    assert isinstance(run, Replay)
    assert len(run.recordings) == (2 if recorded else 0)  # for 16 rows and for 2
    np.testing.assert_equal(history.history, plain_history.history)
    for a, b in zip(leaves(model.state), leaves(plain.state), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return model


def dense(activation="relu", units=4, last="softmax", **kwargs):
    return lambda: [Dense(8, activation=activation, **kwargs), Dense(units, activation=last)]


@pytest.mark.parametrize(
    "activation", sorted({c.__name__ for c in activations.registry.classes.values()} - {"Step"})
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activations(monkeypatch, activation, dtype):
    same_with_and_without(monkeypatch, dense(activation), CLASSES, "sparse_categorical_crossentropy", dtype=dtype)


LOSSES = loss_heads(CLASSES, ONE_HOT)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses(monkeypatch, loss, weighted, fused):
    units, last, y, chosen = LOSSES[loss]
    weights = {"sample_weight": RNG.random(50)} if weighted else {}
    same_with_and_without(
        monkeypatch,
        lambda: [*dense(units=units, last=last)(), *([] if fused else [Dropout(0.1)])],
        y,
        loss,
        chosen=chosen,
        **weights,
    )


def test_every_loss_is_tried():
    assert {losses.get(name).__class__ for name in LOSSES} == set(losses.registry.classes.values())


@pytest.mark.parametrize("metric", MODEL_METRICS)
def test_metrics(monkeypatch, metric):
    make_metric, sparse = MODEL_METRICS[metric]
    loss, y = "categorical_crossentropy", ONE_HOT[:, :3]
    if sparse:
        loss, y = f"sparse_{loss}", CLASSES % 3
    same_with_and_without(monkeypatch, lambda: [Dense(3, "softmax")], y, loss, chosen=[make_metric()],
                          weighted_metrics=[make_metric()], sample_weight=RNG.random(50))  # fmt: skip


@pytest.mark.parametrize("y", [CLASSES, ONE_HOT], ids=["sparse", "one-hot"])
def test_metrics_of_many_sums(monkeypatch, y):
    """Numbers and arrays in one set of sums, weighted and not."""
    chosen = [metrics.Precision([0.1, 0.3, 0.6]), "accuracy", metrics.ConfusionMatrix(), metrics.Recall(top_k=2)]
    weighted = [metrics.ConfusionMatrix(6), metrics.Recall([0.2, 0.5], class_id=1), metrics.Precision()]
    loss = f"{'sparse_' if y is CLASSES else ''}categorical_crossentropy"
    same_with_and_without(monkeypatch, dense(), y, loss, chosen=chosen, weighted_metrics=weighted,
                          sample_weight=RNG.random(50))  # fmt: skip


OPTIMIZERS = {
    "SGD": [
        {}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 1.0, "learning_rate": 1e-3},
        {"weight_decay": 0.1, "global_clipnorm": 0.1},
    ],
    "Momentum": [{}, {"beta": 0.0}, {"weight_decay": 0.1, "global_clipnorm": 0.1}],
    "RMSprop": [
        {}, {"epsilon_on": "root"}, {"epsilon": 1e-12}, {"weight_decay": 0.1, "global_clipnorm": 0.1},
        {"momentum": 0.5}, {"centered": True, "momentum": 0.5},
    ],
    "Adagrad": [{}, {"epsilon": 0.0}, {"weight_decay": 0.1, "global_clipnorm": 0.1}],
    "Adadelta": [{}, {"weight_decay": 0.1, "global_clipnorm": 0.1}],
    "Adamax": [{}, {"use_ema": True}],
    "Nadam": [{}, {"use_ema": True, "ema_overwrite_frequency": 3}],
    "Ftrl": [{}, {"l1_regularization_strength": 0.01, "learning_rate_power": -0.4}],
    "Lion": [{}, {"gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 5, "use_ema": True}],
    "Lamb": [{}, {"weight_decay": 0.1, "global_clipnorm": 0.1}, {"gradient_accumulation_steps": 3}],
    "Adafactor": [{}, {"weight_decay": 0.1, "global_clipnorm": 0.1}, {"use_ema": True}],
    "Muon": [{}, {"clipnorm": 0.1}, {"use_ema": True, "gradient_accumulation_steps": 2}],
    "Adam": [
        {}, {"epsilon_on": "corrected"}, {"beta_1": 0.0}, {"beta_2": 0.99999}, {"amsgrad": True},
        {"clipnorm": 0.1}, {"clipvalue": 0.01}, {"global_clipnorm": 0.1},
    ],
    "AdamW": [{}, {"weight_decay": 0.3, "global_clipnorm": 0.1}],
}  # fmt: skip


@pytest.mark.parametrize(("name", "config"), [(n, c) for n, configs in OPTIMIZERS.items() for c in configs])
def test_optimizers(monkeypatch, name, config):
    optimizer = optimizers.get(name).__class__(**config)
    same_with_and_without(monkeypatch, dense(), CLASSES, "sparse_categorical_crossentropy", optimizer)
    assert {cls.__name__ for cls in optimizers.registry.classes.values()} - {"LBFGS"} == set(OPTIMIZERS)


LAYERS = {
    "dropout": lambda: [Dropout(0.3), Dense(4), Dropout(0.5)],
    "batch norm": lambda: [Dense(8), BatchNormalization(), Dense(4, activation="tanh"),
                           BatchNormalization(scale=False)],
    "noise": lambda: [layers.GaussianNoise(0.2), Dense(6), layers.GaussianDropout(0.2), layers.AlphaDropout(0.1),
                      Dropout(0.2, (1, None), seed=2), Dense(4), layers.GaussianNoise(0.1, seed=3)],
    "row norms": lambda: [Dense(8), layers.LayerNormalization(), layers.RMSNormalization(),
                          layers.GroupNormalization(2), Dense(4), layers.UnitNormalization()],
    "activity": lambda: [Dense(8, "relu", activity_regularizer="l2"), layers.ActivityRegularization(0.1, 0.1),
                         Dense(4)],
    "penalties": lambda: [Dense(8, kernel_regularizer="l2", bias_regularizer="l1"),
                          Dense(4, kernel_regularizer=xn.regularizers.L1L2(0.01, 0.01))],
    "rules": lambda: [Dense(8, kernel_constraint="max_norm", bias_constraint="non_neg"), BatchNormalization(),
                      Dense(4, kernel_regularizer=xn.regularizers.OrthogonalRegularizer(0.5))],
    "no bias": lambda: [Dense(8, use_bias=False, activation="relu"), Dense(4)],
    "combined": lambda: [
        layers.Residual([Dense(5, "relu", kernel_regularizer="l2"), BatchNormalization(), Dropout(0.2), Dense(6)]),
        layers.Parallel([Dense(3), [Dense(3, "tanh"), Dropout(0.5)]]),
        layers.Parallel([Dense(4), Dense(4, "tanh")], "maximum"), layers.Chain([Dense(4), layers.Maxout(4)]),
    ],
    "merges": lambda: [
        *(layers.Parallel([Dense(5), Dense(5, "tanh")], merge) for merge in ("add", "multiply", "average")),
        Dense(4),
    ],
    "classes": lambda: [
        layers.Rescaling(2.0, -0.5), layers.Discretization([-1.0, 0.0, 1.0]),
        layers.Parallel([[layers.Embedding(4, 3, embeddings_regularizer="l2"), layers.Flatten()],
                         layers.CategoryEncoding(4, "count")]), Dense(4),
    ],
    "prepared": lambda: [
        layers.Normalization(mean=1.0, variance=4.0), layers.Reshape((2, 3)), Dense(4), layers.Permute((2, 1)),
        layers.Flatten(), layers.RepeatVector(2), layers.Flatten(), Dense(4),
    ],
    "shapes": lambda: [layers.Flatten(), Dense(5), layers.LeakyReLU(), layers.ReLU(), Dense(4)],
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers(monkeypatch, name):
    same_with_and_without(monkeypatch, LAYERS[name], ONE_HOT, "mse", chosen=["accuracy"])


def test_a_layer_used_twice_and_one_that_is_frozen(monkeypatch):
    def shared():
        layer, frozen = Dense(6, activation="tanh"), Dense(6)
        frozen.trainable = False
        return [layer, frozen, layer, Dense(4)]

    same_with_and_without(monkeypatch, shared, ONE_HOT, "mse")


def test_the_rate_may_change_between_epochs_and_weights_may_be_set(monkeypatch):
    class Changes(Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 0.1 / (epoch + 1)
            if epoch == 1:
                self.model.set_weights([w + 0.5 for w in self.model.get_weights()])

    results = []
    for graph in "01":
        monkeypatch.setenv("XPNET_GRAPH", graph)
        model = xn.Sequential(dense()(), seed=1)
        model.compile("adam", "categorical_crossentropy")
        model.fit(X, ONE_HOT, batch_size=16, epochs=4, verbose=0, callbacks=Changes())
        model.fit(X[:16], ONE_HOT[:16], epochs=3, verbose=0)
        results.append((model.get_weights(), model.step))
    assert results[0][1] == results[1][1]
    for a, b in zip(results[0][0], results[1][0]):
        assert a.tobytes() == b.tobytes()


def test_batches_run_at_once(monkeypatch):
    same_with_and_without(
        monkeypatch, dense(), CLASSES, "sparse_categorical_crossentropy", steps_per_execution=2, shuffle=False
    )


def test_state_lives_where_it_is(monkeypatch):
    """Once a step is recorded, the state stays in the same arrays; data from outside are copied to them."""
    monkeypatch.delenv("XPNET_GRAPH", raising=False)
    model = xn.Sequential(dense()(), seed=1)
    model.compile("adam", "categorical_crossentropy")
    model.fit(X, ONE_HOT, batch_size=25, epochs=2, verbose=0)
    arrays = leaves(model.state)
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    model.fit(X, ONE_HOT, batch_size=10, epochs=2, verbose=0)
    assert all(a is b for a, b in zip(arrays, leaves(model.state), strict=True))
    assert model.flat_weights.any()


@pytest.mark.parametrize("word", ["0", "false", "No", "OFF"])
def test_the_words_that_turn_recording_off(monkeypatch, word):
    for value, recorded in ((word, False), ("true", True), ("On", True), ("", True)):
        model, _ = train(monkeypatch, value, dense(), ONE_HOT, "categorical_crossentropy")
        assert isinstance(model.session.program().run, Replay) is recorded


@pytest.mark.parametrize(("word", "choice"), [("no", "bodies"), ("False", "bodies"), ("NumPy", "numpy")])
def test_the_words_of_xpnet_kernels(monkeypatch, word, choice):
    monkeypatch.setenv("XPNET_KERNELS", word)
    assert kernels.chosen() == choice


def test_the_callers_arrays_are_not_written_to(monkeypatch):
    monkeypatch.delenv("XPNET_GRAPH", raising=False)
    x, y = X[:16].astype("float32"), ONE_HOT[:16].astype("float32")
    model = xn.Sequential(dense()(), seed=1)
    model.compile("sgd", "categorical_crossentropy")
    for _ in range(4):
        model.train_on_batch(x, y)
        model.train_on_batch(x[::-1] * 2, y)
    np.testing.assert_array_equal(x, X[:16].astype("float32"))
    np.testing.assert_array_equal(y, ONE_HOT[:16])


class Doubled(xn.layers.Layer):
    """A user-defined layer that counts its calls."""

    calls = 0

    def forward(self, ctx, params, x):
        type(self).calls += 1
        return x * 2.0, lambda dy, into, want_dx=True: (dy * 2.0, {})


class Own(activations.Activation):
    """Not elementwise."""

    def forward(self, xp, z):
        return z - xp.mean(z, axis=-1, keepdims=True)

    def backward(self, xp, da, z, a):
        return da - xp.mean(da, axis=-1, keepdims=True)


class Hidden(activations.Linear):
    """Elementwise, but a model would not notice a change of its factor."""

    def __init__(self):
        self.factor = 2.0

    def forward(self, xp, z):
        return self.factor * z


class OwnLoss(losses.MeanSquaredError):
    pass


class OwnMetric(metrics.MeanSquaredError):
    pass


def on_the_host(y, p):
    return (y - p) * float(p[0, 0])


class OwnUpdate(optimizers.SGD):
    def apply(self, ctx, w, g, slots, lr, age, factor=None, decay=None):
        return w - lr * g, slots


class Unfused(optimizers.Optimizer):
    def formula(self, xp):
        return lambda w, g, lr: w - lr * g / xp.max(xp.abs(g))


class Norms(optimizers.SGD):
    """Its slot is a scalar."""

    slots = scalar_slots = ("norm",)

    def formula(self, xp):
        return lambda w, g, s, lr: (w - lr * g, s + 1.0)


class OwnPenalty(xn.regularizers.Regularizer):
    def at(self, ctx, w):
        return ctx.xp.sum(w), ctx.xp.ones_like(w)


class OwnConstraint(xn.constraints.Constraint):
    def apply(self, xp, w):
        return 0.5 * w


@pytest.mark.parametrize(
    "parts",
    [{"layer": Dense(3, bias_regularizer=OwnPenalty())}, {"layer": Dense(3, kernel_constraint=OwnConstraint())},
     {"layer": Doubled()}, {"layer": Dense(3, activation=Own())}, {"layer": Dense(3, activation=Hidden())},
     {"loss": OwnLoss()}, {"metrics": [OwnMetric()]},
     {"metrics": [metrics.MeanMetricWrapper(on_the_host)]}, {"metrics": [metrics.OfLoss(OwnLoss())]},
     {"optimizer": OwnUpdate()}, {"optimizer": Unfused(0.01)}, {"optimizer": Norms()}],
    ids=lambda parts: type(next(iter(parts.values()))).__name__,
)  # fmt: skip
def test_code_of_users_runs_at_every_step(monkeypatch, parts):
    monkeypatch.delenv("XPNET_GRAPH", raising=False)
    model = xn.Sequential([parts.get("layer", Dense(3)), Dense(4)], seed=1)
    model.compile(parts.get("optimizer", "sgd"), parts.get("loss", "mse"), parts.get("metrics"))
    Doubled.calls = 0
    model.fit(X, ONE_HOT, batch_size=10, epochs=2, verbose=0)
    assert not isinstance(model.session.program().run, Replay)
    assert Doubled.calls == (10 if "layer" in parts and isinstance(parts["layer"], Doubled) else 0)


def test_the_switches(monkeypatch):
    model = xn.Sequential(dense()(), seed=1)
    model.build((6,))
    for name, value, expected in (
        ("XPNET_GRAPH", "0", False),
        ("XPNET_KERNELS", "bodies", False),
        ("X", "", True),
    ):
        with monkeypatch.context() as m:
            m.delenv("XPNET_GRAPH", raising=False)
            m.delenv("XPNET_KERNELS", raising=False)
            m.setenv(name, value)
            model.compile("sgd", "mse")
            assert isinstance(model.session.program().run, Replay) == expected
            model.compile("sgd", "mse", graph=False)
            assert not isinstance(model.session.program().run, Replay)


def test_a_step_that_cannot_be_recorded_is_tried_a_few_times(monkeypatch):
    tries = []

    class Recorder:
        class CannotRecord(Exception):
            pass

        step_context = nullcontext
        records_stacks = False
        release = staticmethod(lambda: None)
        adopt = new = staticmethod(np.array)
        copy = staticmethod(np.copyto)

        @staticmethod
        def record(step, state, batch):
            tries.append(batch[0].shape)
            raise Recorder.CannotRecord

    run = Replay(lambda s, b, finish: (s[0] + b[0].sum(),), Recorder)
    state = (np.array(0.0),)
    for _ in range(10):
        state = taken(run, state, [(np.ones(2),), (np.ones(3),)])
    assert state[0] == 50.0
    assert tries == [(2,), (3,)] * (MAX_ATTEMPTS - 2)


def test_many_shapes_do_not_pile_up(monkeypatch):
    monkeypatch.delenv("XPNET_GRAPH", raising=False)
    model = xn.Sequential(dense()(), seed=1)
    model.compile("adam", "categorical_crossentropy")
    for _ in range(2):
        for rows in range(1, MAX_SHAPES + 5):
            for _ in range(2):
                model.train_on_batch(X[:rows], ONE_HOT[:rows])
    run = model.session.program().run
    assert len(run.recordings) == MAX_SHAPES
    assert (0, (MAX_SHAPES + 4, 6), (MAX_SHAPES + 4, 4)) in run.recordings
    reference = xn.Sequential(dense()(), seed=1)
    reference.compile("adam", "categorical_crossentropy", graph=False)
    for _ in range(2):
        for rows in range(1, MAX_SHAPES + 5):
            for _ in range(2):
                reference.train_on_batch(X[:rows], ONE_HOT[:rows])
    for a, b in zip(model.get_weights(), reference.get_weights()):
        assert a.tobytes() == b.tobytes()
