"""One neuron: a weighted sum, an activation, and one gradient step on its error.

The notes write a layer as  A = f(W X + b), with samples as columns. Here, as in Keras, samples are rows:
A = f(X W + b), and W, the `kernel`, has shape (inputs, units): it is the transpose of the notes' W.
"""

import os

os.environ.setdefault("JAX_ENABLE_X64", "1")  # JAX supports float64 only if this is set before its import

import numpy as np

import xpnet as xn


def neuron(weights, bias=None, activation=None):
    """Return a model of one unit with the given weights."""
    unit = xn.layers.Dense(1, activation=activation, use_bias=bias is not None)
    model = xn.Sequential([xn.layers.Input((len(weights),)), unit], dtype="float64")
    kernel = [[w] for w in weights]  # a column: one unit
    model.set_weights([kernel] if bias is None else [kernel, [bias]])
    return model


# 1. The output:  h = sum_i w_i x_i + b,   o = sigmoid(h) = 1 / (1 + exp(-h))
model = neuron(weights=[0.1, 0.8], bias=-0.1, activation="sigmoid")
output = model.predict([[0.7, -0.3]]).item()
print("output of the unit:", output)
assert abs(output - 0.4329070950345457) < 1e-15

# 2. One gradient step by hand, for the error  E = (y - o)^2 / 2.  By the chain rule
#        dE/dw_i = -(y - o) f'(h) x_i,   so with   delta = (y - o) f'(h),   f'(h) = o (1 - o),
#        the new w_i is  w_i + rate delta x_i.
x, y, weights, rate = np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[0.5]]), [0.5, -0.5, 0.3, 0.1], 0.5
expected = [-0.02031869, -0.04063738, -0.06095608, -0.08127477]

sigmoid = xn.activations.get("sigmoid")
h = x @ np.array([weights]).T
delta = (y - sigmoid(h)) * sigmoid.derivative(h)
change = (rate * delta * x)[0]
print("change of the weights, by hand:", change)
assert np.allclose(change, expected, rtol=0, atol=5e-9)

# 3. The same step with the library. Its loss is (y - o)^2 = 2 E, so half the rate gives the same step.
model = neuron(weights, activation="sigmoid")
model.compile(optimizer=xn.optimizers.SGD(learning_rate=rate / 2), loss="mse")
loss = model.train_on_batch(x, y)  # measured before the step
change = model.get_weights()[0][:, 0] - weights
print("change of the weights, by fit: ", change)
assert np.allclose(change, expected, rtol=0, atol=5e-9)
assert model.evaluate(x, y) < loss  # the step went down

# 4. A forward pass to check by hand: unit weights, no activation.  o = 0.1 + 0.2 + 0.4,  |y - o| = 0.3
x, y = [[0.1, 0.2, 0.4]], [[1.0]]
prediction = neuron(weights=[1.0, 1.0, 1.0]).predict(x)
error = xn.losses.MeanAbsoluteError()(y, prediction).item()
print("prediction", prediction.item(), "absolute error", error)
assert abs(prediction.item() - 0.7) < 1e-15
assert abs(error - 0.3) < 1e-15
print("ok, on", model.backend.name)
