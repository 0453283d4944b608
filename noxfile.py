"""The test matrix: `nox` runs numpy, array_api_strict, cupy, examples and lint; `nox -s "tests(torch)"` one more.

Arguments behind `--` go to pytest: `nox -s "tests(jax)" -- -k dropout`.
"""

import ctypes
import os

import nox

nox.needs_version = ">=2024.10"
nox.options.sessions = ["tests(numpy)", "tests(array_api_strict)", "tests(cupy)", "examples", "lint"]

PYTHONS = ["3.11", "3.12", "3.13"]  # supported; the one that runs nox is the default
LIBRARIES = {
    "numpy": [],
    "array_api_strict": ["array-api-strict"],
    "torch": ["torch==2.13.0", "keras"],  # keras: the optimizers are compared with its own
    "jax": ["jax"],
    "cupy": [],  # cuda12 or cuda13, as the driver says
}
# a process for each core; what tests of one file set up (compiled kernels) is then set up once
SIDE_BY_SIDE = ["-n", "auto", "--dist", "loadfile"]
# These throw exceptions at any line of Python, also at coverage's own, whose locks then stay locked.
NOT_MEASURED = ["tests/test_interrupts.py", "tests/test_limits.py"]


def cuda_version() -> int | None:
    """Return the major version of CUDA that the driver supports, or None without a driver or device."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    if driver.cuDeviceGetCount(ctypes.byref(count)) or count.value == 0:
        return None
    return version.value // 1000


@nox.session
@nox.parametrize("backend", [nox.param(name, id=name) for name in LIBRARIES])
def tests(session: nox.Session, backend: str) -> None:
    """Run the suite on one backend, under the current Python."""
    if backend == "numpy":  # where CUDA kernels are compiled, too (that needs no GPU), and Arrow's tables are read
        session.install("nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "pyarrow")
    run_suite(session, backend, "fast,plot" if backend == "numpy" else "")


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """Run the suite on NumPy under each Python that is supported: `nox -s pythons-3.13`."""
    run_suite(session, "numpy")


def run_suite(session: nox.Session, backend: str, extra: str = "") -> None:
    """Install xpnet with one array library (and an extra), and run pytest."""
    if backend == "cupy":
        version = cuda_version()
        if version not in (12, 13):
            session.skip("no CUDA driver with a device was found" if version is None else f"CUDA {version}")
        extra = f"cuda{version}"
    session.install(f".[test,{extra}]" if extra else ".[test]", *LIBRARIES[backend])
    environment = {"XPNET_BACKEND": backend, "PYTHONDONTWRITEBYTECODE": "", **coverage(session)}
    if backend == "array_api_strict":  # on its second device, where an array made without `device=` does not fit
        environment["XPNET_DEVICE"] = "device1"
    options = [*([] if backend == "cupy" else SIDE_BY_SIDE), *session.posargs]  # there is one GPU
    left_out = ["tests/test_examples.py", "tests/peers"]
    if "COVERAGE_FILE" in environment:
        session.run("python", "-m", "pytest", *NOT_MEASURED, *options, env=environment)
        left_out += NOT_MEASURED
        options = ["--cov=xpnet", "--cov-report=", *options]
    session.run("python", "-m", "pytest", *(f"--ignore={name}" for name in left_out), *options, env=environment)


def coverage(session: nox.Session) -> dict[str, str]:
    """Return where this session's coverage goes: one file each, for `coverage combine`."""
    if not os.environ.get("XPNET_COVERAGE"):
        return {}
    folder = os.path.abspath(os.environ["XPNET_COVERAGE"])
    os.makedirs(folder, exist_ok=True)
    name = "".join(c if c.isalnum() else "-" for c in session.name + os.environ.get("XPNET_KERNELS", ""))
    return {"COVERAGE_FILE": os.path.join(folder, f".coverage.{name}")}


@nox.session
def peers(session: nox.Session) -> None:
    """Compare every part with other libraries, on NumPy in float64."""
    session.install(".[test]", *LIBRARIES["torch"], "optax")
    session.run("python", "-m", "pytest", "tests/peers", "-n", "auto", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Run every example, on the backend of XPNET_BACKEND or else NumPy."""
    session.install(".[test,plot]", *LIBRARIES[os.environ.get("XPNET_BACKEND") or "numpy"])
    session.run("pytest", "tests/test_examples.py", "-n", "auto", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and types."""
    session.install(".", "ruff", "mypy")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("mypy", "--strict", "--follow-imports=silent", "tests/typed_api.py")  # as users see it
