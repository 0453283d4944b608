"""The ONNX project's operator vectors (SOURCE.txt beside them), for the operators that xpnet has.

Left out on purpose: nllloss_* (its inputs are no logarithms of probabilities, so that they are no scores either:
`SparseCategoricalCrossentropy` would subtract the logarithm of their sum), gemm with a bias matrix.
"""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from xpnet import activations, setting
from xpnet.core import ops
from xpnet.core.special import erf
from xpnet.kernels.context import Context
from xpnet.layers import (
    BatchNormalization,
    CategoryEncoding,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GroupNormalization,
    LayerNormalization,
    Parallel,
    Permute,
    PReLU,
    Reshape,
    RMSNormalization,
    Stateless,
    UnitNormalization,
)
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

ROW_NORMS = ["default_axis"] + [
    f"{n}d_axis{axis}{'_epsilon' if n == 3 else ''}"
    for n in (2, 3, 4)
    for axis in (*range(n), *(f"_negative_{a}" for a in range(1, n + 1)))
]
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
        "softmax_example", "softmax_large_number", "softmax_negative_axis", "logsoftmax_axis_0",
        "logsoftmax_axis_1", "logsoftmax_axis_2", "logsoftmax_default_axis", "logsoftmax_example_1",
        "logsoftmax_large_number", "logsoftmax_negative_axis", "celu", "elu", "elu_default", "elu_example", "exp",
        "exp_example", "gelu_default_1", "gelu_default_2", "gelu_tanh_1", "gelu_tanh_2", "hardswish", "identity",
        "mish", "selu", "selu_default", "selu_example", "softplus", "softplus_example", "softsign",
        "softsign_example", "swish", "thresholdedrelu", "thresholdedrelu_default", "thresholdedrelu_example",
    ],
    "hard_sigmoid": ["hardsigmoid", "hardsigmoid_default", "hardsigmoid_example"],
    "erf": ["erf"],
    "clip": ["clip", "clip_example"],
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
    "dropout_mask": [f"training_dropout{name}" for name in ("", "_default", "_mask", "_default_mask")],
    "row_norm": [f"{kind}_normalization_{name}" for kind in ("layer", "rms") for name in ROW_NORMS],
    "group_norm": [
        "group_normalization_epsilon", "group_normalization_example", "instancenorm_epsilon",
        "instancenorm_example",
    ],
    "mvn": ["mvn"],
    "unit_norm": ["l2normalization_axis_0", "l2normalization_axis_1", "lpnormalization_default"],
    "flatten": ["flatten_axis1", "flatten_default_axis", "flatten_negative_axis3"],
    "reshape": [
        "flatten_axis0", "flatten_axis2", "flatten_axis3", "flatten_negative_axis1", "flatten_negative_axis2",
        "flatten_negative_axis4",
    ],
    "permute": ["transpose_default", *(f"transpose_all_permutations_{i}" for i in range(6))],
    "embedding": ["gather_0", "gather_1", "gather_2d_indices", "gather_negative_indices"],
    "category_encoding": [
        "onehot_negative_indices", "onehot_with_axis", "onehot_with_negative_axis", "onehot_without_axis",
    ],
    "parallel": [
        "add", "mul", "mul_example", "max_example", "max_float32", "max_float64", "max_one_input",
        "max_two_inputs", "mean_example", "mean_one_input", "mean_two_inputs", "sum_example", "sum_one_input",
        "sum_two_inputs",
    ],
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


ACTIVATIONS = {  # of ONNX -> of the operator's attributes
    "Celu": lambda alpha=1.0: activations.Celu(alpha),
    "Elu": lambda alpha=1.0: activations.Elu(alpha),
    "Exp": activations.Exponential,
    "Gelu": lambda approximate="none": activations.Gelu(approximate == "tanh"),
    "HardSwish": activations.HardSilu,
    "Identity": activations.Linear,
    "LeakyRelu": lambda alpha=0.01: activations.LeakyReLU(alpha),
    "LogSoftmax": activations.LogSoftmax,
    "Mish": activations.Mish,
    "Relu": activations.ReLU,
    "Selu": lambda alpha=activations.Selu.alpha, gamma=activations.Selu.scale: selu(alpha, gamma),
    "Sigmoid": activations.Sigmoid,
    "Softmax": activations.Softmax,
    "Softplus": activations.Softplus,
    "Softsign": activations.Softsign,
    "Swish": lambda alpha: {1.0: activations.Silu()}[alpha],
    "Tanh": activations.Tanh,
    "ThresholdedRelu": lambda alpha=1.0: activations.Threshold(alpha, 0.0),
}


def selu(alpha, gamma):
    """Return the function with these numbers, which here belong to the class."""
    return type("Selu", (activations.Selu,), {"alpha": alpha, "scale": gamma})()


def run_activation(backend, op, attrs, inputs, outputs):
    close(backend, ACTIVATIONS[op](**attrs)(backend.array(inputs[0])), outputs[0])


def run_hard_sigmoid(backend, op, attrs, inputs, outputs):
    """ONNX has max(0, min(1, alpha x + beta)), ours alpha = 1/6 and beta = 1/2."""
    z = attrs.get("alpha", 0.2) * inputs[0] + attrs.get("beta", 0.5)
    close(backend, activations.hard_sigmoid(backend.array(6 * z - 3)), outputs[0])


def run_clip(backend, op, attrs, inputs, outputs):
    assert [float(limit) for limit in inputs[1:]] == [-1.0, 1.0]
    close(backend, activations.hard_tanh(backend.array(inputs[0])), outputs[0])


