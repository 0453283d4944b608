"""The benchmark on a GPU: its mechanics on the device of cupy_capture.py."""

import argparse
import ctypes
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from cupy_capture import clean_start, pretended_cupy

from xpnet import datasets
from xpnet.backend import get_backend
from xpnet.bench import JOBS, NETWORKS, Case, Result, cases, gpu, jobs, measure, ours, report, run
from xpnet.bench.cases import LARGE, PRECISIONS, TO_98
from xpnet.bench.jobs import Runner
from xpnet.bench.machine import describe, in_words
from xpnet.bench.peers import GPU, ON_GPU, PEAK, PRODUCTS, Contestant, choose
from xpnet.errors import InvalidValueError
from xpnet.tools import cli

if get_backend().name != "numpy":
    pytest.skip("independent of the backend under test: run once, with NumPy", allow_module_level=True)

STEP = Case((6, 8, 5, 3), 16, rate=1e-2, device="cuda")
TINY = {
    "step": STEP,
    "mnist": STEP._replace(dropout=0.2, kind="mnist", rows=120),
    "predict": STEP._replace(kind="predict", rows=120),
}
SEVERAL = f"{GPU}, 50 steps a graph"
ABOUT = {
    "getDeviceProperties": lambda number: {"name": b"a GPU"},
    "driverGetVersion": lambda: 13020,
    "runtimeGetVersion": lambda: 12090,
}


@pytest.fixture
def device(monkeypatch):
    clean_start(monkeypatch)
    monkeypatch.setattr(gpu, "PEAK_SIZE", 8)
    monkeypatch.setattr(gpu, "kernels_in", notes_of)
    with pretended_cupy(monkeypatch) as engine:
        for name, answer in ABOUT.items():
            setattr(sys.modules["cupy"].cuda.runtime, name, answer)
        yield engine


def notes_of(handle):
    """Return how many operations a simulated graph runs at each launch."""
    return len(ctypes.cast(handle, ctypes.py_object).value.notes)


# Who takes part -----------------------------------------------------------------------------------------


def test_who_takes_part():
    peers = ["torch fused", "torch compiled", "torch graph", "jax jit", "jax, 50 steps a scan"]
    assert choose("step", backends=["cupy"], device="cuda") == [PEAK, PRODUCTS, GPU, SEVERAL, *peers]
    assert choose("step", backends=["cupy"], peers=["torch"], device="cuda")[4:] == peers[:3]
    assert choose("step", ["torch graph"], device="cuda") == [PEAK, PRODUCTS, GPU, "torch graph"]
    for kind in ("mnist", "to98"):
        found = choose(kind, peers=["torch", "jax"], backends=["cupy"], device="cuda")
        assert found == [GPU, *peers[:4], "jax, an epoch a scan"]
    for wrong in ("sklearn", "cublas", "xpnet"):
        with pytest.raises(InvalidValueError, match=f"peer.*got '{wrong}'"):
            choose("step", peers=[wrong], device="cuda")


def is_absence(reason):
    """Return whether this is the reason why PyTorch and JAX are left out: CPU only, or not installed."""
    return "finds no CUDA device" in reason or "No module named" in reason


@pytest.mark.parametrize("precision", [*PRECISIONS, "float64"])
def test_steps(device, precision):
    case = STEP._replace(dtype="float64") if precision == "float64" else STEP.in_precision(precision)
    results, failures, left_out = measure(case, list(ON_GPU["step"]), rounds=2, seconds=0.001)
    assert failures == {}
    assert {name for name in ON_GPU["step"] if name.startswith(("torch", "jax"))} == set(left_out)
    assert all(map(is_absence, left_out.values()))
    of = {r.contestant: r for r in results}
    assert list(of) == [PEAK, PRODUCTS, GPU, SEVERAL]
    assert {(r.device, r.precision) for r in results} == {("cuda", precision)}
    for name in (GPU, SEVERAL):
        assert of[name].losses[1] < of[name].losses[0]
        assert of[name].ratio == of[GPU].median / of[name].median
    assert (of[PEAK].kernels, of[PEAK].peak_share, of[PEAK].ratio) == (1, 1.0, None)
    assert of[PEAK].gflops == pytest.approx(2 * 8**3 / of[PEAK].median / 1e3)
    assert of[GPU].peak_share == of[GPU].gflops / of[PEAK].gflops
    assert of[PRODUCTS].kernels == 8  # three forward, three kernel gradients, two input gradients
    assert of[GPU].kernels > 15
    assert of[SEVERAL].kernels == pytest.approx(of[GPU].kernels, rel=0.2)


