"""The test tables of all parts: a row for each registered class, in each of its forms.

Add a row here for a new part; `test_cases.py` names parts without one. The tests of each kind run over all of
its rows, on every backend.
"""

import math

import numpy as np

from xpnet import activations, metrics
from xpnet.constraints import MaxNorm, MinMaxNorm, NonNeg, UnitNorm
from xpnet.layers import (
    ELU,
    Activation,
    ActivityRegularization,
    AlphaDropout,
    BatchNormalization,
    CategoryEncoding,
    Chain,
    Dense,
    Discretization,
    Dropout,
    Embedding,
    Flatten,
    GaussianDropout,
    GaussianNoise,
    GroupNormalization,
    Input,
    LayerNormalization,
    LeakyReLU,
    Maxout,
    Normalization,
    Parallel,
    Permute,
    PReLU,
    ReLU,
    RepeatVector,
    Rescaling,
    Reshape,
    Residual,
    RMSNormalization,
    Sigmoid,
    Softmax,
    SpatialDropout1D,
    Tanh,
    UnitNormalization,
)
from xpnet.losses import (
    BinaryCrossentropy,
    BinaryFocalCrossentropy,
    CategoricalCrossentropy,
    CategoricalFocalCrossentropy,
    CategoricalHinge,
    CosineSimilarity,
    Dice,
    GaussianNLL,
    Hinge,
    Huber,
    KLDivergence,
    LogCosh,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    PerceptronCriterion,
    Poisson,
    Quantile,
    SparseCategoricalCrossentropy,
    SquaredHinge,
    Tversky,
)
from xpnet.optimizers import (
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Ftrl,
    Lamb,
    Lion,
    Momentum,
    Muon,
    Nadam,
    RMSprop,
)
from xpnet.regularizers import L1, L1L2, L2, OrthogonalRegularizer
from xpnet.schedules import (
    CosineDecay,
    CosineDecayRestarts,
    CosLog4,
    ExponentialDecay,
    FlatCos,
    InverseTimeDecay,
    OneCycle,
    PiecewiseConstantDecay,
    PolynomialDecay,
)

RNG = np.random.default_rng(0)

# Activations: name -> (object, the function by NumPy). The objects with the default settings have their own name.


def normal(z):
    """Return the normal distribution function."""
    return (1 + np.vectorize(math.erf)(z / math.sqrt(2))) / 2


def log_1p_exp(z):
    return np.logaddexp(0, z)


def softmax(z, axis=-1):
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def sparsemax(z, axis=-1):
    """Search t with sum(max(z - t, 0)) = 1 by bisection."""
    z = np.asarray(z, np.float64)
    high = z.max(axis, keepdims=True)
    low = high - 1.0
    for _ in range(60):
        t = (low + high) / 2
        above = np.maximum(z - t, 0).sum(axis, keepdims=True) > 1
        low, high = np.where(above, t, low), np.where(above, high, t)
    return np.maximum(z - low, 0)


def glu(z, axis=-1):
    u, v = np.split(z, 2, axis)
    return u / (1 + np.exp(-v))


