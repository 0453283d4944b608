"""A model's weights on its backend, and the compiled programs that use them: the core of `Sequential`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from ..backend import Array, Backend, get_backend, is_explicit, np, resolve
from ..core.params import Flats
from ..core.random import Stream
from ..core.settings import changes
from ..errors import NotBuiltError, ShapeError
from ..kernels.context import Context
from ..layers import Layer
from ..optimizers import Optimizer
from .access import Access, Commit
from .data import Data
from .network import Network, check_input
from .program import Compiled, Program, check_head, make_program
from .run import Run, Unfinished
from .state import HostState, Progress
from .step import TrainState

__all__ = ["Session"]

T = TypeVar("T")


class Session:
    """The layers of a model, built on a backend, and the training state.

    Args:
        layers: in order; the list may grow until the model is built.
        seed: seed of the weights, shuffles and masks.
        backend, device, dtype: where to compute; None lets the first arrays decide.

    Attributes:
        stream: the random streams of the seed. access: controls which thread trains or reads.
        compiled: the arguments of `Sequential.compile`, or None.
        run: the running or interrupted call of `fit`. unfinished: the run during which the loaded file was saved.
        progress: the epochs so far.
    """

    def __init__(
        self, layers: list[Layer], seed: int, backend: str | Backend | None, device: str | None, dtype: str | None
    ) -> None:
        self.layers, self.stream, self.access = layers, Stream(seed), Access()
        self.compiled: Compiled | None = None
        self.run: Run | None = None
        self.unfinished: Unfinished | None = None
        self.progress = Progress()
        self._where = (backend, device, dtype)
        self._backend: Backend | None = get_backend(*self._where) if is_explicit(backend) else None
        self._settled = self._backend is not None  # else the first arrays decide
        self._slots: tuple[str, ...] = ()  # the names of the optimizer's slots in the state
        self._seen = -1  # `changes.count` when settings were last compared
        self.clear()

    def clear(self) -> None:
        """Discard everything that building makes."""
        self._network: Network | None = None
        self._state: Any = None  # a `TrainState`, or a plain tuple of its leaves
        self._program: Program | None = None
        self._inference: dict[int | None, Any] = {}  # forward passes by the last layer

    # Where ------------------------------------------------------------------------------------------------

    @property
    def backend(self) -> Backend:
        """The backend: the one in use, else the one that would be chosen now."""
        return self._backend or get_backend(*self._where)

    def move(self, backend: str | Backend | None, device: str | None, dtype: str | None) -> None:
        """Move all state to another backend, device or precision."""
        old = self.backend
        if backend is None and device is None:
            device = old.device_name
        new = get_backend(old.name if backend is None else backend, device, dtype or old.policy)
        self._move(new)
        self._where, self._settled = (new, None, None), True

    def _move(self, new: Backend) -> None:
        host = None if self._state is None else self.snapshot()
        self._backend, self._program, self._inference = new, None, {}
        if host is not None:
            self.place(host)

    # Building ---------------------------------------------------------------------------------------------

    @property
    def built(self) -> bool:
        """Whether the weights exist."""
        return self._state is not None

    @property
    def laid_out(self) -> bool:
        """Whether the shapes are known, because building has begun."""
        return self._network is not None

    @property
    def network(self) -> Network:
        """The built layers and the layout of their weights."""
        return _required(self._network)

    def build(self, shape: tuple[int, ...]) -> None:
        """Make the weights for inputs of this shape; if they exist, check the shape."""
        if self._network is not None:
            check_input(self._network, shape, "inputs")
            return
        self.prepare(shape)
        self.take_weights(HostState())

    def prepare(self, shape: tuple[int, ...], learns: Sequence[bool] | None = None) -> None:
        """Lay out the weights without drawing them (`load_model` reads them from a file).

        Args:
            shape: of an input. learns: whether each layer is trainable; None asks the layers.
        """
        if not self.layers:
            raise NotBuiltError("a model needs at least one layer before it is built; got 0 layers")
        network, backend = Network(self.layers, shape, learns), self.backend
        if self.compiled is not None:
            check_head(network, self.compiled.loss)
        for layer in self.layers:
            layer.join(self)
        self._network, self._backend = network, backend

    def take_weights(self, host: HostState) -> None:
        """Adopt the values that the layers hold and draw the others, unless the host state has all weights."""
        network = self.network
        own = {unit.key: unit.layer.values() or {} for unit in network.units}
        known = {f"{key}/{name}": value for key, values in own.items() for name, value in values.items()}
        if host.weights is None:
            weights, stats = (layout.initial(self.stream, known) for layout in network.layouts)
            host = host._replace(weights=weights, stats=stats)
        self.place(host)
        for unit in network.units:
            unit.layer.drop_weights()

    def adopt_network(self, network: Network, keep: bool) -> None:
        """Adopt another layout of the same layers, or of the first of them, and rearrange the weights.

        Args:
            network: the new layout.
            keep: whether the optimizer keeps its slots and age if no weight changes its place.
        """
        state, backend = self.state, self.backend
        stay = network.is_laid_out_as(self.network)
        if not stay:
            values = self.values()
            flats = [layout.from_host(values) for layout in network.layouts]
            weights, stats = (backend.array(flat, backend.dtype_name) for flat in flats)
            state = state._replace(weights=weights, stats=stats)
        if not (stay and keep):
            state, self._slots = state._replace(slots=(), age=backend.scalar(0.0)), ()
        self._network, self._state, self._program, self._inference = network, state, None, {}

    @contextmanager
    def as_before_on_error(self, *new: Layer) -> Iterator[None]:
        """On an exception, undo what the first data or `new` layers determined: shapes, weights, backend."""
        names = ("_backend", "_settled", "_network", "_state", "_program", "_inference")
        before = {name: getattr(self, name) for name in names}
        loose = self.layers if self._network is None else ()  # once built, the layers do not change
        layers = [(layer, dict(vars(layer))) for layer in (*loose, *new) if isinstance(layer, Layer)]
        count = len(self.layers)
        try:
            yield
        except BaseException:  # Ctrl-C too: undo, then re-raise
            vars(self).update(before)
            del self.layers[count:]
            for layer, attributes in layers:
                vars(layer).clear()
                vars(layer).update(attributes)
            raise

    def compile(self, compiled: Compiled) -> None:
        """Set optimizer, loss and metrics; apply changes of `trainable` made since the last call."""
        keep = self.compiled is not None and compiled.optimizer is self.compiled.optimizer
        if self._network is not None:
            check_head(self._network, compiled.loss)
            if self._state is not None:
                self.adopt_network(Network(self.layers, self._network.input_shape), keep)
        self.compiled, self._program = compiled, None

    # The state ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> TrainState:
        """The arrays that a step updates."""
        state = self._state
        return state if type(state) is TrainState else TrainState._make(_required(state))

    @state.setter
    def state(self, state: TrainState) -> None:
        self._state = state

    def replace_state(self, **parts: Any) -> None:
        """Replace fields of the state."""
        with self.access.lock:
            self.state = self.state._replace(**parts)

    @property
    def step(self) -> int:
        """The training steps taken."""
        with self.access.lock:
            return 0 if self._state is None else self.backend.counted(self.state.step)

    def place(self, host: HostState) -> None:
        """Copy host arrays to the backend as the state before the next step."""
        self._state = host.on(self.backend)

    def snapshot(self) -> HostState:
        """Return a host copy of the state, as of the last complete step."""
        with self.access.lock:
            return HostState.copied(self.state, self.backend, self.progress)

    @property
    def commit(self) -> Commit:
        """What ends steps by storing their new state."""
        return Commit(self.access, self)

    @contextmanager
    def reading(self) -> Iterator[tuple[Array, Array]]:
        """Read weights and statistics, as of the last complete step, in a `with` block."""

        def copied() -> tuple[Array, Array]:
            return self.backend.copy(self.state.weights), self.backend.copy(self.state.stats)

        with self.access.read(copied, lambda: (self.state.weights, self.state.stats)) as found:
            yield found

    def all_accepted(self) -> bool:
        """Return whether the guard accepted all steps; if not, reset its flag."""
        ok = bool(self.backend.host(self.state.ok))
        if not ok:
            self.replace_state(ok=self.backend.scalar(True, self.backend.xp.bool))
        return ok

    def begin_epoch(self, first_step: int, rows: int, batch_size: int) -> None:
        """Record the beginning of an epoch: its first step, rows and batch size."""
        self.progress = Progress(self.progress.epoch, first_step, rows, batch_size)

    def end_epoch(self, count: int = 1) -> None:
        """End an epoch; `count` is 0 if it was not completed."""
        self.progress = Progress(self.progress.epoch + count)

    # Programs -------------------------------------------------------------------------------------------------

    def need_compiled(self) -> Compiled:
        """Return the arguments of `compile`, or raise `NotBuiltError`."""
        if self.compiled is None:
            raise NotBuiltError("the model must be compiled first: call compile(optimizer, loss); got no loss")
        return self.compiled

    def program(self) -> Program:
        """Return the compiled training program, remade if settings have changed."""
        self.refresh()
        if self._program is None:
            self._program = make_program(self.need_compiled(), self.network, self.backend, self.stream)
            self._give_slots(self._program.optimizer)
        return self._program

    def _give_slots(self, optimizer: Optimizer) -> None:
        """Give the state the optimizer's slots; keep those that it already has."""
        state, names = self.state, tuple(optimizer.slots)
        known = dict(zip(self._slots or names, state.slots))
        if tuple(known) != names:
            first = optimizer.first_slots(self.backend, tuple(state.weights.shape))
            self.state = state._replace(slots=tuple(known.get(name, slot) for name, slot in zip(names, first)))
        self._slots = names

    def inference(self, upto: int | None = None) -> Any:
        """Return the compiled forward pass `forward(weights, stats, x) -> y`.

        Args:
            upto: the position of the last layer to apply, or None for all.
        """
        self.refresh()
        if upto not in self._inference:
            backend, network = self.backend, self.network
            units = None if upto is None else network.units[: upto + 1]

            def forward(weights: Array, stats: Array, x: Array) -> Array:
                return network.forward(Context(backend), weights, stats, x, units)[0]

            self._inference[upto] = backend.jit(forward)
        return self._inference[upto]

    def refresh(self) -> None:
        """Apply settings that have changed since the last call; they take effect from the next step."""
        if self._seen == changes.count or self._network is None or self._state is None:
            return
        with self.access.lock:
            if self.access.trained_elsewhere:  # the training thread does this itself before its next step
                return
            seen, network = changes.count, self._network
            if network.settings != Network.settings_of(self.layers):
                self.adopt_network(Network(self.layers, network.input_shape, network.learns), keep=True)
            elif self._program is not None and self._program.settings != self.need_compiled().settings():
                self._program = None
                if self._slots:
                    self._give_slots(self.need_compiled().optimizer)
            self._seen = seen

    # The layers' weights --------------------------------------------------------------------------------------

    def values(self) -> dict[str, np.ndarray]:
        """Return host copies of all parameters and statistics by path, layer by layer."""
        with self.access.lock:
            return self.network.host_values(self.backend, self.state.weights, self.state.stats)

    def assign(self, values: Mapping[str, Any]) -> None:
        """Set some parameters and statistics by path, such as "dense_1/kernel"."""
        network, backend = self.network, self.backend
        with self.access.lock:
            self.access.refuse("set_weights", others=True)
            now = {**self.values(), **values}
            flats = [layout.from_host(now) for layout in network.layouts]
            weights, stats = (backend.array(flat, backend.dtype_name) for flat in flats)
            self.replace_state(weights=weights, stats=stats)

    def holds(self, layer: Layer) -> bool:
        """Return whether the state contains the layer's weights."""
        return self._state is not None and self.network.key(layer) is not None

    def layer_values(self, layer: Layer) -> dict[str, np.ndarray]:
        """Return host copies of one layer's parameters and statistics by name."""
        with self.access.lock:
            return self.flats().values(str(self.network.key(layer)), [spec.name for spec in layer.specs])

    def weight(self, layer: Layer, name: str) -> Array:
        """Return a copy of one parameter or statistic, on the backend."""
        path = f"{self.network.key(layer)}/{name}"
        with self.access.lock:
            for layout, flat in self.flats().parts:
                if path in layout.slices:
                    part = self.backend.copy(flat[..., layout.slices[path]])
                    return self.backend.xp.reshape(part, layout.shapes[path])
        raise NotBuiltError(f"the model has no weight of this name; got {path!r}")

    def set_layer_weights(self, layer: Layer, values: Sequence[Any]) -> None:
        """Set one layer's parameters and statistics."""
        key = self.network.key(layer)
        self.assign({f"{key}/{spec.name}": value for spec, value in zip(layer.specs, values)})

    def flats(self) -> Flats:
        """Return the layouts with the flat arrays of weights and statistics."""
        network, state = self.network, self.state
        return Flats(self.backend, ((network.layout, state.weights), (network.stats_layout, state.stats)))

    # Data -------------------------------------------------------------------------------------------------

    def admit(self, data: Data, build: bool) -> Data:
        """Check data against the model before the first step; the first data choose its backend and build it.

        Args:
            data: converted data. build: whether to build a model that is not built.

        Raises:
            ShapeError, InvalidValueError: the data do not fit. NotBuiltError: `build` is false and there are no
                weights.
        """
        self._settle(data, build)
        loss, out = None if self.compiled is None else self.compiled.loss, self.network.output_shape
        if data.y is not None and loss is not None:
            check_head(self.network, loss)
        limit = float(np.finfo(self.backend.dtype_name).max)
        data.check(limit, None if loss is None else lambda y, rows: loss.check(y, (rows, *out)))
        return data

    def _settle(self, data: Data, build: bool) -> None:
        """Choose the backend from the first arrays, then build or compare shapes."""
        if not build and not self.built:
            raise NotBuiltError("the model must be built first: call build(input_shape), or fit; got 0 weights")
        if not self._settled:
            wanted = resolve((data.x.values,), None, *self._where[1:])
            if self._backend is not None and self._backend is not wanted:
                self._move(wanted)
            self._backend = wanted
        given, shape = data.given_shape, data.x.shape
        if not self.built:
            self.build(shape)
        elif shape != self.network.input_shape and (len(given) == 1 or given == self.network.input_shape):
            hint = ": for one row pass x[None]" if given == self.network.input_shape else ""
            raise ShapeError(
                f"x must have shape {('batch', *self.network.input_shape)} for this model{hint}; got {given}"
            )
        else:
            check_input(self.network, shape)
        self._settled = True

    # Copies -----------------------------------------------------------------------------------------------

    def __del__(self) -> None:
        """Pass the weights to the layers, so that a layer still in use keeps them."""
        network = self.__dict__.get("_network")
        if network is not None and self._state is not None:
            flats = self.flats()
            for unit in network.units:
                unit.layer.leave(self, flats, unit.key)

    def __getstate__(self) -> dict[str, Any]:
        """Return what `copy.deepcopy` and pickle keep: host arrays, no compiled code."""
        left = dict.fromkeys(("_program", "_network", "stream", "access", "run", "_state")) | {"_inference": {}}
        kept = {**self.__dict__, **left, "_seed": self.stream.seed}
        backend = self.backend
        kept["_where"] = (None, self._where[1], self._where[2])
        kept["_backend"] = (backend.name, backend.device_name, backend.policy) if self._backend else None
        kept["_explicit"] = is_explicit(self._where[0])
        kept["_shape"] = self._network and (self._network.input_shape, self._network.learns)
        host = None if self._state is None else self.snapshot()
        # the layers carry the weights, unless training may change them meanwhile
        kept["_host"] = host if host is None or self.access.training else host._replace(weights=None, stats=None)
        return kept

    def __setstate__(self, kept: dict[str, Any]) -> None:
        """Restore what `__getstate__` returned, on the same backend."""
        host, shape, where = kept.pop("_host"), kept.pop("_shape"), kept["_backend"]
        explicit, seed = kept.pop("_explicit"), kept.pop("_seed")
        self.__dict__.update(kept)
        self.stream, self.access = Stream(seed), Access()
        self._backend = get_backend(*where) if where else None
        if explicit and self._backend is not None:
            self._where = (self._backend, None, None)
        if shape is not None:
            self._network = Network(self.layers, *shape)
            for layer in self.layers:
                layer.join(self)
            self.take_weights(host)
            self.progress = Progress(self.progress.epoch)


def _required(part: T | None) -> T:
    """Return `part`, which building makes, or raise if it is None."""
    if part is None:
        raise NotBuiltError(
            "the model has no weights before it is built: call build(input_shape), or fit; got 0 weights"
        )
    return part
