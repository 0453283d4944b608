"""Every registered part has a row in `cases.py`, and every row comes back from its config."""

import inspect
import re
from pathlib import Path

import cases
import pytest

from xpnet import (
    activations,
    constraints,
    initializers,
    layers,
    losses,
    metrics,
    optimizers,
    regularizers,
    schedules,
)
from xpnet.core.config import Registry
from xpnet.fusion.update import update_graph
from xpnet.optimizers import adaptive

KINDS = {
    "ACTIVATIONS": (activations, lambda name, row: row[0]),
    "CONSTRAINTS": (constraints, lambda name, row: row[0]),
    "INITIALIZERS": (initializers, lambda name, row: initializers.get(name)),
    "LAYERS": (layers, lambda name, row: row()),
    "LOSSES": (losses, lambda name, row: row[0](**row[1])),
    "METRICS": (metrics, lambda name, row: row[0](**row[1])),
    "OPTIMIZERS": (optimizers, lambda name, row: row[0](0.01)),
    "SOLVERS": (optimizers, lambda name, row: row()),
    "REGULARIZERS": (regularizers, lambda name, row: row[0]),
    "SCHEDULES": (schedules, lambda name, row: row[0]),
}
ROWS = [(kind, name) for kind in KINDS for name in getattr(cases, kind)]


def made(kind, name):
    return KINDS[kind][1](name, getattr(cases, kind)[name])


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_has_a_row(kind):
    registered = {cls.__name__ for cls in KINDS[kind][0].registry.classes.values()}
    alike = [other for other in KINDS if KINDS[other][0] is KINDS[kind][0]]
    missing = registered - {type(made(other, name)).__name__ for other in alike for name in getattr(cases, other)}
    assert missing == set(), f"tests/cases.py: {kind} has no row for {sorted(missing)}"


@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_every_row_comes_back_from_its_config(kind, name):
    part, registry = made(kind, name), KINDS[kind][0].registry
    again = registry.get({"class_name": type(part).__name__, "config": part.get_config()})
    assert type(again) is type(part)
    assert again.get_config() == part.get_config()
    assert repr(again) == repr(part)


def test_the_worked_example_is_adagrad():
    """CONTRIBUTING's example equals the package's code, and has at most twenty lines."""
    text = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
    code, row = re.findall(r"```python\n(.*?)```", text, flags=re.S)[:2]
    assert len([line for line in (code + row).splitlines() if line.strip()]) <= 20
    known = Registry("optimizer", optimizers.Optimizer)
    space = {**vars(adaptive), "registry": known}
    exec("from __future__ import annotations\n" + code, space)
    assert row.strip() in (Path(__file__).parent / "cases.py").read_text()
    example, ours = space["Adagrad"], optimizers.Adagrad
    assert inspect.signature(example) == inspect.signature(ours)
    assert example().never_overflows
    graphs = [update_graph(cls(0.1, 0.2), 1) for cls in (example, ours)]
    assert graphs[0].key == graphs[1].key
    theta, results = [1.0, -2.0], []
    for cls in (example, ours):
        state = cls(0.1).init(theta)
        assert state.slots[0].tolist() == pytest.approx([0.1, 0.1])
        results.append(cls(0.1).update(theta, [0.5, 3.0], state)[0].tolist())
    assert results[0] == results[1]
