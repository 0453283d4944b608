"""CuPy's streams, memory pools and graphs, and cuBLAS, simulated without a GPU for cupy_like.py's arrays.

Work runs only when something waits for it, and then only in the order that streams and events require: a missing
`wait_event` that gives wrong results on a GPU does so here. While a stream captures, operations are recorded, and
`Graph.launch` runs them on the same memory. Freed memory is reused by the same stream and pool, with all
bits set (NaN, -1); memory of a pool that was deleted is an illegal address.

It refuses what CuPy 14 refuses; comments cite the file of github.com/cupy/cupy.
"""

import bisect
import ctypes
import operator
import sys
import time
import weakref
from collections import defaultdict, deque
from contextlib import contextmanager
from enum import IntEnum
from functools import partial
from types import SimpleNamespace

import cuda_on_host
import cupy_like
import numpy as np
import pytest
from cupy_like import DEVICE, Array, Device, Eager, Namespace, _strip

from xpnet import kernels
from xpnet.backend import CupyBackend
from xpnet.backend.base import make_backend
from xpnet.kernels import check
from xpnet.kernels.cuda import blas, generated, graph
from xpnet.kernels.cuda import launch as cuda

UNIT = 512  # bytes: memory is allocated in multiples of it (cupy/cuda/memory.pyx, ALLOCATION_UNIT_SIZE)
LARGE = 1 << 20  # bytes: blocks of this size are not filled (cuBLAS's workspaces)
# These use cuBLAS. CuPy 14 has no `vecdot`: array_api_compat implements it with a product (common/_aliases.py).
PRODUCTS = {
    cuda_on_host._multiply, np.matmul, np.ndarray.__matmul__, np.ndarray.__rmatmul__, np.tensordot, np.vecdot,
}  # fmt: skip
EMPTY = {np.empty, np.empty_like}


class CUDARuntimeError(RuntimeError):
    """As `cupy.cuda.runtime.CUDARuntimeError`."""


# Memory -------------------------------------------------------------------------------------------------


class Block:
    """A block of device memory: in use, in a pool's free list, or returned to the driver."""

    def __init__(self, size):
        whole = np.empty(size + UNIT, np.uint8)
        start = -whole.ctypes.data % UNIT
        self.raw = whole[start : start + size]
        self.address, self.used, self.device = self.raw.ctypes.data, False, Device().id
        self.pool = lambda: None
        self.spoil()

    def spoil(self):
        if self.raw.size < LARGE:
            self.raw[:] = 255

    @property
    def valid(self):
        return self.used or self.pool() is not None


class Memory:
    """The memory of arrays, as `cupy.cuda.BaseMemory`: when the last reference is gone, the block is free."""

    def __init__(self, block, free):
        self.block, self.free, self.ptr = block, free, block.address
        block.used = True
        self.__array_interface__ = {
            "shape": block.raw.shape, "typestr": "|u1", "data": (block.address, False), "version": 3,
        }  # fmt: skip

    def __del__(self):
        self.free(self.block)
        self.block.used = False


