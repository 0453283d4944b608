"""The embedding of class numbers."""

from __future__ import annotations

from typing import Any

from .. import constraints, initializers, regularizers
from ..backend import Array
from ..core.settings import part, setting
from ..errors import number
from ..kernels.context import Context
from .base import Backward, Layer, registry

__all__ = ["Embedding"]

LARGEST_CLASS = 2**24  # float32 counts in ones up to here


@registry.register
class Embedding(Layer):
    """y = E[x]: for each class number x its row of the table E.

    Args:
        input_dim: number of classes, at most 2^24: class numbers are floats of the model's precision, and float32
            is exact up to there.
        output_dim: size of the output's last axis.
        embeddings_initializer: initial values of E, shape (input_dim, output_dim); `"uniform"` is in +-0.05.
        embeddings_regularizer, embeddings_constraint: of all of E, or None. name, dtype, trainable: see `Layer`.

    Raises:
        InvalidValueError: input_dim or output_dim is out of range; data of a model, or a host array, have numbers
            that are not integers from 0 to input_dim - 1. Such a number in an array on a device, or computed by
            another layer, gives a row of NaN; in training the guard then rejects the step.

    Inputs (batch, ...) become outputs (batch, ..., output_dim). dE_v is the sum of dy over all places where x is
    v; dx is 0. Where `ops.sum_rows` has no twin, dE is a product with one-hot vectors: input_dim numbers for each
    class number of a batch. Keras' arguments, without `mask_zero`, `weights` and the LoRA ranks.

    >>> layer = Embedding(3, 2)
    >>> layer.ensure_built((2,))
    (2, 2)
    >>> layer.set_weights([[[0.0, 0.5], [1.0, 1.5], [2.0, 2.5]]])
    >>> layer([[2, 0]]).tolist()
    [[[2.0, 2.5], [0.0, 0.5]]]
    """

    input_dim: int = setting(number, 1, LARGEST_CLASS, integer=True, fixed=True)
    output_dim: int = setting(number, 1, integer=True, fixed=True)
    embeddings_initializer: Any = part(initializers.get, default="uniform", fixed=True)
    embeddings_regularizer: Any = part(regularizers.get, default=None)
    embeddings_constraint: Any = part(constraints.get, default=None)

    @property
    def classes(self) -> int | None:
        """The number of classes."""
        return self.input_dim

    def build(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Declare the table."""
        shape = (self.input_dim, self.output_dim)
        rules = {"regularizer": self.embeddings_regularizer, "constraint": self.embeddings_constraint}
        self.add_weight("embeddings", shape, self.embeddings_initializer, **rules)
        return (*input_shape, self.output_dim)

    def forward(self, ctx: Context, params: dict[str, Array], x: Array) -> tuple[Array, Backward]:
        """Return the rows of the table and the backward."""
        xp, table = ctx.xp, params["embeddings"]
        y, back = ctx.ops.lookup(ctx, table, xp.reshape(x, (*table.shape[:-2], -1)))

        def backward(dy: Array, into: dict[str, Array], want_dx: bool = True) -> Any:
            grad = back(xp.reshape(dy, y.shape), into.get("embeddings"))
            return (xp.zeros_like(x) if want_dx else None), {"embeddings": grad}

        return xp.reshape(y, (*x.shape, self.output_dim)), backward
