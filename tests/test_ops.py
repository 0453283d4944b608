"""Every body against float64 formulas in NumPy; every twin against its body."""

import importlib
import inspect
import os
from contextlib import nullcontext
from itertools import product

import numpy as np
import pytest
from cases import ACTIVATIONS, ELEMENTWISE

from xpnet import activations, initializers, kernels, optimizers, setting
from xpnet.activations import LeakyReLU
from xpnet.backend import get_backend
from xpnet.core import ops
from xpnet.core.params import Layout, ParamSpec
from xpnet.errors import InvalidValueError, MissingExtraError, UnknownNameError
from xpnet.kernels.context import Arena, Context
from xpnet.kernels.finish import make
from xpnet.optimizers import SGD, Adadelta, Adagrad, Adam, Adamax, Ftrl, Lamb, Lion, Momentum, Nadam, RMSprop
from xpnet.testing import assert_close


class Clipped(optimizers.Optimizer):
    """A user-defined optimizer with a choice for each element, Booleans, and a number that changes."""

    learning_rate: float = setting(default=0.1)
    slots = {"sign": 1.0}

    def numbers(self, xp, lr, age):
        return lr / xp.sqrt(age), xp.where(age > 2, 0.5 * age, lr)

    def formula(self, xp):
        def at(w, g, s, rate, most):
            far = (xp.abs(g) > most) & ~(g < 0)
            s = xp.where(far, s, xp.sign(g))
            return w - rate * xp.where(far | (s == 0), xp.maximum(g, s), xp.minimum(most, xp.tanh(g))), s

        return at


UPDATES = [
    SGD(), SGD(momentum=0.9), SGD(momentum=0.9, nesterov=True), Momentum(), Momentum(beta=0.0),
    RMSprop(epsilon=1e-3), RMSprop(epsilon=1e-3, epsilon_on="root"), RMSprop(epsilon=1e-3, momentum=0.5),
    RMSprop(epsilon=0.1, momentum=0.5, centered=True), Adagrad(),
    Adam(epsilon=1e-3), Adam(epsilon=1e-3, epsilon_on="corrected"), Adam(beta_1=0.0, beta_2=0.0, epsilon=1e-3),
    Adam(epsilon=1e-3, amsgrad=True), Clipped(), Adadelta(epsilon=1e-3), Adamax(epsilon=1e-3),
    Nadam(epsilon=1e-3), Nadam(beta_1=0.0, beta_2=0.0, epsilon=1e-3), Lion(), Lamb(epsilon=1e-3),
]  # fmt: skip

RNG = np.random.default_rng(0)
FUNCTIONS = [*(ACTIVATIONS[name][0] for name in (*ELEMENTWISE, "softmax")), LeakyReLU(-0.3)]


@pytest.fixture
def ctx(backend64):
    return Context(backend64)


def at(ctx, a, dtype="float64"):
    return ctx.backend.array(np.asarray(a), dtype)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# Bodies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shapes", [((5, 3), (3, 4)), ((2, 5, 3), (3, 4)), ((2, 3, 5, 3), (3, 4)), ((1, 1), (1, 1))]
)
def test_affine(ctx, shapes, bias):
    x, w = (RNG.standard_normal(s) for s in shapes)
    b, dy = RNG.standard_normal(w.shape[-1]), RNG.standard_normal((*x.shape[:-1], w.shape[-1]))
    y, backward = ops.affine(ctx, at(ctx, x), at(ctx, w), at(ctx, b) if bias else None, activations.get("tanh"))
    wanted = np.tanh(x @ w + (b if bias else 0))
    assert_close(y, at(ctx, wanted))
    dx, grads = backward(at(ctx, dy), {})
    dz = dy * (1 - wanted**2)
    rows, cols = x.reshape(-1, x.shape[-1]), dz.reshape(-1, w.shape[-1])
    assert_close(dx, at(ctx, dz @ w.T))
    assert_close(grads["kernel"], at(ctx, rows.T @ cols))
    assert set(grads) == ({"kernel", "bias"} if bias else {"kernel"})
    if bias:
        assert_close(grads["bias"], at(ctx, cols.sum(0)))
    assert backward(at(ctx, dy), {}, want_dx=False)[0] is None


@pytest.mark.parametrize("shape", [(3, 5, 2), (3, 2, 5, 2)])
def test_affine_of_several_models(ctx, shape):
    """Kernels (K, in, units): each model of the leading axis is computed as it would be alone."""
    x, w, b = RNG.standard_normal(shape), RNG.standard_normal((3, 2, 4)), RNG.standard_normal((3, 4))
    dy, f = RNG.standard_normal((*shape[:-1], 4)), activations.get("sigmoid")
    y, backward = ops.affine(ctx, at(ctx, x), at(ctx, w), at(ctx, b), f)
    dx, grads = backward(at(ctx, dy), {})
    for k in range(3):
        y_k, backward_k = ops.affine(ctx, at(ctx, x[k]), at(ctx, w[k]), at(ctx, b[k]), f)
        dx_k, grads_k = backward_k(at(ctx, dy[k]), {})
        for several, one in (
            (y, y_k),
            (dx, dx_k),
            (grads["kernel"], grads_k["kernel"]),
            (grads["bias"], grads_k["bias"]),
        ):
            assert_close(several[k, ...], one)


def test_dropout(ctx):
    x, dy, keep = RNG.standard_normal((4, 6)), RNG.standard_normal((4, 6)), RNG.random((4, 6)) > 0.5
    y, backward = ops.dropout(ctx, at(ctx, x), ctx.backend.array(keep), 0.2)
    assert_close(y, at(ctx, np.where(keep, x / 0.8, 0)))
    assert_close(backward(at(ctx, dy)), at(ctx, np.where(keep, dy / 0.8, 0)))


