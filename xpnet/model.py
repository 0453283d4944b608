"""The model people use: layers in a row, trained with `fit`."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from . import loop
from .access import Access, Commit
from .backend import LARGEST_COUNT, Array, Backend, get_backend, is_explicit, np, resolve
from .callbacks import History, check_callbacks, resolve_verbose
from .context import numeric
from .data import Data, class_factors
from .errors import InvalidTypeError, InvalidValueError, NotBuiltError, ShapeError, number, unknown_name
from .layers import Input, Layer
from .layers.base import rows_of
from .losses import Loss
from .network import Network, check_input, name_layers
from .optimizers import Optimizer
from .params import Flats
from .program import Compiled, Program, check_compile, check_head, make_program
from .random import Stream, fresh_seed
from .run import Run, Unfinished
from .settings import changes
from .training import TrainState, carried_sums, first_scale, host_sums, zero_sums

__all__ = ["Sequential"]

T = TypeVar("T")


class Progress(NamedTuple):
    """Epochs completed; for an epoch in progress the number of its first step, its rows and batch size."""

    epoch: int = 0
    first_step: int | None = None
    rows: int = 0
    batch_size: int = 0


class HostState(NamedTuple):
    """What a `TrainState` holds, on the host, and the progress it belongs to."""

    weights: np.ndarray | None = None
    stats: np.ndarray | None = None
    slots: tuple[np.ndarray, ...] = ()
    step: int = 0
    age: float = 0.0
    scale: tuple[float, ...] = ()
    sums: np.ndarray | None = None
    progress: Progress = Progress()


class Sequential:
    """Layers in a row.

    Args:
        layers: in order; an `Input` in front builds the model at once, else the first data do.
        seed: of the weights, shuffles and masks, an integer >= 0; None draws one (see `seed`).
        dtype: `"float32"`, `"float64"`, or one of Keras' mixed policies, `"mixed_float16"` and `"mixed_bfloat16"`:
            products of 16-bit factors that add up in float32, everything else in float32. None takes
            `XPNET_DTYPE`, else float32.
        backend, device: where to compute; None takes `use_backend`, `XPNET_BACKEND`, else the library of the
            first arrays it sees, else NumPy. Results come back in the caller's library.
        name: what `summary` calls it.

    Attributes:
        seed, step, epoch: the streams' seed and counters. stop_training: set it in a callback to end `fit`.
        compiled: what `compile` was given, or None.

    >>> from xpnet.layers import Dense
    >>> model = Sequential([Input((2,)), Dense(3, activation="relu"), Dense(1)], seed=0)
    >>> model.predict([[1.0, 2.0]]).shape, model.count_params()
    ((1, 1), 13)
    """

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
        self._layers: list[Layer] = []
        self.stop_training = False
        self.stream = Stream(self.seed)
        self.access = Access()
        self.run: Run | None = None  # the call of `fit` that is at work, or was cut off
        self.unfinished: Unfinished | None = None  # the run that a file was saved in
        self._progress = Progress()
        self._where = (backend, device, dtype)
        self._backend: Backend | None = get_backend(*self._where) if is_explicit(backend) else None
        self._settled = self._backend is not None  # else the first arrays decide
        self._network: Network | None = None
        self._state: Any = None  # a `TrainState`, or a plain tuple of its leaves
        self.compiled: Compiled | None = None
        self._program: Program | None = None
        self._inference: Any = None
        self._slots: tuple[str, ...] = ()  # the names of the optimizer's slots in the state
        self._seen = -1  # how many changes of settings there were at the last look
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
        self.access.refuse("add")
        known = isinstance(self._layers[0], Input) if self._layers else isinstance(layer, Input)
        if self._network is not None and not (known and self.step == 0):
            raise InvalidValueError(f"layers can't be added to a model that is built; got {layer!r}")
        values = {} if self._network is None else dict(zip(self.network.paths(), self.get_weights()))
        with self._as_before_on_error(layer):
            self._append(layer)
            self._network = self._state = self._program = self._inference = None
            if known:
                self.build(getattr(self._layers[0], "shape", ()))
                self.assign(values)

    def pop(self) -> Layer:
        """Take the last layer away and return it, with its weights; the others keep theirs.

        The optimizer begins anew.

        Raises:
            InvalidValueError: there is no layer.
        """
        self.access.refuse("pop")
        if not self._layers:
            raise InvalidValueError("pop takes the last layer of a model away; got a model of 0 layers")
        *rest, last = self._layers
        if self._network is None:
            self._layers = rest
            return last
        key, flats = self._network.units[-1].key, self._flats()
        if rest:
            self._lay_out(Network(rest, self.input_shape), keep=False)
        else:
            self._network = self._state = self._program = self._inference = None
        self._layers = rest
        if not any(layer is last for layer in rest):
            last.leave(self, flats, key)
        return last

    def _append(self, layer: Layer) -> None:
        if not isinstance(layer, Layer):
            raise InvalidTypeError(f"Sequential takes objects of xpnet.layers.Layer; got {layer!r}")
        self._layers.append(layer)

    def build(self, input_shape: Any) -> None:
        """Make the weights for inputs of this shape, without the batch axis (a leading None is accepted).

        Raises:
            ShapeError: a layer can't take it, or the model is built for another shape.
        """
        shape = rows_of(input_shape)
        if self._network is not None:
            self._build(shape)  # which only checks it: others may train
            return
        self.access.refuse("build")
        with self._as_before_on_error():
            self._build(shape)

    @contextmanager
    def _as_before_on_error(self, *new: Layer) -> Iterator[None]:
        """Undo what the first data, or `new` layers, have settled (shapes, weights, backend) if they don't fit."""
        before = self._backend, self._settled, self._network, self._state, self._program, self._inference
        loose = self._layers if self._network is None else ()  # a model that is built holds its layers
        layers = [(layer, dict(vars(layer))) for layer in (*loose, *new) if isinstance(layer, Layer)]
        count = len(self._layers)
        try:
            yield
        except BaseException:  # whatever it is, Ctrl-C too: undo, and let it go on
            self._backend, self._settled, self._network, self._state, self._program, self._inference = before
            del self._layers[count:]
            for layer, attributes in layers:
                vars(layer).clear()
                vars(layer).update(attributes)
            raise

    def _build(self, shape: tuple[int, ...]) -> None:
        if self._network is not None:
            check_input(self._network, shape, "inputs")
            return
        self.prepare(shape)
        self._take_weights(self.network, HostState())

    def _take_weights(self, network: Network, host: HostState) -> None:
        """Take over the values that the layers have, and draw those that they don't, unless the state has all."""
        own = {unit.key: unit.layer.values() or {} for unit in network.units}
        known = {f"{key}/{name}": value for key, values in own.items() for name, value in values.items()}
        if host.weights is None:
            weights, stats = (layout.initial(self.stream, known) for layout in network.layouts)
            host = host._replace(weights=weights, stats=stats)
        self._place(host)
        for unit in network.units:
            unit.layer.taken()

    def prepare(self, shape: tuple[int, ...], learns: Sequence[bool] | None = None) -> None:
        """Lay out the weights without making them (for `load_model`, which has them already).

        Args:
            shape: of an input. learns: whether each layer is trainable; None asks the layers.
        """
        if not self._layers:
            raise NotBuiltError("a model needs at least one layer before it is built; got 0 layers")
        network, backend = Network(self._layers, shape, learns), self.backend
        if self.compiled is not None:
            check_head(network, self.compiled.loss)
        for layer in self._layers:
            layer.join(self)
        self._network, self._backend = network, backend

    def _lay_out(self, network: Network, keep: bool) -> None:
        """Bring the weights to where they lie in a network of the same layers, or of the first of them.

        Args:
            network: what to go over to.
            keep: whether the optimizer keeps what it knows, if no weight changes its place.
        """
        state, backend = self.state, self.backend
        stay = network.is_laid_out_as(self.network)
        if not stay:
            values = dict(zip(network.paths(), self.get_weights()))
            flats = [layout.from_host(values) for layout in network.layouts]
            weights, stats = (backend.array(flat, backend.dtype_name) for flat in flats)
            state = state._replace(weights=weights, stats=stats)
        if not (stay and keep):
            state, self._slots = state._replace(slots=(), age=backend.scalar(0.0)), ()
        self._network, self._state, self._program, self._inference = network, state, None, None

    def __del__(self) -> None:
        """Leave the weights to the layers: one that is still used keeps them."""
        network = self.__dict__.get("_network")
        if network is not None and self._state is not None:
            flats = self._flats()
            for unit in network.units:
                unit.layer.leave(self, flats, unit.key)

    def _flats(self) -> Flats:
        network, state = self.network, self.state
        return Flats(self.backend, ((network.layout, state.weights), (network.stats_layout, state.stats)))

    def restore(
        self,
        weights: np.ndarray,
        stats: np.ndarray,
        slots: Sequence[np.ndarray],
        *,
        step: int,
        epoch: int,
        age: float,
        scale: Sequence[float] = (),
        unfinished: Unfinished | None = None,
    ) -> None:
        """Take in all that a file holds: flat arrays of parameters, statistics and slots, counters, a run."""
        self._place(HostState(weights, stats, tuple(slots), step, age, tuple(scale)))
        self._progress, self.unfinished = Progress(epoch), unfinished

    def _place(self, host: HostState) -> None:
        """Put host arrays onto the backend as the state before the next step."""
        backend = self.backend
        dtype = backend.dtype_name
        self._state = TrainState(
            step=backend.count(host.step),
            lr=backend.scalar(0.0),
            ok=backend.scalar(True, backend.xp.bool),
            weights=backend.array(host.weights, dtype),
            slots=tuple(backend.array(s, dtype) for s in host.slots),
            stats=backend.array(host.stats, dtype),
            age=backend.scalar(host.age),
            sums=zero_sums(backend, ()) if host.sums is None else carried_sums(backend, host.sums),
            scale=first_scale(backend, *host.scale),
        )

    def snapshot(self) -> HostState:
        """Return host copies of what the state holds, as of the last whole step."""
        with self.access.lock:
            state, backend = self.state, self.backend

            def copied(a: Array) -> np.ndarray:
                return np.array(backend.host(a))

            return HostState(
                copied(state.weights),
                copied(state.stats),
                tuple(map(copied, state.slots)),
                backend.counted(state.step),
                float(backend.host(state.age)),
                tuple(float(backend.host(a)) for a in state.scale),
                host_sums(backend, state.sums),
                self._progress,
            )

    def rewind(self) -> None:
        """Set the guard's flag back to before a step that was held back."""
        self.replace_state(ok=self.backend.scalar(True, self.backend.xp.bool))

    def replace_state(self, **parts: Any) -> None:
        """Exchange parts of the state."""
        with self.access.lock:
            self.state = self.state._replace(**parts)

    def begin_epoch(self, first_step: int, rows: int, batch_size: int) -> None:
        """Note that an epoch has begun, over so many rows, with the step of that number."""
        self._progress = Progress(self.epoch, first_step, rows, batch_size)

    def end_epoch(self, count: int = 1) -> None:
        """End an epoch, and count it (or not)."""
        self._progress = Progress(self.epoch + count)

    @property
    def commit(self) -> Commit:
        """What ends steps: it takes new states over."""
        return Commit(self.access, self)

    @contextmanager
    def reading(self) -> Iterator[tuple[Array, Array]]:
        """Look at weights and statistics, as of the last whole step, in a block of code."""

        def copied() -> tuple[Array, Array]:
            return self.backend.copy(self.state.weights), self.backend.copy(self.state.stats)

        with self.access.read(copied, lambda: (self.state.weights, self.state.stats)) as found:
            yield found

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
        return self._state is not None

    @property
    def network(self) -> Network:
        """The built layers and the layout of their weights."""
        return _there(self._network)

    @property
    def state(self) -> TrainState:
        """The arrays that a step carries on."""
        state = self._state
        return state if type(state) is TrainState else TrainState._make(_there(state))

    @state.setter
    def state(self, state: TrainState) -> None:
        self._state = state

    @property
    def step(self) -> int:
        """The training steps taken since the model was made: what the masks are functions of."""
        with self.access.lock:
            return 0 if self._state is None else self.backend.counted(self.state.step)

    @step.setter
    def step(self, step: int) -> None:
        self.replace_state(step=self.backend.count(number("step", step, 0, LARGEST_COUNT, integer=True)))

    @property
    def epoch(self) -> int:
        """The epochs that were trained since the model was made: what the order of the rows is a function of."""
        return self._progress.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._progress = Progress(number("epoch", epoch, 0, LARGEST_COUNT, integer=True))

    @property
    def backend(self) -> Backend:
        """Where the model computes: `.name`, `.device`, `.dtype_name`, `.xp`."""
        return self._backend or get_backend(*self._where)

    @property
    def weights(self) -> Array:
        """A copy of the trainable weights as one flat array of the backend, shape (size,)."""
        with self.access.lock:
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
    def optimizer(self) -> Optimizer | None:
        """The optimizer that `compile` was given; its `learning_rate` can be set."""
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
        layers = {id(layer): layer for layer in self._layers if layer.trainable}.values()
        trainable = sum(math.prod(spec.shape) for layer in layers for spec in layer.specs if spec.trainable)
        total = self.count_params()
        tail = f"Parameters: {total:,} ({trainable:,} trainable, {total - trainable:,} not), seed {self.seed}"
        text = "\n".join([f"Model {self.name!r}", rule, lines[0], rule, *lines[1:], rule, tail])
        (print_fn or print)(text)

    # Weights ------------------------------------------------------------------------------------------

    def get_weights(self) -> list[np.ndarray]:
        """Return host copies of all parameters and statistics, layer by layer."""
        return list(self._host_values().values())

    def _host_values(self) -> dict[str, np.ndarray]:
        with self.access.lock:
            state = self.state
            return self.network.host_values(self.backend, state.weights, state.stats)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set all parameters and statistics, in the order of `get_weights`.

        Raises:
            ShapeError: their number or a shape does not fit; nothing is changed then.
        """
        paths = self.network.paths()
        if len(weights) != len(paths):
            raise ShapeError(f"set_weights takes {len(paths)} arrays for this model; got {len(weights)}")
        self.assign(dict(zip(paths, map(numeric, weights))))

    def assign(self, values: Mapping[str, Any]) -> None:
        """Set some parameters and statistics by path, such as "dense_1/kernel"."""
        network, backend = self.network, self.backend
        with self.access.lock:
            self.access.refuse("set_weights", others=True)
            now = {**self._host_values(), **values}
            flats = [layout.from_host(now) for layout in network.layouts]
            weights, stats = (backend.array(flat, backend.dtype_name) for flat in flats)
            self.replace_state(weights=weights, stats=stats)

    def holds(self, layer: Layer) -> bool:
        """Return whether the layer's weights are part of the model's."""
        return self._state is not None and self.network.key(layer) is not None

    def layer_values(self, layer: Layer) -> dict[str, np.ndarray]:
        """Return the host copies of one layer's parameters and statistics by name."""
        with self.access.lock:
            return self._flats().values(str(self.network.key(layer)), [spec.name for spec in layer.specs])

    def set_layer_weights(self, layer: Layer, values: Sequence[Any]) -> None:
        """Set one layer's parameters and statistics."""
        key = self.network.key(layer)
        self.assign({f"{key}/{spec.name}": value for spec, value in zip(layer.specs, values)})

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
        self.access.refuse("to")
        old = self.backend
        name = old.name if backend is None else backend
        if backend is None and device is None:
            device = old.device_name
        new = get_backend(name, device, dtype or old.policy)
        self._move(new)
        self._where, self._settled = (new, None, None), True
        return self

    def _move(self, new: Backend) -> None:
        host = None if self._state is None else self.snapshot()
        self._backend, self._program, self._inference = new, None, None
        if host is not None:
            self._place(host)

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
            graph: whether a step may be recorded once and replayed (NumPy; see `xpnet.replay`).

        Raises:
            UnknownNameError: a name is not known. InvalidValueError: softmax or sigmoid and then `from_logits`.
        """
        self.access.refuse("compile")
        compiled = check_compile(optimizer, loss, metrics, steps_per_execution, graph, weighted_metrics)
        if self._network is not None:
            check_head(self._network, compiled.loss)
        if self._network is not None and self._state is not None:
            network = Network(self._layers, self._network.input_shape)
            self._lay_out(network, keep=compiled.optimizer is self.optimizer)
        self.compiled, self._program = compiled, None

    def program(self) -> Program:
        """Return what `compile` was given, made ready for the backend (once)."""
        self.refresh()
        if self._program is None:
            self._program = make_program(self._need_compiled(), self.network, self.backend, self.stream)
            self._give_slots(tuple(self._program.optimizer.slots))
        return self._program

    def _give_slots(self, names: tuple[str, ...]) -> None:
        """Let the state have the optimizer's slots: those that it has already stay as they are."""
        state, zeros = self.state, self.backend.zeros
        known = dict(zip(self._slots or names, state.slots))
        slots = tuple(known[name] if name in known else zeros(state.weights.shape) for name in names)
        self.state, self._slots = state._replace(slots=slots), names

    def refresh(self) -> None:
        """Take up settings that have changed since the last look: they count from the next step on."""
        if self._seen == changes.count or self._network is None or self._state is None:
            return
        with self.access.lock:
            if self.access.taken:  # by a thread that will look itself, before its next step
                return
            seen, network = changes.count, self._network
            if network.settings != Network.settings_of(self._layers):
                self._lay_out(Network(self._layers, network.input_shape, network.learns), keep=True)
            elif self._program is not None and self._program.settings != self._need_compiled().settings():
                self._program = None
            self._seen = seen

    def _need_compiled(self) -> Compiled:
        if self.compiled is None:
            raise NotBuiltError("the model must be compiled first: call compile(optimizer, loss); got no loss")
        return self.compiled

    def inference(self) -> Any:
        """Return the compiled forward pass (once)."""
        self.refresh()
        if self._inference is None:
            self._inference = loop.make_inference(self)
        return self._inference

    def _ready(self, data: Data, build: bool) -> None:
        """Settle the backend by the first arrays, and build or compare shapes."""
        if not build and not self.built:
            raise NotBuiltError("the model must be built first: call build(input_shape), or fit; got 0 weights")
        if not self._settled:
            wanted = resolve((data.x.values,), None, *self._where[1:])
            if self._backend is not None and self._backend is not wanted:
                self._move(wanted)
            self._backend = wanted
        if not self.built:
            self._build(data.x.shape)
        elif data.given_shape == self.input_shape != data.x.shape:
            raise ShapeError(
                f"x must have shape {('batch', *self.input_shape)} for this model: for one row pass x[None]; got "
                f"{data.given_shape}"
            )
        elif len(data.given_shape) == 1 and self.input_shape != data.x.shape:
            shape = ("batch", *self.input_shape)
            raise ShapeError(f"x must have shape {shape} for this model; got {data.given_shape}")
        else:
            check_input(self.network, data.x.shape)
        self._settled = True

    def _checked(self, x: Any, y: Any, sample_weight: Any = None, what: str = "") -> Data:
        compiled = self._need_compiled()
        data = Data(x, y, sample_weight)  # what is wrong with x comes first
        if y is None:
            raise InvalidTypeError(f"{what}targets y are needed; got None")
        return self._check_data(data, compiled, build=True)

    def _check_data(self, data: Data, compiled: Compiled, build: bool) -> Data:
        self._ready(data, build)
        check_head(self.network, compiled.loss)
        out = self.network.output_shape
        limit = float(np.finfo(self.backend.dtype_name).max)
        data.check(limit, lambda y, rows: compiled.loss.check(y, (rows, *out)))
        return data

    def _training_data(
        self, x: Any, y: Any, sample_weight: Any, validation_data: Any, share: float
    ) -> tuple[Data, Data | None]:
        """Return the checked training data, and those for validation if there are any."""
        data = self._checked(x, y, sample_weight)
        if validation_data is None:
            return data.split(share) if share else (data, None)
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
            kind = type(validation_data).__name__
            raise InvalidTypeError(f"validation_data must be (x, y) or (x, y, sample_weight); got {kind}")
        xv, yv, *wv = validation_data
        return data, self._checked(xv, yv, wv[0] if wv else None, "validation_data: ")

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
        compiled = self._need_compiled()
        batch_size = number("batch_size", 32 if batch_size is None else batch_size, 1, integer=True)
        epochs = number("epochs", epochs, 0, integer=True)
        initial_epoch = number("initial_epoch", initial_epoch, 0, integer=True)
        validation_freq = number("validation_freq", validation_freq, 1, integer=True)
        validation_batch_size = self._batch_size(validation_batch_size, "validation_batch_size", batch_size)
        share = number("validation_split", validation_split, 0, 1, open_high=True)
        per_execution = compiled.steps_per_execution if steps_per_execution is None else steps_per_execution
        per_execution = number("steps_per_execution", per_execution, 1, integer=True)
        resolve_verbose(verbose)
        callbacks = check_callbacks(callbacks)
        factors = class_factors(class_weight)
        with self.access.train("fit"):
            with self._as_before_on_error():
                data, validation = self._training_data(x, y, sample_weight, validation_data, share)
                self.program()
            return loop.fit(
                self,
                data,
                batch_size=min(batch_size, len(data)),
                epochs=epochs,
                initial_epoch=initial_epoch,
                shuffle=bool(shuffle),
                verbose=verbose,
                callbacks=callbacks,
                validation=validation,
                validation_batch_size=validation_batch_size,
                validation_freq=validation_freq,
                class_weight=factors,
                steps_per_execution=per_execution,
            )

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
        factors = class_factors(class_weight)
        with self.access.train("train_on_batch"):
            with self._as_before_on_error():
                data = self._checked(x, y, sample_weight)
                program = self.program()
            return self._scores(loop.train_on_batch(self, program, data, factors), return_dict)

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
        compiled = self._need_compiled()
        by_batch = compiled.loss.reduction in ("sum", "mean_with_sample_weight")
        size = self._batch_size(batch_size, default=32 if by_batch else 1024)
        data = Data(x, y, sample_weight)
        if y is None:
            raise InvalidTypeError("targets y are needed; got None")
        self._check_data(data, compiled, build=False)
        return self._scores(loop.evaluate(self, data, size), return_dict)

    def predict(self, x: Any, batch_size: int | None = None, verbose: Any = "auto") -> Array:
        """Return the outputs, shape (rows, ...), in the library of `x`; worked out in batches.

        Raises:
            NotBuiltError: the model has no weights yet. ShapeError: `x` has other features.
        """
        resolve_verbose(verbose)
        size = self._batch_size(batch_size)
        if not self.built:
            raise NotBuiltError("predict needs a built model: call build(input_shape), or fit; got 0 weights")
        data = Data(x)
        self._ready(data, build=False)
        data.check(float(np.finfo(self.backend.dtype_name).max))
        outputs, backend = loop.predict(self, data, size), data.x.home
        if backend.shares(outputs, data.x.values):  # no layer has computed anything
            outputs = backend.copy(outputs)
        return outputs

    def __call__(self, x: Any) -> Array:
        """Return `predict(x)`; builds the model at first use."""
        if self.built:
            return self.predict(x)  # with nothing to undo: others may train
        self.access.refuse("a model that is not built")
        with self._as_before_on_error():
            self._ready(Data(x), build=True)
            return self.predict(x)

    def _batch_size(self, batch_size: int | None, what: str = "batch_size", default: int = 1024) -> int:
        return number(what, default if batch_size is None else batch_size, 1, integer=True)

    def _scores(self, scores: dict[str, Any], return_dict: bool) -> Any:
        values = list(scores.values())
        return scores if return_dict else values if len(values) > 1 else values[0]

    # Files and copies ---------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Write weights, architecture, optimizer state, counters and seed to one safetensors file.

        Read it with `xpnet.load_model`, on any backend.
        """
        from .saving import save_model

        save_model(self, path)

    def __getstate__(self) -> dict[str, Any]:
        """Return what `copy.deepcopy` and pickle keep: host arrays, no compiled code."""
        left = dict.fromkeys(("_program", "_inference", "_network", "stream", "access", "run", "_state"))
        kept = {**self.__dict__, **left}
        backend = self.backend
        kept["_where"] = (None, self._where[1], self._where[2])
        kept["_backend"] = (backend.name, backend.device_name, backend.policy) if self._backend else None
        kept["_explicit"] = is_explicit(self._where[0])
        kept["_shape"] = self._network and (self._network.input_shape, self._network.learns)
        host = None if self._state is None else self.snapshot()
        # the layers bring the weights, unless these may have changed by then
        kept["_host"] = host if host is None or self.access.training else host._replace(weights=None, stats=None)
        return kept

    def __setstate__(self, kept: dict[str, Any]) -> None:
        """Take in what `__getstate__` gave, on the same backend."""
        host, shape, where = kept.pop("_host"), kept.pop("_shape"), kept["_backend"]
        explicit = kept.pop("_explicit")
        self.__dict__.update(kept)
        self.stream, self.access = Stream(self.seed), Access()
        self._backend = get_backend(*where) if where else None
        if explicit and self._backend is not None:
            self._where = (self._backend, None, None)
        if shape is not None:
            self._network = Network(self._layers, *shape)
            for layer in self._layers:
                layer.join(self)
            self._take_weights(self._network, host)
            self._progress = Progress(self.epoch)

    def __copy__(self) -> Sequential:
        """Return a model of its own, as `copy.deepcopy` does: weights and layers are not shared between models."""
        return copy.deepcopy(self)


def _there(part: T | None) -> T:
    """Return a part that building makes, or raise."""
    if part is None:
        raise NotBuiltError(
            "the model has no weights before it is built: call build(input_shape), or fit; got 0 weights"
        )
    return part
