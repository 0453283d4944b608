"""Steps captured as CUDA graphs, on a device that captures, refuses and reuses memory as CuPy does.

The device is simulated by cupy_capture.py; the backend is CuPy's, with its twins, compiled by g++.
"""

import gc
import sys
from collections import Counter
from contextlib import contextmanager, suppress
from typing import NamedTuple

import cuda_on_host
import cupy_like
import numpy as np
import pytest
from cases import MODEL_METRICS, loss_heads
from cupy_capture import Graph, clean_start, pretended_cupy
from steps import taken

import xpnet as xn
from xpnet import activations, losses, metrics
from xpnet.activations import Activation
from xpnet.backend import get_backend
from xpnet.backend.tree import leaves
from xpnet.callbacks import Callback
from xpnet.constraints import MaxNorm, MinMaxNorm
from xpnet.errors import NonFiniteError
from xpnet.kernels.cuda.graph import CannotRecord, Recorder
from xpnet.layers import (
    ActivityRegularization,
    AlphaDropout,
    BatchNormalization,
    Dense,
    Dropout,
    GaussianDropout,
    GaussianNoise,
    GroupNormalization,
    LayerNormalization,
    LeakyReLU,
    PReLU,
    RMSNormalization,
    SpatialDropout1D,
    UnitNormalization,
)
from xpnet.optimizers import SGD, Adafactor, Adam, Ftrl, Lamb, Momentum, Muon, Nadam, Optimizer, RMSprop
from xpnet.regularizers import L1, L1L2, L2, OrthogonalRegularizer
from xpnet.training.replay import MAX_ATTEMPTS, Replay

if get_backend().name != "numpy":
    pytest.skip("it is the same on every backend under test: run once, with NumPy", allow_module_level=True)

RNG = np.random.default_rng(0)
X = RNG.standard_normal((22, 6))
CLASSES = np.argmax(X[:, :3], axis=1)
ONE_HOT = np.eye(3)[CLASSES]
WEIGHTS = RNG.uniform(0.5, 2.0, 22)
REFUSED = "the training step is not captured as a CUDA graph: "


made = []  # (recorder, recordings) of each `Replay`


@pytest.fixture(autouse=True)
def device(monkeypatch):
    clean_start(monkeypatch)

    def note(self, step, recorder):
        init(self, step, recorder)
        made.append((recorder, self.recordings))

    init = Replay.__init__
    monkeypatch.setattr(Replay, "__init__", note)
    with pretended_cupy(monkeypatch) as engine:
        yield engine
    made.clear()


@pytest.fixture
def no_room(device):
    """The device has no space for data sets: batches come from the host."""
    device.free = -(1 << 30)


@contextmanager
def without_graphs():
    with pytest.MonkeyPatch.context() as m:
        m.setenv("XPNET_GRAPH", "0")
        yield


def everything():
    return [
        Dense(6, activation="tanh", kernel_regularizer=L2(0.01), bias_regularizer=L1(0.01)), Dropout(0.3),
        BatchNormalization(), PReLU(), Dense(5, kernel_regularizer=L1L2(0.01, 0.02)), LeakyReLU(),
        Dense(5, activation="relu", use_bias=False), Dense(5, activation="sigmoid"),
        Dense(3, activation="softmax"),
    ]  # fmt: skip


def small(activation="relu", last="softmax", units=3):
    return lambda: [Dense(4, activation=activation), Dense(units, activation=last)]


def make(layers, loss="sparse_categorical_crossentropy", optimizer="adam", chosen=("accuracy",), backend="cupy",
         dtype="float32", **kwargs):  # fmt: skip
    model = xn.Sequential(layers(), seed=1, dtype=dtype, backend=backend)
    model.compile(optimizer, loss, list(chosen), **kwargs)
    return model


def fit(model, y=CLASSES, epochs=4, batch_size=8, **kwargs):
    """Train on batches of two shapes: of 8 rows, and of 6."""
    return model.fit(X, y, batch_size=batch_size, epochs=epochs, verbose=0, **kwargs).history


def arrays_of(model):
    return [np.array(model.backend.host(a)) for a in leaves(model.state)]


def same_bits(model, other):
    for a, b in zip(arrays_of(model), arrays_of(other), strict=True):
        assert a.tobytes() == b.tobytes()


def recordings(model):
    """Return all recordings of a model's steps."""
    recorder = model.session.program().recorder
    assert recorder is not None
    return [recording for r, found in made if r is recorder for recording in found.values()]


def graphs_of(device):
    return [g for g in gc.get_objects() if type(g) is Graph and g.engine is device]


def same_with_and_without(layers, y=CLASSES, *args, optimizer=lambda: "adam", epochs=4, fitting=None, **kwargs):
    """Train with graphs and without; return the model trained with them."""
    fitting = fitting or {}
    with without_graphs():
        plain = make(layers, *args, optimizer=optimizer(), **kwargs)
        expected = fit(plain, y, epochs, **fitting)
        assert not isinstance(plain.session.program().run, Replay)
    model = make(layers, *args, optimizer=optimizer(), **kwargs)
    found = fit(model, y, epochs, **fitting)
    assert len(recordings(model)) == 2
    assert repr(found) == repr(expected)  # NaN equals NaN here
    same_bits(model, plain)
    return model


# The same numbers ---------------------------------------------------------------------------------------


class Lion(Optimizer):
    """A user-defined formula, which is not known never to overflow."""

    slots = ("average",)

    def formula(self, xp):
        def at(w, g, m, lr):
            return w - lr * xp.sign(0.9 * m + 0.1 * g), 0.99 * m + 0.01 * g

        return at


