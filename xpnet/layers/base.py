"""The base class of layers: each layer is its own vector-Jacobian product."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from .. import activations, constraints, initializers, regularizers
from ..backend import Array, floating, library_of, np, traced
from ..core.config import Configurable, Registry, fingerprint, overrides
from ..core.convert import check_classes
from ..core.params import DrawSpec, Flats, Layout, ParamSpec
from ..core.random import Stream, fresh_seed
from ..core.settings import flag, part, setting
from ..errors import InvalidTypeError, InvalidValueError, NotBuiltError, ShapeError, number
from ..kernels.context import Context, enter, numeric
from .tree import unchanged_on_error
from .variable import HasWeights, Variable

__all__ = ["Backward", "Layer", "Stateless", "registry"]

Backward = Callable[..., tuple[Array | None, dict[str, Array]]]


def _layer_name(what: str, name: Any) -> str | None:
    if name is not None and (not isinstance(name, str) or not name or "/" in name):
        raise InvalidValueError(f"a layer's name must be a non-empty string without '/'; got {name!r}")
    return name


class Layer(Configurable, HasWeights):
    """Base class of layers.

    A subclass defines `build`, which declares parameters, masks and noise and returns the output shape, and
    `forward`, which returns the output and a function for the backward pass. Parameters are passed in and
    gradients are returned; nothing is stored on the layer during a step.

    Args:
        name: unique in a model; None lets the model choose one.
        dtype: the precision when used alone (a model has one precision for all its layers).
        trainable: whether training changes its parameters. It can be set at any time; a model applies it at the
            next `compile`.

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

    ends_in_activation = False  # whether `forward` applies `self.activation` last

    name: str | None = setting(_layer_name, default=None, kw_only=True)
    dtype: str | None = part(floating, default=None, kw_only=True)
    trainable: bool = setting(flag, default=True, kw_only=True)

    def __post_init__(self) -> None:
        """Initialize without shapes and weights."""
        self.input_shape: tuple[int, ...] | None = None
        self.output_shape: tuple[int, ...] | None = None
        self.specs: list[ParamSpec] = []
        self.draws: list[DrawSpec] = []
        self._alone: dict[str, np.ndarray] | None = None  # the weights, if no model holds them
        self._left: tuple[Flats, str] | None = None  # the weights and their key, if a deleted model left them
        self._model: Any = None  # weak reference to the model that holds the weights
        self._declared: Any = None  # fingerprint of the settings at the last call of `build`

    def check_change(self, name: str, value: Any) -> None:
        """Reject changes of settings that determined the shapes or the initial values of the weights."""
        if self.built and fingerprint(value) != fingerprint(getattr(self, name)):
            raise InvalidValueError(
                f"{name} can't change once a layer is built: make a new {type(self).__name__}; got {value!r}"
            )

    # Methods that a subclass defines ------------------------------------------------------------------

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Declare weights, masks and noise for inputs of this shape (no batch axis); return the output shape."""
        return input_shape

    def forward(self, ctx: Context, params: dict[str, Array], x: Array) -> tuple[Array, Backward]:
        """Return y and `backward(dy, into, want_dx=True) -> (dx or None, {name: gradient})`.

        Args:
            ctx: namespace, operations, masks and noise. params: the layer's parameters and statistics by name.
            x: shape (..., batch, *input_shape).
        """
        raise TypeError(f"{type(self).__name__} must define forward(ctx, params, x)")

    @property
    def classes(self) -> int | None:
        """The number of classes if the inputs must be class numbers, 0 to classes - 1; else None."""
        return None

    @property
    def sublayers(self) -> Sequence[Layer]:
        """The layers that it consists of (see `Container`)."""
        return ()

    # Methods that a subclass calls --------------------------------------------------------------------

    def add_weight(
        self,
        name: str,
        shape: Sequence[int],
        initializer: Any = "glorot_uniform",
        trainable: bool = True,
        regularizer: Any = None,
        lr_factor: float = 1.0,
        decay: bool = True,
        constraint: Any = None,
    ) -> None:
        """Declare a parameter, or with `trainable=False` a running statistic.

        Args:
            initializer, regularizer, constraint: names or objects; the latter two may be None.
            lr_factor: factor of the learning rate for this parameter, in [0, 1000].
            decay: whether an optimizer's weight decay applies to it.
        """
        penalty = regularizers.get(regularizer)
        own = penalty if penalty and penalty.has_own_formula else None
        l1, l2 = (penalty.l1, penalty.l2) if penalty and not own else (0.0, 0.0)
        lr_factor = number("lr_factor", lr_factor, 0, 1000)  # larger ones could overflow: `ops.never_overflows`
        first = initializers.get(initializer)
        rule = constraints.get(constraint)
        self.specs.append(
            ParamSpec(name, tuple(shape), first, trainable, l1, l2, lr_factor, bool(decay), own, rule)
        )

    def add_draw(
        self, name: str, shape: Sequence[int], rate: float | None = None, seed: int | None = None
    ) -> None:
        """Declare random numbers of shape (batch, *shape), new at each training step; `ctx.draw(name)` gets them.

        Args:
            rate: of a boolean mask, True with probability 1 - rate; None for standard normal numbers.
            seed: of a stream of its own; None for the model's.
        """
        self.draws.append(DrawSpec(name, tuple(shape), rate, seed))

    def penalize_outputs(self, ctx: Context, y: Array, backward: Backward, at: Any) -> Backward:
        """Add a penalty on the outputs to the objective, divided by the number of rows as in Keras.

        Args:
            y: the outputs, shape (..., batch, *output_shape). backward: of `forward`.
            at: `at(ctx, y)` returns the penalty and its gradient, as that of a regularizer.

        Returns:
            `backward`, which also takes the derivative of the penalty back.
        """
        rows = max(y.shape[-1 - len(self.output_shape or ())], 1)
        value, slope = at(ctx, y)
        add = ctx.add_loss(value / rows, slope / rows)
        return lambda dy, into, want_dx=True: backward(add(dy), into, want_dx)

    def learns(self, ctx: Context) -> bool:
        """Return whether it is trainable; in a model, as of the last `compile` or `build`."""
        return self.trainable if ctx.frozen is None else ctx.place[1] not in ctx.frozen

    # Methods for users --------------------------------------------------------------------------------

    @property
    def built(self) -> bool:
        """Whether the shapes are known."""
        return self.input_shape is not None

    def ensure_built(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Build for this input shape, unless already built, and return the output shape.

        Raises:
            ShapeError: the layer was built for another shape.
        """
        shape = tuple(input_shape)
        if self.input_shape is None:
            self._declare(shape)
        elif self.input_shape != shape:
            raise ShapeError(
                f"layer {self.name or type(self).__name__} takes inputs of shape (batch, "
                f"{', '.join(map(str, self.input_shape))}); got {('batch', *shape)}"
            )
        elif self._declared != fingerprint(self):
            self._declare(shape)
        return tuple(self.output_shape or ())

    def _declare(self, shape: tuple[int, ...]) -> None:
        """Call `build`: the first time, or again after a change of a setting such as a penalty or rate."""
        before = self.specs, self.output_shape
        with unchanged_on_error([self]):
            self.specs, self.draws = [], []
            self.output_shape = tuple(self.build(shape))
            now, then = ([(s.name, s.shape, s.trainable) for s in specs] for specs in (self.specs, before[0]))
            if self.built and (now, self.output_shape) != (then, before[1]):
                raise InvalidValueError(
                    f"layer {self.name} is built: a setting must no longer change its weights, {then}; got {now}"
                )
            self.input_shape, self._declared = shape, fingerprint(self)

    @np.errstate(all="ignore")
    def __call__(self, x: Any, training: bool = False) -> Array:
        """Return the layer's output for `x`, shape (batch, ...), in the library of `x`.

        Builds the layer at first use. `training=True` draws fresh masks and noise.
        """
        ctx, leave = enter(x, dtype=self.dtype)
        if self.classes is not None and (library_of(x) is None or isinstance(x, np.ndarray)):
            check_classes(numeric(x), self.classes)
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
                    "masks and noise are drawn at each call, but a function traced by jax.jit would reuse the "
                    "first ones: use training=False in jax.jit, jax.grad and jax.vmap; got training=True"
                )
            stream = Stream(fresh_seed())
            ctx.draws = {
                f"0/{d.name}": ctx.backend.array(d.draw(stream, i, 0, x.shape[0], ctx.backend.dtype_name))
                for i, d in enumerate(self.draws)
            }
        return leave(pair(self, "forward", self.forward(ctx, params, x))[0])

    @property
    def weights(self) -> list[Variable]:
        """The parameters and statistics as variables, in the order of declaration; none before it is built."""
        return [Variable(self, spec.name) for spec in self.specs]

    def get_weights(self) -> list[np.ndarray]:
        """Return host copies of the parameters and statistics, in the order of declaration."""
        if self.input_shape is None:
            raise NotBuiltError(f"layer {self.name or type(self).__name__} has no weights before it is built")
        values = self.values() or {}
        if len(values) < len(self.specs):
            layout = self._layout()
            values = self._parts(layout, layout.initial(Stream(fresh_seed()), values))
            self._keep(values)
        return [values[spec.name].copy() for spec in self.specs]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the parameters and statistics from arrays in the order of `get_weights`.

        Raises:
            ShapeError: their number or a shape does not fit; nothing is changed.
        """
        if self.input_shape is None:
            raise NotBuiltError(f"layer {self.name or type(self).__name__} has no weights before it is built")
        values = [numeric(w) for w in weights]
        if len(values) != len(self.specs):
            raise ShapeError(f"set_weights takes {len(self.specs)} arrays; got {len(values)}")
        model = self._holder()
        if model is not None:
            model.set_layer_weights(self, values)
            return
        layout = self._layout()
        flat = layout.from_host({spec.name: v for spec, v in zip(self.specs, values)})
        self._keep(self._parts(layout, flat))

    def count_params(self) -> int:
        """Return the number of parameters and statistics."""
        return self._layout().size

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values."""
        config = {**super().get_config(), "name": self.name, "dtype": self.dtype}
        if "trainable" in config or not self.trainable:  # a user-defined constructor may lack it
            config["trainable"] = bool(self.trainable)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Layer:
        """Return a new layer; a user-defined constructor need not have the argument `trainable`."""
        layer = super().from_config({key: value for key, value in config.items() if key != "trainable"})
        layer.trainable = bool(config.get("trainable", layer.trainable))
        return layer

    # Methods for models -------------------------------------------------------------------------------

    def without_activation(self, activation: str) -> Layer | None:
        """Return this layer without its final activation; None if it does not end in the named one.

        A subclass that overrides `forward` or `call` has none, unless it also sets `ends_in_activation`; nor has a
        layer that penalizes its outputs.
        """
        methods = [name for name in ("forward", "call") if hasattr(self, name)]
        if not self.ends_in_activation or any(overrides(self, name, "ends_in_activation") for name in methods):
            return None
        if getattr(self, "activity_regularizer", None) is not None:  # it penalizes what the activation gives
            return None
        own: Any = getattr(self, "activation", None)
        exact = activations.registry.classes.get(activation, type(own))  # excludes subclasses of the same name
        if own is None or type(own) is not exact or own.get_config() != exact().get_config():
            return None
        bare: Any = object.__new__(type(self))  # not `copy`, which would also copy the weights
        vars(bare).update(vars(self), activation=activations.get("linear"))
        return bare

    @property
    def owner(self) -> Any:
        """The model that holds the weights (its `Session`), or None."""
        return self._model and self._model()

    def join(self, model: Any) -> None:
        """Let `model` hold the weights from now on.

        Raises:
            InvalidValueError: another model holds them.
        """
        if self.owner is not None and self.owner is not model:
            raise InvalidValueError(
                f"layer {self.name!r} belongs to another model, and weights are not shared between models: make "
                f"a new layer with type(layer).from_config(layer.get_config()); got {self!r}"
            )
        self._model = weakref.ref(model)

    def values(self) -> dict[str, np.ndarray] | None:
        """Return the parameters and statistics by name, those that exist; None if there are none yet."""
        model = self._holder()
        if model is not None:
            return model.layer_values(self)
        if self._left is not None:
            flats, key = self._left
            names = [spec.name for spec in self.specs if "/" not in spec.name]  # sublayers have their own
            self._alone, self._left = flats.values(key, names), None
        return self._alone

    def _keep(self, values: dict[str, np.ndarray]) -> None:
        """Keep these weights, while no model holds them."""
        self._alone, self._left = values, None

    def drop_weights(self) -> None:
        """Drop the layer's own copy of its weights: its model now holds them."""
        self._alone = self._left = None

    def leave(self, model: Any, flats: Flats, key: str) -> None:
        """Read the weights from `flats` under `key` from now on, because `model` is deleted."""
        if self.owner is None or self.owner is model:
            self._model, self._left = None, (flats, key)

    def _holder(self) -> Any:
        model = self.owner
        return model if model is not None and model.holds(self) else None

    def _layout(self) -> Layout:
        return Layout([(spec.name, i, spec) for i, spec in enumerate(self.specs)])

    def _parts(self, layout: Layout, flat: np.ndarray) -> dict[str, np.ndarray]:
        return {key: flat[where].reshape(layout.shapes[key]) for key, where in layout.slices.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for `copy` and pickle: the weights, but not the model that holds them."""
        values = self.values()
        if values is not None:
            values = {name: value for name, value in values.items() if "/" not in name}
        return {**self.__dict__, "_alone": values, "_left": None, "_model": None, "_declared": None}


class Stateless(Layer):
    """Base class of the layers without parameters; a subclass defines `call`.

    >>> class Square(Stateless):
    ...     def call(self, ctx, x):
    ...         return x * x, lambda dy: 2.0 * x * dy
    >>> Square()([[3.0]]).tolist()
    [[9.0]]
    """

    def call(self, ctx: Context, x: Array) -> tuple[Array, Callable[[Array], Array]]:
        """Return y and the function from dy to dx. Args: see `Layer.forward`."""
        raise TypeError(f"{type(self).__name__} must define call(ctx, x)")

    def forward(self, ctx: Context, params: dict[str, Array], x: Array) -> tuple[Array, Backward]:
        """Return what `call` gives, in the form of `Layer.forward`."""
        found = self.call(ctx, x)
        y, back = found if type(found) is tuple else pair(self, "call", found)
        return y, lambda dy, into, want_dx=True: (back(dy) if want_dx else None, {})


def pair(layer: Layer, method: str, found: Any) -> Any:
    """Return what a layer's method returned, if it is the output and a function.

    Raises:
        InvalidTypeError: it is not.
    """
    if type(found) is not tuple or len(found) != 2 or not callable(found[1]):
        kinds = ", ".join(type(a).__name__ for a in found) if type(found) is tuple else type(found).__name__
        raise InvalidTypeError(
            f"{type(layer).__name__}.{method} must return the output and its backward function; got {kinds}"
        )
    return found


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
