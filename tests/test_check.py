"""CUDA kernels that are wrong on a user's device are detected before a model uses them.

The device is that of cupy_capture.py; tests change the source that is compiled.
"""

import re
import sys
import warnings
from pathlib import Path

import cuda_on_host
import numpy as np
import pytest
from cupy_capture import clean_start, pretended_cupy
from test_cuda_kernels import ACTIVATIONS, OPTIMIZERS, WAYS

import xpnet as xn
from xpnet.backend import POLICIES, get_backend
from xpnet.backend.tree import leaves
from xpnet.kernels import check
from xpnet.kernels.cuda import generated, launch
from xpnet.layers import Dense, Dropout

if get_backend().name != "numpy":
    pytest.skip("it is the same on every backend under test: run once, with NumPy", allow_module_level=True)

RNG = np.random.default_rng(0)
SOURCE = Path(launch.__file__).with_name("kernels.cu").read_text(encoding="utf-8")
X = RNG.standard_normal((22, 6))
CLASSES = np.argmax(X[:, :3], axis=1)


@pytest.fixture(autouse=True)
def device(monkeypatch):
    clean_start(monkeypatch)
    with pretended_cupy(monkeypatch, checked=True) as engine:
        yield engine


def compile_with(monkeypatch, old, new):
    """Compile kernels from a source with an error in it; return the sources that contained it."""
    spoilt = []

    def module(code, options):
        spoilt.extend([code] if old in code else [])
        return cuda_on_host.RawModule(code=code.replace(old, new), options=options)

    monkeypatch.setattr(sys.modules["cupy"], "RawModule", module)
    return spoilt


def trained(epochs=3):
    model = xn.Sequential(
        [Dense(5, activation="relu"), Dropout(0.4), Dense(3, activation="softmax")], seed=1, backend="cupy"
    )
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    history = model.fit(X, CLASSES, batch_size=8, epochs=epochs, verbose=0).history
    return model, history, [np.array(model.backend.host(a)).tobytes() for a in leaves(model.state)]


@pytest.mark.parametrize("precision", ["highest", "tf32"])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_kernels_are_right(monkeypatch, policy, precision):
    monkeypatch.setenv("XPNET_MATMUL_PRECISION", precision)
    backend = get_backend("cupy", dtype=policy)
    assert check.right(backend)
    launched = set(cuda_on_host.RawKernel.launched)
    assert launched >= {"bias_act", "act_backward", "column_sums", "keep_mask", "normals", "gather"}
    cuda_on_host.RawKernel.launched.clear()
    assert check.right(backend)
    assert cuda_on_host.RawKernel.launched == []  # once per process


def test_every_kernel_is_checked():
    for policy in ("float32", "mixed_float16"):
        assert check.right(get_backend("cupy", dtype=policy))
    names = set(re.findall(r"__global__ void (\w+)\(", SOURCE))
    assert names | {"bias_act", "act_backward"} == set(cuda_on_host.RawKernel.launched)


MISTAKES = {
    "affine": ("total += partial[row", "total -= partial[row"),
    "dropout": ("keep[i] ? scale : A(0)", "keep[i] ? scale : A(1)"),
    "softmax_cross_entropy": ("p - t) * factor", "p + t) * factor"),
    "hits": ("place == target[row]", "place != target[row]"),
    "row_total": ("*out = scale * total", "*out = scale + total"),
    "penalize": ("2 * l2 * x", "l2 * x"),
    "within_limits": ("total <= limit", "total <= limit * limit"),
    "confusion": ("a == t && b == f", "a == f && b == t"),
    "tally": ("(double)*value * factor", "(double)*value + factor"),
    "tally of arrays": ("(double)more[i] * factor", "(double)more[i] + factor"),
    "clipping": ("f * (most / larger", "(most / larger"),
    "masks and noise": ("word[0] = 1 + (u64)block", "word[0] = (u64)block"),
    "batches": ("(i64)order[row]", "(i64)(order[row] ? row : 0)"),
}


@pytest.mark.parametrize("where", MISTAKES)
def test_a_mistake_is_found(monkeypatch, where):
    spoilt = compile_with(monkeypatch, *MISTAKES[where])
    with pytest.warns(RuntimeWarning, match="own CUDA kernels are not used on <pretended device 0>") as caught:
        assert not check.right(get_backend("cupy"))
    found = str(caught[0].message).partition("(")[2].partition(")")[0].split(", ")
    assert where in found
    assert len(found) <= 6
    assert spoilt


