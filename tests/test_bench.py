"""The benchmark's mechanics on tiny networks; no test asserts a measured value."""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from xpnet import activations, datasets, kernels, optimizers
from xpnet.backend import np
from xpnet.bench import JOBS, NETWORKS, Case, Result, jobs, measure, memory, of_jax, ours, parts, report, run
from xpnet.bench.cases import TO_98
from xpnet.bench.jobs import Runner, passes
from xpnet.bench.machine import describe, in_words
from xpnet.bench.peers import BASE, CONTESTANTS, FAST, PRODUCTS, Contestant, choose
from xpnet.errors import DownloadError, UnknownNameError, XpnetError
from xpnet.tools import cli

STEP = Case((6, 8, 3), 16, rate=1e-2)
TINY = {
    "step": STEP,
    "mnist": STEP._replace(dropout=0.2, kind="mnist", rows=120),  # the last batch is smaller
    "predict": STEP._replace(kind="predict", rows=120),
}
SLOW = ("torch compiled", "keras train_on_batch", "keras fit", "keras predict")  # to start
ROWS = [
    (kind, name, optimizer)
    for kind, rows in CONTESTANTS.items()
    for name in rows
    if kind in TINY and name not in SLOW
    for optimizer in (("adam", "sgd") if kind == "step" else ("adam",))
]


TO_BE_LEARNED = Case((784, 8, 3), 16, rate=1e-2, kind="to98", rows=96)


@pytest.fixture
def mnist(monkeypatch):
    """Images of three classes, each with a bright band in another place."""
    y = np.arange(96) % 3
    x = np.random.default_rng(0).integers(0, 50, (96, 28, 28))
    for label in range(3):
        x[y == label, 9 * label : 9 * label + 9] += 150
    found = (x.astype(np.uint8), y), (x[:30].astype(np.uint8), y[:30])
    monkeypatch.setattr(datasets, "mnist", lambda: found)


def contestant(run, loss=None, unit=1):
    return Contestant(lambda case, data: Runner(run, loss, unit), "none")


# What is measured ---------------------------------------------------------------------------------------


def test_the_cases():
    assert STEP.flops == 2 * 16 * (3 * (6 * 8 + 8 * 3) - 6 * 8)
    assert TINY["mnist"].flops == STEP.flops * 120 / 16
    assert TINY["predict"].flops == 2 * 120 * (6 * 8 + 8 * 3)
    assert [case.layers[0] for case in NETWORKS] == [20, 784, 784, 1024]
    assert [case.size for case in (*NETWORKS, *JOBS.values())] == [32, 32, 128, 512, 60_000, 60_000]
    for kind, case in TINY.items():
        data = case.data()
        assert data.x.shape == (50 * 16 if kind == "step" else 120, 6)
        assert len(data.x_test) == len(data.y_test) == case.size
        assert {a.dtype.name for a in (data.x, data.x_test, *case.weights())} == {"float32"}
        assert set(data.y) == {0, 1, 2}
        assert "MNIST" not in data.source or "instead of" in data.source


def test_jobs_take_mnist_where_it_is_at_hand(monkeypatch):
    job = JOBS["predict"]._replace(rows=5)
    pixels = np.full((7, 28, 28), 51, np.uint8), np.arange(7)
    monkeypatch.setattr(datasets, "mnist", lambda: (pixels, pixels))
    data = job.data()
    assert data.source == "MNIST"
    assert data.x.shape == (5, 784)
    assert data.x.dtype == np.float32
    assert float(data.x[0, 0]) == pytest.approx(0.2)
    assert len(data.x_test) == 7

    def missing():
        raise DownloadError("no; got nothing")

    monkeypatch.setattr(datasets, "mnist", missing)
    data = job.data()
    assert data.source == "random numbers instead of MNIST"
    assert data.x.shape == (5, 784)
    assert data.x.dtype == np.float32