@pytest.mark.parametrize(
    ("shape", "axes"), [((8, 3), (-2,)), ((4, 5, 3), (-3, -2)), ((2, 6, 3), (-2,)), ((4, 5, 3), (-2, -1))]
)
def test_normalize(ctx, shape, axes):
    x, gamma, beta = RNG.standard_normal(shape) * 3 + 1, RNG.standard_normal(3), RNG.standard_normal(3)
    y, mean, var, _ = ops.normalize(ctx, at(ctx, x), at(ctx, gamma), at(ctx, beta), axes, 0.01)
    m, v = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    assert_close(y, at(ctx, gamma * (x - m) / np.sqrt(v + 0.01) + beta))
    assert_close(mean, at(ctx, m))
    assert_close(var, at(ctx, v))
    rms = ops.normalize(ctx, at(ctx, x), at(ctx, gamma), None, axes, 0.01, center=False)[0]
    assert_close(rms, at(ctx, gamma * x / np.sqrt((x * x).mean(axes, keepdims=True) + 0.01)))
    bare, *_, backward = ops.normalize(ctx, at(ctx, x), None, None, axes, 0.01)
    assert_close(bare, at(ctx, (x - m) / np.sqrt(v + 0.01)))
    assert backward(at(ctx, x), {})[1] == {}


@pytest.mark.parametrize("labels", [np.array([2, 0, 1]), np.array([[0, 1], [2, 2]])])
def test_one_hot(ctx, labels):
    for dtype in ("int32", "int64"):
        assert_close(ops.one_hot(ctx, at(ctx, labels, dtype), 3, ctx.dtype), at(ctx, np.eye(3)[labels]))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["labels", "hot", "soft", "counts"])
def test_softmax_cross_entropy(ctx, kind, weighted):
    z, labels = RNG.standard_normal((6, 4)) * 3, RNG.integers(0, 4, 6)
    t = {"soft": RNG.dirichlet(np.ones(4), 6), "counts": RNG.integers(0, 3, (6, 4)) * 1.0}.get(
        kind, np.eye(4)[labels]
    )
    w = RNG.random(6)
    target = at(ctx, labels, "int32") if kind == "labels" else at(ctx, t)
    values, dz, a = ops.softmax_cross_entropy(ctx, at(ctx, z), target, at(ctx, w) if weighted else 0.5)
    assert_close(values, at(ctx, -(t * np.log(softmax(z))).sum(-1)))
    assert_close(a, at(ctx, softmax(z)))
    factor = w[:, None] if weighted else 0.5
    assert_close(dz, at(ctx, (softmax(z) * t.sum(-1, keepdims=True) - t) * factor))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_derivative_from_scores_is_exactly_a_minus_y(backend, dtype):
    """Exactly, not nearly: with weight 1 the bits are those of a - y."""
    ctx = Context(backend.with_dtype(dtype))
    z, labels = RNG.standard_normal((50, 7)) * 10, RNG.integers(0, 7, 50)
    for op in (ops.softmax_cross_entropy, ctx.ops.softmax_cross_entropy):
        _, dz, a = op(ctx, at(ctx, z, dtype), at(ctx, labels, "int32"), 1.0)
        assert_close(dz, a - at(ctx, np.eye(7)[labels], dtype), rtol=0, atol=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_confusion(ctx, weighted):
    target, found, w = RNG.integers(0, 3, 9), RNG.integers(0, 3, 9), RNG.random(9)
    wanted = np.zeros((4, 4))
    np.add.at(wanted, (target, found), w if weighted else 1.0)
    pair = at(ctx, target, "int32"), at(ctx, found, "int32")
    assert_close(ops.confusion(ctx, *pair, at(ctx, w) if weighted else None, 4), at(ctx, wanted))
    assert np.isnan(ctx.backend.host(ops.confusion(ctx, *pair, None, 2))).all()


def test_sum_rows_and_lookup(ctx):
    """Each row of the table gets the sum of dy over all places where it was taken; there are many."""
    table, x, dy = RNG.standard_normal((5, 2)), RNG.integers(0, 4, 60), RNG.standard_normal((60, 2))
    y, backward = ops.lookup(ctx, at(ctx, table), at(ctx, x))
    assert_close(y, at(ctx, table[x]))
    wanted = np.stack([dy[x == v].sum(0) for v in range(5)])
    assert_close(backward(at(ctx, dy)), at(ctx, wanted))
    assert not wanted[4].any()


@pytest.mark.parametrize("dtype", ["int32", "int64", "float64"])
@pytest.mark.parametrize("shape", [(7,), (2, 5)])
def test_hits(ctx, shape, dtype):
    p = RNG.integers(0, 3, (*shape, 4)) * 1.0  # many ties: the first one counts
    labels = RNG.integers(0, 4, shape)
    assert_close(ops.hits(ctx, at(ctx, p), at(ctx, labels, dtype)), at(ctx, p.argmax(-1) == labels))


@pytest.mark.parametrize("shape", [(7,), (2, 5)])
def test_row_total(ctx, shape):
    values, weight = RNG.standard_normal(shape), RNG.random(shape)
    for w, on in ((1.0, None), (weight, at(ctx, weight))):
        for scale in (1.0, 0.25):
            found = ops.row_total(ctx, at(ctx, values), on, scale)
            assert tuple(found.shape) == ()
            assert float(found) == pytest.approx(scale * (values * w).sum())


@pytest.mark.parametrize("lead", [(), (2,)])
def test_penalize(ctx, lead):
    w, g = RNG.standard_normal((*lead, 9)), RNG.standard_normal((*lead, 9))
    segments = ((1, 3, 0.5, 0.0), (3, 4, 0.0, 0.25), (6, 9, 1.0, 2.0))
    value, new = ops.penalize(ctx, at(ctx, w), at(ctx, g), segments)
    l1, l2 = np.zeros(9), np.zeros(9)
    for start, stop, one, two in segments:
        l1[start:stop], l2[start:stop] = one, two
    assert float(value) == pytest.approx((l1 * np.abs(w) + l2 * w**2).sum())
    assert_close(new, at(ctx, g + l1 * np.sign(w) + 2 * l2 * w))


LAYOUT = Layout(
    [(k, 0, ParamSpec(k, s, initializers.get("zeros"))) for k, s in {"a": (2, 3), "b": (3,), "c": ()}.items()]
)


def test_pack(ctx):
    flat = np.arange(10.0)
    parts = {"c": at(ctx, 9.0), "b": at(ctx, flat[6:9]), "a": at(ctx, flat[:6].reshape(2, 3))}
    assert_close(ops.pack(ctx, LAYOUT, parts, None), at(ctx, flat))


@pytest.mark.parametrize("op", ["body", *kernels.TWINS.get(os.environ.get("XPNET_BACKEND") or "numpy", ())])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2e18, None])
def test_sound(backend, op, bad):
    if op != "body" and "within_limits" not in kernels.TWINS[backend.name][op]:
        pytest.skip("this operation has no twin")
    within_limits = ops.within_limits if op == "body" else twin_of(op, "within_limits")
    ctx = Context(backend, True, None, Arena(backend.xp) if op != "body" else None)
    numbers = ([5e17, -5e17, 5e17], [1.0, 9e17, 1.0], 0.0, np.full((3, 4), 3e38, np.float32))
    arrays = [at(ctx, a, "float32") for a in numbers]

    def well(flats, *others, ok=True, rate=1e6):
        flag, lr = backend.scalar(ok, backend.xp.bool), at(ctx, rate, "float32")
        return bool(within_limits(ctx, flag, lr, 1e18, flats, *others))

    with np.errstate(all="ignore"):
        first, second, *others = arrays
        assert well((first, second), *others)
        assert well((first,), *others)
        assert well((at(ctx, [], "float32"),))
        assert not well((first, second), *others, ok=False)
        for rate in (np.nan, np.inf, 1.001e6):
            assert not well((first, second), *others, rate=rate)
        for place in range(4) if bad is not None else ():
            spoilt = np.zeros(arrays[place].shape, np.float32)
            spoilt[(-1,) * spoilt.ndim] = bad
            some = [*arrays[:place], at(ctx, spoilt, "float32"), *arrays[place + 1 :]]
            assert well(some[:2], *some[2:]) == (place > 1 and bad == 2e18)


