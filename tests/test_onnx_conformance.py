"""The ONNX project's operator vectors (SOURCE.txt beside them), for the operators that xpnet has.

Omitted on purpose: nllloss_* (its inputs are not logarithms of probabilities), gemm with a bias matrix.
"""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from xpnet import activations
from xpnet.core import ops
from xpnet.kernels.context import Context
from xpnet.layers import BatchNormalization, Dense, Dropout, Flatten, PReLU
from xpnet.losses import SparseCategoricalCrossentropy
from xpnet.optimizers import SGD, Adam
from xpnet.testing import assert_close

DATA = os.environ.get("XPNET_DATA")
FOLDER = os.environ.get("XPNET_CONFORMANCE") or (
    DATA and Path(DATA).resolve().parent / "conformance" / "onnx_node"
)
pytestmark = pytest.mark.skipif(
    not FOLDER or not Path(FOLDER).is_dir(), reason="neither XPNET_CONFORMANCE nor XPNET_DATA contains onnx_node"
)

SCE = [
    f"sce_{name}{log}"
    for name in (
        "NCd1_mean_weight_negative_ii", "NCd1d2d3_none_no_weight_negative_ii", "NCd1d2d3_sum_weight_high_ii",
        "NCd1d2d3d4d5_mean_weight", "NCd1d2d3d4d5_none_no_weight", "mean", "mean_3d", "mean_no_weight_ii",
        "mean_no_weight_ii_3d", "mean_no_weight_ii_4d", "mean_weight", "mean_weight_ii", "mean_weight_ii_3d",
        "mean_weight_ii_4d", "none", "none_weights", "sum",
    )
    for log in ("", "_log_prob")
]  # fmt: skip
USED = {
    "activation": [
        "relu", "leakyrelu", "leakyrelu_default", "leakyrelu_example", "sigmoid", "sigmoid_example", "tanh",
        "tanh_example", "softmax_axis_0", "softmax_axis_1", "softmax_axis_2", "softmax_default_axis",
        "softmax_example", "softmax_large_number", "softmax_negative_axis",
    ],
    "prelu": ["prelu_broadcast", "prelu_example"],
    "gemm": [
        "gemm_all_attributes", "gemm_alpha", "gemm_beta", "gemm_default_no_bias", "gemm_default_scalar_bias",
        "gemm_default_single_elem_vector_bias", "gemm_default_vector_bias", "gemm_default_zero_bias",
        "gemm_transposeA", "gemm_transposeB",
    ],
    "matmul": ["matmul_2d", "matmul_3d", "matmul_4d"],
    "sce": SCE,
    "batch_norm": [
        "batchnorm_epsilon", "batchnorm_example", "batchnorm_epsilon_training_mode",
        "batchnorm_example_training_mode",
    ],
    "dropout": [
        "dropout_default", "dropout_default_mask", "dropout_default_mask_ratio", "dropout_default_old",
        "dropout_default_ratio", "dropout_random_old", "training_dropout_zero_ratio",
        "training_dropout_zero_ratio_mask",
    ],
    "dropout_mask": ["training_dropout_mask", "training_dropout_default_mask"],
    "flatten": ["flatten_axis1", "flatten_default_axis", "flatten_negative_axis3"],
    "adam": ["adam", "adam_multiple"],
    "momentum": ["momentum", "momentum_multiple", "nesterov_momentum"],
}  # fmt: skip


