"""Tests that need a GPU, in one file: `python -m pytest -m gpu`.

Every check runs twice, on the simulated device of cupy_capture.py and on this machine's GPU. Without a GPU
the second half is not collected, and `test_there_is_a_gpu` reports it.
"""

import gc
import importlib
import os
import subprocess
import sys
from pathlib import Path

import cuda_on_host
import cupy_like
import numpy as np
import pytest
from cupy_capture import pretended_cupy

import xpnet as xn
from xpnet import activations, kernels, losses, optimizers
from xpnet.backend import POLICIES, get_backend
from xpnet.backend.tree import leaves
from xpnet.core import ops
from xpnet.core.random import Stream, keep_mask, normals
from xpnet.errors import BackendError
from xpnet.kernels import check
from xpnet.kernels.context import Arena, Context
from xpnet.kernels.cuda import blas
from xpnet.kernels.cuda import device as makers
from xpnet.kernels.cuda.graph import Recorder
from xpnet.layers import BatchNormalization, Dense, Dropout, Flatten
from xpnet.tools import cli, parity

if get_backend().name != "numpy":
    pytest.skip("the tests choose their backends: run once, with NumPy", allow_module_level=True)

from test_graph import CLASSES, LOSSES, MODEL_METRICS, ONE_HOT, WEIGHTS, X, everything, small
from test_ops import CASES, hosts

ROOT = Path(__file__).resolve().parents[1]
WARM = 10  # batches after which the pools hold the memory of a replay
REPLAYS = {"pretended": 300, "gpu": 10_000}


def why_no_gpu():
    try:
        get_backend("cupy")
    except BackendError as error:
        return str(error)
    return ""


NO_GPU = why_no_gpu()
DEVICES = ["pretended"] if NO_GPU else ["pretended", pytest.param("gpu", marks=pytest.mark.gpu)]
on_a_gpu = pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU)


@pytest.mark.gpu
def test_there_is_a_gpu():
    if NO_GPU:
        pytest.skip(f"nothing in this file was run on a GPU: {NO_GPU}")


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """Let CuPy compute on one of the two devices; return which."""
    for name in ("XPNET_GRAPH", "XPNET_KERNELS", "XPNET_MATMUL_PRECISION", "XPNET_DEVICE", "XPNET_DTYPE"):
        monkeypatch.delenv(name, raising=False)
    if request.param == "gpu":
        yield request.param
        return
    if cuda_on_host.COMPILER is None:
        pytest.skip("no C++ compiler (g++) was found")
    monkeypatch.setattr(cupy_like, "KNOW_CUPY", (*cupy_like.KNOW_CUPY, "test_ops", __name__))
    with pretended_cupy(monkeypatch):
        yield request.param


def need_float16(dtype):
    if dtype == "mixed_float16" and not hasattr(get_backend("cupy").xp, "float16"):
        pytest.skip("the simulated device has no float16")


def model_of(layers, loss="sparse_categorical_crossentropy", optimizer="adam", chosen=("accuracy",), **kwargs):
    where = {"backend": "cupy", "dtype": "float32", **kwargs}
    graph = where.pop("graph", True)
    model = xn.Sequential(layers(), seed=1, **where)
    model.compile(optimizer() if callable(optimizer) else optimizer, loss, list(chosen), graph=graph)
    return model


def arrays_of(model):
    return [np.array(model.backend.host(a)) for a in leaves(model.state)]


def same_bits(model, other):
    for a, b in zip(arrays_of(model), arrays_of(other), strict=True):
        assert a.tobytes() == b.tobytes()


# The same numbers as NumPy's ----------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["bodies", "twins"])
def test_a_hundred_steps_in_float64_agree_with_numpys(device, choice):
    wanted = parity.run("numpy", "float64", 0, 100, kernels=False)
    found = parity.run("cupy", "float64", 0, 100, kernels=choice == "twins")
    assert found[:3] == wanted[:3]  # bits of weights, batches and masks
    np.testing.assert_allclose(found.losses, wanted.losses, rtol=1e-9)


def test_parity(device, capsys):
    steps = [] if device == "gpu" else ["--steps", "20", "--seeds", "0"]
    assert cli.main(["parity", "--backends", "numpy", "cupy", *steps]) == 0
    assert "all equal within the limits" in capsys.readouterr().out