# The contestants ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name", "optimizer"), ROWS)
def test_every_contestant_does_its_work(kind, name, optimizer):
    case = TINY[kind]._replace(optimizer=optimizer)
    try:
        runner = CONTESTANTS[kind][name].make(case, case.data())
    except ImportError as error:
        pytest.skip(f"{error}: this contestant's library is not part of this environment")
    before = runner.loss() if runner.loss else None
    runner.run(100 if kind == "step" else 5)  # predict checks its output
    assert (runner.loss is None) == (kind == "predict" or name == PRODUCTS)
    if runner.loss:
        assert runner.loss() < before


@pytest.mark.parametrize("name", ["torch compiled", "keras train_on_batch"])
def test_contestants_that_are_slow_to_begin_with(name, tmp_path):
    """In a separate process, as always: these libraries' warnings do not matter."""
    missing = [library for library in ("torch", "keras") if find_spec(library) is None]
    if missing:
        pytest.skip(f"{missing} is not part of this environment, but of the session for PyTorch")
    where, what = tmp_path / "found.json", ["--layers", "6,8,3", "--batch", "16", "--contestants", name]
    how = ["--threads", "1", "--rounds", "1", "--seconds", "0", "--json", str(where)]
    command = [sys.executable, "-W", "default", "-m", "xpnet", "bench", *what, *how]
    done = subprocess.run(command, env={**os.environ, "KERAS_BACKEND": "torch"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(where.read_text())
    assert found["failures"] == []
    (row,) = [r for r in found["results"] if r["contestant"] == name]
    assert row["losses"][1] < row["losses"][0]


@pytest.mark.parametrize("name", [name for name in CONTESTANTS["to98"] if name not in SLOW])
def test_training_goes_on_until_the_goal_is_reached(name, mnist, monkeypatch):
    results, failures, left_out = measure(TO_BE_LEARNED, [name], rounds=5, seconds=0.0)
    if left_out:
        pytest.skip(f"{left_out[name]}: this contestant's library is not part of this environment")
    assert failures == {}
    assert [(r.contestant, r.gflops, r.rows_per_second, r.losses) for r in results] == [(name, None, None, None)]
    monkeypatch.setattr(jobs, "GOAL", 1.01)
    monkeypatch.setattr(jobs, "MAX_EPOCHS", 2)
    monkeypatch.setattr(ours, "MAX_EPOCHS", 2)
    failed = measure(TO_BE_LEARNED, [name], rounds=1, seconds=0.0).failures[name]
    assert failed.startswith("XpnetError: accuracy must reach 1.01 within 2 epochs; got ")


def test_there_are_no_more_trainings_and_epochs_than_it_takes(mnist, monkeypatch):
    """The epochs of each training: one first and three measured."""
    epochs = []

    def make(case, data):
        epochs.append(0)

        def run(n):
            epochs[-1] += n

        return Runner(run, accuracy=lambda: 0.5 + 0.25 * epochs[-1])

    monkeypatch.setitem(CONTESTANTS["to98"], "peer", Contestant(jobs.until(make), "none"))
    assert measure(TO_BE_LEARNED, ["peer"], rounds=7, seconds=10.0).failures == {}
    assert epochs == [0, 2, 2, 2, 2]


@pytest.mark.parametrize("scan", [False, True])
def test_jax_compiles_once_for_all_trainings(scan):
    pytest.importorskip("jax")
    case = TINY["mnist"]._replace(rate=2e-2)
    data, traced, count = case.data(), [], of_jax.loss_of
    with pytest.MonkeyPatch.context() as m:
        m.setattr(of_jax, "loss_of", lambda *args: traced.append(args) or count(*args))
        for _ in range(3):
            of_jax.epoch(scan)(case, data).run(2)
    assert len(traced) == 2  # one for 16 rows, one for 8


def test_without_mnist_nobody_trains_until_a_goal(monkeypatch):
    def missing():
        raise DownloadError("no; got nothing")

    monkeypatch.setattr(datasets, "mnist", missing)
    found = measure(TO_BE_LEARNED, [BASE, "torch fused"], rounds=1, seconds=0.0)
    assert found.results == []
    assert set(found.left_out.values()) == {"MNIST is not available: set XPNET_DATA to a folder that contains it"}


@pytest.mark.parametrize("name", ["torch eager", "torch fused", "jax jit", "jax, 50 steps a scan"])
def test_peers_in_bfloat16(name):
    """Weights stay in float32; the scores, and so the training, are those of bfloat16 products."""
    losses = []
    for case in (STEP, STEP.in_precision("bfloat16")):
        try:
            runner = CONTESTANTS["step"][name].make(case, case.data())
        except ImportError as error:
            pytest.skip(f"{error}: this contestant's library is not part of this environment")
        before = runner.loss()
        runner.run(100)
        losses.append(runner.loss())
        assert losses[-1] < before
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert losses[0] != losses[1]


def test_predictions_are_compared_with_the_formula():
    case, data = TINY["predict"], TINY["predict"].data()
    with pytest.raises(XpnetError, match=r"must be within 1e-3 of the formula's; got a difference of 0\.\d+$"):
        passes(lambda: np.full((120, 3), 1 / 3), case, data).run(1)
    with pytest.raises(XpnetError, match=r"must have shape \(120, 3\); got \(16, 3\)"):
        passes(lambda: np.zeros((16, 3)), case, data).run(1)


def test_who_takes_part():
    usual = choose("step")
    assert usual[:3] == [PRODUCTS, BASE, FAST]
    assert {"xpnet torch", "xpnet jax", "torch fused", "jax jit", "sklearn fit"} <= set(usual)
    assert not {"xpnet array_api_strict", "torch compiled"} & set(usual)
    assert choose("step", ["torch eager"]) == [PRODUCTS, BASE, "torch eager"]
    own = [name for name in usual if name.startswith("xpnet")]
    torch = [name for name in CONTESTANTS["step"] if name.startswith("torch")]
    assert choose("step", peers=["torch"]) == [PRODUCTS, *own, *torch]
    assert choose("step", backends=["torch"], peers=["torch"]) == [PRODUCTS, BASE, "xpnet torch", *torch]
    assert choose("predict", ["keras predict"], backends=["jax"]) == [BASE, "xpnet jax", "keras predict"]
    for wrong in ({"names": ["torhc fused"]}, {"peers": ["torhc"]}, {"backends": ["torhc"]}):
        with pytest.raises(UnknownNameError, match=r"did you mean 'torch.*got 'torhc"):
            choose("step", **wrong)


def test_xpnets_rows_take_the_kernels_they_are_named_after(monkeypatch):
    with ours.twins("numpy"):
        assert kernels.chosen() == "numpy"
    outside = kernels.chosen()
    with ours.twins(None):
        assert kernels.chosen() == outside
    monkeypatch.setattr(kernels, "_has_numba", lambda: False)
    for kind, case in TINY.items():
        assert FAST in measure(case, [FAST], rounds=1, seconds=0.0).left_out, kind


# Measuring ----------------------------------------------------------------------------------------------


def test_the_arithmetic_of_a_table(monkeypatch):
    for name, seconds in ((PRODUCTS, 0.002), (BASE, 0.004), (FAST, 0.003), ("slow", 0.006)):
        row = contestant(lambda n, seconds=seconds: time.sleep(seconds))
        monkeypatch.setitem(CONTESTANTS["predict"], name, row)
    case = TINY["predict"]
    results, failures, left_out = measure(case, [PRODUCTS, BASE, FAST, "slow"], 3, 0.0, threads=2)
    assert failures == left_out == {}
    of = {r.contestant: r for r in results}
    assert list(of) == [PRODUCTS, BASE, FAST, "slow"]
    assert (of[BASE].ratio, of[FAST].fast_ratio, of[PRODUCTS].products_share) == (1.0, 1.0, 1.0)
    for r in results:
        assert (r.kind, r.network, r.threads, r.losses, r.memory) == ("predict", case.name, 2, None, None)
        assert 2000 <= r.low <= r.median <= r.high
        assert r.ratio == of[BASE].median / r.median
        assert r.fast_ratio == of[FAST].median / r.median
        assert r.products_share == of[PRODUCTS].median / r.median
        assert r.gflops == pytest.approx(case.flops / r.median / 1e3)
        assert r.rows_per_second == pytest.approx(120 / r.median * 1e6)


def test_a_contestant_may_bring_its_clock(monkeypatch):
    def clock(action):
        action()
        return 2.5

    row = Contestant(lambda case, data: Runner(lambda n: None, clock=clock), "none")
    monkeypatch.setitem(CONTESTANTS["predict"], "peer", row)
    (result,) = measure(TINY["predict"], ["peer"], rounds=3, seconds=10.0).results
    assert (result.low, result.median, result.high) == (2.5e6 / 4,) * 3


@pytest.mark.parametrize("kind", TINY)
def test_a_case_from_end_to_end(kind):
    results, failures, _ = measure(TINY[kind], [BASE], rounds=2, seconds=0.001)
    assert failures == {}
    assert [r.contestant for r in results] == [BASE]
    assert (results[0].losses is None) == (kind == "predict")


def test_steps_are_counted_in_units(monkeypatch):
    counts = []
    losses = iter([2.0, 1.0])
    monkeypatch.setitem(CONTESTANTS["step"], "scan", contestant(counts.append, lambda: next(losses), 50))
    assert measure(STEP, ["scan"], rounds=2, seconds=0.0).results[0].losses == (2.0, 1.0)
    assert counts == [50] * 4


def test_what_breaks_or_does_not_learn_is_named_and_the_rest_reported(monkeypatch):
    def crash(n):
        raise OSError("out of order")

    def missing(case, data):
        raise ImportError("No module named 'peer'")

    calls = []

    def tires(n):
        calls.append(n)
        if len(calls) > 2:
            raise ValueError("tired")

    rows = CONTESTANTS["step"]
    monkeypatch.setitem(rows, "idle", contestant(lambda n: None, lambda: 1.0))
    monkeypatch.setitem(rows, "lost", contestant(lambda n: None, lambda: float("nan")))
    monkeypatch.setitem(rows, "crash", contestant(crash))
    monkeypatch.setitem(rows, "tires", contestant(tires))
    monkeypatch.setitem(rows, "peer", Contestant(missing, "peer"))
    names = [BASE, "idle", "lost", "crash", "tires", "peer"]
    results, failures, left_out = measure(STEP, names, rounds=2, seconds=0.0)
    assert [r.contestant for r in results] == [BASE]
    assert results[0].products_share is None
    assert left_out == {"peer": "No module named 'peer'"}
    assert failures == {
        "crash": "OSError: out of order",
        "tires": "ValueError: tired",
        "idle": "XpnetError: idle on 6-8-3, 16: its loss did not fall; got 1.0 -> 1.0",
        "lost": "XpnetError: lost on 6-8-3, 16: its loss did not fall; got nan -> nan",
    }


# Memory -------------------------------------------------------------------------------------------------

GREEDY = """
import numpy as np
from xpnet.bench import Case, memory
from xpnet.bench.jobs import Runner
from xpnet.bench.peers import CONTESTANTS, Contestant

np.ones(100_000_000, np.uint8)  # an earlier peak, which does not count

def make(case, data):
    size = 50_000_000 if case.layers == (6, 8, 3) else 1
    return Runner(lambda n: np.ones(size, np.uint8))

CONTESTANTS["step"]["greedy"] = Contestant(make, "none")
print(memory.peak(Case((6, 8, 3), 16), "greedy"), memory.growth(lambda: None))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the peak can't be reset")
def test_the_peak_of_memory():
    code = [sys.executable, "-c", GREEDY]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    greedy, nothing = map(float, done.stdout.split())
    assert 49 < greedy < 60
    assert 0 <= nothing < 5


def test_memory_where_there_is_no_proc(monkeypatch):
    monkeypatch.setattr(memory, "_status", lambda name: None)
    assert memory.growth(lambda: None) >= 0
    monkeypatch.setattr(memory, "_most", lambda: None)
    assert memory.growth(lambda: None) is None


# Tables -------------------------------------------------------------------------------------------------


def made_up(contestant, median, kind="step", network="A", **more):
    result = Result(
        kind, network, "MNIST", 1, contestant, median, median - 1, median + 1, 40 / median, None, 2.5, None,
        6e10 / median, None, None,
    )  # fmt: skip
    return result._replace(**more)


STEPS = [
    made_up(PRODUCTS, 20.0),
    made_up(BASE, 40.0, products_share=0.5),
    made_up("torch fused", 80.0),
    made_up(BASE, 4000.0, network="B", ratio=1.0, memory=1.25),
]
EPOCHS = [
    made_up(BASE, 440_000.0, "mnist", "E"),
    made_up(f"{BASE}, bare steps", 400_000.0, "mnist", "E"),
]
PASSES = [made_up(BASE, 800_000.0, "predict", "P")]


def test_a_table_as_text():
    assert report.text(STEPS[:3]).splitlines() == [
        "A, 1 thread",
        "                 us a step    range  numpy/it  GFLOP/s  products",
        "  products only         20  19 - 21      2.00      2.5          ",
        "  xpnet numpy           40  39 - 41      1.00      2.5       50%",
        "  torch fused           80  79 - 81      0.50      2.5          ",
    ]
    assert report.fit_shares(EPOCHS) == {BASE: 1.1}
    lines = report.text(EPOCHS).splitlines()
    assert lines[0] == "E, on MNIST, 1 thread"
    assert lines[1].split()[:3] == ["ms", "an", "epoch"]
    assert lines[2].split()[2:] == ["440", "440", "-", "440", "0.00", "2.5", "136,364"]
    assert lines[-1] == "  xpnet numpy: fit / bare steps = 1.10"


def test_tables_in_markdown():
    assert report.markdown([*STEPS, *EPOCHS, *PASSES], "a machine", "a command").splitlines() == [
        "a machine",
        "",
        "`a command`",
        "",
        "| us a step, 1 thread | A | B |",
        "|---|---:|---:|",
        "| products only | 20 |  |",
        "| xpnet numpy | 40 | 4,000 |",
        "| torch fused | 80 |  |",
        "| xpnet numpy / torch fused | 0.50 |  |",
        "| products only / xpnet numpy | 0.50 |  |",
        "",
        "| 1 thread | E, on MNIST: seconds | P, on MNIST: rows a second |",
        "|---|---:|---:|",
        "| xpnet numpy | 0.440 | 75,000 |",
        "| xpnet numpy, bare steps | 0.400 |  |",
        "| xpnet numpy: fit / bare steps | 1.10 |  |",
        "",
        "| peak MB, 1 thread | A | B | E | P |",
        "|---|---:|---:|---:|---:|",
        "| products only | n/a |  |  |  |",
        "| xpnet numpy | n/a | 1.2 | n/a | n/a |",
        "| torch fused | n/a |  |  |  |",
        "| xpnet numpy, bare steps |  |  | n/a |  |",
    ]


def test_the_plot(tmp_path):
    pytest.importorskip("matplotlib")
    report.plot([*STEPS, *EPOCHS], str(tmp_path / "bench.png"))
    assert (tmp_path / "bench.png").stat().st_size > 1000


def test_the_machine(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    machine = describe()
    assert machine["versions"]["numpy"] == np.__version__
    text = in_words(machine)
    assert f"numpy {np.__version__}" in text
    assert "OPENBLAS_CORETYPE=Haswell" in text
    pool = {"user_api": "blas", "internal_api": "openblas", "version": "0.3", "architecture": "SkylakeX"}
    asked = SimpleNamespace(threadpool_info=lambda: [pool, {"user_api": "openmp"}])
    monkeypatch.setitem(sys.modules, "threadpoolctl", asked)
    assert describe()["blas"] == ["openblas 0.3 with its SkylakeX kernels"]
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    assert describe()["blas"] == []


# The command --------------------------------------------------------------------------------------------


def options(*arguments):
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "cases"),
    [
        ("", [*NETWORKS, *JOBS.values()]),
        ("--networks 3 1", [NETWORKS[2], NETWORKS[0]]),
        ("--jobs", [*JOBS.values()]),
        ("--jobs predict --networks 2 --dtype float64", [NETWORKS[1]._replace(dtype="float64"), JOBS["predict"]]),
        ("--layers 6,8,3 --batch 4 --optimizer sgd", [Case((6, 8, 3), 4, "sgd")]),
        ("--jobs to98 mnist", [TO_98, JOBS["mnist"]]),
    ],
)
def test_what_the_options_choose(arguments, cases):
    chosen = options(*arguments.split())
    assert run._cases(chosen) == cases
    words = run._command(chosen).split()
    assert words[:4] == ["python", "-m", "xpnet", "bench"]
    assert options(*words[4:]) == chosen


def test_lists_with_commas():
    chosen = options("--peers", "sklearn,torch", "jax", "--backend", "jax", "--backend", "torch")
    names = run._contestants(chosen, "predict")
    assert names == [BASE, "xpnet torch", "xpnet jax", "torch inference_mode", "jax jit", "sklearn predict_proba"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "6"], "expected at least two sizes, such as 784,128,10; got '6'"),
        (["--layers", "6,x"], "expected a whole number >= 1; got 'x'"),
        (["--rounds", "0"], "expected a whole number >= 1; got '0'"),
        (["--jobs", "nmist"], "invalid choice: 'nmist'"),
    ],
)
def test_options_that_are_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit) as info:
        cli.main(["bench", *arguments])
    assert info.value.code == 2
    assert message in capsys.readouterr().err


def test_names_that_are_wrong(capsys):
    assert cli.main(["bench", "--peers", "torch,sklaern"]) == 2
    assert "did you mean 'sklearn'" in capsys.readouterr().err
    assert cli.main(["bench", "--backend", "torhc"]) == 2
    assert capsys.readouterr().err.endswith("got 'torhc'\n")


def test_the_command(tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(run.JOBS, "mnist", TINY["mnist"])
    path, table = tmp_path / "bench.json", tmp_path / "bench.md"
    given = {"layers": "6,8,3", "batch": 16, "jobs": "mnist", "threads": 1, "rounds": 1, "seconds": 0.001}
    given |= {"json": path, "markdown": table}
    words = [str(a) for name, value in given.items() for a in (f"--{name}", value)]
    bare = f"{BASE}, bare steps"
    assert cli.main(["bench", "--memory", *words, "--contestants", BASE, bare]) == 0
    out = capfd.readouterr().out
    assert "6-8-3, 16, 1 thread" in out
    assert "one epoch: 6-8-3, 16, dropout 0.2, on random numbers instead of MNIST, 1 thread" in out
    assert "fit / bare steps = " in out
    written = json.loads(path.read_text())
    assert [r["contestant"] for r in written["results"]] == [PRODUCTS, BASE, BASE, bare]
    assert [r["memory"] is None for r in written["results"]] == [not os.path.exists("/proc/self/status")] * 4
    assert "numpy" in written["machine"]["versions"]
    assert written["command"].startswith("python -m xpnet bench --layers 6,8,3 --batch 16 --jobs mnist")
    assert written["command"] in out
    assert f"| {BASE}: fit / bare steps |" in table.read_text()


def test_a_process_that_ends_does_not_end_the_run(tmp_path, capsys, monkeypatch):
    path = tmp_path / "bench.json"
    good = {"results": [STEPS[1]._asdict()], "failures": {"idle": "its loss"}, "left_out": {"peer": "no module"}}
    answers = iter([good, "the process ended with status -9", "the process ended with status -11"])
    monkeypatch.setattr(run, "_process", lambda task: next(answers))
    arguments = ["--networks", "1", "2", "--threads", "1", "--memory", "--json", str(path)]
    assert cli.main(["bench", *arguments]) == 1
    shown = capsys.readouterr()
    assert "left out: peer (no module)" in shown.out
    assert "failed: idle (its loss)" in shown.out
    assert shown.err == "error: 3 contestants failed, see above\n"
    written = json.loads(path.read_text())
    assert [r["contestant"] for r in written["results"]] == [BASE]
    assert [(f["contestant"], f["reason"]) for f in written["failures"]] == [
        ("idle", "its loss"),
        (BASE, "its peak memory: the process ended with status -9"),
        ("all", "the process ended with status -11"),
    ]


def test_a_run_that_is_cut_off_leaves_what_it_has(tmp_path, monkeypatch):
    """Also if it is interrupted while writing."""
    path = tmp_path / "bench.json"
    good = {"results": [STEPS[1]._asdict()], "failures": {}, "left_out": {"peer": "no module"}}
    answers, dump = iter([good, good]), json.dump
    monkeypatch.setattr(run, "_process", lambda task: next(answers))

    def cut_off(about, file, **how):
        if len(about["results"]) > 1:
            file.write("{")
            raise KeyboardInterrupt
        dump(about, file, **how)

    monkeypatch.setattr(run.json, "dump", cut_off)
    with pytest.raises(KeyboardInterrupt):
        cli.main(["bench", "--networks", "1", "2", "3", "--threads", "1", "--json", str(path)])
    written = json.loads(path.read_text())
    assert [r["contestant"] for r in written["results"]] == [BASE]
    assert written["left_out"] == [
        {"network": NETWORKS[0].name, "threads": 1, "contestant": "peer", "reason": "no module"}
    ]


def test_a_process_says_how_it_ended(capfd):
    task = {"threads": 1, "case": STEP._asdict()}
    assert run._process(task) == "the process ended with status 1"
    assert "KeyError" in capfd.readouterr().err


def test_a_process_that_takes_too_long_is_ended():
    task = {"threads": 1, "case": STEP._asdict(), "limit": 0.01}
    assert run._process(task) == "the process was killed after 0.01 s (--limit)"


# Parts by themselves ------------------------------------------------------------------------------------


def test_every_optimizer_is_timed():
    names = parts.names_of("optimizer", ["all"])
    assert names[0] == "Adam"
    assert set(names) == set(optimizers.registry.exports()) - {"LBFGS"}
    rows = parts.table("optimizer", names, 2, 0.0, sizes=(60,))
    assert [row.name for row in rows] == names * (len(rows) // len(names))
    found = {row.name: row for row in rows}
    assert {row.loops for row in rows} == {"numpy", *(["fast"] if find_spec("numba") else [])}
    assert all(row.median > 0 for row in rows)
    assert [found[name].moved for name in ("SGD", "Adam", "Ftrl", "Muon")] == [3.0, 7.0, 13.0, 9.0]
    assert found["SGD"].per_array == pytest.approx(found["SGD"].ratio)
    assert found["Ftrl"].per_array == pytest.approx(found["Ftrl"].ratio * 7.0 / 13.0)
    assert found["Adam"].ratio == 1.0
    lines = parts.text(rows, 1).splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[0].endswith("float32 array, 1 thread; ratios to Adam")


def test_every_activation_is_timed():
    names = parts.names_of("activation", ["all"])
    assert set(names) == set(activations.registry.exports()) - {"Step"}
    rows = parts.table("activation", names[:3], 2, 0.0)
    assert [(row.name, row.moved, row.per_array) for row in rows[:3]] == [(name, None, None) for name in names[:3]]
    assert parts.names_of("activation", ["tanh", "relu", "tanh"]) == ["ReLU", "Tanh"]


def test_parts_from_the_command_line(capsys, tmp_path):
    path = tmp_path / "parts.json"
    words = ["--rounds", "1", "--seconds", "0", "--threads", "1"]
    assert cli.main(["bench", "--optimizer", "nadam", "--activation", "tanh", *words, "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "--optimizer nadam" in shown
    found = json.loads(path.read_text())["results"]
    assert {row["name"] for row in found} == {"Adam", "Nadam", "ReLU", "Tanh"}
    assert cli.main(["bench", "--optimizer", "adm", *words]) == 2
    assert "adm" in capsys.readouterr().err
    assert cli.main(["bench", "--networks", "1", "--optimizer", "nadam", *words]) == 2
    assert "the optimizer of steps must be 'adam' or 'sgd'; got ['nadam']" in capsys.readouterr().err
