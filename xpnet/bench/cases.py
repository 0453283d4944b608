"""What is measured: dense networks, and the arithmetic and memory that a step of theirs must cost."""

from __future__ import annotations

from typing import NamedTuple

from ..backend import np

__all__ = ["NETWORKS", "Case"]


class Case(NamedTuple):
    """A dense ReLU network with softmax cross-entropy, and how it is trained.

    Attributes:
        layers: sizes from the input to the classes. batch: rows a step. optimizer: `"adam"` or `"sgd"`.
        dtype: `"float32"` or `"float64"`. rate: the learning rate.
    """

    layers: tuple[int, ...]
    batch: int
    optimizer: str = "adam"
    dtype: str = "float32"
    rate: float = 1e-3

    @property
    def name(self) -> str:
        """What the table calls it.

        >>> NETWORKS[0].name
        '20-64-64-2, 32'
        """
        return f"{'-'.join(map(str, self.layers))}, {self.batch}"

    @property
    def flops(self) -> int:
        """Multiplications and additions of a step's products: forward, dW, and dx but for the first layer.

        >>> Case((4, 3, 2), 10).flops
        840
        """
        sizes = [a * b for a, b in zip(self.layers, self.layers[1:])]
        return 2 * self.batch * (3 * sum(sizes) - sizes[0])

    def data(self, batches: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and labels that can be learned, for some batches."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.batch * batches, self.layers[0])).astype(self.dtype)
        classes = rng.standard_normal((self.layers[0], self.layers[-1])).astype(self.dtype)
        return x, np.argmax(x @ classes, axis=1).astype(np.int64)


NETWORKS = (
    Case((20, 64, 64, 2), 32),
    Case((784, 128, 10), 32),
    Case((784, 512, 512, 10), 128),
    Case((1024, 2048, 2048, 10), 512),
)
