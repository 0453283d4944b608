"""Array libraries, devices and precisions; transfers between host and device; `compile(step)`.

Only this folder, `fusion/` and `kernels/` name an array library. A `Backend` is created once and passed along; all
other code computes with its `xp`, a namespace of the Python array API standard.

What determines the backend, highest priority first: an explicit argument or `use_backend(...)`; the environment
variable `XPNET_BACKEND` (with `XPNET_DEVICE` and `XPNET_DTYPE`); the library of the arrays passed in; NumPy.
"""

from .base import (
    BACKENDS,
    LARGEST_COUNT,
    POLICIES,
    Array,
    Backend,
    host_of,
    library_of,
    np,
    special_function,
    traced,
)
from .choose import (
    available_backends,
    floating,
    get_backend,
    give_back,
    home_of,
    is_explicit,
    probe,
    resolve,
    use_backend,
)
from .cupy import CupyBackend
from .jax import JaxBackend
from .numpy import NumpyBackend
from .strict import StrictBackend
from .torch import TorchBackend

__all__ = [
    "BACKENDS",
    "LARGEST_COUNT",
    "POLICIES",
    "Array",
    "Backend",
    "CupyBackend",
    "JaxBackend",
    "NumpyBackend",
    "StrictBackend",
    "TorchBackend",
    "available_backends",
    "floating",
    "get_backend",
    "give_back",
    "home_of",
    "host_of",
    "is_explicit",
    "library_of",
    "np",
    "probe",
    "resolve",
    "special_function",
    "traced",
    "use_backend",
]

BACKENDS.update({cls.name: cls for cls in (NumpyBackend, CupyBackend, TorchBackend, JaxBackend, StrictBackend)})
