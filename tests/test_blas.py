"""Matrix products with cuBLAS, on a simulated one that follows cuBLAS's documentation (see cupy_capture.py)."""

import gc
import sys

import numpy as np
import pytest
from cupy_capture import Cublas, CUDARuntimeError, cuBLASError, pretended_cupy

from xpnet.backend import get_backend
from xpnet.errors import UnknownNameError
from xpnet.kernels.cuda import blas

if get_backend().name != "numpy":
    pytest.skip("it is the same on every backend under test: run once, with NumPy", allow_module_level=True)

DTYPES = ["float32", "float64"]
# m, k, n: one element, one row or column, odd, tall, wide, square
SIZES = [(1, 1, 1), (1, 5, 1), (1, 1, 6), (7, 1, 1), (7, 1, 3), (1, 4, 9), (3, 4, 5), (65, 2, 33), (2, 65, 33),
         (9, 33, 2), (16, 16, 16)]  # fmt: skip


@pytest.fixture
def device(monkeypatch):
    monkeypatch.delenv("XPNET_MATMUL_PRECISION", raising=False)
    with pretended_cupy(monkeypatch) as engine:
        yield engine


@pytest.fixture
def only_cublas(device, monkeypatch):
    """Make `cupy.matmul` fail."""
    monkeypatch.delattr(sys.modules["cupy"], "matmul")
    return device


def draw(rng, *shape):
    """Return integers: their sums and products are exact in any order."""
    return rng.integers(-8, 9, shape).astype("float64")


def put(device, values, dtype="float64", layout="plain"):
    """Return the values on the device; `transposed`: as a transposed view."""
    if layout == "transposed":
        return device.upload(np.ascontiguousarray(values.T.astype(dtype))).T
    return device.upload(np.ascontiguousarray(values.astype(dtype)))