def test_sound_of_several_models(ctx):
    flat, ok = np.array([[1.0, 2.0], [3.0, 4.0]]), ctx.backend.scalar(True, ctx.xp.bool)
    assert bool(ops.within_limits(ctx, ok, at(ctx, 0.1), 5.0, (at(ctx, flat),)))
    assert not bool(ops.within_limits(ctx, ok, at(ctx, 0.1), 4.9, (at(ctx, flat),)))


@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize("lead", [(), (2,)])
def test_clipping(ctx, lead, scale):
    g = RNG.standard_normal((*lead, 9))
    factor, scaled = None if scale is None else at(ctx, scale), g * (scale or 1.0)
    norm = np.sqrt((scaled**2).sum(-1, keepdims=True))
    for most in (0.5 * float(norm.min()), 2 * float(norm.max())):
        found = at(ctx, g) * ops.clip_factor(ctx, at(ctx, g), most, factor)
        assert_close(found, at(ctx, scaled * np.minimum(1, most / norm)))
        slices = (slice(0, 4), slice(4, 5), slice(5, 9))
        wanted = [scaled[..., s] for s in slices]
        wanted = [part * np.minimum(1, most / np.linalg.norm(part, axis=-1, keepdims=True)) for part in wanted]
        assert_close(ops.clip_parts(ctx, at(ctx, g), most, factor, slices), at(ctx, np.concatenate(wanted, -1)))
    assert_close(ops.clip_values(ctx, at(ctx, g), 0.3, factor), at(ctx, np.clip(scaled, -0.3, 0.3)))


def test_rescale(ctx):
    def after(ok, alive, scale, streak):
        flags = at(ctx, ok, "bool"), at(ctx, alive, "bool")
        going, *others = ops.rescale(ctx, *flags, at(ctx, 7, "int64"), at(ctx, scale), at(ctx, streak))
        return [bool(going), *(float(a) for a in others)]

    assert after(True, True, 8.0, 3.0) == [True, 7, 8.0, 4.0]
    assert after(True, False, 1.0, 3.0) == [True, 7, 1.0, 4.0]
    assert after(True, True, 8.0, ops.GOOD_STEPS - 1) == [True, 7, 16.0, 0.0]
    assert after(True, True, ops.LARGEST_SCALE, ops.GOOD_STEPS - 1) == [True, 7, ops.LARGEST_SCALE, 0.0]
    assert after(False, True, 8.0, 3.0) == [True, 8, 4.0, 0.0]
    assert after(False, True, 1.5, 3.0) == [True, 8, 1.0, 0.0]
    assert after(False, False, 1.0, 3.0) == [False, 7, 1.0, 0.0]


def test_what_is_nothing_is_not_clipped(ctx):
    nothing = at(ctx, np.zeros(3))
    assert float(ops.clip_factor(ctx, nothing, 0.1, None)) == 1.0
    assert_close(ops.clip_parts(ctx, nothing, 0.1, None, (slice(0, 3),)), nothing)
    with np.errstate(all="ignore"):
        assert np.isnan(float(ops.clip_factor(ctx, at(ctx, [np.nan, 1.0]), 0.1, None)))


def test_update(ctx):
    """One step from nonzero slots; test_optimizers.py tests the formulas."""
    w, g, v = RNG.standard_normal((3, 5))
    on = [at(ctx, a) for a in (w, g, v)]
    velocity = 0.9 * v - 0.1 * g
    new, slots = ops.update(ctx, SGD(momentum=0.9), on[0], on[1], (on[2],), at(ctx, 0.1), at(ctx, 3.0))
    for a, wanted in zip((new, *slots), (w + velocity, velocity), strict=True):
        assert_close(a, at(ctx, wanted))


