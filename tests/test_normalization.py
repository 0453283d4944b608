"""Layers that normalize, over any axes: values by NumPy, derivatives, errors."""

import numpy as np
import pytest

import xpnet as xn
from xpnet import kernels
from xpnet.errors import InvalidTypeError, InvalidValueError, ShapeError
from xpnet.kernels.context import Context
from xpnet.layers import (
    BatchNormalization,
    Dense,
    GroupNormalization,
    Input,
    LayerNormalization,
    RMSNormalization,
    UnitNormalization,
)
from xpnet.testing import assert_close, check_gradients

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 4, 6)) * 2 + 1


def with_weights(layer, shape=X.shape[1:]):
    """Return the layer built, and its weights by name: random, of the declared shapes."""
    layer.ensure_built(shape)
    values = {s.name: RNG.uniform(0.5, 2.0, s.shape) for s in layer.specs}
    layer.set_weights(list(values.values()))
    return layer, values


LAYERS = {
    "layer_1": lambda: LayerNormalization(1, epsilon=0.1),
    "layer_both": lambda: LayerNormalization((2, 1)),
    "layer_negative": lambda: LayerNormalization([-2], center=False),
    "rms_1": lambda: RMSNormalization(1),
    "rms_both": lambda: RMSNormalization((-1, 1), 0.2),
    "group_2": lambda: GroupNormalization(2),
    "group_axis": lambda: GroupNormalization(2, 1, scale=False),
    "instance": lambda: GroupNormalization(-1, axis=-2, epsilon=0.2),
    "unit_1": lambda: UnitNormalization(1),
    "unit_all": lambda: UnitNormalization((0, 1, 2)),
    "batch_1": lambda: BatchNormalization(1),
    "batch_negative": lambda: BatchNormalization(axis=-2, scale=False),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients(backend64, name, training):
    check_gradients(LAYERS[name](), (5, 4, 6), backend=backend64, training=training)


@pytest.mark.parametrize("name", [n for n in LAYERS if n != "unit_all"])
def test_several_models_along_a_leading_axis(backend64, name):
    layer, one = with_weights(LAYERS[name]())
    both = {k: np.stack([v, 2.0 * v]) for k, v in one.items()}
    x, dy = RNG.standard_normal((2, 2, 5, 4, 6))

    def run(part):
        ctx = Context(backend64, True)
        y, backward = layer.forward(ctx, {k: backend64.array(part(v)) for k, v in both.items()},
                                    backend64.array(part(x)))  # fmt: skip
        dx, grads = backward(backend64.array(part(dy)), {})
        return {"y": y, "dx": dx, **grads, **ctx.carry}

    together = run(lambda a: a)
    for k in range(2):
        for key, alone in run(lambda a, k=k: a[k]).items():
            assert_close(backend64.host(together[key])[k], backend64.host(alone), message=key)


@pytest.mark.parametrize("axis", [1, 2, -1, -2, (1, 2), [2, 1], (-1,)])
def test_layer_normalization_by_numpy(backend64, axis):
    layer, w = with_weights(LayerNormalization(axis, 0.25))
    axes = tuple(sorted(a % 3 for a in ((axis,) if isinstance(axis, int) else axis)))
    assert [s.shape for s in layer.specs] == [tuple(X.shape[a] for a in axes)] * 2
    shape = [n if a in axes else 1 for a, n in enumerate(X.shape)]
    xh = (X - X.mean(axes, keepdims=True)) / np.sqrt(X.var(axes, keepdims=True) + 0.25)
    wanted = w["gamma"].reshape(shape) * xh + w["beta"].reshape(shape)
    assert_close(layer(backend64.array(X)), backend64.array(wanted))
    rms, v = with_weights(RMSNormalization(axis, 0.5))
    wanted = v["scale"].reshape(shape) * X / np.sqrt((X * X).mean(axes, keepdims=True) + 0.5)
    assert_close(rms(backend64.array(X)), backend64.array(wanted))
    norm = np.sqrt((X * X).sum(axes, keepdims=True))
    assert_close(UnitNormalization(axis)(backend64.array(X)), backend64.array(X / norm))


@pytest.mark.parametrize(("groups", "axis", "size"), [(1, -1, 6), (2, -1, 3), (3, 2, 2), (-1, -1, 1), (2, 1, 2)])
def test_group_normalization_by_numpy(backend64, groups, axis, size):
    layer, w = with_weights(GroupNormalization(groups, axis, 0.25))
    x = np.moveaxis(X, axis, -1)
    parts = [x[..., i : i + size] for i in range(0, x.shape[-1], size)]
    xh = [(p - p.mean((1, 2), keepdims=True)) / np.sqrt(p.var((1, 2), keepdims=True) + 0.25) for p in parts]
    wanted = np.moveaxis(w["gamma"] * np.concatenate(xh, -1) + w["beta"], -1, axis)
    assert_close(layer(backend64.array(X)), backend64.array(wanted))


@pytest.mark.parametrize("axis", [1, -2])
def test_batch_normalization_of_another_axis(backend64, axis):
    """As with the features last."""
    layer, w = with_weights(BatchNormalization(axis, 0.75, 0.5))
    last, _ = with_weights(BatchNormalization(momentum=0.75, epsilon=0.5), (6, 4))
    last.set_weights(list(w.values()))
    on = {k: backend64.array(v) for k, v in w.items()}
    for training in (True, False):
        found, wanted = Context(backend64, training), Context(backend64, training)
        y, _ = layer.forward(found, on, backend64.array(X))
        z, _ = last.forward(wanted, on, backend64.array(np.swapaxes(X, 1, 2)))
        assert_close(backend64.host(y), np.swapaxes(backend64.host(z), 1, 2))
        assert len(found.carry) == 2 * training
        for key, value in wanted.carry.items():
            assert_close(found.carry[key], value)


def test_a_row_of_zeros_has_no_direction(backend64):
    """Its norm counts as 1e-12, which does not depend on it."""
    layer, x = UnitNormalization(), np.array([[0.0, 0.0], [3e-13, 4e-13], [3.0, 4.0]])
    layer.ensure_built((2,))
    y, back = layer.call(Context(backend64), backend64.array(x))
    assert_close(y, backend64.array([[0.0, 0.0], [0.3, 0.4], [0.6, 0.8]]))
    assert_close(
        back(backend64.array(np.ones((3, 2)))), backend64.array([[1e12, 1e12], [1e12, 1e12], [0.032, -0.024]])
    )


def test_one_group_of_one_feature_per_row_is_beta(backend64):
    """A variance of 0: no division by 0 even so, because of epsilon."""
    layer = GroupNormalization(-1, beta_initializer="ones")
    assert_close(layer(backend64.array([[5.0, 7.0]])), backend64.array([[1.0, 1.0]]))


def test_arguments_are_those_of_keras():
    assert repr(LayerNormalization(-1, 1e-3, True, True, "zeros", "ones", None, None)) == "LayerNormalization()"
    assert (
        repr(GroupNormalization(32, -1, 1e-3, True, True, "zeros", "ones", None, None)) == "GroupNormalization()"
    )
    keras = (-1, 0.99, 1e-3, True, True, "zeros", "ones", "zeros", "ones", None, None)
    assert repr(BatchNormalization(*keras)) == "BatchNormalization()"
    assert repr(RMSNormalization(-1, 1e-6)) == "RMSNormalization()"


def trained(**kwargs):
    """Return the weights after 6 steps through all of these layers, on rows and on sequences."""
    found = []
    for x in (X[:, 0], X):
        layers = [
            Dense(8), LayerNormalization(), Dense(6, "tanh"), GroupNormalization(3), BatchNormalization(),
            RMSNormalization(), Dense(4), LayerNormalization(scale=False), UnitNormalization(), Dense(2),
        ]  # fmt: skip
        model = xn.Sequential([Input(x.shape[1:]), *layers], seed=1, dtype="float64", **kwargs)
        model.compile(xn.optimizers.SGD(0.1, momentum=0.9), "mse")
        model.fit(x, np.sin(x[..., :2]), batch_size=4, epochs=3, verbose=0)
        found += model.get_weights()
    return found


def test_training_is_the_same_with_twins_and_without(backend):
    with kernels.using("bodies"):
        wanted = trained(backend="numpy")
    for a, b in zip(trained(), wanted, strict=True):
        assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_empty_batches_and_those_of_one_row(backend):
    for name, make in LAYERS.items():
        for rows in (0, 1):
            y = make()(backend.array(X[:rows], "float32"))
            assert tuple(y.shape) == (rows, 4, 6), name


@pytest.mark.parametrize("name", LAYERS)
def test_large_inputs_have_finite_derivatives(backend, name):
    layer, _ = with_weights(LAYERS[name]())
    weights = [backend.array(w, "float32") for w in layer.get_weights()]
    for x in (1e4 * RNG.uniform(-1, 1, X.shape), np.full(X.shape, 1e4)):
        ctx = Context(backend, True)
        y, back = layer.forward(
            ctx, dict(zip([s.name for s in layer.specs], weights)), backend.array(x, "float32")
        )
        dx, grads = back(backend.array(np.ones(X.shape), "float32"), {})
        assert all(np.isfinite(backend.host(a)).all() for a in (y, dx, *grads.values()))


@pytest.mark.parametrize(
    ("call", "error", "ends"),
    [
        (lambda: LayerNormalization(0), ShapeError, "the batch axis of inputs of shape ('batch', 4, 6); got 0"),
        (lambda: LayerNormalization((1, -2)), ShapeError, "got (1, -2)"),
        (lambda: LayerNormalization(3), ShapeError, "got 3"),
        (lambda: LayerNormalization((-1, -4)), ShapeError, "got (-1, -4)"),
        (lambda: RMSNormalization(-3), ShapeError, "axis of RMSNormalization must name different axes other than "
         "the batch axis of inputs of shape ('batch', 4, 6); got -3"),
        (lambda: GroupNormalization(2, 0), ShapeError, "got 0"),
        (lambda: GroupNormalization(4), ShapeError, "features must be a multiple of groups, 4; got 6"),
        (lambda: GroupNormalization(32), ShapeError, "groups, 32; got 6"),
        (lambda: BatchNormalization(0), ShapeError, "got 0"),
        (lambda: BatchNormalization(-5), ShapeError, "got -5"),
        (lambda: UnitNormalization(3), ShapeError, "UnitNormalization must name different axes of inputs of shape "
         "('batch', 4, 6); got 3"),
        (lambda: UnitNormalization((0, -3)), ShapeError, "got (0, -3)"),
    ],
)  # fmt: skip
def test_axes_that_do_not_fit(call, error, ends):
    layer = call()
    with pytest.raises(error) as caught:
        layer(X)
    assert str(caught.value).endswith(ends)
    assert not layer.built


@pytest.mark.parametrize(
    ("call", "error", "ends"),
    [
        (lambda: LayerNormalization("last"), InvalidTypeError, "axis must be an integer; got 'last'"),
        (lambda: LayerNormalization(()), InvalidTypeError, "got ()"),
        (lambda: LayerNormalization((1, 0.5)), InvalidValueError, "got 0.5"),
        (lambda: LayerNormalization(epsilon=-1), InvalidValueError, "got -1"),
        (lambda: GroupNormalization(0), InvalidValueError, "groups must be an integer >= 1, or -1; got 0"),
        (lambda: GroupNormalization(-2), InvalidValueError, "got -2"),
        (lambda: GroupNormalization("two"), InvalidTypeError, "got 'two'"),
        (lambda: BatchNormalization(0.9), InvalidValueError, "axis must be an integer; got 0.9"),
        (lambda: BatchNormalization((1, 2)), InvalidTypeError, "got (1, 2)"),
    ],
)
def test_settings_out_of_range(call, error, ends):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).endswith(ends)