ACTIVATIONS = {
    "linear": (activations.Linear(), lambda z: z),
    "sigmoid": (activations.Sigmoid(), lambda z: 1 / (1 + np.exp(-z))),
    "tanh": (activations.Tanh(), lambda z: (np.exp(z) - np.exp(-z)) / (np.exp(z) + np.exp(-z))),
    "relu": (activations.ReLU(), lambda z: np.where(z > 0, z, 0)),
    "relu_max": (activations.ReLU(max_value=1.5), lambda z: np.clip(z, 0, 1.5)),
    "relu_slope": (activations.ReLU(0.3), lambda z: np.where(z > 0, z, 0.3 * z)),
    "relu_all": (
        activations.ReLU(0.2, max_value=2.0, threshold=0.4),
        lambda z: np.where(z > 0.4, np.minimum(z, 2), 0.2 * (z - 0.4)),
    ),
    "relu6": (activations.ReLU6(), lambda z: np.clip(z, 0, 6)),
    "leaky_relu": (activations.LeakyReLU(), lambda z: np.where(z > 0, z, 0.01 * z)),
    "elu": (activations.Elu(), lambda z: np.where(z > 0, z, np.exp(np.minimum(z, 0)) - 1)),
    "elu_steep": (activations.Elu(2.5), lambda z: np.where(z > 0, z, 2.5 * np.expm1(np.minimum(z, 0)))),
    "elu_negative": (activations.Elu(-0.5), lambda z: np.where(z > 0, z, -0.5 * np.expm1(np.minimum(z, 0)))),
    "selu": (
        activations.Selu(),
        lambda z: 1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * np.expm1(np.minimum(z, 0))),
    ),
    "celu": (activations.Celu(), lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0)))),
    "celu_wide": (activations.Celu(2.0), lambda z: np.where(z > 0, z, 2 * np.expm1(np.minimum(z, 0) / 2))),
    "threshold": (activations.Threshold(), lambda z: np.where(z > 1, z, 0)),
    "threshold_far": (activations.Threshold(-2.0, 7.0), lambda z: np.where(z > -2, z, 7)),
    "exponential": (activations.Exponential(), np.exp),
    "gelu": (activations.Gelu(), lambda z: z * normal(z)),
    "gelu_tanh": (
        activations.Gelu(approximate=True),
        lambda z: z / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    ),
    "silu": (activations.Silu(), lambda z: z / (1 + np.exp(-z))),
    "softplus": (activations.Softplus(), log_1p_exp),
    "softsign": (activations.Softsign(), lambda z: z / (1 + np.abs(z))),
    "mish": (activations.Mish(), lambda z: z * np.tanh(log_1p_exp(z))),
    "squareplus": (activations.Squareplus(), lambda z: (z + np.sqrt(z * z + 4)) / 2),
    "squareplus_sharp": (activations.Squareplus(0.1), lambda z: (z + np.sqrt(z * z + 0.1)) / 2),
    "sparse_plus": (
        activations.SparsePlus(),
        lambda z: np.where(z <= -1, 0, np.where(z < 1, (z + 1) ** 2 / 4, z)),
    ),
    "log_sigmoid": (activations.LogSigmoid(), lambda z: -log_1p_exp(-z)),
    "sparse_sigmoid": (activations.SparseSigmoid(), lambda z: np.clip((z + 1) / 2, 0, 1)),
    "hard_sigmoid": (activations.HardSigmoid(), lambda z: np.clip(z + 3, 0, 6) / 6),
    "hard_silu": (activations.HardSilu(), lambda z: z * np.clip(z + 3, 0, 6) / 6),
    "hard_tanh": (activations.HardTanh(), lambda z: np.clip(z, -1, 1)),
    "hard_shrink": (activations.HardShrink(), lambda z: np.where(np.abs(z) > 0.5, z, 0)),
    "hard_shrink_far": (activations.HardShrink(1.5), lambda z: np.where(np.abs(z) > 1.5, z, 0)),
    "soft_shrink": (activations.SoftShrink(), lambda z: np.sign(z) * np.maximum(np.abs(z) - 0.5, 0)),
    "soft_shrink_far": (activations.SoftShrink(1.5), lambda z: np.sign(z) * np.maximum(np.abs(z) - 1.5, 0)),
    "tanh_shrink": (activations.TanhShrink(), lambda z: z - np.tanh(z)),
    "softmax": (activations.Softmax(), softmax),
    "softmax_columns": (activations.Softmax(axis=-2), lambda z: softmax(z, -2)),
    "log_softmax": (activations.LogSoftmax(), lambda z: z - np.logaddexp.reduce(z, -1, keepdims=True)),
    "log_softmax_columns": (
        activations.LogSoftmax(axis=-2),
        lambda z: z - np.logaddexp.reduce(z, -2, keepdims=True),
    ),
    "sparsemax": (activations.Sparsemax(), sparsemax),
    "sparsemax_columns": (activations.Sparsemax(axis=-2), lambda z: sparsemax(z, -2)),
    "glu": (activations.Glu(), glu),
    "glu_columns": (activations.Glu(axis=-2), lambda z: glu(z, -2)),
    "step": (activations.Step(), lambda z: np.where(z > 0, 1.0, 0.0)),
}
ELEMENTWISE = [n for n, (f, _) in ACTIVATIONS.items() if not hasattr(f, "axis") and n != "step"]  # and trainable
NAMED = [name for name, (f, _) in ACTIVATIONS.items() if f.name == name]  # those with the default settings

# Constraints: name -> (object, what it makes of weights of shape (4, 3), by NumPy).


def lengths(w, axis=0):
    return np.sqrt((w * w).sum(axis, keepdims=True))


def scaled(w, wanted, axis=0):
    return w * wanted / (lengths(w, axis) + 1e-7)


