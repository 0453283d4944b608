"""A backend with read-only arrays: NumPy's, as functional as JAX's.

Parts must not modify their inputs. NumPy does not report an in-place operation on one; this backend raises.
Based on array-api-extra's `NumPyReadOnly`.
"""

from contextlib import contextmanager

import numpy as np

from xpnet.backend import BACKENDS, Backend


def lock(value):
    """Lock all arrays in a value."""
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value).view(Locked)
    return type(value)(map(lock, value)) if type(value) in (tuple, list) else value


def unlock(value):
    """Replace locked arrays in a value with plain ones."""
    if isinstance(value, Locked):
        return value.view(np.ndarray)
    if type(value) in (tuple, list):
        return type(value)(map(unlock, value))
    return {k: unlock(v) for k, v in value.items()} if type(value) is dict else value


class Locked(np.ndarray):
    """A read-only array."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        if out is not None:
            raise ValueError(f"numpy.{ufunc.__name__} would write to an array")
        return lock(getattr(ufunc, method)(*unlock(inputs), **unlock(kwargs)))

    def __array_function__(self, function, types, args, kwargs):
        if kwargs.get("out") is not None or function in (np.copyto, np.put, np.place, np.putmask):
            raise ValueError(f"numpy.{function.__name__} would write to an array")
        return lock(function(*unlock(args), **unlock(kwargs)))

    def __getitem__(self, index):
        return lock(unlock(self)[unlock(index)])

    def _refuse(self, *args, **kwargs):
        raise ValueError("an assignment would write to an array")

    __setitem__ = fill = sort = partition = put = resize = setfield = itemset = _refuse


class Namespace:
    """NumPy, with locked results."""

    def __getattr__(self, name):
        found = getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found
        return lambda *args, **kwargs: lock(found(*unlock(args), **unlock(kwargs)))


class NumPyReadOnly(Backend):
    """The backend described above."""

    name = package = "numpy_read_only"
    install = "it is only for tests"

    def _namespace(self):
        return Namespace()

    @classmethod
    def owns(cls, x):
        return isinstance(x, Locked)

    @classmethod
    def version(cls):
        return np.__version__

    @staticmethod
    def host(x):
        return unlock(x)

    @staticmethod
    def shares(x, y):
        return np.may_share_memory(unlock(x), unlock(y))


@contextmanager
def entered():
    """Register the backend for a block of code."""
    BACKENDS[NumPyReadOnly.name] = NumPyReadOnly
    try:
        yield
    finally:
        del BACKENDS[NumPyReadOnly.name]