def run_erf(backend, op, attrs, inputs, outputs):
    close(backend, erf(backend.xp, backend.array(inputs[0])), outputs[0])


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
    """Classes are on axis 1; their weights become weights of the rows."""
    z, labels, *weights = inputs
    ignored = attrs.get("ignore_index")
    rows = weights[0][np.where(labels == ignored, 0, labels)] if weights else None
    reduction = {"mean": "mean_with_sample_weight", "sum": "sum", "none": "none"}[attrs["reduction"]]
    loss = SparseCategoricalCrossentropy(from_logits=True, reduction=reduction, axis=1, ignore_class=ignored)
    close(backend, loss(labels, backend.array(z), rows), outputs[0])
    if len(outputs) > 1:
        softmax = activations.get("softmax")(backend.array(np.moveaxis(z, 1, -1)))
        close(backend, backend.xp.log(softmax), np.moveaxis(outputs[1], 1, -1))


def run_batch_norm(backend, op, attrs, inputs, outputs):
    x, *weights = inputs
    x, wanted = (np.moveaxis(a, 1, -1) for a in (x, outputs[0]))
    layer = BatchNormalization(momentum=0.9, epsilon=attrs.get("epsilon", 1e-5))
    training = bool(attrs.get("training_mode"))
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
    """With the mask of the vector; those without one show it by their zeros."""
    keep = outputs[1] if len(outputs) > 1 else outputs[0] != 0
    y, _ = ops.dropout(Context(backend), backend.array(inputs[0]), backend.array(keep), float(inputs[1]))
    close(backend, y, outputs[0])


def run_layer(backend, layer, x, weights, y):
    layer.ensure_built(x.shape[1:])
    layer.set_weights(weights)
    close(backend, layer(backend.array(x)), y)


def run_row_norm(backend, op, attrs, inputs, outputs):
    """All axes from one on, which may be the first: the whole becomes one row."""
    x, *weights = inputs
    axis = attrs.get("axis", -1)
    axes = tuple(a + 1 for a in range(axis % x.ndim, x.ndim))
    cls = LayerNormalization if op == "LayerNormalization" else RMSNormalization
    run_layer(backend, cls(axes, attrs.get("epsilon", 1e-5)), x[None], weights, outputs[0][None])


def run_group_norm(backend, op, attrs, inputs, outputs):
    layer = GroupNormalization(attrs.get("num_groups", -1), 1, attrs.get("epsilon", 1e-5))
    run_layer(backend, layer, inputs[0], inputs[1:], outputs[0])


def run_mvn(backend, op, attrs, inputs, outputs):
    """Over the axes 0, 2, 3: a batch's normalization of the features of axis 1."""
    layer = BatchNormalization(1, epsilon=0, center=False, scale=False)
    close(backend, layer(backend.array(inputs[0]), training=True), outputs[0])


def run_unit_norm(backend, op, attrs, inputs, outputs):
    close(backend, UnitNormalization(attrs.get("axis", -1))(backend.array(inputs[0])), outputs[0])


def run_flatten(backend, op, attrs, inputs, outputs):
    close(backend, Flatten()(backend.array(inputs[0])), outputs[0])


def run_reshape(backend, op, attrs, inputs, outputs):
    close(backend, Reshape((*outputs[0].shape[:-1], -1))(backend.array(inputs[0][None])), outputs[0][None])


def run_permute(backend, op, attrs, inputs, outputs):
    axes = attrs.get("perm", range(inputs[0].ndim)[::-1])
    close(backend, Permute([a + 1 for a in axes])(backend.array(inputs[0][None])), outputs[0][None])


def run_embedding(backend, op, attrs, inputs, outputs):
    """The axis of the classes moves first, the other axes become one; an index < 0 counts from the end."""
    (table, index), axis = inputs, attrs["axis"]
    table = np.moveaxis(table, axis, 0)
    layer = Embedding(len(table), table[0].size)
    layer.ensure_built(index.shape[1:])
    layer.set_weights([table.reshape(len(table), -1)])
    rows = backend.host(layer(backend.array(index % len(table), "float32")))
    found = rows.reshape(*index.shape, *table.shape[1:])
    axes = range(index.ndim)
    close(backend, backend.array(np.moveaxis(found, axes, [axis + i for i in axes])), outputs[0])


def run_category_encoding(backend, op, attrs, inputs, outputs):
    """The axis of the classes comes last; an index < 0 counts from the end."""
    index, depth, (off, on) = inputs[0], int(inputs[1]), inputs[2].astype(np.float32)
    index = (index % depth).astype(np.float32)
    layer = CategoryEncoding(depth, "one_hot")
    hot = backend.host(layer(backend.array(index[:, None] if index.ndim == 1 else index)))
    close(backend, backend.array(np.moveaxis(off + (on - off) * hot, -1, attrs.get("axis", -1))),
          outputs[0].astype(np.float32))  # fmt: skip


class Pick(Stateless):
    """One of several inputs, which lie along the second axis."""

    index: int = setting()

    def build(self, input_shape):
        return input_shape[1:]

    def call(self, ctx, x):
        return x[:, self.index, ...], lambda dy: dy


def run_parallel(backend, op, attrs, inputs, outputs):
    merge = {"Add": "add", "Sum": "add", "Mul": "multiply", "Max": "maximum", "Mean": "average"}[op]
    layer = Parallel([Pick(i) for i in range(len(inputs))], merge)
    close(backend, layer(backend.array(np.stack(inputs)[None])), outputs[0][None])


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
    assert sum(map(len, USED.values())) == 206
