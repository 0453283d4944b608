"""Imports go down only, without circles; only some rooms name array libraries; files and functions are short.

`ast` reads all of it from the sources, including imports inside functions and through `importlib`.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import xpnet
from xpnet import kernels

ROOT = Path(xpnet.__file__).parent
FLOORS = [  # the lowest first; a file may import from its own floor and lower ones
    {"errors"},
    {"backend"},  # array libraries and devices
    {"core"},  # the basis of everything above
    {"fusion"},  # formulas turned into calls, loops and kernels
    {"kernels"},  # faster twins of the operations, by library, and the context that provides them
    {"activations", "initializers", "regularizers", "constraints", "schedules"}
    | {"layers", "losses", "optimizers", "metrics", "callbacks"},  # the parts
    {"training"},
    {"model", "utils"},
    # islands; they may use the package as users do, with `import xpnet`
    {"__init__", "datasets", "testing", "tools", "__main__", "bench", "sklearn", "distributed", "onnx"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SOURCES = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}
MODULES = {  # dotted name -> file
    ".".join(("xpnet", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): name
    for name, path in SOURCES.items()
}

# Imports that are not at the top of their file, and why. There are no others.
OPTIONAL = {  # optional dependencies, or loaded only on use
    *("array_api_strict", "cupy", "jax", "keras", "matplotlib", "numba", "nvmath", "pooch", "sklearn"),
    *("threadpoolctl", "torch", "tqdm"),
    "resource",  # not on Windows
}
SELDOM = {"gzip", "lzma", "tarfile", "zlib"}  # Python's own: `import xpnet` is faster without
LATER = {("kernels/host/helpers.py", "xpnet.kernels.host.spin")}  # needs numba, which is optional
BY_NAME = {  # modules that `importlib.import_module` imports by a computed name
    "backend/base.py": set(),  # `Backend.package`, an array library
    "backend/strict.py": set(),  # likewise
    "kernels/__init__.py": {  # the modules of one array library, when it is used
        f"xpnet.kernels.{name}"
        for name in (
            *(module for twins in kernels.TWINS.values() for module in twins),
            *kernels.RECORDERS.values(),
            *kernels.MAKERS.values(),
        )
    },
}


def room(name):
    """Return the folder of a source file, or the file itself outside the folders."""
    return name.split("/")[0].removesuffix(".py")


def imports(source, name):
    """Yield (line, module, whether at the top) for every import: modules of xpnet and others, dotted."""
    tree, package = ast.parse(source), ["xpnet", *name.split("/")[:-1]]
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(base + (node.module.split(".") if node.module else []))
            # `from . import ops` names a module, `from .ops import affine` a member of one
            targets = [f"{base}.{alias.name}" for alias in node.names]
            targets = [t if t in MODULES or base == "xpnet" else base for t in targets]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in {
            "import_module",
            "__import__",
        }:
            argument = node.args[0]
            targets = [argument.value] if isinstance(argument, ast.Constant) else sorted(BY_NAME[name])
        else:
            continue
        for target in dict.fromkeys(targets):
            yield node.lineno, target, id(node) in top


def violations(source, name):
    """Return the imports that go up: (line, room)."""
    found = []
    for line, target, _ in imports(source, name):
        root, _, rest = target.partition(".")
        if root != "xpnet":
            continue
        there = rest.split(".")[0] or "__init__"
        there = "__init__" if there in {"__version__", *xpnet.__all__} - set(FLOOR) else there
        if there not in FLOOR or FLOOR[there] > FLOOR[room(name)]:
            found.append((line, there))
    return found


def test_every_source_has_a_floor():
    assert {room(name) for name in SOURCES} <= set(FLOOR)
    assert len(SOURCES) > 80


@pytest.mark.parametrize("name", SOURCES)
def test_imports_only_go_down(name):
    assert violations(SOURCES[name].read_text(), name) == []


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        ("core/ops.py", "from ..backend import np", []),
        ("core/ops.py", "from . import params", []),
        ("core/ops.py", "from ..layers import Dense", [(1, "layers")]),
        ("kernels/context.py", "from .. import errors, model", [(1, "model")]),
        ("kernels/context.py", "import xpnet.model", [(1, "model")]),
        ("kernels/context.py", "import xpnet", [(1, "__init__")]),
        ("kernels/context.py", "from xpnet import Sequential", [(1, "__init__")]),
        ("layers/dense.py", "from ..core.ops import affine\nfrom .base import Layer", []),
        ("layers/dense.py", "def f():\n    from ..training.step import make_step", [(2, "training")]),
        ("layers/dense.py", "from .. import losses, training", [(1, "training")]),
        ("kernels/host/numpy.py", "from ...core import ops\nfrom ...layers.dense import Dense", [(2, "layers")]),
        ("core/tree.py", "import importlib\nimportlib.import_module('xpnet.kernels.finish')", [(2, "kernels")]),
        ("metrics.py", "from .nowhere import x", [(1, "nowhere")]),
        ("__init__.py", "from .model import Sequential", []),
    ],
)
def test_the_reader_itself(name, source, found):
    assert violations(source, name) == found


# Circles ------------------------------------------------------------------------------------------------


def executed(target, name):
    """Return the files executed by importing a module: its own, and those of its parent packages.

    Packages that contain the importing file are left out: they are already imported.
    """
    found, parts = set(), target.split(".")
    inside = ("xpnet", *name.split("/")[:-1])
    for n in range(1, len(parts) + 1):
        file = MODULES.get(".".join(parts[:n]))
        if file and (n == len(parts) or inside[:n] != tuple(parts[:n])):
            found.add(file)
    return found - {name}


def circle(graph):
    """Return a circle in a graph {file: files that it imports}, or None."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_no_imports_go_in_a_circle():
    graph = {
        name: {file for _, target, _ in imports(path.read_text(), name) for file in executed(target, name)}
        for name, path in SOURCES.items()
    }
    assert circle(graph) is None
    assert graph["model.py"] >= {"training/loop.py", "training/stack.py", "backend/__init__.py"}
    assert "kernels/host/numba.py" in graph["kernels/__init__.py"]


