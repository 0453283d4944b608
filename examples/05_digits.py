"""Classify handwritten digits of 8 x 8 pixels: train, evaluate, save, load.

The digits are part of the package; nothing is downloaded.
"""

import numpy as np

import xpnet as xn
from xpnet.datasets import digits

(x, y), (x_test, y_test) = digits()  # 1,437 and 360 rows of 64 pixels in [0, 1]; classes 0 to 9

# A1 = relu(X W1 + b1),   A2 = softmax(A1 W2 + b2):  ten probabilities,  a_k = exp(z_k) / sum_j exp(z_j)
# J = -mean(log a_y),  the cross-entropy with the true class y;  dZ2 = A2 - onehot(y)
model = xn.Sequential(
    [
        xn.layers.Input((64,)),
        xn.layers.Dense(256, activation="relu"),
        xn.layers.Dropout(0.2),  # in training only: each unit is dropped with probability 0.2
        xn.layers.Dense(10, activation="softmax"),
    ],
    seed=0,
)
model.summary()
model.compile(
    optimizer=xn.optimizers.Adam(learning_rate=0.003),
    loss="sparse_categorical_crossentropy",  # "sparse": y holds class numbers, not one-hot rows
    metrics=["accuracy"],
)
history = model.fit(x, y, batch_size=32, epochs=25, verbose=1)  # 1: a progress bar

loss, accuracy = model.evaluate(x_test, y_test)  # rows not used for training
print(f"held-out rows: loss {loss:.3f}, accuracy {accuracy:.4f}")
assert history.history["loss"][-1] < history.history["loss"][0]
assert accuracy >= 0.97

probabilities = model.predict(x_test)
assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
for image, row, digit in zip(x_test[:2], probabilities, y_test):
    print("\n".join("".join(" .:*#"[int(4 * pixel)] for pixel in line) for line in image.reshape(8, 8)))
    print(f"a {digit}; the model says {row.argmax()} with probability {row.max():.3f}")

model.save("digits.safetensors")  # architecture, weights, optimizer: everything needed to continue
again = xn.load_model("digits.safetensors")
assert np.array_equal(again.predict(x_test), probabilities)
again.fit(x, y, batch_size=32, epochs=1, verbose=0)  # training continues where it stopped
print("saved as digits.safetensors, loaded, and the predictions are the same")
print("ok, on", model.backend.name)