class Pool:
    """As `cupy.cuda.MemoryPool`: memory allocated on a stream is reused only on that stream."""

    def __init__(self, engine, allocator=None):
        self._engine, self._free, self._total = engine, defaultdict(list), 0
        self._allocate = allocator or engine.driver_memory

    def malloc(self, size):
        size, stream = -(-size // UNIT) * UNIT, self._engine.current
        free = self._free[Device().id, stream.ptr, size]
        if free:
            block = free.pop()
            if not stream.is_capturing():
                stream.note(block.spoil, ())
        else:
            block = self._new(size)
            self._total += size
        return SimpleNamespace(mem=Memory(block, free.append), ptr=block.address)

    def _new(self, size):
        try:
            memory = self._allocate(size).mem
        except CUDARuntimeError:  # cupy/cuda/memory.pyx, _try_malloc
            self.free_all_blocks()
            try:
                memory = self._allocate(size).mem
            except CUDARuntimeError as error:
                raise MemoryError(f"Out of memory allocating {size:,} bytes") from error
        memory.block.pool, memory.free = weakref.ref(self), lambda block: None
        return memory.block

    def free_all_blocks(self):
        self._total -= self.free_bytes()
        for blocks in self._free.values():
            for block in blocks:
                block.pool = lambda: None
            blocks.clear()

    def total_bytes(self):
        return self._total

    def free_bytes(self):
        return sum(size * len(blocks) for (*_, size), blocks in self._free.items())

    def __del__(self):
        self._engine.settle()  # cudaFree waits for the device


def _memory_of(a):
    while isinstance(a, np.ndarray):
        a = a.base
    return a if isinstance(a, Memory) else None


def _raw(x, blocks):
    """Replace arrays in the arguments with bare memory, which keeps nothing alive; add its blocks to a list."""
    if isinstance(x, (list, tuple)):
        return type(x)(_raw(v, blocks) for v in x)
    if isinstance(x, dict):
        return {name: _raw(v, blocks) for name, v in x.items()}
    if not isinstance(x, Array):
        return x
    a, memory = x.memory, _memory_of(x.memory)
    if memory is None:  # allocated by a test
        return a
    blocks.append(memory.block)
    return np.ndarray(a.shape, a.dtype, memory.block.raw, a.ctypes.data - memory.ptr, a.strides)


# Streams and graphs -------------------------------------------------------------------------------------


class Stream:
    """As `cupy.cuda.Stream`: a queue of operations, each with the blocks of memory that it needs."""

    def __init__(self, engine, null=False, non_blocking=False):
        if not (null or non_blocking):
            raise NotImplementedError("the stand-in has no streams that wait for the null stream")
        self._engine, self.device_id = engine, Device().id
        self.ptr = len(engine.streams)  # 0 is the null stream
        engine.streams.append(self)
        self._queue, self._asked, self._done = deque(), 0, 0
        self._captured, self._invalid = None, False

    def __enter__(self):
        # cupy/cuda/stream.pyx, check_stream_device_match
        if self.device_id != Device().id:
            raise RuntimeError("The device that the stream is created on does not match with the current device")
        self._engine.stacks[self.device_id].append(self)
        return self

    def __exit__(self, *args):
        self._engine.stacks[self.device_id].pop()

    def note(self, work, blocks):
        """Queue an operation on memory: it runs when something waits for it, or at every launch of a graph."""
        if self._invalid:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated: operation failed due to a previous error")
        # CuPy allows it if one device can access the other's memory, but unordered with the other's streams
        assert {b.device for b in blocks} <= {self.device_id}, "the memory of one device, a stream of another"
        if self._captured is not None:
            self._captured.append((work, blocks))
        else:
            self._queue.append((work, blocks))
            self._asked += 1

    def run(self, until=None):
        """Run queued operations, up to a number of them."""
        while self._done < (self._asked if until is None else until):
            self._done += 1
            work, blocks = self._queue.popleft()
            if not all(b.valid for b in blocks):
                self._queue.clear()  # nothing runs after an error
                self._done = self._asked
                raise CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")
            with np.errstate(all="ignore"):
                work()

    def record(self):
        """Return an event: this stream, and the length of its queue."""
        if self._captured is not None:
            raise NotImplementedError("the stand-in does not capture events")
        return self, self._asked

    def wait_event(self, event):
        if self._captured is not None:
            raise CUDARuntimeError("cudaErrorStreamCaptureIsolation: dependency created on uncaptured work")
        stream, count = event
        self.note(lambda: stream.run(count), ())

    def synchronize(self):
        # tests/cupy_tests/cuda_tests/test_graph.py, test_stream_capture_failure1: the capture is lost, too
        if self._captured is not None:
            self._invalid = True
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
            )
        self.run()

    def is_capturing(self):
        return self._captured is not None

    def begin_capture(self, mode=None):
        # cupy/cuda/stream.pyx, begin_capture; None is the relaxed mode, in which a pool may grow
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if mode is not None:
            raise NotImplementedError("the stand-in captures in the relaxed mode only")
        if self._captured is not None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is capturing")
        self._captured = []

    def end_capture(self):
        if self._captured is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not capturing")
        (captured, self._captured), (invalid, self._invalid) = (self._captured, None), (self._invalid, False)
        if invalid:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated: operation failed due to a previous error")
        made = Graph.__new__(Graph)
        made.engine, made.notes = self._engine, captured
        return made