@pytest.mark.parametrize("optimizer", [*UPDATES, Ftrl(), Ftrl(0.1, -0.4, 0.1, 0.01, 1.0, 0.01, 0.1)], ids=repr)
def test_decay_and_factor(ctx, optimizer):
    """The weights decay first, as in Keras; a factor is a smaller gradient."""
    w, g, *slots = np.abs(RNG.standard_normal((2 + len(optimizer.slots), 5)))

    def run(w, g, *more):
        on = tuple(at(ctx, s) for s in slots)
        new, fresh = ops.update(ctx, optimizer, at(ctx, w), at(ctx, g), on, at(ctx, 0.1), at(ctx, 3.0), *more)
        return [new, *fresh]

    plain, both = run((1 - 0.1 * 0.3) * w, 0.25 * g), run(w, g, 0.3, at(ctx, 0.25))
    for a, b in zip(both, plain, strict=True):
        assert_close(a, b)
    for a, b in zip(run(w, g, 0.0, None), run(w, g), strict=True):
        assert_close(a, b, rtol=0, atol=0)


def test_a_formula_must_return_all_slots(ctx):
    class Forgetful(SGD):
        def formula(self, xp):
            return lambda w, g, v, lr: w

    on = [at(ctx, np.ones(3)) for _ in range(3)]
    with pytest.raises(InvalidValueError, match=r"Forgetful must return the weights and 1 slots; got 1 arrays$"):
        ops.update(ctx, Forgetful(momentum=0.5), on[0], on[1], (on[2],), at(ctx, 0.1), at(ctx, 1.0))


# Twins --------------------------------------------------------------------------------------------------
# A case takes (op, ctx, rng, rows, units) and returns all results as a list of arrays. The
# optimizers take three steps; they may overwrite the weights and slots passed to them.


def affine_case(op, ctx, rng, n, m):
    """Inputs with few bits: x @ w + b is exact in every order, so rounding moves no unit across a kink."""
    out, k = [], m + 2
    for f in FUNCTIONS:
        for bias in (True, False):
            x, w, b, dy = (np.round(4 * rng.standard_normal(s)) / 4 for s in ((n, k), (k, m), (m,), (n, m)))
            w *= 0.5 ** round(np.log2(k) / 2)  # outputs of about 1
            args = [at(ctx, a, ctx.backend.dtype_name) for a in (x, w, b, dy)]
            y, backward = op(ctx, args[0], args[1], args[2] if bias else None, f)
            room = {"kernel": ctx.xp.empty((k, m), dtype=ctx.dtype), "bias": ctx.xp.empty((m,), dtype=ctx.dtype)}
            y_before = np.array(ctx.backend.host(y))
            dx, grads = backward(args[3], room if bias and n % 2 else {})
            np.testing.assert_array_equal(ctx.backend.host(y), y_before)
            same_as_before(ctx, args, (x, w, b, dy))
            out += [y, dx, grads["kernel"], *([grads["bias"]] if bias else [])]
            y, backward = op(ctx, args[0], args[1], args[2] if bias else None, f)
            assert backward(args[3], {}, want_dx=False)[0] is None
    deep = at(ctx, rng.standard_normal((2, n, m)), ctx.backend.dtype_name)
    square = at(ctx, rng.standard_normal((m, m)), ctx.backend.dtype_name)
    y, backward = op(ctx, deep, square, None, activations.get("relu"))
    return [*out, y, backward(deep, {})[0]]


def activate_case(op, ctx, rng, n, m):
    out, dtype = [], ctx.backend.dtype_name
    for f, shape in product(FUNCTIONS, ((n, m), (2, n, m), (m,))):
        x, dy = rng.standard_normal((2, *shape))
        args = [at(ctx, a, dtype) for a in (x, dy)]
        y, back = op(ctx, args[0], f)
        y_before = np.array(ctx.backend.host(y))
        dx = back(args[1])
        np.testing.assert_array_equal(ctx.backend.host(y), y_before)
        same_as_before(ctx, args, (x, dy))
        out += [y, dx]
    return out


def product_case(op, ctx, rng, n, m):
    shapes = ((n, m), (m, 3)), ((2, n, m), (m, 3)), ((2, n, m), (2, m, n))
    return [op(ctx, *(at(ctx, rng.standard_normal(s), ctx.backend.dtype_name) for s in pair)) for pair in shapes]


def dropout_case(op, ctx, rng, n, m):
    out = []
    for shape, mask in (((n, m), (n, m)), ((n, 2, m), (n, 2, m)), ((n, 2, m), (n, 1, m)), ((n, m), (1, m))):
        x, dy, keep = rng.standard_normal(shape), rng.standard_normal(shape), rng.random(mask) > 0.3
        args = [at(ctx, a, ctx.backend.dtype_name) for a in (x, dy)]
        y, backward = op(ctx, args[0], ctx.backend.array(keep), 0.3)
        out += [y, backward(args[1])]
        same_as_before(ctx, args, (x, dy))
    return out


def softmax_case(op, ctx, rng, n, m):
    out, m = [], m + 1
    for target in (rng.integers(0, m, n), rng.dirichlet(np.ones(m), n)):
        for weight in (0.25, rng.random(n)):
            z = rng.standard_normal((n, m)) * 5
            args = [
                at(ctx, z, ctx.backend.dtype_name),
                at(ctx, target, "int32" if target.ndim == 1 else ctx.backend.dtype_name),
            ]
            w = weight if isinstance(weight, float) else at(ctx, weight, ctx.backend.dtype_name)
            out += op(ctx, *args, w)
            same_as_before(ctx, args, (z, target))
    z, target = rng.standard_normal((2, n, m)), rng.integers(0, m, (2, n))
    return [*out, *op(ctx, at(ctx, z, ctx.backend.dtype_name), at(ctx, target, "int32"), 1.0)]


