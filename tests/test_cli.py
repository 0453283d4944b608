"""The command line, as users call it."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import xpnet as xn
from xpnet import kernels
from xpnet.backend import BACKENDS
from xpnet.tools import cli, parity


def test_info_tells_what_can_run(capsys, backend):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"xpnet {xn.__version__}" in out
    assert f"default backend: <Backend {backend.name}" in out
    for name in BACKENDS:
        line = next(line for line in out.splitlines() if line.split()[:1] == [name])
        assert ("can't run" in line) == (name not in xn.available_backends())


def test_info_as_json_and_what_import_costs(capsys):
    assert cli.main(["info", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in report["backends"]] == list(BACKENDS)
    assert report["import_ms_beyond_numpy"] > 0
    assert report["kernels"] == kernels.chosen()
    for row in report["backends"]:
        assert row["available"] is (row["reason"] is None)
        assert row["devices"] if row["available"] else row["install"]


def test_info_names_a_default_that_cannot_run(capsys, monkeypatch):
    monkeypatch.setenv("XPNET_DEVICE", "cuda:99")
    monkeypatch.setenv("XPNET_BACKEND", "numpy")
    assert cli.main(["info"]) == 0
    assert "default backend: can't run: " in capsys.readouterr().out


def test_parity_prints_a_line_for_each_run(capsys, backend):
    assert cli.main(["parity", "--backends", backend.name, "--steps", "3", "--seeds", "4", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:-1]] == [
        [backend.name, dtype, seed] for dtype in ("float64", "float32") for seed in ("4", "5")
    ]
    assert lines[-1] == "all equal within the limits"


def test_parity_fails_when_something_differs(capsys, monkeypatch):
    monkeypatch.setitem(parity.MAX_DIFFERENCE, "float32", -1.0)
    assert cli.main(["parity", "--backends", "numpy", "--steps", "1", "--seeds", "0"]) == 1
    out = capsys.readouterr().out
    assert "MORE THAN -1" in out
    assert out.endswith("1 comparisons failed\n")


def test_an_error_is_one_line_and_a_status(capsys, monkeypatch):
    monkeypatch.setenv("XPNET_BACKEND", "nunpy")
    assert cli.main(["parity", "--steps", "1"]) in (0, 2)  # parity selects its backends itself
    assert cli.main(["bench", "--contestants", "torhc fused"]) == 2
    assert capsys.readouterr().err.strip().endswith("got 'torhc fused'")


def test_a_wrong_call_exits_with_2(capsys):
    with pytest.raises(SystemExit) as info:
        cli.main(["fly"])
    assert info.value.code == 2
    assert "invalid choice: 'fly'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["parity", "--steps", "0"], ["parity", "--steps", "-3"], ["parity", "--steps", "1.5"],
     ["parity", "--seeds", "-1"], ["parity", "--seeds", "x"], ["bench", "--seconds", "inf"],
     ["bench", "--seconds", "-1"], ["bench", "--seconds", "nan"], ["bench", "--limit", "0"],
     ["bench", "--limit", "inf"],
     ["bench", "--limit", "soon"], ["bench", "--rounds", "0"], ["bench", "--threads", "0"]],
)  # fmt: skip
def test_a_number_that_makes_no_sense_exits_with_2(capsys, words):
    with pytest.raises(SystemExit) as info:
        cli.main(words)
    assert info.value.code == 2
    assert capsys.readouterr().err.strip().endswith(f"got {words[-1]!r}")


def test_python_m_xpnet_runs_it():
    done = subprocess.run([sys.executable, "-m", "xpnet", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "parity" in done.stdout


def test_the_source_distribution_has_the_documents():
    root = Path(__file__).parent.parent
    included = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"][
        "include"
    ]
    assert {path.name for path in root.glob("*.md")} <= set(included)
    assert all((root / name).exists() for name in included)