class Event:
    """As `cupy.cuda.Event`: records the time when its stream reaches it."""

    def record(self):
        stream = self.stream = sys.modules["cupy"].cuda.get_current_stream()
        stream.note(lambda: setattr(self, "seconds", time.perf_counter()), ())
        self.place = stream.record()[1]

    def synchronize(self):
        self.stream.run(self.place)


def get_elapsed_time(start, end):
    """As `cupy.cuda.get_elapsed_time`: milliseconds."""
    return (end.seconds - start.seconds) * 1e3


class Graph:
    """As `cupy.cuda.Graph`."""

    @property
    def graph(self):
        """The graph's handle in CUDA."""
        return id(self)

    def __init__(self):
        # cupy/cuda/graph.pyx
        raise NotImplementedError("currently this class cannot be initiated by the user")

    def launch(self, stream=None):
        stream = self.engine.current if stream is None else stream
        for work, blocks in self.notes:
            stream.note(work, blocks)


# The engine ---------------------------------------------------------------------------------------------


class Engine(Eager):
    """Runs the operations of arrays on the current stream."""

    def __init__(self):
        self.streams, self._blocks = [], []
        self.stacks = {0: [Stream(self, null=True)]}  # by device: the current stream is the last
        self.pool, self.free, self.devices = Pool(self), 1 << 30, 1  # free: bytes
        self.full = False  # whether the driver is out of memory
        self.alloc = self.pool.malloc

    @property
    def current(self):
        device = Device().id
        if device not in self.stacks:
            self.stacks[device] = [Stream(self, null=True)]
        return self.stacks[device][-1]

    def device_of(self, a):
        """Return the device that holds an array's memory."""
        memory = _memory_of(a.memory)
        return DEVICE if memory is None else Device(memory.block.device)

    def driver_memory(self, size):
        """As `cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)`."""
        return SimpleNamespace(mem=Memory(self.allocate(size), lambda block: self.settle()))

    def allocate(self, size):
        """Allocate memory from the driver."""
        if self.full:
            raise CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")
        block = Block(size)
        bisect.insort(self._blocks, block, key=operator.attrgetter("address"))
        return block

    def block_at(self, address):
        """Return the block that contains an address."""
        block = self._blocks[bisect.bisect(self._blocks, address, key=operator.attrgetter("address")) - 1]
        if not block.address <= address < block.address + block.raw.size:
            raise CUDARuntimeError("cudaErrorIllegalAddress: no memory of the device's")
        return block

    @contextmanager
    def using_allocator(self, allocator):
        before, self.alloc = self.alloc, allocator
        try:
            yield
        finally:
            self.alloc = before

    def new_array(self, shape, dtype):
        """Return an array in memory from the current allocator."""
        size = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
        if size == 0:
            return Array(np.empty(shape, dtype))
        return Array(np.asarray(self.alloc(size).mem)[:size].view(dtype).reshape(shape))

    def compute(self, function, args, kwargs):
        """Queue a NumPy function; return a view at once, or memory for the future result."""
        if self.current.is_capturing():
            self._check(function, args)
        given = _strip(args)
        with np.errstate(all="ignore"):
            result = function(*given, **_strip(kwargs))  # for the shapes and dtypes
        results = result if isinstance(result, (list, tuple)) else [result]
        if not all(isinstance(r, (np.ndarray, np.generic)) for r in results):
            return result  # such as NotImplemented
        flat = [a.memory for a in _arrays(args)]
        found, fresh = [], {}
        for i, r in enumerate(map(np.asarray, results)):
            view = r.size == 0 or any(np.may_share_memory(r, a) for a in flat)
            found.append(Array(r) if view else self.new_array(r.shape, r.dtype))
            if not view and function not in EMPTY:
                fresh[i] = found[-1]
        if fresh:
            self.write(partial(_into, function, isinstance(result, (list, tuple))), fresh, args, kwargs)
        return type(result)(found) if isinstance(result, (list, tuple)) else found[0]

    def _check(self, function, args):
        """Raise for what CuPy refuses while a stream captures."""
        if function in PRODUCTS:
            # cupy_backends/cuda/libs/cublas.pyx, setStream
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        if function is np.sign:
            # array_api_compat/common/_aliases.py, sign: out[isnan(x)] = nan, by a mask (see `wait`)
            self.wait("sign")
        if function in (np.concatenate, np.stack):
            # cupy/_core/_routines_manipulation.pyx, _concatenate: addresses of more than 8 arrays are copied there
            parts = [a.memory for a in args[0]]
            if len(parts) > 8 and len({a.dtype for a in parts}) == 1:
                self._no_upload()

    def write(self, function, *args):
        """Queue a function that writes to its array arguments."""
        if self.current.is_capturing():
            self._check(function, args)
        _strip(args)  # may raise
        blocks = []
        raw = _raw(args, blocks)
        self.current.note(lambda: function(*raw), blocks)

    def launch(self, run, arrays):
        """Queue a kernel; the first run checks it for races."""
        blocks, check = [], not self.current.is_capturing()
        raw = _raw(arrays, blocks)
        self.current.note(lambda: run(raw, check), blocks)

    def upload(self, host):
        """Queue a copy of the current content of host memory."""
        if self.current.is_capturing() and host.ndim:
            self._no_upload()  # a 0-d array is a `fill` (cupy/_core/core.pyx, _array_default)
        place, host = self.new_array(host.shape, host.dtype), host.copy()
        self.write(lambda room: np.copyto(room, host), place)
        return place

    def _no_upload(self):
        # cupy/cuda/memory.pyx, copy_from_host_async
        raise RuntimeError("the current stream is capturing, so H2D transfers are disallowed")

    def wait(self, what):
        # cupy/cuda/memory.pyx, copy_to_host_async: `get`, and everything based on it. A boolean mask as an
        # index and `nonzero`: cupy/_core/_routines_indexing.pyx, int(mask_scanned[-1]).
        if self.current.is_capturing():
            raise RuntimeError("the current stream is capturing, so D2H transfers are disallowed")
        self.current.run()

    def settle(self):
        """Wait for all streams."""
        for stream in self.streams:
            stream.run()


