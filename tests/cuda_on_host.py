"""CUDA kernels without CUDA: `cupy.RawModule` implemented with g++ and cuda_stand_in.h, on cupy_like.py's arrays.

It is stricter than CuPy, which passes the bytes of any argument: arrays must be contiguous and of
the type of the kernel's parameter, scalars NumPy scalars of exactly that type, null pointers `np.uintp(0)`, and
grids not empty. Every launch runs twice on the same memory, the second time with blocks and threads in reverse
order: different bits reveal a race. (A CUDA graph, which repeats checked launches, runs them once.)
"""

import atexit
import ctypes
import hashlib
import re
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cupy_like
import numpy as np
from cupy_like import Array

COMPILER = shutil.which("g++")
HEADER = Path(__file__).with_name("cuda_stand_in.h")
TYPES = {
    "bool": (np.bool_, ctypes.c_bool),
    "unsigned char": (np.uint8, ctypes.c_ubyte),
    "unsigned short": (np.uint16, ctypes.c_ushort),  # and float16
    "int": (np.int32, ctypes.c_int),
    "long long": (np.int64, ctypes.c_longlong),
    "i64": (np.int64, ctypes.c_longlong),
    "u64": (np.uint64, ctypes.c_ulonglong),
    "float": (np.float32, ctypes.c_float),
    "double": (np.float64, ctypes.c_double),
}
KERNEL = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)')
QUALIFIERS = {"const", "__restrict__"}
# bytes are stored as words: C++ forbids such aliasing, CUDA's compilers do not
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror"]
FLAGS.append("-U_FORTIFY_SOURCE")  # its check of `longjmp` assumes a single stack

_libraries = {}
_folder = []


class Parameter:
    """A parameter of a kernel, and what may be passed for it."""

    def __init__(self, text):
        *kind, self.name = [word for word in text.replace("*", " * ").split() if word not in QUALIFIERS]
        self.pointer = kind[-1] == "*"
        kind = " ".join(kind[:-1] if self.pointer else kind)
        scalar, value = TYPES[kind]
        self.dtype = np.dtype(scalar)
        self.ctype = ctypes.c_void_p if self.pointer else value

    def take(self, x):
        """Return the argument for ctypes."""
        if not self.pointer:
            if not isinstance(x, np.generic) or np.dtype(type(x)) != self.dtype:
                raise TypeError(f"{self.name} takes a NumPy scalar, {self.dtype}; got {x!r}, {type(x).__name__}")
            return x.item()
        if isinstance(x, np.uintp) and x == 0:
            return None
        if not isinstance(x, Array):
            raise TypeError(f"{self.name} takes an array; got {x!r}, {type(x).__name__}")
        if x.dtype != self.dtype and (x.dtype, self.dtype) != (np.float16, np.uint16):
            raise TypeError(f"{self.name} takes an array of {self.dtype}; got {x.dtype}")
        if not x.memory.flags.c_contiguous:
            raise TypeError(f"{self.name} takes a contiguous array; got strides {x.memory.strides}")
        return x.memory.ctypes.data


class RawModule:
    """As `cupy.RawModule`: kernels compiled from source, one library per set of options and session."""

    def __init__(self, *, code, options=()):
        key = (code, tuple(options))
        if key not in _libraries:
            _libraries[key] = _compile(code, list(options))
        self._library, self._kernels = _libraries[key]

    def get_function(self, name):
        """Return a kernel by name."""
        if name not in self._kernels:
            raise KeyError(f"the module has the kernels {sorted(self._kernels)}; got {name!r}")
        return RawKernel(self._library, name, self._kernels[name])


