"""Predict graduate admissions: one sigmoid unit, then two layers of sigmoid units, on 400 applications.

The expected numbers below are from the same course exercise in plain NumPy, and are reproduced to ten digits. The
table is downloaded once, or read from the folder named by XPNET_DATA.
"""

import os

os.environ.setdefault("JAX_ENABLE_X64", "1")  # JAX supports float64 only if this is set before its import

import numpy as np

import xpnet as xn
from xpnet.datasets import admissions

LOSSES = [0.26276093849966364, 0.20928619409324895, 0.20084292908073417, 0.19862156475527884,
          0.19779851396686018, 0.19742577912189863, 0.19723507746241065, 0.19712945625092465,
          0.19706766341315074, 0.19703005801777368]  # fmt: skip


def prepare(seed):
    """Return training rows and targets, then test rows and targets."""
    x, y = admissions()  # columns gre, gpa, rank
    scores, rank = x[:, :2], x[:, 2:]
    scores = (scores - scores.mean(axis=0)) / scores.std(axis=0, ddof=1)  # mean 0, standard deviation 1
    x = np.concatenate([scores, rank == [1, 2, 3, 4]], axis=1)  # a rank is a category: one-hot columns
    train = np.random.RandomState(seed).choice(len(x), size=360, replace=False)
    test = np.setdiff1d(np.arange(len(x)), train)
    return x[train], y[train], x[test], y[test]


def train(layers, weights, x, y, rate, epochs):
    """Return the model and the mean squared training error after each epoch but the last."""
    model = xn.Sequential([xn.layers.Input((6,)), *layers], dtype="float64")
    model.set_weights(weights)
    # The course minimizes  E = mean((y - o)^2) / 2, the library mean((y - o)^2): hence half the rate.
    model.compile(optimizer=xn.optimizers.SGD(learning_rate=rate / 2), loss="mse", metrics=["accuracy"])
    history = model.fit(x, y, batch_size=len(x), epochs=epochs, shuffle=False, verbose=0)
    # With all rows in one batch, an epoch's loss is computed before its only step, i.e. after the previous one.
    return model, history.history["loss"][1:]


# 1. One unit:  o = sigmoid(x w),   delta = (y - o) o (1 - o),   w += rate mean(delta x)
x, y, x_test, y_test = prepare(seed=42)
kernel = np.random.RandomState(42).normal(scale=1 / 6**0.5, size=(6, 1))
unit = xn.layers.Dense(1, activation="sigmoid", use_bias=False)
model, mse = train([unit], [kernel], x, y, rate=0.5, epochs=1000)
for epoch, (got, known) in enumerate(zip(mse[::100], LOSSES, strict=True)):
    print(f"epoch {100 * epoch:3}: loss {got:.15f}, known {known:.15f}")
    assert abs(got - known) < 1e-10
accuracy = model.evaluate(x_test, y_test)[1]
print("test accuracy of one unit:", accuracy)
assert accuracy == 0.725  # 29 of 40

# 2. Two layers with backpropagation: the output's delta is propagated back through the output weights W2.
#        A1 = sigmoid(X W1),   o = sigmoid(A1 W2)
#        delta2 = (y - o) o (1 - o),           W2 += rate A1.T delta2 / n
#        delta1 = (delta2 W2.T) A1 (1 - A1),   W1 += rate X.T delta1 / n
x, y, x_test, y_test = prepare(seed=21)
rng = np.random.RandomState(21)
kernels = [rng.normal(scale=1 / 6**0.5, size=(6, 2)), rng.normal(scale=1 / 6**0.5, size=(2, 1))]
layers = [xn.layers.Dense(units, activation="sigmoid", use_bias=False) for units in (2, 1)]
model, mse = train(layers, kernels, x, y, rate=0.005, epochs=900)
accuracy = model.evaluate(x_test, y_test)[1]
print(f"two layers: loss {mse[0]:.15f} after epoch 0, {mse[810]:.15f} after 810, test accuracy {accuracy}")
assert abs(mse[0] - 0.268560154404101) < 1e-10
assert abs(mse[810] - 0.25441361543077645) < 1e-10
assert accuracy == 0.725
print("ok, on", model.backend.name)
