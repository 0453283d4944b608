"""Initial weights: bounds, moments, fans, names, and equal numbers on every backend."""

import math

import numpy as np
import pytest
from cases import INITIALIZERS

from xpnet import initializers
from xpnet.core.random import Stream
from xpnet.errors import InvalidTypeError, InvalidValueError, ShapeError, UnknownNameError
from xpnet.initializers import (
    Constant,
    Identity,
    Orthogonal,
    RandomNormal,
    RandomUniform,
    TruncatedNormal,
    VarianceScaling,
    fans,
)

SCALED = {name: row for name, row in INITIALIZERS.items() if row and row[0]}  # those with a bound
DRAWN = [name for name, row in INITIALIZERS.items() if row]
SHAPE = (300, 200)  # 60,000 numbers


@pytest.mark.parametrize("name", SCALED)
def test_bounds_and_moments(name):
    bound, deviation = SCALED[name]
    values = initializers.get(name).values(Stream(0), 0, SHAPE)
    assert values.shape == SHAPE
    assert values.dtype == np.float64
    largest = np.abs(values).max()
    assert 0.99 * bound < largest <= bound * (1 + 1e-7)
    n = values.size
    assert abs(values.mean()) < 4 * deviation / math.sqrt(n)
    assert abs(values.std() / deviation - 1) < 4 / math.sqrt(2 * n)


@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
@pytest.mark.parametrize("distribution", ["uniform", "truncated_normal", "normal", "untruncated_normal"])
def test_variance_scaling(mode, distribution):
    n = {"fan_in": 300, "fan_out": 200, "fan_avg": 250}[mode]
    values = VarianceScaling(3.0, mode, distribution).values(Stream(1), 0, SHAPE)
    assert abs(values.var() * n / 3.0 - 1) < 0.03
    largest = np.abs(values).max() / math.sqrt(3.0 / n)  # in standard deviations
    assert {"uniform": largest < 1.74, "untruncated_normal": largest > 3}.get(distribution, 2 < largest < 2.28)


def test_the_normal_distribution_is_truncated_as_in_keras():
    assert VarianceScaling(distribution="Normal").get_config() == VarianceScaling().get_config()


def test_truncated_normal():
    values = TruncatedNormal(2.0, 0.5).values(Stream(0), 0, SHAPE)
    assert abs(values.mean() - 2.0) < 4 * 0.44 / math.sqrt(values.size)
    assert 0.99 < np.abs(values - 2.0).max() <= 1.0
    assert abs(values.std() - 0.5 * 0.87962566) < 0.005


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (2, 3, 4), (1, 1)])
def test_orthogonal(shape):
    values = Orthogonal(1.5).values(Stream(0), 0, shape)
    q = values.reshape(-1, shape[-1]) / 1.5
    q = q if q.shape[0] >= q.shape[1] else q.T
    assert values.shape == shape
    np.testing.assert_allclose(q.T @ q, np.eye(q.shape[1]), atol=1e-14)


def test_orthogonal_matrices_are_uniformly_distributed():
    """Of a 2 x 2 matrix any angle is as likely, and so is a reflection."""
    found = np.array([Orthogonal().values(Stream(0), slot, (2, 2)) for slot in range(2000)])
    assert abs((np.linalg.det(found) > 0).mean() - 0.5) < 4 * 0.5 / math.sqrt(2000)
    angles = np.arctan2(found[:, 1, 0], found[:, 0, 0])
    assert (np.abs(np.histogram(angles, 8, (-math.pi, math.pi))[0] - 250) < 4 * math.sqrt(250)).all()


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 2)])
def test_identity(shape):
    np.testing.assert_array_equal(Identity(0.5).values(Stream(0), 0, shape), 0.5 * np.eye(*shape))


def test_random_normal():
    values = RandomNormal(2.0, 0.5).values(Stream(0), 0, SHAPE)
    assert abs(values.mean() - 2.0) < 4 * 0.5 / math.sqrt(values.size)
    assert abs(values.std() - 0.5) < 0.01
    assert np.abs(values - 2.0).max() > 1.5  # not truncated


