"""Losses: values and gradients by hand, against PyTorch and scikit-learn, and against central differences."""

import numpy as np
import pytest
from cases import BITS, HOT, LABELS, LOSSES, PROBABILITIES, SCORES, SHARES, SOFT

import xpnet as xn
from xpnet import activations, losses
from xpnet.errors import InvalidTypeError, InvalidValueError, ShapeError, UnknownNameError
from xpnet.kernels.context import Arena, Context
from xpnet.layers import Activation, Dense, Flatten, Layer
from xpnet.losses import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    Elementwise,
    Huber,
    Loss,
    MeanAbsoluteError,
    MeanSquaredError,
    PerceptronCriterion,
    SparseCategoricalCrossentropy,
    targets,
)
from xpnet.testing import assert_close, check_gradients

LOG = np.log
RNG = np.random.default_rng(0)
WEIGHTS = np.array([1.0, 0.0, 2.0, 0.5, 1.0, 3.0])


def case(name, /, **more):
    cls, kwargs, y, p = LOSSES[name]
    return cls(**kwargs, **more), y, p


# Values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "y", "p", "value", "grad"),
    [
        (MeanSquaredError(), [[1.0, 2.0]], [[2.0, 4.0]], 2.5, [[1.0, 2.0]]),
        (MeanSquaredError(), [1.0, 2.0], [2.0, 4.0], 2.5, [1.0, 2.0]),
        (MeanAbsoluteError(), [[1.0, 2.0]], [[2.0, 0.0]], 1.5, [[0.5, -0.5]]),
        (MeanAbsoluteError(), [[1.0]], [[1.0]], 0.0, [[0.0]]),
        (Huber(), [0.0, 0.0, 0.0, 1.0], [3.0, -3.0, 0.5, 1.0], 5.125 / 4, [0.25, -0.25, 0.125, 0.0]),
        (Huber(2.0), [[0.0, 0.0]], [[3.0, -1.0]], (4.0 + 0.5) / 2, [[1.0, -0.5]]),
        (BinaryCrossentropy(), [1.0, 0.0], [0.8, 0.5], -(LOG(0.8) + LOG(0.5)) / 2, [-0.625, 1.0]),
        (BinaryCrossentropy(from_logits=True), [1.0, 0.0], [0.0, 0.0], LOG(2.0), [-0.25, 0.25]),
        (BinaryCrossentropy(label_smoothing=0.5), [1.0], [0.5], LOG(2.0), [-1.0]),
        (CategoricalCrossentropy(), [[0.0, 1.0]], [[0.5, 0.5]], LOG(2.0), [[1.0, -1.0]]),
        (CategoricalCrossentropy(), [[0.0, 1.0]], [[1.0, 3.0]], LOG(4 / 3), [[0.25, -1 / 12]]),
        (CategoricalCrossentropy(from_logits=True), [[0.0, 1.0]], [[3.0, 3.0]], LOG(2.0), [[0.5, -0.5]]),
        (SparseCategoricalCrossentropy(), [1], [[0.25, 0.75]], LOG(4 / 3), [[1.0, -1 / 3]]),
        (SparseCategoricalCrossentropy(from_logits=True), [0], [[5.0, 5.0]], LOG(2.0), [[-0.5, 0.5]]),
        (PerceptronCriterion(), [1.0, -1.0, 1.0, 0.0], [-2.0, 3.0, 4.0, -1.0], 5 / 4, [-0.25, 0.25, 0, 0]),
        (PerceptronCriterion(), [1.0, -1.0], [0.0, 0.0], 0.0, [-0.5, 0.0]),
    ],
)
def test_by_hand(backend64, loss, y, p, value, grad):
    found = loss.value_and_grad(y, backend64.array(p, "float64"))
    assert_close(found[0], backend64.scalar(value))
    assert_close(found[1], backend64.array(grad, "float64"))
    assert_close(loss(y, backend64.array(p, "float64")), found[0])


@pytest.mark.parametrize("name", LOSSES)
def test_reductions_and_weights(backend64, name):
    """Everything follows from the rows' values with reduction "none", and from which of the rows count."""
    loss, y, p = case(name, reduction=None)
    counted = np.ones(6) if getattr(loss, "ignore_class", None) is None else (y != loss.ignore_class) * 1.0
    p = backend64.array(p)
    rows, grads = (backend64.host(a) for a in loss.value_and_grad(y, p))
    assert rows.shape == (6,)
    for weight in (None, WEIGHTS):
        w = np.ones(6) if weight is None else weight
        for reduction, factor in {
            "sum_over_batch_size": w / counted.sum(),
            "mean": w / counted.sum(),
            "sum": w,
            "mean_with_sample_weight": w / (w * counted).sum(),
            "none": w,
        }.items():
            value, grad = case(name, reduction=reduction)[0].value_and_grad(y, p, weight)
            wanted = rows * factor if reduction == "none" else (rows * factor).sum()
            assert_close(value, backend64.array(wanted), message=f"{name} {reduction}")
            assert_close(grad, backend64.array(grads * factor[:, None]), message=f"{name} {reduction}")


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients(backend64, name, reduction):
    loss, y, p = case(name, reduction=reduction)
    check_gradients(loss, p.shape, y_true=y, inputs=p, backend=backend64)