CONSTRAINTS = {
    "max_norm": (MaxNorm(0.8), lambda w: scaled(w, np.minimum(lengths(w), 0.8))),
    "max_norm_rows": (MaxNorm(0.8, axis=1), lambda w: scaled(w, np.minimum(lengths(w, 1), 0.8), 1)),
    "max_norm_whole": (
        MaxNorm(0.8, axis=(0, -1)),
        lambda w: scaled(w, np.minimum(lengths(w, (0, 1)), 0.8), (0, 1)),
    ),
    "max_norm_no_axis": (MaxNorm(0.8, axis=None), lambda w: scaled(w, np.minimum(lengths(w, None), 0.8), None)),
    "min_max_norm": (MinMaxNorm(1.0, 1.5), lambda w: scaled(w, np.clip(lengths(w), 1.0, 1.5))),
    "min_max_norm_rate": (
        MinMaxNorm(1.0, 1.5, rate=0.25),
        lambda w: scaled(w, 0.25 * np.clip(lengths(w), 1.0, 1.5) + 0.75 * lengths(w)),
    ),
    "non_neg": (NonNeg(), lambda w: np.where(w > 0, w, 0.0)),
    "unit_norm": (UnitNorm(), lambda w: scaled(w, 1.0)),
    "unit_norm_rows": (UnitNorm(-1), lambda w: scaled(w, 1.0, 1)),
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
    "truncated_normal": (0.1, 0.05 * 0.87962566),
    "orthogonal": (None, math.sqrt(1 / 300)),
    "random_uniform": (0.05, 0.1 / math.sqrt(12)),
    "variance_scaling": (2 * math.sqrt(1 / 300) / 0.87962566, math.sqrt(1 / 300)),
    "zeros": None,
    "ones": None,
    "constant": None,
    "identity": None,
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
    "relu_all": lambda: ReLU(max_value=1.2, negative_slope=0.3, threshold=0.05),
    "elu": lambda: ELU(),
    "elu_steep": lambda: ELU(1.5),
    "leaky_relu": lambda: LeakyReLU(0.3),
    "sigmoid": lambda: Sigmoid(),
    "tanh": lambda: Tanh(),
    "softmax": lambda: Softmax(),
    "dense_glu": lambda: Dense(4, "glu"),
    "prelu": lambda: PReLU(alpha_initializer="random_normal", alpha_regularizer="l1"),
    "prelu_constrained": lambda: PReLU("ones", alpha_constraint=MaxNorm(1.5)),
    "dense_constrained": lambda: Dense(4, kernel_constraint="max_norm", bias_constraint="non_neg"),
    "dense_orthogonal": lambda: Dense(3, "tanh", kernel_regularizer=OrthogonalRegularizer(0.1, "columns")),
    "batch_norm_constrained": lambda: BatchNormalization(gamma_constraint="non_neg", beta_constraint=MaxNorm(0.5)),
    "dropout": lambda: Dropout(0.4),
    "dropout_0": lambda: Dropout(0),
    "dropout_together": lambda: Dropout(0.4, seed=3),
    "spatial_dropout": lambda: SpatialDropout1D(0.3),
    "alpha_dropout": lambda: AlphaDropout(0.2),
    "gaussian_noise": lambda: GaussianNoise(0.5),
    "gaussian_noise_0": lambda: GaussianNoise(0, seed=5),
    "gaussian_dropout": lambda: GaussianDropout(0.3, seed=2**40),
    "activity_regularization": lambda: ActivityRegularization(0.1, 0.2),
    "dense_activity": lambda: Dense(4, "tanh", activity_regularizer=L1L2(0.2, 0.1)),
    "flatten": lambda: Flatten(),
    "batch_norm": lambda: BatchNormalization(momentum=0.8, epsilon=0.01),
    "batch_norm_bare": lambda: BatchNormalization(center=False, scale=False),
    "batch_norm_scale": lambda: BatchNormalization(center=False, gamma_initializer="random_normal"),
    "batch_norm_center": lambda: BatchNormalization(scale=False, beta_regularizer="l2"),
    "layer_norm": lambda: LayerNormalization(epsilon=0.1, gamma_initializer="random_normal"),
    "layer_norm_bare": lambda: LayerNormalization([-1], center=False, scale=False),
    "layer_norm_scale": lambda: LayerNormalization(center=False, gamma_regularizer="l1"),
    "rms_norm": lambda: RMSNormalization(),
    "rms_norm_epsilon": lambda: RMSNormalization(-1, 0.3),
    "group_norm": lambda: GroupNormalization(1),
    "group_norm_3": lambda: GroupNormalization(3, epsilon=0.2, scale=False, beta_initializer="ones"),
    "instance_norm": lambda: GroupNormalization(-1, center=False, epsilon=0.1),
    "unit_norm": lambda: UnitNormalization(),
    "unit_norm_columns": lambda: UnitNormalization((0, -1)),
    "input": lambda: Input((3,)),
    "embedding": lambda: Embedding(5, 2),
    "embedding_l2": lambda: Embedding(2, 3, "random_normal", "l2", name="table"),
    "normalization": lambda: Normalization(),
    "normalization_given": lambda: Normalization(mean=[1, 2, 3], variance=[0.0, 4, 9], invert=True),
    "normalization_of_all": lambda: Normalization(None, 0.5, 2.0),
    "discretization": lambda: Discretization([-1.0, 0.0, 1.0]),
    "discretization_one_hot": lambda: Discretization((-0.5, 0.5), output_mode="one_hot"),
    "discretization_count": lambda: Discretization([0.0], 2, 0.1, "count"),
    "rescaling": lambda: Rescaling(0.5, -2),
    "category_encoding": lambda: CategoryEncoding(4),
    "category_encoding_one_hot": lambda: CategoryEncoding(4, "one_hot"),
    "category_encoding_count": lambda: CategoryEncoding(3, output_mode="count"),
    "reshape": lambda: Reshape((-1, 1, 3)),
    "permute": lambda: Permute((1,)),
    "repeat_vector": lambda: RepeatVector(4),
    "maxout": lambda: Maxout(4, 3, kernel_regularizer="l2", bias_regularizer="l1"),
    "maxout_no_bias": lambda: Maxout(4, use_bias=False, bias_initializer="ones"),
    "chain": lambda: Chain(
        [Dense(4, "tanh", kernel_regularizer="l1"), Dropout(0.3), BatchNormalization(), Dense(2)]
    ),
    "chain_again": lambda: Chain([again := Dense(3, "tanh"), Dropout(0.5), again, Dropout(0.2)]),
    "residual": lambda: Residual(Dense(3, "tanh"), trainable=True),
    "residual_chain": lambda: Residual([Dense(2, "relu"), BatchNormalization(), Dense(3)], name="block"),
    "residual_within": lambda: Residual(Parallel([Residual(Dropout(0.4)), Dense(3, name="d")], "add")),
    "parallel": lambda: Parallel([Dense(2, "tanh"), BatchNormalization(), [Dense(3), Dropout(0.5)]]),
    "parallel_add": lambda: Parallel([Dense(3), Dense(3, "tanh")], "add"),
    "parallel_multiply": lambda: Parallel([Dense(4), Dense(4, "sigmoid"), Dense(4, "tanh")], merge="multiply"),
    "parallel_average": lambda: Parallel((Dense(3), Rescaling(3.0)), "average"),
    "parallel_maximum": lambda: Parallel([Dense(3), Rescaling(-1.0), Rescaling(1.0)], "maximum"),
}
VECTORS_ONLY = {"input", "permute", "repeat_vector"}  # the layers that take no other inputs than of shape (3,)


