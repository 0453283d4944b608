"""A backend that refuses what CuPy refuses, on NumPy's memory: a GPU for machines without one.

Its arrays do not mix with NumPy's, are not converted implicitly, and stay arrays where NumPy's decay to scalars.
Inside a step (as wrapped by `compile` and `jit`) every read of a value on the host is an error, because it would
wait for the GPU and end a graph's capture; so is a transfer of host memory. The state passed to a step is
invalid afterwards, as if overwritten. The namespace has the functions of the array API standard only;
other features of CuPy's arrays are reserved for `backend/` and `kernels/`.

An engine runs the operations: `Eager` at once; that of cupy_capture.py on streams, which may capture them.
"""

import operator
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from xpnet.backend import Backend
from xpnet.backend.tree import tree_map

NAMES = """
    abs acos acosh add all any arange argmax argmin argsort asarray asin asinh astype atan atan2 atanh
    bitwise_and bitwise_invert bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor broadcast_arrays
    broadcast_to can_cast ceil clip concat conj copysign cos cosh count_nonzero cumulative_prod cumulative_sum diff
    divide empty empty_like equal exp expand_dims expm1 eye finfo flip floor floor_divide from_dlpack full
    full_like greater
    greater_equal hypot iinfo isdtype isfinite isinf isnan less less_equal linspace log log10 log1p log2
    logaddexp logical_and logical_not logical_or logical_xor matmul matrix_transpose max maximum mean meshgrid min
    minimum moveaxis multiply negative nextafter nonzero not_equal ones ones_like permute_dims positive pow prod
    reciprocal remainder repeat reshape result_type roll round searchsorted sign signbit sin sinh sort sqrt square
    squeeze stack std subtract sum take take_along_axis tan tanh tensordot tile tril triu trunc unstack var vecdot
    where zeros zeros_like
    bool complex64 complex128 e float32 float64 inf int8 int16 int32 int64 nan newaxis pi uint8 uint16 uint32
    uint64"""
STANDARD = set(NAMES.split())
SYNCHRONISING = {"nonzero"}  # the size of the result depends on values
CREATION = {"arange", "empty", "empty_like", "eye", "full", "full_like", "linspace", "ones", "ones_like", "zeros",
            "zeros_like"}  # fmt: skip

_in_step = threading.local()


@contextmanager
def inside_a_step():
    _in_step.depth = getattr(_in_step, "depth", 0) + 1
    try:
        yield
    finally:
        _in_step.depth -= 1


def _no_sync(what):
    if getattr(_in_step, "depth", 0):
        raise RuntimeError(f"{what} inside a step: the host would wait for the device")


class Eager:
    """Runs every operation at once."""

    def compute(self, function, args, kwargs):
        """Return the results of a NumPy function as arrays."""
        with np.errstate(all="ignore"):
            return _wrap(function(*_strip(args), **_strip(kwargs)))

    def write(self, function, *args):
        """Call a function that writes to its array arguments."""
        function(*_strip(args))

    def launch(self, run, arrays):
        """Run a kernel on these arrays, `run(memory, check)`; `check` also checks it for races."""
        run([a.memory for a in arrays], True)

    def upload(self, host):
        """Return host memory as an array."""
        return Array(host)

    def wait(self, what):
        """Wait for the work of the current stream, because the host needs a value."""

    def settle(self):
        """Wait for all work, for a test that reads memory."""

    def device_of(self, a):
        """Return the device that holds an array's memory."""
        return DEVICE


engine = Eager()
_entered = [0]  # device numbers; the last one is current


class Device:
    """The simulated device, as `cupy.cuda.Device`."""

    def __init__(self, device=None):
        self.id = _entered[-1] if device is None else getattr(device, "id", device)

    def __enter__(self):
        _entered.append(self.id)
        return self

    def __exit__(self, *args):
        _entered.pop()

    def __eq__(self, other):
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self):
        return self.id

    def __repr__(self):
        return f"<pretended device {self.id}>"


DEVICE = Device()


KNOW_CUPY = ("xpnet.backend", "xpnet.kernels.")  # modules that may use features of CuPy beyond the standard


def _reserved(what):
    """Raise unless the caller's caller is in a module that knows CuPy."""
    caller = sys._getframe(2).f_globals["__name__"]
    if not caller.startswith(KNOW_CUPY):
        raise TypeError(f"{what} is not in the floors that all backends share; used in {caller}")