@pytest.mark.parametrize("kind", ["mnist", "predict"])
def test_jobs(device, kind):
    results, failures, left_out = measure(TINY[kind], list(ON_GPU[kind]), rounds=2, seconds=0.001)
    assert failures == {}
    assert [r.contestant for r in results] == [GPU]
    assert set(left_out) == set(ON_GPU[kind]) - {GPU}


def test_their_data_lie_on_the_device(device):
    model = ours.network(STEP, "cupy")
    data = STEP.data()
    (x,) = ours.at_hand(STEP, model, data.x)
    assert type(x).__module__ == "cupy"
    assert ours.at_hand(STEP._replace(device="cpu"), model, data.x)[0] is data.x


def test_training_to_a_goal(device, monkeypatch):
    x = np.zeros((80, 28, 28), np.uint8)
    x[::2, :14], x[1::2, 14:] = 255, 255
    found = x, np.arange(80) % 2
    monkeypatch.setattr(datasets, "mnist", lambda: (found, found))
    case = TO_98._replace(
        layers=(784, 8, 2), batch=16, rate=1e-4, rows=80, device="cuda"
    )  # one epoch is not enough
    results, failures, _ = measure(case, [GPU], rounds=9, seconds=0.0)
    assert failures == {}
    assert results[0].network == "to 98 %: 784-8-2, 16, dropout 0.2"
    monkeypatch.setattr(jobs, "GOAL", 1.01)
    assert "accuracy must reach 1.01" in measure(case, [GPU], rounds=1, seconds=0.0).failures[GPU]


def test_large_batches_come_alone(device, monkeypatch):
    assert [case._replace(device="cuda").batches for case in (*NETWORKS, *LARGE)] == [50, 50, 50, 50, 50, 1, 1]
    assert LARGE[2].batches == 50
    monkeypatch.setattr(cases, "MAX_STACKED", 6 * 16 - 1)
    assert len(STEP.data().x) == 16
    found = measure(STEP, [GPU, SEVERAL], rounds=1, seconds=0.0)
    assert [r.contestant for r in found.results] == [GPU]
    assert found.left_out == {SEVERAL: "batches of 16 x 6 numbers are not stacked 50 at a time"}


def test_a_graph_of_several_steps_is_there_before_the_time_of_one_is_taken(monkeypatch):
    """It is captured in its second unit."""
    counts = []
    row = Contestant(lambda case, data: Runner(counts.append, unit=50), "peer")
    monkeypatch.setitem(ON_GPU["step"], "graph", row)
    assert measure(STEP, ["graph"], rounds=2, seconds=0.0).failures == {}
    assert counts == [150, 50, 50, 50]


CUDA_R_32F, CUDA_R_64F, CUDA_R_16BF = 0, 1, 14  # library_types.h


@pytest.mark.parametrize("name", [GPU, SEVERAL, PRODUCTS, PEAK])
@pytest.mark.parametrize(
    ("precision", "kind", "way"),
    [
        ("float32", CUDA_R_32F, "COMPUTE_32F"),
        ("tf32", CUDA_R_32F, "COMPUTE_32F_FAST_TF32"),
        ("bfloat16", CUDA_R_16BF, "COMPUTE_32F"),
        ("float64", CUDA_R_64F, "COMPUTE_64F"),
    ],
)
def test_rows_multiply_in_the_precision_of_the_case(device, monkeypatch, name, precision, kind, way):
    """Every product passed to cuBLAS, in the environment that the command sets."""
    case = STEP._replace(dtype="float64") if precision == "float64" else STEP.in_precision(precision)
    monkeypatch.setenv("XPNET_MATMUL_PRECISION", run._environment(1, case)["XPNET_MATMUL_PRECISION"])
    asked, gemm_ex = [], device.cublas.gemm_ex

    def noted(*args):
        asked.append((args[8], args[11], args[17].name))
        gemm_ex(*args)

    device.cublas.gemm_ex = noted
    ON_GPU["step"][name].make(case, case.data()).run(150)
    assert set(asked) == {(kind, kind, way)}
    each = 1 if name == PEAK else 8  # see `products_only`
    assert len(asked) % each == 0


# Products -----------------------------------------------------------------------------------------------