@pytest.mark.parametrize("name", LOSSES)
def test_further_axes_are_rows_too(backend64, name):
    loss, y, p = case(name)
    deep = loss.value_and_grad(y.reshape(2, 3, *y.shape[1:]), backend64.array(p.reshape(2, 3, 4)))
    flat = loss.value_and_grad(y, backend64.array(p))
    assert_close(deep[0], flat[0])
    assert_close(backend64.host(deep[1]).reshape(6, 4), backend64.host(flat[1]))


def test_weights_of_the_batch_hold_for_all_its_rows(backend64):
    p, y = backend64.array(SCORES.reshape(2, 3, 4)), SOFT.reshape(2, 3, 4)
    loss = MeanSquaredError()
    assert_close(loss(y, p, [1.0, 3.0]), loss(y, p, [[1.0] * 3, [3.0] * 3]))


def test_weights_that_are_all_0_give_0(backend64):
    loss = MeanSquaredError("mean_with_sample_weight")
    value, grad = loss.value_and_grad(SOFT, backend64.array(SCORES), np.zeros(6))
    assert_close(value, backend64.scalar(0.0))
    assert_close(grad, backend64.zeros((6, 4)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-9, 1e-30, 1e20])
def test_only_the_shares_of_weights_count(backend, dtype, scale):
    """((2 - 1)^2 * 1 + (3 - 1)^2 * 3) / 4 = 3.25, however small the weights are."""
    loss = MeanSquaredError("mean_with_sample_weight")
    p, weights = backend.array([[2.0], [3.0]], dtype), np.array([1.0, 3.0], dtype) * np.dtype(dtype).type(scale)
    value, grad = loss.value_and_grad([[1.0], [1.0]], p, weights)
    assert_close(value, backend.array(3.25, dtype), rtol=1e-6)
    assert_close(grad, backend.array([[0.5], [3.0]], dtype), rtol=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "mean_with_sample_weight", "sum_over_batch_size"])
def test_losses_of_validation_are_taken_in_keras_batches(reduction):
    """With the batch size of training, or 32 in `evaluate`; the mean over rows of the batches' losses."""
    x, y = RNG.standard_normal((70, 3)), RNG.standard_normal((70, 1))
    weights = np.arange(70.0)
    model = xn.Sequential([Dense(1)], seed=1)
    model.compile(xn.optimizers.SGD(0.0), MeanSquaredError(reduction))
    values = (np.asarray(model(x)) - y)[:, 0] ** 2

    def wanted(size):
        parts = [slice(i, min(i + size, 70)) for i in range(0, 70, size)]
        rows = [p.stop - p.start for p in parts]
        total = {"sum": [1.0] * len(rows), "mean_with_sample_weight": [weights[p].sum() for p in parts],
                 "sum_over_batch_size": rows}[reduction]  # fmt: skip
        means = [(values[p] * weights[p]).sum() / t for p, t in zip(parts, total)]
        return pytest.approx(np.average(means, weights=rows), rel=1e-5)

    data = {"validation_data": (x, y, weights), "verbose": 0}
    assert model.fit(x, y, **data).history["val_loss"] == [wanted(32)]
    assert model.fit(x, y, batch_size=8, **data).history["val_loss"] == [wanted(8)]
    assert model.fit(x[:5], y[:5], **data).history["val_loss"] == [wanted(32)]
    assert model.fit(x, y, batch_size=8, validation_batch_size=16, **data).history["val_loss"] == [wanted(16)]
    assert model.evaluate(x, y, sample_weight=weights) == wanted(32)
    assert model.evaluate(x, y, sample_weight=weights, batch_size=50) == wanted(50)


# Against others -----------------------------------------------------------------------------------------

