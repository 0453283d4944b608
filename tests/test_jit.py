"""Loops are cached on disk; damage to the files never breaks a `fit`."""

import errno
import importlib.util
import os
import subprocess
import sys
import warnings

import pytest

pytest.importorskip("numba")

from xpnet.kernels.host import jit

SOURCE = """
from xpnet.kernels.host.jit import loop

@loop
def double(x):
    return 2 * x
"""
DAMAGES = {
    "empty": lambda data: b"",
    "short": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "garbage": lambda data: os.urandom(len(data)),
    "one byte": lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:],
    "a pickle of something else": lambda data: b"\x80\x04]\x94.",
}


@pytest.fixture
def double(tmp_path, monkeypatch):
    """Return a function that imports a loop as a new process would, from a file with its cache beside it."""
    path = tmp_path / "loops.py"
    path.write_text(SOURCE)

    def new():
        monkeypatch.setattr(jit, "_told", False)
        spec = importlib.util.spec_from_file_location("loops", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "loops", module)
        spec.loader.exec_module(module)
        return module.double

    return new


def files(tmp_path, suffix):
    return sorted((tmp_path / "__pycache__").glob(f"*{suffix}"))


def hits(loop):
    return sum(loop.stats.cache_hits.values())


def test_a_loop_is_compiled_once(double):
    first, second = double(), double()
    assert (first(3), hits(first)) == (6, 0)
    assert (second(3), hits(second)) == (6, 1)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_a_damaged_file_is_told_of_and_replaced(double, tmp_path, suffix, damage):
    double()(3)
    (path,) = files(tmp_path, suffix)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    loop = double()
    with pytest.warns(RuntimeWarning, match="again.*damaged"):
        assert loop(3) == 6
    assert loop(3.5) == 7.0  # compiled, too, and not reported a second time
    again = double()
    assert (again(3), again(3.5), hits(again)) == (6, 7.0, 2)


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_a_file_that_can_be_neither_read_nor_replaced(double, tmp_path, suffix):
    double()(3)
    (path,) = files(tmp_path, suffix)
    path.unlink()
    path.mkdir()
    loop = double()
    with pytest.warns(RuntimeWarning, match="again.*IsADirectoryError|PermissionError"):
        assert loop(3) == 6
    assert loop(3.5) == 7.0


def test_a_file_that_is_gone_is_nothing_to_tell_of(double, tmp_path):
    double()(3)
    files(tmp_path, ".nbc")[0].unlink()
    assert double()(3) == 6
    again = double()
    assert (again(3), hits(again)) == (6, 1)


def test_a_full_disk(double, tmp_path, monkeypatch):
    loop = double()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RuntimeWarning, match="again.*No space left"):
        assert loop(3) == 6
    assert loop(3.5) == 7.0
    assert not files(tmp_path, ".tmp*")


def test_no_place_for_a_cache(double, monkeypatch):
    from numba.core.caching import CacheImpl

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    with pytest.warns(RuntimeWarning, match="again.*no locator"):
        loop = double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (loop(3), double.__name__) == (6, "new")


FIT = """
import os, resource, sys, warnings
import numpy as np, xpnet as xn
if sys.argv[1] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = xn.Sequential([xn.layers.Dense(8, activation="relu"), xn.layers.Dense(1)], seed=0)
    model.compile("adam", "mse")
    x = np.linspace(-1, 1, 64).reshape(16, 4)
    model.fit(x, x[:, :1], epochs=4, verbose=0)
os.write(1, repr((model.evaluate(x, x[:, :1]), [str(w.message)[:40] for w in caught])).encode())
"""


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files")
def test_a_fit_with_damaged_files_and_on_a_full_disk(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "XPNET_BACKEND": "numpy"}
    for name in ("XPNET_KERNELS", "XPNET_DEVICE"):
        environment.pop(name, None)

    def fit(disk):
        done = subprocess.run([sys.executable, "-c", FIT, disk], env=environment, capture_output=True, check=True)
        return eval(done.stdout)

    expected, told = fit("free")
    assert not told
    made = [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".nbi", ".nbc")]
    assert made
    for path in made:
        path.write_bytes(path.read_bytes()[:100])
    for disk, number in [("full", 1), ("free", 1), ("free", 0)]:
        scores, told = fit(disk)
        assert scores == expected
        assert len(told) == number
        assert all("numba's cache" in message for message in told)


def test_a_numba_that_refuses_this_numpy(tmp_path):
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("raise ImportError('Numba needs NumPy 2.2 or less')")
    environment = {**os.environ, "XPNET_BACKEND": "numpy"}
    for name in ("XPNET_KERNELS", "XPNET_DEVICE"):
        environment.pop(name, None)

    def fit(**variables):
        script = [sys.executable, "-c", FIT, "free"]
        done = subprocess.run(script, env={**environment, **variables}, capture_output=True, check=True)
        return eval(done.stdout)

    path = os.pathsep.join([str(tmp_path), environment.get("PYTHONPATH", "")])
    scores, told = fit(PYTHONPATH=path)
    assert scores == fit(XPNET_KERNELS="numpy")[0]
    assert [message[:26] for message in told] == ["numba is installed but can"]
