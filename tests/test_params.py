"""Names <-> slices of one flat array."""

import numpy as np
import pytest

from xpnet import initializers
from xpnet.constraints import Constraint, MaxNorm, NonNeg
from xpnet.core.params import Flats, Layout, ParamSpec
from xpnet.core.random import Stream
from xpnet.errors import InvalidTypeError, ShapeError
from xpnet.kernels.context import Context
from xpnet.regularizers import Regularizer
from xpnet.testing import assert_close

ZEROS, NORMAL = initializers.get("zeros"), initializers.get("random_normal")


def layout():
    return Layout(
        [
            ("a/kernel", 0, ParamSpec("kernel", (2, 3), NORMAL, l2=0.5)),
            ("a/bias", 1, ParamSpec("bias", (3,), ZEROS)),
            ("b/gain", 65536, ParamSpec("gain", (), NORMAL, l1=0.25, l2=1.0)),
            ("b/mean", 65537, ParamSpec("mean", (2,), ZEROS, trainable=False, l2=9.0)),
        ]
    )


def test_slices_and_segments():
    found = layout()
    assert found.size == 12
    assert found.slices == {
        "a/kernel": slice(0, 6),
        "a/bias": slice(6, 9),
        "b/gain": slice(9, 10),
        "b/mean": slice(10, 12),
    }
    assert found.segments == ((0, 6, 0.0, 0.5), (9, 10, 0.25, 1.0))  # only trainable parameters are penalized


class Cubed(Regularizer):
    def at(self, ctx, w):
        return ctx.xp.sum(w * w * w), 3.0 * w * w


def ruled():
    """One parameter in the middle and one at the end have rules; a statistic's would not count."""
    rules = {"regularizer": Cubed(), "constraint": MaxNorm(1.0)}
    return Layout(
        [
            ("a/first", 0, ParamSpec("first", (2,), ZEROS, l2=0.5)),
            ("a/kernel", 1, ParamSpec("kernel", (2, 3), ZEROS, **rules)),
            ("a/bias", 2, ParamSpec("bias", (3,), ZEROS)),
            ("a/mean", 3, ParamSpec("mean", (2,), ZEROS, trainable=False, **rules)),
            ("a/gain", 4, ParamSpec("gain", (), ZEROS, regularizer=Cubed(), constraint=NonNeg())),
        ]
    )


@pytest.mark.parametrize("lead", [(), (3,), (2, 2)])
def test_penalties_and_constraints_by_formula(backend64, lead):
    here, ctx, rng = ruled(), Context(backend64), np.random.default_rng(2)
    w, g = rng.standard_normal((2, *lead, 14))
    value, slope = here.penalize(ctx, backend64.array(w), backend64.array(g))
    own = np.isin(np.arange(14), [*range(2, 8), 13])
    wanted = 0.5 * (w[..., :2] ** 2).sum() + (w[..., own] ** 3).sum()
    assert_close(value, backend64.scalar(wanted), rtol=1e-12)
    wanted = np.where(own, 3 * w * w, 0.0) + np.where(np.arange(14) < 2, w, 0.0)
    assert_close(slope, backend64.array(g + wanted))
    kernel = w[..., 2:8].reshape(*lead, 2, 3)
    norms = np.sqrt((kernel**2).sum(-2, keepdims=True))
    wanted = w.copy()
    wanted[..., 2:8] = (kernel * np.minimum(norms, 1.0) / (norms + 1e-7)).reshape(*lead, 6)
    wanted[..., 13] = np.maximum(w[..., 13], 0.0)
    assert_close(here.constrain(ctx, backend64.array(w)), backend64.array(wanted))


def test_without_rules_nothing_is_copied(backend64):
    w = backend64.zeros(12)
    assert layout().constrain(Context(backend64), w) is w


class Sum(Regularizer):
    def at(self, ctx, w):
        return ctx.xp.sum(w)


class Row(Regularizer):
    def at(self, ctx, w):
        return ctx.xp.sum(w), w[0, :]