PEERS = {
    "mse": lambda f, t: lambda p: f.mse_loss(p, t(SOFT)),
    "mae": lambda f, t: lambda p: f.l1_loss(p, t(SOFT)),
    "huber": lambda f, t: lambda p: f.huber_loss(p, t(SOFT)),
    "huber_narrow": lambda f, t: lambda p: f.huber_loss(p, t(SOFT), delta=0.25),
    "bce": lambda f, t: lambda p: f.binary_cross_entropy(p, t(BITS)),
    "bce_logits": lambda f, t: lambda p: f.binary_cross_entropy_with_logits(p, t(BITS)),
    "cce": lambda f, t: lambda p: f.nll_loss((p / p.sum(-1, keepdim=True)).log(), t(LABELS)),
    "cce_unnormalized": lambda f, t: lambda p: -(t(SOFT) * (p / p.sum(-1, keepdim=True)).log()).sum(-1).mean(),
    "cce_smooth": lambda f, t: (
        lambda p: -(t(HOT * 0.9 + 0.025) * (p / p.sum(-1, keepdim=True)).log()).sum(-1).mean()
    ),
    "cce_logits": lambda f, t: lambda p: f.cross_entropy(p, t(LABELS)),
    "cce_logits_soft": lambda f, t: lambda p: f.cross_entropy(p, t(SOFT), label_smoothing=0.1),
    "sparse_logits": lambda f, t: lambda p: f.cross_entropy(p, t(LABELS)),
}


@pytest.mark.parametrize("name", PEERS)
def test_like_pytorch(backend64, name):
    torch = pytest.importorskip("torch")
    loss, y, p = case(name)
    leaf = torch.tensor(p, requires_grad=True)
    wanted = PEERS[name](torch.nn.functional, torch.tensor)(leaf)
    wanted.backward()
    value, grad = loss.value_and_grad(y, backend64.array(p))
    assert_close(backend64.host(value), wanted.detach().numpy())
    assert_close(backend64.host(grad), leaf.grad.numpy())


@pytest.mark.parametrize("weight", [None, WEIGHTS])
def test_like_scikit_learn(weight):
    sk = pytest.importorskip("sklearn.metrics")
    mean = "mean_with_sample_weight"
    sparse = SparseCategoricalCrossentropy(reduction=mean)(LABELS, SHARES, weight)
    assert float(sparse) == pytest.approx(sk.log_loss(LABELS, SHARES, sample_weight=weight), rel=1e-9)
    binary = BinaryCrossentropy(reduction=mean)(BITS[:, 0], PROBABILITIES[:, 0], weight)
    assert float(binary) == pytest.approx(
        sk.log_loss(BITS[:, 0], PROBABILITIES[:, 0], sample_weight=weight), rel=1e-9
    )
    for mine, theirs in ((MeanSquaredError, sk.mean_squared_error), (MeanAbsoluteError, sk.mean_absolute_error)):
        assert float(mine(mean)(SOFT, SCORES, weight)) == pytest.approx(theirs(SOFT, SCORES, sample_weight=weight))


# From scores --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "activation"), [("bce", "sigmoid"), ("cce", "softmax"), ("sparse", "softmax")])
def test_from_scores_it_is_the_loss_of_the_activation(backend64, name, activation):
    loss, y, _ = case(name)
    scores = backend64.array(SCORES)
    wanted = loss(y, activations.get(activation)(scores))
    assert loss.fuses == activation
    assert_close(case(name, from_logits=True)[0](y, scores), wanted)
    target = backend64.array(y) if name != "sparse" else backend64.array(y, "int32")
    value, dz, a = loss.value_and_slope(Context(backend64), target, scores, None, fused=True)
    assert_close(value, wanted, check_dtype=False)
    assert_close(a, activations.get(activation)(scores))
    hot = HOT if name == "sparse" else y
    assert_close(dz, (a - backend64.array(hot)) / (24 if name == "bce" else 6))


@pytest.mark.parametrize("loss", [BinaryCrossentropy(from_logits=True), PerceptronCriterion()])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_derivative_from_scores_is_exactly_a_minus_y(backend, dtype, loss):
    """Exactly, not nearly: with one unit and weight 1 the bits are those of a - y."""
    z = backend.array(RNG.standard_normal((50, 1)) * 10, dtype)
    bits = backend.array(RNG.integers(0, 2, (50, 1)), dtype)
    _, dz, a = loss.score_terms(Context(backend.with_dtype(dtype)), bits, z, 1.0)
    assert_close(dz, a - bits, rtol=0, atol=0)
    assert_close(a, activations.get(loss.fuses)(z))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("loss", "y", "z", "value", "grad"),
    [
        (BinaryCrossentropy(from_logits=True), [1.0, 0.0], [1e4, -1e4], 0.0, [0.0, 0.0]),
        (BinaryCrossentropy(from_logits=True), [0.0, 1.0], [1e4, -1e4], 1e4, [0.5, -0.5]),
        (CategoricalCrossentropy(from_logits=True), [[1.0, 0.0]], [[-1e4, 1e4]], 2e4, [[-1.0, 1.0]]),
        (SparseCategoricalCrossentropy(from_logits=True), [1], [[-1e4, 1e4]], 0.0, [[0.0, 0.0]]),
    ],
)
def test_large_scores_stay_finite(backend, dtype, loss, y, z, value, grad):
    found = loss.value_and_grad(y, backend.array(z, dtype))
    assert_close(found[0], backend.array(value, dtype), rtol=1e-6)
    assert_close(found[1], backend.array(grad, dtype))


