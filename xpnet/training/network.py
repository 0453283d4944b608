"""A sequence of layers on one flat array of weights: a pure function and its derivative."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..backend import Array, Backend, np
from ..core.config import fingerprint, snake_case
from ..core.params import DrawSpec, Layout, ParamSpec
from ..core.random import Stream, keep_mask
from ..errors import InvalidValueError, ShapeError, unknown_name
from ..kernels.context import Context
from ..layers import Layer
from ..layers.base import pair

__all__ = ["Network", "Unit"]

Watch = Callable[[str, str, Array], None]


class Unit(NamedTuple):
    """A layer at its position; a layer used twice has two positions and one key."""

    position: int
    key: str
    layer: Layer


class Network:
    """Layers built for one input shape, and the layout of their parameters.

    Args:
        layers: in order. input_shape: without the batch axis.
        learns: whether each layer is trainable; None asks the layers.

    Attributes:
        settings: of the layers (see `settings_of`). learns: as above. frozen: keys of the layers that are not
            trainable.
        units: the layers at their positions. layout: of the trainable parameters. stats_layout: of the running
            statistics and frozen parameters. draws: (key, slot, spec) of the masks.
        input_shape, output_shape: without the batch axis.

    Raises:
        ShapeError: a layer does not fit its predecessor. InvalidValueError: two layers have the same name.
    """

    def __init__(
        self, layers: Sequence[Layer], input_shape: tuple[int, ...], learns: Sequence[bool] | None = None
    ) -> None:
        self.input_shape = shape = input_shape
        self.units: list[Unit] = []
        trainable: list[tuple[str, int, ParamSpec]] = []
        fixed: list[tuple[str, int, ParamSpec]] = []
        self.draws: list[tuple[str, int, DrawSpec]] = []
        seen: set[int] = set()
        name_layers(layers)
        self.settings = self.settings_of(layers)
        self.learns = [bool(layer.trainable) for layer in layers] if learns is None else list(learns)
        self.frozen = frozenset(str(layer.name) for layer, own in zip(layers, self.learns) if not own)
        for position, layer in enumerate(layers):
            shape = layer.ensure_built(shape)
            self.units.append(Unit(position, str(layer.name), layer))
            self.draws += [(f"{position}/{d.name}", (position << 16) + i, d) for i, d in enumerate(layer.draws)]
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            for i, spec in enumerate(layer.specs):
                entry = (f"{layer.name}/{spec.name}", (position << 16) + i, spec)
                (trainable if spec.trainable and self.learns[position] else fixed).append(entry)
        self.output_shape = shape
        self._keys = {id(unit.layer): unit.key for unit in self.units}
        self.layout, self.stats_layout = Layout(trainable), Layout(fixed)
        self._paths: dict[str, dict[str, str]] = {}  # of the trainable parameters, by layer and name
        for path in self.layout.slices:
            key, _, name = path.rpartition("/")
            self._paths.setdefault(key, {})[name] = path
        self.first_trainable = min(
            (u.position for u in self.units if u.key in self._paths), default=len(self.units)
        )
        self._unchecked = {unit.key for unit in self.units}  # layers whose backward was never called
        # backends that update in place use the same few buffers at every step
        self._views: list[tuple[Array, Array, dict[str, dict[str, Array]]]] = []
        self._gradient_buffers: tuple[Array, dict[str, dict[str, Array]], dict[str, Array]] | None = None

    @staticmethod
    def settings_of(layers: Sequence[Layer]) -> Any:
        """Return a value that compares equal until a setting changes that affects the network."""
        return fingerprint(list(layers), leave_out=("trainable", "dtype"))

    def parts(self) -> list[Any]:
        """Return the objects whose code a step runs: layers and their activations."""
        layers = [unit.layer for unit in self.units]
        return [*layers, *(a for a in (getattr(layer, "activation", None) for layer in layers) if a is not None)]

    def score_units(self, activation: str) -> list[Unit] | None:
        """Return the units, the last one without this activation; None if it ends in another one."""
        position, key, layer = self.units[-1]
        bare = layer.without_activation(activation)
        return None if bare is None else [*self.units[:-1], Unit(position, key, bare)]

    def masks(self, stream: Stream, step: int, rows: int) -> dict[str, np.ndarray]:
        """Return the host masks of a training step on a batch of `rows` rows."""
        return {
            key: keep_mask(stream, slot, step, (rows, *draw.shape), draw.rate) for key, slot, draw in self.draws
        }

    def params(self, ctx: Context, weights: Array, stats: Array) -> dict[str, dict[str, Array]]:
        """Return, by layer key, the parameters and statistics by name."""
        for known_weights, known_stats, found in self._views:
            if known_weights is weights and known_stats is stats:
                return found
        result: dict[str, dict[str, Array]] = {unit.key: {} for unit in self.units}
        for layout, flat in ((self.layout, weights), (self.stats_layout, stats)):
            for path, view in layout.views(ctx.xp, flat).items():
                key, _, name = path.rpartition("/")
                result[key][name] = view
        if ctx.inplace:
            self._views = [(weights, stats, result), *self._views[:2]]
        return result

    def forward(
        self,
        ctx: Context,
        weights: Array,
        stats: Array,
        x: Array,
        units: Sequence[Unit] | None = None,
        watch: Watch | None = None,
    ) -> tuple[Array, Callable[[Array], Array]]:
        """Return the output, and `backward(dy) -> flat gradient`.

        Args:
            weights, stats: flat arrays. x: shape (..., batch, *input_shape).
            units: the units to apply, or None for all. watch: called with every output and gradient.
        """
        units = self.units if units is None else units
        params = self.params(ctx, weights, stats)
        ctx.frozen = self.frozen
        backs = []
        shapes: dict[int, tuple[int, ...]] = {}  # of the inputs of layers not yet checked
        for unit in units:
            ctx.place = unit[:2]
            try:
                found = unit.layer.forward(ctx, params[unit.key], x)
                if unit.key in self._unchecked:
                    shapes[unit.position] = tuple(x.shape)
                    found = pair(unit.layer, "forward", found)
                x, back = found
            except Exception as error:
                error.add_note(f"in layer {unit.key!r}")
                raise
            if watch is not None:
                watch("output", unit.key, x)
            backs.append((unit, back))

        def backward(dy: Array) -> Array:
            out = self._gradient_out(ctx) if ctx.inplace else None
            into = dict(out[1]) if out else {}
            grads: dict[str, Array] = {}
            for (position, key, layer), back in reversed(backs):
                if position < self.first_trainable:
                    break
                # a layer that is used twice writes one of its gradients there, and the other is added
                dy, parts = back(dy, into.pop(key, {}), position > self.first_trainable)
                if position in shapes:
                    wanted = shapes[position] if position > self.first_trainable else None
                    check_backward(key, layer, dy, wanted, parts, tuple(weights.shape[:-1]))
                    self._unchecked.discard(key)
                paths = self._paths.get(key, {})
                for name, part in parts.items():
                    if watch is not None:
                        watch("gradient", key, part)
                    path = paths.get(name)
                    if path is not None:
                        grads[path] = grads[path] + part if path in grads else part
            if len(grads) != len(self.layout.slices):
                missing = sorted(set(self.layout.slices) - set(grads))
                raise InvalidValueError(
                    f"a layer's backward must return the gradients of all its weights; got none for {missing}"
                )
            return ctx.ops.pack(ctx, self.layout, grads, out and out[::2]) if grads else weights

        return x, backward

    def _gradient_out(self, ctx: Context) -> Any:
        """Return the buffer of the flat gradient, and its views by layer and by path."""
        flat = ctx.empty((self.layout.size,))
        if self._gradient_buffers is None or self._gradient_buffers[0] is not flat:
            paths = self.layout.views(ctx.xp, flat)
            by_layer = {
                key: {name: paths[path] for name, path in names.items()} for key, names in self._paths.items()
            }
            self._gradient_buffers = (flat, by_layer, paths)
        return self._gradient_buffers

    def new_stats(self, ctx: Context, stats: Array) -> Array:
        """Return the flat statistics after a step, updated with the carried values."""
        if not ctx.carry:
            return stats
        return ctx.ops.pack(ctx, self.stats_layout, {**self.stats_layout.views(ctx.xp, stats), **ctx.carry}, None)

    def host_values(self, backend: Backend, weights: Array, stats: Array) -> dict[str, np.ndarray]:
        """Return host copies of all parameters and statistics by path, layer by layer."""
        both = {
            **self.layout.host_parts(backend, weights), **self.stats_layout.host_parts(backend, stats)
        }  # fmt: skip
        return {path: both[path] for path in self.paths()}

    @property
    def layouts(self) -> tuple[Layout, Layout]:
        """The layouts of the trainable parameters and of everything else."""
        return self.layout, self.stats_layout

    def is_laid_out_as(self, other: Network) -> bool:
        """Return whether every parameter has the same place as in another network of the same layers."""
        pairs = zip(self.layouts, other.layouts)
        return all([e[1] for e in a.entries] == [e[1] for e in b.entries] for a, b in pairs)

    def key(self, layer: Layer) -> str | None:
        """Return the key of this layer object in the network, or None."""
        return self._keys.get(id(layer))

    def paths(self) -> list[str]:
        """Return all paths, layer by layer, in the order of `get_weights`."""
        layers = {unit.key: unit.layer for unit in self.units}
        return [f"{key}/{spec.name}" for key, layer in layers.items() for spec in layer.specs]


def check_backward(
    key: str,
    layer: Layer,
    dx: Any,
    shape: tuple[int, ...] | None,
    parts: Mapping[str, Array],
    lead: tuple[int, ...],
) -> None:
    """Check what a layer's backward function returned at its first call.

    Args:
        key: of the layer. dx: the derivative by the input, of this shape; None if nobody asked for it.
        parts: the gradients of the weights by name. lead: leading axes of the weights, one for each model.

    Raises:
        ShapeError, UnknownNameError: a gradient has another shape than its weight, or an unknown name.
    """
    specs = {spec.name: spec.shape for spec in layer.specs}
    if shape is not None and tuple(getattr(dx, "shape", ())) != shape:
        raise ShapeError(
            f"layer {key!r}: backward must return the derivative by its input, of shape {shape}; got "
            f"{'None' if dx is None else tuple(getattr(dx, 'shape', ()))}"
        )
    for name, part in parts.items():
        if name not in specs:
            raise unknown_name(f"gradient of layer {key!r}", name, specs)
        if tuple(part.shape) != (*lead, *specs[name]):
            raise ShapeError(
                f"layer {key!r}: the gradient of {name!r} must have shape {specs[name]}; got {tuple(part.shape)}"
            )


def name_layers(layers: Sequence[Layer]) -> None:
    """Name the layers that have no name: "dense", "dense_1", ...

    Raises:
        InvalidValueError: two layers have the same name.
    """
    taken: dict[str, Layer] = {}
    for layer in layers:
        if layer.name is not None and taken.setdefault(layer.name, layer) is not layer:
            raise InvalidValueError(f"the layers of a model must have different names; got {layer.name!r} twice")
    counts: dict[str, int] = {}  # by base name: where to continue counting
    for layer in layers:
        if layer.name is None:
            base = snake_case(type(layer).__name__)
            count = counts.get(base, 0)
            while (name := f"{base}_{count}" if count else base) in taken:
                count += 1
            counts[base] = count
            layer.name = name
            taken[name] = layer


def check_input(network: Network, shape: Sequence[int], what: str = "x") -> None:
    """Raise if the network does not take rows of this shape (without the batch axis)."""
    if tuple(shape) != network.input_shape:
        raise ShapeError(
            f"{what} must have shape {('batch', *network.input_shape)} for this model; got {('batch', *shape)}"
        )
