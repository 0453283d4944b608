"""PyTorch's twins write in place: only on the CPU, and only to their own memory.

test_ops.py compares them with their bodies; test_guard.py tests that the guard rejects their updates.
"""

import os

import numpy as np
import pytest

import xpnet as xn
from xpnet import kernels
from xpnet.activations import Activation
from xpnet.activations import get as activation
from xpnet.backend import TorchBackend, get_backend
from xpnet.backend.tree import leaves, tree_map
from xpnet.core import ops
from xpnet.kernels.context import Arena, Context
from xpnet.layers import Dense, Dropout, Layer, PReLU
from xpnet.losses import Loss, SparseCategoricalCrossentropy
from xpnet.optimizers import SGD, Adam, Momentum, RMSprop
from xpnet.training import step as training
from xpnet.training.network import Network
from xpnet.training.step import Batch, TrainState, make_step, zero_sums

if get_backend().name != "torch" or os.environ.get("XPNET_KERNELS") in ("0", "bodies"):
    pytest.skip("PyTorch's own twins", allow_module_level=True)

import torch

from xpnet.kernels import finish, torch_calls
from xpnet.kernels import torch as twins

RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 6)).astype("float32")
Y = np.argmax(X[:, :4], axis=1)


def make(*layers, seed=1, optimizer="adam"):
    model = xn.Sequential(layers or [Dense(8, activation="relu"), Dropout(0.2), Dense(4, activation="softmax")],
                          seed=seed)  # fmt: skip
    model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"])
    return model


def fit(model, epochs=2):
    return model.fit(X, Y, batch_size=16, epochs=epochs, verbose=0)  # the last batch has 2 rows


def bits(model):
    return [np.array(model.backend.host(a)).tobytes() for a in leaves(model.state)]


def context():
    backend = get_backend()
    return Context(backend, True, None, Arena(backend.xp, backend.device))


# In place, if no one else uses the memory -------------------------------------------------------------------


def test_weights_and_slots_stay_in_their_memory():
    model = make()
    fit(model)
    before = [a.data_ptr() for a in (model.state.weights, *model.state.slots)]
    fit(model)
    assert [a.data_ptr() for a in (model.state.weights, *model.state.slots)] == before


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "rmsprop", "adam", "adamw"])
def test_training_ends_where_the_bodies_end(optimizer):
    found = []
    for choice in ("bodies", "numpy"):
        with kernels.using(choice):
            model = make(optimizer=optimizer)
            losses = fit(model, 4).history["loss"]
        found.append((losses, model.get_weights()))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-4)
    for a, b in zip(found[1][1], found[0][1]):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_what_was_handed_out_does_not_change():
    model, x = make(), torch.from_numpy(X)
    fit(model)
    held = [*model.get_weights(), model.flat_weights, model.predict(x), model.predict(x[:1]), model.predict(X)]
    before = [np.asarray(a).copy() for a in held]
    fit(model)
    for a, b in zip(held, before):
        np.testing.assert_array_equal(np.asarray(a), b)
    assert not np.array_equal(np.asarray(model.flat_weights), np.asarray(held[4]))


def test_two_models_do_not_share_memory():
    alone, beside, other = make(), make(), make(seed=2)
    for _ in range(3):
        fit(alone)
    for _ in range(3):
        fit(beside)
        fit(other)
    assert bits(beside) == bits(alone)


def test_predictions_between_steps_change_nothing():
    alone, looked_at = make(), make()
    for _ in range(3):
        alone.train_on_batch(X, Y)
        looked_at.train_on_batch(X, Y)
        looked_at.predict(X[:16])
        looked_at.evaluate(X, Y)
    assert bits(looked_at) == bits(alone)


# Another device ---------------------------------------------------------------------------------------------


