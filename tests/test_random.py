"""Random numbers are functions of (seed, purpose, slot, step), and their bits never change."""

import math

import numpy as np
import pytest

from xpnet.core.random import DRAW, INIT, SHUFFLE, Stream, fresh_seed, keep_mask

M64 = 2**64 - 1


def philox(counter, key):
    """Philox 4x64-10 in Python integers, after J. Salmon et al., SC 2011; counter word 0 is the lowest."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], 2**64)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B97F4A7C15) & M64, (k[1] + 0xBB67AE8584CAA73B) & M64]
    return c


def words(seed, purpose, slot, step, n):
    """The first n 32-bit words of a stream: the counter is advanced first, low halves come first."""
    key = [int(k) for k in np.random.SeedSequence(seed).generate_state(2, np.uint64)]
    out = []
    block = 0
    while len(out) < n:
        block += 1
        for word in philox((block, slot, step, purpose), key):
            out += [word & 0xFFFFFFFF, word >> 32]
    return np.array(out[:n], dtype=np.uint64)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.5, 1 / 3, 0.999, 2**-24, 1e-9, 1 - 1e-9])
@pytest.mark.parametrize("place", [(0, 0, 0), (7, 3, 11), (2**32 - 1, 65536 * 5 + 1, 10**6)])
def test_keep_mask_is_the_rule_on_raw_bits(rate, place):
    seed, slot, step = place
    expected = (words(seed, DRAW, slot, step, 77) >> 8) >= math.ceil(rate * 2**24)
    mask = keep_mask(Stream(seed), slot, step, (7, 11), rate)
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, expected.reshape(7, 11))


def test_the_threshold_to_the_last_bit():
    """A word k = u >> 8 is kept at rates up to k / 2**24, and dropped at any above."""
    k = (words(1, DRAW, 2, 3, 50) >> 8).astype(float)
    for i in range(50):
        for rate, kept in ((k[i] / 2**24, True), ((k[i] - 0.5) / 2**24, True), ((k[i] + 0.001) / 2**24, False)):
            assert keep_mask(Stream(1), 2, 3, (50,), rate)[i] == kept


def test_keep_mask_is_numpys_own_philox():
    key = np.random.SeedSequence(5).generate_state(2, np.uint64)
    uniform = np.random.Generator(np.random.Philox(key=key, counter=[0, 4, 9, DRAW])).random((50, 8), np.float32)
    np.testing.assert_array_equal(keep_mask(Stream(5), 4, 9, (50, 8), 0.25), uniform >= 0.25)


@pytest.mark.parametrize("rows", [1, 2, 5, 31])
def test_the_mask_of_a_smaller_batch_is_a_prefix(rows):
    large = keep_mask(Stream(3), 1, 2, (32, 5), 0.4)
    np.testing.assert_array_equal(keep_mask(Stream(3), 1, 2, (rows, 5), 0.4), large[:rows])


def test_nothing_depends_on_what_was_drawn_before():
    used, fresh = Stream(8), Stream(8)
    for purpose, n in ((INIT, 3), (SHUFFLE, 5), (DRAW, 1)):
        used.at(purpose, 2, 2).random(n, dtype=np.float32)  # leaves half a word behind
        used.at(purpose, 2, 2).integers(10, size=n, dtype=np.uint32)
    expected = fresh.at(INIT, 1, 4).random(9, dtype=np.float32)
    np.testing.assert_array_equal(used.at(INIT, 1, 4).random(9, dtype=np.float32), expected)


def test_each_coordinate_gives_other_numbers():
    places = [(s, p, k, t) for s in (0, 1, 2**32) for p in (INIT, SHUFFLE, DRAW) for k in (0, 1) for t in (0, 1)]
    drawn = {Stream(s).at(p, k, t).bytes(32) for s, p, k, t in places}
    assert len(drawn) == len(places)


def test_share_of_kept_units():
    kept = keep_mask(Stream(0), 0, 0, (1000, 100), 0.3).mean()
    assert abs(kept - 0.7) < 4 * math.sqrt(0.3 * 0.7 / 1e5)


def test_permutation_holds_every_row_once_and_changes_with_the_epoch():
    stream = Stream(1)
    first, second = stream.permutation(100, 0), stream.permutation(100, 1)
    np.testing.assert_array_equal(np.sort(first), np.arange(100))
    assert (first != second).any()
    np.testing.assert_array_equal(stream.permutation(100, 0), first)


def test_golden_numbers():
    """Streams never change silently: a change here breaks every user's reproducibility."""
    stream = Stream(2024)
    raw = [0x85E04280, 0x26943F5F, 0xE3A2A843, 0x4FDA0B7B]
    assert stream.at(DRAW, 3, 5).integers(2**32, size=4, dtype=np.uint32).tolist() == raw
    assert words(2024, DRAW, 3, 5, 4).tolist() == raw
    assert stream.permutation(10, 3).tolist() == [9, 2, 3, 8, 4, 0, 6, 1, 7, 5]
    uniform = [0.3049718390967905, 0.006233842437952664, 0.18883151128228148]
    assert stream.at(INIT, 65536, 0).random(3).tolist() == uniform
    normal = [-1.3177438069099703, 0.42401843967614455, 0.34441357228505504]
    np.testing.assert_allclose(stream.at(INIT, 1, 0).standard_normal(3), normal, rtol=1e-14)
    assert "".join(map(str, keep_mask(stream, 3, 5, (16,), 0.5).astype(int))) == "1010011101011100"


def test_fresh_seeds_differ():
    seeds = {fresh_seed() for _ in range(8)}
    assert len(seeds) == 8
    assert all(0 <= s < 2**32 for s in seeds)