@pytest.mark.parametrize(
    "optimizer", sorted({c.__name__ for c in optimizers.registry.classes.values()} - {"LBFGS"})
)
def test_all_layers_train_as_on_numpy(device, optimizer):
    found, wanted = (
        model_of(everything, optimizer=optimizer, backend=name, dtype="float64") for name in ("cupy", "numpy")
    )
    for model in (found, wanted):
        model.fit(X, CLASSES, batch_size=8, epochs=10, verbose=0, sample_weight=WEIGHTS)
    for a, b in zip(arrays_of(found), arrays_of(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains_as_on_numpy(device, policy):
    need_float16(policy)
    found, wanted = (model_of(small("tanh"), dtype=policy, backend=name) for name in ("cupy", "numpy"))
    curves = [m.fit(X, CLASSES, batch_size=8, epochs=10, verbose=0).history["loss"] for m in (found, wanted)]
    np.testing.assert_allclose(*curves, rtol=5e-3)
    exact = model_of(small("tanh"))
    assert exact.fit(X, CLASSES, batch_size=8, epochs=10, verbose=0).history["loss"] != curves[0]


# Kernels ------------------------------------------------------------------------------------------------

ROUNDING = {"float32": (1e-4, 2e-6), "float64": (1e-11, 1e-14)}  # relative to a number, and to the largest
SHAPES = [(8, 4), (1, 1), (1, 5), (7, 1), (13, 9), (37, 70), (600, 3), (257, 131)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rows", "units"), SHAPES)
@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in kernels.TWINS["cupy"].items() for name in names]
)
def test_twin_equals_body(device, module, name, rows, units, dtype):
    """The body on NumPy, the twin on CuPy: for one element, odd sizes, and more than a block."""
    twin = getattr(importlib.import_module(f"xpnet.kernels.{module}"), name)
    body = Context(get_backend("numpy", dtype=dtype), True)
    backend = get_backend("cupy", dtype=dtype)
    ctx = Context(backend, True, None, Arena(backend.xp))
    with np.errstate(all="ignore"):
        wanted = hosts(body, CASES[name](getattr(ops, name), body, np.random.default_rng(5), rows, units))
    assert wanted
    for _ in range(2):  # the second time in reused memory
        ctx.restart({})
        found = CASES[name](twin, ctx, np.random.default_rng(5), rows, units)
        for a, b in zip(hosts(ctx, found), wanted, strict=True):
            rtol, share = ROUNDING[dtype]
            largest = np.abs(np.where(np.isfinite(b), b, 0)).max(initial=0)
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=rtol, atol=share * largest)


@pytest.mark.parametrize("precision", ["highest", "tf32"])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_kernels_pass_their_own_check(device, monkeypatch, policy, precision):
    monkeypatch.setenv("XPNET_MATMUL_PRECISION", precision)
    assert check.right(get_backend("cupy", dtype=policy))