def layer_inputs(layer, shape, rng=RNG):
    """Return inputs for a layer: class numbers where it takes these."""
    return rng.standard_normal(shape) if layer.classes is None else 1.0 * rng.integers(0, layer.classes, shape)


# Losses: name -> (class, settings, targets, predictions).

SCORES = RNG.standard_normal((6, 4))
SHARES = np.exp(SCORES) / np.exp(SCORES).sum(-1, keepdims=True)
LABELS = np.array([0, 3, 1, 1, 2, 3])
HOT = np.eye(4)[LABELS]
SOFT = RNG.dirichlet(np.ones(4), 6)
BITS = RNG.integers(0, 2, (6, 4)).astype(float)
PROBABILITIES = 1 / (1 + np.exp(-SCORES))
IGNORED = np.where(LABELS == 1, -1, LABELS)
FEW = RNG.poisson(2.0, (6, 4)).astype(float)
POSITIVE = RNG.uniform(0.2, 3.0, (6, 4))
MOMENTS = np.concatenate([SCORES[:, :2], POSITIVE[:, :2]], axis=1)  # two means, two variances
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
    "sparse_smooth": (SparseCategoricalCrossentropy, {"label_smoothing": 0.2}, LABELS, SHARES),
    "sparse_logits_smooth": (
        SparseCategoricalCrossentropy,
        {"from_logits": True, "label_smoothing": 0.2},
        LABELS,
        SCORES,
    ),
    "sparse_ignore": (SparseCategoricalCrossentropy, {"ignore_class": -1}, IGNORED, SHARES),
    "sparse_logits_ignore": (
        SparseCategoricalCrossentropy,
        {"from_logits": True, "ignore_class": 1, "label_smoothing": 0.1},
        LABELS,
        SCORES,
    ),
    "perceptron": (PerceptronCriterion, {}, BITS * 2 - 1, SCORES),
    "mape": (MeanAbsolutePercentageError, {}, SOFT, SCORES),
    "msle": (MeanSquaredLogarithmicError, {}, FEW, POSITIVE),
    "msle_below_0": (MeanSquaredLogarithmicError, {}, SCORES[::-1], SCORES),
    "log_cosh": (LogCosh, {}, SOFT, 3 * SCORES),
    "quantile": (Quantile, {}, SOFT, SCORES),
    "quantile_high": (Quantile, {"quantile": 0.9}, SOFT, SCORES),
    "cosine": (CosineSimilarity, {}, SOFT, SCORES),
    "hinge": (Hinge, {}, BITS * 2 - 1, SCORES),
    "hinge_bits": (Hinge, {}, BITS, SCORES),
    "squared_hinge": (SquaredHinge, {}, BITS * 2 - 1, SCORES),
    "categorical_hinge": (CategoricalHinge, {}, HOT, SCORES),
    "kld": (KLDivergence, {}, SOFT, SHARES),
    "kld_hot": (KLDivergence, {}, HOT, PROBABILITIES),
    "poisson": (Poisson, {}, FEW, POSITIVE),
    "poisson_logs": (Poisson, {"log_input": True}, FEW, SCORES),
    "gaussian": (GaussianNLL, {}, FEW[:, :2], MOMENTS),
    "gaussian_full": (GaussianNLL, {"full": True, "eps": 0.1}, FEW[:, :2], MOMENTS),
    "gaussian_logs": (GaussianNLL, {"log_variance": True}, FEW[:, :2], SCORES),
    "focal": (BinaryFocalCrossentropy, {}, BITS, PROBABILITIES),
    "focal_balanced": (
        BinaryFocalCrossentropy,
        {"apply_class_balancing": True, "alpha": 0.3, "gamma": 1.5, "label_smoothing": 0.1},
        SOFT,
        PROBABILITIES,
    ),
    "focal_logits": (BinaryFocalCrossentropy, {"from_logits": True}, BITS, SCORES),
    "focal_logits_half": (
        BinaryFocalCrossentropy,
        {"apply_class_balancing": True, "from_logits": True, "gamma": 0.5, "label_smoothing": 0.2},
        BITS,
        SCORES,
    ),
    "focal_0": (BinaryFocalCrossentropy, {"gamma": 0.0}, SOFT, PROBABILITIES),
    "focal_classes": (CategoricalFocalCrossentropy, {}, HOT, SHARES),
    "focal_classes_alphas": (
        CategoricalFocalCrossentropy,
        {"alpha": (0.1, 0.2, 0.3, 0.4), "gamma": 0.5, "label_smoothing": 0.1},
        SOFT,
        PROBABILITIES,
    ),
    "focal_classes_logits": (CategoricalFocalCrossentropy, {"from_logits": True}, HOT, SCORES),
    "focal_classes_logits_half": (
        CategoricalFocalCrossentropy,
        {"alpha": 0.5, "gamma": 0.5, "from_logits": True, "label_smoothing": 0.2},
        HOT,
        SCORES,
    ),
    "dice": (Dice, {"axis": -1}, BITS, PROBABILITIES),
    "tversky": (Tversky, {"alpha": 0.3, "beta": 0.6, "axis": -1}, SOFT, PROBABILITIES),
}