# Joined with the last activation, or not -----------------------------------------------------------------


class Halves(Layer):
    def forward(self, ctx, params, x):
        return 0.5 * x, lambda dy, into, want_dx=True: (0.5 * dy, {})


class Squares(Dense):
    def forward(self, ctx, params, x):
        y, back = super().forward(ctx, params, x)
        return y * y, lambda dy, into, want_dx=True: back(2.0 * y * dy, {}, want_dx)


class HalfSoftmax(Layer):
    def __init__(self, name=None, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.activation = activations.get("softmax")

    def forward(self, ctx, params, x):
        y = self.activation.forward(ctx.xp, x)
        return 0.5 * y, lambda dy, into, want_dx=True: (self.activation.backward(ctx.xp, 0.5 * dy, x, y), {})


def ten_times(loss, *forms):
    """Return a subclass of a loss that multiplies some of its forms by ten."""

    def terms(self, ctx, y, p, weight):
        return tuple(10.0 * part for part in loss.terms(self, ctx, y, p, weight))

    def score_terms(self, ctx, y, z, weight):
        values, dz, a = loss.score_terms(self, ctx, y, z, weight)
        return 10.0 * values, 10.0 * dz, a

    both = {"terms": terms, "score_terms": score_terms}
    return type("Ten", (loss,), {form: both[form] for form in forms})


STEPS = RNG.standard_normal((4, 2, 3))
ROWS, ROW_LABELS = RNG.standard_normal((5, 3)), np.array([0, 1, 2, 1, 0])
SCE, CCE, BCE = SparseCategoricalCrossentropy, CategoricalCrossentropy, BinaryCrossentropy
MODELS = {
    "flatten": ([Dense(3, "softmax"), Flatten()], CCE(), STEPS, np.eye(6)[[0, 5, 2, 1]]),
    "own layer behind": ([Dense(3, "sigmoid"), Halves()], BCE(), ROWS, np.eye(3)[ROW_LABELS]),
    "own activation": ([Dense(3), HalfSoftmax()], SCE(), ROWS, ROW_LABELS),
    "subclass of Dense": ([Squares(3, "softmax")], SCE(), ROWS, ROW_LABELS),
    "terms": ([Dense(3, "softmax")], ten_times(SCE, "terms")(), ROWS, ROW_LABELS),
    "terms, hot": ([Dense(3, "softmax")], ten_times(CCE, "terms")(), ROWS, np.eye(3)[ROW_LABELS]),
    "terms, bits": ([Dense(3, "sigmoid")], ten_times(BCE, "terms")(), ROWS, np.eye(3)[ROW_LABELS]),
    "terms, scores": ([Dense(3)], ten_times(SCE, "terms")(from_logits=True), ROWS, ROW_LABELS),
    "both": ([Dense(3), Activation("softmax")], ten_times(SCE, "terms", "score_terms")(), ROWS, ROW_LABELS),
    "both, scores": (
        [Dense(3)], ten_times(CCE, "terms", "score_terms")(from_logits=True), ROWS, np.eye(3)[ROW_LABELS]
    ),
    "score_terms, scores": ([Dense(3)], ten_times(SCE, "score_terms")(from_logits=True), ROWS, ROW_LABELS),
    "perceptron": ([Dense(3)], ten_times(PerceptronCriterion, "score_terms")(), ROWS, np.eye(3)[ROW_LABELS]),
    "divergence": ([Dense(3, "softmax")], losses.KLDivergence(), ROWS, RNG.dirichlet(np.ones(3), 5)),
    "focal": ([Dense(3, "sigmoid")], losses.BinaryFocalCrossentropy(True), ROWS, np.eye(3)[ROW_LABELS]),
    "focal classes": (
        [Dense(3, "softmax")], losses.CategoricalFocalCrossentropy([0.2, 0.3, 0.4]), ROWS, np.eye(3)[ROW_LABELS]
    ),
    "ignored": ([Dense(3, "softmax")], SCE(ignore_class=1), ROWS, ROW_LABELS),
    "smoothed": ([Dense(3, "softmax")], SCE(label_smoothing=0.2), ROWS, ROW_LABELS),
    "dice": ([Dense(3, "sigmoid")], losses.Dice(), ROWS, np.eye(3)[ROW_LABELS]),
    "axis 1": ([Dense(3, "softmax")], CCE(axis=1), STEPS, np.eye(2)[RNG.integers(0, 2, (4, 3))].swapaxes(1, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_of_a_model_is_that_of_its_predictions(name):
    """In `evaluate`, in training, and in the gradient; metrics equal those of `predict`."""
    layers, loss, x, y = MODELS[name]
    layers = [type(layer).from_config(layer.get_config()) for layer in layers]
    model = xn.Sequential(layers, seed=3, dtype="float64")
    model.compile(xn.optimizers.SGD(1.0), loss, ["mse" if y.ndim > 1 else "accuracy"])
    model.build(x.shape[1:])
    p = model.predict(x)
    plain = type(loss).__mro__[1](**({"from_logits": True} if getattr(loss, "from_logits", False) else {}))
    times = 10.0 if type(loss).__name__ == "Ten" else 1.0
    plain = loss if times == 1.0 else plain
    wanted = times * float(plain(y, p))
    metric = np.mean((p - y) ** 2) if y.ndim > 1 else np.mean(p.argmax(-1) == y)
    assert model.evaluate(x, y) == pytest.approx([wanted, metric], rel=1e-10)
    before = model.get_weights()

    def at(change):
        model.set_weights([w + change * d for w, d in zip(before, ways)])
        return times * float(plain(y, model.predict(x)))

    ways = [np.random.default_rng(5).standard_normal(w.shape) for w in before]
    slope = (at(1e-6) - at(-1e-6)) / 2e-6
    model.set_weights(before)
    assert model.train_on_batch(x, y) == pytest.approx([wanted, metric], rel=1e-10)
    taken = sum(((a - b) * d).sum() for a, b, d in zip(before, model.get_weights(), ways))
    assert taken == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("loss", [SCE, CCE, BCE])
def test_a_loss_that_overrides_one_form_loses_the_other(backend64, loss):
    assert loss.fuses is not None
    assert ten_times(loss, "terms").fuses is None
    assert ten_times(loss, "score_terms").fuses == ten_times(loss, "terms", "score_terms").fuses == loss.fuses
    name = {SCE: "sparse", CCE: "cce", BCE: "bce"}[loss]
    _, y, p = case(name)
    p = backend64.array(p)
    with pytest.raises(TypeError, match=r"^Ten must define terms\(ctx, y, p, weight\)$"):
        ten_times(loss, "score_terms")()(y, p)
    for forms in (["terms"], ["score_terms"], ["terms", "score_terms"]):
        assert_close(
            ten_times(loss, *forms)(from_logits=True)(y, p), 10.0 * loss(from_logits=True)(y, p), rtol=1e-12
        )
    activation = {"sparse": "softmax", "cce": "softmax", "bce": "sigmoid"}[name]
    model = xn.Sequential([xn.layers.Input((3,)), Dense(4, activation)], seed=0)
    for forms in ([], ["terms"], ["score_terms"]):
        with pytest.raises(InvalidValueError, match=rf"'{activation}'.* got \w+\(from_logits=True\)$"):
            model.compile("sgd", ten_times(loss, *forms)(from_logits=True))
    mixed = type("Mixed", (ten_times(Loss, "terms"), loss), {})
    assert mixed.fuses is None  # the mixin defines it


def test_the_softmax_with_a_subclass_of_its_loss():
    """Ten times the sparse cross-entropy of one third each."""
    model = xn.Sequential([Dense(3, "softmax", kernel_initializer="ones")], seed=0)
    for forms in (["terms"], ["score_terms"], ["terms", "score_terms"]):
        model.compile("sgd", ten_times(SCE, *forms)())
        model.build((3,))
        assert model.evaluate(np.eye(3), np.arange(3)) == pytest.approx(10 * LOG(3.0), rel=1e-5)


# Infinite scores ----------------------------------------------------------------------------------------

INF = np.inf
INFINITE = [
    # loss, y, z, value, dz
    (SCE, [0], [[0.0, -INF]], 0.0, [[0.0, 0.0]]),
    (SCE, [1], [[0.0, -INF]], INF, [[1.0, -1.0]]),
    (SCE, [1, 1], [[0.0, 0.0, -INF], [-INF, 3.0, -INF]], LOG(2.0) / 2, [[0.25, -0.25, 0.0], [0.0, 0.0, 0.0]]),
    (CCE, [[1.0, 0.0]], [[0.0, -INF]], 0.0, [[0.0, 0.0]]),
    (CCE, [[0.0, 1.0]], [[0.0, -INF]], INF, [[1.0, -1.0]]),
    (CCE, [[0.5, 0.5, 0.0]], [[1.0, 1.0, -INF]], LOG(2.0), [[0.0, 0.0, 0.0]]),
    (BCE, [1.0, 0.0], [INF, -INF], 0.0, [0.0, 0.0]),
    (BCE, [0.0], [INF], INF, [1.0]),
    (BCE, [1.0], [-INF], INF, [-1.0]),
    (BCE, [0.5], [INF], INF, [0.5]),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("loss", "y", "z", "value", "grad"), INFINITE)
def test_infinite_scores(backend, dtype, loss, y, z, value, grad):
    """0 log 0 = 0: an impossible class costs nothing where it is not the target."""
    found = loss(from_logits=True).value_and_grad(y, backend.array(z, dtype))
    assert_close(found[0], backend.array(value, dtype))
    assert_close(found[1], backend.array(grad, dtype))


@pytest.mark.parametrize("kernels", ["bodies", "numpy", "fast"])
@pytest.mark.parametrize(("loss", "y", "z", "value", "grad"), INFINITE)
def test_infinite_scores_in_training(monkeypatch, backend, kernels, loss, y, z, value, grad):
    """The twins give the same results."""
    if kernels == "fast":
        pytest.importorskip("numba")
    monkeypatch.setenv("XPNET_KERNELS", kernels)
    z, arena = np.reshape(z, (len(z), -1)), Arena(backend.xp, backend.device) if backend.inplace else None
    target = backend.array(y, "int32" if loss.sparse else "float32")
    target = target if loss.sparse else backend.xp.reshape(target, z.shape)
    ctx = Context(backend, True, arena=arena)
    with np.errstate(all="ignore"):
        found = loss().value_and_slope(ctx, target, backend.array(z, "float32"), None, fused=True)
    assert_close(backend.array(backend.host(found[0])), backend.array(value, "float32"))
    assert_close(backend.array(backend.host(found[1])), backend.array(np.reshape(grad, z.shape), "float32"))


# Clipping -----------------------------------------------------------------------------------------------


def test_probabilities_are_clipped(backend64):
    worst = -LOG(1e-7)
    value, grad = BinaryCrossentropy(reduction=None).value_and_grad(
        [1.0, 0.0, 1.0], backend64.array([0.0, 1.0, 1.0])
    )
    assert_close(value, backend64.array([worst, worst, -LOG(1 - 1e-7)]), rtol=1e-6)
    assert_close(grad, backend64.zeros(3))  # outside the interval the loss is constant
    for loss, y in ((CategoricalCrossentropy(), [[0.0, 1.0]]), (SparseCategoricalCrossentropy(), [1])):
        value, grad = loss.value_and_grad(y, backend64.array([[1.0, 0.0]]))
        assert_close(value, backend64.scalar(worst))
        assert_close(grad, backend64.zeros((1, 2)))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_float32_clips_to_something_finite(backend, p):
    value, grad = BinaryCrossentropy().value_and_grad([1.0 - p], backend.array([p], "float32"))
    assert 15 < float(value) < 17
    assert float(grad[0]) == 0


# The perceptron's rule ----------------------------------------------------------------------------------


def test_a_step_down_the_criterion_is_the_perceptrons_rule(backend64):
    """w += rate (t - step(w x)) x, exactly, also where w x = 0."""
    rng, rate = np.random.default_rng(3), 0.5
    w = np.zeros(3)
    for x, t in zip(rng.integers(-2, 3, (20, 3)).astype(float), rng.integers(0, 2, 20)):
        z = backend64.array([w @ x])
        dz = backend64.host(PerceptronCriterion().value_and_grad([2.0 * t - 1], z)[1])
        rule = w + rate * (t - float(w @ x > 0)) * x
        w = w - rate * dz[0] * x
        np.testing.assert_array_equal(w, rule)
    assert w.any()


# Shapes, dtypes, libraries ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mse", "mae", "huber", "bce", "bce_logits", "perceptron"])
def test_a_column_and_a_row_of_numbers_are_the_same(backend64, name):
    """(n,) against (n, 1) aligns; it never broadcasts to (n, n)."""
    loss, y, p = case(name)
    y, p = y[:, 0], p[:, 0]
    value, grad = loss.value_and_grad(y, backend64.array(p), WEIGHTS)
    for y_shape, p_shape in (((6, 1), (6,)), ((6,), (6, 1)), ((6, 1), (6, 1))):
        again = loss.value_and_grad(y.reshape(y_shape), backend64.array(p.reshape(p_shape)), WEIGHTS)
        assert_close(again[0], value)
        assert again[1].shape == p_shape
        assert_close(backend64.host(again[1]).reshape(6), backend64.host(grad))


def test_labels_may_stand_in_a_column(backend64):
    loss, p = SparseCategoricalCrossentropy(), backend64.array(SHARES)
    assert_close(loss(LABELS[:, None], p), loss(LABELS, p))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", "float32", "float64"])
def test_labels_of_any_dtype(backend, dtype):
    p = backend.array(SHARES, "float32")
    loss = SparseCategoricalCrossentropy()
    value = loss(LABELS.astype(dtype), p)
    assert float(value) == pytest.approx(-LOG(SHARES[np.arange(6), LABELS]).mean(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_the_result_is_of_the_predictions_library_and_dtype(backend, name):
    loss, y, p = case(name)
    y = y.astype(np.float32) if y.dtype == np.float64 else y
    value, grad = loss.value_and_grad(y, backend.array(p, "float32"))
    assert_close(value, backend.array(0.0, "float32"), atol=1e9)
    assert_close(grad, backend.array(np.zeros((6, 4)), "float32"), atol=1e9)
    there = loss.value_and_grad(y, p.astype(np.float32))
    assert isinstance(there[1], np.ndarray)
    assert there[1].dtype == np.float32


def test_dtype(backend):
    value = MeanSquaredError(dtype="float64")(SOFT.astype(np.float32), SCORES.astype(np.float32))
    assert str(value.dtype) == "float64"


# Names and errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("mse", MeanSquaredError),
        ("mean_squared_error", MeanSquaredError),
        ("mae", MeanAbsoluteError),
        ("huber", Huber),
        ("Huber", Huber),
        ("binary_crossentropy", BinaryCrossentropy),
        ("bce", BinaryCrossentropy),
        ("categorical_crossentropy", CategoricalCrossentropy),
        ("sparse_categorical_crossentropy", SparseCategoricalCrossentropy),
        ("perceptron", PerceptronCriterion),
        ("perceptron_criterion", PerceptronCriterion),
        ("MeanSquaredError", MeanSquaredError),
    ],
)
def test_names(name, cls):
    assert type(losses.get(name)) is cls


@pytest.mark.parametrize("name", LOSSES)
def test_config_round_trip(name):
    loss, y, p = case(name, reduction="sum", name="mine", dtype="float64")
    again = losses.get({"class_name": type(loss).__name__, "config": loss.get_config()})
    assert again.get_config() == loss.get_config()
    assert again.name == "mine"
    assert float(again(y, p)) == float(loss(y, p))


SPARSE, HOTTED = SparseCategoricalCrossentropy(), CategoricalCrossentropy()
P2 = [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("call", "error", "ends"),
    [
        (lambda: losses.get("msee"), UnknownNameError, "got 'msee'"),
        (lambda: losses.get(abs), InvalidTypeError, "got <built-in function abs>"),
        (lambda: MeanSquaredError("average"), UnknownNameError, "got 'average'"),
        (lambda: MeanSquaredError(dtype="float16"), UnknownNameError, "got 'float16'"),
        (lambda: Huber(0.0), InvalidValueError, "got 0.0"),
        (lambda: Huber("1"), InvalidTypeError, "got '1'"),
        (lambda: Huber()([[1, 2, 3]], P2), ShapeError, "shape (2, 2); got (1, 3)"),
        (lambda: BinaryCrossentropy(label_smoothing=1.5), InvalidValueError, "got 1.5"),
        (lambda: CategoricalCrossentropy(label_smoothing=-0.5), InvalidValueError, "got -0.5"),
        (lambda: SPARSE([0, 2], P2), InvalidValueError, "from 0 to 1; got 2"),
        (lambda: SPARSE([0, -1], P2), InvalidValueError, "got -1"),
        (lambda: SPARSE([0, 0.5], P2), InvalidValueError, "got 0.5"),
        (lambda: SPARSE([0, float("nan")], P2), InvalidValueError, "got nan"),
        (lambda: SPARSE([0, 1, 1], P2), ShapeError, "got (3,)"),
        (lambda: SPARSE([[0, 1], [1, 0]], P2), ShapeError, "'categorical_crossentropy'); got (2, 2)"),
        (
            lambda: SPARSE([0, 1], [[1.0], [0.5]]),
            ShapeError,
            "'binary_crossentropy'); got outputs of shape (2, 1)",
        ),
        (lambda: HOTTED([0, 1], P2), ShapeError, "'sparse_categorical_crossentropy'); got (2,)"),
        (lambda: HOTTED([[1.0], [0.0]], [1.0, 0.5]), ShapeError, "got outputs of shape (2, 1)"),
        (lambda: HOTTED([[0, 2], [1, 0]], P2), InvalidValueError, "targets in [0, 1]; got 2"),
        (lambda: BinaryCrossentropy()([0, -1], [0.5, 0.5]), InvalidValueError, "got -1"),
        (lambda: BinaryCrossentropy()([0.0, float("nan")], [0.5, 0.5]), InvalidValueError, "got nan"),
        (lambda: PerceptronCriterion()([1, 2], [0.5, 0.5]), InvalidValueError, "got 2"),
        (lambda: MeanSquaredError()([[1, 2, 3]], P2), ShapeError, "shape (2, 2); got (1, 3)"),
        (lambda: MeanSquaredError()([[1, 2]], [1.0, 2.0]), ShapeError, "(2, 1) or (2,); got (1, 2)"),
        (lambda: MeanAbsoluteError()(1.0, 2.0), ShapeError, "got shape ()"),
        (
            lambda: MeanSquaredError()([1, 2], [1.0, 2.0], [1.0]),
            ShapeError,
            "sample_weight must have shape (2,); got (1,)",
        ),
        (lambda: MeanSquaredError()(["a", "b"], [1.0, 2.0]), InvalidTypeError, "got dtype <U1 (list)"),
        (lambda: MeanSquaredError()([[1], [1, 2]], [1.0, 2.0]), InvalidTypeError, "got list"),
    ],
)
def test_errors(call, error, ends):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).endswith(ends)


class Cubic(Elementwise):
    """|d|^3, in two lines."""

    targets = targets.LIKE_OUTPUTS

    def at(self, xp, y, p):
        d = p - y
        return xp.abs(d) * d * d, 3.0 * xp.abs(d) * d


@pytest.mark.parametrize("weight", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight", "none"])
def test_a_formula_of_ones_own(backend64, weight, reduction):
    loss, p = Cubic(reduction), backend64.array(SCORES)
    check_gradients(loss, SCORES.shape, y_true=SOFT, inputs=SCORES, backend=backend64)
    w = np.ones(6) if weight is None else weight
    rows = (np.abs(SCORES - SOFT) ** 3).mean(-1) * w
    divisor = {"sum_over_batch_size": 6.0, "mean_with_sample_weight": w.sum()}.get(reduction, 1.0)
    assert_close(loss(SOFT, p, weight), backend64.array(rows if reduction == "none" else rows.sum() / divisor))
    with pytest.raises(ShapeError, match=r"^Cubic takes targets .*; got \(6, 3\)$"):
        loss(SOFT[:, :3], p)


def test_a_formula_that_is_overridden():
    """It is no longer joined with the activation, whose form from scores uses another formula."""

    class Doubled(BinaryCrossentropy):
        def at(self, xp, y, p):
            return tuple(2.0 * part for part in super().at(xp, y, p))

    class OfScores(BinaryCrossentropy):
        def at_scores(self, xp, y, z):
            value, slope, a = super().at_scores(xp, y, z)
            return 2.0 * value, 2.0 * slope, a

    assert Doubled.fuses is None
    assert OfScores.fuses == "sigmoid"
    bits, shares = BITS[:, :1], PROBABILITIES[:, :1]
    assert float(Doubled()(bits, shares)) == 2.0 * float(BinaryCrossentropy()(bits, shares))
    scores = BinaryCrossentropy(from_logits=True)(bits, SCORES[:, :1])
    assert float(OfScores(from_logits=True)(bits, SCORES[:, :1])) == 2.0 * float(scores)
    with pytest.raises(TypeError, match=r"^OfScores must define terms"):
        OfScores()(bits, shares)
    model = xn.Sequential([Dense(1, "sigmoid")], seed=1)
    for loss in (Doubled(), OfScores()):
        model.compile("sgd", loss)
        model.build((4,))
        plain = float(BinaryCrossentropy()(bits, model.predict(SCORES)))
        assert model.evaluate(SCORES, bits) == pytest.approx(2.0 * plain, rel=1e-5)


def test_a_formula_is_needed():
    class Mine(Elementwise):
        pass

    with pytest.raises(TypeError, match="Mine must define at"):
        Mine()([1.0], [1.0])


def test_a_loss_of_ones_own_needs_terms():
    class Mine(Loss):
        pass

    with pytest.raises(TypeError, match="Mine must define terms"):
        Mine()([1.0], [1.0])
