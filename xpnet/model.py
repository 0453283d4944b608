"""The model people use: layers in a row, trained with `fit`."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .backend import LARGEST_COUNT, Array, Backend, np
from .callbacks import History, resolve_verbose
from .core.random import fresh_seed
from .errors import InvalidTypeError, InvalidValueError, NotBuiltError, ShapeError, number, unknown_name
from .kernels.context import numeric
from .layers import Input, Layer
from .layers.base import rows_of
from .layers.tree import count_trainable, name_layers
from .losses import Loss
from .optimizers import Optimizer
from .training import loop
from .training.data import Data, class_factors
from .training.job import make_job, rows_at_a_time, training_data
from .training.lending import as_layer
from .training.network import Network
from .training.program import Compiled, check_compile
from .training.saving import read_model, save_model
from .training.session import Progress, Session
from .training.step import TrainState

__all__ = ["Sequential", "load_model"]


class Sequential:
    """Layers in a row.

    Args:
        layers: in order, or models; an `Input` in front builds the model at once, else the first data do.
        seed: of the weights, shuffles and masks, an integer >= 0; None draws one (see `seed`).
        dtype: `"float32"`, `"float64"`, or one of Keras' mixed policies, `"mixed_float16"` and `"mixed_bfloat16"`:
            products of 16-bit factors that add up in float32, everything else in float32. None takes
            `XPNET_DTYPE`, else float32.
        backend, device: where to compute; None takes `use_backend`, `XPNET_BACKEND`, else the library of the
            first arrays it sees, else NumPy. Results come back in the caller's library.
        name: what `summary` calls it.

    Attributes:
        seed, step, epoch: the streams' seed and counters. stop_training: set it in a callback to end `fit`.
        session: the weights on their backend, and what takes steps with them.

    >>> from xpnet.layers import Dense
    >>> model = Sequential([Input((2,)), Dense(3, activation="relu"), Dense(1)], seed=0)
    >>> model.predict([[1.0, 2.0]]).shape, model.count_params()
    ((1, 1), 13)
    """

    def __init__(
        self,
        layers: Iterable[Layer | Sequential] | None = None,
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
        self._layers: list[Layer] = []
        self.session = Session(self._layers, self.seed, backend, device, dtype)
        self._layers += map(_checked, layers or ())
        if self._layers and isinstance(self._layers[0], Input):
            self.build(self._layers[0].shape)

    # Building -----------------------------------------------------------------------------------------

    def add(self, layer: Layer | Sequential) -> None:
        """Append a layer or model, before any training; behind an `Input`, the model is built at once.

        Raises:
            InvalidValueError: the model was built by data, or trained. ShapeError: the layer does not fit.
        """
        session, layer = self.session, _checked(layer)
        session.access.refuse("add")
        known = isinstance(self._layers[0], Input) if self._layers else isinstance(layer, Input)
        if session.laid_out and not (known and self.step == 0):
            raise InvalidValueError(f"layers can't be added to a model that is built; got {layer!r}")
        values = session.values() if session.laid_out else {}
        with session.as_before_on_error(layer):
            self._layers.append(layer)
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
    def weights(self) -> Array:
        """A copy of the trainable weights as one flat array of the backend, shape (size,)."""
        with self.session.access.lock:
            return self.backend.copy(self.state.weights)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of an input, without the batch axis."""
        return self.network.input_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of an output, without the batch axis."""
        return self.network.output_shape

    @property
    def compiled(self) -> Compiled | None:
        """What `compile` was given, or None."""
        return self.session.compiled

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer that `compile` was given; its settings can be changed at any time."""
        return self.compiled.optimizer if self.compiled else None

    @property
    def loss(self) -> Loss | None:
        """The loss that `compile` was given."""
        return self.compiled.loss if self.compiled else None

    @property
    def metrics_names(self) -> list[str]:
        """The names in the logs: "loss" and the metrics'."""
        return self.compiled.names if self.compiled else []

    def count_params(self) -> int:
        """Return the number of parameters and running statistics."""
        return self.network.layout.size + self.network.stats_layout.size

    def summary(self, print_fn: Any = None) -> None:
        """Print the layers with their output shapes and numbers of parameters."""
        rows = [("Layer", "Output shape", "Parameters")]
        for unit in self.network.units:
            layer = unit.layer
            again = any(u.layer is layer for u in self.network.units[: unit.position])
            shown = "(None, " + ", ".join(map(str, layer.output_shape or ())) + ")"
            rows.append(
                (f"{unit.key} ({type(layer).__name__})", shown, "0" if again else f"{layer.count_params():,}")
            )
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(r, widths)))
                 for r in rows]  # fmt: skip
        rule = "-" * len(lines[0])
        trainable, total = count_trainable(self._layers), self.count_params()
        tail = f"Parameters: {total:,} ({trainable:,} trainable, {total - trainable:,} not), seed {self.seed}"
        text = "\n".join([f"Model {self.name!r}", rule, lines[0], rule, *lines[1:], rule, tail])
        (print_fn or print)(text)

    # Weights ------------------------------------------------------------------------------------------

    def get_weights(self) -> list[np.ndarray]:
        """Return host copies of all parameters and statistics, layer by layer."""
        return list(self.session.values().values())

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set all parameters and statistics, in the order of `get_weights`.

        Raises:
            ShapeError: their number or a shape does not fit; nothing is changed then.
        """
        paths = self.network.paths()
        if len(weights) != len(paths):
            raise ShapeError(f"set_weights takes {len(paths)} arrays for this model; got {len(weights)}")
        self.session.assign(dict(zip(paths, map(numeric, weights))))

    def get_layer(self, name: str) -> Layer:
        """Return the layer of that name."""
        name_layers(self._layers)
        for layer in self._layers:
            if layer.name == name:
                return layer
        raise unknown_name("layer of this model", name, [str(layer.name) for layer in self._layers])

    def to(
        self, backend: str | Backend | None = None, device: str | None = None, dtype: str | None = None
    ) -> Sequential:
        """Move the model, with all its state, to another backend, device or precision; return it."""
        self.session.access.refuse("to")
        self.session.move(backend, device, dtype)
        return self

    # Training -----------------------------------------------------------------------------------------

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        metrics: Any = None,
        steps_per_execution: int = 1,
        graph: bool = True,
        weighted_metrics: Any = None,
    ) -> None:
        """Choose how to train. A call that fails leaves the former choice as it was.

        What was frozen or thawed since (`layer.trainable`) counts from here on. The optimizer begins anew, unless
        it is the same object as before and has the same weights to train.

        Args:
            optimizer, loss: names or objects. metrics, weighted_metrics: lists of names or objects; the weights
                of rows and classes count in the latter only.
            steps_per_execution: batches that are run at once (one `lax.scan` under JAX).
            graph: whether a step may be recorded once and replayed (NumPy; see `xpnet.training.replay`).

        Raises:
            UnknownNameError: a name is not known. InvalidValueError: softmax or sigmoid and then `from_logits`.
        """
        self.session.access.refuse("compile")
        compiled = check_compile(optimizer, loss, metrics, steps_per_execution, graph, weighted_metrics)
        self.session.compile(compiled)

    def fit(
        self,
        x: Any,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        validation_batch_size: int | None = None,
        validation_freq: int = 1,
        steps_per_execution: int | None = None,
    ) -> History:
        """Train for some epochs and return the `History`; a second call goes on from where it is.

        Where the model was saved in the middle of a run, the first call after `load_model` goes on behind the last
        step of that run, with what callbacks of the same classes knew. What is changed in the data during a call
        counts from the next batch on (on a GPU that holds the data set, from the next call on).

        Args:
            x: inputs, shape (rows, ...): an array of any library, a list, or a pandas, polars or pyarrow table.
            y: targets, shape (rows, ...), or class numbers (rows,) for a sparse loss.
            batch_size: rows a step (None: 32); 1 is stochastic, len(x) full-batch descent.
            epochs: passes over the data (up to this number, from `initial_epoch`; none if that is not below it).
            verbose: 0 silent, 1 a bar, 2 a line an epoch, "auto". callbacks: a list of `Callback`.
            validation_split: share of the last rows that are kept for validation.
            validation_data: (x, y) or (x, y, sample_weight); goes before `validation_split`.
            shuffle: whether each epoch has an order of its own.
            class_weight: {class: factor}; classes left out count 1. sample_weight: (rows,); both multiply.
            validation_batch_size: rows at a time (None: batch_size). validation_freq: epochs between two
                validations.
            steps_per_execution: batches run at once, or None for what `compile` was given.

        Raises:
            ShapeError, InvalidValueError, InvalidTypeError: the data do not fit; found before the first step.
            BusyError: another call trains the model.
            NonFiniteError: a loss, gradient or weight was not finite; the model is as it was before that step.
        """
        session, together = self.session, self.session.need_compiled().steps_per_execution
        job = make_job(
            x,
            y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            validation_split=validation_split,
            validation_data=validation_data,
            shuffle=shuffle,
            class_weight=class_weight,
            sample_weight=sample_weight,
            initial_epoch=initial_epoch,
            validation_batch_size=validation_batch_size,
            validation_freq=validation_freq,
            steps_per_execution=together if steps_per_execution is None else steps_per_execution,
        )
        with session.access.train("fit"):
            with session.as_before_on_error():
                session.admit(job.data, build=True)
                if job.validation is not None:
                    session.admit(job.validation, build=True)
                job = job.split()
                session.program()
            return loop.fit(session, job, self)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """Take one step on one batch; return its loss and metrics, as they were before the update.

        Raises:
            NonFiniteError: a loss, gradient or weight was not finite; nothing is changed then.
        """
        factors, session = class_factors(class_weight), self.session
        session.need_compiled()
        data = training_data(x, y, sample_weight)
        with session.access.train("train_on_batch"):
            with session.as_before_on_error():
                session.admit(data, build=True)
                session.program()
            return self._scores(loop.train_on_batch(session, data, factors), return_dict)

    def evaluate(
        self,
        x: Any,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Return `[loss, *metrics]` over all rows (one float without metrics), or a dict.

        Args:
            x, y, sample_weight: as for `fit`. batch_size: rows at a time (None: 1024, or Keras' 32 where the loss
                depends on it: with reduction "sum" or "mean_with_sample_weight"). verbose: accepted as in Keras;
                nothing is printed. return_dict: whether to return {name: value}.
        """
        resolve_verbose(verbose)
        compiled = self.session.need_compiled()
        by_batch = compiled.loss.reduction in ("sum", "mean_with_sample_weight")
        size = rows_at_a_time(batch_size, 32 if by_batch else 1024)
        data = self.session.admit(training_data(x, y, sample_weight), build=False)
        return self._scores(loop.evaluate(self.session, data, size), return_dict)

    def predict(self, x: Any, batch_size: int | None = None, verbose: Any = "auto") -> Array:
        """Return the outputs, shape (rows, ...), in the library of `x`; worked out in batches.

        Raises:
            NotBuiltError: the model has no weights yet. ShapeError: `x` has other features.
        """
        resolve_verbose(verbose)
        size = rows_at_a_time(batch_size)
        if not self.built:
            raise NotBuiltError("predict needs a built model: call build(input_shape), or fit; got 0 weights")
        data = self.session.admit(Data(x), build=False)
        outputs, home = loop.predict(self.session, data, size), data.x.home
        if home.shares(outputs, data.x.values):  # no layer has computed anything
            outputs = home.copy(outputs)
        return outputs

    def __call__(self, x: Any) -> Array:
        """Return `predict(x)`; builds the model at first use."""
        if self.built:
            return self.predict(x)  # with nothing to undo: others may train
        self.session.access.refuse("a model that is not built")
        with self.session.as_before_on_error():
            self.session.admit(Data(x), build=True)
            return self.predict(x)

    def _scores(self, scores: dict[str, Any], return_dict: bool) -> Any:
        values = list(scores.values())
        return scores if return_dict else values if len(values) > 1 else values[0]

    # Files and copies ---------------------------------------------------------------------------------

    def as_layer(self) -> Layer:
        """Return the layers as one `Chain`: a model that is built with it holds and trains their weights."""
        return as_layer(self.session, None if self.name == "sequential" else self.name)

    def save(self, path: Any) -> None:
        """Write weights, architecture, optimizer state, counters and seed to one safetensors file.

        Read it with `xpnet.load_model`, on any backend.
        """
        save_model(self, path)

    def __copy__(self) -> Sequential:
        """Return a model of its own, as `copy.deepcopy` does: weights and layers are not shared between models."""
        return copy.deepcopy(self)


def _checked(layer: Layer | Sequential) -> Layer:
    layer = layer.as_layer() if isinstance(layer, Sequential) else layer
    if not isinstance(layer, Layer):
        raise InvalidTypeError(f"Sequential takes objects of xpnet.layers.Layer; got {layer!r}")
    return layer


def load_model(
    path: str | os.PathLike[str],
    *,
    backend: Any = None,
    device: str | None = None,
    dtype: str | None = None,
    custom_objects: Mapping[str, type] | None = None,
) -> Sequential:
    """Return the model of a file, ready to predict and to go on training.

    Args:
        path: a file that `save` wrote. backend, device: where to compute, as for `Sequential`.
        dtype: the precision, or None for the file's.
        custom_objects: classes of one's own by name: of layers, losses and so on, and of what these are made of.

    Raises:
        FileFormatError: the file is truncated, altered, of another format, or of a newer version.
        UnknownNameError: it needs a class that is not in `custom_objects`. OSError: it can't be opened.
    """
    return read_model(Sequential, path, backend, device, dtype, custom_objects)