def test_random_uniform_interval():
    values = RandomUniform(-1.0, 3.0).values(Stream(0), 0, SHAPE)
    assert -1.0 <= values.min() < -0.99
    assert 2.99 < values.max() < 3.0


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((784, 128), (784, 128)), ((5,), (5, 5)), ((), (1, 1)), ((3, 3, 8, 16), (72, 144)), ((2, 4, 6), (8, 12))],
)
def test_fans(shape, expected):
    assert fans(shape) == expected


@pytest.mark.parametrize(
    ("identifier", "value"),
    [("zeros", 0), ("zero", 0), ("Zeros", 0), ("ones", 1), ("one", 1), ("constant", 0), (Constant(2.5), 2.5)],
)
def test_constants(identifier, value):
    np.testing.assert_array_equal(
        initializers.get(identifier).values(Stream(0), 3, (2, 3)), np.full((2, 3), value)
    )


@pytest.mark.parametrize(
    ("alias", "name"), [("normal", "RandomNormal"), ("uniform", "RandomUniform"), ("he_normal", "HeNormal")]
)
def test_aliases(alias, name):
    assert type(initializers.get(alias)).__name__ == name


@pytest.mark.parametrize("name", DRAWN)
def test_the_numbers_follow_seed_and_slot(name):
    make = initializers.get(name)
    first = make.values(Stream(5), 2, (4, 3))
    np.testing.assert_array_equal(make.values(Stream(5), 2, (4, 3)), first)
    assert (make.values(Stream(6), 2, (4, 3)) != first).any()
    assert (make.values(Stream(5), 3, (4, 3)) != first).any()


def test_an_own_seed_wins():
    make = RandomNormal(seed=3)
    np.testing.assert_array_equal(make.values(Stream(1), 0, (5,)), make.values(Stream(2), 9, (5,)))


@pytest.mark.parametrize(
    ("name", "golden"),
    [
        ("glorot_uniform", [0.2587777964422926, 0.7184608741250982, 0.5124472846709272]),
        ("he_normal", [1.269954954733714, 1.3777928149580019, 0.6828764891794002]),
        ("random_normal", [0.06840720418400824, 0.07421598227935115, 0.03678372311839117]),
        ("random_uniform", [0.011811536374410313, 0.032793102286932996, 0.023389911445544836]),
        ("truncated_normal", [0.06840720418400824, 0.07421598227935115, 0.03678372311839117]),
    ],
)
def test_alone_the_same_numbers_on_every_backend(backend, name, golden):
    make = initializers.get({"class_name": name, "config": {"seed": 11}})
    array = make((3, 2))
    assert array.shape == (3, 2)
    assert array.dtype == backend.dtype
    np.testing.assert_allclose(backend.host(array).reshape(-1)[:3], golden, rtol=1e-6)


def test_alone_without_a_seed_it_differs_from_call_to_call(backend):
    make = RandomUniform()
    assert (backend.host(make((8,))) != backend.host(make((8,)))).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_alone_in_a_dtype(backend, dtype):
    assert str(backend.host(initializers.get("ones")((2,), dtype)).dtype) == dtype


@pytest.mark.parametrize(
    ("make", "error", "ends"),
    [
        (lambda: initializers.get("he_norml"), UnknownNameError, "got 'he_norml'"),
        (lambda: initializers.get(3), InvalidTypeError, "got 3"),
        (lambda: Constant("1"), InvalidTypeError, "got '1'"),
        (lambda: RandomNormal(stddev=-1), InvalidValueError, "got -1"),
        (lambda: RandomNormal(seed=-2), InvalidValueError, "got -2"),
        (lambda: RandomUniform(1, 0), InvalidValueError, "got 0"),
        (lambda: VarianceScaling(0), InvalidValueError, "got 0"),
        (lambda: VarianceScaling(mode="fan"), UnknownNameError, "got 'fan'"),
        (lambda: VarianceScaling(distribution="cauchy"), UnknownNameError, "got 'cauchy'"),
        (lambda: TruncatedNormal(stddev=-1), InvalidValueError, "got -1"),
        (lambda: Orthogonal()((3,)), ShapeError, "got shape (3,)"),
        (lambda: Identity()((3, 3, 3)), ShapeError, "got shape (3, 3, 3)"),
    ],
)
def test_errors(make, error, ends):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value).endswith(ends)