def loss_heads(classes, one_hot):
    """Return for each loss by name: the units and the activation of a model's last layer, targets, and metrics."""
    units, hits = one_hot.shape[1], ["accuracy"]
    heads = {
        "sparse_categorical_crossentropy": ("softmax", classes),
        "categorical_crossentropy": ("softmax", one_hot),
        "categorical_focal_crossentropy": ("softmax", one_hot),
        "kl_divergence": ("softmax", one_hot),
        "binary_crossentropy": ("sigmoid", one_hot),
        "binary_focal_crossentropy": ("sigmoid", one_hot),
        "dice": ("sigmoid", one_hot),
        "tversky": ("sigmoid", one_hot),
        "poisson": ("sigmoid", one_hot),
        "mean_squared_error": (None, one_hot),
        "mean_absolute_error": (None, one_hot),
        "mean_absolute_percentage_error": (None, one_hot + 1),
        "mean_squared_logarithmic_error": (None, one_hot),
        "huber": (None, one_hot),
        "log_cosh": (None, one_hot),
        "quantile": (None, one_hot),
        "cosine_similarity": (None, one_hot),
        "hinge": (None, one_hot),
        "squared_hinge": (None, one_hot),
        "categorical_hinge": (None, one_hot),
        "perceptron_criterion": (None, 2 * one_hot - 1),
    }
    gaussian = {"gaussian_nll": (2 * units, "sigmoid", one_hot, [])}
    return {**{name: (units, last, y, hits) for name, (last, y) in heads.items()}, **gaussian}


# Losses of further axes: name -> (class, settings, targets, predictions) for predictions (2, 3, 4).

DEEP = {
    "bce": (BinaryCrossentropy, {"axis": 1}, BITS, PROBABILITIES),
    "bce_first": (BinaryCrossentropy, {"axis": 0, "from_logits": True}, BITS, SCORES),
    "focal": (BinaryFocalCrossentropy, {"axis": -2}, BITS, PROBABILITIES),
    "cce": (CategoricalCrossentropy, {"axis": 1}, SOFT, PROBABILITIES),
    "cce_logits": (CategoricalCrossentropy, {"axis": -2, "from_logits": True}, BITS, SCORES),
    "focal_classes": (CategoricalFocalCrossentropy, {"axis": 1}, SOFT, PROBABILITIES),
    "focal_classes_logits": (CategoricalFocalCrossentropy, {"axis": 1, "from_logits": True}, SOFT, SCORES),
    "sparse": (SparseCategoricalCrossentropy, {"axis": 1}, np.array([0, 2, 1, 1, 2, 0, 2, 1]), PROBABILITIES),
    "sparse_logits": (
        SparseCategoricalCrossentropy,
        {"axis": 1, "from_logits": True, "ignore_class": 2},
        np.array([0, 2, 1, 1, 2, 0, 2, 1]),
        SCORES,
    ),
    "cosine": (CosineSimilarity, {"axis": 1}, SOFT, SCORES),
    "dice": (Dice, {}, BITS, PROBABILITIES),
    "dice_axes": (Dice, {"axis": (1, 2)}, BITS, PROBABILITIES),
    "tversky": (Tversky, {}, BITS, PROBABILITIES),
    "tversky_axis": (Tversky, {"axis": 0}, BITS, PROBABILITIES),
}

# Metrics: name -> (class, settings, targets, predictions, the value of each row, or None if it is not their mean).

THREE = RNG.dirichlet(np.ones(3), 40)  # probabilities of three classes
CLASSES = RNG.integers(0, 3, 40)
ONE_HOT = np.eye(3)[CLASSES]
ONE = RNG.uniform(0, 1, 40)  # probabilities of one
YES = RNG.integers(0, 2, 40)

