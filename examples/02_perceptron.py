"""What a single unit can and can't learn.

A perceptron outputs 1 if its weighted sum is positive:  o = step(w x + b). Its learning rule, for one row with
target t:  w = w + rate (t - o) x,   b = b + rate (t - o).
"""

import numpy as np

import xpnet as xn

x = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
targets = {"AND": [0, 0, 0, 1], "OR": [0, 1, 1, 1], "XOR": [0, 1, 1, 0]}


def says(model):
    """Return the model's outputs for the four rows as 0 and 1."""
    return (model.predict(x)[:, 0] > 0.5).astype(int).tolist()


# 1. The loss "perceptron" has the derivative  dz = o - t, so SGD on single rows is the rule above.
for name, t in targets.items():
    model = xn.Sequential([xn.layers.Dense(1, activation="step", kernel_initializer="zeros")], seed=0)
    model.compile(optimizer=xn.optimizers.SGD(learning_rate=1.0), loss="perceptron", metrics=["accuracy"])
    model.fit(x, t, batch_size=1, epochs=20, shuffle=False, verbose=0)
    kernel, bias = model.get_weights()
    print(f"{name:3}: {says(model)}, wanted {t}: w = {kernel[:, 0]}, b = {bias[0]}")
    # A straight line separates the ones from the zeros for AND and OR, but not for XOR.
    assert (says(model) == t) == (name != "XOR")

# 2. One application of the rule: with w = 0, b = 0 the row (1, 1) gives o = 0; with t = 1, w = (1, 1), b = 1.
model = xn.Sequential([xn.layers.Dense(1, activation="step", kernel_initializer="zeros")], seed=0)
model.compile(optimizer=xn.optimizers.SGD(learning_rate=1.0), loss="perceptron")
model.train_on_batch(x[3:], [1])
assert [w.ravel().tolist() for w in model.get_weights()] == [[1.0, 1.0], [1.0]]

# 3. More layers do not help if they are linear:
#        (X W1 + b1) W2 + b2  =  X (W1 W2) + (b1 W2 + b2),   which is one layer.
# (With small integers both sides are exactly equal.)
rng = np.random.default_rng(0)
w1, b1, w2, b2 = (rng.integers(-9, 10, shape).astype(float) for shape in [(2, 5), (5,), (5, 1), (1,)])
two = xn.Sequential([xn.layers.Input((2,)), xn.layers.Dense(5), xn.layers.Dense(1)])
two.set_weights([w1, b1, w2, b2])
one = xn.Sequential([xn.layers.Input((2,)), xn.layers.Dense(1)])
one.set_weights([w1 @ w2, b1 @ w2 + b2])
print("two linear layers:", two.predict(x)[:, 0], "one:", one.predict(x)[:, 0])
assert np.array_equal(two.predict(x), one.predict(x))

# 4. A nonlinear hidden layer does help:  A1 = tanh(X W1 + b1),  A2 = sigmoid(A1 W2 + b2)
layers = [xn.layers.Dense(4, activation="tanh"), xn.layers.Dense(1, activation="sigmoid")]
model = xn.Sequential(layers, seed=1)
model.compile(optimizer=xn.optimizers.SGD(learning_rate=1.0), loss="binary_crossentropy")
history = model.fit(x, targets["XOR"], batch_size=4, epochs=500, verbose=0)
print(f"XOR with a hidden layer: {says(model)}, loss {history.history['loss'][-1]:.4f}")
assert says(model) == targets["XOR"]
assert history.history["loss"][-1] < 0.05
print("ok, on", model.backend.name)
