"""The test tables of all parts: a row for each registered class, in each of its forms.

Add a row here for a new part; `test_cases.py` names parts without one. The tests of each kind run over all of
its rows, on every backend.
"""

import math

import numpy as np

from xpnet import metrics
from xpnet.layers import (
    Activation,
    BatchNormalization,
    Dense,
    Dropout,
    Flatten,
    Input,
    LeakyReLU,
    PReLU,
    ReLU,
    Sigmoid,
    Softmax,
    Tanh,
)
from xpnet.losses import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    Huber,
    MeanAbsoluteError,
    MeanSquaredError,
    PerceptronCriterion,
    SparseCategoricalCrossentropy,
)
from xpnet.optimizers import SGD, Adagrad, Adam, AdamW, Lamb, Momentum, RMSprop
from xpnet.regularizers import L1, L1L2, L2
from xpnet.schedules import ExponentialDecay

RNG = np.random.default_rng(0)

# Activations: name -> the function in NumPy.

ACTIVATIONS = {
    "linear": lambda z: z,
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": lambda z: (np.exp(z) - np.exp(-z)) / (np.exp(z) + np.exp(-z)),
    "relu": lambda z: np.where(z > 0, z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "softmax": lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True),
    "step": lambda z: np.where(z > 0, 1.0, 0.0),
}

# Initializers: name -> (bound, standard deviation) for fan_in 300 and fan_out 200; None if all values are equal.

INITIALIZERS = {
    "glorot_uniform": (math.sqrt(6 / 500), math.sqrt(2 / 500)),
    "glorot_normal": (2 * math.sqrt(2 / 500) / 0.87962566, math.sqrt(2 / 500)),
    "he_uniform": (math.sqrt(6 / 300), math.sqrt(2 / 300)),
    "he_normal": (2 * math.sqrt(2 / 300) / 0.87962566, math.sqrt(2 / 300)),
    "lecun_uniform": (math.sqrt(3 / 300), math.sqrt(1 / 300)),
    "lecun_normal": (2 * math.sqrt(1 / 300) / 0.87962566, math.sqrt(1 / 300)),
    "random_normal": (None, 0.05),
    "random_uniform": (0.05, 0.1 / math.sqrt(12)),
    "variance_scaling": (2 * math.sqrt(1 / 300) / 0.87962566, math.sqrt(1 / 300)),
    "zeros": None,
    "ones": None,
    "constant": None,
}

# Layers: name -> a function that makes one, for inputs of shape (3,).

LAYERS = {
    "dense": lambda: Dense(4),
    "dense_no_bias": lambda: Dense(4, use_bias=False),
    "dense_relu": lambda: Dense(4, "relu", kernel_initializer="he_normal", bias_initializer="ones"),
    "dense_leaky_relu": lambda: Dense(4, "leaky_relu"),
    "dense_tanh": lambda: Dense(4, "tanh", kernel_regularizer="l2", bias_regularizer=L1L2(0.1, 0.2)),
    "dense_sigmoid": lambda: Dense(1, "sigmoid", name="out"),
    "dense_softmax": lambda: Dense(4, "softmax", dtype="float64"),
    "activation": lambda: Activation("tanh"),
    "relu": lambda: ReLU(),
    "leaky_relu": lambda: LeakyReLU(0.3),
    "sigmoid": lambda: Sigmoid(),
    "tanh": lambda: Tanh(),
    "softmax": lambda: Softmax(),
    "prelu": lambda: PReLU(alpha_initializer="random_normal", alpha_regularizer="l1"),
    "dropout": lambda: Dropout(0.4),
    "dropout_0": lambda: Dropout(0),
    "flatten": lambda: Flatten(),
    "batch_norm": lambda: BatchNormalization(momentum=0.8, epsilon=0.01),
    "batch_norm_bare": lambda: BatchNormalization(center=False, scale=False),
    "batch_norm_scale": lambda: BatchNormalization(center=False, gamma_initializer="random_normal"),
    "batch_norm_center": lambda: BatchNormalization(scale=False, beta_regularizer="l2"),
    "input": lambda: Input((3,)),
}

