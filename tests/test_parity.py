"""Training is the same on every backend: bits where they can be, the losses within the stated limits."""

import pytest

from xpnet.errors import InvalidValueError
from xpnet.tools import parity


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_backend_trains_as_numpys_bodies_do(backend, dtype):
    rows = list(parity.compare([backend.name], dtypes=[dtype], seeds=(0, 1, 2), steps=100))
    assert [row.seed for row in rows] == [0, 1, 2]
    for row in rows:
        assert row.passed, row


def test_the_pinned_network_learns():
    losses = parity.run("numpy", "float64", 0, steps=100).losses
    assert losses[-15:].mean() < 0.9 * losses[:15].mean()


@pytest.mark.parametrize(
    ("change", "passed"),
    [
        ({}, True),
        ({"weights_equal": False}, False),
        ({"batches_equal": False}, False),
        ({"masks_equal": False}, False),
        ({"difference": 2e-9}, False),
        ({"difference": float("nan")}, False),
        ({"dtype": "float32", "difference": 2e-9}, True),
        ({"dtype": "float32", "difference": 2e-4}, False),
    ],
)
def test_what_passes(change, passed):
    row = parity.Row("numpy", "float64", 0, True, True, True, 1e-12)
    assert row._replace(**change).passed is passed


def test_there_must_be_a_step():
    with pytest.raises(InvalidValueError, match="steps must be an integer >= 1; got 0"):
        next(parity.compare(["numpy"], steps=0))


def test_seeds_differ_and_runs_repeat():
    first, again, other = (parity.run("numpy", "float32", seed, steps=2) for seed in (0, 0, 1))
    assert first[:3] == again[:3]
    assert (first.losses == again.losses).all()
    assert all(a != b for a, b in zip(first[:3], other[:3]))