def normalize_case(op, ctx, rng, n, m):
    m += 3  # of one or two numbers in a row, the derivative cancels down to rounding
    x, gamma, beta, dy = (rng.standard_normal(s) for s in ((n + 1, m), (m,), (m,), (n + 1, m)))
    args = [at(ctx, a, ctx.backend.dtype_name) for a in (x, gamma, beta, dy)]
    out = []
    for axes, others, center in (((-2,), None, True), ((-1,), (-2,), True), ((-1,), (-2,), False)):
        y, mean, var, backward = op(ctx, *args[:3], axes, 1e-3, others, center)
        dx, grads = backward(args[3], {})
        out += [y, *([] if others else [mean, var]), dx, grads["gamma"], grads["beta"]]
        y, mean, var, backward = op(ctx, args[0], None, None, axes, 1e-3, others, center)
        out += [y, *([] if others else [mean, var]), backward(args[3], {})[0]]
    same_as_before(ctx, args, (x, gamma, beta, dy))
    for shape, others in (((2, 1, 6), (-3,)), ((2, 3, 4), (-3,)), ((2, 3, 4), (-3, -2)), ((3, 3, 4), (-2,))):
        x, dy = (at(ctx, rng.standard_normal(shape), ctx.backend.dtype_name) for _ in range(2))
        own = [1 if a in others else shape[a] for a in (-3, -2, -1)]
        gamma, beta = (at(ctx, rng.standard_normal(own), ctx.backend.dtype_name) for _ in range(2))
        for axes, kept in (((-1,), others), (others, None)):
            y, mean, var, backward = op(ctx, x, gamma, beta, axes, 1e-3, kept)
            dx, grads = backward(dy, {})
            out += [y, *([] if kept else [mean, var]), dx, grads["gamma"], grads["beta"]]
    return out


def one_hot_case(op, ctx, rng, n, m):
    return [op(ctx, at(ctx, rng.integers(0, m, n), "int32"), m, ctx.dtype)]


def penalize_case(op, ctx, rng, n, m):
    out, size = [], n * m + 3
    for segments in ((), ((1, 2, 0.5, 0.25),), ((0, size - 2, 0.0, 0.1), (size - 2, size, 0.3, 0.0))):
        w, g = rng.standard_normal((2, size))
        on = [at(ctx, a, ctx.backend.dtype_name) for a in (w, g)]
        value, new = op(ctx, *on, segments)
        same_as_before(ctx, on[:1], (w,))  # the gradient may be overwritten
        out += [ctx.xp.asarray(value, dtype=ctx.dtype) if segments else ctx.backend.scalar(float(value)), new]
    return out


def join_case(op, ctx, rng, n, m):
    parts = [at(ctx, rng.standard_normal(size), ctx.backend.dtype_name) for size in (n, m, 1, *range(2, 9))]
    return [op(ctx, parts), op(ctx, parts[:1]), op(ctx, [at(ctx, rng.standard_normal((2, n))) for _ in range(2)])]


def pack_case(op, ctx, rng, n, m):
    out, dtype = [], ctx.backend.dtype_name
    layout = Layout(
        [(k, 0, ParamSpec(k, s, initializers.get("zeros"))) for k, s in {"a": (n, m), "b": (m,), "c": ()}.items()]
    )
    values = {k: at(ctx, rng.standard_normal(s), dtype) for k, s in layout.shapes.items()}
    for offered in (False, True):
        flat = ctx.xp.empty((layout.size,), dtype=ctx.dtype)
        views = layout.views(ctx.xp, flat)
        room = (flat, views) if offered and ctx.inplace and ctx.backend.name != "jax" else None
        parts = dict(values)
        if room:  # one part is already in place
            views["b"][...] = values["b"]
            parts["b"] = views["b"]
        out.append(op(ctx, layout, parts, room))
    return out


def within_limits_case(op, ctx, rng, n, m):
    a, b = rng.standard_normal(m), rng.standard_normal((n, m))
    bad = np.where(np.arange(m) == m - 1, np.nan, a)
    a, b, bad, rate, much = (at(ctx, x, ctx.backend.dtype_name) for x in (a, b, bad, 0.1, 2e6))
    cases = (
        (rate, 1e3, (a,)), (rate, 1e3, (a, a), b), (rate, 1e3, (a,), b, rate, b), (rate, 1e-3, (a,)),
        (rate, 1e3, (a,), rate, b, bad), (rate, 1e3, (a, bad)), (rate, 1e3, (bad, a)), (much, 1e3, (a,)),
        (rate, 1e3, (a,), bad[m - 1, ...], b),
    )  # fmt: skip
    flags = [(flag, case) for flag in (True, False) for case in cases]
    return [
        ctx.xp.asarray(op(ctx, ctx.backend.scalar(flag, ctx.xp.bool), *case), copy=True) for flag, case in flags
    ]


def tally_case(op, ctx, rng, n, m):
    backend, out = ctx.backend, []
    for ok, counted in ((True, True), (True, False), (False, True), (False, False)):
        step, flags = backend.count(2**40), [backend.scalar(flag, ctx.xp.bool) for flag in (ok, counted)]
        age, *rest = (backend.scalar(v) for v in rng.standard_normal(1 + n + m))
        parts = [(3.0 + i, 0.5) if i % 3 == 1 else (a, 0.5 + i % 2) for i, a in enumerate(rest)]
        arrays = [at(ctx, rng.standard_normal(s), backend.dtype_name) for s in ((m + 1,), (n, m + 1), (1,))]
        parts[1:1], parts[2:2], parts[-1:] = [(arrays[0], 1.0)], [(arrays[1], 0.25)], [(arrays[2], 1.0)]
        size = sum(getattr(a, "size", 1) if not hasattr(a, "numel") else a.numel() for a, _ in parts)
        sums = at(ctx, rng.standard_normal(size), "float64" if backend.wide else "float32")
        step, age, sums = op(ctx, *flags, step, age, sums, parts)
        ended(ctx)
        assert backend.counted(step) == 2**40 + ok
        out += hosts(ctx, (step, age, sums))
    return out


