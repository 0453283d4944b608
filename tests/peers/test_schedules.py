"""Schedules over 1,000 updates, beside Keras, PyTorch and optax."""

import pytest

from xpnet.schedules import (
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    FlatCos,
    InverseTimeDecay,
    OneCycle,
    PiecewiseConstantDecay,
    PolynomialDecay,
)

STEPS = 1000


def values(schedule):
    return [schedule(step) for step in range(STEPS)]


@pytest.fixture
def theirs():
    """Keras' schedules, in float64."""
    keras = pytest.importorskip("keras")
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield keras.optimizers.schedules
    keras.config.set_floatx(before)


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (ExponentialDecay, (0.3, 70, 0.8)),
        (ExponentialDecay, (0.3, 70, 0.8, True)),
        (PiecewiseConstantDecay, ([100, 350, 700], [0.3, 0.2, 0.25, 0.01])),
        (PolynomialDecay, (0.3, 600)),
        (PolynomialDecay, (0.3, 600, 0.01, 2.5)),
        (PolynomialDecay, (0.3, 90, 0.01, 0.5, True)),
        (InverseTimeDecay, (0.3, 70, 0.8)),
        (InverseTimeDecay, (0.3, 70, 0.8, True)),
        (CosineDecay, (0.3, 600)),
        (CosineDecay, (0.3, 600, 0.1)),
        (CosineDecay, (0.01, 600, 0.1, "warm", 0.4, 150)),
        (CosineDecayRestarts, (0.3, 30)),
        (CosineDecayRestarts, (0.3, 30, 1.5, 0.8, 0.1)),
        (CosineDecayRestarts, (0.3, 17, 1.5)),
        (CosineDecayRestarts, (0.3, 100, 1.0, 0.5)),
    ],
)
def test_keras(theirs, agree, cls, arguments):
    peer = getattr(theirs, cls.__name__)(*arguments)
    agree(values(cls(*arguments)), [float(peer(step)) for step in range(STEPS)])
    assert cls(*arguments).get_config() == peer.get_config()


@pytest.mark.parametrize("anneal_strategy", ["cos", "linear"])
@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("pct_start", [0.0, 0.25, 0.3, 0.45])
def test_one_cycle_is_that_of_torch(agree, anneal_strategy, three_phase, pct_start):
    torch = pytest.importorskip("torch")
    settings = {
        "pct_start": pct_start, "anneal_strategy": anneal_strategy, "div_factor": 20.0, "final_div_factor": 50.0,
        "three_phase": three_phase,
    }  # fmt: skip
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    peer = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, STEPS, cycle_momentum=False, **settings)
    rates = []
    for step in range(STEPS):
        rates.append(peer.get_last_lr()[0])
        optimizer.step()
        if step < STEPS - 1:
            peer.step()
    agree(values(OneCycle(0.3, STEPS, **settings)), rates)


def test_optax(agree):
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    pairs = [
        (ExponentialDecay(0.3, 70, 0.8), optax.exponential_decay(0.3, 70, 0.8)),
        (ExponentialDecay(0.3, 70, 0.8, True), optax.exponential_decay(0.3, 70, 0.8, staircase=True)),
        (PolynomialDecay(0.3, 600, 0.01, 2.5), optax.polynomial_schedule(0.3, 0.01, 2.5, 600)),
        (CosineDecay(0.3, 600, 0.1), optax.cosine_decay_schedule(0.3, 600, 0.1)),
        (
            CosineDecay(0.01, 600, 0.1, warmup_target=0.4, warmup_steps=150),
            optax.warmup_cosine_decay_schedule(0.01, 0.4, 150, 750, 0.04),
        ),
        (
            FlatCos(0.3, STEPS, 0.7),
            optax.join_schedules([lambda n: 0.3, optax.cosine_decay_schedule(0.3, 300)], [700]),
        ),
    ]
    with jax.enable_x64(True):
        for ours, peer in pairs:
            agree(values(ours), [float(peer(step)) for step in range(STEPS)])
