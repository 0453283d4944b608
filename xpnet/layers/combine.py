"""Layers that combine layers: in a row, around a shortcut, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ..backend import Array
from ..core.config import overrides, plain
from ..core.settings import part, setting
from ..errors import InvalidTypeError, ShapeError, one_of
from ..kernels.context import Context
from .base import Backward, Layer, registry
from .container import Container, add_gradients

__all__ = ["Chain", "Parallel", "Residual"]


def as_layer(value: Any) -> Layer:
    """Return a layer: the given one, a `Chain` of the layers of a list or a model, or one made from a name."""
    if isinstance(value, (list, tuple)):
        return Chain(value)
    return value.as_layer() if hasattr(value, "as_layer") else registry.get(value)


def _layers(values: Any) -> tuple[Layer, ...]:
    if not isinstance(values, (list, tuple)) or not values:
        raise InvalidTypeError(f"a layer of layers takes a list of at least one layer; got {values!r}")
    layers: list[Layer] = []
    for value in values:  # in a config, a number stands for a layer that is used again
        layers.append(layers[value] if type(value) is int and value < len(layers) else as_layer(value))
    return tuple(layers)


def _described(layers: Sequence[Layer]) -> list[Any]:
    """Return layers for a config; one that is used again is given as the number of its first position."""
    places = {id(layer): i for i, layer in reversed(list(enumerate(layers)))}
    return [layer if places[id(layer)] == i else places[id(layer)] for i, layer in enumerate(layers)]


@registry.register
class Chain(Container):
    """y = f_n(... f_2(f_1(x))): layers in a row, as one layer. A `Sequential` in a `Sequential` becomes one.

    Args:
        layers: a list of layers, names, lists (each a chain) or `Sequential` models. name, dtype, trainable: see
            `Layer`; `trainable=False` freezes all of them.

    Raises:
        InvalidTypeError: not a list of layers. ShapeError: a layer does not fit its predecessor.

    dx = f_1'(... f_n'(dy)), the chain rule.

    >>> from xpnet.layers import Dense, Rescaling
    >>> Chain([Rescaling(2.0), Dense(1, kernel_initializer="ones")])([[1.0, 2.0]]).tolist()
    [[6.0]]
    """

    layers: Any = part(_layers, fixed=True)

    @property
    def sublayers(self) -> Sequence[Layer]:
        """The layers in order."""
        return self.layers

    lender: Any = None  # weak reference to the `Session` of the model whose layers these are, or None

    @property
    def classes(self) -> int | None:
        """How many classes the first layer knows."""
        return self.layers[0].classes

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Build each layer for its predecessor's outputs."""
        for i in range(len(self.layers)):
            input_shape = self.build_sublayer(i, input_shape)
        return input_shape

    def forward(self, ctx: Context, params: dict[str, Array], x: Array) -> tuple[Array, Backward]:
        """Apply each layer to its predecessor's output."""
        backs = []
        for i in range(len(self.layers)):
            x, back = self.run(ctx, params, i, x)
            backs.append(back)

        def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
            grads: dict[str, Array] = {}
            for i, back in reversed(list(enumerate(backs))):
                free = {name: out for name, out in into.items() if name not in grads}
                dy, more = back(dy, free, want_dx or i > 0)
                grads = add_gradients(grads, more)
            return dy, grads

        return x, backward

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values."""
        return {**super().get_config(), "layers": plain(_described(self.layers))}

    def join(self, model: Any) -> None:
        """Let `model` hold the weights from now on, those of an inner model too."""
        lender = self.lender and self.lender()
        if lender is not None and lender is not model:
            lender.give_back()
        super().join(model)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for `copy` and pickle, without the inner model."""
        return {**super().__getstate__(), "lender": None}

    def without_activation(self, activation: str) -> Layer | None:
        """Return this chain, its last layer without its final activation; None if it has none."""
        bare = self.layers[-1].without_activation(activation)
        if bare is None or overrides(self, "forward", "without_activation"):
            return None
        chain: Any = object.__new__(type(self))  # not `copy`, which would also copy the weights
        vars(chain).update(vars(self), layers=(*self.layers[:-1], bare))
        return chain