def products_of(monkeypatch, make, case):
    """Return the memory to which a row's products are written, after one step."""
    results = []

    def captured(step, buffers):
        results.append(step(buffers, ()))
        return Runner(lambda n: None)

    monkeypatch.setattr(gpu, "captured", captured)
    make(case, case.data())
    return results[0]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_products_are_those_of_a_step(device, monkeypatch, precision):
    """With factors that TF32 and bfloat16 represent exactly."""
    case, drawn = STEP.in_precision(precision), {}

    def factor(case, *shape):
        a = drawn[shape] = np.random.default_rng(shape).integers(-3, 4, shape).astype(np.float32)
        if precision == "bfloat16":
            return get_backend("cupy").array(a.view(np.uint32) >> 16, "uint16")
        return get_backend("cupy").array(a)

    monkeypatch.setattr(gpu, "_factor", factor)
    buffers = products_of(monkeypatch, gpu.products_only, case)
    sizes = list(zip(case.layers, case.layers[1:]))
    acts, weights = [drawn[16, n] for n in case.layers], [drawn[size] for size in sizes]
    for i, found in enumerate(buffers.grads):
        np.testing.assert_array_equal(found.values, acts[i].T @ acts[i + 1])
    for i, found in enumerate(buffers.outputs[:-1]):
        np.testing.assert_array_equal(found.values, acts[i + 2] @ weights[i + 1].T)
    np.testing.assert_array_equal(buffers.outputs[-1].values, acts[-2] @ weights[-1])
    buffers = products_of(monkeypatch, gpu.one_product, case)
    np.testing.assert_array_equal(buffers.outputs[0].values, drawn[8, 8] @ drawn[8, 8])


@pytest.mark.parametrize("precision", [*PRECISIONS, "float64"])
def test_factors(device, precision):
    case = STEP._replace(dtype="float64") if precision == "float64" else STEP.in_precision(precision)
    wanted = np.random.default_rng(9).standard_normal((4, 5), dtype=np.float32)
    found = gpu._factor(case, 4, 5).values
    if precision == "bfloat16":
        assert found.dtype == np.uint16
        found = (found.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_allclose(found, wanted, rtol=2**-7)
    else:
        assert found.dtype == ("float64" if precision == "float64" else "float32")
        np.testing.assert_array_equal(found, wanted)


def test_a_captured_product_keeps_its_memory(device):
    """It survives later allocations; the products give the same results at every launch."""
    first = ON_GPU["step"][PRODUCTS].make(STEP, STEP.data())
    model = ours.network(STEP, "cupy")
    weights = np.array(model.flat_weights.values)
    others = [device.upload(np.full(size, 7.0)) for size in (1, 5, 50, 130, 400) * 60]
    first.run(3)
    assert all((other.values == 7.0).all() for other in others)
    np.testing.assert_array_equal(model.flat_weights.values, weights)


# Clocks and kernels -------------------------------------------------------------------------------------


def test_events_of_cupys_stand_around_the_work(device):
    """They time the work queued on the stream, not the call that queues it."""
    done = []

    def work():
        time.sleep(0.02)
        done.append(True)

    def ask():
        device.current.note(work, ())
        assert done == []

    assert gpu.by_cupy(ask) >= 0.02
    assert done == [True]


def test_events_of_torchs(monkeypatch):
    made = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            made.append(self)

        def record(self):
            self.moment = len(done)

        def synchronize(self):
            done.append("wait")

        def elapsed_time(self, end):
            assert done[-1] == "wait"
            return 1000.0 * (end.moment - self.moment)

    done = ["before"]
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(Event=Event)))
    assert gpu.by_torch(lambda: done.append("work")) == 1.0
    assert len(made) == 2


class Driver:
    """Like CUDA's driver, for a graph of two kernels, a copy and a kernel."""

    kinds, errors = {1001: 0, 1002: 0, 1003: 1, 1004: 0}, ()

    def __init__(self, name):
        assert name in ("libcuda.so.1", "nvcuda.dll")

    def cuGraphGetNodes(self, graph, nodes, count):
        assert graph.value == 77
        if nodes is not None:
            assert len(nodes) == count._obj.value
            nodes[:] = list(self.kinds)
        count._obj.value = len(self.kinds)
        return 1 if ("nodes" if nodes else "count") in self.errors else 0

    def cuGraphNodeGetType(self, node, kind):
        kind._obj.value = self.kinds[node.value]
        return 1 if "kind" in self.errors else 0


