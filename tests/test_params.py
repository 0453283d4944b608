"""Names <-> slices of one flat array."""

import numpy as np
import pytest

from xpnet import initializers
from xpnet.core.params import Flats, Layout, ParamSpec
from xpnet.core.random import Stream
from xpnet.errors import InvalidTypeError, ShapeError
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