RANKS = (THREE[np.arange(40), CLASSES][:, None] < THREE).sum(-1)  # how many outputs exceed the target's
COSINES = (THREE * ONE_HOT).sum(-1) / np.sqrt((THREE * THREE).sum(-1))
NEAR = (ONE_HOT + 2 * THREE) / 3
SPREADS = [a - a.mean(-1, keepdims=True) for a in (ONE_HOT, NEAR)]
COVARIANCES = (SPREADS[0] * SPREADS[1]).mean(-1)
VARIANCES = [(a * a).mean(-1) for a in SPREADS]

METRICS = {
    "mse": (metrics.MeanSquaredError, {}, ONE_HOT, THREE, ((THREE - ONE_HOT) ** 2).mean(-1)),
    "mae": (metrics.MeanAbsoluteError, {}, ONE_HOT, THREE, np.abs(THREE - ONE_HOT).mean(-1)),
    "binary": (metrics.BinaryAccuracy, {}, YES, ONE, (ONE > 0.5) == YES),
    "binary_units": (
        metrics.BinaryAccuracy, {"threshold": 0.4}, ONE_HOT, THREE, ((THREE > 0.4) == ONE_HOT).mean(-1),
    ),
    "categorical": (metrics.CategoricalAccuracy, {}, ONE_HOT, THREE, THREE.argmax(-1) == CLASSES),
    "sparse": (metrics.SparseCategoricalAccuracy, {}, CLASSES, THREE, THREE.argmax(-1) == CLASSES),
    "accuracy_binary": (metrics.Accuracy, {}, YES, ONE, (ONE > 0.5) == YES),
    "accuracy_column": (metrics.Accuracy, {}, YES, ONE[:, None], (ONE > 0.5) == YES),
    "accuracy_categorical": (metrics.Accuracy, {}, ONE_HOT, THREE, THREE.argmax(-1) == CLASSES),
    "accuracy_sparse": (metrics.Accuracy, {}, CLASSES, THREE, THREE.argmax(-1) == CLASSES),
    "accuracy_sparse_column": (metrics.Accuracy, {}, CLASSES[:, None], THREE, THREE.argmax(-1) == CLASSES),
    "top_1": (metrics.TopKCategoricalAccuracy, {"k": 1}, ONE_HOT, THREE, RANKS < 1),
    "top_2": (metrics.TopKCategoricalAccuracy, {"k": 2}, ONE_HOT, THREE, RANKS < 2),
    "sparse_top_2": (metrics.SparseTopKCategoricalAccuracy, {"k": 2}, CLASSES, THREE, RANKS < 2),
    "sparse_top_2_ids": (
        metrics.SparseTopKCategoricalAccuracy, {"k": 2, "from_sorted_ids": True}, CLASSES[:, None],
        np.argsort(-THREE, -1).astype(float), RANKS < 2,
    ),
    "of_loss": (metrics.OfLoss, {"loss": "huber"}, ONE_HOT, THREE, ((THREE - ONE_HOT) ** 2 / 2).mean(-1)),
    "wrapper": (metrics.MeanMetricWrapper, {"fn": "huber"}, ONE_HOT, THREE, ((THREE - ONE_HOT) ** 2 / 2).mean(-1)),
    "log_cosh": (metrics.LogCoshError, {}, ONE_HOT, THREE * 4, np.log(np.cosh(THREE * 4 - ONE_HOT)).mean(-1)),
    "cosine_similarity": (metrics.CosineSimilarity, {}, ONE_HOT, THREE, COSINES),
    "pearson": (
        metrics.PearsonCorrelation, {}, ONE_HOT, NEAR, COVARIANCES / np.sqrt(VARIANCES[0] * VARIANCES[1]),
    ),
    "concordance": (
        metrics.ConcordanceCorrelation, {}, ONE_HOT, NEAR, 2 * COVARIANCES / (sum(VARIANCES) + 1e-7),
    ),
    "mean": (metrics.Mean, {}, YES, ONE, None),  # values and weights
    "sum": (metrics.Sum, {}, YES, ONE, None),
    "root_mean_squared_error": (metrics.RootMeanSquaredError, {}, ONE_HOT, THREE, None),
    "precision": (metrics.Precision, {}, YES, ONE, None),
    "precision_thresholds": (metrics.Precision, {"thresholds": [0.7, 0.2, 0.5]}, YES, ONE, None),
    "recall": (metrics.Recall, {"thresholds": 0.3}, YES, ONE, None),
    "recall_top_k": (metrics.Recall, {"top_k": 2, "class_id": 1}, CLASSES, THREE, None),
    "true_positives": (metrics.TruePositives, {}, YES, ONE, None),
    "true_negatives": (metrics.TrueNegatives, {"thresholds": [0.2, 0.6]}, YES, ONE, None),
    "false_positives": (metrics.FalsePositives, {"thresholds": 0.4}, CLASSES, THREE, None),
    "false_negatives": (metrics.FalseNegatives, {}, ONE_HOT, THREE, None),
    "confusion_matrix": (metrics.ConfusionMatrix, {"num_classes": 3}, CLASSES, THREE, None),
    "precision_at_recall": (metrics.PrecisionAtRecall, {"recall": 0.6}, YES, ONE, None),
    "recall_at_precision": (metrics.RecallAtPrecision, {"precision": 0.4, "class_id": 1}, ONE_HOT, THREE, None),
    "sensitivity": (metrics.SensitivityAtSpecificity, {"specificity": 0.6, "num_thresholds": 30}, YES, ONE, None),
    "specificity": (metrics.SpecificityAtSensitivity, {"sensitivity": 0.6}, CLASSES, THREE, None),
    "specificity_1": (metrics.SpecificityAtSensitivity, {"sensitivity": 0.3, "num_thresholds": 1}, YES, ONE, None),
    "auc": (metrics.AUC, {}, YES, ONE, None),
    "auc_pr": (metrics.AUC, {"num_thresholds": 20, "curve": "PR"}, CLASSES, THREE, None),
    "auc_pr_minoring": (metrics.AUC, {"curve": "PR", "summation_method": "minoring"}, YES, ONE, None),
    "auc_gain": (metrics.AUC, {"curve": "PRGAIN", "summation_method": "majoring"}, YES, ONE, None),
    "auc_logits": (metrics.AUC, {"from_logits": True, "thresholds": [0.7, 0.4, 0.5]}, YES, 4 * ONE - 2, None),
    "auc_labels": (metrics.AUC, {"multi_label": True, "num_labels": 3}, ONE_HOT, THREE, None),
    "auc_labels_weighted": (
        metrics.AUC, {"multi_label": True, "label_weights": [1.0, 0.5, 2.0], "curve": "PR"}, ONE_HOT, THREE, None,
    ),
    "auc_label_weights": (metrics.AUC, {"label_weights": [1.0, 0.5, 2.0]}, ONE_HOT, THREE, None),
    "fbeta": (metrics.FBetaScore, {"beta": 2.0}, ONE_HOT, THREE, None),
    "fbeta_weighted": (metrics.FBetaScore, {"average": "weighted", "threshold": 0.3}, ONE_HOT, THREE, None),
    "f1": (metrics.F1Score, {"average": "macro"}, ONE_HOT, THREE, None),
    "f1_micro": (metrics.F1Score, {"average": "micro", "threshold": 0.4}, ONE_HOT, THREE, None),
    "r2": (metrics.R2Score, {}, ONE_HOT, THREE, None),
    "r2_units": (metrics.R2Score, {"class_aggregation": None}, ONE_HOT, THREE, None),
    "r2_variance": (
        metrics.R2Score, {"class_aggregation": "variance_weighted_average", "num_regressors": 2}, ONE_HOT, THREE,
        None,
    ),
}  # fmt: skip
for _name, (_cls, _settings, _y, _p) in LOSSES.items():  # each loss as a metric; one name is a score of its own
    if _cls.__name__ != "CosineSimilarity":
        _settings = {key: value for key, value in _settings.items() if key != "reduction"}
        METRICS[f"loss_{_name}"] = getattr(metrics, _cls.__name__), _settings, _y, _p, None

