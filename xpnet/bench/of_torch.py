"""PyTorch, as in its tutorials: data on the device, `randperm`, fused Adam, `torch.compile`, CUDA graphs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from .cases import Case, DataSet
from .gpu import by_torch, kernels_in
from .jobs import Make, Runner, epochs, passes, wall

__all__ = ["epoch", "prediction", "step"]

WARM_UP_STEPS = 3  # warm-up steps before a capture, as in PyTorch's notes


def place(case: Case) -> Any:
    """Return the device of the case and set the precision of its products.

    Raises:
        ImportError: which leaves the contestant out: there is no such device.
    """
    import torch

    if case.device != "cpu":
        if not torch.cuda.is_available():
            raise ImportError(f"PyTorch {torch.__version__} finds no CUDA device")
        torch.set_float32_matmul_precision("high" if case.tf32 else "highest")
    return torch.device(case.device)


def wait(device: Any) -> None:
    """Wait for a GPU to finish its work."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def network(case: Case) -> Any:
    """Return the case's network; it returns scores."""
    import torch

    torch.manual_seed(0)
    layers: list[Any] = []
    for a, b in zip(case.layers, case.layers[1:]):
        layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
        layers += [torch.nn.Dropout(case.dropout)] if case.dropout else []
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, torch.nn.Linear))
    return torch.nn.Sequential(*layers[: last + 1]).to(place(case), getattr(torch, case.stored))


def trainer(case: Case, model: Any, mode: str) -> Any:
    """Return `objective(x, y)`, the loss, and the optimizer.

    Args:
        mode: `"eager"`: the default Adam; all others use the fused one. `"compiled"`: compile the objective, on a
            GPU in the mode for small networks. `"graph"`: to be captured.
    """
    import torch

    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[case.optimizer]
    more = {} if mode == "eager" else {"fused": True}
    if mode == "graph" and case.optimizer == "adam":
        more["capturable"] = True
    optimizer = kind(model.parameters(), lr=case.rate, **more)
    loss_of = torch.nn.CrossEntropyLoss()

    def objective(x: Any, y: Any) -> Any:
        if case.precision != "bfloat16":
            return loss_of(model(x), y)
        with torch.autocast(case.device, dtype=torch.bfloat16):
            return loss_of(model(x), y)

    if mode != "compiled":
        return objective, optimizer
    compilers = [os.environ.get("CXX", "g++"), "clang++", "cl"]
    if not any(map(shutil.which, compilers)):
        raise ImportError(f"torch.compile needs a C++ compiler; got none of {', '.join(compilers)}")
    how = {} if case.device == "cpu" else {"mode": "reduce-overhead"}
    return torch.compile(objective, dynamic=False, **how), optimizer  # static: one program per batch size


def stepper(case: Case, model: Any, mode: str, x: Any, y: Any) -> tuple[Callable[[Any, Any], Any], Any]:
    """Return `take(x, y) -> loss`, a training step, and its CUDA graph for batches of the case's size.

    Args:
        mode: see `trainer`; unless it is `"graph"`, the graph is None. x, y: some rows.
    """
    objective, optimizer = trainer(case, model, mode)

    def plain(x: Any, y: Any) -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = objective(x, y)
        loss.backward()
        optimizer.step()
        return loss

    if mode != "graph":
        return plain, None
    graph, replay = capture(plain, x[: case.batch], y[: case.batch])
    return lambda x, y: (replay if len(x) == case.batch else plain)(x, y), graph


def capture(take: Callable[[Any, Any], Any], x: Any, y: Any) -> tuple[Any, Callable[[Any, Any], Any]]:
    """Return a CUDA graph of a step, and `replay(x, y) -> loss`, which copies a batch to its inputs.

    As in PyTorch's notes ("CUDA semantics", CUDA Graphs): some steps on a side stream, then one is captured. Needs
    PyTorch 2.8, whose graphs expose their handles.
    """
    import torch

    x, y = x.clone(), y.clone()
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM_UP_STEPS):
            take(x, y)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        loss = take(x, y)

    def replay(new_x: Any, new_y: Any) -> Any:
        x.copy_(new_x)
        y.copy_(new_y)
        graph.replay()
        return loss

    return graph, replay


def step(mode: str) -> Make:
    """Return a training step on one batch; see `trainer` for the modes."""

    def make(case: Case, data: DataSet) -> Runner:
        import torch

        model, device = network(case), place(case)
        x, y = (torch.from_numpy(a[: case.batch]).to(device) for a in (data.x, data.y))
        take, graph = stepper(case, model, mode, x, y)

        def run(n: int) -> None:
            for _ in range(n):
                take(x, y)
            wait(device)

        def loss() -> float:
            with torch.no_grad():
                return float(torch.nn.functional.cross_entropy(model(x), y))

        def kernels() -> int | None:
            return None if graph is None else kernels_in(graph.raw_cuda_graph())

        return Runner(run, loss, clock=wall if device.type == "cpu" else by_torch, kernels=kernels)

    return make


def epoch(mode: str, loader: bool = False) -> Make:
    """Return the usual loop over an epoch, which reads the loss every 100 steps.

    Args:
        mode: see `trainer`. loader: whether to make batches with a `DataLoader` instead of indexing.
    """

    def make(case: Case, data: DataSet) -> Runner:
        import torch

        model, device = network(case), place(case)
        x, y = torch.from_numpy(data.x).to(device), torch.from_numpy(data.y).to(device)
        take, _ = stepper(case, model, mode, x, y)
        pairs = torch.utils.data.TensorDataset(x, y)
        loaded = torch.utils.data.DataLoader(pairs, case.batch, shuffle=True) if loader else None

        def indexed() -> Iterator[tuple[Any, Any]]:
            for rows in torch.randperm(len(x), device=device).split(case.batch):
                yield x[rows], y[rows]

        def run(n: int) -> None:
            model.train()
            for _ in range(n):
                for i, (xb, yb) in enumerate(indexed() if loaded is None else loaded):
                    loss = take(xb, yb)
                    if i % 100 == 0:
                        loss.item()
            wait(device)

        def probabilities(x: Any) -> Any:
            model.eval()
            with torch.inference_mode():
                return torch.softmax(model(torch.from_numpy(x).to(device)), 1)

        return epochs(run, probabilities, data)

    return make


def prediction(case: Case, data: DataSet) -> Runner:
    """Return a contestant that computes the probabilities in `inference_mode`, batch by batch."""
    import torch

    model, device = network(case).eval(), place(case)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), case.weights()):
            parameter.copy_(torch.from_numpy(value).T if value.ndim == 2 else torch.from_numpy(value))
    x = torch.from_numpy(data.x).to(device)

    def predict() -> Any:
        with torch.inference_mode():
            p = torch.cat([torch.softmax(model(part), 1) for part in x.split(case.batch)])
        wait(device)
        return p

    return passes(predict, case, data)
