"""Which library computes, where results go, and what is refused."""

import importlib
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from steps import taken

import xpnet
from xpnet import activations
from xpnet.backend import (
    BACKENDS,
    Backend,
    available_backends,
    floating,
    get_backend,
    give_back,
    home_of,
    host_of,
    is_explicit,
    library_of,
    probe,
    resolve,
    use_backend,
)
from xpnet.backend.base import make_backend
from xpnet.backend.tree import tree_map
from xpnet.errors import BackendError, InvalidValueError, UnknownNameError, XpnetError
from xpnet.testing import assert_close

PACKAGES = {"numpy": "numpy", "array_api_strict": "array_api_strict", "torch": "torch", "jax": "jax"}


@pytest.fixture
def no_variables(monkeypatch):
    for name in ("XPNET_BACKEND", "XPNET_DEVICE", "XPNET_DTYPE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def strict():
    return pytest.importorskip("array_api_strict")


# Which backend ------------------------------------------------------------------------------------------


def test_numpy_float32_is_the_default(no_variables):
    found = get_backend()
    assert (found.name, found.dtype_name, found.device_name, found.xp) == ("numpy", "float32", None, np)
    assert not is_explicit()


def test_the_order_of_choice(no_variables, monkeypatch, strict):
    arrays = (strict.asarray([1.0]),)
    assert resolve(()).name == "numpy"
    assert resolve(arrays).name == "array_api_strict"  # arrays beat NumPy
    monkeypatch.setenv("XPNET_BACKEND", "numpy")
    assert resolve(arrays).name == "numpy"  # the variable beats arrays
    assert is_explicit()
    with use_backend("array_api_strict"):
        assert resolve(()).name == "array_api_strict"  # use_backend beats the variable
        assert resolve((np.ones(1),)).name == "array_api_strict"
        assert resolve((), "numpy").name == "numpy"  # an argument beats use_backend
        with use_backend("numpy"):
            assert resolve(arrays).name == "numpy"
        assert get_backend().name == "array_api_strict"
    assert resolve(()).name == "numpy"


def test_the_first_array_of_a_known_library_decides(no_variables, strict):
    assert resolve(([1.0], None, strict.asarray([1.0]), np.ones(1))).name == "array_api_strict"
    assert resolve(([1.0], 2.0)).name == "numpy"


def test_an_array_brings_its_device(no_variables, strict):
    found = resolve((strict.asarray([1.0], device=strict.Device("device1")),))
    assert (found.name, found.device_name) == ("array_api_strict", "device1")


def test_variables(no_variables, monkeypatch, strict):
    monkeypatch.setenv("XPNET_BACKEND", "array_api_strict")
    monkeypatch.setenv("XPNET_DEVICE", "device1")
    monkeypatch.setenv("XPNET_DTYPE", "float64")
    found = get_backend()
    assert (found.name, found.device_name, found.dtype_name) == ("array_api_strict", "device1", "float64")
    assert get_backend(dtype="float32").dtype_name == "float32"
    assert get_backend(device="device2").device_name == "device2"
    assert get_backend("numpy").device_name is None  # the device belongs to the variable's backend
    monkeypatch.setenv("XPNET_DTYPE", "")
    assert get_backend().dtype_name == "float32"


def test_the_variable_of_the_device_counts_where_the_data_decide_the_library(no_variables, monkeypatch, strict):
    monkeypatch.setenv("XPNET_DEVICE", "device1")
    found = resolve((strict.asarray([1.0]),))
    assert (found.name, found.device_name) == ("array_api_strict", "device1")
    assert resolve((strict.asarray([1.0]),), device="device2").device_name == "device2"
    x = strict.asarray([-1.0, 1.0], dtype=strict.float32)
    assert activations.get("relu")(x).device == strict.Device("CPU_DEVICE")  # the result goes back
    monkeypatch.setenv("XPNET_DEVICE", "cuda:99")
    model = xpnet.Sequential([xpnet.layers.Dense(1)])
    model.compile("sgd", "mse")
    for x in (np.ones((4, 2)), strict.asarray(np.ones((4, 2)))):
        for call in (activations.get("relu"), lambda x: model.fit(x, np.ones(4), verbose=0)):
            with pytest.raises(BackendError, match=r"has no such device here; .*; got 'cuda:99'$"):
                call(x)
    assert not model.built


def test_an_exception_ends_use_backend_too(no_variables):
    with pytest.raises(KeyError), use_backend("numpy", dtype="float64"):
        raise KeyError
    assert get_backend().dtype_name == "float32"


def test_use_backend_holds_in_its_thread_only(no_variables):
    seen, inside, done = {}, threading.Event(), threading.Event()

    def other():
        with use_backend("numpy", dtype="float64"):
            inside.set()
            done.wait(10)
            seen["other"] = get_backend().dtype_name

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    seen["this"] = get_backend().dtype_name
    done.set()
    thread.join()
    assert seen == {"this": "float32", "other": "float64"}


def test_a_backend_is_accepted_for_a_name():
    wide = get_backend("numpy", dtype="float64")
    assert get_backend(wide) is wide
    assert get_backend(wide, dtype="float32").dtype_name == "float32"
    with use_backend(wide) as found:
        assert found is wide is get_backend()
        assert get_backend(dtype="float32").dtype_name == "float32"


def test_one_object_for_one_choice():
    assert get_backend("numpy") is get_backend("numpy")
    assert get_backend("numpy") is not get_backend("numpy", dtype="float64")


# What is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "says", "ends"),
    [
        (lambda: get_backend("nunpy"), UnknownNameError, "unknown backend; did you mean 'numpy'", "got 'nunpy'"),
        (
            lambda: get_backend("tensorflow"),
            UnknownNameError,
            "Known: array_api_strict, cupy, jax, numpy, torch",
            "'tensorflow'",
        ),
        (lambda: get_backend("numpy", dtype="float16"), UnknownNameError, "unknown dtype", "got 'float16'"),
        (
            lambda: get_backend("numpy", "cuda:0"),
            BackendError,
            "has no such device here; found ['cpu']",
            "got 'cuda:0'",
        ),
        (lambda: floating("flot32"), UnknownNameError, "did you mean 'float32'", "got 'flot32'"),
        (lambda: floating(32), InvalidValueError, "dtype must be one of", "got 32"),
    ],
)
def test_errors(call, error, says, ends):
    with pytest.raises(error) as caught:
        call()
    assert says in str(caught.value)
    assert str(caught.value).endswith(ends)