MODEL_METRICS = {  # those that fit a model of three outputs: what makes one, and whether targets are class numbers
    name: (lambda cls=row[0], settings=row[1]: cls(**settings, name="own"), np.shape(row[2]) != np.shape(row[3]))
    for name, row in METRICS.items()
    if np.shape(row[3]) == (40, 3)
    or (name.startswith("loss_") and not row[1] and np.shape(row[2]) in (np.shape(row[3]), np.shape(row[3])[:-1]))
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
    "adadelta": (lambda lr: Adadelta(lr), 30.0, 0.1, 12000),
    "adamax": (lambda lr: Adamax(lr), 0.1, 2e-2, 4000),
    "nadam": (lambda lr: Nadam(lr), 0.1, 1e-2, 4000),
    "ftrl": (lambda lr: Ftrl(lr), 1.0, 0.5, 6000),
    "ftrl_power": (lambda lr: Ftrl(lr, -0.4, 0.2, 1e-3, 1e-3, 1e-3, 0.1), 1.0, 0.5, 6000),
    "lion": (lambda lr: Lion(lr), 0.02, 1e-3, 6000),
    "lamb": (lambda lr: Lamb(lr), 0.02, 5e-3, 6000),
    "adafactor": (lambda lr: Adafactor(lr), 0.5, 1e-2, 6000),
    "muon": (lambda lr: Muon(lr, adam_weight_decay=None), 0.1, 1e-2, 6000),
    "sgd_ema": (lambda lr: SGD(lr, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3), 0.1, 1e-3, 12000),
    "adam_ema": (lambda lr: Adam(lr, use_ema=True, ema_momentum=0.9), 0.1, 1e-2, 4000),
    "rmsprop_accumulated": (lambda lr: RMSprop(lr, gradient_accumulation_steps=2), 0.02, 1e-3, 12000),
    "adafactor_both": (
        lambda lr: Adafactor(lr, use_ema=True, gradient_accumulation_steps=2, clipnorm=1e9),
        0.5,
        1e-2,
        12000,
    ),
    "clipnorm": (lambda lr: SGD(lr, clipnorm=5.0), 0.1, 1e-3, 12000),
    "clipvalue": (lambda lr: Momentum(lr, clipvalue=2.0), 0.1, 2e-3, 6000),
    "global_clipnorm": (lambda lr: Adam(lr, global_clipnorm=1.0), 0.1, 1e-2, 4000),
}