class Array:
    """An array on the simulated device."""

    __array_ufunc__ = None  # NumPy defers to this class, which refuses

    def __init__(self, values):
        self._values = np.asarray(values)

    @property
    def memory(self):
        """The memory itself, whose content may not be computed yet."""
        if self._values is None:
            raise RuntimeError("this array was donated to a step and is gone")
        return self._values

    @property
    def values(self):
        """The memory after all queued work (for tests)."""
        engine.settle()
        return self.memory

    def donate(self):
        self._values = None

    def get(self):
        """Copy to the host."""
        _no_sync("get()")
        with self.device:
            engine.wait("get()")
        return self.memory.copy()

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __repr__(self):
        return f"cupy_like.Array(shape={self.shape}, dtype={self.dtype})"

    dtype = property(lambda self: self.memory.dtype)
    shape = property(lambda self: self.memory.shape)
    ndim = property(lambda self: self.memory.ndim)
    size = property(lambda self: self.memory.size)
    T = property(lambda self: Array(self.memory.T))
    mT = property(lambda self: Array(self.memory.mT))
    device = property(lambda self: engine.device_of(self))

    def __len__(self):
        return len(self.memory)

    def __getitem__(self, key):
        keys = key if isinstance(key, tuple) else (key,)
        if any(isinstance(k, Array) and k.dtype == bool for k in keys):
            _no_sync("a boolean mask as an index")
            engine.wait("a boolean mask as an index")
        if not any(k is ... for k in keys):
            keys = (*keys, ...)  # so a single element is a view, too
        return engine.compute(operator.getitem, (self, keys), {})

    def __iter__(self):
        _no_sync("iteration")
        return (self[i] for i in range(len(self)))

    # CuPy's features beyond the standard

    def __setitem__(self, key, value):
        _reserved("an assignment to elements")
        engine.write(operator.setitem, self, key, value)

    def all(self):
        _reserved("all()")
        return engine.compute(np.all, (self,), {})

    def copy(self):
        _reserved("copy()")
        return engine.compute(np.ndarray.copy, (self,), {})

    @property
    def flags(self):
        _reserved("flags")
        return self.memory.flags

    @property
    def data(self):
        _reserved("data")
        return SimpleNamespace(ptr=self.memory.ctypes.data)

    __hash__ = None


def _look(name, read):
    def look(self, *args):
        _no_sync(name)
        with self.device:
            engine.wait(name)
        return read(self.memory, *args)

    setattr(Array, name, look)


for _name, _read in {
    "__bool__": bool, "__float__": float, "__int__": int, "__index__": operator.index, "__complex__": complex,
    "item": np.ndarray.item, "tolist": np.ndarray.tolist,
}.items():  # fmt: skip
    _look(_name, _read)


def _operator(name):
    compute = getattr(np.ndarray, name)
    setattr(Array, name, lambda self, *others: engine.compute(compute, (self, *others), {}))


BINARY = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"
for _stem in BINARY.split():
    _operator(f"__{_stem}__")
    _operator(f"__r{_stem}__")
COMPARED = "neg pos abs invert lt le gt ge eq ne"
for _stem in COMPARED.split():
    _operator(f"__{_stem}__")


def _strip(x):
    """Return the NumPy array of an argument, or raise the error that CuPy raises."""
    if isinstance(x, Array):
        return x.memory
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, (list, tuple)):
        return type(x)(map(_strip, x))
    return {name: _strip(v) for name, v in x.items()} if isinstance(x, dict) else x


def _wrap(x):
    if isinstance(x, (np.ndarray, np.generic)):
        return Array(x)
    return type(x)(map(_wrap, x)) if isinstance(x, (list, tuple)) else x


class Namespace:
    """The functions of the standard, implemented with NumPy."""

    __name__ = "cupy_like"

    def __getattr__(self, name):
        if name not in STANDARD:
            raise AttributeError(f"the array API standard has no {name}")
        found = getattr(np, name)
        if not callable(found) or isinstance(found, type):
            return found

        def function(*args, device=None, **kwargs):
            with Device(device):
                return compute(*args, **kwargs)

        def compute(*args, **kwargs):
            if name in SYNCHRONISING:
                _no_sync(name)
                engine.wait(name)
            if name not in CREATION and not any(isinstance(a, (Array, list, tuple)) for a in args):
                raise TypeError(f"Unsupported type {type(args[0])}")
            return engine.compute(found, args, kwargs)

        return function

    def asarray(self, x, dtype=None, device=None, copy=None):
        with Device(device):
            if isinstance(x, Array):
                return engine.compute(np.array, (x,), {"dtype": dtype, "copy": copy})
            _no_sync("a transfer of host memory")
            return engine.upload(np.array(x, dtype=dtype, copy=copy))

    def astype(self, x, dtype, copy=True, device=None):
        return engine.compute(np.ndarray.astype, (x, dtype), {"copy": copy})

    def result_type(self, *args):
        return np.result_type(*map(_strip, args))

    def isdtype(self, dtype, kind):
        return np.isdtype(dtype, kind)

    def finfo(self, dtype):
        return np.finfo(dtype)

    iinfo = finfo


class CupyLike(Backend):
    """The backend described above."""

    name = package = "cupy_like"
    install = "it is only for tests"

    def _namespace(self):
        return Namespace()

    def _device(self, device):
        return DEVICE

    @classmethod
    def owns(cls, x):
        return isinstance(x, Array)

    @classmethod
    def version(cls):
        return "0"

    @staticmethod
    def host(x):
        return x.get()

    def copy(self, x):
        return engine.compute(np.ndarray.copy, (x,), {})

    def when(self, ok, update, kept):
        assert isinstance(ok, Array), ok
        assert ok.shape == ()
        return super().when(ok, update, kept)

    def jit(self, function):
        def run(*args):
            with inside_a_step():
                return function(*args)

        return run

    def compile(self, step):
        inner = super().compile(self.jit(step))

        def run(state, batches, commit):
            def checked(result, finish):
                given, new = _leaves(checked.state), _leaves(result)
                assert all(isinstance(leaf, Array) for leaf in given), given
                assert len({id(leaf) for leaf in given}) == len(given), "one buffer is donated twice"
                assert [(a.shape, a.dtype) for a in new] == [(a.shape, a.dtype) for a in given]
                commit(result, finish)
                for leaf in given:
                    if not any(leaf is kept for kept in new):
                        leaf.donate()
                checked.state = result

            checked.state = state
            inner(state, batches, checked)

        return run


def _leaves(tree):
    found = []
    tree_map(found.append, tree)
    return found
