"""The peers of the benchmark on a GPU: PyTorch's graphs on a simulated one, precisions."""

import importlib.util
import sys
from contextlib import nullcontext

import pytest

from xpnet.backend import get_backend
from xpnet.bench import Case, of_jax, of_torch
from xpnet.bench.cases import PRECISIONS
from xpnet.bench.peers import ON_GPU

if get_backend().name != "numpy":
    pytest.skip("it is the same on every backend under test: run once, with NumPy", allow_module_level=True)

STEP = Case((6, 8, 5, 3), 16, rate=1e-2, device="cuda")
TINY = {"step": STEP, "mnist": STEP._replace(dropout=0.2, kind="mnist", rows=120)}

# PyTorch's graphs ---------------------------------------------------------------------------------------

torch_is_there = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")


@pytest.fixture
def pretended_graphs(monkeypatch):
    """Let PyTorch capture: a replay calls the test's function. Returns the names of the calls made."""
    torch = pytest.importorskip("torch")
    asked = []

    class Stream:
        def wait_stream(self, other):
            asked.append("wait")

    class CUDAGraph:
        again = None

        def __init__(self, keep_graph):
            assert keep_graph

        def replay(self):
            asked.append("replay")
            CUDAGraph.again()

        def raw_cuda_graph(self):
            return 77

    def capture(graph):
        asked.append("capture")
        return nullcontext()

    pretended = {"Stream": Stream, "current_stream": Stream, "stream": lambda s: nullcontext(),
                 "CUDAGraph": CUDAGraph, "graph": capture}  # fmt: skip
    for name, value in pretended.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return asked


def test_a_torch_step_is_captured_by_hand(pretended_graphs):
    import torch

    taken = []

    def take(x, y):
        taken.append((x, y))
        return x.sum()

    x, y = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    graph, replay = of_torch.capture(take, x, y)
    assert pretended_graphs == ["wait", "wait", "capture"]
    assert len(taken) == of_torch.WARM_UP_STEPS + 1
    inputs = taken[-1]
    assert inputs[0] is not x  # separate memory, to which later batches are copied
    assert inputs[1] is not y
    seen = []
    type(graph).again = lambda: seen.append([a.clone() for a in inputs])
    loss = replay(torch.full((4, 2), 5.0), torch.full((4,), 2))
    assert float(loss) == 8.0  # the result of the captured step
    assert seen[0][0].tolist() == [[5.0, 5.0]] * 4
    assert seen[0][1].tolist() == [2] * 4
    assert x.tolist() == [[1.0, 1.0]] * 4


def test_smaller_batches_are_not_replayed(pretended_graphs):
    """The last batch of an epoch. The rest of the row is the same as in the other modes."""
    import torch

    case = STEP._replace(device="cpu")
    data = case.data()
    model = of_torch.network(case)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    take, graph = of_torch.stepper(case, model, "graph", x, y)
    type(graph).again = lambda: None
    weights = [p.detach().clone() for p in model.parameters()]
    take(x[:16], y[:16])
    assert pretended_graphs[-1] == "replay"
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters()))
    take(x[:7], y[:7])
    assert pretended_graphs.count("replay") == 1
    assert not any(torch.equal(a, b) for a, b in zip(weights, model.parameters()))


@pytest.mark.parametrize("kind", ["step", "mnist"])
def test_rows_with_graphs(pretended_graphs, monkeypatch, kind):
    monkeypatch.setattr(of_torch, "kernels_in", lambda handle: handle)
    case, torch = TINY[kind]._replace(device="cpu"), sys.modules["torch"]
    runner = ON_GPU[kind]["torch graph"].make(case, case.data())
    torch.cuda.CUDAGraph.again = lambda: None
    runner.run(3)
    assert pretended_graphs.count("replay") == {"step": 3, "mnist": 3 * 7}[kind]  # 120 rows: 7 of 16, and 8
    assert (runner.kernels and runner.kernels()) == {"step": 77, "mnist": None}[kind]


@torch_is_there
@pytest.mark.parametrize(("mode", "optimizer"), [("graph", "adam"), ("graph", "sgd"), ("fused", "adam")])
def test_optimizers_to_be_captured(mode, optimizer):
    case = STEP._replace(device="cpu", optimizer=optimizer)
    _, found = of_torch.trainer(case, of_torch.network(case), mode)
    assert found.defaults["fused"]
    assert bool(found.defaults.get("capturable")) == ((mode, optimizer) == ("graph", "adam"))


@torch_is_there
@pytest.mark.parametrize("precision", PRECISIONS)
def test_torch_is_told_the_precision(monkeypatch, precision):
    import torch

    told = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", told.append)
    of_torch.place(STEP._replace(device="cpu"))
    assert told == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert of_torch.place(STEP.in_precision(precision)).type == "cuda"
    assert told == ["high" if precision == "tf32" else "highest"]


@torch_is_there
def test_torch_compiles_for_small_networks(monkeypatch):
    import torch

    given = []
    monkeypatch.setattr(of_torch.shutil, "which", lambda name: name)
    monkeypatch.setattr(torch, "compile", lambda function, **how: given.append(how))
    model = of_torch.network(STEP._replace(device="cpu"))
    for name in ("cpu", "cuda"):
        of_torch.trainer(STEP._replace(device=name), model, "compiled")
    assert given == [{"dynamic": False}, {"dynamic": False, "mode": "reduce-overhead"}]


@pytest.mark.parametrize(
    ("precision", "told"), [("float32", "float32"), ("tf32", "tensorfloat32"), ("bfloat16", None)]
)
def test_jax_is_told_the_precision(monkeypatch, precision, told):
    jax = pytest.importorskip("jax")
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    monkeypatch.setattr(jax, "devices", lambda platform: [f"the first {platform}"])
    assert of_jax.place(STEP._replace(device="cpu")) is None
    assert updates == {}
    assert of_jax.place(STEP.in_precision(precision)) == "the first cuda"
    assert updates == ({} if told is None else {"jax_default_matmul_precision": told})
