"""The backend under test comes from XPNET_BACKEND; nox and CI run the suite once for each."""

import os
import signal
import tempfile

import pytest

for name, value in {
    "KERAS_BACKEND": "torch",  # Keras is installed for it: PyTorch's session compares with Keras
    "JAX_ENABLE_X64": "1",  # the suite checks derivatives in float64
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # the suite compiles many small networks and runs each a few times
    "JAX_COMPILATION_CACHE_DIR": os.path.join(tempfile.gettempdir(), "xpnet-jax-cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}.items():
    os.environ.setdefault(name, value)

from xpnet.backend import get_backend  # noqa: E402


def pytest_configure(config):
    if os.environ.get("XPNET_BACKEND") == "array_api_strict":
        import array_api_strict

        array_api_strict.set_array_api_strict_flags(boolean_indexing=False, data_dependent_shapes=False)


def pytest_itemcollected(item):
    """Mark tests that run on the simulated GPU, whatever XPNET_KERNELS is: once is enough."""
    if {"pretended_cupy", "cuda_on_host"} & set(vars(getattr(item, "module", None) or item)):
        item.add_marker("pretended")


@pytest.fixture
def backend():
    """The backend under test, float32."""
    return get_backend(dtype="float32")


@pytest.fixture
def backend64():
    """The backend under test, float64."""
    return get_backend(dtype="float64")


@pytest.fixture
def data_folder():
    """The folder of real data sets, or a skip."""
    folder = os.environ.get("XPNET_DATA")
    if not folder or not os.path.isdir(folder):
        pytest.skip("XPNET_DATA does not name a folder of data sets")
    return folder


@pytest.fixture(autouse=True, scope="session")
def interruptible():
    """Enable Ctrl-C if the suite was started in the background, where shells ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