# Optimizers that need values of the function: name -> what makes one.

SOLVERS = {"lbfgs": lambda: LBFGS(), "lbfgs_short": lambda: LBFGS(history=3, tol=1e-7, max_line_search=30)}

# Regularizers: name -> (object, its penalty on a matrix by NumPy).


def mean_cosine(w):
    """Return the mean of |cos| of the angles between two different rows."""
    u = w / lengths(w, 1)
    return np.abs((u @ u.T)[~np.eye(len(w), dtype=bool)]).mean()


REGULARIZERS = {
    "l1": (L1(0.3), lambda w: 0.3 * np.abs(w).sum()),
    "l2": (L2(0.2), lambda w: 0.2 * (w * w).sum()),
    "l1l2": (L1L2(0.1, 0.4), lambda w: 0.1 * np.abs(w).sum() + 0.4 * (w * w).sum()),
    "orthogonal_regularizer": (OrthogonalRegularizer(0.5), lambda w: 0.5 * mean_cosine(w)),
    "orthogonal_columns": (OrthogonalRegularizer(0.3, "columns"), lambda w: 0.3 * mean_cosine(w.T)),
}

# Schedules: name -> (object, its value at an age, in Python).


def half_wave(t):
    return (1 + math.cos(math.pi * min(t, 1.0))) / 2


SCHEDULES = {
    "exponential_decay": (ExponentialDecay(0.2, 4, 0.5), lambda age: 0.2 * 0.5 ** (age / 4)),
    "staircase": (ExponentialDecay(0.2, 3, 0.5, True), lambda age: 0.2 * 0.5 ** (age // 3)),
    "piecewise_constant_decay": (
        PiecewiseConstantDecay([3, 7], [0.3, 0.2, 0.05]),
        lambda age: 0.3 if age <= 3 else 0.2 if age <= 7 else 0.05,
    ),
    "polynomial_decay": (
        PolynomialDecay(0.3, 8, 0.1, power=2.0),
        lambda age: 0.1 + 0.2 * max(1 - age / 8, 0.0) ** 2,
    ),
    "polynomial_decay_cycle": (
        PolynomialDecay(0.3, 4, 0.1, power=0.5, cycle=True),
        lambda age: 0.1 + 0.2 * (1 - age / (4 * max(math.ceil(age / 4), 1))) ** 0.5,
    ),
    "inverse_time_decay": (InverseTimeDecay(0.2, 4, 0.5), lambda age: 0.2 / (1 + age / 8)),
    "inverse_time_staircase": (InverseTimeDecay(0.2, 3, 0.5, True), lambda age: 0.2 / (1 + 0.5 * (age // 3))),
    "cosine_decay": (CosineDecay(0.3, 9, alpha=0.1), lambda age: 0.3 * (0.1 + 0.9 * half_wave(age / 9))),
    "cosine_decay_warmup": (
        CosineDecay(0.1, 6, warmup_target=0.4, warmup_steps=3),
        lambda age: 0.1 + 0.1 * age if age < 3 else 0.4 * half_wave((age - 3) / 6),
    ),
    "cosine_decay_restarts": (
        CosineDecayRestarts(0.3, 2, m_mul=0.5, alpha=0.2),  # periods of 2, 4, 8 updates
        lambda age: next(
            0.3 * (0.2 + 0.8 * 0.5**i * half_wave((age - first) / 2 ** (i + 1)))
            for i, first in ((3, 14), (2, 6), (1, 2), (0, 0))
            if age >= first
        ),
    ),
    "cosine_decay_restarts_equal": (
        CosineDecayRestarts(0.3, 4, t_mul=1.0, m_mul=0.5),
        lambda age: 0.3 * 0.5 ** (age // 4) * half_wave(age % 4 / 4),
    ),
    "one_cycle": (
        OneCycle(0.5, 11, pct_start=5 / 11, div_factor=5.0, final_div_factor=2.0),
        lambda age: 0.5 - 0.4 * half_wave(age / 4) if age <= 4 else 0.05 + 0.45 * half_wave((age - 4) / 6),
    ),
    "one_cycle_three_phases": (
        OneCycle(0.5, 11, 4 / 11, "linear", 5.0, 2.0, three_phase=True),
        lambda age: float(np.interp(age, [0, 3, 6, 10], [0.1, 0.5, 0.1, 0.05])),
    ),
    "cos_log4": (
        CosLog4(0.3, 12),
        lambda age: 0.15 * (1 - math.cos(2 * math.pi * math.log2(1 + 15 * min(age / 12, 1)))),
    ),
    "flat_cos": (FlatCos(0.3, 10, flat=0.4), lambda age: 0.3 if age <= 4 else 0.3 * half_wave((age - 4) / 6)),
}