def _into(function, several, places, args, kwargs):
    """Copy results to arrays, by index."""
    result = function(*args, **kwargs)
    for i, place in places.items():
        place[...] = result[i] if several else result


def _arrays(x):
    if isinstance(x, (list, tuple)):
        return [a for v in x for a in _arrays(v)]
    return [x] if isinstance(x, Array) else []


# cuBLAS -------------------------------------------------------------------------------------------------


class cuBLASError(Exception):
    """As `nvmath.bindings.cublas.cuBLASError`."""


class Cublas:
    """As `nvmath.bindings.cublas` of nvmath-python 1.0 (cublas.pyi, cublas.pxd), with NumPy on addresses."""

    # cublas_api.h
    Operation = IntEnum("Operation", {"N": 0, "T": 1, "C": 2})
    GemmAlgo = IntEnum("GemmAlgo", {"DEFAULT": -1})
    ComputeType = IntEnum("ComputeType", {"COMPUTE_32F": 68, "COMPUTE_64F": 70, "COMPUTE_32F_FAST_TF32": 77})
    cuBLASError = cuBLASError

    def __init__(self, engine):
        self._engine, self.handles = engine, []

    def create(self):
        if self._engine.current.is_capturing():
            raise cuBLASError("NOT_INITIALIZED (1): a handle allocates memory of the driver's")
        self.handles.append(SimpleNamespace(stream=0, workspace=None, size=0))
        return len(self.handles)

    def set_stream(self, handle, stream_id):
        """Resets the workspace to cuBLAS's own."""
        self.handles[handle - 1].__dict__.update(stream=stream_id, workspace=None, size=0)

    def set_workspace(self, handle, workspace, workspace_size_in_bytes):
        _valid(workspace % 256 == 0, "a workspace at a multiple of 256")
        self.handles[handle - 1].__dict__.update(workspace=workspace, size=workspace_size_in_bytes)

    def gemm_ex(self, handle, transa, transb, m, n, k, alpha, a, atype, lda, b, btype, ldb, beta, c, ctype, ldc,
                compute_type, algo):  # fmt: skip
        """C = alpha op(A) op(B) + beta C, column-major, where op(A) is m x k, op(B) k x n and C m x n."""
        handle = self.handles[handle - 1]
        stream = self._engine.streams[handle.stream]
        if stream.is_capturing() and handle.workspace is None:
            raise cuBLASError("ALLOC_FAILED (3): without a workspace it allocates one")
        # cudaDataType: CUDA_R_32F, CUDA_R_64F, CUDA_R_16F, CUDA_R_16BF; valid combinations: cublasGemmEx()
        dtypes = {0: np.float32, 1: np.float64, 2: np.float16, 14: np.uint16}
        _valid(atype == btype and atype in dtypes, "factors of one type")
        _valid(ctype == (atype if atype < 2 else 0), "a result in float32, or in the factors' type")
        given, dtype, compute = dtypes[atype], dtypes[ctype], self.ComputeType(compute_type)
        _valid((compute == self.ComputeType.COMPUTE_64F) == (dtype is np.float64), "a compute type that fits")
        _valid(compute != self.ComputeType.COMPUTE_32F_FAST_TF32 or atype == 0, "TF32 for float32")
        _valid(min(m, n, k) > 0 and algo == self.GemmAlgo.DEFAULT, "sizes and an algorithm")
        transa, transb = self.Operation(transa), self.Operation(transb)
        blocks = []
        left = self._matrix(a, (m, k) if transa == self.Operation.N else (k, m), lda, given, blocks)
        right = self._matrix(b, (k, n) if transb == self.Operation.N else (n, k), ldb, given, blocks)
        out = self._matrix(c, (m, n), ldc, dtype, blocks)
        left = left if transa == self.Operation.N else left.T
        right = right if transb == self.Operation.N else right.T
        scalar = ctypes.POINTER(np.ctypeslib.as_ctypes_type(dtype))  # on the host, read during the call
        one, zero = (dtype(ctypes.cast(p, scalar).contents.value) for p in (alpha, beta))
        scratch = None
        if handle.workspace is not None:
            blocks.append(self._engine.block_at(handle.workspace))
            start = handle.workspace - blocks[-1].address
            scratch = blocks[-1].raw[start : start + handle.size]
            _valid(scratch.size == handle.size, "a workspace of that size")

        def work():
            x, y = (_wide(np.ascontiguousarray(f)) for f in (left, right))
            if compute == self.ComputeType.COMPUTE_32F_FAST_TF32:
                x, y = _tf32(x), _tf32(y)
            out[...] = one * (x @ y) + (zero * out if zero else dtype(0))
            if scratch is not None:
                scratch[:UNIT] = scratch[-UNIT:] = 170

        stream.note(work, blocks)

    def _matrix(self, address, shape, ld, dtype, blocks):
        """Return a matrix with the leading dimension `ld`."""
        rows, columns = shape
        _valid(ld >= max(1, rows), f"a leading dimension of at least {rows}, got {ld}")
        block, size = self._engine.block_at(address), np.dtype(dtype).itemsize
        blocks.append(block)
        offset = address - block.address
        if offset + ((columns - 1) * ld + rows) * size > block.raw.size:
            raise CUDARuntimeError("cudaErrorIllegalAddress: a matrix goes beyond its memory")
        return np.ndarray(shape, dtype, block.raw, offset, (size, ld * size))