# Reading --------------------------------------------------------------------------------------------------


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields(data):
    """Yield (number, value) of a protobuf message: integers, or bytes."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = varint(data, at)
        else:
            size, at = varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = data[at : at + size], at + size
        yield number, value


def varints(data):
    at = 0
    while at < len(data):
        value, at = varint(data, at)
        yield value


def tensor(path):
    """Return the array of a TensorProto file: dims 1, data_type 2, float_data 4, int64_data 7, raw_data 9."""
    dims, parts, raw, dtype = [], [], None, None
    for number, value in fields(path.read_bytes()):
        if number == 1:
            dims += [value] if isinstance(value, int) else varints(value)
        elif number == 2:
            dtype = {1: "<f4", 6: "<i4", 7: "<i8", 9: "?", 11: "<f8"}[value]
        elif number == 4:
            parts += struct.unpack(f"<{len(value) // 4}f", value)
        elif number in (5, 7):
            parts += [value] if isinstance(value, int) else varints(value)
        elif number == 9:
            raw = value
    flat = np.array(parts, dtype=dtype) if raw is None else np.frombuffer(raw, dtype=dtype)
    return flat.reshape(dims)


def read(name):
    """Return attributes, inputs and outputs of a vector."""
    index = json.loads((Path(FOLDER) / "INDEX.json").read_text())[f"test_{name}"]
    (node,) = index["nodes"]
    folder = Path(FOLDER) / f"test_{name}" / "test_data_set_0"
    sides = []
    for side in ("input", "output"):
        found = [tensor(folder / f"{side}_{i}.pb") for i in range(len(index[f"{side}s"]))]
        assert [[str(a.dtype), list(a.shape)] for a in found] == index[f"{side}s"]
        sides.append(found)
    return node["op"], node["attrs"], *sides


def close(backend, found, expected):
    assert_close(backend.host(found), np.asarray(expected), rtol=1e-5, atol=1e-6)


# Running --------------------------------------------------------------------------------------------------


def run_activation(backend, op, attrs, inputs, outputs):
    name = {"Relu": "relu", "LeakyRelu": "leaky_relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Softmax": "softmax"}[
        op
    ]
    f = activations.LeakyReLU(attrs.get("alpha", 0.01)) if op == "LeakyRelu" else activations.get(name)
    axis = attrs.get("axis", -1)
    x, y = (np.moveaxis(a, axis, -1) for a in (inputs[0], outputs[0]))
    close(backend, f(backend.array(x)), y)


def run_prelu(backend, op, attrs, inputs, outputs):
    x, slope = inputs
    layer = PReLU()
    layer.ensure_built(x.shape)
    layer.set_weights([np.broadcast_to(slope, x.shape)])
    close(backend, layer(backend.array(x[None])), outputs[0][None])


def run_gemm(backend, op, attrs, inputs, outputs):
    a, b = (m.T if attrs.get(f"trans{n}") else m for m, n in zip(inputs, "AB"))
    bias = len(inputs) > 2
    layer = Dense(b.shape[1], use_bias=bias)
    layer.ensure_built(a.shape[1:])
    row = [attrs.get("beta", 1.0) * np.broadcast_to(inputs[2], (1, b.shape[1]))[0]] if bias else []
    layer.set_weights([attrs.get("alpha", 1.0) * b, *row])
    close(backend, layer(backend.array(a)), outputs[0])


def run_matmul(backend, op, attrs, inputs, outputs):
    y, _ = ops.affine(Context(backend), *map(backend.array, inputs), None, activations.get("linear"))
    close(backend, y, outputs[0])


def run_sce(backend, op, attrs, inputs, outputs):
    """The class axis moves to the end; class weights and ignored labels become row weights."""
    z, labels = np.moveaxis(inputs[0], 1, -1), inputs[1]
    counted = labels != attrs["ignore_index"] if "ignore_index" in attrs else np.ones(labels.shape, bool)
    labels = np.where(counted, labels, 0)
    rows = counted * (inputs[2][labels] if len(inputs) > 2 else np.float32(1))
    reduction = {"mean": "mean_with_sample_weight", "sum": "sum", "none": "none"}[attrs["reduction"]]
    loss = SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    close(backend, loss(labels, backend.array(z), rows.astype(np.float32)), outputs[0])
    if len(outputs) > 1:
        softmax = activations.get("softmax")(backend.array(z))
        close(backend, backend.xp.log(softmax), np.moveaxis(outputs[1], 1, -1))


def run_batch_norm(backend, op, attrs, inputs, outputs):
    x, *weights = inputs
    x, wanted = (np.moveaxis(a, 1, -1) for a in (x, outputs[0]))
    layer, training = BatchNormalization(0.9, attrs.get("epsilon", 1e-5)), bool(attrs.get("training_mode"))
    layer.ensure_built(x.shape[1:])
    ctx, on = Context(backend, training), map(backend.array, weights)
    y, _ = layer.forward(ctx, dict(zip((s.name for s in layer.specs), on)), backend.array(x))
    close(backend, y, wanted)
    assert len(ctx.carry) == 2 * training
    for found, statistic in zip(ctx.carry.values(), outputs[1:]):
        close(backend, found, statistic)


def run_dropout(backend, op, attrs, inputs, outputs):
    rate = attrs.get("ratio", float(inputs[1]) if len(inputs) > 1 else 0.5)
    training = len(inputs) > 2 and bool(inputs[2])
    close(backend, Dropout(rate)(backend.array(inputs[0]), training=training), outputs[0])


def run_dropout_mask(backend, op, attrs, inputs, outputs):
    y, _ = ops.dropout(Context(backend), backend.array(inputs[0]), backend.array(outputs[1]), float(inputs[1]))
    close(backend, y, outputs[0])


def run_flatten(backend, op, attrs, inputs, outputs):
    close(backend, Flatten()(backend.array(inputs[0])), outputs[0])


def optimizer_inputs(backend, attrs, inputs, kinds):
    """Return rate, T, and the variables joined to one flat array each; the L2 penalty is in the gradient."""
    rate, age, *rest = inputs
    n = len(rest) // kinds
    w, g, *slots = (backend.array(np.concatenate(rest[i * n : (i + 1) * n])) for i in range(kinds))
    ctx, size = Context(backend), w.shape[0]
    g = ops.penalize(ctx, w, g, ((0, size, 0.0, attrs["norm_coefficient"] / 2),))[1]
    return ctx, backend.scalar(float(rate)), int(age), w, g, slots


def run_adam(backend, op, attrs, inputs, outputs):
    ctx, rate, age, w, g, slots = optimizer_inputs(backend, attrs, inputs, 4)
    age = backend.scalar(float(age) if age else 1e9)  # T = 0: no bias correction, as at a large age
    adam = Adam(beta_1=attrs["alpha"], beta_2=attrs["beta"], epsilon=attrs["epsilon"])
    found = ops.update(ctx, adam, w, g, tuple(slots), rate, age)
    close(backend, backend.xp.concat([found[0], *found[1]]), np.concatenate(outputs))


def run_momentum(backend, op, attrs, inputs, outputs):
    """ONNX: V' = alpha V + beta G, X' = X - R V'. xpnet has v = -R V, with beta G as its gradient."""
    ctx, rate, age, w, g, (v,) = optimizer_inputs(backend, attrs, inputs, 3)
    sgd = SGD(momentum=attrs["alpha"], nesterov=attrs["mode"] == "nesterov")
    g = g * (attrs["beta"] if age else 1.0)
    new, (velocity,) = ops.update(ctx, sgd, w, g, (-rate * v,), rate, rate)
    close(backend, backend.xp.concat([new, -velocity / rate]), np.concatenate(outputs))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in USED.items() for name in names])
def test_vector(backend, kind, name):
    globals()[f"run_{kind}"](backend, *read(name))


def test_the_reader_knows_every_form():
    """By hand: a message with packed and unpacked dims, and float_data instead of raw_data."""
    path = Path(FOLDER) / "test_relu" / "test_data_set_0" / "input_0.pb"
    assert tensor(path).shape == (3, 4, 5)
    assert list(fields(bytes([0x08, 0x96, 0x01, 0x22, 0x02, 0x01, 0x02]))) == [(1, 150), (4, b"\x01\x02")]
    assert sum(map(len, USED.values())) == 86