def ended(ctx):
    """Make the calls that an operation deferred to the end of the step."""
    make(ctx.finish)
    ctx.finish.clear()


def hits_case(op, ctx, rng, n, m):
    out = []
    for p in (rng.standard_normal((n, m)), rng.integers(0, 3, (n, m)), rng.standard_normal((2, n, m))):
        on, labels = at(ctx, p, ctx.backend.dtype_name), rng.integers(0, m, p.shape[:-1])
        out += [op(ctx, on, at(ctx, labels, dtype)) for dtype in ("int32", "int64")]
        same_as_before(ctx, [on], [p])
    return out


def confusion_case(op, ctx, rng, n, m):
    out = []
    for classes in (2, m + 1):
        pair = [at(ctx, rng.integers(0, classes, n), "int32") for _ in range(2)]
        weight = at(ctx, rng.integers(1, 9, n) / 4, ctx.backend.dtype_name)
        out += [op(ctx, *pair, w, classes) for w in (None, weight)]
    several = [at(ctx, rng.integers(0, 3, (m, n)), "int32") for _ in range(2)]
    weight = at(ctx, rng.integers(1, 9, (m, n)) / 4, ctx.backend.dtype_name)
    wrong = np.zeros((m, n), int)
    wrong[-1:, -1:] = 3  # no class: only its matrix is NaN
    several.append(at(ctx, wrong, "int32"))
    pairs = (several[:2], several[1:], several[:0:-1])
    return out + [op(ctx, *pair, w, 3) for pair in pairs for w in (None, weight)]


def lookup_case(op, ctx, rng, n, m):
    """By floats and integers, with numbers that are no classes; then with a leading axis."""
    out, dtype = [], ctx.backend.dtype_name
    table, x = rng.standard_normal((3, m)), rng.integers(0, 3, n)
    dy = rng.standard_normal((n, m))
    for kind in (dtype, "int32"):
        y, backward = op(ctx, at(ctx, table, dtype), at(ctx, x, kind))
        out += [y, backward(at(ctx, dy, dtype))]
    for wrong in (-1.0, 3.0, 0.5, np.nan):
        out.append(op(ctx, at(ctx, table, dtype), at(ctx, [wrong, 1.0], dtype))[0])
    both = op(ctx, at(ctx, [table, -table], dtype), at(ctx, [x, 2 - x], dtype))
    return [*out, both[0], both[1](at(ctx, [dy, dy], dtype))]


def sum_rows_case(op, ctx, rng, n, m):
    out, dtype = [], ctx.backend.dtype_name
    for count in (1, 3, 40):
        index, values = rng.integers(0, count, n), rng.standard_normal((n, m))
        on = at(ctx, index, "int32"), at(ctx, values, dtype)
        memory = ctx.xp.full((count, m), np.nan, dtype=ctx.dtype) if ctx.inplace else None
        out += [op(ctx, *on, count), op(ctx, *on, count, memory)]
        same_as_before(ctx, on, (index, values))
    return [*out, op(ctx, *(ctx.xp.stack([a, a]) for a in on), 40)]


def row_total_case(op, ctx, rng, n, m):
    out, dtype = [], ctx.backend.dtype_name
    for shape in ((n,), (n, m)):
        values, weight = rng.standard_normal(shape), rng.random(shape)
        on = [at(ctx, a, dtype) for a in (values, weight)]
        column = ctx.xp.broadcast_to(on[1][:1, ...], shape)
        out += [op(ctx, on[0], w, s) for w in (None, on[1], column) for s in (1.0, 0.3)]
        same_as_before(ctx, on, (values, weight))
    return out


def clip_case(*more):
    def case(op, ctx, rng, n, m):
        out, dtype, size = [], ctx.backend.dtype_name, n * m + 2
        g = rng.standard_normal(size)
        for most in (1e-3, 0.5, 1e3):
            for factor in (None, ctx.backend.scalar(0.25)):
                for shape in ((size,), (1, size)):
                    out.append(op(ctx, at(ctx, g.reshape(shape), dtype), most, factor, *(f(size) for f in more)))
        return [np.array(ctx.backend.host(a)) for a in out]

    return case


def update_case(op, ctx, rng, n, m):
    out, dtype = [], ctx.backend.dtype_name
    extras = ((), (0.3,), (0.0, ctx.backend.scalar(0.25)), (0.01, ctx.backend.scalar(1e-3)))
    for optimizer, more in product(UPDATES, extras):
        w, *old = (at(ctx, np.abs(a), dtype) for a in rng.standard_normal((1 + len(optimizer.slots), n * m)))
        for step in (1.0, 2.0, 3.0):
            g = rng.standard_normal(n * m)
            on_g = at(ctx, g, dtype)
            clock = ctx.backend.scalar(0.1), ctx.backend.scalar(step)
            new, fresh = op(ctx, optimizer, w, on_g, tuple(old), *clock, *more)
            ended(ctx)
            same_as_before(ctx, [on_g], [g])
            w, old = new, list(fresh)
            out += [np.array(ctx.backend.host(a)) for a in (w, *old)]
    return out


def rescale_case(op, ctx, rng, n, m):
    """A good step, one that completes the row, one at the largest scale, a rejected one, and one at the least."""
    out, real = [], ctx.backend.dtype_name
    for ok, alive, scale, streak in (
        (True, True, 8.0, n), (True, False, 8.0, ops.GOOD_STEPS - 1), (True, True, ops.LARGEST_SCALE, 5000.0),
        (False, True, 8.0, m), (False, True, 1.5, m), (False, False, 1.0, 0.0),
    ):  # fmt: skip
        flags = at(ctx, ok, "bool"), at(ctx, alive, "bool")
        out += op(ctx, *flags, at(ctx, n, "int64"), at(ctx, scale, real), at(ctx, streak, real))
        ended(ctx)
    return out


