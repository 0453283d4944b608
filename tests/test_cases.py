"""Every registered part has a row in `cases.py`, and every row comes back from its config."""

import cases
import pytest

from xpnet import activations, initializers, layers, losses, metrics, optimizers, regularizers, schedules

KINDS = {
    "ACTIVATIONS": (activations, lambda name, row: activations.get(name)),
    "INITIALIZERS": (initializers, lambda name, row: initializers.get(name)),
    "LAYERS": (layers, lambda name, row: row()),
    "LOSSES": (losses, lambda name, row: row[0](**row[1])),
    "METRICS": (metrics, lambda name, row: row[0](**row[1])),
    "OPTIMIZERS": (optimizers, lambda name, row: row[0](0.01)),
    "REGULARIZERS": (regularizers, lambda name, row: row[0]),
    "SCHEDULES": (schedules, lambda name, row: row[0]),
}
ROWS = [(kind, name) for kind in KINDS for name in getattr(cases, kind)]


def made(kind, name):
    return KINDS[kind][1](name, getattr(cases, kind)[name])


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_has_a_row(kind):
    registered = {cls.__name__ for cls in KINDS[kind][0].registry.classes.values()}
    missing = registered - {type(made(kind, name)).__name__ for name in getattr(cases, kind)}
    assert missing == set(), f"tests/cases.py: {kind} has no row for {sorted(missing)}"


@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_every_row_comes_back_from_its_config(kind, name):
    part, registry = made(kind, name), KINDS[kind][0].registry
    again = registry.get({"class_name": type(part).__name__, "config": part.get_config()})
    assert type(again) is type(part)
    assert again.get_config() == part.get_config()
    assert repr(again) == repr(part)
