"""Every example runs unchanged, on the backend in the environment; each asserts its own result."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NEEDS = {"03_admissions": "admissions", "06_mnist": "mnist"}  # the folder in XPNET_DATA
SLOW = {"06_mnist"}


def data_is_there(name):
    root = os.environ.get("XPNET_DATA")
    return bool(root) and (Path(root).expanduser() / name).is_dir()


def case(path):
    marks = [pytest.mark.slow] if path.stem in SLOW else []
    if path.stem in NEEDS and not data_is_there(NEEDS[path.stem]):
        marks.append(pytest.mark.skip(reason=f"needs the folder {NEEDS[path.stem]} in XPNET_DATA"))
    return pytest.param(path, id=path.stem, marks=marks)


def run(path, folder, **variables):
    """Run a script in a folder, with the checkout importable even if it is not installed."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONIOENCODING": "utf-8", **variables}
    env.pop("PYTHONOPTIMIZE", None)  # which would remove the assertions
    command = [sys.executable, str(path)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, encoding="utf-8", check=False)


def test_the_examples_are_there():
    assert [path.stem[:2] for path in EXAMPLES] == [f"{n:02}" for n in range(1, 9)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_asserts(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(text)))
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", [case(path) for path in EXAMPLES])
def test_an_example_runs(path, tmp_path):
    done = run(path, tmp_path)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "Warning" not in done.stderr, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1].startswith("ok")
    wanted = os.environ.get("XPNET_BACKEND") or "numpy"
    assert wanted in done.stdout


def test_mnist_without_its_files_says_what_is_missing(tmp_path):
    (tmp_path / "mnist").mkdir()
    done = run(ROOT / "examples" / "06_mnist.py", tmp_path, XPNET_DATA=str(tmp_path))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("xpnet.errors.DownloadError")
    assert "XPNET_DATA" in last