@pytest.mark.parametrize("wrong", ["a number", "an error"])
def test_training_goes_on_without_them(monkeypatch, wrong):
    with pytest.MonkeyPatch.context() as m:
        m.setenv("XPNET_KERNELS", "bodies")
        _, *expected = trained()
    compile_with(
        monkeypatch, "p - t) * factor", "p + t) * factor" if wrong == "a number" else "undefined) * factor"
    )
    why = r"fail their check there \(" + ("softmax_cross_entropy" if wrong == "a number" else "RuntimeError: ")
    with pytest.warns(RuntimeWarning, match=why) as caught:
        model, *found = trained()
    assert len(caught) == 1
    assert trained()[1:] == tuple(found)  # without another warning
    assert found == expected
    assert model.session.program().recorder is None


IN_FORMULAS = {  # a text of the warning; the error; the reason given
    "an update": ("optimizer Adam(", "g_i * g_i", "g_i + g_i", "its results differ"),
    "a rejected update": ("optimizer Adam(", "if (ok && !*ok)", "if (!ok)", "its results differ"),
    "an update with invalid code": ("optimizer Adam(", "g_i * g_i", "nothing * g_i", "RuntimeError: "),
    "an activation": ("activation 'relu' ", "larger(z_i, c0)", "smaller(z_i, c0)", "its results differ"),
    "a derivative": ("activation 'relu' ", "y_i > c0", "y_i >= c0", "its results differ"),
    "all activations": ("activation 'relu' ", "y[i] = f(score)", "y[i] = f(score) + 1", "its results differ"),
    "scores and bias": ("activation 'relu' ", "if (bias && y != z) z[i] = score;", "", "its results differ"),
    "all derivatives": ("activation 'relu' ", "dz[i] = XP_N(d)", "dz[i] = XP_N(d + d)", "its results differ"),
    "the sums": ("activation 'relu' ", "total += d;", "total = d;", "its results differ"),
}


@pytest.mark.parametrize("where", IN_FORMULAS)
def test_a_kernel_made_from_a_formula_is_checked_at_its_first_use(monkeypatch, where):
    """A wrong one is not used: training continues with the body."""
    _, *expected = trained()
    what, old, new, why = IN_FORMULAS[where]
    generated._verdicts.clear()
    launch.kernel_made_by.cache_clear()
    spoilt = compile_with(monkeypatch, old, new)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, *found = trained()
        assert trained()[1:] == tuple(found)
    assert spoilt
    refused = [str(w.message) for w in caught if "is not captured" not in str(w.message)]
    assert len(refused) == len(set(refused)) <= 2  # each once; if all are wrong, linear is too
    assert any(text.startswith(f"the CUDA kernel made from the {what}") and f"({why}" in text for text in refused)
    if not where.startswith("all") and where not in ("scores and bias", "the sums"):
        assert len(refused) == len(caught) == 1  # the others are used, and captured
        assert model.session.program().recorder is not None
    for name, values in found[0].items():
        np.testing.assert_allclose(values, expected[0][name], rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_float16"])
def test_no_formula_raises_a_false_alarm(dtype):
    """For all activations and optimizers of the tables, including user-defined ones; warnings are errors."""
    backend = get_backend("cupy", dtype=dtype)
    for activation in ACTIVATIONS.values():
        assert generated.activation_kernels(backend, activation) is not None
    for optimizer in OPTIMIZERS.values() if not backend.narrow else ():
        for decay, factor, in_place in (WAYS["plain"], WAYS["elsewhere"]):
            given = len(optimizer.slots), decay, factor is not None, in_place
            assert generated.update_kernel(backend, optimizer, *given) is not None
    assert len(generated._verdicts) > len(ACTIVATIONS) / 2
    assert all(generated._verdicts.values())


def test_what_is_right_is_checked_once(monkeypatch):
    trained()
    launched = cuda_on_host.RawKernel.launched
    launched.clear()
    generated._verdicts.clear()
    trained(1)
    first = launched.count("update")
    launched.clear()
    trained(1)
    assert first == launched.count("update") + 2  # a rejected update, and an accepted one


def test_the_switch_that_asks_for_the_bodies_checks_nothing(monkeypatch):
    monkeypatch.setenv("XPNET_KERNELS", "bodies")
    compile_with(monkeypatch, "p - t) * factor", "undefined")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(1)
    assert not check.usable(get_backend("cupy"))


def test_streams_and_handles_go_on_to_the_model(device):
    model, *_ = trained()
    assert model.session.program().recorder is not None
    assert len(device.streams) == 3
    assert len(device.cublas.handles) == 1
