"""The base class of layers that consist of layers."""

from __future__ import annotations

from typing import Any

from ..backend import Array, np
from ..core.params import Flats
from ..kernels.context import Context
from .base import Backward, Layer, pair
from .tree import name_layers

__all__ = ["Container", "add_gradients"]


class Container(Layer):
    """Base class of layers that consist of layers.

    A subclass has the attribute `sublayers`, a sequence of layers. Its `build` calls `build_sublayer` for each,
    its `forward` calls `run`. Weights, masks, statistics and penalties of sublayers are then those of the
    container: the kernel of "dense" in "residual" has the path "residual/dense/kernel". A sublayer may stand more
    than once in `sublayers`; then its gradients must be added (`add_gradients`).

    `trainable=False` freezes all sublayers; a sublayer can also be frozen alone.

    >>> from xpnet.layers import Dense
    >>> class Twice(Container):
    ...     def __init__(self, layer):
    ...         super().__init__()
    ...         self.layer = layer
    ...     @property
    ...     def sublayers(self):
    ...         return self.layer, self.layer
    ...     def build(self, input_shape):
    ...         return self.build_sublayer(1, self.build_sublayer(0, input_shape))
    ...     def forward(self, ctx, params, x):
    ...         h, back = self.run(ctx, params, 0, x)
    ...         y, back_again = self.run(ctx, params, 1, h)
    ...         def backward(dy, into, want_dx=True):
    ...             dh, grads = back_again(dy, into)
    ...             dx, more = back(dh, {}, want_dx)
    ...             return dx, add_gradients(grads, more)
    ...         return y, backward
    >>> layer = Twice(Dense(2, kernel_initializer="ones", name="same"))
    >>> layer([[1.0, 2.0]]).tolist(), [spec.name for spec in layer.specs]
    ([[6.0, 6.0]], ['same/kernel', 'same/bias'])
    """

    # Methods that a subclass calls --------------------------------------------------------------------

    def build_sublayer(self, i: int, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Build the sublayer at position i, declare its weights and masks, and return its output shape."""
        name_layers(self.sublayers)
        layer = self.sublayers[i]
        shape = layer.ensure_built(input_shape)
        self.draws += [draw._replace(name=f"{i}/{draw.name}") for draw in layer.draws]
        declared = {spec.name for spec in self.specs}
        specs = [spec._replace(name=f"{layer.name}/{spec.name}") for spec in layer.specs]
        self.specs += [spec for spec in specs if spec.name not in declared]
        return shape

    def run(self, ctx: Context, params: dict[str, Array], i: int, x: Array) -> tuple[Array, Backward]:
        """Return what `forward` of the sublayer at position i returns, its gradients under the container's names.

        Args:
            params: those of the container.
        """
        layer, place = self.sublayers[i], ctx.place
        names = {spec.name: f"{layer.name}/{spec.name}" for spec in layer.specs}
        ctx.place = f"{place[0]}/{i}", f"{place[1]}/{layer.name}"
        try:
            found = layer.forward(ctx, {own: params[name] for own, name in names.items()}, x)
            y, back = pair(layer, "forward", found)
        except Exception as error:
            error.add_note(f"in its sublayer {layer.name!r}")
            raise
        finally:
            ctx.place = place

        def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
            out = {own: into[name] for own, name in names.items() if name in into}
            dx, grads = back(dy, out, want_dx)
            return dx, {names.get(own, own): grad for own, grad in grads.items()}

        return y, backward

    # Methods for models -------------------------------------------------------------------------------

    def join(self, model: Any) -> None:
        """Let `model` hold the weights from now on, those of the sublayers too."""
        super().join(model)
        for layer in self.sublayers:
            layer.join(model)

    def values(self) -> dict[str, np.ndarray] | None:
        """Return the parameters and statistics by name, those that exist; None if there are none yet."""
        own = super().values()
        if self._holder() is not None:
            return own
        found = dict(own or {})
        for layer in self.sublayers:
            found.update({f"{layer.name}/{name}": value for name, value in (layer.values() or {}).items()})
        return found or own

    def _keep(self, values: dict[str, np.ndarray]) -> None:
        super()._keep({name: value for name, value in values.items() if "/" not in name})
        for layer in self.sublayers:
            layer._keep({spec.name: values[f"{layer.name}/{spec.name}"] for spec in layer.specs})

    def drop_weights(self) -> None:
        """Drop the copies of its weights and its sublayers': its model now holds them."""
        super().drop_weights()
        for layer in self.sublayers:
            layer.drop_weights()

    def leave(self, model: Any, flats: Flats, key: str) -> None:
        """Read the weights from `flats` under `key` from now on, because `model` is deleted."""
        super().leave(model, flats, key)
        for layer in self.sublayers:
            layer.leave(model, flats, f"{key}/{layer.name}")


def add_gradients(grads: dict[str, Array], more: dict[str, Array]) -> dict[str, Array]:
    """Return gradients by name; those of the same name are added.

    >>> add_gradients({"a": 1.0, "b": 2.0}, {"b": 0.5})
    {'a': 1.0, 'b': 2.5}
    """
    return {**grads, **{name: grads[name] + g if name in grads else g for name, g in more.items()}}
