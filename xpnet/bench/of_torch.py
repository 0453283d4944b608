"""PyTorch, as its tutorials train: tensors on the device, `torch.randperm`, fused Adam, `torch.compile`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

from .cases import Case, DataSet
from .jobs import Make, Runner, epochs, passes

__all__ = ["epoch", "prediction", "step"]


def network(case: Case) -> Any:
    """Return the case's network, which ends in scores."""
    import torch

    torch.manual_seed(0)
    layers: list[Any] = []
    for a, b in zip(case.layers, case.layers[1:]):
        layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
        layers += [torch.nn.Dropout(case.dropout)] if case.dropout else []
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, torch.nn.Linear))
    return torch.nn.Sequential(*layers[: last + 1]).to(getattr(torch, case.dtype))


def trainer(case: Case, model: Any, mode: str) -> Any:
    """Return `objective(x, y)`, the loss, and the optimizer.

    Args:
        mode: `"eager"` has the default Adam, every other one the fused; `"compiled"` compiles the objective.
    """
    import torch

    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[case.optimizer]
    optimizer = kind(model.parameters(), lr=case.rate, **({} if mode == "eager" else {"fused": True}))
    loss_of = torch.nn.CrossEntropyLoss()

    def objective(x: Any, y: Any) -> Any:
        return loss_of(model(x), y)

    if mode != "compiled":
        return objective, optimizer
    compilers = [os.environ.get("CXX", "g++"), "clang++", "cl"]
    if not any(map(shutil.which, compilers)):
        raise ImportError(f"torch.compile needs a C++ compiler; got none of {', '.join(compilers)}")
    return torch.compile(objective, dynamic=False), optimizer  # the last, smaller batch: a program of its own


def step(mode: str) -> Make:
    """Return a training step on one batch; see `trainer` for the modes."""

    def make(case: Case, data: DataSet) -> Runner:
        import torch

        model = network(case)
        objective, optimizer = trainer(case, model, mode)
        x, y = (torch.from_numpy(a[: case.batch]) for a in (data.x, data.y))

        def run(n: int) -> None:
            for _ in range(n):
                optimizer.zero_grad(set_to_none=True)
                objective(x, y).backward()
                optimizer.step()

        def loss() -> float:
            with torch.no_grad():
                return float(torch.nn.functional.cross_entropy(model(x), y))

        return Runner(run, loss)

    return make


def epoch(mode: str, loader: bool = False) -> Make:
    """Return the usual loop over an epoch, which looks at the loss every 100 steps.

    Args:
        mode: see `trainer`. loader: whether a `DataLoader` makes the batches, else indexing does.
    """

    def make(case: Case, data: DataSet) -> Runner:
        import torch

        model = network(case)
        objective, optimizer = trainer(case, model, mode)
        x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
        pairs = torch.utils.data.TensorDataset(x, y)
        loaded = torch.utils.data.DataLoader(pairs, case.batch, shuffle=True) if loader else None

        def indexed() -> Iterator[tuple[Any, Any]]:
            for rows in torch.randperm(len(x)).split(case.batch):
                yield x[rows], y[rows]

        def run(n: int) -> None:
            model.train()
            for _ in range(n):
                for i, (xb, yb) in enumerate(indexed() if loaded is None else loaded):
                    optimizer.zero_grad(set_to_none=True)
                    loss = objective(xb, yb)
                    loss.backward()
                    optimizer.step()
                    if i % 100 == 0:
                        loss.item()

        def probabilities(x: Any) -> Any:
            model.eval()
            with torch.inference_mode():
                return torch.softmax(model(torch.from_numpy(x)), 1)

        return epochs(run, probabilities, data)

    return make


def prediction(case: Case, data: DataSet) -> Runner:
    """The probabilities in `inference_mode`, a batch at a time."""
    import torch

    model = network(case).eval()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), case.weights()):
            parameter.copy_(torch.from_numpy(value).T if value.ndim == 2 else torch.from_numpy(value))
    x = torch.from_numpy(data.x)

    def predict() -> Any:
        with torch.inference_mode():
            return torch.cat([torch.softmax(model(part), 1) for part in x.split(case.batch)])

    return passes(predict, case, data)
