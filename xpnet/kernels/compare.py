"""Compare the results of a kernel with those of its definition."""

from __future__ import annotations

import numpy as np

__all__ = ["TOLERANCE", "close"]

TOLERANCE = {"float32": 1e-4, "float64": 1e-10}  # allowed rounding error, relative to the largest number


def close(a: np.ndarray, b: np.ndarray, share: float) -> bool:
    """Return whether two arrays differ by at most `share` times the largest number; NaN equals NaN."""
    if a.shape != b.shape or a.dtype.kind != "f":
        return np.array_equal(a, b)
    known = np.isfinite(b)
    most = share * np.abs(b[known].astype(np.float64)).max(initial=0)
    return np.array_equal(a[~known], b[~known], equal_nan=True) and bool(np.all(np.abs(a - b)[known] <= most))
