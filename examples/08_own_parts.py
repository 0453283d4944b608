"""Write your own layer, activation, loss, metric and optimizer; check their derivatives, train, save and load."""

import os
import tempfile

os.environ.setdefault("JAX_ENABLE_X64", "1")  # JAX supports float64, in which derivatives are checked, only then

import numpy as np

import xpnet as xn
from xpnet.datasets import digits
from xpnet.errors import number
from xpnet.losses.targets import LIKE_OUTPUTS
from xpnet.testing import check_gradients


class Scale(xn.layers.Layer):  # y = s x, with one factor s for each feature
    def build(self, input_shape):
        self.add_weight("s", input_shape, "ones")
        return input_shape

    def forward(self, ctx, params, x):
        def backward(dy, into, want_dx=True):
            return dy * params["s"], {"s": ctx.xp.sum(dy * x, axis=-2)}

        return x * params["s"], backward


class Bent(xn.activations.Activation):  # f(z) = z / (1 + |z|), f'(z) = 1 / (1 + |z|)^2
    def forward(self, xp, z):
        return z / (1.0 + xp.abs(z))

    def backward(self, xp, da, z, a):
        return da / (1.0 + xp.abs(z)) ** 2


class Quartic(xn.losses.Elementwise):  # L = (p - y)^4, dL/dp = 4 (p - y)^3
    targets = LIKE_OUTPUTS

    def at(self, xp, y, p):
        return (p - y) ** 4, 4.0 * (p - y) ** 3


class Near(xn.metrics.Metric):  # the share of rows with all outputs near their targets
    distance: float = xn.setting(number, 0, default=0.5)

    def rows(self, ctx, y, p):
        return ctx.xp.all(ctx.xp.abs(p - y) <= self.distance, axis=-1)


class SignMomentum(xn.optimizers.Optimizer):  # m = b m + (1 - b) g, w = w - rate sign(m)
    beta: float = xn.setting(number, 0, 1, default=0.9)
    slots = ("mean",)

    def formula(self, xp):
        def at(w, g, m, rate):
            m = self.beta * m + (1.0 - self.beta) * g
            return w - rate * xp.sign(m), m

        return at


check_gradients(Scale(), (4, 3))
check_gradients(xn.layers.Dense(2, Bent()), (4, 3))
check_gradients(Quartic(), (4, 3), y_true=np.zeros((4, 3)))
(x, y), (xt, yt) = digits()
model = xn.Sequential([Scale(), xn.layers.Dense(64, Bent()), xn.layers.Dense(10, "sigmoid")], seed=0)
model.compile(SignMomentum(0.002), Quartic(), [Near()])
model.fit(x, np.eye(10)[y], epochs=15, verbose=0)
accuracy = float(np.mean(np.argmax(model.predict(xt), axis=1) == yt))
assert accuracy > 0.9, accuracy
with tempfile.TemporaryDirectory() as folder:
    model.save(f"{folder}/own.safetensors")
    own = {cls.__name__: cls for cls in (Scale, Bent, Quartic, Near, SignMomentum)}
    again = xn.load_model(f"{folder}/own.safetensors", custom_objects=own)
assert np.array_equal(again.predict(xt), model.predict(xt))
print(f"ok: accuracy {accuracy:.3f} on {model.backend.name}")
