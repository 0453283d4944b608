"""A sequence of layers on one flat array of weights: a pure function and its derivative."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ..backend import Array, Backend, np
from ..core.config import fingerprint
from ..core.params import DrawSpec, Layout, ParamSpec
from ..core.random import Stream
from ..errors import InvalidValueError, ShapeError, unknown_name
from ..kernels.context import Context
from ..layers import Input, Layer
from ..layers.base import pair
from ..layers.tree import name_layers, walk

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
        frozen: paths of the layers and sublayers that are not trainable; None asks the layers.

    Attributes:
        settings: of the layers (see `settings_of`). frozen: as above.
        units: the layers at their positions. layout: of the trainable parameters. stats_layout: of the running
            statistics and frozen parameters. draws: (key, slot, spec) of masks and noise.
        input_shape, output_shape: without the batch axis.

    Raises:
        ShapeError: a layer does not fit its predecessor. InvalidValueError: two layers have the same name, or one
            layer has two paths.
    """

    def __init__(
        self, layers: Sequence[Layer], input_shape: tuple[int, ...], frozen: Collection[str] | None = None
    ) -> None:
        self.input_shape = shape = input_shape
        self.units: list[Unit] = []
        trainable: list[tuple[str, int, ParamSpec]] = []
        fixed: list[tuple[str, int, ParamSpec]] = []
        self.draws: list[tuple[str, int, DrawSpec]] = []
        seen: set[int] = set()
        name_layers(layers)
        self.settings = self.settings_of(layers)
        found = list(walk(layers))
        self.frozen = frozenset(path for path, _, learns in found if not learns) if frozen is None else frozen
        self._layers = [layer for _, layer, _ in found]
        self._keys = _by_identity(found)
        for position, layer in enumerate(layers):
            shape = layer.ensure_built(shape)
            self.units.append(Unit(position, str(layer.name), layer))
            self.draws += [(f"{position}/{d.name}", (position << 16) + i, d) for i, d in enumerate(layer.draws)]
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            for i, spec in enumerate(layer.specs):
                path = f"{layer.name}/{spec.name}"
                learns = spec.trainable and path.rpartition("/")[0] not in self.frozen
                (trainable if learns else fixed).append((path, (position << 16) + i, spec))
        self.output_shape = shape
        self.layout, self.stats_layout = Layout(trainable), Layout(fixed)
        self._paths: dict[str, dict[str, str]] = {}  # of the trainable parameters, by layer and name
        for path in self.layout.slices:
            key, _, name = path.partition("/")
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
        """Return the objects whose code a step runs: layers, sublayers and their parts."""
        names = ("activation", "activity_regularizer")
        found = [getattr(layer, name, None) for layer in self._layers for name in names]
        rules = [*self.layout.penalties.values(), *self.layout.constraints.values()]
        return [*self._layers, *(part for part in found if part is not None), *rules]

    def score_units(self, activation: str) -> list[Unit] | None:
        """Return the units, the last one without this activation; None if it ends in another one."""
        position, key, layer = self.units[-1]
        bare = layer.without_activation(activation)
        return None if bare is None else [*self.units[:-1], Unit(position, key, bare)]

    def masks(self, stream: Stream, step: int, rows: int, dtype: str = "float32") -> dict[str, np.ndarray]:
        """Return the masks and noise of a training step on a batch of `rows` rows, made on the host.

        Args:
            dtype: of the noise.
        """
        return {key: draw.draw(stream, slot, step, rows, dtype) for key, slot, draw in self.draws}

    def params(self, ctx: Context, weights: Array, stats: Array) -> dict[str, dict[str, Array]]:
        """Return, by layer key, the parameters and statistics by name."""
        for known_weights, known_stats, found in self._views:
            if known_weights is weights and known_stats is stats:
                return found
        result: dict[str, dict[str, Array]] = {unit.key: {} for unit in self.units}
        for layout, flat in ((self.layout, weights), (self.stats_layout, stats)):
            for path, view in layout.views(ctx.xp, flat).items():
                key, _, name = path.partition("/")
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
                if self._unchecked and unit.key in self._unchecked:
                    found = pair(unit.layer, "forward", found)
                    shapes[unit.position] = tuple(x.shape)
                    if unit.position < self.first_trainable:  # nobody calls its backward
                        self._unchecked.discard(unit.key)
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
                if shapes and position in shapes:
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

    @property
    def classes(self) -> int | None:
        """The number of classes if the inputs must be class numbers (see `Layer.classes`)."""
        return next((u.layer.classes for u in self.units if not isinstance(u.layer, Input)), None)

    def key(self, layer: Layer) -> str | None:
        """Return the path of this layer object or sublayer in the network, or None."""
        return self._keys.get(id(layer))

    def paths(self) -> list[str]:
        """Return all paths, layer by layer, in the order of `get_weights`."""
        layers = {unit.key: unit.layer for unit in self.units}
        return [f"{key}/{spec.name}" for key, layer in layers.items() for spec in layer.specs]


def _by_identity(found: Sequence[tuple[str, Layer, bool]]) -> dict[int, str]:
    """Return the path of each layer object. Args: found: see `layers.tree.walk`."""
    keys: dict[int, str] = {}
    for path, layer, _ in found:
        other = keys.setdefault(id(layer), path)
        if other != path:
            raise InvalidValueError(
                f"a layer can be used twice by the same sequence of layers only; got one at {other!r} and {path!r}"
            )
    return keys


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


def check_input(network: Network, shape: Sequence[int], what: str = "x") -> None:
    """Raise if the network does not take rows of this shape (without the batch axis)."""
    if tuple(shape) != network.input_shape:
        raise ShapeError(
            f"{what} must have shape {('batch', *network.input_shape)} for this model; got {('batch', *shape)}"
        )
