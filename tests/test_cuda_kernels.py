"""The CUDA kernels, run on the host (see cuda_on_host.py), against the bodies of `ops.py`; and their twins.

NVRTC, which compiles the kernels on a GPU, must accept them, too; it needs no GPU (pip install
nvidia-cuda-nvrtc).
"""

import ctypes
import importlib.util
import inspect
import math
import re
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import cases
import cuda_on_host
import cupy_like
import numpy as np
import pytest
from cuda_on_host import COMPILER, RawKernel, RawModule
from cupy_like import Array, CupyLike, inside_a_step

from xpnet import activations, initializers, kernels, optimizers
from xpnet.backend import BACKENDS, get_backend
from xpnet.backend.base import make_backend
from xpnet.core import ops
from xpnet.core.params import Layout, ParamSpec
from xpnet.core.random import DRAW, Stream, keep_mask, normals
from xpnet.core.special import erf
from xpnet.fusion import cuda as fusion
from xpnet.fusion.activation import activation_graphs
from xpnet.fusion.trace import trace
from xpnet.fusion.update import update_graph
from xpnet.kernels import check
from xpnet.kernels.context import Arena, Context
from xpnet.kernels.cuda import blas, layers
from xpnet.kernels.cuda import device as makers
from xpnet.kernels.cuda import flat as cupy_flat
from xpnet.kernels.cuda import launch as cuda
from xpnet.kernels.cuda.generated import activation_kernels, update_kernel

if get_backend().name != "numpy":
    pytest.skip("it is the same on every backend under test: run once, with NumPy", allow_module_level=True)

from test_ops import CASES, compare, hosts

SOURCE = Path(cuda.__file__).with_name("kernels.cu")
HELPERS = SOURCE.with_name("helpers.cu").read_text()
twins = SimpleNamespace(**{**vars(cupy_flat), **vars(layers)})
NAMES = set(re.findall(r"__global__ void (\w+)\(", SOURCE.read_text()))
NULL = np.uintp(0)
TOLERANCES = {"float32": {"rtol": 1e-5, "atol": 1e-6}, "float64": {"rtol": 1e-12, "atol": 1e-13}}
GRIDS = [((1,), (32,)), ((3,), (64,)), ((40,), (256,))]  # smaller than the work, and larger
WARPS = (32, 8)
ODD = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30]
GUARD = 64


class Device:
    """Kernels for one dtype, and memory with guard regions that must not be written to."""

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)
        self.real = self.dtype.type
        self.backend = self.backend_of(dtype)
        self.tolerance = TOLERANCES.get(dtype)
        self._module = cuda.module(dtype)
        self._guarded = []

    @staticmethod
    def backend_of(dtype):
        """Return the backend for which kernels are compiled."""
        return SimpleNamespace(dtype_name=dtype, narrow=None, checked=False)

    def new_array(self, shape, dtype=None):
        """Return memory in which all bits are set (NaN, -1), as they are in its guard regions."""
        dtype = np.dtype(dtype or self.dtype)
        size = math.prod(shape) * dtype.itemsize
        memory = np.full(size + 2 * GUARD, 255, np.uint8)
        self._guarded.append(memory)
        return Array(memory[GUARD : GUARD + size].view(dtype).reshape(shape))

    def put(self, values, dtype=None):
        """Return an array of the values, in memory from `new_array`."""
        array = self.new_array(np.shape(values), dtype)
        array.values[...] = values
        return array

    def run(self, name, grid, block, *args):
        """Launch a kernel of `kernels.cu`."""
        self.launch(self._module.get_function(name), grid, block, *args)

    def launch(self, kernel, grid, block, *args):
        """Launch a kernel and check the guard regions."""
        kernel(grid, block, args)
        for memory in self._guarded:
            assert (memory[:GUARD] == 255).all(), f"{kernel.name} wrote before an array"
            assert (memory[-GUARD:] == 255).all(), f"{kernel.name} wrote behind an array"

    def close(self, found, wanted, **tolerance):
        np.testing.assert_allclose(found.values, wanted, **(tolerance or self.tolerance))


@pytest.fixture
def compiler(monkeypatch):
    """Replace CuPy with the stand-in."""
    if COMPILER is None:
        pytest.skip("no C++ compiler (g++) was found")
    monkeypatch.setattr(cupy_like, "KNOW_CUPY", (*cupy_like.KNOW_CUPY, "test_ops"))  # its cases write to views
    monkeypatch.setitem(sys.modules, "cupy", cuda_on_host.cupy)
    monkeypatch.setitem(sys.modules, "nvmath", None)  # products use cupy.matmul
    caches = (cuda.module, cuda.kernel_of, cuda.kernel_made_by, make_backend, kernels._table, blas.available)
    for cache in caches:
        cache.cache_clear()
    RawKernel.launched.clear()
    with np.errstate(all="ignore"):
        yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture(params=["float32", "float64"])
def device(compiler, request):
    return Device(request.param)


def body_context(device):
    return Context(get_backend("numpy", dtype=device.dtype.name))


def draw(rng, shape, dtype, odd=False):
    """Return random numbers; with `odd`, a few of ODD among them."""
    a = (3 * rng.standard_normal(shape)).astype(dtype)
    if odd and a.size:
        flat = a.reshape(-1)
        flat[rng.integers(0, a.size, len(ODD))] = ODD
    return a


def test_every_kernel_is_run_here():
    text = Path(__file__).read_text()
    assert len(NAMES) == 19
    assert {name for name in NAMES if f'"{name}"' not in text} == set()


# Layers -------------------------------------------------------------------------------------------------


class Swish(activations.Activation):
    """A user-defined activation whose derivative reads the scores."""

    def forward(self, xp, z):
        return z / (1.0 + xp.exp(-z))

    def backward(self, xp, da, z, a):
        s = 1.0 / (1.0 + xp.exp(-z))
        return da * (s + a * (1.0 - s))


class Everything(activations.Activation):
    """A useless activation that contains every operation a formula may have."""

    def forward(self, xp, z):
        size = xp.minimum(xp.abs(z), xp.full_like(z, 3.0))
        even = (xp.isfinite(z) & ~xp.isnan(z)) | (z == 0.0)
        roots = xp.sqrt(size) + xp.log(1.0 + size) - xp.log1p(size) + xp.expm1(-size) + size**1.5 + erf(xp, size)
        roots = roots + xp.cos(size)
        return xp.where(even & (z != 1.0), xp.sign(z) * roots, xp.tanh(xp.exp(z))) + xp.astype(z >= 0.5, z.dtype)

    def backward(self, xp, da, z, a):
        steep = xp.where((z <= 2.0) | (z > 2.5), xp.maximum(da, a), -da)
        return xp.where(xp.logical_not(a < 0.1), steep / 2.0, xp.square(xp.floor(z)) - xp.positive(a))


ACTIVATIONS = {
    **{name: cases.ACTIVATIONS[name][0] for name in cases.ELEMENTWISE},
    "leaky_relu, steep": activations.LeakyReLU(0.5),
    "leaky_relu, negative": activations.LeakyReLU(-0.3),
    "swish": Swish(),
    "everything": Everything(),
}
NOT_ELEMENTWISE = {type(f) for name, (f, _) in cases.ACTIVATIONS.items() if name not in cases.ELEMENTWISE}


def test_the_table_has_every_activation():
    known = {type(f) for f in ACTIVATIONS.values()} | NOT_ELEMENTWISE
    assert set(activations.registry.classes.values()) <= known
    for cls in NOT_ELEMENTWISE:
        assert activation_kernels(Device.backend_of("float32"), cls()) is None


def of_two(xp, a, b):
    """Return a function of two numbers that applies every operation, including those undefined for some reals."""
    numbers = [a + b, a - b, a * b, a / b, xp.maximum(a, b), xp.minimum(a, b), xp.pow(a, b), xp.where(a > b, a, b)]
    numbers += [f(a) for f in (xp.abs, xp.floor, xp.sign, xp.sqrt, xp.exp, xp.expm1)]
    numbers += [xp.log(a), xp.log1p(a), xp.tanh(a), erf(xp, a)]
    flags = [a > b, a >= b, a < b, a <= b, a == b, a != b, xp.isnan(a), xp.isfinite(a)]
    flags += [(a > 0) & (b > 0), (a > 0) | (b > 0), ~(a > 0)]
    return [-a, *numbers, *(xp.where(flag, xp.ones_like(a), 2.0 * xp.ones_like(a)) for flag in flags)]


def test_operations_on_odd_numbers(device):
    """All operations in one kernel give NumPy's results for NaN, infinity, zeros and equal numbers."""
    given = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -3.0]
    a, b = (x.reshape(-1).astype(device.dtype) for x in np.meshgrid(given, given))
    wanted = of_two(np, a, b)
    arrays = 1 + len(wanted)
    graph = trace(lambda xp: lambda a, b, *rest: of_two(xp, a, b), arrays, 3)
    kernel = cuda.kernel_made_by(fusion.update_source, graph.key, device.dtype.name, in_place=False)
    slots, out, numbers = [NULL] * (arrays - 2), [device.new_array(a.shape) for _ in wanted], [NULL] * 3
    constants = map(device.real, graph.constants)
    device.launch(kernel, (2,), (32,), device.put(a), device.put(b), *slots, *out, *numbers, *constants, NULL,
                  np.int64(a.size))  # fmt: skip
    for found, expected in zip(out, wanted, strict=True):
        device.close(found, expected)