@registry.register
class Residual(Container):
    """y = x + f(x), with f(x) of the same shape as x (K. He et al., CVPR 2016).

    Args:
        inner: f, a layer, a list of layers (a `Chain`) or a `Sequential` model.
        name, dtype, trainable: see `Layer`.

    Raises:
        ShapeError: f changes the shape.

    dx = dy + f'(x) dy. Keras has `add([x, f(x)])` of its functional models instead.

    >>> from xpnet.layers import Rescaling
    >>> Residual(Rescaling(2.0))([[1.0, -1.0]]).tolist()
    [[3.0, -3.0]]
    """

    inner: Any = part(as_layer, fixed=True)

    @property
    def sublayers(self) -> Sequence[Layer]:
        """The inner layer."""
        return (self.inner,)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Build the inner layer, and compare shapes."""
        shape = self.build_sublayer(0, input_shape)
        if shape != input_shape:
            raise ShapeError(
                f"the inner layer of Residual must return the shape of its inputs, {('batch', *input_shape)}; got "
                f"{('batch', *shape)}"
            )
        return shape

    def forward(self, ctx: Context, params: dict[str, Array], x: Array) -> tuple[Array, Backward]:
        """Return x + f(x) and its backward."""
        y, back = self.run(ctx, params, 0, x)

        def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
            dx, grads = back(dy, into, want_dx)
            return (dy + dx if want_dx else None), grads

        return x + y, backward


MERGES = ("concat", "add", "multiply", "average", "maximum")


@registry.register
class Parallel(Container):
    """y = merge(f_1(x), ..., f_n(x)): layers side by side on the same inputs.

    Args:
        branches: f_i, a list of layers, lists (each a `Chain`) or `Sequential` models.
        merge: `"concat"` joins the last axes; `"add"`, `"multiply"`, `"average"` and `"maximum"` work by elements,
            on outputs of one shape. name, dtype, trainable: see `Layer`.

    Raises:
        InvalidTypeError: not a list of layers. UnknownNameError: another `merge`. ShapeError: the shapes of the
            outputs do not fit.

    dx is the sum over i of f_i'(x) dy_i, where dy_i is
    concat: the part of dy that came from branch i;  add: dy;  average: dy / n;
    multiply: dy times the outputs of the other branches;
    maximum: dy where branch i has the largest output, shared equally where several have it.
    The merges are those of Keras' `Concatenate`, `Add`, `Multiply`, `Average` and `Maximum`.

    >>> from xpnet.layers import Rescaling
    >>> Parallel([Rescaling(1.0), Rescaling(-1.0)])([[1.0, 2.0]]).tolist()
    [[1.0, 2.0, -1.0, -2.0]]
    >>> Parallel([Rescaling(1.0), Rescaling(-1.0)], "maximum")([[1.0, -2.0]]).tolist()
    [[1.0, 2.0]]
    """

    branches: Any = part(_layers, fixed=True)
    merge: str = setting(one_of, MERGES, default="concat", fixed=True)

    @property
    def sublayers(self) -> Sequence[Layer]:
        """The branches."""
        return self.branches

    @property
    def classes(self) -> int | None:
        """The least number of classes that a branch knows."""
        return min((b.classes for b in self.branches if b.classes is not None), default=None)

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Build the branches, and compare the shapes of their outputs."""
        shapes = [self.build_sublayer(i, input_shape) for i in range(len(self.branches))]
        alike = {shape[:-1] if self.merge == "concat" else shape for shape in shapes}
        if len(alike) > 1 or () in shapes:
            what = "but for the last axis" if self.merge == "concat" else "to be merged"
            raise ShapeError(f"the branches of Parallel must return outputs of one shape {what}; got {shapes}")
        self._ends = [sum(shape[-1] for shape in shapes[:i]) for i in range(len(shapes) + 1)]
        return (*shapes[0][:-1], self._ends[-1]) if self.merge == "concat" else shapes[0]

    def forward(self, ctx: Context, params: dict[str, Array], x: Array) -> tuple[Array, Backward]:
        """Return the merged outputs of the branches and the backward."""
        outputs, backs = zip(*(self.run(ctx, params, i, x) for i in range(len(self.branches))))
        y, split = getattr(self, f"_{self.merge}")(ctx.xp, outputs)

        def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
            dx: Array | None = None
            grads: dict[str, Array] = {}
            for dyi, back in zip(split(dy), backs):
                free = {name: out for name, out in into.items() if name not in grads}
                dxi, more = back(dyi, free, want_dx)
                dx = dxi if dx is None or dxi is None else dx + dxi
                grads = add_gradients(grads, more)
            return (dx if want_dx else None), grads

        return y, backward

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values."""
        return {**super().get_config(), "branches": plain(_described(self.branches))}

    # Each merge returns y and the function from dy to the list of all dy_i.

    def _concat(self, xp: Any, outputs: Sequence[Array]) -> Any:
        ends = self._ends
        return xp.concat(outputs, axis=-1), lambda dy: [dy[..., a:b] for a, b in pairwise(ends)]

    def _add(self, xp: Any, outputs: Sequence[Array]) -> Any:
        return _total(outputs), lambda dy: [dy] * len(outputs)

    def _average(self, xp: Any, outputs: Sequence[Array]) -> Any:
        share = 1.0 / len(outputs)
        return _total(outputs) * share, lambda dy: [dy * share] * len(outputs)

    def _multiply(self, xp: Any, outputs: Sequence[Array]) -> Any:
        def split(dy: Array) -> list[Array]:
            return [_product([dy, *outputs[:i], *outputs[i + 1 :]]) for i in range(len(outputs))]

        return _product(outputs), split

    def _maximum(self, xp: Any, outputs: Sequence[Array]) -> Any:
        y = outputs[0]
        for other in outputs[1:]:
            y = xp.maximum(y, other)

        def split(dy: Array) -> list[Array]:
            largest = [xp.astype(output == y, dy.dtype) for output in outputs]
            share = dy / _total(largest)
            return [share * here for here in largest]

        return y, split


def _total(arrays: Sequence[Array]) -> Array:
    total = arrays[0]
    for a in arrays[1:]:
        total = total + a
    return total


def _product(arrays: Sequence[Array]) -> Array:
    product = arrays[0]
    for a in arrays[1:]:
        product = product * a
    return product
