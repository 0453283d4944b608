"""The weights of a model: variables, lists of arrays, files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..backend import Array, np
from ..errors import FileFormatError, ShapeError
from ..kernels.context import numeric
from ..layers import Layer
from ..layers.variable import HasWeights, Variable
from .session import Session
from .tensorfile import NUMPY_TYPES, reading, write

__all__ = ["ModelWeights"]


class ModelWeights(HasWeights):
    """What `Sequential` offers about its weights."""

    session: Session

    @property
    def weights(self) -> list[Variable]:
        """The parameters and running statistics of all layers, as variables; a layer used twice counts once."""
        layers: dict[int, Layer] = {id(unit.layer): unit.layer for unit in self.session.network.units}
        return [variable for layer in layers.values() for variable in layer.weights]

    @property
    def flat_weights(self) -> Array:
        """A copy of all trainable weights as one flat array of the backend, shape (size,)."""
        session = self.session
        with session.access.lock:
            return session.backend.copy(session.state.weights)

    def count_params(self) -> int:
        """Return the number of parameters and running statistics."""
        return sum(layout.size for layout in self.session.network.layouts)

    def get_weights(self) -> list[np.ndarray]:
        """Return host copies of all parameters and statistics, layer by layer."""
        return list(self.session.values().values())

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set all parameters and statistics, in the order of `get_weights`.

        Raises:
            ShapeError: their number or a shape does not fit; nothing is changed then.
        """
        paths = self.session.network.paths()
        if len(weights) != len(paths):
            raise ShapeError(f"set_weights takes {len(paths)} arrays for this model; got {len(weights)}")
        self.session.assign(dict(zip(paths, map(numeric, weights))))

    def save_weights(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters and statistics by path to a safetensors file, which any such library reads.

        Args:
            path: usually `*.safetensors`; an existing file is replaced once everything is written. (Keras asks for
                `*.weights.h5`.)
        """
        write(path, {"format": "xpnet weights"}, self.session.values())

    def load_weights(self, path: str | os.PathLike[str]) -> None:
        """Set the parameters and statistics from a file of `save_weights` or `save`; the optimizer goes on.

        Raises:
            FileFormatError: it lacks a weight, has one more, or one of another shape; nothing is changed then.
        """
        layouts = self.session.network.layouts
        wanted = {key: shape for layout in layouts for key, shape in layout.shapes.items()}
        with reading(path) as file:
            entries = {key: entry for key, entry in file.entries.items() if "/" in key}  # not an optimizer's
            odd = sorted({(key, entry.shape) for key, entry in entries.items()} ^ set(wanted.items()))
            if odd:
                raise FileFormatError(f"the weights in {file.name} are not those of this model; got {odd[0]}")
            unread = [entry.dtype for entry in entries.values() if entry.dtype not in NUMPY_TYPES]
            if unread:
                raise FileFormatError(f"weights must be of type {', '.join(NUMPY_TYPES)}; got {unread[0]}")
            values = {key: np.empty(shape, NUMPY_TYPES[entries[key].dtype]) for key, shape in wanted.items()}
            for key, out in values.items():
                file.read_into(key, out)
        self.session.assign(values)
