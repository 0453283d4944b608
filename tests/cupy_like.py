"""A backend that refuses what CuPy refuses, on NumPy's memory: a GPU for machines without one.

Its arrays do not mix with NumPy's, are not converted implicitly, and stay arrays where NumPy's decay to scalars.
Inside a step (what `compile` and `jit` wrap) every look at a value from the host is an error, as it would be a
wait for the GPU and the end of a graph's capture; so is a transfer of host memory. The state that a step was given
is gone afterwards, as if it had been written over. The namespace has the functions of the array API standard only.
"""

import operator
import threading
from contextlib import contextmanager

import numpy as np

from xpnet.backend import Backend, tree_map

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
SYNCHRONISING = {"nonzero"}  # the size of the result is not known before the values are
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


class Array:
    """An array on the pretended device."""

    __array_ufunc__ = None  # NumPy leaves operations to this class, which refuses them

    def __init__(self, values):
        self._values = np.asarray(values)

    @property
    def values(self):
        if self._values is None:
            raise RuntimeError("this array was donated to a step and is gone")
        return self._values

    def donate(self):
        self._values = None

    def get(self):
        """Copy to the host."""
        _no_sync("get()")
        return self.values.copy()

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __repr__(self):
        return f"cupy_like.Array(shape={self.shape}, dtype={self.dtype})"

    dtype = property(lambda self: self.values.dtype)
    shape = property(lambda self: self.values.shape)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)
    T = property(lambda self: Array(self.values.T))
    mT = property(lambda self: Array(self.values.mT))
    device = "pretended"

    def __len__(self):
        return len(self.values)

    def __getitem__(self, key):
        keys = key if isinstance(key, tuple) else (key,)
        if any(isinstance(k, Array) and k.dtype == bool for k in keys):
            _no_sync("a boolean mask as an index")
        return Array(self.values[tuple(_strip(k) for k in keys)])

    def __setitem__(self, key, value):
        raise TypeError("not in the floors that all backends share")

    def __iter__(self):
        _no_sync("iteration")
        return (self[i] for i in range(len(self)))

    __hash__ = None


def _look(name, read):
    def look(self, *args):
        _no_sync(name)
        return read(self.values, *args)

    setattr(Array, name, look)


for _name, _read in {
    "__bool__": bool, "__float__": float, "__int__": int, "__index__": operator.index, "__complex__": complex,
    "item": np.ndarray.item, "tolist": np.ndarray.tolist,
}.items():  # fmt: skip
    _look(_name, _read)


def _operator(name):
    compute = getattr(np.ndarray, name)

    def operate(self, *others):
        with np.errstate(all="ignore"):
            result = compute(self.values, *map(_strip, others))
        return result if result is NotImplemented else Array(result)

    setattr(Array, name, operate)


BINARY = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"
for _stem in BINARY.split():
    _operator(f"__{_stem}__")
    _operator(f"__r{_stem}__")
COMPARED = "neg pos abs invert lt le gt ge eq ne"
for _stem in COMPARED.split():
    _operator(f"__{_stem}__")


def _strip(x):
    """Return NumPy's view of an argument, or raise the error that CuPy raises."""
    if isinstance(x, Array):
        return x.values
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, (list, tuple)):
        return type(x)(map(_strip, x))
    return x


def _wrap(x):
    if isinstance(x, (np.ndarray, np.generic)):
        return Array(x)
    return type(x)(map(_wrap, x)) if isinstance(x, (list, tuple)) else x


class Namespace:
    """The functions of the standard, by way of NumPy's."""

    __name__ = "cupy_like"

    def __getattr__(self, name):
        if name not in STANDARD:
            raise AttributeError(f"the array API standard has no {name}")
        found = getattr(np, name)
        if not callable(found) or isinstance(found, type):
            return found

        def function(*args, device=None, **kwargs):
            assert device in (None, "pretended"), device
            if name in SYNCHRONISING:
                _no_sync(name)
            if name not in CREATION and not any(isinstance(a, (Array, list, tuple)) for a in args):
                raise TypeError(f"Unsupported type {type(args[0])}")
            with np.errstate(all="ignore"):
                return _wrap(found(*map(_strip, args), **{k: _strip(v) for k, v in kwargs.items()}))

        return function

    def asarray(self, x, dtype=None, device=None, copy=None):
        assert device in (None, "pretended"), device
        if not isinstance(x, Array):
            _no_sync("a transfer of host memory")
        return Array(np.array(x.values if isinstance(x, Array) else x, dtype=dtype, copy=copy))

    def astype(self, x, dtype, copy=True, device=None):
        return Array(_strip(x).astype(dtype, copy=copy))

    def result_type(self, *args):
        return np.result_type(*map(_strip, args))

    def isdtype(self, dtype, kind):
        return np.isdtype(dtype, kind)

    def finfo(self, dtype):
        return np.finfo(dtype)

    iinfo = finfo


class CupyLike(Backend):
    """See above."""

    name = package = "cupy_like"
    install = "it is only for tests"

    def _namespace(self):
        return Namespace()

    def _device(self, device):
        return "pretended"

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
        return Array(x.values.copy())

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

        def run(state, batches):
            given = _leaves(state)
            assert all(isinstance(leaf, Array) for leaf in given), given
            assert len({id(leaf) for leaf in given}) == len(given), "one buffer is donated twice"
            result = inner(state, batches)
            kept = {id(leaf) for leaf in _leaves(result)}
            assert [(a.shape, a.dtype) for a in _leaves(result)] == [(a.shape, a.dtype) for a in given]
            for leaf in given:
                if id(leaf) not in kept:
                    leaf.donate()
            return result

        return run


def _leaves(tree):
    found = []
    tree_map(found.append, tree)
    return found
