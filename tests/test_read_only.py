"""No part writes to its inputs: read-only arrays give the same results."""

import cases
import numpy as np
import pytest
import read_only

import xpnet as xn
from xpnet import kernels
from xpnet.backend import get_backend, use_backend
from xpnet.core.random import Stream
from xpnet.kernels.context import Context
from xpnet.layers import Dense, Input
from xpnet.optimizers import SGD

if get_backend().name != "numpy":
    pytest.skip("the arrays are NumPy's with every backend: run once", allow_module_level=True)

LOCKED, PLAIN = read_only.NumPyReadOnly(None, "float64"), get_backend("numpy", dtype="float64")
RNG = np.random.default_rng(0)
X, DY, Z = RNG.standard_normal((6, 3)), RNG.standard_normal((6, 3)), RNG.standard_normal((6, 4))


@pytest.fixture(autouse=True, scope="module")
def entered():
    with read_only.entered():
        yield


def on_both(run):
    """Run on locked arrays and on plain ones; compare all results, bit for bit."""
    with use_backend(LOCKED):
        locked = run(LOCKED)
    with use_backend(PLAIN):
        plain = run(PLAIN)
    assert len(locked) == len(plain) > 0
    for a, b in zip(locked, plain):
        np.testing.assert_array_equal(LOCKED.host(a), b)


@pytest.mark.parametrize("name", [n for n in cases.ACTIVATIONS if n != "step"])
def test_activations(name):
    f = cases.ACTIVATIONS[name][0]

    def run(work):
        z = work.array(Z)
        a = f.forward(work.xp, z)
        return a, f.backward(work.xp, work.array(Z[: a.shape[0], : a.shape[1]] - 0.5), z, a)

    on_both(run)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", cases.LAYERS)
def test_layers(name, training):
    def run(work):
        layer = cases.LAYERS[name]()
        shape = layer.ensure_built((3,))
        masks = {f"0/{d.name}": work.array(d.draw(Stream(1), 0, 0, 6, "float64")) for d in layer.draws}
        ctx = Context(work, training, masks)
        params = {s.name: work.array(np.abs(s.initializer.values(Stream(1), i, s.shape)) + 0.5)
                  for i, s in enumerate(layer.specs)}  # fmt: skip
        x = cases.layer_inputs(layer, X.shape, np.random.default_rng(0))
        y, back = layer.forward(ctx, params, work.array(X if layer.classes is None else x))
        dx, grads = back(work.array(derivative(shape)), {})
        return y, dx, *(grads[key] for key in sorted(grads)), *ctx.carry.values()

    on_both(run)


def derivative(shape):
    return np.random.default_rng(3).standard_normal((6, *shape))


@pytest.mark.parametrize("name", cases.LOSSES)
def test_losses(name):
    cls, settings, y, p = cases.LOSSES[name]
    on_both(lambda work: cls(**settings).value_and_grad(y, work.array(p), np.linspace(0.0, 2.0, len(p))))


@pytest.mark.parametrize("name", cases.METRICS)
def test_metrics(name):
    cls, settings, y, p, _ = cases.METRICS[name]

    def run(work):
        metric = cls(**settings)
        for rows in (slice(0, 7), slice(7, 40)):
            metric.update_state(y[rows], work.array(p[rows]))
        return (metric.result(),)

    on_both(run)


@pytest.mark.parametrize("name", cases.OPTIMIZERS)
def test_optimizers(name):
    def run(work):
        opt, theta = cases.OPTIMIZERS[name][0](0.1), work.array([1.0, -2.0, 3.0])
        state = opt.init(theta)
        for _ in range(3):
            theta, state = opt.update(theta, work.array([0.5, -1.0, 2.0]), state)
        return theta, *state.slots

    on_both(run)


@pytest.mark.parametrize("name", cases.OPTIMIZERS)
def test_training(name):
    def run(work):
        layers = [
            Dense(4, "tanh", kernel_regularizer="l2"),
            xn.layers.BatchNormalization(),
            xn.layers.Dropout(0.3),
        ]
        with kernels.using("bodies"):
            model = xn.Sequential([Input((3,)), *layers, Dense(2, "softmax")], seed=1, backend=work)
            model.compile(cases.OPTIMIZERS[name][0](0.01), "sparse_categorical_crossentropy", ["accuracy"])
            history = model.fit(X, [0, 1, 1, 0, 1, 0], batch_size=4, epochs=2, verbose=0).history
        return *model.get_weights(), np.array(history["loss"])

    on_both(run)


@pytest.mark.parametrize(
    "write",
    [
        lambda a: a.__setitem__(0, 1.0), lambda a: a.__iadd__(1.0), lambda a: np.add(a, 1.0, out=a),
        lambda a: np.copyto(a, 1.0), lambda a: a[1:].fill(0.0), lambda a: np.sum(np.ones((2, 3)), axis=0, out=a),
    ],
)  # fmt: skip
def test_the_arrays_do_refuse(write):
    a = LOCKED.array([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="would write to an array"):
        write(a)
    assert read_only.unlock(a).tolist() == [1.0, 2.0, 3.0]


def test_a_part_that_writes_is_found():
    class Careless(SGD):
        def apply(self, ctx, w, g, slots, lr, age, factor=None):
            g *= lr
            return w - g, slots

    with use_backend(LOCKED), pytest.raises(ValueError, match="would write"):
        Careless(0.1).update(LOCKED.array([1.0]), LOCKED.array([2.0]), Careless(0.1).init(LOCKED.array([1.0])))
