"""Imports only go down, and library names stay where they belong: read from the sources with `ast`."""

import ast
from pathlib import Path

import pytest

import xpnet

ROOT = Path(xpnet.__file__).parent
FLOORS = {
    0: {"errors", "tree", "settings", "registry", "backend", "tensorfile"},
    1: {
        "ops",
        "fusion",
        "kernels",
        "params",
        "random",
        "host",
        "context",
        "initializers",
        "regularizers",
        "schedules",
    },
    2: {"activations", "layers", "losses", "optimizers", "metrics"},
    3: {"network", "training", "replay", "feed", "guard", "data", "callbacks", "loop", "run", "access"}
    | {"program", "model", "saving", "session", "job"},
    # islands; they may use the package as its users do, by `import xpnet`
    4: {"__init__", "datasets", "testing", "cli", "parity", "__main__", "bench", "sklearn", "distributed", "onnx"},
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
LIBRARIES = {"numpy", "cupy", "torch", "jax", "array_api_strict", "array_api_compat"}
SOURCES = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}
# Files that know nothing of any library: arrays of the host come by `from .backend import np`.
ABSTRACT = [
    name
    for name in SOURCES
    if name.split("/")[0] in {"layers", "losses", "metrics", "optimizers"}
    or name.removesuffix(".py")
    in {
        "activations", "callbacks", "context", "feed", "guard", "host", "initializers", "loop",
        "model", "network", "ops", "params", "random", "regularizers", "registry",
        "training",
    }
]  # fmt: skip


def part(name):
    """Return the module or package of xpnet that a source file belongs to."""
    return name.split("/")[0].removesuffix(".py")


def imported(tree, name):
    """Yield (line, the module of xpnet or the foreign package) of every import, in functions too."""
    package = ["xpnet", *name.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            # `from . import ops` names modules, `from .ops import affine` what is in one
            targets = [[*base, alias.name] for alias in node.names] if base == ["xpnet"] else [base]
        else:
            continue
        for target in targets:
            yield node.lineno, ".".join(target)


def violations(source, name):
    """Return what goes up: (line, module)."""
    found = []
    for line, target in imported(ast.parse(source), name):
        root, _, rest = target.partition(".")
        if root != "xpnet":
            continue
        module = rest.split(".")[0] or "__init__"
        module = "__init__" if module in {"__version__", *xpnet.__all__} - set(FLOOR) else module
        if module not in FLOOR or FLOOR[module] > FLOOR[part(name)]:
            found.append((line, module))
    return found


def test_every_source_has_a_floor():
    assert {part(name) for name in SOURCES} <= set(FLOOR)
    assert len(SOURCES) > 30


@pytest.mark.parametrize("name", SOURCES)
def test_imports_only_go_down(name):
    assert violations(SOURCES[name].read_text(), name) == []


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        ("ops.py", "from .backend import np", []),
        ("ops.py", "from . import params", []),
        ("ops.py", "from .layers import Dense", [(1, "layers")]),
        ("ops.py", "from . import errors, model", [(1, "model")]),
        ("ops.py", "import xpnet.model", [(1, "model")]),
        ("ops.py", "import xpnet", [(1, "__init__")]),
        ("ops.py", "from xpnet import Sequential", [(1, "__init__")]),
        ("layers/dense.py", "from ..ops import affine\nfrom .base import Layer", []),
        ("layers/dense.py", "def f():\n    from ..training import step", [(2, "training")]),
        ("layers/dense.py", "from .. import losses, saving", [(1, "saving")]),
        ("kernels/numpy.py", "from .. import ops\nfrom ..layers.dense import Dense", [(2, "layers")]),
        ("metrics.py", "from .nowhere import x", [(1, "nowhere")]),
        ("__init__.py", "from .model import Sequential", []),
    ],
)
def test_the_reader_itself(name, source, found):
    assert violations(source, name) == found


# The names of the array libraries -----------------------------------------------------------------------


def named(source, host_arrays=True):
    """Return (line, name) of every array library that is imported, named, or compared with as a string."""
    tree, found = ast.parse(source), []
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            names = [node.value]
        found += [(node.lineno, n) for n in names if n.split(".")[0] in LIBRARIES]
    return sorted(found)


@pytest.mark.parametrize("name", ABSTRACT)
def test_no_array_library_is_named(name):
    assert named(SOURCES[name].read_text()) == []


def test_the_list_of_files_without_libraries_is_not_empty():
    assert {
        "ops.py",
        "layers/dense.py",
        "layers/base.py",
        "losses/base.py",
        "optimizers/adam.py",
        "model.py",
    } <= set(ABSTRACT)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('"""About numpy."""\n# torch\nfrom .backend import np\nx: np.ndarray', []),
        ("import numpy as np", [(1, "numpy")]),
        ("import jax.numpy", [(1, "jax.numpy")]),
        ("def f():\n    from torch import nn", [(2, "torch")]),
        ("if backend.name == 'jax': pass", [(1, "jax")]),
        ("x = sys.modules.cupy", [(1, "cupy")]),
        ("def f():\n    '''torch'''\n    return numpy", [(3, "numpy")]),
    ],
)
def test_the_reader_of_names_itself(source, found):
    assert named(source) == found


@pytest.mark.parametrize(
    "name", [n for n in SOURCES if part(n) not in {"backend", "fusion", "kernels", "bench", "parity"}]
)
def test_numpy_is_imported_in_backend_fusion_and_kernels_only(name):
    foreign = {target.split(".")[0] for _, target in imported(ast.parse(SOURCES[name].read_text()), name)}
    assert not foreign & LIBRARIES


MATHEMATICS = ["ops.py", "activations.py", "layers/dense.py"]
MATHEMATICS += [n for n in SOURCES if n.startswith(("losses/", "metrics/", "optimizers/")) and "__" not in n]
MATHEMATICS.remove("losses/targets.py")  # checks on the host


@pytest.mark.parametrize("name", MATHEMATICS)
def test_nothing_in_the_mathematics_waits_for_the_device(name):
    """No float(), bool(), int() or .item() of an array where the step computes: these would synchronise."""
    step = {"forward", "backward", "terms", "score_terms", "at", "at_scores", "measure", "rows", "counts"}
    step |= {"formula", "numbers", "apply_variables"}
    tree = ast.parse(SOURCES[name].read_text())
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and (node.name in step or (name == "ops.py" and node.name[0] != "_"))
    ]
    assert functions
    calls = [call.func for node in functions for call in ast.walk(node) if isinstance(call, ast.Call)]
    waits = [f.id for f in calls if isinstance(f, ast.Name) and f.id in {"float", "bool", "int"}]
    waits += [f.attr for f in calls if isinstance(f, ast.Attribute) and f.attr in {"item", "tolist", "host"}]
    assert waits == []