def test_everything_is_there():
    graph = trace(lambda xp: lambda z: Everything().forward(xp, z), 1)
    back = trace(lambda xp: lambda *arrays: Everything().backward(xp, *arrays), 3)
    assert {node.op for node in (*graph.nodes, *back.nodes) if node.is_operation} == set(fusion.OPERATIONS)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (33, 10), (2, 300), (64, 32), (0, 3)])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_bias_act(device, name, shape):
    rng, f = np.random.default_rng(1), ACTIVATIONS[name]
    made = activation_kernels(device.backend, f)
    for odd, (grid, block), with_bias, keep in product((False, True), GRIDS, (True, False), (True, False)):
        z, bias = draw(rng, shape, device.dtype, odd), draw(rng, shape[1], device.dtype)
        on, b = device.put(z), device.put(bias) if with_bias else NULL
        y = device.new_array(shape) if keep else on
        device.launch(made.bias_act, grid, block, on, b, y, *made.constants, *map(np.int32, shape))
        scores = z + bias if with_bias else z
        device.close(y, f.forward(np, scores))
        if keep:
            np.testing.assert_array_equal(on.values, scores)


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize(("rows", "units"), [(1, 1), (7, 5), (33, 32), (300, 33), (3, 70), (0, 2)])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_act_backward(device, name, rows, units, odd):
    rng, f = np.random.default_rng(2), ACTIVATIONS[name]
    z, dy = draw(rng, (rows, units), device.dtype, odd), draw(rng, (rows, units), device.dtype, odd)
    y = f.forward(np, z)
    wanted = f.backward(np, dy, z, y)
    made = activation_kernels(device.backend, f)
    given = [device.put(dy), device.put(z) if made.keeps_scores else NULL, NULL if made.linear else device.put(y)]
    sizes = *made.slopes, np.int32(rows), np.int32(units)
    across = -(-units // 32)
    for chunks in (1, 3, 40):
        dz, partial, sums = (
            device.new_array(dy.shape),
            device.new_array((chunks, units)),
            device.new_array((units,)),
        )
        device.launch(made.act_backward, (across, chunks), WARPS, *given, dz, partial, *sizes)
        device.run("column_sums", (across,), WARPS, partial, sums, np.int32(chunks), np.int32(units))
        device.close(dz, wanted)
        # different orders of addition may differ by the rounding error of the terms
        size = np.abs(np.where(np.isfinite(wanted), wanted, 0)).sum(0).max(initial=1)
        total = dict(rtol=device.tolerance["rtol"], atol=device.tolerance["rtol"] * size)
        device.close(sums, wanted.sum(0), **total)
        if chunks == 1:
            np.testing.assert_array_equal(partial.values[0], sums.values)
        only_sums, only_dz = device.new_array((chunks, units)), device.new_array(dy.shape)
        device.launch(made.act_backward, (across, chunks), WARPS, *given, NULL, only_sums, *sizes)
        device.launch(made.act_backward, (across, chunks), WARPS, *given, only_dz, NULL, *sizes)
        np.testing.assert_array_equal(only_sums.values, partial.values)
        np.testing.assert_array_equal(only_dz.values, dz.values)


def test_where_scores_are_kept(compiler):
    """Only derivatives that read the scores cost memory and memory traffic for them."""
    kept = {
        name for name, f in ACTIVATIONS.items() if activation_kernels(Device.backend_of("float32"), f).keeps_scores
    }
    assert kept == {
        "elu_negative", "everything", "gelu", "gelu_tanh", "hard_silu", "leaky_relu, negative", "mish", "relu_all",
        "relu_max", "relu_slope", "silu", "softsign", "sparse_plus", "swish", "tanh_shrink", "threshold",
        "threshold_far",
    }  # fmt: skip


@pytest.mark.parametrize(("rows", "units"), [(1, 1), (8, 31), (9, 65), (100, 3)])
def test_column_sums(device, rows, units):
    a = draw(np.random.default_rng(3), (rows, units), device.dtype)
    a[rows // 2, units // 2] = np.nan
    out = device.new_array((units,))
    device.run("column_sums", (-(-units // 32),), WARPS, device.put(a), out, np.int32(rows), np.int32(units))
    device.close(out, a.sum(0), rtol=device.tolerance["rtol"], atol=100 * device.tolerance["rtol"])


@pytest.mark.parametrize("size", [0, 1, 31, 700])
def test_dropout(device, size):
    rng = np.random.default_rng(4)
    for rate in (0.0, 0.3, 0.9):
        for grid, block in GRIDS:
            x, keep = draw(rng, size, device.dtype, True), rng.random(size) >= rate
            y = device.new_array((size,))
            device.run("dropout", grid, block, device.put(x), device.put(keep, bool),
                       device.real(1.0 / (1.0 - rate)), y, np.int64(size))  # fmt: skip
            wanted, _ = ops.dropout(body_context(device), x, keep, rate)
            np.testing.assert_array_equal(y.values, wanted)


# Losses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["labels", "soft"])
@pytest.mark.parametrize(
    ("rows", "classes"), [(1, 1), (5, 2), (9, 10), (17, 31), (4, 32), (6, 33), (21, 100), (2, 3001), (0, 4)]
)
def test_softmax_ce(device, rows, classes, kind, weighted):
    rng = np.random.default_rng(5)
    z = draw(rng, (rows, classes), device.dtype)
    z[2:3] *= 1000  # exp would overflow
    z[3:4, classes // 2] = np.nan
    z[4:5, classes - 1] = np.inf
    z[5:6, 0] = -np.inf
    if kind == "labels":
        target = rng.integers(0, classes, rows).astype(np.int32)
        target[:1], target[1:2] = -1, classes  # invalid: no class of the row has target 1
        targets = device.put(target, np.int32), NULL
    else:
        target = rng.random((rows, classes)).astype(device.dtype)  # not normalized
        targets = NULL, device.put(target)
    weight = rng.random(rows).astype(device.dtype) if weighted else 0.25
    weights = (device.put(weight), device.real(1.0)) if weighted else (NULL, device.real(0.25))
    wanted = ops.softmax_cross_entropy(body_context(device), z, target, weight)
    for grid in ((1,), (2,), (50,)):
        dz, a, values = device.new_array(z.shape), device.new_array(z.shape), device.new_array((rows,))
        device.run("softmax_ce", grid, WARPS, device.put(z), *targets, *weights, dz, a, values, np.int32(rows),
                   np.int32(classes))  # fmt: skip
        for found, expected in zip((values, dz, a), wanted):
            device.close(found, expected)


def test_softmax_ce_takes_weight_and_scale(device):
    z, target = device.put([[1.0, 2.0], [3.0, -1.0]]), device.put([0, 0], np.int32)
    dz, a, values = device.new_array((2, 2)), device.new_array((2, 2)), device.new_array((2,))
    device.run("softmax_ce", (1,), WARPS, z, target, NULL, device.put([1.0, 3.0]), device.real(0.5), dz, a, values,
               np.int32(2), np.int32(2))  # fmt: skip
    device.close(dz, (a.values - [[1, 0], [1, 0]]) * [[0.5], [1.5]])


@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (50, 2), (40, 10), (33, 32), (20, 33), (30, 100), (0, 4)])
def test_hits(device, rows, classes):
    rng = np.random.default_rng(6)
    ties = rng.integers(0, 3, (rows, classes)).astype(device.dtype)
    odd = ties.copy()
    odd[rng.random(odd.shape) < 0.05] = np.nan
    odd[rng.random(odd.shape) < 0.1] = np.inf
    low = np.full((rows, classes), -np.inf, device.dtype)
    for p in (draw(rng, (rows, classes), device.dtype), ties, odd, low):
        best = p.argmax(-1) if rows else np.empty(0)
        for target in (best, np.where(rng.random(rows) < 0.5, best, rng.integers(0, classes, rows))):
            for grid in ((1,), (9,)):
                out = device.new_array((rows,))
                device.run("hits", grid, WARPS, device.put(p), device.put(target, np.int32), out, np.int32(rows),
                           np.int32(classes))  # fmt: skip
                np.testing.assert_array_equal(out.values, best == target)


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (50, 2), (300, 7), (37, 40)])
@pytest.mark.parametrize("weighted", [False, True])
def test_confusion(device, rows, classes, weighted):
    rng = np.random.default_rng(25)
    target, found = rng.integers(0, classes, (2, rows))
    weight = rng.random(rows).astype(device.dtype)
    wanted = np.zeros((classes, classes))
    np.add.at(wanted, (target, found), weight if weighted else 1.0)
    w, sizes = device.put(weight) if weighted else NULL, (np.int32(rows), np.int32(classes))
    for grid, block in GRIDS:
        out, labels = device.new_array((classes, classes)), [device.put(a, np.int32) for a in (target, found)]
        device.run("confusion", grid, block, *labels, w, out, *sizes)
        device.close(out, wanted)
        for odd in (0, 1):
            for label in (-1, classes):
                labels = [device.put(a, np.int32) for a in (target, found)]
                labels[odd].values[rows - 1] = label
                device.run("confusion", grid, block, *labels, w, out, *sizes)
                assert np.isnan(out.values).all()


@pytest.mark.parametrize("n", [1, 31, 32, 33, 1000, 2049])
@pytest.mark.parametrize("block", [32, 96, 1024])
def test_sum_scaled(device, n, block):
    rng = np.random.default_rng(7)
    values, weight = draw(rng, n, device.dtype), rng.random(n).astype(device.dtype)
    spoilt = values.copy()
    spoilt[n - 1] = np.inf
    for v in (values, spoilt):
        for w in (None, weight):
            out = device.new_array(())
            device.run("sum_scaled", (1,), (block,), device.put(v), NULL if w is None else device.put(w),
                       device.real(0.3), out, np.int32(n))  # fmt: skip
            terms = 0.3 * (v if w is None else v * w).astype(np.float64)
            error = device.tolerance["rtol"] * np.abs(np.where(np.isfinite(terms), terms, 0)).sum()
            device.close(out, terms.sum(), rtol=0, atol=error)


# The guard ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 33, 70])
def test_all_finite_wherever_it_stands(device, size):
    largest = np.finfo(device.dtype).max
    valid = draw(np.random.default_rng(8), size, device.dtype)
    valid[:: size // 2 + 1] = largest  # its square overflows
    valid[1::20] = np.finfo(device.dtype).smallest_subnormal
    a, flag = device.put(valid), device.put(True, bool)
    grids = [*GRIDS, ((2,), (1,))]
    for grid, block in grids:
        device.run("all_finite", grid, block, a, np.int64(size), flag)
        assert flag.values
    quiet, n = np.nan, 0
    for place in range(size):
        for bad in (quiet, -quiet, np.inf, -np.inf):
            a.values[place], flag.values[...] = bad, True
            grid, block = grids[n % len(grids)]
            n += 1
            device.run("all_finite", grid, block, a, np.int64(size), flag)
            assert not flag.values
        a.values[place] = valid[place]
    device.run("all_finite", (1,), (32,), a, np.int64(size), flag)
    assert not flag.values  # the kernel never sets it to true
    flag.values[...] = True
    device.run("all_finite", (1,), (32,), device.put([np.nan]), np.int64(0), flag)
    assert flag.values


@pytest.mark.parametrize("size", [1, 33, 1000])
def test_sum_squares_and_within(device, size):
    a = draw(np.random.default_rng(20), size, device.dtype)
    exact = (a.astype(np.float64) ** 2).sum()
    for grid, block, last in ((1, 32, 32), (3, 96, 32), (70, 256, 96), (70, 32, 1024)):
        for value, factor in ((None, 1.001), (None, 0.999), (np.nan, np.inf), (-np.inf, 1e10)):
            odd = a.copy()
            if value is not None:
                odd[size - 1] = value
            for pair in ((odd, None), (odd, a / 2), (a / 2, odd)):
                first, second = device.put(pair[0]), NULL if pair[1] is None else device.put(pair[1])
                partial, ok = device.new_array((1 if pair[1] is None else 2, grid)), device.put(True, bool)
                device.run("sum_squares", (grid,), (block,), first, second, partial, np.int64(size))
                within(device, last, partial, exact * factor, ok)
                assert ok.values.view(np.uint8) == (factor == 1.001)


def within(device, block, partial, limit, ok, rate=1.0, value=None):
    rows, count = map(np.int32, partial.shape)
    loss = NULL if value is None else device.put(value)
    device.run("within", (1,), (block,), partial, device.real(limit), device.put(rate), device.real(1e6), loss, ok,
               rows, count)  # fmt: skip


def test_what_else_within_looks_at(device):
    partial = device.put([[1.0, 2.0]])
    for rate, value, wanted in (
        (1e6, None, True), (1e6, 0.0, True), (1.1e6, None, False), (np.nan, 0.0, False), (np.inf, 0.0, False),
        (0.1, np.nan, False), (0.1, -np.inf, False), (0.1, 1e30, True),
    ):  # fmt: skip
        for before in (True, False):
            ok = device.put(before, bool)
            within(device, 32, partial, 4.0, ok, rate, value)
            assert ok.values.view(np.uint8) == (wanted and before)
    ok = device.put(True, bool)
    within(device, 32, device.new_array((2, 0)), 0.0, ok)  # of no weights
    assert ok.values


def test_tally(device):
    rng = np.random.default_rng(21)
    for ok, counted in ((True, True), (False, True), (True, False)):
        for there in range(9):
            for clocked in (True, False):
                step, age = device.put(2**40, np.int64), device.put(3.0)
                start, numbers = rng.random(there), rng.random(there).astype(device.dtype)
                factors = np.arange(0.5, 8.5).astype(device.dtype)
                arrays = [device.put(a) if i % 3 else NULL for i, a in enumerate(numbers)]  # or only the factor
                arrays += [device.put(1.0)] * (8 - there)
                sums = device.put(start, np.float64)
                clock = (step, age) if clocked else (NULL, NULL)
                flags = device.put(ok, bool), device.put(counted, bool)
                pairs = [x for a, factor in zip(arrays, factors) for x in (a, device.real(factor))]
                device.run("tally", (1,), (1,), *flags, *clock, sums, np.int32(there), *pairs)
                added = [
                    f * (float(a) if i % 3 else 1.0) for i, (a, f) in enumerate(zip(numbers, factors.tolist()))
                ]
                np.testing.assert_allclose(sums.values, start + np.array(added) * counted, rtol=1e-15)
                assert (step.values, age.values) == ((2**40 + 1, 4.0) if ok and clocked else (2**40, 3.0))


@pytest.mark.parametrize("n", [1, 33, 700])
def test_tally_array(device, n):
    rng = np.random.default_rng(24)
    for counted in (True, False):
        for grid, block in GRIDS:
            start, more = rng.random(n), rng.random(n).astype(device.dtype)
            sums = device.put(start, np.float64)
            args = device.put(counted, bool), sums, device.put(more), device.real(0.25), np.int64(n)
            device.run("tally_array", grid, block, *args)
            np.testing.assert_allclose(sums.values, start + 0.25 * more.astype(float) * counted, rtol=1e-15)


# Clipping -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 33, 3000])
@pytest.mark.parametrize("factor", [None, 0.25])
def test_clip_factor(device, size, factor):
    partial = np.random.default_rng(22).random(size)
    norm = np.sqrt(partial.sum()) * (factor or 1.0)
    for block in (32, 1024):
        for most, spoilt in ((0.5 * norm, 0.0), (2 * norm, 0.0), (norm, np.nan)):
            given, out = partial.copy(), device.new_array(())
            given[size - 1] += spoilt
            device.run("clip_factor", (1,), (block,), device.put(given), device.real(most),
                       NULL if factor is None else device.put(factor), out, np.int32(size))  # fmt: skip
            wanted = np.nan if spoilt else (factor or 1.0) * min(1.0, most / norm)
            device.close(out, wanted, rtol=10 * device.tolerance["rtol"])
    out = device.new_array(())
    device.run("clip_factor", (1,), (32,), device.put([0.0]), device.real(0.1), NULL, out, np.int32(1))
    assert out.values == 1.0


@pytest.mark.parametrize("size", [1, 33, 700])
def test_scale(device, size):
    a, factor = draw(np.random.default_rng(23), size, device.dtype, True), device.real(0.3)
    for grid, block in GRIDS:
        on = device.put(a)
        device.run("scale", grid, block, on, device.put(factor), np.int64(size))
        np.testing.assert_array_equal(on.values, a * factor)


# Regularizers and optimizers ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 33, 1000])
@pytest.mark.parametrize(("l1", "l2"), [(0.5, 0.25), (0.0, 0.1), (0.3, 0.0)])
def test_penalize(device, size, l1, l2):
    rng = np.random.default_rng(9)
    for odd in (False, True):
        for grid in (1, 3, 40):
            w, g = draw(rng, size, device.dtype), draw(rng, size, device.dtype)
            w[rng.integers(0, size, 2)] = (np.nan, -np.inf) if odd else (0.0, -0.0)
            on_g, partial, value = device.put(g), device.new_array((grid,)), device.new_array(())
            device.run("penalize", (grid,), (96,), device.put(w), on_g, partial, device.real(l1), device.real(l2),
                       np.int64(size))  # fmt: skip
            device.run("sum_scaled", (1,), (32,), partial, NULL, device.real(1), value, np.int32(grid))
            penalty, slope = ops.penalize(body_context(device), w, g, ((0, size, l1, l2),))
            device.close(on_g, slope)
            device.close(value, penalty)


class Lion(optimizers.Optimizer):
    """A user-defined optimizer with a branch on values (X. Chen et al., NeurIPS 2023)."""

    slots = ("average",)

    def formula(self, xp):
        def at(w, g, m, lr):
            step = 0.9 * m + 0.1 * g
            return w - lr * xp.where(xp.abs(step) > 1e-3, xp.sign(step), 0.0), 0.99 * m + 0.01 * g

        return at


class Careless(optimizers.Optimizer):
    """A user-defined optimizer that ignores its slots and some of its arguments, and has its own `numbers`."""

    slots = ("last", "nothing")

    def numbers(self, xp, lr, age):
        return xp.where(age > 2.0, lr / age, lr), age

    def formula(self, xp):
        return lambda w, g, last, nothing, lr, age: (w - lr * xp.tanh(g), g, xp.zeros_like(w))


OPTIMIZERS = {
    "SGD": optimizers.SGD(),
    "SGD, momentum": optimizers.SGD(momentum=0.9),
    "SGD, nesterov": optimizers.SGD(momentum=0.9, nesterov=True),
    "Momentum": optimizers.Momentum(),
    "Momentum, 0": optimizers.Momentum(beta=0.0),
    "RMSprop": optimizers.RMSprop(epsilon=1e-3),
    "RMSprop, 0": optimizers.RMSprop(epsilon=0.0),
    "RMSprop, root": optimizers.RMSprop(epsilon=1e-3, epsilon_on="root"),
    "RMSprop, momentum": optimizers.RMSprop(epsilon=1e-3, momentum=0.5),
    "RMSprop, centered": optimizers.RMSprop(epsilon=1e-2, momentum=0.5, centered=True),
    "Adam": optimizers.Adam(epsilon=1e-3),
    "Adam, corrected": optimizers.Adam(epsilon=1e-3, epsilon_on="corrected"),
    "Adam, 0": optimizers.Adam(beta_1=0.0, beta_2=0.0, epsilon=1e-2),
    "Adam, amsgrad": optimizers.Adam(epsilon=1e-3, amsgrad=True),
    "AdamW": optimizers.AdamW(epsilon=1e-3),
    "Adagrad": optimizers.Adagrad(),
    "Adadelta": optimizers.Adadelta(epsilon=1e-3),
    "Adamax": optimizers.Adamax(epsilon=1e-3),
    "Nadam": optimizers.Nadam(epsilon=1e-3),
    "Nadam, 0": optimizers.Nadam(beta_1=0.0, beta_2=0.0, epsilon=1e-2),
    "Ftrl": optimizers.Ftrl(),
    "Ftrl, power": optimizers.Ftrl(0.1, 0.0, 0.2, 1e-2, 1e-2, 1e-2, 0.1),
    "the Lion of xpnet": optimizers.Lion(),
    "Lamb, direction": optimizers.Lamb(epsilon=1e-3),
    "Adam, averaged": optimizers.Adam(epsilon=1e-3, use_ema=True, ema_momentum=0.7),
    "SGD, all": optimizers.SGD(
        momentum=0.5, use_ema=True, ema_momentum=0.7, ema_overwrite_frequency=2, gradient_accumulation_steps=2
    ),
    "Lion": Lion(0.1),
    "Careless": Careless(0.1),
}
WAYS = {  # decay, factor, in place
    "plain": (0.0, None, True), "decay and factor": (0.01, 0.25, True), "elsewhere": (0.5, 1e-3, False)
}  # fmt: skip


def test_the_table_has_every_optimizer():
    known = {type(optimizer) for optimizer in OPTIMIZERS.values()}
    whole = {optimizers.Adafactor, optimizers.LBFGS, optimizers.Muon}  # these are not elementwise
    assert set(optimizers.registry.classes.values()) <= known | whole


class Updates:
    """Updates by the kernel, and by the body on NumPy arrays."""

    def __init__(self, device, optimizer, way, size):
        self.device, self.optimizer, self.size = device, optimizer, size
        self.decay, factor, self.in_place = WAYS[way]
        self.factor = None if factor is None else device.real(factor)
        slots = optimizer.first_slots(get_backend("numpy", dtype=device.dtype.name), (size,))
        slots = slots[: len(optimizer.slots) + optimizer.use_ema]  # gradients are accumulated elsewhere
        self.kept = [draw(np.random.default_rng(9), size, device.dtype), *slots]
        self.on = [device.put(a) for a in self.kept]
        scaled = factor is not None
        made = update_kernel(device.backend, optimizer, len(slots), self.decay, scaled, self.in_place)
        self.kernel, self.constants = made

    def take(self, g, lr, age, ok=NULL, grid=(3,), block=(64,)):
        """Run the kernel and the body; return pairs of their results."""
        put = self.device.put
        new = [] if self.in_place else [self.device.new_array((self.size,)) for _ in self.on]
        numbers = put(lr), put(age), NULL if self.factor is None else put(self.factor)
        self.device.launch(self.kernel, grid, block, self.on[0], put(g), *self.on[1:], *new, *numbers,
                           *self.constants, ok, np.int64(self.size))  # fmt: skip
        self.on, (w, *slots) = new or self.on, self.kept
        ctx, numbers = body_context(self.device), map(self.device.real, (lr, age))
        w, slots = ops.update(ctx, self.optimizer, w, g, tuple(slots), *numbers, self.decay, self.factor)
        self.kept = [w, *slots]
        return zip(self.on, self.kept, strict=True)


@pytest.mark.parametrize("size", [0, 1, 77, 1000])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(device, name, way, size):
    rng = np.random.default_rng(10)
    for grid, block in GRIDS:
        updates = Updates(device, OPTIMIZERS[name], way, size)
        ages = (1.0, False), (1.5, False), (2.0, False), (3.0, False), (1000.0, False), (1001.0, True)
        for age, odd in ages:
            g = draw(rng, size, device.dtype, odd)
            for found, wanted in updates.take(g, 0.1 / age, age, device.put(True, bool), grid, block):
                device.close(found, wanted, rtol=5 * device.tolerance["rtol"], atol=device.tolerance["atol"])


@pytest.mark.parametrize("way", ["plain", "decay and factor"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_closed_gate_holds_everything_back(device, name, way):
    updates = Updates(device, OPTIMIZERS[name], way, 77)
    before, g = updates.kept, np.full(77, np.nan, device.dtype)
    updates.take(g, 0.1, 2.0, device.put(False, bool))
    for found, wanted in zip(updates.on, before, strict=True):
        np.testing.assert_array_equal(found.values, wanted)
    updates.take(g, 0.1, 2.0)  # always applied
    assert np.isnan(updates.on[0].values).all() or name == "Lion"


def test_new_values_compile_nothing(compiler):
    backend, before = Device.backend_of("float32"), None
    makers = [
        lambda x: update_kernel(backend, optimizers.Adam(x, x, x, x, weight_decay=x), 2, x, True, True),
        lambda x: update_kernel(backend, optimizers.RMSprop(x, x, x, x, True), 3, x, True, False),
        lambda x: activation_kernels(backend, activations.LeakyReLU(x)),
    ]
    for value in (0.5, 0.25, 0.125, 1 / 3):
        kernels, constants = [], []
        for make in makers:
            made = make(value)
            kernels += [part for part in made if isinstance(part, RawKernel)]
            constants += [part for part in made if isinstance(part, tuple)]
        if before is not None:
            assert all(a is b for a, b in zip(kernels, before[0], strict=True))
            assert all(a != b for a, b in zip(constants, before[1], strict=True))
        before = kernels, constants
    assert cuda.kernel_made_by.cache_info().misses == 4


def test_what_is_no_kernel(compiler):
    class Norm(optimizers.Optimizer):
        def formula(self, xp):
            return lambda w, g, lr: w - lr * g / xp.sqrt(xp.sum(g * g))

    class Host(Norm):
        def formula(self, xp):
            return lambda w, g, lr: w - lr * g if lr > 0 else w

    class Counting(Norm):
        slots = scalar_slots = ("count",)

        def formula(self, xp):
            return lambda w, g, count, lr: (w - lr * g / count, count + 1.0)

    for optimizer in (Norm(0.1), Host(0.1), Counting(0.1)):
        assert (
            update_kernel(Device.backend_of("float32"), optimizer, len(optimizer.slots), 0.0, False, True) is None
        )


# Random masks -------------------------------------------------------------------------------------------


def philox_key(seed):
    return np.random.SeedSequence(seed).generate_state(2, np.uint64)


def test_keep_masks_are_bit_equal(compiler):
    rng, launch = np.random.default_rng(13), cuda.kernel_of("keep_mask", "float32")
    rates = [0.0, 0.5, 0.2, 1 - 2**-24, 2**-24, 1e-9, *rng.random(50)]
    for i in range(10_000):
        seed, slot, step = int(rng.integers(0, 2**32)), int(rng.integers(0, 2**40)), int(rng.integers(0, 2**62))
        if i % 4 == 0:
            slot, step = i % 7, i // 100
        shape, rate = (int(rng.integers(1, 6)), int(rng.integers(1, 8))), rates[i % len(rates)]
        keep = Array(np.empty(shape, bool))
        if i % 10:
            threshold = np.float32(math.ceil(rate * 2**24) * 2.0**-24)
            args = (np.int64(keep.size), *philox_key(seed), np.uint64(slot), Array(np.int64(step)), threshold)
            launch((1,), (1 + i % 5,), (keep, *args))
        else:
            makers.keep_mask(keep, philox_key(seed), slot, Array(np.int64(step)), rate)
        wanted = keep_mask(Stream(seed), slot, step, shape, rate)
        assert keep.values.tobytes() == wanted.tobytes(), (seed, slot, step, shape, rate)


def test_a_number_at_the_threshold_is_kept(compiler):
    drawn = Stream(5).at(DRAW, 1, 3).random(16, dtype=np.float32)
    for i, rate in enumerate(drawn):  # a multiple of 2^-24
        keep = makers.keep_mask(Array(np.empty(16, bool)), philox_key(5), 1, Array(np.int64(3)), float(rate))
        assert keep.values[i]
        np.testing.assert_array_equal(keep.values, keep_mask(Stream(5), 1, 3, (16,), float(rate)))


@pytest.mark.parametrize("shape", [(128, 784), (1000, 3), (7,), (8,), (9,), (3, 5, 7), (0, 4)])
@pytest.mark.parametrize("offset", [0, 1, 8])
def test_keep_masks_in_any_memory(compiler, shape, offset):
    size = math.prod(shape)
    memory = np.full(size + 64, True)
    memory.view(np.uint8)[:] = 255
    keep = Array(memory[offset : offset + size].reshape(shape))
    found = makers.keep_mask(keep, philox_key(3), 2, Array(np.int64(11)), 0.4)
    assert found is keep
    np.testing.assert_array_equal(keep.values, keep_mask(Stream(3), 2, 11, shape, 0.4))
    around = memory.view(np.uint8)
    assert (around[:offset] == 255).all()
    assert (around[offset + size :] == 255).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(128, 784), (1000, 3), (7,), (8,), (9,), (3, 5, 7), (1, 1), (0, 4)])
def test_normal_numbers_are_equal_up_to_rounding(compiler, dtype, shape):
    size, limits = (
        math.prod(shape),
        {"float32": {"rtol": 2e-7, "atol": 1e-14}, "float64": {"atol": 1e-14, "rtol": 0}},
    )
    for seed, slot, step in ((3, 2, 11), (2**32 - 1, 2**40 + 1, 2**61)):
        memory = np.full(size + 16, 77, dtype)
        out = Array(memory[:size].reshape(shape))
        assert makers.normals(out, philox_key(seed), slot, Array(np.int64(step))) is out
        np.testing.assert_allclose(out.values, normals(Stream(seed), slot, step, shape, dtype), **limits[dtype])
        assert (memory[size:] == 77).all()


def test_normal_numbers_for_any_grid(compiler):
    wanted = normals(Stream(3), 1, 2, (11, 7), "float64")
    for grid, block in GRIDS:
        out = Array(np.full((11, 7), np.nan))
        args = (out, np.int64(77), *philox_key(3), np.uint64(1), Array(np.int64(2)))
        cuda.kernel_of("normals", "float64")(grid, block, args)
        np.testing.assert_allclose(out.values, wanted, rtol=0, atol=1e-14)


# Batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (5,), (33,), (4, 3)])
@pytest.mark.parametrize(
    ("source", "dtype"),
    [("uint8", "float32"), ("float64", "float32"), ("float32", "float64"), ("int64", "int32"), ("int32", "int32")],
)
def test_gather(compiler, source, dtype, shape):
    rng = np.random.default_rng(14)
    data = (200 * rng.random((50, *shape))).astype(source)
    order = rng.permutation(50).astype(np.int32)
    for first, rows in ((0, 1), (3, 7), (40, 10), (0, 50), (5, 0)):
        out = Array(np.full((rows, *shape), 77, dtype))
        found = makers.gather(Array(data), Array(order[first : first + rows]), out)
        assert found is out
        np.testing.assert_array_equal(out.values, data[order[first : first + rows]].astype(dtype))


def test_gather_goes_over_its_grid_several_times(compiler):
    data, order = np.arange(700.0).reshape(100, 7), np.arange(90, dtype=np.int32)[::-1].copy()
    for grid, block in (((1,), (5,)), ((2,), (32,)), ((3,), (7,)), ((1,), (1000,))):
        out = Array(np.zeros((90, 7), np.float32))
        args = (Array(data), Array(order), out, np.int32(90), np.int64(7))
        cuda.kernel_of("gather", "float32", "float64")(grid, block, args)
        np.testing.assert_array_equal(out.values, data[order])


# 16 bits ------------------------------------------------------------------------------------------------


def rounded(a, narrow):
    """Return float32 numbers rounded to the nearest 16-bit numbers, as stored."""
    if narrow == "float16":
        with np.errstate(over="ignore"):
            return a.astype(np.float16)
    bits = a.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_factors_are_rounded_to_the_nearest(compiler, narrow):
    rng = np.random.default_rng(15)
    ties = [1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 2.0**-25, 3 * 2.0**-25, 65519.0, 65520.0]
    small = 2.0 ** rng.uniform(-26, -13, 2000)
    values = np.concatenate([rng.standard_normal(500), small, ties, [0.0, -0.0, np.inf, -np.inf, 1e30, -70000.0]])
    everywhere = np.arange(0, 1 << 32, 20011, dtype=np.uint32).view(np.float32)
    values = np.concatenate([values, -values, everywhere[~np.isnan(everywhere)]]).astype(np.float32)
    out = Array(np.zeros(values.size, cuda.STORAGE_DTYPE[narrow]))
    kernel = cuda.kernel_of("narrow", "float32", None, narrow)
    for grid, block in GRIDS:
        out.memory[...] = 1
        kernel(grid, block, (Array(values), out, np.int64(values.size)))
        assert out.values.tobytes() == rounded(values, narrow).tobytes()


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_a_derivative_is_rounded_and_its_sums_are_not(compiler, narrow):
    device, rng = Device("float32"), np.random.default_rng(16)
    z, dy = (rng.standard_normal((9, 40)).astype(np.float32) for _ in range(2))
    sizes = np.int32(9), np.int32(40)
    device.backend.narrow = narrow
    for f in ACTIVATIONS.values():
        y, made = f.forward(np, z), activation_kernels(device.backend, f)
        dz, sums = device.new_array(z.shape, cuda.STORAGE_DTYPE[narrow]), device.new_array((1, 40))
        given = (device.put(a) for a in (dy, z, y))
        device.launch(made.act_backward, (2, 1), WARPS, *given, dz, sums, *made.slopes, *sizes)
        wanted = f.backward(np, dy, z, y)
        np.testing.assert_allclose(sums.values, wanted.sum(0)[None], rtol=1e-5, atol=1e-5)
        found = dz.values if narrow == "float16" else (dz.values.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_allclose(found.astype(np.float64), wanted, rtol=2.0**-8, atol=1e-7)


# Twins --------------------------------------------------------------------------------------------------

LAUNCHED = {
    "product": set(),
    "affine": {"bias_act", "act_backward"},
    "dropout": {"dropout"},
    "softmax_cross_entropy": {"softmax_ce"},
    "hits": {"hits"},
    "confusion": {"confusion"},
    "row_total": {"sum_scaled"},
    "join": set(),
    "pack": set(),
    "penalize": {"penalize", "sum_scaled"},
    "within_limits": {"sum_squares", "within", "all_finite"},
    "tally": {"tally", "tally_array"},
    "rescale": {"rescale"},
    "clip_factor": {"sum_squares", "clip_factor"},
    "clip_parts": {"sum_squares", "clip_factor", "scale"},
    "update": {"update"},
}


@pytest.fixture
def pretended(compiler, monkeypatch):
    """A factory of contexts on the simulated device, with memory for twins."""
    monkeypatch.setitem(BACKENDS, "cupy_like", CupyLike)

    def make(dtype="float32", arena=True):
        backend = get_backend("cupy_like", dtype=dtype)
        return Context(backend, True, None, Arena(backend.xp) if arena else None)

    return make


def in_step(op):
    """Return the operation (and its backward) as it runs inside a step, where nothing may wait."""

    def run(*args, **kwargs):
        with inside_a_step():
            result = op(*args, **kwargs)
        return tuple(map(in_step, result)) if isinstance(result, tuple) else in_step(result)

    return run if inspect.isfunction(op) else op


def within_limits_case(op, ctx, rng, n, m):
    xp, dtype, out = ctx.xp, ctx.backend.dtype_name, []
    flat, other = rng.standard_normal(n * m), rng.standard_normal((n, m))
    norm = np.linalg.norm(flat)
    for limit in (1.001 * norm, 0.999 * norm):
        for bad in (0.0, np.nan, np.inf):
            for where in (0, 1):
                arrays = [flat.copy(), other.copy()]
                arrays[where].flat[m - 1] += bad
                first, second = (ctx.backend.array(a, dtype) for a in arrays)
                for flats, *others in (((first,),), ((first, first), second[0, 0], second)):
                    ok, rate = ctx.backend.scalar(True, xp.bool), ctx.backend.scalar(0.1)
                    out.append(op(ctx, ok, rate, limit, flats, *others))
    return [xp.asarray(a) for a in out]


def both_within_limits_cases(*args):
    return within_limits_case(*args) + CASES["within_limits"](*args)


TWIN_CASES = {**CASES, "within_limits": both_within_limits_cases}
SHAPES = [(8, 4), (1, 1), (1, 5), (7, 1), (13, 9)]


@pytest.mark.parametrize(
    ("name", "rows", "units", "dtype"),
    [
        *[(name, *shape, dtype) for name in LAUNCHED for shape in SHAPES for dtype in ("float32", "float64")],
        *[(name, 37, 70, "float64") for name in LAUNCHED], ("affine", 600, 3, "float64"),
    ],
)  # fmt: skip
def test_twin_equals_body(pretended, name, rows, units, dtype):
    plain, ctx = pretended(dtype, arena=False), pretended(dtype)
    body, twin, case = getattr(ops, name), in_step(getattr(twins, name)), TWIN_CASES[name]
    wanted = hosts(plain, case(body, plain, np.random.default_rng(5), rows, units))
    for _ in range(2):  # the second time in reused memory
        ctx.restart({})
        compare(wanted, hosts(ctx, case(twin, ctx, np.random.default_rng(5), rows, units)), name, dtype)
    chunks = {"column_sums"} if rows >= 512 else set()
    assert set(RawKernel.launched) == LAUNCHED[name] | chunks
    RawKernel.launched.clear()
    if name != "pack":  # `out` tells it whether there is memory
        compare(wanted, hosts(plain, case(twin, plain, np.random.default_rng(5), rows, units)), name, dtype)
        assert RawKernel.launched == []


@pytest.mark.parametrize("name", LAUNCHED)
def test_twins_have_their_bodies_signature(name):
    body, twin = (inspect.signature(getattr(module, name)).parameters for module in (ops, twins))
    assert list(twin) == list(body)


def test_gradients_are_written_where_they_belong(pretended):
    ctx, rng = pretended(), np.random.default_rng(16)
    x, w, b, dy = (ctx.backend.array(rng.standard_normal(s), "float32") for s in ((6, 3), (3, 4), (4,), (6, 4)))
    into = {name: ctx.xp.zeros(shape, dtype=ctx.dtype) for name, shape in (("kernel", (3, 4)), ("bias", (4,)))}
    for offered in (("kernel", "bias"), ("kernel",), ("bias",), ()):
        _, backward = twins.affine(ctx, x, w, b, activations.get("relu"))
        _, grads = backward(dy, {name: into[name] for name in offered})
        assert {name for name in grads if grads[name] is into[name]} == set(offered)


def test_pack_copies_what_is_not_in_its_place(pretended):
    ctx = pretended()
    layout = Layout([(k, 0, ParamSpec(k, (2, 3), initializers.get("zeros"))) for k in ("a", "b", "c")])
    flat = Array(np.full(18, np.nan, np.float32))
    views = layout.views(ctx.xp, flat)
    views["b"].values[...] = 2
    parts = {
        "a": Array(np.full((2, 3), 1, np.float32)),
        "b": views["b"],
        "c": Array(np.full((2, 3), 3, np.float32)),
    }
    assert twins.pack(ctx, layout, parts, (flat, views)) is flat
    assert flat.values.tolist() == [1] * 6 + [2] * 6 + [3] * 6


@pytest.mark.parametrize("weighted", [False, True])
def test_confusion_of_several_outputs(pretended, weighted):
    """A kernel for each of them, and the stack of the results."""
    ctx, rng = pretended(), np.random.default_rng(17)
    target, found = (ctx.backend.array(rng.integers(0, 5, (3, 20)), "int32") for _ in range(2))
    weight = ctx.backend.array(rng.integers(0, 9, (3, 20)), "float32") if weighted else None
    result, wanted = (module.confusion(ctx, target, found, weight, 5) for module in (twins, ops))
    np.testing.assert_array_equal(result.values, wanted.values)
    assert RawKernel.launched == ["confusion"] * 3


def test_what_the_kernels_do_not_do_is_left_to_the_body(pretended):
    ctx, rng = pretended(), np.random.default_rng(17)

    def on(a, dtype="float32"):
        return ctx.backend.array(a, dtype)

    def agree(name, *args):
        ctx.restart({})
        found, wanted = (getattr(module, name)(ctx, *args) for module in (twins, ops))
        assert ctx.finish == []
        for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (found, wanted)), strict=True):
            if isinstance(a, Array):
                np.testing.assert_array_equal(a.values, b.values)
        assert RawKernel.launched == []

    x, w, b = on(rng.standard_normal((6, 5))), on(rng.random((5, 4))), on(rng.random(4))
    relu = activations.get("relu")
    keep = on(rng.random((6, 5)) > 0.5, bool)
    labels = on([0, 4, 2, 1, 0, 3], "int32")
    agree("affine", x[:, ::-1], w, b, relu)
    agree("affine", x, w, b[::-1], relu)
    agree("affine", x[:0], w, b, relu)
    agree("affine", on(x.values, "float64"), w, b, relu)
    agree("dropout", x[:, ::-1], keep, 0.5)
    agree("dropout", x, keep[:, ::-1], 0.5)
    agree("dropout", x, keep[:1], 0.5)
    agree("dropout", x[:0], keep[:0], 0.5)
    agree("softmax_cross_entropy", x[:0], labels[:0], 0.5)
    agree("softmax_cross_entropy", x, on(labels.values, "int64"), 0.5)
    agree("softmax_cross_entropy", x, labels, on(rng.random(6), "float64"))
    agree("softmax_cross_entropy", x, labels, on(rng.random(1)))
    agree("softmax_cross_entropy", x, on(rng.random((6, 5)), "float64"), 0.5)
    agree("softmax_cross_entropy", x, on(rng.random((1, 5))), 0.5)
    agree("softmax_cross_entropy", x[None], labels[None], 0.5)
    agree("hits", x[:, ::-1], labels)
    agree("hits", x, on(labels.values, "int64"))
    agree("hits", x[None], labels[None])
    agree("hits", x[:0], labels[:0])
    agree("row_total", x[:, ::-1], None, 0.5)
    agree("row_total", x, x[:1], 0.5)
    agree("row_total", x[:0], None, 0.5)
    agree("row_total", on(x.values, "float64"), None, 0.5)
    flat, g = x.values.reshape(-1), on(rng.random(30))
    lr, ok, half = on(0.1), on(True, bool), on(0.5)
    agree("within_limits", ok, lr, 1e3, (x,))
    agree("within_limits", ok, lr, 1e3, (w[0, ::-1],))
    agree("within_limits", ok, lr, 1e3, (w[0, :],), x[:, ::-1])
    agree("within_limits", ok, lr, 1e3, (w[0, :], x[0, :]))
    agree("within_limits", ok, lr, 1e3, ())
    agree("within_limits", ok, on(0.1, "float64"), 1e3, (w[0, :],))
    agree("confusion", labels, labels[::-1], None, 5)
    agree("confusion", labels, on(labels.values, "int64"), None, 5)
    agree("confusion", labels[:0], labels[:0], None, 5)
    agree("confusion", labels, labels, on(rng.random(6), "float64"), 5)
    sums, step = on([1.0, 2.0], "float64"), on(7, "int64")
    agree("tally", ok, ok, on(7, "int32"), lr, sums, [(half, 1.0), (2.0, 1.0)])
    agree("tally", ok, ok, step, lr, on([1.0, 2.0]), [(half, 1.0), (2.0, 1.0)])
    agree("tally", ok, ok, step, lr, sums, [(half, 1.0), (on(2.0, "float64"), 1.0)])
    agree("tally", ok, ok, step, lr, sums, [(on([1.0, 2.0])[::-1], 1.0)])
    agree("clip_factor", x, 0.1, None)
    agree("clip_factor", g[::-1], 0.1, half)
    agree("clip_factor", g, 0.1, on(0.5, "float64"))
    agree("clip_parts", x, 0.1, None, (slice(0, 5),))
    agree("clip_parts", g[::-1], 0.1, half, (slice(0, 30),))
    agree("penalize", x, x, ((0, 2, 0.1, 0.1),))
    agree("penalize", on(flat), g, ((0, 0, 0.1, 0.1), (0, 3, 0.0, 0.1)))
    sgd, adam = OPTIMIZERS["SGD"], OPTIMIZERS["Adam"]
    agree("update", sgd, x, x, (), lr, lr)
    agree("update", sgd, on(flat), g, (), on(0.1, "float64"), lr)
    agree("update", sgd, on(flat), g, (), lr, lr, 0.0, on(0.5, "float64"))
    agree("update", sgd, on(flat)[::-1], g, (), lr, lr)
    agree("update", adam, on(flat), g, (g, g[::-1]), lr, on(1.0))
    agree("update", NotElementwise(0.1), on(flat), g, (), lr, lr)


class NotElementwise(optimizers.Optimizer):
    """A user-defined activation."""

    def formula(self, xp):
        return lambda w, g, lr: w - lr * g / xp.sqrt(xp.sum(g * g))


def test_an_update_that_may_overflow_goes_elsewhere(pretended):
    """The guard checks the result first; nothing is overwritten, and no call is deferred."""
    ctx, rng = pretended(), np.random.default_rng(24)
    ctx.apply_update, lr = ctx.backend.scalar(False, bool), ctx.backend.scalar(0.1)  # a kernel would not apply it
    for optimizer in (optimizers.SGD(momentum=1.0), optimizers.Adam(epsilon=0.0), Lion(0.1)):
        RawKernel.launched.clear()
        slots = optimizer.first_slots(get_backend("numpy"), (30,))
        given = [ctx.backend.array(a, "float32") for a in (*rng.standard_normal((2, 30)), *slots)]
        before = [a.values.copy() for a in given]
        (w, g, *kept), clock = given, (lr, ctx.backend.scalar(1.0))
        new, new_slots = in_step(twins.update)(ctx, optimizer, w, g, tuple(kept), *clock)
        assert ctx.finish == []
        assert RawKernel.launched == ["update"]
        for a, b in zip(given, before, strict=True):
            np.testing.assert_array_equal(a.values, b)
        wanted, wanted_slots = ops.update(pretended(arena=False), optimizer, w, g, tuple(kept), *clock)
        for a, b in zip((new, *new_slots), (wanted, *wanted_slots), strict=True):
            np.testing.assert_allclose(a.values, b.values, rtol=1e-5, atol=1e-6)


def test_nothing_is_launched_over_nothing(pretended):
    ctx = pretended()
    none, one, lr = ctx.backend.zeros(0), ctx.backend.zeros(1), ctx.backend.scalar(0.1)
    for name in ("SGD", "Adam"):
        slots = tuple(none for _ in OPTIMIZERS[name].slots)
        assert twins.update(ctx, OPTIMIZERS[name], none, none, slots, lr, lr) == (none, slots)
    assert RawKernel.launched == []
    ok = ctx.backend.scalar(True, bool)
    assert twins.within_limits(ctx, ok, lr, 0.0, (none, none), none, one) is ok
    assert ok.values
    assert RawKernel.launched == ["within", "all_finite"]
    twins.clip_parts(ctx, none, 1.0, None, (slice(0, 0),))
    assert twins.clip_factor(ctx, none, 1.0, None).values == 1.0
    assert RawKernel.launched == ["within", "all_finite"]


def test_what_a_step_carries_on_stays_in_its_memory(pretended):
    ctx = pretended()
    ok, step = ctx.backend.scalar(True, bool), ctx.backend.count(3)
    age, *numbers = (ctx.backend.scalar(float(i)) for i in range(20))
    some, many = ctx.backend.array([1.0, 2.0, 3.0], "float32"), ctx.backend.zeros((5, 60))
    for parts, launches in (
        ([(a, 2.0) for a in numbers[:1]], ["tally"]),
        ([(a, 2.0) for a in numbers[:8]], ["tally"]),
        ([(a, 2.0) for a in numbers[:9]], ["tally"] * 2),
        ([(a, 0.5) for a in numbers[:17]], ["tally"] * 3),
        ([(numbers[1], 2.0), (3.0, 0.5), (some, 1.0), (numbers[2], 1.0)], ["tally", "tally_array", "tally"]),
        ([(some, 0.25), (many, 1.0)], ["tally", "tally_array", "tally_array"]),
        ([], ["tally"]),
    ):
        RawKernel.launched.clear()
        added = [np.reshape(getattr(a, "values", a), -1) * factor for a, factor in parts]
        added = np.concatenate([np.zeros(0), *added])
        sums = ctx.backend.array(np.arange(float(added.size)))
        before = sums.values.copy(), age.values.copy()
        new_step, new_age, new_sums = twins.tally(ctx, ok, ok, step, age, sums, parts)
        assert new_step is step
        assert new_age is age
        assert new_sums is sums
        assert RawKernel.launched == []  # none that ends the step
        check.ended(ctx)
        assert RawKernel.launched == launches
        assert age.values == before[1] + 1
        np.testing.assert_allclose(sums.values, before[0] + added)


@pytest.mark.parametrize("name", ["linear", "relu", "leaky_relu"])
def test_a_derivative_of_any_strides(pretended, name):
    """dy may come from `broadcast_to` or a transposition, or have another precision."""
    ctx, plain, rng = pretended(), pretended(arena=False), np.random.default_rng(18)
    x, w, b = (ctx.backend.array(rng.standard_normal(s), "float32") for s in ((6, 3), (3, 6), (6,)))
    square = rng.standard_normal((6, 6))
    for dy in (
        Array(np.broadcast_to(np.arange(6, dtype=np.float32), (6, 6))),
        Array(np.broadcast_to(np.float32(2), (6, 6))),
        Array(square.astype(np.float32).T),
        Array(square),
    ):
        before = dy.values.copy()
        (_, back), (_, wanted) = (
            module.affine(c, x, w, b, activations.get(name)) for module, c in ((twins, ctx), (ops, plain))
        )
        (dx, grads), (body_dx, body_grads) = back(dy, {}), wanted(dy, {})
        for a, e in [(dx, body_dx), *((grads[k], body_grads[k]) for k in ("kernel", "bias"))]:
            np.testing.assert_allclose(a.values, e.values, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(dy.values, before)
        keep = ctx.backend.array(rng.random((6, 6)) > 0.5)
        y = ctx.backend.array(square, "float32")
        found = twins.dropout(ctx, y, keep, 0.5)[1](dy)
        np.testing.assert_array_equal(found.values, (dy.values * (2.0 * keep.values)).astype(np.float32))


def test_the_gate_of_the_context(pretended):
    ctx = pretended()
    lr, age = ctx.backend.scalar(0.1), ctx.backend.scalar(3.0)
    for name in ("SGD", "SGD, nesterov", "Momentum", "RMSprop", "Adam"):
        optimizer = OPTIMIZERS[name]
        w, *slots = (ctx.backend.array(np.ones(5), "float32") for _ in range(1 + len(optimizer.slots)))
        g = ctx.backend.array(np.full(5, 0.5), "float32")
        for apply_update in (ctx.backend.scalar(False, bool), None, ctx.backend.scalar(True, bool)):
            ctx.apply_update = apply_update
            before = [a.values.copy() for a in (w, *slots)]
            new, fresh = in_step(twins.update)(ctx, optimizer, w, g, tuple(slots), lr, age)
            check.ended(ctx)
            assert new is w
            assert all(a is b for a, b in zip(fresh, slots, strict=True))
            closed = apply_update is not None and not apply_update.values
            for a, b in zip((w, *slots), before, strict=True):
                assert (a.values == b).all() == closed


def test_products_of_transposed_views(pretended):
    ctx, plain, rng = pretended(), pretended(arena=False), np.random.default_rng(20)
    a, b = (ctx.backend.array(rng.standard_normal(s), "float32") for s in ((5, 3), (4, 5)))
    with inside_a_step():
        found = twins.product(ctx, a.T, b.T)
    np.testing.assert_allclose(found.values, ops.product(plain, a.T, b.T).values, rtol=1e-5)


def test_further_axes_are_rows(pretended):
    ctx, plain, rng = pretended(), pretended(arena=False), np.random.default_rng(19)
    for shape in ((2, 5, 3), (2, 3, 5, 3)):
        x, w, b = (ctx.backend.array(rng.standard_normal(s), "float32") for s in (shape, (3, 4), (4,)))
        dy = ctx.backend.array(rng.standard_normal((*shape[:-1], 4)), "float32")
        room = ctx.xp.zeros((3, 4), dtype=ctx.dtype)
        with inside_a_step():
            y, back = twins.affine(ctx, x, w, b, activations.get("tanh"))
            dx, grads = back(dy, {"kernel": room})
            assert back(dy, {}, want_dx=False)[0] is None
        assert grads["kernel"] is room
        body_y, body_back = ops.affine(plain, x, w, b, activations.get("tanh"))
        body_dx, body_grads = body_back(dy, {})
        for a, e in [(y, body_y), (dx, body_dx), *((grads[k], body_grads[k]) for k in ("kernel", "bias"))]:
            assert a.shape == e.shape
            np.testing.assert_allclose(a.values, e.values, rtol=1e-5, atol=1e-5)
        assert set(RawKernel.launched) == {"bias_act", "act_backward"}


@pytest.mark.parametrize("axis", [-1, -2, 0, 1, 2])
@pytest.mark.parametrize("function", [activations.Softmax, activations.Glu], ids=["softmax", "glu"])
def test_functions_along_further_axes(pretended, function, axis):
    ctx, plain, rng = pretended(), pretended(arena=False), np.random.default_rng(20)
    f, (x, w, b) = (
        function(axis),
        (ctx.backend.array(rng.standard_normal(s), "float32") for s in ((4, 2, 3), (3, 4), 4)),
    )
    dy = ctx.backend.array(rng.standard_normal(f.output_shape((4, 2, 4))), "float32")
    with inside_a_step():
        y, back = twins.affine(ctx, x, w, b, f)
        dx, grads = back(dy, {})
    body_y, body_back = ops.affine(plain, x, w, b, f)
    body_dx, body_grads = body_back(dy, {})
    for a, e in [(y, body_y), (dx, body_dx), *((grads[k], body_grads[k]) for k in ("kernel", "bias"))]:
        assert a.shape == e.shape
        np.testing.assert_allclose(a.values, e.values, rtol=1e-5, atol=1e-5)


# The stand-in itself ------------------------------------------------------------------------------------

EXAMPLES = """
extern "C" __global__ void kinds(const float* __restrict__ x, double* y, int i, i64 j, float f) {
    *y = *x + i + j + f;
}
extern "C" __global__ void reversal(int* a) {
    __shared__ int room[100];
    room[threadIdx.x] = a[threadIdx.x];
    __syncthreads();
    a[threadIdx.x] = room[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void no_barrier(int* a) {
    __shared__ int room[100];
    room[threadIdx.x] = a[threadIdx.x];
    a[threadIdx.x] = room[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void some_leave(int* a) {
    if (threadIdx.x == 3) return;
    __syncthreads();
    a[threadIdx.x] = 1;
}
extern "C" __global__ void two_places(int* a) {
    if (threadIdx.x % 2)
        __syncthreads();
    else
        __syncthreads();
    a[threadIdx.x] = 1;
}
extern "C" __global__ void fresh_memory(float* a) {
    __shared__ float room;
    a[blockIdx.x] = room;
    room = 1;
}
extern "C" __global__ void down(int* a) { a[threadIdx.x] = __shfl_down_sync(0xffffffffu, a[threadIdx.x], 5); }
extern "C" __global__ void across(int* a) {
    for (int i = 1; i < 32; i *= 2) a[threadIdx.x] += __shfl_xor_sync(0xffffffffu, a[threadIdx.x], i);
}
extern "C" __global__ void half_a_warp(int* a) {
    if (threadIdx.x < 16) a[threadIdx.x] = __shfl_xor_sync(0xffffffffu, a[threadIdx.x], 1);
}
extern "C" __global__ void outside(int* a) {
    if (threadIdx.x < 16) a[threadIdx.x] = __shfl_xor_sync(0xffffu, a[threadIdx.x], 16);
}
extern "C" __global__ void words(bool* a) { *(i64*)(a + 4) = 0; }
extern "C" __global__ void indices(int* a) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    a[block * blockDim.x * blockDim.y * blockDim.z + thread] = 100 * blockIdx.y + threadIdx.y;
}
"""


@pytest.fixture
def example(compiler):
    module = RawModule(code="typedef long long i64;\n" + EXAMPLES)
    return lambda name, grid, block, *args: module.get_function(name)(grid, block, args)


def test_the_stand_in_runs_blocks_and_warps(example):
    a = Array(np.arange(100, dtype=np.int32))
    example("reversal", (1,), (100,), a)
    assert a.values.tolist() == list(range(99, -1, -1))
    a = Array(np.arange(64, dtype=np.int32))
    example("down", (1,), (64,), a)
    assert a.values[:32].tolist() == [*range(5, 32), *range(27, 32)]
    assert a.values[32:].tolist() == [*range(37, 64), *range(59, 64)]
    example("across", (1,), (64,), a)
    total = sum([*range(5, 32), *range(27, 32)])
    assert a.values.tolist() == [total] * 32 + [total + 32 * 32] * 32
    a = Array(np.zeros((2, 3, 2, 2, 5, 3), np.int32))
    example("indices", (2, 3, 2), (3, 5, 2), a)
    _, y, _, _, inner, _ = np.indices(a.shape)
    np.testing.assert_array_equal(a.values, 100 * y + inner)
    a = Array(np.zeros(3, np.float32))
    example("fresh_memory", (3,), (1,), a)
    assert np.isnan(a.values).all()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("some_leave", r"line \d+: a barrier that not all"),
        ("two_places", r"line \d+: a barrier that not all"),
        ("no_barrier", "the order of threads shows"),
        ("half_a_warp", r"line \d+: a shuffle that not all"),
        ("outside", r"line \d+: a shuffle reads a lane that takes no part"),
    ],
)
def test_the_stand_in_finds_broken_kernels(example, name, error):
    a = Array(np.arange(96, dtype=np.int32))
    with pytest.raises(RuntimeError, match=error):
        example(name, (1,), (96,), a)
    with pytest.raises(RuntimeError, match="not aligned"):
        example("words", (1,), (1,), Array(np.ones(16, bool)))
    a = Array(np.arange(100, dtype=np.int32))
    example("reversal", (1,), (100,), a)  # and is still usable
    assert a.values[0] == 99


def test_the_stand_in_is_strict_with_arguments(example):
    x, y = Array(np.ones(1, np.float32)), Array(np.zeros(1))
    valid = [x, y, np.int32(2), np.int64(3), np.float32(0.5)]
    example("kinds", (1,), (1,), *valid)
    assert y.values == 6.5
    column = Array(np.ones((4, 4), np.float32)[:, 1])
    wrong = {
        0: [np.ones(1, np.float32), Array(np.ones(1)), column, None, 0, np.uintp(8)],
        2: [2, 2.0, np.int64(2), np.uint32(2), True, x],
        3: [3, np.int32(3), np.uint64(3), np.float64(3)],
        4: [0.5, np.float64(0.5), np.int32(1), x],
    }
    for place, values in wrong.items():
        for value in values:
            with pytest.raises(TypeError, match="takes a"):
                example("kinds", (1,), (1,), *valid[:place], value, *valid[place + 1 :])
    with pytest.raises(TypeError, match="5 arguments; got 4"):
        example("kinds", (1,), (1,), *valid[:4])
    for grid, block in ([1], (1,)), ((np.int32(1),), (1,)), ((1,), 1), ((), (1,)):
        with pytest.raises(TypeError, match="a tuple of 1 to 3 integers"):
            example("kinds", grid, block, *valid)
    for grid, block in ((0,), (1,)), ((1,), (0,)), ((1, 65536), (1,)), ((1,), (1025,)), ((1,), (32, 33)):
        with pytest.raises(ValueError, match="no more than 1024"):
            example("kinds", grid, block, *valid)
    with pytest.raises(KeyError, match="kinds"):
        example("nothing", (1,), (1,))
    with pytest.raises(RuntimeError, match="error"):
        RawModule(code='extern "C" __global__ void broken(int* a) { nothing(a); }')


# NVRTC --------------------------------------------------------------------------------------------------


def nvidia_file(pattern):
    """Return a file from NVIDIA's pip packages, or None."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else []
    return next((path for folder in folders for path in sorted(Path(folder).rglob(pattern))), None)


class Nvrtc:
    """The compiler that CuPy uses."""

    def __init__(self, path):
        self._library = ctypes.CDLL(str(path))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def _read(self, program, what):
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        text = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, text))
        return text.value.decode()

    def _check(self, status):
        assert status == 0, self._library.nvrtcGetErrorString(status)

    def compile(self, code, options):
        """Return (log, PTX or "" after an error)."""
        program, name = ctypes.c_void_p(), SOURCE.name.encode()
        self._check(self._library.nvrtcCreateProgram(ctypes.byref(program), code.encode(), name, 0, None, None))
        given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        status = self._library.nvrtcCompileProgram(program, len(options), given)
        log, ptx = self._read(program, "ProgramLog"), "" if status else self._read(program, "PTX")
        self._check(self._library.nvrtcDestroyProgram(ctypes.byref(program)))
        return log, ptx


@pytest.fixture(scope="module")
def nvrtc():
    path = nvidia_file("libnvrtc.so.*")
    if path is None:
        pytest.skip("nvidia-cuda-nvrtc is not installed")
    return Nvrtc(path)


def nvrtc_options(monkeypatch, dtype, source=None, narrow=None):
    """Return the options that the twins pass to CuPy."""
    given = []
    stand_in = type("cupy", (), {"RawModule": lambda code, options: given.extend(options)})
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    cuda.module.__wrapped__(dtype, source, narrow)
    return given


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    ("dtype", "source", "narrow"),
    [
        ("float32", None, None), ("float64", None, None),
        ("float32", None, "float16"), ("float32", None, "bfloat16"),
        ("float32", "uint8", None), ("float32", "float64", None), ("float64", "float32", None),
        ("int32", "int64", None),
    ],
)  # fmt: skip
def test_nvrtc_compiles_the_kernels(nvrtc, monkeypatch, architecture, dtype, source, narrow):
    given = nvrtc_options(monkeypatch, dtype, source, narrow)
    options = [f"--gpu-architecture={architecture}", "-ftz=true", *given]
    log, ptx = nvrtc.compile(HELPERS + SOURCE.read_text(), options)
    assert log.strip("\0\n ") == ""  # no warnings
    entries = set(re.findall(r"\.entry (\w+)", ptx))
    assert entries == ({"gather"} if source else NAMES - {"gather"})
    assert ".local" not in ptx  # all variables of a thread are in registers
    if "float64" not in (dtype, source):
        rest = re.sub(r"\.entry (tally\w*|normals)\(.*?\n}", "", ptx, flags=re.DOTALL)  # in double on purpose
        assert re.findall(r"\.f64\b", rest) == []  # nothing is computed in double by accident
    assert not re.search(r"\b(atom|red)\.", ptx)


def sources_from_formulas():
    """Return the code of every kernel for the tables' activations and optimizers, by a unique name."""
    code = {}
    for name, activation in ACTIVATIONS.items():
        forward, backward = activation_graphs(activation)
        code[f"{name} forward"] = fusion.activation_source(forward)
        code[f"{name} backward"] = fusion.derivative_source(backward)
    for name, optimizer in OPTIMIZERS.items():
        for way, (decay, factor, in_place) in WAYS.items():
            graph = update_graph(optimizer, len(optimizer.slots), decay, factor is not None)
            code[f"{name} {way}"] = fusion.update_source(graph, in_place)
    names = {re.sub(r"\W", "_", name): text for name, text in code.items()}
    return {name: re.sub(r"void \w+\(", f"void {name}(", text) for name, text in names.items()}


@pytest.mark.parametrize(  # each precision, and each formula on both architectures: a compilation takes seconds
    ("architecture", "dtype", "narrow"),
    [("sm_80", "float32", None), ("sm_90", "float64", None), ("sm_90", "float32", "float16"),
     ("sm_80", "float32", "bfloat16")],
)  # fmt: skip
def test_nvrtc_compiles_what_formulas_make(nvrtc, monkeypatch, architecture, dtype, narrow):
    sources = sources_from_formulas()
    assert len(sources) == 2 * len(ACTIVATIONS) + 3 * len(OPTIMIZERS)
    given = nvrtc_options(monkeypatch, dtype, None, narrow)
    options = [f"--gpu-architecture={architecture}", "-ftz=true", *given]
    log, ptx = nvrtc.compile(HELPERS + "\n".join(sources.values()), options)
    assert log.strip("\0\n ") == ""
    entries = dict(re.findall(r"\.entry (\w+)\((.*?)\n}", ptx, flags=re.DOTALL))
    assert set(entries) == set(sources)
    slow = {name for name, source in sources.items() if "cos(" in source}  # large angles in local memory
    assert [name for name in entries if ".local" in entries[name] and name not in slow] == []
    assert slow <= {"everything_forward"}
    if dtype == "float32":
        assert [name for name in entries if re.search(r"\.f64\b", entries[name]) and name not in slow] == []
    assert not re.search(r"\b(atom|red)\.", ptx)
    reads = "ld.global.nc"  # loads through the read-only cache: the compiler knows that arrays do not overlap
    assert [name for name in entries if "forward" not in name and reads not in entries[name]] == []


def test_nvrtc_reports_warnings(nvrtc):
    log, ptx = nvrtc.compile('extern "C" __global__ void f(int* a) { int unused; *a = 1; }', [])
    assert "warning" in log
    assert ".entry f" in ptx
    log, ptx = nvrtc.compile('extern "C" __global__ void f(int* a) { *a = nothing; }', [])
    assert "error" in log
    assert ptx == ""
