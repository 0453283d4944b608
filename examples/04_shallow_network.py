"""A two-coloured flower in the plane: a straight line can't separate its petals, four hidden units can.

If matplotlib is installed, the decision boundaries and the activation functions are saved as PNG files.
"""

import numpy as np

import xpnet as xn


def flower(rng, points=400):
    """Return points on  r = 4 sin(4 t) + noise,  shape (points, 2), and their colours 0 and 1."""
    colour = np.repeat([0.0, 1.0], points // 2)
    t = np.tile(np.linspace(0, 3.12, points // 2), 2) + 3.12 * colour + 0.2 * rng.standard_normal(points)
    r = 4 * np.sin(4 * t) + 0.2 * rng.standard_normal(points)
    return np.stack([r * np.sin(t), r * np.cos(t)], axis=1), colour


# Both models end in a sigmoid unit and minimize the cross-entropy
#     J = -mean(y log a + (1 - y) log(1 - a)),   with   dZ = A - Y.
# Logistic regression:  A = sigmoid(X W + b),   dW = X.T dZ / m,   db = mean(dZ)
# With a hidden layer:  A1 = tanh(X W1 + b1),   A2 = sigmoid(A1 W2 + b2), and backwards from the output
#     dZ2 = A2 - Y,                      dW2 = A1.T dZ2 / m,   db2 = mean(dZ2)
#     dZ1 = (dZ2 W2.T) * (1 - A1^2),     dW1 = X.T dZ1 / m,    db1 = mean(dZ1)     (tanh' = 1 - tanh^2)
x, y = flower(np.random.default_rng(2))
models, accuracy = {}, {}
for name, hidden in {"logistic regression": [], "four hidden units": [4]}.items():
    layers = [xn.layers.Dense(units, activation="tanh") for units in hidden]
    model = xn.Sequential([*layers, xn.layers.Dense(1, activation="sigmoid")], seed=0)
    model.compile(optimizer=xn.optimizers.Adam(0.02), loss="binary_crossentropy", metrics=["accuracy"])
    model.fit(x, y, batch_size=50, epochs=200, verbose=0)
    loss, accuracy[name] = model.evaluate(x, y)
    models[name] = model
    print(f"{name}: loss {loss:.3f}, accuracy {accuracy[name]:.3f}")

try:
    from matplotlib.figure import Figure  # draws to files, needs no display
except ImportError:
    print("matplotlib is not installed: no pictures")
else:
    side = np.linspace(-5, 5, 101)
    grid = np.stack([a.ravel() for a in np.meshgrid(side, side)], axis=1)
    figure = Figure(figsize=(10, 5), layout="tight")
    for ax, (name, model) in zip(figure.subplots(1, 2), models.items()):
        a = model.predict(grid).reshape(101, 101)
        ax.contourf(side, side, a, levels=[0, 0.5, 1], cmap="coolwarm", alpha=0.4)
        ax.scatter(*x.T, c=y, s=9, cmap="coolwarm")
        ax.set_title(f"{name}: {accuracy[name]:.1%}")
    figure.savefig("decision_boundary.png")

    z = np.linspace(-4, 4, 401, dtype=np.float32)
    figure = Figure(figsize=(14, 3.5), layout="tight")
    for ax, name in zip(figure.subplots(1, 4), ["sigmoid", "tanh", "relu", "leaky_relu"]):
        f = xn.activations.get(name)
        ax.plot(z, f(z), label="f(z)")
        ax.plot(z, f.derivative(z), "--", label="f'(z)")
        ax.set_title(name)
        ax.legend()
    figure.savefig("activations.png")
    print("wrote decision_boundary.png, activations.png")

assert accuracy["logistic regression"] <= 0.60
assert accuracy["four hidden units"] >= 0.90
print("ok, on", models["four hidden units"].backend.name)