def step_on(backend):
    """Return a step and its arguments; on the device "meta" tensors have shapes but no values."""
    network = Network([Dense(8, activation="relu", kernel_regularizer="l2"), Dense(4, activation="softmax")], (6,))
    step = make_step(backend, network, SparseCategoricalCrossentropy(), Adam(global_clipnorm=1.0), [])
    size = network.layout.size
    state = TrainState(
        backend.scalar(0, torch.int32), backend.scalar(0.1), backend.scalar(True, torch.bool), backend.zeros(size),
        (backend.zeros(size), backend.zeros(size)), backend.zeros(0), backend.scalar(0.0), zero_sums(backend, []),
    )  # fmt: skip
    return step, state, Batch(backend.feed(X), backend.feed(Y.astype("int32")), None, {})


def test_on_another_device_nothing_waits_and_nothing_is_written_over(monkeypatch):
    """A tensor on the device "meta" has no values: reading one on the host raises."""
    monkeypatch.setattr(TorchBackend, "_device", lambda self, name: torch.device("meta"))
    backend = TorchBackend()
    assert not backend.inplace
    assert not training._contexts(backend)({}, (2,), None).inplace
    step, state, batch = step_on(backend)
    new = step(state, batch)
    assert {str(a.device) for a in leaves(new)} == {"meta"}
    assert not any(a is b for a, b in zip((new.weights, *new.slots), (state.weights, *state.slots)))


def test_the_cpu_is_written_to():
    backend = get_backend()
    assert backend.inplace
    step, state, batch = step_on(backend)
    new = step(state, batch)
    assert all(a is b for a, b in zip((new.weights, *new.slots), (state.weights, *state.slots)))


def test_somebody_elses_default_device():
    wanted, model = make(), make()
    fit(wanted)
    try:
        torch.set_default_device("meta")
        torch_calls.filled.cache_clear()
        fit(model)
    finally:
        torch.set_default_device(None)
    assert bits(model) == bits(wanted)


# PyTorch's autograd -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize("inside", [(0, 1), (2,), (1, 3), (0, 1, 2, 3)])
def test_a_users_inference_mode(inside, optimizer):
    """Stage 0 is building, then come three fits: tensors made in that mode can't be modified outside it."""
    wanted, model = make(optimizer=optimizer), make(optimizer=optimizer)
    for m, when in ((wanted, ()), (model, inside)):
        for stage in range(4):
            with torch.inference_mode(stage in when):
                m.build((6,)) if stage == 0 else fit(m)
    assert model.step == wanted.step
    for a, b in zip(model.get_weights(), wanted.get_weights()):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


class Cubed(Layer):
    """Differentiated by PyTorch: its output carries an autograd graph."""

    def forward(self, ctx, params, x):
        x = x.detach().requires_grad_()
        y = x**3
        return y, lambda dy, into, want_dx=True: (torch.autograd.grad(y, x, dy)[0], {})


class CubedByHand(Layer):
    def forward(self, ctx, params, x):
        return x**3, lambda dy, into, want_dx=True: (dy * (3 * x**2), {})