CASES = {
    "activate": activate_case,
    "rescale": rescale_case,
    "product": product_case,
    "affine": affine_case,
    "dropout": dropout_case,
    "hits": hits_case,
    "confusion": confusion_case,
    "row_total": row_total_case,
    "lookup": lookup_case,
    "sum_rows": sum_rows_case,
    "clip_values": clip_case(),
    "clip_factor": clip_case(),
    "clip_parts": clip_case(lambda size: (slice(0, 1), slice(1, size))),
    "normalize": normalize_case,
    "one_hot": one_hot_case,
    "softmax_cross_entropy": softmax_case,
    "penalize": penalize_case,
    "join": join_case,
    "pack": pack_case,
    "within_limits": within_limits_case,
    "tally": tally_case,
    "update": update_case,
}


def same_as_before(ctx, arrays, hosts):
    for a, host in zip(arrays, hosts, strict=True):
        np.testing.assert_array_equal(ctx.backend.host(a), np.asarray(host).astype(str(ctx.backend.host(a).dtype)))


def hosts(ctx, arrays):
    return [np.array(ctx.backend.host(a)) if not isinstance(a, np.ndarray) else a.copy() for a in arrays]


def twin_of(module, name):
    if module == "host.numba":
        pytest.importorskip("numba")
    return getattr(importlib.import_module(f"xpnet.kernels.{module}"), name)


UNDER_TEST = os.environ.get("XPNET_BACKEND") or "numpy"
TWINS = [(module, name) for module, names in kernels.TWINS.get(UNDER_TEST, {}).items() for name in names]
OPTIMIZERS = [(module, name) for module, name in TWINS if name == "update"]


