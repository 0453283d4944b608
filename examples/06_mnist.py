"""MNIST: 70,000 handwritten digits of 28 x 28 pixels, a network of 670,000 weights, five epochs.

The images are downloaded once, or read from the folder named by XPNET_DATA. If neither is possible, the error says
what to do.
"""

import time

import numpy as np

import xpnet as xn
from xpnet.datasets import mnist


class Pace(xn.callbacks.Callback):
    """Halve the learning rate after each epoch, and time the epochs."""

    def __init__(self):
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.model.optimizer.learning_rate = 0.002 / 2**epoch  # large steps first, then small ones
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.start)


(x, y), (x_test, y_test) = mnist()
x, x_test = x / np.float32(255), x_test / np.float32(255)  # scale bytes to [0, 1]

# A0 = the image, flattened to 784 numbers
# A1 = relu(A0 W1 + b1),   A2 = relu(A1 W2 + b2),   A3 = softmax(A2 W3 + b3)
# Dropout of rate p, in training only:   D = (random >= p),   A = A * D / (1 - p)   (keep_prob = 1 - p)
model = xn.Sequential(
    [
        xn.layers.Input((28, 28)),
        xn.layers.Flatten(),
        xn.layers.Dense(512, activation="relu"),
        xn.layers.Dropout(0.2),
        xn.layers.Dense(512, activation="relu"),
        xn.layers.Dropout(0.2),
        xn.layers.Dense(10, activation="softmax"),
    ],
    seed=0,
)
model.summary()
model.compile(xn.optimizers.Adam(), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
pace = Pace()
model.fit(x, y, batch_size=128, epochs=5, callbacks=[pace])

loss, accuracy = model.evaluate(x_test, y_test)
print(f"10,000 test images: loss {loss:.4f}, accuracy {accuracy:.4f}")
first, usual = pace.seconds[0], np.median(pace.seconds)
print(f"{model.backend.name}, {model.backend.dtype_name}: {usual:.2f} s an epoch (the first {first:.2f} s)")
assert accuracy >= 0.978
print("ok")
