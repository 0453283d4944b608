"""The contract of a layer: it is its own vector-Jacobian product."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from .. import activations, initializers, regularizers
from ..backend import Array, floating, np, traced
from ..context import Context, enter, numeric
from ..errors import InvalidTypeError, InvalidValueError, NotBuiltError, ShapeError
from ..params import DrawSpec, Layout, ParamSpec
from ..random import Stream, fresh_seed, keep_mask
from ..registry import Configurable, Registry

__all__ = ["Backward", "Layer", "registry"]

Backward = Callable[..., tuple[Array | None, dict[str, Array]]]


class Layer(Configurable):
    """Base class of the layers.

    A subclass defines `build`, which declares parameters and masks and returns the output shape, and
    `forward`, which returns the output and the function that takes the derivative back through it. The
    parameters come in and the gradients go out; nothing is stored on the layer during a step.

    Args:
        name: unique in a model; None lets the model choose one.
        dtype: the precision when used alone (a model has one precision for all its layers).

    >>> class Scale(Layer):
    ...     def build(self, input_shape):
    ...         self.add_weight("scale", input_shape, "ones")
    ...         return input_shape
    ...     def forward(self, ctx, params, x):
    ...         scale = params["scale"]
    ...         def backward(dy, into, want_dx=True):
    ...             return (dy * scale if want_dx else None), {"scale": ctx.xp.sum(dy * x, axis=-2)}
    ...         return x * scale, backward
    >>> Scale()([[1.0, 2.0]]).tolist()
    [[1.0, 2.0]]
    """

    trainable = True

    def __init__(self, *, name: str | None = None, dtype: str | None = None) -> None:
        if name is not None and (not isinstance(name, str) or not name or "/" in name):
            raise InvalidValueError(f"a layer's name must be a string without '/', not empty; got {name!r}")
        self.name, self.dtype = name, floating(dtype)
        self.input_shape: tuple[int, ...] | None = None
        self.output_shape: tuple[int, ...] | None = None
        self.specs: list[ParamSpec] = []
        self.draws: list[DrawSpec] = []
        self._alone: dict[str, np.ndarray] | None = None  # the values, while no model holds them
        self._model: Any = None  # weak reference to the model that does

    # What a subclass defines --------------------------------------------------------------------------

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Declare what is needed for inputs of this shape (without the batch axis); return the output's."""
        return input_shape

    def forward(self, ctx: Context, params: dict[str, Array], x: Array) -> tuple[Array, Backward]:
        """Return y and `backward(dy, into, want_dx=True) -> (dx or None, {name: gradient})`.

        Args:
            ctx: namespace, operations, masks. params: this layer's parameters and statistics by name.
            x: shape (..., batch, *input_shape).
        """
        raise TypeError(f"{type(self).__name__} must define forward(ctx, params, x)")

    # What it may call ---------------------------------------------------------------------------------

    def add_weight(
        self,
        name: str,
        shape: Sequence[int],
        initializer: Any = "glorot_uniform",
        trainable: bool = True,
        regularizer: Any = None,
    ) -> None:
        """Declare a parameter, or with `trainable=False` a running statistic."""
        penalty = regularizers.get(regularizer)
        l1, l2 = (penalty.l1, penalty.l2) if penalty else (0.0, 0.0)
        spec = ParamSpec(name, tuple(shape), initializers.get(initializer), trainable, l1, l2)
        self.specs.append(spec)

    def add_draw(self, name: str, shape: Sequence[int], rate: float) -> None:
        """Declare a boolean mask, True with probability 1 - rate; `ctx.draw(name)` gives it in training."""
        self.draws.append(DrawSpec(name, tuple(shape), rate))

    # What users call ----------------------------------------------------------------------------------

    @property
    def built(self) -> bool:
        """Whether the shapes are known."""
        return self.input_shape is not None

    def ensure_built(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Build for this input shape (once) and return the output shape.

        Raises:
            ShapeError: it was built for another shape.
        """
        shape = tuple(input_shape)
        if self.input_shape is None:
            self.specs, self.draws = [], []
            self.output_shape = tuple(self.build(shape))
            self.input_shape = shape
        elif self.input_shape != shape:
            raise ShapeError(
                f"layer {self.name or type(self).__name__} takes inputs of shape (batch, "
                f"{', '.join(map(str, self.input_shape))}); got {('batch', *shape)}"
            )
        return tuple(self.output_shape or ())

    @np.errstate(all="ignore")
    def __call__(self, x: Any, training: bool = False) -> Array:
        """Return the layer's output for `x`, shape (batch, ...), in the library of `x`.

        Builds the layer at first use. `training=True` draws fresh masks.
        """
        ctx, leave = enter(x, dtype=self.dtype)
        x = ctx.asarray(x)
        if x.ndim < 1:
            raise ShapeError(f"a layer takes arrays of shape (batch, ...); got shape {tuple(x.shape)}")
        if self.input_shape == tuple(x.shape) != ():
            raise ShapeError(
                f"a layer takes arrays of shape (batch, ...): for one row pass x[None]; got {tuple(x.shape)}"
            )
        self.ensure_built(x.shape[1:])
        params = {
            spec.name: ctx.backend.array(value, ctx.backend.dtype_name)
            for spec, value in zip(self.specs, self.get_weights())
        }
        ctx.training = training
        if training and self.draws:
            if traced(x):
                raise InvalidValueError(
                    "masks are drawn anew at each call, and a function that jax.jit traces would keep the first: "
                    "use training=False in jax.jit, jax.grad and jax.vmap; got training=True"
                )
            stream = Stream(fresh_seed())
            ctx.draws = {
                f"0/{d.name}": ctx.backend.array(keep_mask(stream, i, 0, (x.shape[0], *d.shape), d.rate))
                for i, d in enumerate(self.draws)
            }
        return leave(self.forward(ctx, params, x)[0])

    def get_weights(self) -> list[np.ndarray]:
        """Return host copies of the parameters and statistics, in the order they were declared."""
        model = self._model and self._model()
        if model is not None:
            return model.layer_weights(self)
        if self.input_shape is None:
            raise NotBuiltError(f"layer {self.name or type(self).__name__} has no weights before it is built")
        if self._alone is None:
            layout, stream = self._layout(), Stream(fresh_seed())
            flat = layout.initial(stream)
            self._alone = {k: flat[s].reshape(layout.shapes[k]) for k, s in layout.slices.items()}
        return [self._alone[spec.name].copy() for spec in self.specs]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the parameters and statistics from arrays in the order of `get_weights`.

        Raises:
            ShapeError: their number or a shape does not fit; nothing is changed then.
        """
        if self.input_shape is None:
            raise NotBuiltError(f"layer {self.name or type(self).__name__} has no weights before it is built")
        values = [numeric(w) for w in weights]
        if len(values) != len(self.specs):
            raise ShapeError(f"set_weights takes {len(self.specs)} arrays; got {len(values)}")
        model = self._model and self._model()
        if model is not None:
            model.set_layer_weights(self, values)
            return
        layout = self._layout()
        flat = layout.from_host({spec.name: v for spec, v in zip(self.specs, values)})
        self._alone = {k: flat[s].reshape(layout.shapes[k]) for k, s in layout.slices.items()}

    def count_params(self) -> int:
        """Return the number of parameters and statistics."""
        return self._layout().size

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values."""
        return {**super().get_config(), "name": self.name, "dtype": self.dtype}

    # What models call ---------------------------------------------------------------------------------

    def without_activation(self, activation: str) -> Layer | None:
        """Return this layer without its final activation of that name, None if it has no such one."""
        own = getattr(self, "activation", None)
        if own is None or own.name != activation:
            return None
        bare: Any = copy.copy(self)
        bare.activation = activations.get("linear")
        return bare

    def join(self, model: Any) -> None:
        """Let `model` hold the weights from now on.

        Raises:
            InvalidValueError: another model does.
        """
        owner = self._model and self._model()
        if owner is not None and owner is not model:
            raise InvalidValueError(
                f"layer {self.name!r} belongs to another model, and weights are not shared between models: make "
                f"a new layer with type(layer).from_config(layer.get_config()); got {self!r}"
            )
        self._model = weakref.ref(model)

    def unbuild(self) -> None:
        """Forget the shapes, as if it had never been built."""
        self.input_shape = self.output_shape = self._alone = self._model = None
        self.specs, self.draws = [], []

    def own_values(self) -> dict[str, np.ndarray]:
        """Return the values that it had before a model took it over, if any."""
        return dict(self._alone or {})

    def _layout(self) -> Layout:
        return Layout([(spec.name, i, spec) for i, spec in enumerate(self.specs)])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}  # a copied model takes its layers in anew


def rows_of(shape: Any) -> tuple[int, ...]:
    """Return a shape as a tuple of integers; a leading None (Keras' batch axis) is dropped.

    >>> rows_of((None, 3)), rows_of(4), rows_of([28, 28])
    ((3,), (4,), (28, 28))
    """
    sizes = (shape,) if isinstance(shape, int) else shape
    try:
        sizes = tuple(sizes)
    except TypeError as error:
        raise InvalidTypeError(f"a shape must be a tuple of integers; got {shape!r}") from error
    sizes = sizes[1:] if sizes and sizes[0] is None else sizes
    if not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n > 0 for n in sizes):
        raise ShapeError(f"a shape must be a tuple of positive integers; got {shape!r}")
    return tuple(int(n) for n in sizes)


registry: Registry[Layer] = Registry("layer", Layer)
