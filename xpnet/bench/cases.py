"""Benchmark cases: dense networks, their tasks, their operation counts and data."""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import datasets
from ..backend import np
from ..errors import DownloadError, MissingExtraError

__all__ = ["JOBS", "LARGE", "NETWORKS", "PRECISIONS", "STEPS_PER_CALL", "TO_98", "Case", "DataSet"]

STEPS_PER_CALL = 50  # steps per call, for contestants that take several at once
TEST_ROWS = 10_000  # rows on which the loss of a whole job is computed
MAX_STACKED = 1 << 20  # largest batch, in numbers, of which a GPU gets several at once
PRECISIONS = ("float32", "tf32", "bfloat16")  # of matrix products on a GPU


class DataSet(NamedTuple):
    """Rows on the host, shared by all contestants, which must not write to them.

    Attributes:
        x, y: inputs and class numbers. x_test, y_test: those on which the loss is computed.
        source: a description of their origin.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    source: str


class Case(NamedTuple):
    """A dense ReLU network with softmax cross-entropy, and the task to time.

    Attributes:
        layers: sizes from the input to the classes. batch: rows per step. optimizer: `"adam"` or `"sgd"`.
        dtype: `"float32"` or `"float64"`, on a GPU also `"mixed_bfloat16"`: float32 weights, bfloat16 products.
        rate: the learning rate. dropout: rate after each hidden layer.
        kind: `"step"`: a training step; `"mnist"`: an epoch of `fit`; `"predict"`; `"to98"`: training until 98 %
            of the test images are classified correctly. rows: of an epoch or a prediction.
        device: `"cpu"`, or `"cuda"`: all contestants compute on the GPU. tf32: whether float32 products may round
            their factors to 10 bits.
    """

    layers: tuple[int, ...]
    batch: int
    optimizer: str = "adam"
    dtype: str = "float32"
    rate: float = 1e-3
    dropout: float = 0.0
    kind: str = "step"
    rows: int = 0
    device: str = "cpu"
    tf32: bool = False

    @property
    def stored(self) -> str:
        """The dtype of data and weights."""
        return "float32" if self.dtype == "mixed_bfloat16" else self.dtype

    @property
    def precision(self) -> str:
        """The type to which factors of products are rounded: one of `PRECISIONS`, or float64.

        >>> [NETWORKS[0].in_precision(name).precision for name in PRECISIONS]
        ['float32', 'tf32', 'bfloat16']
        """
        return "bfloat16" if self.dtype == "mixed_bfloat16" else "tf32" if self.tf32 else self.dtype

    def in_precision(self, name: str) -> Case:
        """Return the case with products in one of `PRECISIONS`."""
        return self._replace(dtype="mixed_bfloat16" if name == "bfloat16" else "float32", tf32=name == "tf32")

    @property
    def name(self) -> str:
        """Its name in the tables.

        >>> NETWORKS[0].name
        '20-64-64-2, 32'
        >>> JOBS["mnist"].name
        'one epoch: 784-128-10, 128, dropout 0.2'
        """
        network = "-".join(map(str, self.layers))
        if self.kind == "predict":
            return f"predict: {network}, {self.rows:,} rows"
        dropout = f", dropout {self.dropout}" if self.dropout else ""
        text = f"{network}, {self.batch}{dropout}"
        return {"mnist": "one epoch: ", "to98": "to 98 %: "}.get(self.kind, "") + text

    @property
    def size(self) -> int:
        """The rows in one step, epoch or prediction."""
        return self.batch if self.kind == "step" else self.rows

    @property
    def flops(self) -> int:
        """Floating-point operations of the products; training has forward, dW, and dx except in the first layer.

        For `"to98"`, those of one epoch, because the number of epochs is unknown.

        >>> Case((4, 3, 2), 10).flops, Case((4, 3, 2), 10, kind="predict", rows=20).flops
        (840, 720)
        """
        sizes = [a * b for a, b in zip(self.layers, self.layers[1:])]
        return 2 * self.size * (sum(sizes) if self.kind == "predict" else 3 * sum(sizes) - sizes[0])

    @property
    def batches(self) -> int:
        """The number of batches in the data of a step."""
        return 1 if self.device != "cpu" and self.batch * self.layers[0] > MAX_STACKED else STEPS_PER_CALL

    def weights(self) -> list[np.ndarray]:
        """Return a kernel (inputs, outputs) and a bias for each layer in turn, for `predict`."""
        rng = np.random.default_rng(1)
        arrays: list[np.ndarray] = []
        for a, b in zip(self.layers, self.layers[1:]):
            arrays += [rng.standard_normal((a, b)) * (2.0 / a) ** 0.5, rng.standard_normal(b) * 0.1]
        return [array.astype(self.stored) for array in arrays]

    def data(self) -> DataSet:
        """Return the rows: for jobs MNIST if available, else learnable random data."""
        if self.kind == "step":
            x, y = self._synthetic(self.batches * self.batch)
            return DataSet(x, y, x[: self.batch], y[: self.batch], "normal random numbers")
        if self.layers[0] == 784:
            try:
                (x, y), (xt, yt) = datasets.mnist()
            except (DownloadError, MissingExtraError):
                pass  # `source` says so
            else:
                x, xt = (a.reshape(-1, 784).astype(self.stored) / np.asarray(255, self.stored) for a in (x, xt))
                return DataSet(x[: self.rows], y[: self.rows], xt[:TEST_ROWS], yt[:TEST_ROWS], "MNIST")
        tested = min(TEST_ROWS, self.rows)
        x, y = self._synthetic(self.rows + tested)
        split = self.rows
        return DataSet(x[:split], y[:split], x[split:], y[split:], "random numbers instead of MNIST")

    def _synthetic(self, rows: int) -> Any:
        """Return normal inputs; labels are the argmax of random linear functions of them."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((rows, self.layers[0]), dtype=np.float32).astype(self.stored, copy=False)
        classes = rng.standard_normal((self.layers[0], self.layers[-1])).astype(self.stored)
        return x, np.argmax(x @ classes, axis=1).astype(np.int64)


NETWORKS = (
    Case((20, 64, 64, 2), 32),
    Case((784, 128, 10), 32),
    Case((784, 512, 512, 10), 128),
    Case((1024, 2048, 2048, 10), 512),
)
LARGE = (  # for a GPU
    Case((784, 512, 512, 10), 1024),
    Case((784, 512, 512, 10), 8192),
    Case((4096, 4096, 4096, 10), 4096),
)
JOBS = {
    "mnist": Case((784, 128, 10), 128, dropout=0.2, kind="mnist", rows=60_000),
    "predict": Case((784, 512, 512, 10), 1024, kind="predict", rows=60_000),
}
# the network of examples/06_mnist.py
TO_98 = Case((784, 512, 512, 10), 128, dropout=0.2, kind="to98", rows=60_000)