def test_no_such_device(backend):
    with pytest.raises(BackendError, match=r"no such device here; found \[.+\]; got 'nowhere:7'$") as caught:
        get_backend(backend.name, "nowhere:7")
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize(("variable", "value"), [("XPNET_BACKEND", "nunpy"), ("XPNET_DTYPE", "float8")])
def test_a_wrong_variable_is_an_error_not_a_fallback(no_variables, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    for x in ([1.0], np.ones(1)):
        with pytest.raises(UnknownNameError, match=f"got '{value}'$"):
            activations.get("relu")(x)


@pytest.mark.parametrize("name", ["torch", "jax", "cupy", "array_api_strict"])
def test_a_library_that_is_not_installed(monkeypatch, name):
    real = importlib.import_module

    def without(package, *rest):
        if package.replace("array_api_compat.", "").partition(".")[0] == name:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(package, *rest)

    for part in vars(xpnet.backend).values():
        if hasattr(part, "importlib"):
            monkeypatch.setattr(part, "importlib", SimpleNamespace(import_module=without))
    make_backend.cache_clear()
    try:
        with pytest.raises(BackendError) as caught:
            get_backend(name)
        assert "pip install" in str(caught.value)
        assert str(caught.value).endswith(f"got {name!r}")
        row = next(r for r in probe() if r["name"] == name)
        assert (row["available"], row["devices"]) == (False, [])
        assert row["install"].startswith("pip install")
        assert name in row["reason"]
        assert name not in available_backends()
        monkeypatch.setenv("XPNET_BACKEND", name)
        with pytest.raises(XpnetError):
            activations.get("relu")([1.0])  # no silent fallback
    finally:
        make_backend.cache_clear()


def test_available_backends(backend):
    assert {"numpy", backend.name} <= set(available_backends()) <= set(BACKENDS)
    row = next(r for r in probe() if r["name"] == backend.name)
    assert row["available"]
    assert row["devices"]
    assert (
        row["version"]
        == importlib.import_module(backend.package.replace("array_api_compat.", "").partition(".")[0]).__version__
    )


JAX_CODE = """
import jax, xpnet
before = jax.config.jax_enable_x64
try:
    xpnet.get_backend("jax", dtype="float64")
except xpnet.errors.BackendError as error:
    assert "JAX_ENABLE_X64=1" in str(error) and str(error).endswith("got 'float64'"), error
    print("refused")
assert jax.config.jax_enable_x64 == before
print(xpnet.get_backend("jax").dtype_name)
"""


@pytest.mark.parametrize(("x64", "expected"), [("0", ["refused", "float32"]), ("1", ["float32"])])
def test_float64_under_jax_needs_x64(x64, expected):
    pytest.importorskip("jax")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("XPNET_")}
    environment = {**kept, "JAX_ENABLE_X64": x64, "PYTHONPATH": str(Path(xpnet.__file__).parent.parent)}
    result = subprocess.run(
        [sys.executable, "-c", JAX_CODE], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == expected


# Results come back in the caller's library --------------------------------------------------------------


def arrays_of(name, values):
    pytest.importorskip(PACKAGES[name])
    return get_backend(name).array(np.asarray(values, np.float32))


@pytest.mark.parametrize("library", PACKAGES)
def test_what_goes_in_comes_back(backend, library):
    """With every backend, the result has the library of the argument."""
    x = arrays_of(library, [[-1.0, 2.0]])
    y = activations.get("relu")(x)
    assert library_of(y) == library
    assert host_of(y).tolist() == [[0.0, 2.0]]
    assert host_of(y).dtype == np.float32


@pytest.mark.parametrize("library", PACKAGES)
def test_home_of_and_give_back(library):
    x = arrays_of(library, [1.0, 2.0])
    assert (library_of(x), home_of(x).name) == (library, library)
    np.testing.assert_array_equal(host_of(x), [1.0, 2.0])
    for other in PACKAGES:
        if other in available_backends():
            y = give_back(arrays_of(other, [3.0]), x, get_backend(other))
            assert library_of(y) == library
            assert host_of(y).tolist() == [3.0]


def test_home_of_a_device(strict):
    x = strict.asarray([1.0], device=strict.Device("device2"))
    assert home_of(x).device_name == "device2"
    y = give_back(np.ones(1, np.float32), x, get_backend("numpy"))
    assert y.device == strict.Device("device2")


def test_a_result_goes_back_to_the_callers_device(strict):
    x = strict.asarray([-1.0, 1.0], dtype=strict.float32, device=strict.Device("device2"))
    with use_backend("array_api_strict", "device1"):
        assert activations.get("relu")(x).device == strict.Device("device2")


@pytest.mark.parametrize("x", [[1.0], (1,), 1.0, "text", None, object()])
def test_home_of_anything_else_is_numpy(x):
    assert library_of(x) is None
    assert home_of(x).name == "numpy"


def test_torch_tensors_that_record_a_graph():
    torch = pytest.importorskip("torch")
    leaf = torch.tensor([-1.0, 2.0], requires_grad=True)
    y = activations.get("relu")(leaf)
    assert library_of(y) == "torch"
    assert not y.requires_grad
    assert host_of(leaf).tolist() == [-1.0, 2.0]
    assert library_of(torch.nn.Parameter(torch.ones(2))) == "torch"
    assert library_of(torch.float32) is None


# A backend's own methods --------------------------------------------------------------------------------


def test_attributes(backend, backend64):
    assert isinstance(backend, Backend)
    assert (backend.dtype, backend64.dtype) == (backend.xp.float32, backend.xp.float64)
    assert backend.name in repr(backend)
    assert "float32" in repr(backend)
    assert backend.with_dtype("float64") is backend64
    assert backend.with_dtype(None) is backend


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "bool", "uint8"])
def test_array_and_host_are_inverse(backend, dtype):
    x = np.array([[0, 1], [1, 0]]).astype(dtype)
    found = backend.array(x)
    assert library_of(found) == backend.name
    assert_close(backend.host(found), x)
    assert_close(backend.host(backend.array(x, "float32")), x.astype("float32"))
    assert backend.host(backend.array(np.float32(2.5))).shape == ()


