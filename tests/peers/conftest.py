"""Fixtures for all comparisons with peers: NumPy in float64, and the required agreement."""

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")


@pytest.fixture
def agree():
    """Return `agree(found, wanted, rtol=1e-10)`; the tolerance is relative to the largest number."""

    def compare(found, wanted, rtol=1e-10):
        found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
        assert found.shape == wanted.shape
        largest = np.abs(np.where(np.isfinite(wanted), wanted, 0.0)).max(initial=0.0)
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol * largest)

    return compare
