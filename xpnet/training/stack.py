"""Layers in a row and their weights: what `Sequential` trains."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Self

from ..backend import LARGEST_COUNT, Backend
from ..callbacks import History
from ..core.config import custom_object_scope
from ..core.random import fresh_seed
from ..errors import InvalidTypeError, InvalidValueError, number, unknown_name
from ..layers import Input, Layer
from ..layers import get as get_layer
from ..layers.base import rows_of
from .description import describe_layers, make_layers, summary
from .network import Network, name_layers
from .session import Session
from .state import Progress
from .step import TrainState
from .weights import ModelWeights

__all__ = ["LayerStack"]


class LayerStack(ModelWeights):
    """Layers in a row; see `Sequential`."""

    def __init__(
        self,
        layers: Iterable[Layer] | None = None,
        *,
        seed: int | None = None,
        dtype: str | None = None,
        backend: str | Backend | None = None,
        device: str | None = None,
        name: str | None = None,
    ) -> None:
        self.seed = fresh_seed() if seed is None else number("seed", seed, 0, integer=True)
        self.name = name or "sequential"
        self.stop_training = False
        self.history: History | None = None
        self._layers: list[Layer] = []
        self._dtype = dtype
        self.session = Session(self._layers, self.seed, backend, device, dtype)
        for layer in layers or ():
            self._append(layer)
        if self._layers and isinstance(self._layers[0], Input):
            self.build(self._layers[0].shape)

    # Building -----------------------------------------------------------------------------------------

    def add(self, layer: Layer) -> None:
        """Append a layer, before any training; behind an `Input`, the model is built at once.

        Raises:
            InvalidValueError: the model was built by data, or trained. ShapeError: the layer does not fit.
        """
        session = self.session
        session.access.refuse("add")
        known = isinstance(self._layers[0], Input) if self._layers else isinstance(layer, Input)
        if session.laid_out and not (known and self.step == 0):
            raise InvalidValueError(f"layers can't be added to a model that is built; got {layer!r}")
        values = session.values() if session.laid_out else {}
        with session.as_before_on_error(layer):
            self._append(layer)
            session.clear()
            if known:
                self.build(getattr(self._layers[0], "shape", ()))
                session.assign(values)

    def pop(self) -> Layer:
        """Take the last layer away and return it, with its weights; the others keep theirs.

        The optimizer begins anew.

        Raises:
            InvalidValueError: there is no layer.
        """
        session = self.session
        session.access.refuse("pop")
        if not self._layers:
            raise InvalidValueError("pop takes the last layer of a model away; got a model of 0 layers")
        if not session.laid_out:
            return self._layers.pop()
        *rest, last = self._layers
        key, flats = session.network.units[-1].key, session.flats()
        if rest:
            session.adopt_network(Network(rest, self.input_shape), keep=False)
        else:
            session.clear()
        del self._layers[-1]
        if not any(layer is last for layer in rest):
            last.leave(session, flats, key)
        return last

    def _append(self, layer: Layer) -> None:
        if not isinstance(layer, Layer):
            raise InvalidTypeError(f"Sequential takes objects of xpnet.layers.Layer; got {layer!r}")
        self._layers.append(get_layer(layer))

    def build(self, input_shape: Any) -> None:
        """Make the weights for inputs of this shape, without the batch axis (a leading None is accepted).

        Raises:
            ShapeError: a layer can't take it, or the model is built for another shape.
        """
        shape, session = rows_of(input_shape), self.session
        if session.laid_out:
            session.build(shape)  # which only checks it: others may train
            return
        session.access.refuse("build")
        with session.as_before_on_error():
            session.build(shape)

    # What it is made of -------------------------------------------------------------------------------

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in order; `add` and `pop` change them."""
        return tuple(self._layers)

    @property
    def trainable(self) -> bool:
        """Whether any layer is trainable; setting it sets all of them, for the next `compile`."""
        return any(layer.trainable for layer in self._layers)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        for layer in self._layers:
            layer.trainable = bool(value)

    @property
    def built(self) -> bool:
        """Whether the weights are there."""
        return self.session.built

    @property
    def network(self) -> Network:
        """The built layers and the layout of their weights."""
        return self.session.network

    @property
    def state(self) -> TrainState:
        """The arrays that a step carries on."""
        return self.session.state

    @property
    def step(self) -> int:
        """The training steps taken since the model was made: what the masks are functions of."""
        return self.session.step

    @step.setter
    def step(self, step: int) -> None:
        step = number("step", step, 0, LARGEST_COUNT, integer=True)
        self.session.replace_state(step=self.backend.count(step))

    @property
    def epoch(self) -> int:
        """The epochs that were trained since the model was made: what the order of the rows is a function of."""
        return self.session.progress.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.session.progress = Progress(number("epoch", epoch, 0, LARGEST_COUNT, integer=True))

    @property
    def backend(self) -> Backend:
        """Where the model computes: `.name`, `.device`, `.dtype_name`, `.xp`."""
        return self.session.backend

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of an input, without the batch axis."""
        return self.network.input_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of an output, without the batch axis."""
        return self.network.output_shape

    def summary(self, print_fn: Any = None) -> None:
        """Print the layers with their output shapes and numbers of parameters."""
        (print_fn or print)(summary(self.name, self.seed, self._layers, self.network))

    def get_layer(self, name: str | None = None, index: int | None = None) -> Layer:
        """Return the layer of that name, or at that position; negative positions count from the end.

        Raises:
            UnknownNameError: there is no such layer. InvalidTypeError: neither a name nor a position, or both.
        """
        if (name is None) == (index is None):
            raise InvalidTypeError(f"get_layer takes a name or an index; got {name!r} and {index!r}")
        return self._layers[self._position(name if index is None else index)]

    def _position(self, layer: Any) -> int:
        """Return the position of a layer, given by its name, position or itself."""
        name_layers(self._layers)
        names, count = [str(layer.name) for layer in self._layers], len(self._layers)
        if isinstance(layer, Layer) and any(layer is own for own in self._layers):
            return next(i for i, own in enumerate(self._layers) if own is layer)
        if isinstance(layer, int) and not isinstance(layer, bool) and -count <= layer < count:
            return layer % count
        if layer in names:
            return names.index(layer)
        raise unknown_name("layer of this model", layer, names)

    def to(
        self, backend: str | Backend | None = None, device: str | None = None, dtype: str | None = None
    ) -> Self:
        """Move the model, with all its state, to another backend, device or precision; return it."""
        self.session.access.refuse("to")
        self.session.move(backend, device, dtype)
        return self

    # Descriptions -------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Return name, layers, input shape (if built), seed and precision as plain values, without weights."""
        return {
            "name": self.name,
            "layers": describe_layers(self._layers, [True] * len(self._layers)),
            "input_shape": list(self.input_shape) if self.session.laid_out else None,
            "seed": self.seed,
            "dtype": self._dtype,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Mapping[str, type] | None = None) -> Self:
        """Return a new model from what `get_config` gave, with the first weights of its seed.

        Raises:
            UnknownNameError: a class is neither xpnet's nor in `custom_objects`.
        """
        with custom_object_scope(custom_objects):
            layers, _ = make_layers(config["layers"])
        model = cls(seed=config.get("seed"), dtype=config.get("dtype"), name=config.get("name"))
        model.session.layers += layers
        if config.get("input_shape") is not None:
            model.build(tuple(config["input_shape"]))
        return model

    def to_json(self, **kwargs: Any) -> str:
        """Return `get_config` as JSON, for `xpnet.model_from_json`. Args: kwargs: those of `json.dumps`."""
        return json.dumps({"class_name": type(self).__name__, "config": self.get_config()}, **kwargs)
