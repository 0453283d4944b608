"""L-BFGS: its parts by hand, minima of known functions, and in `fit` on every backend."""

import math

import numpy as np
import pytest
from cases import SOLVERS

import xpnet as xn
from xpnet.errors import InvalidTypeError, InvalidValueError, NonFiniteError, ShapeError
from xpnet.optimizers import LBFGS
from xpnet.optimizers.lbfgs import CURVATURE, SUFFICIENT, Point, direction, minimizer, search
from xpnet.testing import assert_close

RNG = np.random.default_rng(3)


def rosenbrock(x):
    a, b = x[:-1], x[1:]
    g = 0 * x
    g[:-1] += 2 * (a - 1) - 400 * a * (b - a * a)
    g[1:] += 200 * (b - a * a)
    return ((1 - a) ** 2 + 100 * (b - a * a) ** 2).sum(), g


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("size", [2, 30])
def test_rosenbrock(name, size):
    found = SOLVERS[name]().minimize(rosenbrock, np.full(size, -1.2))
    assert found.converged
    assert found.evaluations < 40 * size**0.8
    assert np.abs(found.x - 1).max() < 1e-3
    np.testing.assert_allclose(rosenbrock(found.x)[1], found.gradient)
    assert rosenbrock(found.x)[0] == found.value


def test_arrays_of_any_library(backend64):
    """A quadratic form: in exact arithmetic as many iterations as it has different eigenvalues."""
    a = np.diag([1.0, 1.0, 4.0, 9.0])
    on = backend64.array(a)

    def function(x):
        g = backend64.xp.matmul(on, x)
        return 0.5 * backend64.xp.vecdot(x, g), g

    start = backend64.array([4.0, 3.0, 2.0, 1.0])
    found = LBFGS(tol=1e-9).minimize(function, start)
    assert found.converged
    assert found.iterations < 20
    assert_close(found.x, backend64.zeros(4), rtol=0, atol=1e-8)
    assert_close(start, backend64.array([4.0, 3.0, 2.0, 1.0]), rtol=0, atol=0)


def test_the_direction_is_that_of_the_bfgs_matrix(backend64):
    """H' = (I - s y^T / s y) H (I - y s^T / s y) + s s^T / s y;  the first H is s y / y y of the newest pair."""
    size, pairs = 5, 3
    s = RNG.standard_normal((pairs, size))
    y = s @ np.diag([1.0, 2.0, 3.0, 4.0, 5.0])
    g = RNG.standard_normal(size)
    h = np.eye(size) * (s[0] @ y[0]) / (y[0] @ y[0])
    for i in reversed(range(pairs)):  # the newest is the first
        rho = 1 / (s[i] @ y[i])
        left = np.eye(size) - rho * np.outer(s[i], y[i])
        h = left @ h @ left.T + rho * np.outer(s[i], s[i])
    kept = [np.concatenate([a.reshape(-1), np.zeros(2 * size)]) for a in (s, y)]  # two places are not in use
    found = direction(backend64.xp, backend64.array(g), *map(backend64.array, kept))
    assert_close(found, backend64.array(-h @ g))
    nothing = backend64.zeros(5 * size)
    assert_close(direction(backend64.xp, backend64.array(g), nothing, nothing), backend64.array(-g))


def test_the_cubic():
    def point(t):
        return Point(t, t**3 - 3 * t, None, None, t, 3 * t**2 - 3)

    for a, b in ((0.2, 1.7), (1.7, 0.2), (0.9, 3.0)):
        assert minimizer(point(a), point(b)) == pytest.approx(1.0)
    assert minimizer(Point(0, 0.0, None, None, 0.0, -1.0), Point(0, math.inf, None, None, 4.0, math.nan)) == 2.0


LINES = {
    "parabola": (lambda t: ((t - 3) ** 2, 2 * (t - 3))),
    "far": (lambda t: (-t / (t * t + 2), (t * t - 2) / (t * t + 2) ** 2)),
    "steep": (lambda t: ((t + 0.004) ** 5 - 2 * (t + 0.004) ** 4, 5 * (t + 0.004) ** 4 - 8 * (t + 0.004) ** 3)),
    "wall": (lambda t: (-math.log(2 - t) - 2 * t, 1 / (2 - t) - 2) if t < 2 else (math.nan, math.nan)),
}


