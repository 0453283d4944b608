"""Compare training across backends on one fixed dropout network, step by step.

For the same seed, initial weights, batch order and dropout masks must be bit-equal. Over 100 steps of Adam at rate
1e-3, the losses must agree with those of the reference implementation on NumPy to a relative 1e-9 (float64) or
1e-4 (float32). With other seeds or larger rates, one ReLU input of opposite sign can make float32 losses diverge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

from ..backend import available_backends, get_backend, np
from ..errors import number
from ..kernels import using
from ..layers import Dense, Dropout, Input
from ..model import Sequential
from ..optimizers import Adam
from ..training import loop
from ..training.data import Data
from ..training.step import zero_sums

__all__ = ["MAX_DIFFERENCE", "Run", "compare", "run"]

MAX_DIFFERENCE = {"float64": 1e-9, "float32": 1e-4}
ROWS, FEATURES, CLASSES, BATCH = 480, 20, 5, 32


class Run(NamedTuple):
    """The result of a run: SHA-256 digests of the bits, and the loss before each step."""

    weights: str
    batches: str
    masks: str
    losses: np.ndarray


class Row(NamedTuple):
    """One comparison with the reference."""

    backend: str
    dtype: str
    seed: int
    weights_equal: bool
    batches_equal: bool
    masks_equal: bool
    difference: float

    @property
    def passed(self) -> bool:
        """Whether all bits are equal and the losses agree."""
        bits = self.weights_equal and self.batches_equal and self.masks_equal
        return bits and self.difference <= MAX_DIFFERENCE[self.dtype]


def run(backend: str, dtype: str, seed: int, steps: int = 100, kernels: bool = True) -> Run:
    """Train the fixed network for some steps, with `kernels` or with the reference implementation.

    >>> run("numpy", "float32", 0, steps=2).losses.shape
    (2,)
    """
    steps = number("steps", steps, 1, integer=True)
    with nullcontext() if kernels else using("bodies"):
        rng = np.random.Generator(np.random.Philox(1234))
        x = rng.standard_normal((ROWS, FEATURES)).astype(np.float32)
        y = np.argmax(x @ rng.standard_normal((FEATURES, CLASSES)), axis=1)
        model = Sequential(
            [
                Input((FEATURES,)),
                Dense(32, activation="relu"),
                Dropout(0.2),
                Dense(32, activation="relu"),
                Dropout(0.5),
                Dense(CLASSES, activation="softmax"),
            ],
            seed=seed,
            backend=get_backend(backend, dtype=dtype),
        )
        model.compile(Adam(1e-3), "sparse_categorical_crossentropy")
        program, work, data = model.session.program(), model.backend, Data(x, y)
        digests = {name: hashlib.sha256() for name in ("weights", "batches", "masks")}
        digests["weights"].update(work.host(model.flat_weights).tobytes())
        losses = np.empty(steps)
        model.session.state = model.state._replace(lr=work.scalar(1e-3))
        per_epoch = ROWS // BATCH
        for step in range(steps):
            order = model.session.stream.permutation(ROWS, step // per_epoch)
            start = step % per_epoch * BATCH
            (batch,) = loop.make_batches(model.session, program, data, order[start : start + BATCH], step)
            digests["batches"].update(work.host(batch.x).tobytes())
            digests["batches"].update(work.host(batch.y).tobytes())
            for key in sorted(batch.draws):
                digests["masks"].update(work.host(batch.draws[key]).tobytes())
            model.session.state = model.state._replace(sums=zero_sums(work, program.metrics))
            program.run(model.state, [batch], model.session.commit)
            losses[step] = float(work.host(model.state.sums).reshape(-1)[0]) / BATCH
        weights, batches, masks = (d.hexdigest() for d in digests.values())
        return Run(weights, batches, masks, losses)


def compare(
    backends: Sequence[str] | None = None,
    dtypes: Sequence[str] = ("float64", "float32"),
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 100,
) -> Iterator[Row]:
    """Compare each backend, with its twins, with the reference implementation on NumPy; yield a row for each run.

    Args:
        backends: names, or None for the available ones. dtypes, seeds: one run for each. steps: of each run.
    """
    for dtype in dtypes:
        for seed in seeds:
            reference = run("numpy", dtype, seed, steps, kernels=False)
            for name in backends or available_backends():
                found = run(name, dtype, seed, steps)
                yield Row(
                    name,
                    dtype,
                    seed,
                    found.weights == reference.weights,
                    found.batches == reference.batches,
                    found.masks == reference.masks,
                    float(np.max(np.abs(found.losses / reference.losses - 1.0))),
                )
