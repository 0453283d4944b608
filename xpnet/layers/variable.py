"""A weight of a layer as an object: what `layer.weights` and `model.weights` list."""

from __future__ import annotations

from typing import Any

from ..backend import Array, np
from ..kernels.context import numeric

__all__ = ["HasWeights", "Variable"]


class Variable:
    """A parameter or running statistic of a layer; it reads and writes the current values.

    Args:
        layer: the layer, built. name: of the weight, such as "kernel".

    Attributes:
        layer, name: as given. shape: a tuple.

    >>> from xpnet.layers import Dense
    >>> layer = Dense(2, name="hidden")
    >>> y = layer([[1.0, 2.0, 3.0]])
    >>> layer.weights
    [<Variable hidden/kernel, shape (3, 2)>, <Variable hidden/bias, shape (2,)>]
    >>> layer.weights[1].assign([0.5, 0.25])
    >>> layer.weights[1].numpy().tolist()
    [0.5, 0.25]
    """

    def __init__(self, layer: Any, name: str) -> None:
        self.layer, self.name = layer, name
        self._place = [spec.name for spec in layer.specs].index(name)
        self._spec = layer.specs[self._place]
        self.shape: tuple[int, ...] = tuple(self._spec.shape)

    @property
    def path(self) -> str:
        """The layer's name and the weight's: "dense_1/kernel"."""
        return f"{self.layer.name or type(self.layer).__name__}/{self.name}"

    @property
    def trainable(self) -> bool:
        """Whether it is a parameter of a trainable layer."""
        return bool(self._spec.trainable and self.layer.trainable)

    @property
    def dtype(self) -> str:
        """The name of its dtype."""
        return str(self.__array__().dtype)

    @property
    def value(self) -> Array:
        """A copy in the array library of the model; a host array if no model holds the layer."""
        model = self.layer._holder()
        return self.__array__() if model is None else model.weight(self.layer, self.name)

    def numpy(self) -> np.ndarray:
        """Return a copy on the host."""
        return self.__array__()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return a copy on the host, for `np.asarray`."""
        return np.asarray(self.layer.get_weights()[self._place], dtype=dtype)

    def assign(self, value: Any) -> None:
        """Set the values.

        Raises:
            ShapeError: `value` has another shape; nothing is changed.
        """
        values: list[Any] = list(self.layer.get_weights())
        values[self._place] = numeric(value)
        self.layer.set_weights(values)

    def __repr__(self) -> str:
        return f"<Variable {self.path}, shape {self.shape}>"


class HasWeights:
    """Keras' lists of variables, for layers and models: all from `weights`."""

    @property
    def weights(self) -> list[Variable]:
        """The parameters and running statistics."""
        raise TypeError(f"{type(self).__name__} must define weights")

    @property
    def trainable_weights(self) -> list[Variable]:
        """The parameters of trainable layers."""
        return [variable for variable in self.weights if variable.trainable]

    @property
    def non_trainable_weights(self) -> list[Variable]:
        """The running statistics, and the parameters of frozen layers."""
        return [variable for variable in self.weights if not variable.trainable]

    @property
    def variables(self) -> list[Variable]:
        """The same as `weights`."""
        return self.weights

    @property
    def trainable_variables(self) -> list[Variable]:
        """The same as `trainable_weights`."""
        return self.trainable_weights

    @property
    def non_trainable_variables(self) -> list[Variable]:
        """The same as `non_trainable_weights`."""
        return self.non_trainable_weights