@pytest.mark.parametrize("first", [1e-3, 0.1, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("line", LINES)
def test_the_line_search_meets_the_wolfe_conditions(line, first):
    """Functions of J. Moré and D. Thuente (ACM TOMS 20, 1994), a parabola, and one that ends at a wall."""
    count = 0

    def along(t):
        nonlocal count
        count += 1
        value, slope = LINES[line](t)
        return Point(t, value, None, None, t, slope)

    start = along(0.0)
    found = search(along, start, first, 30)
    assert found.value <= start.value + SUFFICIENT * found.step * start.slope
    assert abs(found.slope) <= -CURVATURE * start.slope
    assert count <= (28 if line == "steep" else 12)  # whose slope must become 1e-7 of what it is nearby


def test_no_lower_point():
    """A gradient of the wrong sign: the search fails, and so does that along the gradient."""
    found = LBFGS().minimize(lambda x: ((x * x).sum(), -2 * x), np.ones(3))
    assert not found.converged
    assert found.message == "the line search found no lower point"
    np.testing.assert_array_equal(found.x, np.ones(3))


def test_it_ends_at_its_limits():
    start = np.full(10, -1.2)
    assert LBFGS(max_iter=5).minimize(rosenbrock, start)[3:][0] == 5
    few = LBFGS(max_fun=7).minimize(rosenbrock, start)
    assert (few.message, few.converged) == ("max_fun", False)
    assert 7 <= few.evaluations <= 7 + 20
    done = LBFGS().minimize(rosenbrock, np.ones(4))
    assert (done.iterations, done.evaluations, done.converged) == (0, 1, True)
    assert LBFGS().minimize(lambda x: (0.0, x), np.ones(0)).converged


@pytest.mark.parametrize(
    ("call", "error", "ends"),
    [
        (lambda: LBFGS(history=0), InvalidValueError, "history must be an integer >= 1; got 0"),
        (lambda: LBFGS(tol=-1.0), InvalidValueError, "got -1.0"),
        (lambda: LBFGS().update([1.0], [1.0], LBFGS().init([1.0])), InvalidTypeError, "got a gradient"),
        (lambda: LBFGS().minimize(rosenbrock, np.ones((2, 2))), ShapeError, "got (2, 2)"),
        (lambda: LBFGS().minimize(lambda x: (math.nan, x), [1.0]), NonFiniteError, "got nan"),
    ],
)
def test_errors(call, error, ends):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).endswith(ends)


# In fit -------------------------------------------------------------------------------------------------

X = RNG.standard_normal((60, 4))
Y = np.sin(X[:, :1]) + X[:, 1:2] * X[:, 2:3]


def model_of(backend, optimizer="lbfgs", l2=0.0):
    layers = [xn.layers.Dense(8, "tanh", kernel_regularizer=xn.regularizers.L2(l2)), xn.layers.Dense(1)]
    model = xn.Sequential(layers, seed=1, backend=backend)
    model.compile(optimizer, "mse", ["mae"])
    return model


def test_fit(backend64):
    """Each epoch is one iteration of `minimize` on all rows, and logs the loss before it."""
    model = model_of(backend64, l2=1e-3)
    model.build((4,))
    start = np.concatenate([w.reshape(-1) for w in model.get_weights()])
    history = model.fit(X, Y, epochs=12, batch_size=7, verbose=0).history
    assert model.optimizer.iterations == 12
    shapes = [w.shape for w in model.get_weights()]
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]

    def function(flat):
        w1, b1, w2, b2 = (part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes))
        h = np.tanh(X @ w1 + b1)
        y = h @ w2 + b2
        dy = 2 * (y - Y) / len(X)
        dz = dy @ w2.T * (1 - h * h)
        parts = X.T @ dz + 2e-3 * w1, dz.sum(0), h.T @ dy, dy.sum(0)
        return ((y - Y) ** 2).mean() + 1e-3 * (w1**2).sum(), np.concatenate([part.reshape(-1) for part in parts])

    found = LBFGS(max_iter=12, ftol=0.0).minimize(function, start)
    losses = history["loss"]
    assert losses[0] == pytest.approx(function(start)[0], rel=1e-9)
    assert losses == sorted(losses, reverse=True)
    assert model.evaluate(X, Y, verbose=0)[0] == pytest.approx(found.value, rel=1e-6)


def test_when_it_has_converged_the_weights_stay(backend64):
    x = RNG.standard_normal((30, 3))
    model = xn.Sequential([xn.layers.Dense(1)], seed=0, backend=backend64)
    model.compile(LBFGS(tol=1e-8), "mse")
    y = x @ np.array([[1.0], [2.0], [3.0]]) + 4.0
    model.fit(x, y, epochs=40, verbose=0)
    before = model.get_weights()
    np.testing.assert_allclose(before[0].reshape(-1), [1, 2, 3], atol=1e-7)
    model.fit(x, y, epochs=2, verbose=0)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_saved_model_goes_on_with_the_same_bits(backend64, tmp_path):
    whole, first = model_of(backend64), model_of(backend64)
    whole.fit(X, Y, epochs=9, verbose=0)
    first.fit(X, Y, epochs=5, verbose=0)
    first.save(tmp_path / "m.safetensors")
    again = xn.load_model(tmp_path / "m.safetensors", backend=backend64)
    again.fit(X, Y, epochs=4, verbose=0)
    for a, b in zip(again.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_loss_that_is_not_finite_stops_it(backend):
    model = model_of(backend)
    model.fit(X, Y, epochs=1, verbose=0)
    before = model.get_weights()
    with pytest.raises(NonFiniteError):
        model.fit(X, np.full_like(Y, 1e30), epochs=1, verbose=0)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_batch_normalization_takes_the_statistics_of_the_weights_it_ends_at(backend64):
    model = xn.Sequential(
        [xn.layers.Dense(4, "tanh"), xn.layers.BatchNormalization(momentum=0.0), xn.layers.Dense(1)],
        seed=0, backend=backend64,
    )  # fmt: skip
    model.compile(LBFGS(), "mse")
    model.fit(X, Y, epochs=3, verbose=0)
    kernel, bias = model.get_weights()[:2]
    hidden = np.tanh(X @ kernel + bias)
    statistics = model.layers[1].get_weights()
    np.testing.assert_allclose(statistics[2], hidden.mean(0), rtol=1e-9, atol=1e-12)