# Losses: name -> (class, settings, targets, predictions).

SCORES = RNG.standard_normal((6, 4))
SHARES = np.exp(SCORES) / np.exp(SCORES).sum(-1, keepdims=True)
LABELS = np.array([0, 3, 1, 1, 2, 3])
HOT = np.eye(4)[LABELS]
SOFT = RNG.dirichlet(np.ones(4), 6)
BITS = RNG.integers(0, 2, (6, 4)).astype(float)
PROBABILITIES = 1 / (1 + np.exp(-SCORES))
LOSSES = {
    "mse": (MeanSquaredError, {}, SOFT, SCORES),
    "mae": (MeanAbsoluteError, {}, SOFT, SCORES),
    "huber": (Huber, {}, SOFT, SCORES),
    "huber_narrow": (Huber, {"delta": 0.25}, SOFT, SCORES),
    "bce": (BinaryCrossentropy, {}, BITS, PROBABILITIES),
    "bce_soft": (BinaryCrossentropy, {"label_smoothing": 0.2}, SOFT, PROBABILITIES),
    "bce_logits": (BinaryCrossentropy, {"from_logits": True}, BITS, SCORES),
    "bce_logits_smooth": (BinaryCrossentropy, {"from_logits": True, "label_smoothing": 0.3}, BITS, SCORES),
    "cce": (CategoricalCrossentropy, {}, HOT, SHARES),
    "cce_unnormalized": (CategoricalCrossentropy, {}, SOFT, PROBABILITIES),
    "cce_smooth": (CategoricalCrossentropy, {"label_smoothing": 0.1}, HOT, SHARES),
    "cce_logits": (CategoricalCrossentropy, {"from_logits": True}, HOT, SCORES),
    "cce_logits_soft": (CategoricalCrossentropy, {"from_logits": True, "label_smoothing": 0.1}, SOFT, SCORES),
    "cce_logits_sum_not_1": (CategoricalCrossentropy, {"from_logits": True}, BITS, SCORES),
    "sparse": (SparseCategoricalCrossentropy, {}, LABELS, SHARES),
    "sparse_unnormalized": (SparseCategoricalCrossentropy, {}, LABELS, PROBABILITIES),
    "sparse_logits": (SparseCategoricalCrossentropy, {"from_logits": True}, LABELS, SCORES),
    "perceptron": (PerceptronCriterion, {}, BITS * 2 - 1, SCORES),
}

# Metrics: name -> (class, settings, targets, predictions, the value of each row, or None if not a mean).

THREE = RNG.dirichlet(np.ones(3), 40)  # probabilities of three classes
CLASSES = RNG.integers(0, 3, 40)
ONE_HOT = np.eye(3)[CLASSES]
ONE = RNG.uniform(0, 1, 40)  # probabilities of one
YES = RNG.integers(0, 2, 40)

METRICS = {
    "mse": (metrics.MeanSquaredError, {}, ONE_HOT, THREE, ((THREE - ONE_HOT) ** 2).mean(-1)),
    "mae": (metrics.MeanAbsoluteError, {}, ONE_HOT, THREE, np.abs(THREE - ONE_HOT).mean(-1)),
    "binary": (metrics.BinaryAccuracy, {}, YES, ONE, (ONE > 0.5) == YES),
    "binary_units": (metrics.BinaryAccuracy, {}, ONE_HOT, THREE, ((THREE > 0.5) == ONE_HOT).mean(-1)),
    "categorical": (metrics.CategoricalAccuracy, {}, ONE_HOT, THREE, THREE.argmax(-1) == CLASSES),
    "sparse": (metrics.SparseCategoricalAccuracy, {}, CLASSES, THREE, THREE.argmax(-1) == CLASSES),
    "accuracy_binary": (metrics.Accuracy, {}, YES, ONE, (ONE > 0.5) == YES),
    "accuracy_column": (metrics.Accuracy, {}, YES, ONE[:, None], (ONE > 0.5) == YES),
    "accuracy_categorical": (metrics.Accuracy, {}, ONE_HOT, THREE, THREE.argmax(-1) == CLASSES),
    "accuracy_sparse": (metrics.Accuracy, {}, CLASSES, THREE, THREE.argmax(-1) == CLASSES),
    "accuracy_sparse_column": (metrics.Accuracy, {}, CLASSES[:, None], THREE, THREE.argmax(-1) == CLASSES),
    "of_loss": (metrics.OfLoss, {"loss": "huber"}, ONE_HOT, THREE, ((THREE - ONE_HOT) ** 2 / 2).mean(-1)),
    "precision": (metrics.Precision, {}, YES, ONE, None),
    "recall": (metrics.Recall, {"thresholds": 0.3}, YES, ONE, None),
    "confusion_matrix": (metrics.ConfusionMatrix, {"num_classes": 3}, CLASSES, THREE, None),
}

