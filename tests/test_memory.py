"""The memory that `fit` needs beyond the data, measured on a data set of a gigabyte in a file."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest

import xpnet as xn

LAYERS, BATCH, ROWS = (784, 512, 512, 10), 128, 320_000

PROGRAM = """
import json, sys, threading, time
import numpy as np
import xpnet as xn

layers, batch, rows, folder = json.loads(sys.argv[1])


def make(sizes):
    hidden = [xn.layers.Dense(n, activation="relu") for n in sizes[1:-1]]
    model = xn.Sequential([*hidden, xn.layers.Dense(sizes[-1], activation="softmax")], seed=0)
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    return model


def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


x = np.memmap(folder + "/x", np.float32, "w+", shape=(rows, layers[0]))  # a sparse file
x[::1000] = 1.0
y = np.memmap(folder + "/y", np.int64, "w+", shape=(rows,))
y[::3] = 1
# load and compile everything used later; the sizes make threads share work, as below
small = make((784, 256, 10))
small.fit(x[:2048], y[:2048], batch_size=512, epochs=2, verbose=0)
small.evaluate(x[:2048], y[:2048], batch_size=batch)
del small

peak, done = 0, False


def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)


before = anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
model = make(layers)
model.fit(x, y, batch_size=batch, verbose=0)
model.evaluate(x[:100_000], y[:100_000], batch_size=batch)
done = True
watcher.join()
print(json.dumps({"growth": peak - before, "loss": float(model.evaluate(x[:1000], y[:1000])[0])}))
"""


@pytest.mark.slow
@pytest.mark.skipif(xn.get_backend().name != "numpy", reason="other libraries have their own allocators")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="anonymous memory is counted in /proc")
@pytest.mark.skipif(os.environ.get("XPNET_KERNELS") in ("0", "bodies"), reason="the bodies make new arrays")
def test_what_fit_needs_beyond_a_gigabyte_of_data(tmp_path):
    arguments = json.dumps([LAYERS, BATCH, ROWS, str(tmp_path)])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, arguments], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert ROWS * LAYERS[0] * 4 > 1e9
    weights = sum(a * b + b for a, b in pairwise(LAYERS))
    activations = BATCH * sum(LAYERS)
    needed = 4 * (4 * weights + activations)  # weights, gradient and Adam's two slots
    assert found["loss"] < 1.0
    assert found["growth"] < 1.3 * needed, (found["growth"] / needed, needed)


LEFT = """
import ctypes, gc, json, sys
import numpy as np
import xpnet as xn

models, sizes, compilations = json.loads(sys.argv[1])
rng = np.random.default_rng(0)
x, y = rng.standard_normal((640, 200)).astype(np.float32), rng.integers(0, 10, 640)


def resident():
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free goes back to the system
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def make():
    model = xn.Sequential([xn.layers.Dense(300, activation="relu"), xn.layers.Dense(10, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
    return model


def train(count):
    for _ in range(count):
        model = make()
        model.fit(x, y, batch_size=256, epochs=2, verbose=0)
        model.evaluate(x, y)


def many_sizes(count):
    model = make()
    for size in range(1, 1 + count):
        for _ in range(3):
            model.train_on_batch(x[:size], y[:size])


def recompile(count):
    model = make()
    for _ in range(count):
        model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
        model.fit(x, y, batch_size=256, epochs=2, verbose=0)


found = {}
works = ("models", train, models), ("sizes", many_sizes, sizes), ("compile", recompile, compilations)
for name, work, count in works:
    work(10)
    before = resident()
    work(count)
    found[name] = resident() - before
print(json.dumps(found))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="anonymous memory is counted in /proc")
def test_what_models_batch_sizes_and_compilations_leave_behind():
    """Less than the memory of a few models (0.5 MB each, plus that of their steps), however many there were.

    JAX keeps traced code as long as the process lives, about a megabyte per shape: here it gets few.
    """
    jax = xn.get_backend().name == "jax"
    tries = int(os.environ.get("XPNET_TRIES", 20 if jax else 100))
    counts = [tries, 20 if jax else tries, tries]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", LEFT, json.dumps(counts)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    left = json.loads(done.stdout.splitlines()[-1])
    assert max(left.values()) < 20e6, left
    print(left)