@pytest.mark.parametrize("precision", ["highest", "tf32"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("right", ["plain", "transposed"])
@pytest.mark.parametrize("left", ["plain", "transposed"])
def test_cublas_agrees_with_cupys_products(device, monkeypatch, left, right, dtype, precision):
    monkeypatch.setenv("XPNET_MATMUL_PRECISION", precision)
    if not blas.available():
        pytest.skip("the bindings of cuBLAS are not installed (nvmath-python)")
    import cupy

    backend, rng = get_backend("cupy", dtype=dtype), np.random.default_rng(0)
    rtol = 1e-12 if dtype == "float64" else 1e-5 if precision == "highest" else 2e-3

    def put(a, layout):
        return backend.array(a.T, dtype).T if layout == "transposed" else backend.array(a, dtype)

    for m, k, n in [(1, 1, 1), (1, 7, 1), (5, 1, 3), (3, 4, 5), (33, 65, 17), (128, 256, 64), (257, 129, 100)]:
        a, b = put(rng.uniform(0.5, 1.5, (m, k)), left), put(rng.uniform(0.5, 1.5, (k, n)), right)
        out, wanted = (backend.array(np.full((m, n), np.nan), dtype) for _ in range(2))
        assert blas.matmul(a, b, out) is out
        cupy.matmul(a, b, out=wanted)
        np.testing.assert_allclose(backend.host(out), backend.host(wanted), rtol=rtol)


def test_masks_are_numpys_bit_for_bit(device):
    backend, rng = get_backend("cupy"), np.random.default_rng(13)
    import cupy

    for i in range(10_000 if device == "gpu" else 500):
        seed, slot, step = int(rng.integers(0, 2**32)), int(rng.integers(0, 2**40)), int(rng.integers(0, 2**62))
        shape, rate = (int(rng.integers(1, 40)), int(rng.integers(1, 40))), (0.0, 0.5, 1e-9, rng.random())[i % 4]
        stream = Stream(seed)
        on_device = backend.count(step)
        keep = makers.keep_mask(cupy.empty(shape, bool), stream.key, slot, on_device, rate)
        wanted = keep_mask(stream, slot, step, shape, rate)
        assert np.array_equal(backend.host(keep), wanted), (seed, slot, step, shape, rate)


def test_noise_is_numpys_up_to_rounding(device):
    backend, rng = get_backend("cupy"), np.random.default_rng(14)
    import cupy

    for dtype, limits in (("float32", {"rtol": 2e-7, "atol": 1e-14}), ("float64", {"rtol": 0, "atol": 1e-14})):
        for _ in range(500 if device == "gpu" else 50):
            seed, slot, step = (int(rng.integers(0, 2**n)) for n in (32, 40, 62))
            shape, stream = (int(rng.integers(1, 40)), int(rng.integers(1, 40))), Stream(seed)
            out = makers.normals(cupy.empty(shape, dtype), stream.key, slot, backend.count(step))
            np.testing.assert_allclose(backend.host(out), normals(stream, slot, step, shape, dtype), **limits)


# Graphs -------------------------------------------------------------------------------------------------


@pytest.fixture
def captures(monkeypatch):
    """Return the number of captured steps. (An uncaptured one causes a warning, and so an error.)"""
    found, record = [], Recorder.record

    def noted(self, *args):
        found.append(record(self, *args))
        return found[-1]

    monkeypatch.setattr(Recorder, "record", noted)
    return found


def same_with_and_without(captures, layers, y=CLASSES, *args, fitting=None, **kwargs):
    """Train with graphs and without: the bits are equal, on batches of 8 rows and of 6."""
    models, logs = [], []
    for graph in (False, True):
        assert captures == []
        models.append(model_of(layers, *args, graph=graph, **kwargs))
        logs.append(models[-1].fit(X, y, batch_size=8, epochs=4, verbose=0, **(fitting or {})).history)
    assert len(captures) == 2
    np.testing.assert_equal(logs[1], logs[0])
    same_bits(*models)


def wide():
    return [Dense(300, activation="relu"), Dropout(0.5), Dense(257, activation="tanh"), BatchNormalization(),
            Dense(3, activation="softmax")]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("layers", [everything, small(), wide], ids=["everything", "small", "wide"])
def test_graphs_of_networks(device, captures, layers, dtype):
    need_float16(dtype)
    same_with_and_without(captures, layers, dtype=dtype)


def test_graphs_in_tf32(device, captures, monkeypatch):
    monkeypatch.setenv("XPNET_MATMUL_PRECISION", "tf32")
    same_with_and_without(captures, wide)


@pytest.mark.parametrize(
    "optimizer", sorted({c.__name__ for c in optimizers.registry.classes.values()} - {"LBFGS"})
)
def test_graphs_of_optimizers(device, captures, optimizer):
    same_with_and_without(captures, everything, optimizer=optimizer)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", list(LOSSES))
def test_graphs_of_losses(device, captures, loss, weighted):
    units, last, y, chosen = LOSSES[loss]
    fitting = {"sample_weight": WEIGHTS} if weighted else {}
    same_with_and_without(captures, small(last=last, units=units), y, loss, chosen=chosen, fitting=fitting)


def test_all_losses_are_there():
    assert {losses.get(name).__class__ for name in LOSSES} == set(losses.registry.classes.values())


@pytest.mark.parametrize(
    "activation", sorted({c.__name__ for c in activations.registry.classes.values()} - {"Step"})
)
def test_graphs_of_activations(device, captures, activation):
    same_with_and_without(captures, small(activation))


@pytest.mark.parametrize("metric", MODEL_METRICS)
def test_graphs_of_metrics(device, captures, metric):
    make_metric, sparse = MODEL_METRICS[metric]
    loss, y = "categorical_crossentropy", ONE_HOT
    if sparse:
        loss, y = f"sparse_{loss}", CLASSES
    same_with_and_without(captures, small(), y, loss, chosen=[make_metric()])


def test_several_steps_in_a_graph(device):
    one, several = model_of(everything), model_of(everything)
    one.fit(X, CLASSES, batch_size=4, epochs=6, verbose=0)
    several.fit(X, CLASSES, batch_size=4, epochs=6, verbose=0, steps_per_execution=5)
    same_bits(one, several)


def test_many_replays_take_no_more_memory(device):
    import cupy

    model = model_of(everything)
    for _ in range(WARM):
        model.train_on_batch(X[:8], CLASSES[:8])
    recorder = model.session.program().recorder
    gc.collect()

    def taken():
        return recorder.pool.total_bytes(), cupy.get_default_memory_pool().total_bytes()

    before = taken()
    for _ in range(REPLAYS[device]):
        model.train_on_batch(X[:8], CLASSES[:8])
    assert model.step == WARM + REPLAYS[device]
    assert taken() == before


# Data and results ---------------------------------------------------------------------------------------


def images():
    return [Flatten(), Dense(7, activation="relu"), Dropout(0.3), Dense(3, activation="softmax")]


def test_data_may_be_of_either_library_and_bytes(device):
    bytes_ = np.random.default_rng(3).integers(0, 256, (22, 4, 4)).astype(np.uint8)
    models, backend = [], get_backend("cupy")
    floats, labels = bytes_.astype(np.float32), CLASSES.astype(np.int32)
    columns = [(floats, CLASSES), (bytes_, CLASSES), (floats, labels), (backend.array(floats), CLASSES),
               (backend.array(bytes_), backend.array(labels))]  # fmt: skip
    for x, y in columns:
        models.append(model_of(images))
        models[-1].fit(x, y, batch_size=8, epochs=3, verbose=0)
    for other in models[1:]:
        same_bits(models[0], other)


def test_what_is_saved_on_the_gpu_is_loaded_on_the_host(device, tmp_path):
    model = model_of(everything)
    model.fit(X, CLASSES, batch_size=8, epochs=3, verbose=0)
    model.save(tmp_path / "model.safetensors")
    loaded = xn.load_model(tmp_path / "model.safetensors", backend="numpy")
    assert loaded.backend.name == "numpy"
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        assert a.tobytes() == b.tobytes()
    np.testing.assert_allclose(loaded.predict(X), model.predict(X), rtol=1e-4, atol=1e-6)
    back = xn.load_model(tmp_path / "model.safetensors", backend="cupy")
    for part in ("weights", "slots", "stats", "age"):
        for a, b in zip(*(leaves((getattr(m.state, part),)) for m in (back, model)), strict=True):
            assert back.backend.host(a).tobytes() == model.backend.host(b).tobytes(), part


def test_predictions_come_in_the_callers_library(device):
    model, backend = model_of(everything), get_backend("cupy")
    model.fit(X, CLASSES, batch_size=8, verbose=0)
    on_host, on_device = model.predict(X), model.predict(backend.array(X, "float32"))
    assert type(on_host) is np.ndarray
    assert type(on_device).__module__.partition(".")[0] == "cupy"
    np.testing.assert_array_equal(backend.host(on_device), on_host)


# Everything else ----------------------------------------------------------------------------------------


def pytest_on_cupy(*arguments):
    """Run pytest in a separate process, with CuPy as the backend under test."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "XPNET_BACKEND": "cupy", "PYTHONPATH": os.pathsep.join(places)}
    call = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", *arguments]
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"


@on_a_gpu
@pytest.mark.gpu
@pytest.mark.slow
def test_the_whole_suite_on_cupy():
    pytest_on_cupy("--ignore=tests/test_examples.py")


@on_a_gpu
@pytest.mark.gpu
@pytest.mark.slow
def test_the_examples_on_cupy():
    pytest_on_cupy("tests/test_examples.py")