# Optimizers: name -> (a function of the rate, rate on the parabola, rate and steps on Rosenbrock's valley).

OPTIMIZERS = {
    "sgd": (lambda lr: SGD(lr), 0.1, 1e-3, 12000),
    "sgd_momentum": (lambda lr: SGD(lr, momentum=0.9), 0.05, 3e-4, 6000),
    "sgd_nesterov": (lambda lr: SGD(lr, momentum=0.9, nesterov=True), 0.05, 3e-4, 6000),
    "momentum": (lambda lr: Momentum(lr, beta=0.9), 0.1, 2e-3, 6000),
    "rmsprop": (lambda lr: RMSprop(lr), 0.01, 1e-3, 6000),
    "rmsprop_root": (lambda lr: RMSprop(lr, epsilon_on="root"), 0.01, 1e-3, 6000),
    "rmsprop_momentum": (lambda lr: RMSprop(lr, momentum=0.5), 0.01, 5e-4, 6000),
    "rmsprop_centered": (lambda lr: RMSprop(lr, centered=True, momentum=0.5), 3e-3, 1e-4, 12000),
    "adagrad": (lambda lr: Adagrad(lr), 1.0, 0.5, 6000),
    "adam": (lambda lr: Adam(lr), 0.1, 1e-2, 4000),
    "amsgrad": (lambda lr: Adam(lr, amsgrad=True), 0.1, 5e-2, 6000),
    "adam_corrected": (lambda lr: Adam(lr, epsilon_on="corrected"), 0.1, 1e-2, 4000),
    "adamw": (lambda lr: AdamW(lr, weight_decay=1e-3), 0.1, 1e-2, 4000),
    "adamw_corrected": (lambda lr: AdamW(lr, weight_decay=1e-3, epsilon_on="corrected"), 0.1, 1e-2, 4000),
    "lamb": (lambda lr: Lamb(lr), 0.02, 5e-3, 6000),
    "clipnorm": (lambda lr: SGD(lr, clipnorm=5.0), 0.1, 1e-3, 12000),
    "clipvalue": (lambda lr: Momentum(lr, clipvalue=2.0), 0.1, 2e-3, 6000),
    "global_clipnorm": (lambda lr: Adam(lr, global_clipnorm=1.0), 0.1, 1e-2, 4000),
}

# Regularizers: name -> (object, its penalty in NumPy).

REGULARIZERS = {
    "l1": (L1(0.3), lambda w: 0.3 * np.abs(w).sum()),
    "l2": (L2(0.2), lambda w: 0.2 * (w * w).sum()),
    "l1l2": (L1L2(0.1, 0.4), lambda w: 0.1 * np.abs(w).sum() + 0.4 * (w * w).sum()),
}

# Schedules: name -> (object, its value at an age, in Python).

SCHEDULES = {
    "exponential_decay": (ExponentialDecay(0.2, 4, 0.5), lambda age: 0.2 * 0.5 ** (age / 4)),
    "staircase": (ExponentialDecay(0.2, 3, 0.5, True), lambda age: 0.2 * 0.5 ** (age // 3)),
}
