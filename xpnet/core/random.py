"""Counter-based random numbers: functions of (seed, purpose, slot, step), the same on every backend.

The generator is NumPy's Philox (4x64-10; J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011). Nothing depends on earlier draws, so weights, shuffles, masks and noise are the same after a resume and
in any order of requests. The host makes them with NumPy, so they are bit-equal on every backend. Steps that are
captured on a GPU make their own masks, bit for bit, and their own noise, up to rounding (see `normals`).
"""

from __future__ import annotations

import math
import secrets

from ..backend import np

__all__ = ["DRAW", "INIT", "SHUFFLE", "Stream", "fresh_seed", "keep_mask", "normals", "set_first_seed"]

# The purposes: the highest word of Philox's 256-bit counter.
INIT, SHUFFLE, DRAW = 0, 1, 2


_seeds: np.random.Generator | None = None


def fresh_seed() -> int:
    """Return a seed of 32 bits, short enough to write down; unpredictable unless `set_first_seed` was called."""
    return secrets.randbits(32) if _seeds is None else int(_seeds.integers(2**32))


def set_first_seed(seed: int) -> None:
    """Make the results of `fresh_seed` from now on a function of this seed."""
    global _seeds
    _seeds = np.random.Generator(np.random.Philox(seed))


class Stream:
    """All random numbers of one seed.

    Args:
        seed: a non-negative integer.

    Attributes:
        key: Philox's key, two words of 64 bits.

    >>> a, b = Stream(7), Stream(7)
    >>> _ = a.at(SHUFFLE, 0, 3).random(5)
    >>> bool((a.at(INIT, 1, 0).random(4) == b.at(INIT, 1, 0).random(4)).all())
    True
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
        self._bits = np.random.Philox(key=self.key)
        self._state = self._bits.state
        self._generator = np.random.Generator(self._bits)
        self._others: dict[int, Stream] = {}

    def of(self, seed: int | None) -> Stream:
        """Return the stream of another seed; None: this one."""
        if seed is None:
            return self
        return self._others.setdefault(seed, self if seed == self.seed else Stream(seed))

    def at(self, purpose: int, slot: int, step: int) -> np.random.Generator:
        """Return the generator with its counter set to (0, slot, step, purpose); valid until the next call."""
        # Setting the state of an existing Philox takes 1 us, making a new one 11 us.
        state = self._state
        state["state"]["counter"][:] = (0, slot, step, purpose)
        state["buffer_pos"], state["has_uint32"] = 4, 0
        self._bits.state = state
        return self._generator

    def permutation(self, n: int, epoch: int) -> np.ndarray:
        """Return the order of `n` rows in an epoch, shape (n,), int32 (int64 for 2^31 or more rows)."""
        order = np.arange(n, dtype=np.int32 if n < 2**31 else np.int64)
        self.at(SHUFFLE, 0, epoch).shuffle(order)  # same order as `permutation(n)`, half the memory
        return order


def keep_mask(stream: Stream, slot: int, step: int, shape: tuple[int, ...], rate: float) -> np.ndarray:
    """Return the boolean mask of a dropout layer: True (keep) with probability 1 - rate.

    A 32-bit word u of the stream keeps its unit if `(u >> 8) >= ceil(rate * 2**24)`. This equals
    `random(shape, float32) >= rate`, whose numbers are `(u >> 8) * 2**-24`. Rows come first: the mask of a smaller
    batch is the beginning of a larger one's.

    >>> bool((keep_mask(Stream(1), 2, 5, (3, 8), 0.5) == keep_mask(Stream(1), 2, 5, (9, 8), 0.5)[:3]).all())
    True
    """
    size = math.prod(shape)
    raw = stream.at(DRAW, slot, step).bit_generator.random_raw(-(-size // 2))
    words = raw.astype("<u8", copy=False).view("<u4")[:size]  # the lower half of 64 bits comes first
    return (words >= math.ceil(rate * 2**24) << 8).reshape(shape)  # the lowest 8 bits do not matter


def normals(stream: Stream, slot: int, step: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return standard normal numbers: two of each 64-bit word of the stream, computed in float64.

    With the word's lower half u and upper half v (32 bits each), they are r cos(t) and r sin(t), where
    r = sqrt(-2 log((u + 1) 2^-32)) and t = 2 pi v 2^-32  (G. Box, M. Muller, "A note on the generation of random
    normal deviates", 1958). None is larger than 6.67. Rows come first, as in `keep_mask`.

    The CUDA kernel `normals` follows the same formula. Its log, cospi and sinpi round differently, so it gives the
    same numbers within 1e-14 (float64), or to the last bit or the one before (float32).

    >>> large = normals(Stream(1), 2, 5, (9, 8), "float32")
    >>> bool((normals(Stream(1), 2, 5, (3, 8), "float32") == large[:3]).all())
    True
    """
    size = math.prod(shape)
    raw = stream.at(DRAW, slot, step).bit_generator.random_raw(-(-size // 2))
    radius = np.sqrt(-2.0 * np.log(((raw & np.uint64(0xFFFFFFFF)) + 1.0) * 2.0**-32))
    angle = (raw >> np.uint64(32)) * (2.0 * math.pi * 2.0**-32)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return pairs.reshape(-1)[:size].reshape(shape).astype(dtype)
