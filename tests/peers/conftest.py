"""Fixtures for all comparisons with peers: NumPy in float64, and the required agreement."""

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")


@pytest.fixture(autouse=True, scope="session")
def float64():
    """Keras in float64; on PyTorch it otherwise computes in float32 wherever two arrays meet."""
    try:
        import keras
        from keras.src.backend.common.dtypes import BIT64_TO_BIT32_DTYPE
    except ImportError:  # the tests that need Keras skip
        yield
        return
    before = keras.config.floatx(), keras.config.dtype_policy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BIT64_TO_BIT32_DTYPE, "float64", "float64")  # Keras remembers promotions: before the first
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")
        yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


@pytest.fixture
def agree():
    """Return `agree(found, wanted, rtol=1e-10)`; the tolerance is relative to the largest number."""

    def compare(found, wanted, rtol=1e-10):
        found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
        assert found.shape == wanted.shape
        largest = np.abs(np.where(np.isfinite(wanted), wanted, 0.0)).max(initial=0.0)
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol * largest)

    return compare