class RawKernel:
    """As `cupy.RawKernel`: `kernel(grid, block, args)`."""

    launched = []  # the names, in order

    def __init__(self, library, name, parameters):
        self.name, self._parameters = name, parameters
        self._reversed = ctypes.c_bool.in_dll(library, "cuda_stand_in_reversed")
        self._launch = getattr(library, f"launch_{name}")
        self._launch.restype = ctypes.c_char_p
        self._launch.argtypes = [ctypes.POINTER(ctypes.c_uint), *(p.ctype for p in parameters)]

    def __call__(self, grid, block, args):
        if len(args) != len(self._parameters):
            raise TypeError(f"{self.name} takes {len(self._parameters)} arguments; got {len(args)}")
        given = [p.take(x) for p, x in zip(self._parameters, args)]
        dims = (ctypes.c_uint * 6)(*_dims("grid", grid, (2**31 - 1, 65535, 65535)), *_dims("block", block))
        RawKernel.launched.append(self.name)
        arrays = [x for x in args if isinstance(x, Array)]
        cupy_like.engine.launch(partial(self._launch_over, dims, given), arrays)

    def _launch_over(self, dims, given, arrays, check):
        """Run the kernel on memory; `given` are its addresses."""
        if not check:
            self._run(False, dims, given)
            return
        before = [a.copy() for a in arrays]
        self._run(False, dims, given)
        after = [a.copy() for a in arrays]
        for a, old in zip(arrays, before):
            if a.flags.writeable:  # memory from NumPy's `broadcast_to` is not writeable
                a[...] = old
        self._run(True, dims, given)
        for a, forward in zip(arrays, after):
            if a.tobytes() != forward.tobytes():
                raise RuntimeError(f"{self.name}: the order of threads shows in the result: {forward} and {a}")

    def _run(self, backwards, dims, given):
        self._reversed.value = backwards
        error = self._launch(dims, *given)
        if error is not None:
            raise RuntimeError(f"{self.name}: {error.decode()}")


def _dims(what, dims, most=(1024, 1024, 64)):
    if not isinstance(dims, tuple) or not 1 <= len(dims) <= 3 or not all(type(d) is int for d in dims):
        raise TypeError(f"a {what} is a tuple of 1 to 3 integers; got {dims!r}")
    dims = dims + (1, 1, 1)[len(dims) :]
    if not all(1 <= d <= m for d, m in zip(dims, most)) or (what == "block" and np.prod(dims) > 1024):
        raise ValueError(f"a {what} has 1 to {most} by dimension, and a block no more than 1024; got {dims}")
    return dims


def _compile(code, options):
    if COMPILER is None:
        raise RuntimeError("running kernels on the host needs g++, which was not found")
    if not _folder:
        _folder.append(tempfile.TemporaryDirectory(prefix="xpnet-cuda-on-host-"))
        atexit.register(_folder[0].cleanup)
    machine = str(Path(_folder[0].name, "machine.o"))
    if not Path(machine).exists():
        _call([COMPILER, *FLAGS, "-c", "-o", machine, str(HEADER.with_suffix(".cpp"))])
    stem = Path(_folder[0].name, hashlib.sha256(repr((code, options)).encode()).hexdigest()[:16])
    plain = _call([COMPILER, "-E", "-P", "-x", "c++", *options, "-"], code)
    kernels = {name: [Parameter(p) for p in parameters.split(",")] for name, parameters in KERNEL.findall(plain)}
    parts = [f'#include "{HEADER}"\n#line 1 "kernels.cu"\n{code}\n#line 1 "launchers"\n']
    for name, parameters in KERNEL.findall(plain):
        arguments = ", ".join(p.name for p in kernels[name])
        parts.append(
            f'extern "C" const char* launch_{name}(const unsigned* dims, {parameters}) '
            f"{{ return cuda_stand_in::launch(dims, [=] {{ {name}({arguments}); }}); }}\n"
        )
    stem.with_suffix(".cpp").write_text("".join(parts))
    source, module, library = (str(stem.with_suffix(suffix)) for suffix in (".cpp", ".o", ".so"))
    _call([COMPILER, *FLAGS, "-fsanitize=alignment", *options, "-c", "-o", module, source])
    # without libubsan: the machine defines the functions that it would
    _call([COMPILER, "-shared", "-o", library, module, machine])
    return ctypes.CDLL(library), kernels


def _call(command, text=None):
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def matmul(a, b, out):
    """As `cupy.matmul`."""
    cupy_like.engine.write(_multiply, a, b, out)
    return out


def _multiply(a, b, out):
    np.matmul(a, b, out=out)


# What the kernels use of CuPy.
cupy = SimpleNamespace(RawModule=RawModule, matmul=matmul)
