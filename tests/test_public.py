"""The public interface: names, docstrings, types; what `import xpnet` does not do."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import xpnet
from xpnet.errors import BackendError, MissingExtraError

ROOT = Path(xpnet.__file__).parent
SOURCES = [p for p in sorted(ROOT.rglob("*.py")) if p.name != "__main__.py"]
MODULES = [
    ".".join(("xpnet", *p.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__") for p in SOURCES
]

# Names that the documentation uses; removing one is a breaking change.
PROMISED = {
    "xpnet": "Sequential load_model custom_object_scope get_backend use_backend available_backends __version__"
    " activations backend callbacks errors initializers layers losses metrics optimizers regularizers",
    "xpnet.activations": "Activation Linear ReLU LeakyReLU Sigmoid Softmax Step Tanh get",
    "xpnet.backend": "BACKENDS Backend available_backends get_backend use_backend",
    "xpnet.callbacks": "Callback EarlyStopping",
    "xpnet.constraints": "Constraint MaxNorm MinMaxNorm NonNeg UnitNorm get",
    "xpnet.initializers": "Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity LecunNormal"
    " LecunUniform Ones Orthogonal RandomNormal RandomUniform TruncatedNormal VarianceScaling Zeros get",
    "xpnet.layers": "Activation BatchNormalization Dense Dropout Flatten Input Layer LeakyReLU PReLU ReLU Sigmoid"
    " Softmax Tanh get",
    "xpnet.losses": "BinaryCrossentropy BinaryFocalCrossentropy CategoricalCrossentropy"
    " CategoricalFocalCrossentropy CategoricalHinge CosineSimilarity Dice Elementwise GaussianNLL Hinge Huber"
    " KLDivergence LogCosh Loss MeanAbsoluteError MeanAbsolutePercentageError MeanSquaredError"
    " MeanSquaredLogarithmicError PerceptronCriterion Poisson Quantile SparseCategoricalCrossentropy SquaredHinge"
    " Tversky get",
    "xpnet.metrics": "Accuracy BinaryAccuracy CategoricalAccuracy MeanAbsoluteError MeanSquaredError Metric"
    " SparseCategoricalAccuracy get",
    "xpnet.optimizers": "SGD Adam AdamW Momentum Optimizer RMSprop get",
    "xpnet.regularizers": "L1 L1L2 L2 OrthogonalRegularizer Regularizer get",
    "xpnet.schedules": "CosLog4 CosineDecay CosineDecayRestarts ExponentialDecay FlatCos InverseTimeDecay OneCycle"
    " PiecewiseConstantDecay PolynomialDecay Schedule get",
    "xpnet.testing": "assert_close check_gradients",
    "xpnet.errors": "BackendError FileFormatError InvalidTypeError InvalidValueError MissingExtraError"
    " NonFiniteError NotBuiltError ShapeError UnknownNameError XpnetError",
}
METHODS = {
    "Sequential": "build compile fit evaluate predict save summary get_weights set_weights to backend weights",
    "layers.Layer": "build forward get_weights set_weights get_config from_config count_params",
    "losses.Loss": "__call__ value_and_grad",
    "optimizers.Optimizer": "init update learning_rate",
    "metrics.Metric": "update_state result reset_state",
    "activations.Activation": "__call__ derivative",
}


@pytest.mark.parametrize("module", PROMISED)
def test_promised_names_are_public(module):
    found = importlib.import_module(module)
    assert set(PROMISED[module].split()) <= set(found.__all__)


@pytest.mark.parametrize("owner", METHODS)
def test_promised_methods_exist(owner):
    found = xpnet
    for name in owner.split("."):
        found = getattr(found, name)
    assert [m for m in METHODS[owner].split() if not hasattr(found, m)] == []


@pytest.mark.parametrize("module", MODULES)
def test_all_names_what_is_there(module):
    try:
        found = importlib.import_module(module)
    except (ImportError, MissingExtraError, BackendError) as error:
        pytest.skip(f"{module} needs more: {error}")
    names = getattr(found, "__all__", [])
    assert len(set(names)) == len(names)
    assert [n for n in names if not hasattr(found, n)] == []


def undocumented(tree):
    """Return the public modules, classes, functions and methods without a docstring."""
    lacking = [] if ast.get_docstring(tree) else ["the module"]

    def look(body, prefix):
        for node in body:
            if isinstance(
                node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            ) and not node.name.startswith("_"):
                marks = {getattr(d, "attr", getattr(d, "id", "")) for d in node.decorator_list}
                if not ast.get_docstring(node) and not marks & {"setter", "overload"}:
                    lacking.append(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    look(node.body, f"{prefix}{node.name}.")

    look(tree.body, "")
    return lacking


@pytest.mark.parametrize("path", SOURCES, ids=MODULES)
def test_what_is_public_has_a_docstring(path):
    assert undocumented(ast.parse(path.read_text())) == []


def test_the_reader_of_docstrings_itself():
    source = "class A:\n  'x'\n  def b(self): pass\n  def _c(self): pass\ndef d(): 'x'"
    assert undocumented(ast.parse(source)) == ["the module", "A.b"]


def test_arguments_are_described():
    """Every argument of a registered class's constructor is named in its docstring or its base's."""
    lacking = []
    kinds = "activations constraints initializers layers losses metrics optimizers regularizers schedules"
    for module in kinds.split():
        for cls in set(getattr(xpnet, module).registry.classes.values()):
            arguments = inspect.signature(cls).parameters
            text = " ".join(base.__doc__ or "" for base in cls.__mro__[:-1])
            lacking += [f"{module}.{cls.__name__}: {a}" for a in arguments if a not in text]
    assert lacking == []


def run(code, **environment):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("XPNET_")}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**kept, "PYTHONPATH": str(ROOT.parent), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_import_xpnet_imports_no_more_than_it_needs():
    loaded = run("import sys, xpnet; print(*sys.modules)")
    assert "numpy" in loaded
    heavy = (
        "torch jax cupy array_api_strict array_api_compat sklearn scipy pandas polars matplotlib pooch safetensors"
    )
    assert set(loaded) & {*heavy.split(), "tqdm", "pytest", "array_api_compat.numpy", "xpnet.tools.cli"} == set()


def test_training_on_numpy_imports_no_other_array_library():
    code = """
import sys, xpnet as xn
model = xn.Sequential([xn.layers.Dense(2), xn.layers.Dense(1)], seed=0)
model.compile(optimizer="adam", loss="mse")
model.fit([[1.0], [2.0]], [1.0, 2.0], verbose=0)
model.predict([[1.0]])
print(*sys.modules)
"""
    assert not set(run(code)) & {
        "torch",
        "jax",
        "cupy",
        "array_api_strict",
        "array_api_compat",
        "array_api_compat.numpy",
    }


def test_version_and_types():
    assert xpnet.__version__.count(".") == 2
    assert (ROOT / "py.typed").is_file()


def test_dir_shows_what_users_use():
    assert dir(xpnet) == sorted(xpnet.__all__)
    assert not set(dir(xpnet)) & {"core", "training", "kernels", "fusion", "model"}