def test_the_kernels_in_a_graph(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", Driver)
    assert gpu.kernels_in(77) == 3
    for error in ("count", "nodes", "kind"):
        monkeypatch.setattr(Driver, "errors", (error,))
        assert gpu.kernels_in(77) is None

    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert gpu.kernels_in(77) is None


def test_the_kernels_of_a_step(monkeypatch):
    monkeypatch.setattr(gpu, "kernels_in", lambda handle: handle)
    play = SimpleNamespace(graph=SimpleNamespace(graph=100))
    assert gpu.kernels_of(SimpleNamespace(recordings={"a": (play, [])}), 50) == 2.0
    assert gpu.kernels_of(SimpleNamespace(recordings={})) is None
    assert gpu.kernels_of(lambda: None) is None  # an unrecorded step
    monkeypatch.setattr(gpu, "kernels_in", lambda handle: None)
    assert gpu.kernels_of(SimpleNamespace(recordings={"a": (play, [])})) is None


# The command --------------------------------------------------------------------------------------------


def options(*arguments):
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    return parser.parse_args(["--backend", "cupy", *arguments])


def on_gpu(steps, chosen=(), only=PRECISIONS):
    steps = [case.in_precision(name) for case in steps for name in only]
    return [case._replace(device="cuda") for case in (*steps, *chosen)]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("", on_gpu(NETWORKS, only=["float32"]) + on_gpu(LARGE, [JOBS["mnist"], TO_98], ["tf32", "bfloat16"])),
        ("--precision tf32", on_gpu([*NETWORKS, *LARGE], [JOBS["mnist"], TO_98], ["tf32"])),
        ("--networks 5 --optimizer sgd", on_gpu([LARGE[0]._replace(optimizer="sgd")])),
        ("--networks 7 1", on_gpu([LARGE[2], NETWORKS[0]])),
        ("--jobs predict", on_gpu([], [JOBS["predict"]])),
        ("--networks 1 --precision tf32", [NETWORKS[0]._replace(device="cuda", tf32=True)]),
        ("--networks 1 --dtype float64", [NETWORKS[0]._replace(device="cuda", dtype="float64")]),
        ("--layers 6,8,3 --batch 4 --precision float32", [Case((6, 8, 3), 4, device="cuda")]),
    ],
)
def test_what_the_options_choose(arguments, wanted):
    chosen = options(*arguments.split())
    run._check(chosen)
    assert run._cases(chosen) == wanted
    words = run._command(chosen).split()
    assert options(*words[words.index("cupy") + 1 :], *words[4 : words.index("--backend")]) == chosen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--precision tf32", "--precision needs --backend cupy; got ['tf32']"),
        ("--networks 2 5", "networks above 4 need --backend cupy; got [2, 5]"),
        ("--backend cupy,numpy", "excludes other backends; got ['numpy']"),
        ("--backend cupy --memory", "not GPU memory; got --backend cupy"),
        ("--backend cupy --precision tf32 --dtype float64", "--precision is for --dtype float32; got 'float64'"),
    ],
)
def test_options_that_do_not_go_together(arguments, message, capsys):
    assert cli.main(["bench", *arguments.split()]) == 2
    assert message in capsys.readouterr().err


def test_the_usual_turns_are_shorter_on_a_gpu():
    assert run._how(options()) == {"rounds": 5, "seconds": 0.1, "limit": 240.0}
    asked = run._how(options("--rounds", "2", "--seconds", "0", "--limit", "9"))
    assert asked == {"rounds": 2, "seconds": 0.0, "limit": 9.0}


