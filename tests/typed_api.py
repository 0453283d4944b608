"""Code of a user of the public API, for `mypy --strict` (see noxfile.py): signatures are visible and exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_type

import xpnet as xn
from xpnet.errors import number
from xpnet.layers import Dense, Stateless
from xpnet.optimizers import Adam, AdamW


class Scale(Stateless):
    """A user-defined layer."""

    factor: float = xn.setting(number, 0, default=2.0)

    def call(self, ctx: Any, x: Any) -> tuple[Any, Callable[[Any], Any]]:
        """Return factor * x."""
        return self.factor * x, lambda dy: self.factor * dy


class Sign(xn.optimizers.Optimizer):
    """A user-defined optimizer."""

    beta: float = xn.setting(number, 0, 1, default=0.9)

    def formula(self, xp: Any) -> Callable[..., Any]:
        """Return the update of one element."""
        return lambda w, g, lr: w - lr * xp.sign(g)


def use() -> None:
    """Never called: only type checkers read it."""
    model = xn.Sequential([xn.layers.Input((3,)), Dense(4, "relu", name="first"), Scale(0.5), Dense(1)], seed=0)
    model.compile(Adam(0.01, beta_1=0.5, clipnorm=1.0), xn.losses.Huber(2.0), [xn.metrics.Precision(), "mse"])
    history = model.fit(
        [[1.0, 2.0, 3.0]], [1.0], epochs=2, callbacks=[xn.callbacks.EarlyStopping("loss", patience=3)]
    )
    assert_type(history, xn.callbacks.History)
    assert_type(model.layers, tuple[xn.layers.Layer, ...])
    assert_type(xn.load_model("file"), xn.Sequential)
    assert_type(model.weights, list[xn.layers.Variable])
    assert_type(model.layers[0].trainable_variables, list[xn.layers.Variable])
    assert_type(model.weights[0].path, str)
    assert_type(model.get_layer(index=-1), xn.layers.Layer)
    assert_type(xn.Sequential.from_config(model.get_config()), xn.Sequential)
    assert_type(xn.model_from_json(model.to_json(), {"Scale": Scale}), xn.Sequential)
    assert_type(model.history, xn.callbacks.History | None)
    model.save_weights("weights")
    model.compute(model.predict_on_batch([[1.0, 2.0, 3.0]]), upto="first")
    xn.utils.set_random_seed(0)
    assert_type(Scale().factor, float)
    assert_type(Dense(3).units, int)
    block = xn.layers.Residual([Dense(4, "relu"), xn.layers.Parallel([Dense(2), Dense(2)], merge="concat")])
    xn.Sequential([xn.layers.Embedding(10, 4), block, xn.Sequential([Dense(1)], name="head")])
    xn.layers.Normalization().adapt([[1.0], [2.0]])
    AdamW(xn.schedules.ExponentialDecay(0.1, 10, 0.5), 0.01)
    xn.layers.ReLU(max_value=6.0, name="last")
    xn.activations.gelu([1.0], approximate=True)
    Dense(3, xn.activations.Elu(0.5))
    Sign(0.1, beta=0.5)
    xn.metrics.MeanSquaredError(name="mse")
    xn.metrics.AUC(200, "PR", thresholds=[0.5])
    xn.metrics.SparseTopKCategoricalAccuracy(3, from_sorted_ids=True)
    xn.metrics.BinaryAccuracy("hits", "float64", 0.3)
    xn.metrics.PrecisionAtRecall("0.5")  # type: ignore[arg-type]
    Dense(units="3")  # type: ignore[arg-type]
    Dense(3, colour="red")  # type: ignore[call-arg]
    xn.losses.BinaryCrossentropy(from_logits="no")  # type: ignore[arg-type]
    xn.losses.SparseCategoricalCrossentropy(True, -1, axis=1, label_smoothing=0.1)
    xn.losses.CategoricalFocalCrossentropy([0.1, 0.9], 2.0, from_logits=True)
    xn.losses.Tversky(0.3, 0.7, axis=(1, 2), reduction="sum")
    xn.layers.Dense(3, kernel_constraint=xn.constraints.MaxNorm(1.0, axis=(0, 1)), bias_constraint="non_neg")
    xn.optimizers.Adam(xn.schedules.CosineDecay(0.0, 100, warmup_target=0.1, warmup_steps=10))
    xn.constraints.MaxNorm(norm=1.0)  # type: ignore[call-arg]
    xn.regularizers.L2(l1=0.1)  # type: ignore[call-arg]
    xn.activations.Softmax(axis="last")  # type: ignore[arg-type]