@pytest.mark.parametrize("right", ["plain", "transposed"])
@pytest.mark.parametrize("left", ["plain", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products(only_cublas, dtype, left, right):
    rng = np.random.default_rng(0)
    for m, k, n in SIZES:
        a, b = draw(rng, m, k), draw(rng, k, n)
        out = only_cublas.new_array((m, n), dtype)  # full of NaN, which must not be read
        assert blas.matmul(put(only_cublas, a, dtype, left), put(only_cublas, b, dtype, right), out) is out
        np.testing.assert_array_equal(out.values, a @ b)


@pytest.mark.parametrize("right", ["plain", "transposed"])
@pytest.mark.parametrize("left", ["plain", "transposed"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_factors_of_16_bits_add_up_in_float32(only_cublas, monkeypatch, dtype, left, right):
    """Integers up to 8 are exact in both 16-bit types, their sums of up to 65 products only in float32."""
    monkeypatch.setenv("XPNET_MATMUL_PRECISION", "tf32")  # applies to float32 only
    rng = np.random.default_rng(5)

    def put16(values, layout):
        if dtype == "float16":
            return put(only_cublas, values, dtype, layout)
        bits = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return put(only_cublas, bits, "uint16", layout)

    for m, k, n in SIZES:
        a, b = draw(rng, m, k), draw(rng, k, n)
        out = only_cublas.new_array((m, n), "float32")
        assert blas.matmul(put16(a, left), put16(b, right), out) is out
        np.testing.assert_array_equal(out.values, a @ b)


def test_gradients_go_to_their_place_in_the_flat_array(only_cublas):
    rng = np.random.default_rng(1)
    x, dz, flat = draw(rng, 9, 3), draw(rng, 9, 4), only_cublas.new_array((30,), "float32")
    xp = get_backend("cupy").xp
    blas.matmul(put(only_cublas, x, "float32").T, put(only_cublas, dz, "float32"),
                 xp.reshape(flat[..., 5:17], (3, 4)))  # fmt: skip
    np.testing.assert_array_equal(flat.values[5:17].reshape(3, 4), x.T @ dz)
    assert np.isnan(np.delete(flat.values, slice(5, 17))).all()


FINE = 1 + 2.0**-12  # exact in float32; TF32 rounds it to 1


@pytest.mark.parametrize(("precision", "exact"), [(None, True), ("", True), ("highest", True), ("tf32", False)])
def test_precision(only_cublas, monkeypatch, precision, exact):
    if precision is not None:
        monkeypatch.setenv("XPNET_MATMUL_PRECISION", precision)
    for dtype in DTYPES:
        out = only_cublas.new_array((2, 2), dtype)
        a, b = (put(only_cublas, v, dtype) for v in (np.full((2, 1), FINE), np.full((1, 2), 3.0)))
        blas.matmul(a, b, out)
        assert (out.values == (3.0 * FINE if exact or dtype == "float64" else 3.0)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bindings", [True, False])
def test_unknown_precisions(monkeypatch, dtype, bindings):
    monkeypatch.setenv("XPNET_MATMUL_PRECISION", "tf23")
    with pretended_cupy(monkeypatch, bindings) as device:
        a = put(device, np.ones((2, 2)), dtype)
        with pytest.raises(UnknownNameError, match=r"XPNET_MATMUL_PRECISION.*did you mean 'tf32'.*got 'tf23'"):
            blas.matmul(a, a, device.new_array((2, 2), dtype))


def test_without_the_bindings_cupy_does_it(monkeypatch):
    with pretended_cupy(monkeypatch, bindings=False) as device:
        assert not blas.available()
        a, b = draw(np.random.default_rng(2), 3, 4), draw(np.random.default_rng(3), 4, 5)
        out = device.new_array((3, 5), "float64")
        assert blas.matmul(put(device, a), put(device, b, layout="transposed"), out) is out
        np.testing.assert_array_equal(out.values, a @ b)
        assert device.cublas.handles == []


def test_what_is_not_contiguous_is_left_to_cupy(device):
    rng = np.random.default_rng(4)
    a, b, wide = draw(rng, 4, 6), draw(rng, 6, 5), draw(rng, 6, 12)
    for left, right, wanted in (
        (put(device, a)[:, 1:4], put(device, b)[2:5, :], a[:, 1:4] @ b[2:5]),
        (put(device, a)[:, ::2], put(device, b)[::2, :], a[:, ::2] @ b[::2]),
        (put(device, a)[::-1, :], put(device, b), a[::-1] @ b),
        (put(device, a), put(device, wide)[:, 3:8], a @ wide[:, 3:8]),
        (put(device, wide).T[2:4, :], put(device, b), wide.T[2:4] @ b),
        (put(device, wide).T[:, :4], put(device, a), wide.T[:, :4] @ a),
        (put(device, a), put(device, wide).T[1:7, :], a @ wide.T[1:7]),
    ):
        out = device.new_array(wanted.shape, "float64")
        blas.matmul(left, right, out)
        np.testing.assert_array_equal(out.values, wanted)
    room = device.new_array((4, 9), "float64")
    blas.matmul(put(device, a), put(device, b), room[:, 2:7])
    np.testing.assert_array_equal(room.values[:, 2:7], a @ b)
    assert np.isnan(room.values[:, [0, 1, 7, 8]]).all()


# Handles ------------------------------------------------------------------------------------------------


def square(device):
    a = put(device, np.full((2, 2), 2.0))
    return blas.matmul(a, a, device.new_array((2, 2), "float64"))


def test_a_handle_for_each_stream(only_cublas):
    cuda, outs = sys.modules["cupy"].cuda, []
    streams = [cuda.get_current_stream(), *(cuda.Stream(non_blocking=True) for _ in range(2))]
    for _ in range(3):
        for stream in streams:
            with stream:
                outs.append((stream, square(only_cublas)))
    handles = only_cublas.cublas.handles
    assert [h.stream for h in handles] == [s.ptr for s in streams]
    assert all(h.size == blas.WORKSPACE and h.workspace % 256 == 0 for h in handles)
    assert len({h.workspace for h in handles}) == 3
    for done in streams:
        done.synchronize()
        for stream, out in outs:  # each product runs on its own stream
            assert (out.memory == 8.0).all() if stream.ptr <= done.ptr else np.isnan(out.memory).all()


def test_handles_are_kept_for_any_number_of_streams(only_cublas, monkeypatch):
    monkeypatch.setattr(blas, "WORKSPACE", 1 << 12)
    streams = [sys.modules["cupy"].cuda.Stream(non_blocking=True) for _ in range(150)]
    for _ in range(2):
        for stream in streams:
            with stream:
                square(only_cublas)
    assert len(only_cublas.cublas.handles) == 150


def test_a_workspace_stays_whatever_becomes_of_pools(only_cublas):
    cuda = sys.modules["cupy"].cuda
    pool = cuda.MemoryPool()
    with cuda.using_allocator(pool.malloc):
        square(only_cublas)
    assert 0 < pool.total_bytes() < blas.WORKSPACE
    del pool
    gc.collect()
    others = [put(only_cublas, np.full(1000, float(i))) for i in range(20)]
    assert (square(only_cublas).values == 8.0).all()
    for i, other in enumerate(others):
        assert (other.values == i).all()
    assert only_cublas.block_at(only_cublas.cublas.handles[0].workspace).used


def test_a_product_is_captured(only_cublas):
    stream = sys.modules["cupy"].cuda.Stream(non_blocking=True)
    with stream:
        a, b, out = (put(only_cublas, np.full((2, 2), v)) for v in (1.0, 3.0, 0.0))
        blas.matmul(a, b, out)
        stream.begin_capture()
        blas.matmul(a, a, out)
        graph = stream.end_capture()
        assert (out.values == 6.0).all()
        a.values[...] = 5.0
        graph.launch(stream)
        assert (out.values == 50.0).all()


# The simulated cuBLAS -----------------------------------------------------------------------------------


def prepare(device):
    """Return the call that multiplies a 2 x 3 by a 3 x 4 matrix, column-major, with some arguments changed."""
    a, b, c = (put(device, np.arange(float(n)), "float32") for n in (6, 12, 8))
    scalars = np.array([2.0, 0.0], "float32")
    valid = {
        "handle": device.cublas.create(), "transa": 0, "transb": 0, "m": 2, "n": 4, "k": 3,
        "alpha": scalars.ctypes.data, "a": a.memory.ctypes.data, "atype": 0, "lda": 2,
        "b": b.memory.ctypes.data, "btype": 0, "ldb": 3,
        "beta": scalars[1:].ctypes.data, "c": c.memory.ctypes.data, "ctype": 0, "ldc": 2,
        "compute_type": Cublas.ComputeType.COMPUTE_32F, "algo": -1,
    }  # fmt: skip

    def call(**changes):
        device.cublas.gemm_ex(*{**valid, **changes}.values())
        assert scalars[0] == 2.0
        return c.values

    return call


@pytest.fixture
def gemm(device):
    return prepare(device)


def test_the_pretended_cublas_counts_columns_first(gemm):
    a, b = np.arange(6.0).reshape(3, 2).T, np.arange(12.0).reshape(4, 3).T
    np.testing.assert_array_equal(gemm().reshape(4, 2).T, 2 * a @ b)
    a = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(gemm(transa=1, lda=3).reshape(4, 2).T, 2 * a @ b)
    b = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(gemm(transa=1, lda=3, transb=1, ldb=4).reshape(4, 2).T, 2 * a @ b)


@pytest.mark.parametrize(
    "changes",
    [{"lda": 1}, {"ldb": 2}, {"ldc": 1}, {"transa": 1}, {"transb": 1}, {"atype": 1}, {"atype": 7}, {"m": 0},
     {"compute_type": Cublas.ComputeType.COMPUTE_64F}, {"algo": 3}],
    ids=str,
)  # fmt: skip
def test_the_pretended_cublas_refuses(gemm, changes):
    with pytest.raises(cuBLASError, match="INVALID_VALUE"):
        gemm(**changes)


def test_the_pretended_cublas_looks_after_memory(device, gemm):
    with pytest.raises(CUDARuntimeError, match="IllegalAddress"):
        gemm(lda=200)
    with pytest.raises(CUDARuntimeError, match="IllegalAddress"):
        gemm(a=64)
    cuda, handle = sys.modules["cupy"].cuda, device.cublas.create()
    with pytest.raises(cuBLASError, match="256"):
        device.cublas.set_workspace(handle, 100, 50)
    stream, workspace = cuda.Stream(non_blocking=True), cuda.Memory(4096)
    with stream:
        device.cublas.set_workspace(handle, workspace.ptr, 4096)
        device.cublas.set_stream(handle, stream.ptr)  # which resets the workspace
        stream.begin_capture()
        with pytest.raises(cuBLASError, match="ALLOC_FAILED"):
            gemm(handle=handle)
        with pytest.raises(cuBLASError, match="a handle"):
            device.cublas.create()
        stream.end_capture()
        device.cublas.set_workspace(handle, workspace.ptr, 4096)
        gemm(handle=handle)
        del workspace
        with pytest.raises(CUDARuntimeError, match="IllegalAddress"):
            gemm(handle=handle)