def test_array_copies(backend):
    """JAX would alias aligned host memory, and see later writes."""
    for n in (1, 16, 1024, 100_000):
        x = np.zeros(n, np.float32)
        here = backend.array(x)
        x[:] = 1
        assert not backend.host(here).any()


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i4", ">i8", "longdouble", "float16"])
def test_bring_takes_any_dtype_of_the_host(backend, dtype):
    x = np.array([1, 2, 3]).astype(dtype)
    found = backend.bring(x)
    np.testing.assert_array_equal(np.asarray(backend.host(found), "float64"), [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(backend.host(backend.array(x, "float32")), np.float32([1, 2, 3]))


def test_array_takes_read_only_memory_and_strides(backend):
    x = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    x.flags.writeable = False
    for view in (x, x.T, x[::2, ::-1], x[:0]):
        assert_close(backend.host(backend.array(view)), view)
        assert_close(backend.host(backend.bring(view)), view)
        assert_close(np.asarray(backend.host(backend.feed(view))), view)


def test_copy_is_another_array(backend):
    x = backend.array(np.zeros(4, np.float32))
    y = backend.copy(x)
    assert y is not x
    assert_close(y, x)
    if backend.name in ("numpy", "torch"):
        x += 1
        assert not backend.host(y).any()


@pytest.mark.parametrize("library", PACKAGES)
def test_bring(backend, library):
    found = backend.bring(arrays_of(library, [1.0, 2.0]))
    assert_close(found, backend.array([1.0, 2.0], "float32"))


def test_zeros_and_scalar(backend):
    assert_close(backend.zeros((2, 3)), backend.array(np.zeros((2, 3), np.float32)))
    assert_close(backend.zeros(2, backend.xp.int32), backend.array(np.zeros(2, np.int32)))
    assert_close(backend.scalar(2), backend.array(np.float32(2)), check_library=False)
    assert backend.scalar(2).shape == ()


@pytest.mark.parametrize("ok", [True, False])
def test_when(backend, ok):
    one, two = backend.array([1.0], "float32"), backend.array([2.0], "float32")
    found = backend.when(backend.xp.asarray(ok), lambda kept: {"a": (kept["a"][0] + two,)}, {"a": (one,)})
    assert_close(backend.host(found["a"][0]), [3.0 if ok else 1.0])


class State(NamedTuple):
    total: object
    factor: object


@pytest.mark.parametrize("batches", [1, 3])
def test_compile_takes_a_step_per_batch(backend, batches):
    run = backend.compile(lambda state, batch, finish=None: State(state[0] + batch, state[1] * 2.0))
    state = State(backend.zeros((2,)), backend.scalar(1.0))
    total = taken(run, state, [backend.array([1.0, i], "float32") for i in range(batches)])
    assert_close(backend.host(total[0]), [batches, sum(range(batches))])
    assert float(total[1]) == 2.0**batches


def test_jit_computes_the_same(backend):
    function = backend.jit(lambda x: x * 2.0)
    assert_close(backend.host(function(backend.array([1.0, 2.0], "float32"))), [2.0, 4.0])


@pytest.mark.parametrize("clone", [lambda b: pickle.loads(pickle.dumps(b))])
def test_a_pickled_backend_is_the_same_one(backend, backend64, clone):
    assert clone(backend) is backend
    assert clone(backend64) is backend64


def test_a_pickled_backend_keeps_its_device(strict):
    there = get_backend("array_api_strict", "device1", "float64")
    assert pickle.loads(pickle.dumps(there)) is there


def test_tree_map_keeps_the_form():
    from xpnet.optimizers import OptimizerState

    state = OptimizerState(1, 2, (3, {"x": None}))
    found = tree_map(lambda a, b: a + b, state, state)
    assert found == OptimizerState(2, 4, (6, {"x": None}))
    assert type(found) is OptimizerState


@pytest.mark.parametrize("device", ["device1", "device2", "cpu", "CPU_DEVICE"])
def test_strict_devices(strict, device):
    there = get_backend("array_api_strict", device)
    x = there.array(np.ones(2, np.float32))
    wanted = strict.Device("CPU_DEVICE" if device == "cpu" else device)
    assert x.device == there.zeros(2).device == there.scalar(1).device == there.copy(x).device == wanted
    assert there.bring(strict.asarray([1.0])).device == wanted
    assert there.host(x).tolist() == [1.0, 1.0]


def test_torch_cpu_by_name():
    pytest.importorskip("torch")
    assert str(get_backend("torch", "cpu").device) == "cpu"


def test_jax_cpu_by_name():
    pytest.importorskip("jax")
    here = get_backend("jax", "cpu:0")
    assert here.device.platform == "cpu"
    assert library_of(here.array([1.0])) == library_of(here.feed(np.ones(1, np.float32))) == "jax"