def test_every_op_and_every_twin_has_a_case():
    assert set(ops.__all__) == set(CASES)
    assert all(set(names) <= set(CASES) for modules in kernels.TWINS.values() for names in modules.values())
    assert kernels.TWINS["numpy"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rows", "units"), [(8, 4), (1, 1), (1, 5), (7, 1), (13, 9)])
@pytest.mark.parametrize(("module", "name"), TWINS)
def test_twin_equals_body(module, name, rows, units, dtype):
    backend = get_backend(dtype=dtype)
    body, twin = getattr(ops, name), twin_of(module, name)
    plain = Context(backend, True)
    wanted = hosts(plain, CASES[name](body, plain, np.random.default_rng(5), rows, units))
    assert wanted
    ctx = Context(backend, True, None, Arena(backend.xp))
    for _ in range(2):  # the second time in used buffers; then without memory, as for inference
        ctx.restart({})
        compare(wanted, hosts(ctx, CASES[name](twin, ctx, np.random.default_rng(5), rows, units)), name, dtype)
    compare(wanted, hosts(plain, CASES[name](twin, plain, np.random.default_rng(5), rows, units)), name, dtype)


@pytest.mark.parametrize("size", [2**15 - 1, 2**15, 2**16 + 17])
@pytest.mark.parametrize(("module", "name"), OPTIMIZERS)
def test_optimizer_twins_over_several_blocks(module, name, size):
    backend = get_backend(dtype="float32")
    plain, ctx = Context(backend, True), Context(backend, True, None, Arena(backend.xp))
    wanted = CASES[name](getattr(ops, name), plain, np.random.default_rng(6), size, 1)
    found = CASES[name](twin_of(module, name), ctx, np.random.default_rng(6), size, 1)
    compare(wanted, found, name, "float32")


# Values that `never_overflows` allows, and those of other optimizers.
TAME = [
    SGD(), SGD(momentum=0.9999), SGD(momentum=0.9999, nesterov=True, weight_decay=1e3),
    Momentum(beta=0.9999), Momentum(beta=0.9999, weight_decay=1e3),
    RMSprop(rho=0.9999, epsilon=1e-10), RMSprop(rho=0.0, epsilon=1e-10, epsilon_on="root"),
    RMSprop(epsilon=1e-10, weight_decay=1e3), RMSprop(0.1, 0.9999, 0.9999, 1e-10, centered=True),
    RMSprop(0.1, 0.0, 0.9999, 1e-10), Adagrad(initial_accumulator_value=0.0, epsilon=1e-10),
    Adam(beta_1=0.0, beta_2=0.9999, epsilon=1e-10),
    Adam(beta_1=0.9999, beta_2=0.0, epsilon=1e-10, epsilon_on="corrected"),
    Adam(beta_1=0.9999, beta_2=0.9999, epsilon=1e-10, weight_decay=1e3), Adam(amsgrad=True, epsilon=1e-10),
    Adadelta(rho=0.5, epsilon=1e-10), Adadelta(rho=0.97, epsilon=1e-10, weight_decay=1e3),
    Adadelta(rho=0.9999, epsilon=1e-10), Adadelta(rho=0.9999, epsilon=1e10),
    Adamax(beta_1=0.9999, beta_2=0.0, epsilon=1e-10), Adamax(beta_1=0.0, beta_2=0.9999, epsilon=1e-10),
    Nadam(beta_1=0.9999, beta_2=0.0, epsilon=1e-10), Nadam(beta_1=0.0, beta_2=0.9999, epsilon=1e-10),
    Nadam(beta_1=0.9999, beta_2=0.9999, epsilon=1e-10, weight_decay=1e3),
    Lion(beta_2=0.9999, weight_decay=1e3), Lion(beta_1=1.0, beta_2=0.0),
    Adam(epsilon=1e-10, use_ema=True, ema_momentum=1.0), Lion(use_ema=True, ema_overwrite_frequency=2),
]  # fmt: skip
WILD = [
    SGD(momentum=1.0, nesterov=True), SGD(weight_decay=1.1e3), Momentum(weight_decay=1e33),
    RMSprop(epsilon=0.0, epsilon_on="root"), RMSprop(momentum=1.0), Adagrad(epsilon=0.0),
    Adam(epsilon=0.0), Adam(beta_1=0.99999), Clipped(), Adamax(epsilon=0.0), Adamax(beta_1=0.99999),
    Nadam(epsilon=0.0), Nadam(beta_2=0.99999), Lion(beta_2=0.99999), Lion(weight_decay=1e4), Ftrl(),
    Adadelta(rho=0.4), Adadelta(epsilon=0.0),
]  # fmt: skip


@pytest.mark.parametrize("gradient", [1e-30, 1.0, 1e18])
@pytest.mark.parametrize("optimizer", TAME, ids=repr)
@pytest.mark.parametrize(("module", "name"), OPTIMIZERS)
def test_no_update_within_the_limits_overflows(module, name, optimizer, gradient):
    """The largest weights, gradient and rate that the guard accepts, repeatedly."""
    backend = get_backend(dtype="float32")
    twin = twin_of(module, name)
    assert optimizer.never_overflows
    ctx = Context(backend, True, None, Arena(backend.xp))
    w = at(ctx, np.zeros(4), "float32")
    slots = optimizer.first_slots(backend, (4,))
    for step in range(200):
        w[...] = 1e18 / 2
        g = at(ctx, np.full(4, gradient / 2 * (-1) ** (step // 100)), "float32")
        clock = at(ctx, ops.LARGEST_RATE, "float32"), at(ctx, step + 1.0, "float32")
        factor = at(ctx, 1.0, "float32") if step % 2 else None
        with np.errstate(over="ignore"):  # in a sum of squares
            new, fresh = twin(ctx, optimizer, w, g, slots, *clock, optimizer.decay, factor)
            ended(ctx)
        assert all(a is b for a, b in zip((new, *fresh), (w, *slots), strict=True))
        kept = () if isinstance(optimizer, Adagrad) else slots
        assert all(np.isfinite(backend.host(a)).all() for a in (w, *kept))
        ctx.restart({})


@pytest.mark.parametrize("optimizer", WILD, ids=repr)
@pytest.mark.parametrize(("module", "name"), OPTIMIZERS)
def test_what_may_overflow_leaves_the_old_state_whole(module, name, optimizer):
    backend = get_backend(dtype="float32")
    assert not optimizer.never_overflows
    ctx = Context(backend, True, None, Arena(backend.xp))
    w, *slots = (at(ctx, np.ones(4), "float32") for _ in range(1 + len(optimizer.slots)))
    before = [np.array(backend.host(a)) for a in (w, *slots)]
    g, lr, age = (at(ctx, a, "float32") for a in (np.zeros(4), 1e6, 2.0))
    with np.errstate(all="ignore"):
        new, _ = twin_of(module, name)(ctx, optimizer, w, g, tuple(slots), lr, age, optimizer.decay)
        assert not ctx.finish
        ctx.restart({})
        after = np.array(backend.host(new))
        twin_of(module, name)(ctx, optimizer, new, g, tuple(slots), lr, age, optimizer.decay)
    for a, b in zip((w, *slots), before):
        np.testing.assert_array_equal(backend.host(a), b)
    np.testing.assert_array_equal(backend.host(new), after)  # part of the state now, not memory that is reused


def compare(wanted, found, name, dtype):
    """Compare to rounding; a sum in which much cancels is as exact as its largest neighbour."""
    rtol, share = (2e-5, 1e-6) if dtype == "float32" else (1e-12, 1e-13)
    assert len(found) == len(wanted)
    for i, (a, b) in enumerate(zip(found, wanted)):
        largest = np.abs(np.where(np.isfinite(b), b, 0)).max(initial=1) if b.dtype.kind == "f" else 1
        assert_close(a, b, rtol=rtol, atol=share * largest, message=f"{name}[{i}]")


@pytest.mark.parametrize(("module", "name"), TWINS)
def test_twins_have_their_bodies_signature(module, name):
    body, twin = (inspect.signature(f).parameters for f in (getattr(ops, name), twin_of(module, name)))
    assert list(twin) == list(body)


CHOICES = [("variable", "0"), *product(("variable", "using"), ("bodies", "numpy", "fast"))]


@pytest.mark.parametrize(("by", "choice"), CHOICES)
def test_the_choice_of_twins(monkeypatch, by, choice):
    if choice == "fast":
        pytest.importorskip("numba")
    modules = {"numpy": ("host.numpy",), "fast": ("host.numpy", "host.numba")}.get(choice, ())
    monkeypatch.delenv("XPNET_KERNELS", raising=False)
    with kernels.using(choice) if by == "using" else nullcontext():
        if by == "variable":
            monkeypatch.setenv("XPNET_KERNELS", choice)
        tables = [kernels.ops_for(name) for name in ("numpy", "array_api_strict")]
    for name in ops.__all__:
        last = next((m for m in reversed(modules) if name in kernels.TWINS["numpy"][m]), None)
        assert getattr(tables[0], name) is (twin_of(last, name) if last else getattr(ops, name))
        assert getattr(tables[1], name) is getattr(ops, name)


def test_without_a_choice_the_fastest_is_taken(monkeypatch):
    monkeypatch.delenv("XPNET_KERNELS", raising=False)
    for found, choice in ((True, "fast"), (False, "numpy")):
        monkeypatch.setattr(kernels, "_has_numba", lambda found=found: found)
        assert kernels.chosen() == choice
    monkeypatch.setenv("XPNET_KERNELS", "fast")
    with pytest.raises(MissingExtraError, match=r"xpnet\[fast\].*got 'fast'$"):
        kernels.chosen()
    monkeypatch.setenv("XPNET_KERNELS", "quick")
    with pytest.raises(UnknownNameError, match="got 'quick'"):
        kernels.chosen()
    with pytest.raises(UnknownNameError, match="got 'quick'"), kernels.using("quick"):
        pass