@pytest.mark.parametrize("last", [True, False])
def test_a_layer_that_pytorch_differentiates(last):
    def layers(kind):
        return [Dense(4), kind()] if last else [Dense(8), kind(), PReLU(), Dense(4, activation="softmax")]

    models = [xn.Sequential(layers(kind), seed=1) for kind in (Cubed, CubedByHand)]
    for model in models:
        model.compile("adam", SparseCategoricalCrossentropy(from_logits=last))
        fit(model)
        assert not any(a.requires_grad for a in leaves(model.state))
    for a, b in zip(*(model.get_weights() for model in models)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_an_activation_and_a_loss_that_pytorch_differentiates():
    class Exp(Activation):
        def forward(self, xp, z):
            return torch.exp(z.detach().requires_grad_())

        def backward(self, xp, da, z, a):
            return da * a  # part of a's graph

    class Squares(Loss):
        def terms(self, ctx, y, p, weight):
            p = p.detach().requires_grad_()
            values = torch.mean((p - y) ** 2, -1)
            return values, torch.autograd.grad((values * weight).sum(), p, retain_graph=True)[0]

    model = xn.Sequential([Dense(4, activation=Exp()), Dense(2)], seed=1)
    model.compile("adam", Squares())
    losses = model.fit(X, X[:, :2], batch_size=16, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert not any(a.requires_grad for a in leaves(model.state))
    model.fit(X, X[:, :2], sample_weight=np.ones(50), verbose=0)  # its loss is the body's, in PyTorch's graph


def test_data_that_require_gradients():
    wanted, model = make(), make()
    x = torch.from_numpy(X.copy()).requires_grad_()
    fit(wanted)
    model.fit(x, torch.from_numpy(Y), batch_size=16, epochs=2, verbose=0)
    assert x.grad is None
    assert bits(model) == bits(wanted)


# Branches for which the cases of test_ops.py are too small ---------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "inputs", "units"), [(200, 100, 3), (16, 1024, 24), (200, 100, 25)])
def test_products_of_few_columns(rows, inputs, units, bias):
    x, w, b, dy = (
        torch.from_numpy(RNG.standard_normal(s)) for s in ((rows, inputs), (inputs, units), units, (rows, units))
    )
    ctx = Context(get_backend(dtype="float64"), True, None, Arena(get_backend().xp, "cpu"))
    into = {"kernel": torch.empty(inputs, units, dtype=torch.float64)}
    found = []
    for affine in (ops.affine, twins.affine):
        y, backward = affine(ctx, x, w, b if bias else None, activation("linear"))
        dx, grads = backward(dy, into if affine is twins.affine else {})
        found.append([y.clone(), dx, *grads.values()])
    assert grads["kernel"] is into["kernel"]
    for a, wanted in zip(found[1], found[0], strict=True):
        np.testing.assert_allclose(a, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("age", "kept"), [(63.0, True), (64.0, False)])
@pytest.mark.parametrize("optimizer", [Adam(), RMSprop(), Momentum(), SGD(momentum=0.9)], ids=repr)
def test_averages_too_small_to_matter_become_0(optimizer, age, kept):
    ctx = context()
    w, g = torch.ones(8), torch.zeros(8)
    slots = tuple(torch.full((8,), 1e-36) for _ in optimizer.slots)
    for slot in slots:
        slot[0] = 1.0
    twins.update(ctx, optimizer, w, g, slots, torch.tensor(0.1), torch.tensor(age))
    finish.make(ctx.finish)
    assert [bool(s[5] != 0) for s in slots] == [kept] * len(slots)
    assert [float(slot[0]) for slot in slots] == pytest.approx([0.9, 0.999][: len(slots)])


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_adam_with_and_without_pytorchs_own(monkeypatch, own, amsgrad):
    calls = []
    theirs = twins._fused_adam
    counted = (lambda *args, **more: calls.append(theirs(*args, **more))) if own else None
    monkeypatch.setattr(twins, "_fused_adam", counted)
    ctx, adam = context(), Adam(epsilon_on="corrected", amsgrad=amsgrad)
    w, g, *slots = torch.rand(2 + len(adam.slots), 8)
    wanted = ops.update(ctx, adam, w, g, tuple(slots), torch.tensor(0.1), torch.tensor(2.0), 0.1)
    new = twins.update(ctx, adam, w, g, tuple(slots), torch.tensor(0.1), torch.tensor(2.0), 0.1)
    finish.make(ctx.finish)
    tree_map(torch.testing.assert_close, new, wanted)
    assert new[0] is w
    assert len(calls) == (own and not amsgrad)


def test_a_subclass_with_another_formula_is_not_pytorchs_adam():
    class Plain(Adam):
        def formula(self, xp):
            return lambda w, g, m, v, rate, small: (w - g, m, v)

    ctx, (w, g, *slots) = context(), torch.rand(4, 8)
    wanted = w - g
    new, _ = twins.update(ctx, Plain(), w, g, tuple(slots), torch.tensor(0.1), torch.tensor(2.0))
    finish.make(ctx.finish)
    torch.testing.assert_close(new, wanted)