def test_without_a_gpu_nothing_is_measured(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(run, "_process", lambda task: pytest.fail("nothing may be measured"))
    assert cli.main(["bench", "--backend", "cupy"]) == 2
    assert "backend 'cupy' is not installed here" in capsys.readouterr().err


@pytest.mark.parametrize("precision", [*PRECISIONS, "float64"])
def test_the_environment_of_a_process(monkeypatch, precision):
    monkeypatch.setenv("XPNET_MATMUL_PRECISION", "tf32")
    monkeypatch.setenv("XPNET_DEVICE", "cuda:3")
    case = STEP._replace(dtype="float64") if precision == "float64" else STEP.in_precision(precision)
    found = run._environment(4, case)
    assert found["XPNET_MATMUL_PRECISION"] == ("tf32" if precision == "tf32" else "highest")
    assert found["XPNET_DEVICE"] == "cuda:0"
    assert found["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    plain = run._environment(4, Case((6, 8, 3), 16))
    assert plain["XPNET_DEVICE"] == "cuda:3"
    assert "XLA_PYTHON_CLIENT_PREALLOCATE" not in plain


def test_the_command(device, monkeypatch, tmp_path, capsys):
    """Everything except the processes."""

    def process(task):
        found = measure(run._case(task), task["contestants"], task["rounds"], task["seconds"], task["threads"])
        assert task["limit"] == 240.0
        return json.loads(json.dumps({**found._asdict(), "results": [r._asdict() for r in found.results]}))

    monkeypatch.setattr(run, "_process", process)
    monkeypatch.setitem(run.JOBS, "mnist", TINY["mnist"]._replace(device="cpu"))
    path, table = tmp_path / "gpu.json", tmp_path / "gpu.md"
    words = ["--layers", "6,8,5,3", "--batch", "16", "--jobs", "mnist", "--rounds", "1", "--seconds", "0.001"]
    words += ["--optimizer", "sgd", "--json", str(path), "--markdown", str(table)]
    assert cli.main(["bench", "--backend", "cupy", "--peers", "torch,jax", *words]) == 0
    out = capsys.readouterr().out
    assert out.startswith("a GPU, ")
    for place in PRECISIONS:
        assert f"6-8-5-3, 16, {place} on the GPU" in out
        assert f"| us a step, {place} on the GPU | 6-8-5-3, 16 |" in table.read_text()
    assert len([line for line in out.splitlines() if "left out:" in line and is_absence(line)]) >= 3 * 5
    written = json.loads(path.read_text())
    assert written["failures"] == []
    out_of = {(row["network"], row["precision"], row["contestant"]) for row in written["left_out"]}
    assert ("6-8-5-3, 16", "tf32", "torch fused") in out_of
    assert all(is_absence(row["reason"]) for row in written["left_out"])
    assert [r["precision"] for r in written["results"]] == [p for p in PRECISIONS for _ in range(4)] + ["float32"]
    assert {r["threads"] for r in written["results"]} == {run.os.cpu_count()}
    assert written["machine"]["gpu"]["name"] == "a GPU"


# Tables -------------------------------------------------------------------------------------------------


def made_up(contestant, median, precision="tf32", **more):
    result = Result(
        "step", "A", "random", 4, contestant, median, median - 1, median + 1, 10 / median, None, 2.5, None, 100.0,
        None, None, "cuda", precision,
    )  # fmt: skip
    return result._replace(**more)


RESULTS = [
    made_up(PEAK, 20.0, ratio=None, peak_share=1.0, kernels=1),
    made_up(GPU, 10.0, peak_share=0.655, kernels=14, products_share=0.5),
    made_up("torch graph", 12.5),
]


def test_a_table_as_text():
    assert report.text(RESULTS).splitlines() == [
        "A, tf32 on the GPU",
        "                         us a step        range  cupy/it  GFLOP/s  products  of peak  kernels",
        "  one 4096-wide product       20.0  19.0 - 21.0               2.5             100.0%        1",
        "  xpnet cupy                  10.0   9.0 - 11.0     1.00      2.5       50%    65.5%       14",
        "  torch graph                 12.5  11.5 - 13.5     0.80      2.5                            ",
    ]


def test_tables_in_markdown():
    text = report.markdown([*RESULTS, made_up(GPU, 9.0, "bfloat16")], "a machine", "a command")
    assert text.splitlines()[4:] == [
        "| us a step, tf32 on the GPU | A |",
        "|---|---:|",
        "| one 4096-wide product | 20.0 |",
        "| xpnet cupy | 10.0 |",
        "| torch graph | 12.5 |",
        "| xpnet cupy / torch graph | 0.80 |",
        "| products only / xpnet cupy | 0.50 |",
        "| xpnet cupy: share of the peak | 65.5% |",
        "| xpnet cupy: kernels a step | 14 |",
        "",
        "| us a step, bfloat16 on the GPU | A |",
        "|---|---:|",
        "| xpnet cupy | 9.0 |",
    ]


def test_the_machine(device, monkeypatch):
    asked = []

    def call(command, **how):
        asked.append(command[0])
        return subprocess.CompletedProcess(command, 0, stdout="580.65.06\n")

    monkeypatch.setattr(gpu.subprocess, "run", call)
    about = gpu.describe()
    assert about == {"name": "a GPU", "driver": "580.65.06", "driver's CUDA": "13.2", "CUDA": "12.9"}
    text = in_words({**describe(), "gpu": about})
    assert text.startswith("a GPU, driver 580.65.06, driver's CUDA 13.2, CUDA 12.9; ")
    assert asked == ["nvidia-smi"]
    failed = subprocess.CompletedProcess([], 9, stdout="no devices")
    monkeypatch.setattr(gpu.subprocess, "run", lambda command, **how: failed)
    assert gpu.describe() == {"name": "a GPU", "driver's CUDA": "13.2", "CUDA": "12.9"}

    def missing(command, **how):
        raise FileNotFoundError(command[0])

    monkeypatch.setattr(gpu.subprocess, "run", missing)
    assert "driver" not in gpu.describe()