class Swish(Activation):
    """A user-defined formula whose derivative reads the scores."""

    def forward(self, xp, z):
        return z / (1.0 + xp.exp(-z))

    def backward(self, xp, da, z, a):
        s = 1.0 / (1.0 + xp.exp(-z))
        return da * (s + a * (1.0 - s))


class InArrays(Optimizer):
    """A user-defined optimizer without a formula, whose author declares that nothing overflows."""

    never_overflows = True

    def apply(self, ctx, w, g, slots, lr, age, factor=None):
        return w - lr / age * g, slots


class Norm(Optimizer):
    """A user-defined optimizer whose formula is not elementwise and reads the age."""

    never_overflows = True

    def numbers(self, xp, lr, age):
        return (lr / age,)

    def formula(self, xp):
        return lambda w, g, rate: w - rate * g / (1.0 + xp.max(xp.abs(g)))


class Counting(Optimizer):
    """A user-defined optimizer with a scalar slot, which the threads of the elements can't write."""

    slots = scalar_slots = ("count",)

    def formula(self, xp):
        return lambda w, g, count, lr: (w - lr / (1.0 + count) * g, count + 1.0)


@pytest.mark.parametrize("optimizer", [InArrays, Norm, Counting])
def test_an_update_in_array_code(optimizer):
    """Its results are NumPy's, with the age of this update, which kernels increment at the end of the step."""
    model = same_with_and_without(small(), optimizer=lambda: optimizer(0.1), dtype="float64")
    reference = make(small(), optimizer=optimizer(0.1), backend="numpy", dtype="float64")
    fit(reference)
    for a, b in zip(arrays_of(model), arrays_of(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert "update" not in cuda_on_host.RawKernel.launched


def test_a_users_activation():
    launched = []
    for activation in (Swish(), "tanh"):
        cuda_on_host.RawKernel.launched.clear()
        model = same_with_and_without(small(activation), dtype="float64")
        reference = make(small(activation), backend="numpy", dtype="float64")
        fit(reference)
        for a, b in zip(arrays_of(model), arrays_of(reference), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        launched.append(cuda_on_host.RawKernel.launched.copy())
    assert launched[0] == launched[1]  # as many launches as a built-in optimizer


@pytest.mark.parametrize(
    "optimizer",
    [lambda: SGD(0.05, momentum=0.9, nesterov=True), lambda: Adam(0.01), lambda: RMSprop(0.01, epsilon=1e-12),
     lambda: Lion(0.001)],
    ids=["sgd", "adam", "an update that may overflow", "a user's"],
)  # fmt: skip
def test_a_hundred_steps(optimizer):
    """All layers: the bits without graphs, and NumPy's results."""
    model = same_with_and_without(everything, optimizer=optimizer, epochs=34, dtype="float64")
    assert set(cuda_on_host.RawKernel.launched) == {
        "bias_act", "act_backward", "dropout", "softmax_ce", "penalize", "sum_scaled", "sum_squares", "within",
        "all_finite", "hits", "tally", "keep_mask", "gather", "update",
    }  # fmt: skip
    reference = make(everything, optimizer=optimizer(), backend="numpy", dtype="float64")
    fit(reference, epochs=34)
    assert model.step == reference.step == 102
    for a, b in zip(arrays_of(model), arrays_of(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def ruled():
    """Constraints, and a penalty that takes products."""
    orthogonal = OrthogonalRegularizer(0.5, "columns")
    return [
        Dense(6, activation="tanh", kernel_constraint=MaxNorm(0.5), bias_constraint="non_neg"),
        BatchNormalization(gamma_constraint="unit_norm", beta_constraint=MaxNorm(0.1)),
        PReLU(alpha_constraint=MinMaxNorm(0.1, 0.2, rate=0.5)),
        Dense(3, activation="softmax", kernel_regularizer=orthogonal, bias_constraint="unit_norm"),
    ]


@pytest.mark.parametrize("optimizer", [lambda: SGD(0.1, momentum=0.9), lambda: Adam(0.01)])
@pytest.mark.parametrize("dtype", ["float64", "mixed_float16"])
def test_constraints_and_penalties_by_formula(optimizer, dtype):
    model = same_with_and_without(ruled, optimizer=optimizer, dtype=dtype)
    if dtype == "float64":
        reference = make(ruled, optimizer=optimizer(), backend="numpy", dtype="float64")
        fit(reference)
        for a, b in zip(arrays_of(model), arrays_of(reference), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_rows_are_normalized_and_outputs_penalized():
    same_with_and_without(lambda: [
        Dense(6, "tanh", activity_regularizer=L1(0.1)), LayerNormalization(), Dense(6), RMSNormalization(),
        GroupNormalization(2), ActivityRegularization(0.01, 0.02), Dense(4), UnitNormalization(),
        Dense(3, "softmax", activity_regularizer=L2(0.1)),
    ])  # fmt: skip


def noisy():
    return [
        GaussianNoise(0.2), Dense(6), GaussianDropout(0.3, seed=4), AlphaDropout(0.2), Dense(5),
        Dropout(0.2, (1, None)), SpatialDropout1D(0.1, seed=5), Dense(3, "softmax"),
    ]  # fmt: skip


def test_captured_steps_make_their_noise():
    """The kernel's numbers are NumPy's up to rounding, and so is what is trained on them."""
    model, reference = (make(noisy, backend=name, dtype="float64") for name in ("cupy", "numpy"))
    found, expected = fit(model, epochs=10), fit(reference, epochs=10)
    assert len(recordings(model)) == 2
    assert {"normals", "keep_mask"} <= set(cuda_on_host.RawKernel.launched)
    assert model.session.program().host_masks is False
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-9)
    for a, b in zip(arrays_of(model), arrays_of(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    [lambda: SGD(0.1), lambda: Momentum(0.1), RMSprop, lambda: Adam(epsilon_on="corrected"), Nadam, Ftrl, Lamb,
     Adafactor, lambda: Adam(use_ema=True), lambda: SGD(0.1, gradient_accumulation_steps=2, clipnorm=1.0),
     lambda: Lamb(use_ema=True, ema_overwrite_frequency=2, gradient_accumulation_steps=3),
     lambda: SGD(0.1, momentum=0.9, use_ema=True, ema_overwrite_frequency=2, gradient_accumulation_steps=3),
     Muon],
)  # fmt: skip
def test_optimizers(optimizer):
    same_with_and_without(small(), optimizer=optimizer)


@pytest.mark.parametrize("name", ["SGD", "Adam", "Ftrl", "Lamb", "Muon"])
def test_accumulation_and_average_as_on_numpy(name):
    """They read the age, which another kernel may count up only at the end of the step."""
    config = {"use_ema": True, "ema_momentum": 0.7, "ema_overwrite_frequency": 2, "gradient_accumulation_steps": 2}
    weights = []
    for where in ({}, {"backend": "numpy"}):
        model = make(small(), optimizer=getattr(xn.optimizers, name)(0.05, **config), dtype="float64", **where)
        fit(model, epochs=5)
        weights.append(arrays_of(model))
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


LOSSES = loss_heads(CLASSES, ONE_HOT)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("loss", list(LOSSES))
def test_losses(loss, weighted, fused):
    units, last, y, chosen = LOSSES[loss]
    layers = small(last=last, units=units)
    same_with_and_without(lambda: [*layers(), *([] if fused else [LeakyReLU()])], y, loss, chosen=chosen,
                          fitting={"sample_weight": WEIGHTS} if weighted else {})  # fmt: skip


def test_every_loss_is_tried():
    assert {losses.get(name).__class__ for name in LOSSES} == set(losses.registry.classes.values())


@pytest.mark.parametrize(
    "activation", sorted({c.__name__ for c in activations.registry.classes.values()} - {"Step"})
)
def test_activations(activation):
    same_with_and_without(small(activation))


@pytest.mark.parametrize("metric", MODEL_METRICS)
def test_metrics(metric):
    make_metric, sparse = MODEL_METRICS[metric]
    loss, y = "categorical_crossentropy", ONE_HOT
    if sparse:
        loss, y = f"sparse_{loss}", CLASSES
    same_with_and_without(small(), y, loss, chosen=[make_metric()], weighted_metrics=[make_metric()],
                          fitting={"sample_weight": WEIGHTS})  # fmt: skip


@pytest.mark.parametrize("y", [CLASSES, ONE_HOT], ids=["sparse", "one-hot"])
def test_metrics_of_many_sums(y):
    """Numbers and arrays in one set of sums, weighted and not."""
    chosen = [
        metrics.Precision([i / 10 for i in range(10)]),
        "accuracy",
        metrics.ConfusionMatrix(),
        metrics.Recall(top_k=2),
    ]
    weighted = [metrics.ConfusionMatrix(6), metrics.Recall([0.2, 0.5], class_id=1), metrics.Precision()]
    loss = f"{'sparse_' if y is CLASSES else ''}categorical_crossentropy"
    same_with_and_without(small(), y, loss, chosen=chosen, weighted_metrics=weighted,
                          fitting={"sample_weight": WEIGHTS})  # fmt: skip
    assert {"confusion", "tally", "tally_array"} <= set(cuda_on_host.RawKernel.launched)


def test_more_statistics_than_one_concatenation_takes():
    same_with_and_without(lambda: [layer for _ in range(5) for layer in (Dense(3), BatchNormalization())])


@pytest.mark.parametrize("per_execution", [2, 5])
def test_several_steps_at_once(per_execution):
    model = same_with_and_without(everything, steps_per_execution=per_execution, fitting={"shuffle": False})
    whole = {2: (2, 8), 5: (2, 8)}[per_execution]  # 22 rows: two batches of 8, and one of 6
    assert sorted(room[0].shape for _, room in recordings(model)) == [whole, (6,)]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    """Products of 16-bit factors, in separate kernels; close to NumPy's results under the same policy."""
    model = same_with_and_without(everything, dtype=policy)
    assert "narrow" in cuda_on_host.RawKernel.launched
    reference, exact = (make(everything, backend="numpy", dtype=dtype) for dtype in (policy, "float32"))
    curves = [fit(m)["loss"] for m in (make(everything, dtype=policy), reference, exact)]
    np.testing.assert_allclose(curves[0], curves[1], rtol=5e-3)
    np.testing.assert_allclose(curves[0], curves[2], rtol=5e-2)
    assert curves[0] != curves[2]
    assert all(w.dtype == np.float32 for w in model.get_weights())


def test_steps_of_too_large_a_scale():
    """They are rejected, also in a graph, with no other effect: masks and counters continue as on NumPy."""

    def layers():
        return [Dense(4), Dropout(0.5), Dense(3)]

    kwargs = {"optimizer": lambda: SGD(1e-6), "dtype": "mixed_float16", "chosen": ["mae"]}
    model = same_with_and_without(layers, 300.0 * ONE_HOT, "mse", **kwargs)
    assert "rescale" in cuda_on_host.RawKernel.launched
    reference = make(layers, "mse", SGD(1e-6), ["mae"], "numpy", "mixed_float16")
    fit(reference, 300.0 * ONE_HOT)
    scale, streak = (float(np.asarray(a)) for a in reference.state.scale)
    assert scale < 2.0**14
    assert 0 < streak < 12
    assert [float(a.get()) for a in model.state.scale] == [scale, streak]
    assert (int(model.state.step), float(model.state.age)) == (12, streak)
    curves = [fit(m, 300.0 * ONE_HOT, epochs=1)["mae"] for m in (model, reference)]
    np.testing.assert_allclose(*curves, rtol=1e-3)


def test_tf32(monkeypatch):
    monkeypatch.setenv("XPNET_MATMUL_PRECISION", "tf32")
    model = same_with_and_without(small())
    monkeypatch.delenv("XPNET_MATMUL_PRECISION")
    exact = make(small())
    fit(exact)
    assert any(a.tobytes() != b.tobytes() for a, b in zip(arrays_of(model), arrays_of(exact)))


# What is captured, and when -----------------------------------------------------------------------------


def test_one_graph_for_each_shape_of_batch(device, monkeypatch, no_room):
    """The first batch of a shape runs uncaptured, the second is captured, the others are launches."""
    launches = Counter()
    launch = Graph.launch
    monkeypatch.setattr(Graph, "launch", lambda self, stream: (launches.update([id(self)]), launch(self, stream)))
    model = make(small())
    fit(model, epochs=1)  # 8, 8, 6
    assert sorted(launches.values()) == [1]
    calls = len(cuda_on_host.RawKernel.launched)
    fit(model, epochs=1)
    assert sorted(launches.values()) == [1, 3]
    assert len(cuda_on_host.RawKernel.launched) > calls
    calls = len(cuda_on_host.RawKernel.launched)
    fit(model, epochs=3)
    assert sorted(launches.values()) == [4, 9]
    assert len(cuda_on_host.RawKernel.launched) == calls
    assert len(recordings(model)) == 2
    fit(model, epochs=2, sample_weight=WEIGHTS)  # one more array
    assert len(recordings(model)) == 4


def test_a_thousand_launches_of_a_data_set_that_is_held_take_no_more_memory(device):
    model, sizes = make(everything), []
    fit(model, epochs=2)
    for _ in range(5):
        made.clear()
        gc.collect()
        fit(model, epochs=34)
        sizes.append(device.pool.total_bytes())
    assert len(set(sizes)) == 1
    assert all(len(s._queue) < 10 for s in device.streams)


def test_a_thousand_launches_take_no_more_memory(device, no_room):
    model = make(everything)
    fit(model, epochs=34)
    graphs = graphs_of(device)
    notes, blocks = [len(g.notes) for g in graphs], len(device._blocks)
    assert len(graphs) == 2
    for _ in range(10):
        fit(model, epochs=34)
        assert len(device._blocks) == blocks
    assert model.step == 11 * 102
    assert graphs_of(device) == graphs
    assert [len(g.notes) for g in graphs] == notes
    assert len(device.cublas.handles) == 1
    assert all(len(s._queue) < 10 for s in device.streams)


@pytest.mark.parametrize("switch", ["XPNET_GRAPH", "graph=False", "XPNET_KERNELS"])
def test_the_switches(monkeypatch, switch):
    if switch.startswith("X"):
        monkeypatch.setenv(switch, "0")
    model = make(small(), graph=switch != "graph=False")
    fit(model, epochs=2)
    assert not isinstance(model.session.program().run, Replay)


# State --------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    total: object
    count: object


def add_up(state, batch):
    """A step whose results are all new arrays."""
    return Pair(state.total + batch[0] * 2.0, state.count + 1.0)


@pytest.fixture
def recorder():
    return Recorder(sys.modules["cupy"].cuda.Device(0))


def pair(xp, total, count):
    return Pair(xp.asarray(np.full(3, total)), xp.asarray(count))


def test_recording_takes_one_step(recorder, device):
    """The step before the capture runs on copies; the capture runs nothing; the launch takes the step."""
    xp = get_backend("cupy").xp
    state, batch = pair(xp, 1.0, 0.0), (xp.asarray(np.full(3, 10.0)),)
    seen = []

    def step(state, batch):
        result = add_up(state, batch)
        seen.append((device.current.is_capturing(), result, [np.array(a.values) for a in state]))
        return result

    with recorder.step_context():
        play = recorder.record(step, state, batch)
    assert [capturing for capturing, _, _ in seen] == [False, True]
    assert all(a.tolist() in ([1.0] * 3, 0.0) for _, _, values in seen for a in values)
    assert state.total.values.tolist() == [21.0] * 3
    assert state.count.values == 1.0
    batch[0].values[...] = 100.0
    with recorder.step_context():
        play()
        play()
    assert state.total.values.tolist() == [421.0] * 3
    assert state.count.values == 3.0


def test_state_lives_where_it_is(no_room):
    """Once a step is captured, the state stays in the same arrays; data from outside are copied to them."""
    model = make(everything)
    fit(model, epochs=2)
    state = leaves(model.state)
    addresses = [a.memory.ctypes.data for a in state]
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    fit(model, epochs=2)
    assert all(a is b for a, b in zip(state, leaves(model.state), strict=True))
    assert [a.memory.ctypes.data for a in leaves(model.state)] == addresses
    assert model.flat_weights.values.any()


def test_the_rate_may_change_between_epochs_and_weights_may_be_set():
    class Changes(Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 0.1 / (epoch + 1)
            if epoch == 1:
                self.model.set_weights([w + 0.5 for w in self.model.get_weights()])

    same_with_and_without(everything, fitting={"callbacks": Changes(), "validation_data": (X[:7], CLASSES[:7])})


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("optimizer", [Adam, lambda: RMSprop(epsilon=1e-12)], ids=["in place", "a new array"])
def test_a_step_that_is_held_back(device, held, steps, optimizer):
    """In a graph, or (after one step) in the step being captured: nothing changes, and `fit` reports it."""
    device.free = 1 << 30 if held else -(1 << 30)
    spoilt = X[:8].copy()
    spoilt[5] = 3e38

    why = "epoch 1, step 1 .* the output of layer 'first' is not finite"

    def layers():
        return [Dense(3, kernel_initializer="ones", name="first"), *everything()]

    def train():
        model = make(layers, optimizer=optimizer())
        model.fit(X[:8], CLASSES[:8], batch_size=8, epochs=steps, verbose=0)
        for _ in range(2):
            step, before = model.step, state_of(model)
            with pytest.raises(NonFiniteError, match=why):
                model.fit(spoilt, CLASSES[:8], batch_size=8, verbose=0)
            assert model.step == step
            for a, b in zip(state_of(model), before, strict=True):
                assert a.tobytes() == b.tobytes()
            model.fit(X[:8], CLASSES[:8], batch_size=8, epochs=2, verbose=0)
        return model

    def state_of(model):
        s, host = model.state, model.backend.host
        return [np.array(host(a)) for a in (s.step, s.age, s.weights, *s.slots, s.stats)]

    model = train()
    assert recordings(model)
    with without_graphs():
        same_bits(model, train())


# What can't be captured ---------------------------------------------------------------------------------


class Own(xn.layers.Layer):
    """A user-defined layer that multiplies by a function of (ctx, x)."""

    def __init__(self, factor, name="own"):
        super().__init__(name=name)
        self.factor = factor

    def forward(self, ctx, params, x):
        factor = self.factor(ctx, x)
        return x * factor, lambda dy, into, want_dx=True: (dy * factor if want_dx else None, {})


def uncaptured(layers, why, y=CLASSES, *args, same=True, **kwargs):
    """Train with a step that can't be captured: one warning, and the results without graphs."""
    model = make(layers, *args, **kwargs)
    with pytest.warns(RuntimeWarning, match=REFUSED + why) as caught:
        fit(model, y)
    assert len(caught) == 1
    assert recordings(model) == []
    if same:
        with without_graphs():
            plain = make(layers, *args, **kwargs)
            fit(plain, y)
        same_bits(model, plain)
    return model


SYNCHRONISING = {
    "float": (lambda ctx, x: float(ctx.xp.sum(x)) * 0.0 + 2.0, "D2H"),
    "if": (lambda ctx, x: 2.0 if ctx.xp.all(x == x) else 3.0, "D2H"),
    "item": (lambda ctx, x: x[0, 0].item() * 0.0 + 2.0, "D2H"),
    "get": (lambda ctx, x: float(x.get()[0, 0] * 0.0 + 2.0), "D2H"),
    "mask": (lambda ctx, x: ctx.xp.sum(x[x > 100.0]) + 2.0, "D2H"),
    "nonzero": (lambda ctx, x: float(ctx.xp.nonzero(x)[0].shape[0] > 0) + 1.0, "D2H"),
    "upload": (lambda ctx, x: ctx.xp.asarray(np.full(4, 2.0), dtype=x.dtype), "H2D"),
}


@pytest.mark.parametrize("name", SYNCHRONISING)
def test_a_layer_that_synchronises(name):
    factor, direction = SYNCHRONISING[name]
    why = f"RuntimeError: the current stream is capturing, so {direction} transfers are .*, in layer 'own'$"
    model = uncaptured(lambda: [Dense(4), Own(factor), Dense(3, activation="softmax")], why)
    assert model.step == 12


def test_a_layer_that_waits():
    """It ends the capture itself; the first error is still the one reported."""

    def wait(ctx, x):
        sys.modules["cupy"].cuda.get_current_stream().synchronize()
        return 2.0

    uncaptured(lambda: [Own(wait), Dense(3, activation="softmax")],
               "CUDARuntimeError: cudaErrorStreamCaptureUnsupported: .*, in layer 'own'$")  # fmt: skip


def test_a_constant_of_the_hosts_is_captured():
    def layers():
        return [Dense(4), Own(lambda ctx, x: ctx.xp.asarray(2.0, dtype=x.dtype)), Dense(3, activation="softmax")]

    same_with_and_without(layers)


def test_products_that_only_cupy_makes():
    """All products, without the bindings of cuBLAS."""
    why = "NotImplementedError: calling cuBLAS API during stream capture is .*unsupported, in layer 'dense'$"
    with pytest.MonkeyPatch.context() as m, pretended_cupy(m, bindings=False):
        uncaptured(small(), why)


def test_inputs_of_more_than_two_axes():
    def trained():
        model = make(lambda: [Dense(3, activation="tanh"), Dense(3, activation="softmax")])
        model.fit(X.reshape(22, 3, 2), np.stack([CLASSES] * 3, 1), batch_size=8, epochs=3, verbose=0)
        return model

    with without_graphs():
        plain = trained()
    model = trained()
    assert len(recordings(model)) == 2
    same_bits(model, plain)


def test_a_step_that_differs_from_its_graph_is_found():
    """A graph repeats numbers that the host drew during the capture."""
    drawn = iter(())

    def layers():
        return [Dense(4), Own(lambda ctx, x: next(drawn)), Dense(3, activation="softmax")]

    numbers = RNG.random(100).tolist()
    drawn = iter(numbers)
    why = "its graph gives other results than the step itself, in weights, slots, sums$"
    model = uncaptured(layers, why, same=False)
    assert model.step == 12
    # the second step drew three times: before the capture, in it, and uncaptured
    drawn = iter([numbers[0], *numbers[3:]])
    with without_graphs():
        plain = make(layers)
        fit(plain)
    same_bits(model, plain)


@pytest.mark.parametrize(("expected", "captured"), [(1.0, 2.0), (1.0, np.nan), (np.nan, 1.0)])
def test_the_comparison_sees_any_difference(recorder, expected, captured):
    xp = get_backend("cupy").xp
    state, factors = pair(xp, 5.0, 0.0), iter((expected, captured))
    why = pytest.warns(RuntimeWarning, match="than the step itself, in count$")
    with why, recorder.step_context(), pytest.raises(CannotRecord):
        recorder.record(lambda s, b: Pair(s.total * 2.0, s.count + next(factors)), state, ())
    assert state.total.values.tolist() == [5.0] * 3
    assert state.count.values == 0.0


def test_nan_is_what_comes_of_nan(recorder):
    xp = get_backend("cupy").xp
    state, batch = pair(xp, np.nan, 0.0), (xp.asarray(np.ones(3)),)
    with recorder.step_context():
        recorder.record(add_up, state, batch)()
    assert state.count.values == 2.0
    assert np.isnan(state.total.values).all()


def test_what_is_in_its_place_is_not_stored(recorder, device):
    state = pair(get_backend("cupy").xp, 1.0, 0.0)
    with recorder.step_context():
        steps = (lambda s, b: s, lambda s, b: Pair(s.total, s.count + 1.0))
        plays = [recorder.record(step, state, ()) for step in steps]
    assert sorted(len(g.notes) for g in graphs_of(device)) == [0, 2]
    del plays


def test_a_capture_that_is_lost_without_an_error(recorder):
    """Code that continues after an error which ended the capture: `end_capture` reports it."""
    xp = get_backend("cupy").xp
    state = pair(xp, 1.0, 0.0)

    def step(state, batch):
        with suppress(RuntimeError):
            sys.modules["cupy"].cuda.get_current_stream().synchronize()
        return state

    why = "CUDARuntimeError: cudaErrorStreamCaptureInvalidated"
    with recorder.step_context(), pytest.warns(RuntimeWarning, match=REFUSED + why), pytest.raises(CannotRecord):
        recorder.record(step, state, ())
    assert not recorder.stream.is_capturing()


def test_an_interrupted_capture_leaves_the_stream_as_it_was(recorder):
    xp = get_backend("cupy").xp
    state, batch = pair(xp, 1.0, 0.0), (xp.asarray(np.ones(3)),)
    calls = []

    def step(state, batch):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return add_up(state, batch)

    with pytest.raises(KeyboardInterrupt), recorder.step_context():
        recorder.record(step, state, batch)
    assert not recorder.stream.is_capturing()
    assert state.total.values.tolist() == [1.0] * 3
    with recorder.step_context():
        recorder.record(step, state, batch)
    assert state.total.values.tolist() == [3.0] * 3


def test_an_error_of_the_step_itself_is_no_refusal(recorder):
    xp = get_backend("cupy").xp

    def step(state, batch):
        raise ValueError("of the step")

    with recorder.step_context(), pytest.raises(ValueError, match="of the step"):
        recorder.record(step, pair(xp, 1.0, 0.0), ())
    assert recorder.refused == ""


def test_after_a_refusal_nothing_is_tried_again(recorder):
    xp = get_backend("cupy").xp
    state, calls = pair(xp, 1.0, 0.0), []

    def step(state, batch):
        calls.append(None)
        return Pair(state.total * float(state.count), state.count)

    with recorder.step_context():
        with pytest.warns(RuntimeWarning, match="D2H"), pytest.raises(CannotRecord, match="D2H"):
            recorder.record(step, state, ())
        assert len(calls) == 2
        with pytest.raises(CannotRecord, match="D2H"):
            recorder.record(step, state, ())
        assert len(calls) == 2
    run = Replay(lambda s, b, finish: s, recorder)
    for _ in range(MAX_ATTEMPTS + 2):
        taken(run, state, [(xp.asarray(1.0),)])
    assert run.recordings == {}


# Memory and streams -------------------------------------------------------------------------------------


def test_what_a_step_frees_is_nobody_elses(device):
    """Arrays made after the capture, of all sizes, share no memory with the graphs."""
    model = make(everything, "sparse_categorical_crossentropy")
    fit(model, epochs=2)
    gc.collect()
    others = []
    for stream in device.streams:
        with stream:
            others += [device.upload(np.full(size, float(i))) for i, size in enumerate((1, 5, 70, 130, 400) * 60)]
    device.settle()
    fit(model, epochs=2)
    for i, other in enumerate(others):
        assert (other.values == i % 300).all()
    with without_graphs():
        plain = make(everything, "sparse_categorical_crossentropy")
        fit(plain, epochs=2)
        fit(plain, epochs=2)
    same_bits(model, plain)


def test_the_pool_lives_as_long_as_its_graphs(device):
    xp = get_backend("cupy").xp
    state, batch = pair(xp, 0.0, 0.0), (xp.asarray(np.full(3, 10.0)),)
    recorder = Recorder(sys.modules["cupy"].cuda.Device(0))
    with recorder.step_context():
        play = recorder.record(lambda s, b: add_up(add_up(s, b), b), state, batch)
    del recorder
    gc.collect()
    play()
    assert state.total.values.tolist() == [80.0] * 3


def test_graphs_of_several_shapes_share_a_pool(recorder, device):
    xp = get_backend("cupy").xp
    state = pair(xp, 0.0, 0.0)
    batches = [(xp.asarray(np.full(3, value)),) for value in (1.0, 10.0, 100.0)]
    plays, sizes, wanted = [], [], 222.0
    with recorder.step_context():
        for batch in batches:
            plays.append(recorder.record(add_up, state, batch))
            sizes.append(recorder.pool.total_bytes())
        for i in (0, 2, 1, 1):
            plays[i]()
            wanted += 2 * (1.0, 10.0, 100.0)[i]
    assert state.total.values.tolist() == [wanted] * 3
    assert sizes == [recorder.pool.total_bytes()] * 3


def test_no_memory_for_another_graph(recorder, device):
    """The step is not captured, and captured ones keep their memory, although CuPy's pools release free memory."""
    xp = get_backend("cupy").xp
    state, batch, wide = pair(xp, 1.0, 0.0), (xp.asarray(np.full(3, 10.0)),), (xp.asarray(np.ones((300, 3))),)

    def step(state, batch):
        return Pair(state.total + xp.sum(xp.reshape(batch[0] * 2.0, (-1, 3)), axis=0), state.count + 1.0)

    with recorder.step_context():
        play = recorder.record(step, state, batch)
        spare = [a + 1.0 for a in state]  # the size of the copies of the state
        del spare
        device.full = True
        why = pytest.warns(RuntimeWarning, match=REFUSED + "MemoryError: .* bytes")
        with why, pytest.raises(CannotRecord):
            recorder.record(step, state, wide)
        play()
    assert state.total.values.tolist() == [41.0] * 3
    assert state.count.values == 2.0


def test_batches_wait_for_a_step_that_failed(recorder, device):
    """The failed step's stream may still read a batch whose memory has been freed."""
    xp = get_backend("cupy").xp
    recorder.begin_feeding()
    with recorder.feeding():
        batch = xp.asarray(np.full(3, 10.0))
    with suppress(ZeroDivisionError), recorder.step_context():
        doubled = batch * 2.0
        raise ZeroDivisionError
    del batch
    with sys.modules["cupy"].cuda.Stream(non_blocking=True):
        recorder.begin_feeding()
        with recorder.feeding():
            xp.asarray(np.full(3, 77.0))
    recorder.feeder.run()
    assert doubled.values.tolist() == [20.0] * 3


@pytest.mark.parametrize("why", ["other requests", "many shapes"])
def test_buffers_that_a_graph_writes_to_stay_its_own(device, why):
    """Later steps replace the buffers that twins write to; a graph keeps its own."""

    class Asking(xn.layers.Layer):
        size = 40

        def forward(self, ctx, params, x):
            ctx.empty((self.size,))
            return x, lambda dy, into, want_dx=True: (dy, {})

    layer = Asking()
    model = make(lambda: [Dense(4), layer, Dense(3, activation="softmax")])
    fit(model, epochs=2)
    if why == "other requests":
        layer.size = 1000
        fit(model, epochs=1, sample_weight=WEIGHTS)
    else:
        for rows in range(1, 23):
            model.train_on_batch(X[:rows], CLASSES[:rows])
    gc.collect()
    others = []
    for stream in device.streams:
        with stream:
            others += [device.upload(np.full(size, 7.0)) for size in (1, 5, 70, 130, 400) * 60]
    device.settle()
    fit(model, epochs=2)
    for other in others:
        assert (other.values == 7.0).all()


def test_work_is_ordered_with_that_of_the_callers_stream(recorder, device):
    """The caller's stream fills an array; the step's stream reads it, and the caller reads the result."""
    cuda, xp = sys.modules["cupy"].cuda, get_backend("cupy").xp
    for caller in (device.streams[0], cuda.Stream(non_blocking=True)):
        with caller:
            state, batch = pair(xp, 1.0, 0.0), (xp.asarray(np.full(3, 10.0)),)
            assert np.isnan(state.total.memory).all()  # not computed yet
            with recorder.step_context():
                assert device.current is recorder.stream
                play = recorder.record(add_up, state, batch)
            assert device.current is caller
            assert state.total.get().tolist() == [21.0] * 3
            more = (xp.asarray(np.full(3, 50.0)),)
            with recorder.step_context():
                recorder.copy(batch[0], more[0])
                play()
            assert state.total.get().tolist() == [121.0] * 3
            with pytest.raises(ZeroDivisionError), recorder.step_context():
                raise ZeroDivisionError(play())
            assert device.current is caller
            assert state.total.get().tolist() == [221.0] * 3


def test_streams_and_workspaces_are_taken_over_by_later_models(device):
    for _ in range(4):
        model = make(small())
        fit(model, epochs=2)
        assert recordings(model)
        del model
        made.clear()
        gc.collect()
    assert len(device.streams) == 3
    assert len(device.cublas.handles) == 1
    models = [make(small()) for _ in range(3)]
    for model in models:
        fit(model, epochs=2)
    assert len({m.session.program().run.recorder.stream.ptr for m in models}) == 3
    same_bits(models[0], models[2])


# The stand-in itself ------------------------------------------------------------------------------------


@pytest.fixture
def capturing(device):
    """Make a capturing stream current."""
    stream = sys.modules["cupy"].cuda.Stream(non_blocking=True)
    a = device.upload(np.arange(4.0))
    with stream:
        stream.wait_event(device.streams[0].record())
        stream.begin_capture()
        yield stream, a
        if stream.is_capturing():
            stream.end_capture()


def test_while_a_stream_captures_nothing_runs(capturing, device):
    stream, a = capturing
    b = (a + 1.0) * 2.0
    c = b[1:3]  # a view
    graph = stream.end_capture()
    assert np.isnan(b.values).all()
    for value in (0.0, 10.0):
        a.values[...] = np.arange(4.0) + value
        graph.launch()
        assert c.values.tolist() == [4.0 + 2 * value, 6.0 + 2 * value]


def test_what_the_stand_in_refuses_in_a_capture(capturing, device):
    stream, a = capturing
    xp = get_backend("cupy").xp
    matrix = xp.reshape(a, (2, 2))
    for call in (lambda: float(a[0]), lambda: bool(xp.all(a > 0)), lambda: a.get(), lambda: a[0].item(),
                 lambda: a[a > 1.0], lambda: xp.nonzero(a), lambda: xp.sign(a), lambda: int(a[1]),
                 lambda: a.tolist()):  # fmt: skip
        with pytest.raises(RuntimeError, match="D2H transfers are disallowed"):
            call()
    for call in (lambda: xp.asarray(np.ones(3)), lambda: xp.asarray([1.0]), lambda: xp.concat([a] * 9),
                 lambda: xp.stack([a] * 9)):  # fmt: skip
        with pytest.raises(RuntimeError, match="H2D transfers are disallowed"):
            call()
    matmul = sys.modules["cupy"].matmul
    for call in (lambda: matrix @ matrix, lambda: xp.matmul(matrix, matrix), lambda: xp.vecdot(a, a),
                 lambda: xp.tensordot(a, a), lambda: matmul(matrix, matrix, out=matrix)):  # fmt: skip
        with pytest.raises(NotImplementedError, match="cuBLAS"):
            call()
    with pytest.raises(RuntimeError, match="IllegalState"):
        stream.begin_capture()
    with pytest.raises(RuntimeError, match="Isolation"):
        stream.wait_event(device.streams[0].record())
    result = xp.concat([a] * 8) + xp.asarray(1.0)  # these are allowed
    graph = stream.end_capture()
    graph.launch(stream)
    assert result.values.tolist() == [1.0, 2.0, 3.0, 4.0] * 8
    for stop in (lambda: stream.end_capture(), lambda: device.streams[0].end_capture()):
        with pytest.raises(RuntimeError, match="IllegalState"):
            stop()
    with pytest.raises(RuntimeError, match="cannot capture on the default"):
        device.streams[0].begin_capture()
    with pytest.raises(NotImplementedError):
        Graph()
    stream.begin_capture()
    with pytest.raises(RuntimeError, match="cudaErrorStreamCaptureUnsupported"):
        stream.synchronize()
    with pytest.raises(RuntimeError, match="cudaErrorStreamCaptureInvalidated"):
        a + 1.0
    with pytest.raises(RuntimeError, match="cudaErrorStreamCaptureInvalidated"):
        stream.end_capture()
    assert (a + 1.0).get().tolist() == [1.0, 2.0, 3.0, 4.0]


def test_memory_that_is_freed_is_handed_out_again(device):
    a = device.upload(np.arange(4.0))
    address = a.memory.ctypes.data
    view = a[1:]
    del a
    b = device.upload(np.arange(4.0))
    assert b.memory.ctypes.data != address
    assert view.values.tolist() == [1.0, 2.0, 3.0]
    total = view + 1.0  # reads memory that is about to be reused
    del view
    c = device.new_array((4,), "float64")
    assert c.memory.ctypes.data == address
    assert total.values.tolist() == [2.0, 3.0, 4.0]
    assert np.isnan(c.values).all()
    del c
    with sys.modules["cupy"].cuda.Stream(non_blocking=True):
        d = device.new_array((4,), "float64")
    assert d.memory.ctypes.data != address


def test_memory_of_a_pool_that_is_gone_is_an_illegal_address(device):
    cuda = sys.modules["cupy"].cuda
    a, stream, pool = device.upload(np.arange(4.0)), cuda.Stream(non_blocking=True), cuda.MemoryPool()
    with stream, cuda.using_allocator(pool.malloc):
        stream.wait_event(device.streams[0].record())
        stream.begin_capture()
        b = (a + 1.0) * 2.0
        graph = stream.end_capture()
    graph.launch(stream)
    assert b.values.tolist() == [2.0, 4.0, 6.0, 8.0]
    del pool
    graph.launch(stream)
    with pytest.raises(RuntimeError, match="cudaErrorIllegalAddress"):
        device.settle()


def test_streams_do_not_wait_for_each_other(device):
    cuda = sys.modules["cupy"].cuda
    first, second = (cuda.Stream(non_blocking=True) for _ in range(2))
    with first:
        a = device.upload(np.arange(4.0))
    with second:
        assert np.isnan((a + 1.0).get()).all()
        second.wait_event(first.record())
        assert (a + 1.0).get().tolist() == [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(NotImplementedError):
        cuda.Stream()


def test_only_the_modules_that_know_cupy_use_what_is_beyond_the_standard(device):
    a = device.upload(np.arange(4.0))
    for use in (lambda: a.__setitem__(0, 1.0), lambda: a.copy(), lambda: a.flags, lambda: a.data, lambda: a.all()):
        with pytest.raises(TypeError, match="not in the floors that all backends share"):
            use()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(cupy_like, "KNOW_CUPY", (__name__,))
        a[1:3] = a.copy()[0]
        assert a.values.tolist() == [0.0, 0.0, 0.0, 3.0]
