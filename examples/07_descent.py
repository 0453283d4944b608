"""Compare gradient descent variants: batch sizes, optimizers, learning rates, dropout."""

import os

os.environ.setdefault("JAX_ENABLE_X64", "1")  # JAX supports float64 only if this is set before its import

import numpy as np

import xpnet as xn
from xpnet.datasets import digits
from xpnet.optimizers import SGD, Adam, Momentum, RMSprop

# Each step follows the negative gradient g of the mean loss over its rows:  w = w - rate g
# Batch descent uses all rows in each step, stochastic descent one, mini-batch descent a few.
#     Momentum:  v = b v + (1 - b) g           w = w - rate v
#     RMSprop:   s = b s + (1 - b) g^2         w = w - rate g / (sqrt(s) + epsilon)
#     Adam:      v with b1, s with b2          w = w - rate v_c / (sqrt(s_c) + epsilon),  with bias correction
#                in step t:                    v_c = v / (1 - b1^t),  s_c = s / (1 - b2^t)
RUNS = {  # optimizer, rows per step, dropout
    "batch": (SGD(0.2), 256, 0.0),
    "stochastic": (SGD(0.02), 1, 0.0),
    "mini-batch": (SGD(0.2), 32, 0.0),
    "Momentum": (Momentum(0.2, beta=0.9), 32, 0.0),
    "RMSprop": (RMSprop(0.005, rho=0.9, epsilon_on="root"), 32, 0.0),
    "Adam": (Adam(0.005, beta_1=0.9, beta_2=0.999, epsilon_on="corrected"), 32, 0.0),
    "too small a rate": (SGD(0.0002), 256, 0.0),
    "too large a rate": (SGD(20.0), 256, 0.0),
    "dropout": (SGD(0.2), 256, 0.5),
}
x, y = (part[:256] for part in digits()[0])


def network(*hidden, dtype=None):
    """Return a model with these hidden layers before ten classes."""
    return xn.Sequential([*hidden, xn.layers.Dense(10, activation="softmax")], seed=0, dtype=dtype)


curves = {}
for name, (optimizer, rows, rate) in RUNS.items():
    model = network(xn.layers.Dense(32, activation="relu"), xn.layers.Dropout(rate))
    model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy")
    history = model.fit(x, y, batch_size=rows, epochs=20, verbose=0)
    curve = curves[name] = np.array(history.history["loss"])
    print(f"{name:17} loss {curve[0]:.3f} -> {curve[-1]:.3f}, rose {sum(np.diff(curve) > 0)} times")
assert all(curves[name][-1] < 0.5 < curves["batch"][-1] for name in list(RUNS)[1:6])  # more steps per epoch
assert curves["too small a rate"][-1] > 0.99 * curves["too small a rate"][0]  # hardly moves
assert curves["too large a rate"].max() > 2 * curves["too large a rate"][0]  # overshoots the minimum
# With all rows and no dropout the cost must fall at every step: check this before adding dropout.
assert (np.diff(curves["batch"]) < 0).all()
assert (np.diff(curves["dropout"]) > 0).any()  # every step has its own mask and so its own cost ...
assert curves["dropout"][-1] < 0.8 * curves["dropout"][0]  # ... but it still learns

# Backwards through ten layers:  dA[l-1] = (dA[l] * f'(Z[l])) W[l].T,   dW[l] = A[l-1].T (dA[l] * f'(Z[l]))
# sigmoid' = a (1 - a) <= 1/4 shrinks dA in each layer, relu' = 1 for z > 0 does not. A step of rate 1 is dW.
slope = {}
for f, start in (("sigmoid", "glorot_uniform"), ("relu", "he_normal")):
    ten = [xn.layers.Dense(32, activation=f, kernel_initializer=start) for _ in range(10)]
    model = network(*ten, dtype="float64")
    model.compile(optimizer=SGD(1.0), loss="sparse_categorical_crossentropy")
    model.build((64,))
    before = model.get_weights()[::2]  # the kernels, without the biases
    model.train_on_batch(x, y)
    slope[f] = [np.linalg.norm(old - new) for old, new in zip(before, model.get_weights()[::2])]
    print(f"|dW| of {f} layers, first to last:", " ".join(f"{size:.0e}" for size in slope[f]))
assert slope["sigmoid"][0] < 1e-4 * slope["sigmoid"][-1]
assert slope["relu"][0] > 0.1 * slope["relu"][-1]

try:
    from matplotlib.figure import Figure  # draws to files, needs no display
except ImportError:
    print("matplotlib is not installed: no picture")
else:
    figure = Figure()
    axes = figure.add_subplot(yscale="log", xlabel="epoch", ylabel="loss")
    for name, curve in curves.items():
        axes.plot(curve, label=name)
    axes.legend()
    figure.savefig("descent.png")
print("ok, on", model.backend.name)