class First(Constraint):
    def apply(self, xp, w):
        return w[:1, :]


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        ({"regularizer": Sum()}, InvalidTypeError, r"Sum\(\) must return the penalty and its gradient; got "),
        ({"regularizer": Row()}, ShapeError, r"a/w: the gradient of Row\(\) must have .* \(2, 3\); got \(3,\)$"),
        ({"constraint": First()}, ShapeError, r"a/w: what First\(\) returns must have .* \(2, 3\); got \(1, 3\)$"),
        ({"constraint": MaxNorm(axis=2)}, ShapeError, r"axis must be an axis of .* \(2, 3\); got 2$"),
    ],
)
def test_rules_that_return_something_else(backend64, rule, error, message):
    here, ctx, w = (
        Layout([("a/w", 0, ParamSpec("w", (2, 3), ZEROS, **rule))]),
        Context(backend64),
        backend64.zeros(6),
    )
    with pytest.raises(error, match=message):
        here.penalize(ctx, w, here.constrain(ctx, w))


def test_an_empty_layout():
    assert Layout([]).size == 0
    assert Layout([]).initial(Stream(0)).shape == (0,)


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_views_and_pack_are_inverse(backend, lead):
    here, flat = layout(), np.random.default_rng(0).standard_normal((*lead, 12)).astype(np.float32)
    views = here.views(backend.xp, backend.array(flat))
    assert {k: v.shape for k, v in views.items()} == {
        "a/kernel": (*lead, 2, 3),
        "a/bias": (*lead, 3),
        "b/gain": lead,
        "b/mean": (*lead, 2),
    }
    assert_close(views["a/kernel"], backend.array(flat[..., :6].reshape(*lead, 2, 3)))
    shuffled = dict(reversed(views.items()))  # the layout's order counts, not the dictionary's
    assert_close(here.pack(backend.xp, shuffled), backend.array(flat))


def test_initial_values_are_keyed_by_the_slot():
    values, stream = layout().initial(Stream(9)), Stream(9)
    np.testing.assert_array_equal(values[:6].reshape(2, 3), NORMAL.values(stream, 0, (2, 3)))
    np.testing.assert_array_equal(values[6:9], 0)
    np.testing.assert_array_equal(values[9], NORMAL.values(stream, 65536, ()))


def test_known_values_are_not_drawn():
    known = {"a/kernel": np.full((2, 3), 7.0), "b/gain": np.array(5.0)}
    values, drawn = layout().initial(Stream(9), known), layout().initial(Stream(9))
    np.testing.assert_array_equal(values, [*[7.0] * 6, *drawn[6:9], 5.0, *drawn[10:]])


def test_what_a_model_leaves_to_a_layer(backend):
    flat = backend.array(np.arange(12.0, dtype=np.float32))
    other = Layout([("a/count", 0, ParamSpec("count", (), ZEROS, trainable=False))])
    left = Flats(backend, ((layout(), flat), (other, backend.array(np.array([3.0], dtype=np.float32)))))
    found = left.values("a", ["count", "bias"])
    assert [(name, value.shape, value.tolist()) for name, value in found.items()] == [
        ("count", (), 3.0), ("bias", (3,), [6.0, 7.0, 8.0]),
    ]  # fmt: skip
    found["bias"][:] = -1.0
    np.testing.assert_array_equal(backend.host(flat), np.arange(12.0))


def test_host_parts_are_copies(backend):
    here, flat = layout(), backend.array(np.arange(12.0, dtype=np.float32))
    parts = here.host_parts(backend, flat)
    parts["a/bias"][:] = -1
    assert_close(flat, backend.array(np.arange(12.0, dtype=np.float32)))
    np.testing.assert_array_equal(parts["a/kernel"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(here.from_host(here.host_parts(backend, flat)), np.arange(12.0))


@pytest.mark.parametrize(
    ("bias", "error", "ends"),
    [
        (np.zeros(4), ShapeError, "a/bias: weights must have shape (3,); got (4,)"),
        (np.zeros((1, 3)), ShapeError, "got (1, 3)"),
        (["x", "y", "z"], InvalidTypeError, "got ['x', 'y', 'z']"),
        ([[1], [1, 2]], InvalidTypeError, "got [[1], [1, 2]]"),
    ],
)
def test_from_host_refuses(bias, error, ends):
    parts = {"a/kernel": np.zeros((2, 3)), "a/bias": bias, "b/gain": 1.0, "b/mean": np.zeros(2)}
    with pytest.raises(error) as caught:
        layout().from_host(parts)
    assert str(caught.value).endswith(ends)