def _valid(condition, what):
    if not condition:
        raise cuBLASError(f"INVALID_VALUE (7): expected {what}")


def _wide(x):
    """Convert 16-bit factors (uint16: bfloat16) to float32; return others unchanged."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32) if x.dtype == np.float16 else x


def _tf32(x):
    """Round to 10 fraction bits, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & ~np.uint32(0x1FFF)).view(np.float32)


# Fixtures -----------------------------------------------------------------------------------------------

CACHES = (
    check._right,
    cuda.module,
    cuda.kernel_of,
    cuda.kernel_made_by,
    make_backend,
    kernels._table,
    blas.available,
    blas._handle,
)


def clean_start(monkeypatch):
    """Skip if kernels can't be compiled; clear environment switches."""
    if cuda_on_host.COMPILER is None:
        pytest.skip("no C++ compiler (g++) was found")
    for name in ("XPNET_GRAPH", "XPNET_KERNELS", "XPNET_MATMUL_PRECISION"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def pretended_cupy(monkeypatch, bindings=True, checked=False):
    """Run the backend "cupy" on the simulated device.

    Args:
        bindings: whether cuBLAS's bindings exist. checked: whether kernels are checked before use.
    """
    if not checked:
        monkeypatch.setattr(CupyBackend, "checked", False)
    engine = Engine()
    cublas = engine.cublas = Cublas(engine)
    cuda = SimpleNamespace(
        Device=Device,
        Event=Event,
        Graph=Graph,
        Memory=lambda size: engine.driver_memory(size).mem,
        MemoryPointer=lambda memory, offset: SimpleNamespace(mem=memory, ptr=memory.ptr + offset),
        MemoryPool=lambda allocator=None: Pool(engine, allocator),
        Stream=lambda **kwargs: Stream(engine, **kwargs),
        alloc=lambda size: engine.alloc(size),
        get_current_stream=lambda: engine.current,
        get_device_id=lambda: Device().id,
        get_elapsed_time=get_elapsed_time,
        runtime=SimpleNamespace(
            getDeviceCount=lambda: engine.devices,
            CUDARuntimeError=CUDARuntimeError,
            memGetInfo=lambda: (engine.free, 1 << 30),
        ),
        using_allocator=engine.using_allocator,
    )
    cupy = SimpleNamespace(
        may_share_memory=lambda a, b: np.may_share_memory(a.memory, b.memory),
        **vars(cuda_on_host.cupy),
        cuda=cuda,
        empty=engine.new_array,
        get_default_memory_pool=lambda: engine.pool,
        __version__="14, pretended",
    )
    monkeypatch.setattr(cupy_like, "engine", engine)
    monkeypatch.setattr(Array, "__module__", "cupy")  # CupyBackend recognizes arrays by it
    namespace = Namespace()
    namespace.float16 = np.float16  # CuPy has it, the standard does not
    modules = {"cupy": cupy, "array_api_compat.cupy": namespace, "nvmath": None, "nvmath.bindings": None}
    if bindings:
        modules.update({"nvmath": SimpleNamespace(), "nvmath.bindings": SimpleNamespace(cublas=cublas)})
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    _forget()
    cuda_on_host.RawKernel.launched.clear()
    try:
        yield engine
    finally:
        _forget()
        engine.streams.clear()  # with their pending work


def _forget():
    for cache in CACHES:
        cache.cache_clear()
    graph._idle.clear()
    generated._verdicts.clear()