def test_the_reader_of_circles_itself():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) is not None
    assert circle({"a": {"b", "c"}, "b": {"c"}}) is None
    packages = {"kernels/__init__.py", "kernels/host/__init__.py"}
    assert executed("xpnet.kernels.host.tape", "training/loop.py") == {*packages, "kernels/host/tape.py"}
    assert executed("xpnet.kernels.finish", "kernels/host/numpy.py") == {"kernels/finish.py"}
    assert executed("xpnet.kernels", "kernels/host/numpy.py") == {"kernels/__init__.py"}


def test_what_is_imported_later_is_listed():
    found = {
        (name, target)
        for name, path in SOURCES.items()
        for _, target, top in imports(path.read_text(), name)
        if not top and target.split(".")[0] not in OPTIONAL | SELDOM and target not in BY_NAME.get(name, ())
    }
    assert found == LATER
    assert set(sys.stdlib_module_names) & OPTIONAL == {"resource"}


# Sizes --------------------------------------------------------------------------------------------------


def lines_of(function):
    """Return the number of lines of a function, without decorators and docstring."""
    first = function.body[0]
    docstring = ast.get_docstring(function) is not None
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1) * docstring


def long_functions(source, most=60):
    return {
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and lines_of(node) > most
    }


def test_no_file_is_too_long():
    files = [*SOURCES.values(), *ROOT.rglob("*.cu")]
    assert {p.relative_to(ROOT).as_posix() for p in files if len(p.read_text().splitlines()) > 500} == set()


def test_no_function_is_too_long():
    assert {(name, f) for name, path in SOURCES.items() for f in long_functions(path.read_text())} == set()


def test_the_counter_of_lines_itself():
    source = "@a\ndef f():\n    '''One\n    two.'''\n    return 1\n\ndef g():\n    x = 1\n    return x"
    assert long_functions(source, 2) == {"g"}
    assert long_functions(source, 1) == {"f", "g"}


# The names of the array libraries -----------------------------------------------------------------------

LIBRARIES = {"numpy", "cupy", "torch", "jax", "array_api_strict", "array_api_compat"}
AT_HOME = {"backend", "kernels", "fusion"}  # rooms that may name a library
COMPARED = {"bench", "tools"}  # these run libraries side by side
ABSTRACT = [name for name in SOURCES if room(name) not in AT_HOME | COMPARED]


def named(source):
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


def test_most_files_know_of_no_library():
    assert len(ABSTRACT) > 40
    assert {"core/params.py", "layers/dense.py", "training/step.py", "model.py"} <= set(ABSTRACT)


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


# No step waits for the device ---------------------------------------------------------------------------

STEP = {"forward", "backward", "measure", "terms", "score_terms", "at", "at_scores", "rows", "counts"}
STEP |= {"formula", "numbers", "apply_variables"}
PARTS = {"activations", "losses", "metrics", "optimizers", "layers"}
COMPUTING = ["core/ops.py", *(name for name in SOURCES if room(name) in PARTS)]


def waits(source, every=False):
    """Return the calls that read numbers on the host in functions of a step: float(), .item() and the like."""
    functions = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and (node.name in STEP or (every and node.name[0] != "_"))
    ]
    calls = [call.func for node in functions for call in ast.walk(node) if isinstance(call, ast.Call)]
    found = [f.id for f in calls if isinstance(f, ast.Name) and f.id in {"float", "bool", "int"}]
    return found + [f.attr for f in calls if isinstance(f, ast.Attribute) and f.attr in {"item", "tolist", "host"}]


@pytest.mark.parametrize("name", COMPUTING)
def test_nothing_in_the_mathematics_waits_for_the_device(name):
    assert waits(SOURCES[name].read_text(), every=name == "core/ops.py") == []


def test_the_reader_of_waits_itself():
    source = "def forward(x):\n    return float(x) + x.item()\ndef other(x):\n    return int(x)"
    assert waits(source) == ["float", "item"]
    assert waits("def sgd(x):\n    return bool(x)", every=True) == ["bool"]
