"""One formula, every machine: traced, planned as calls, written as a loop; each against the formula on arrays."""

import importlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest

import xpnet as xn
from xpnet import kernels, optimizers
from xpnet.backend import get_backend
from xpnet.core import ops
from xpnet.core.special import erf
from xpnet.fusion import loops
from xpnet.fusion.calls import contract, plan
from xpnet.fusion.numbers import numbers_of
from xpnet.fusion.trace import ARITY, Node, NotElementwise, trace
from xpnet.fusion.update import AGE, FACTOR, LR, fading, update_graph
from xpnet.kernels.context import Arena, Context
from xpnet.kernels.finish import make
from xpnet.optimizers import SGD, Adadelta, Adagrad, Adam, Adamax, Ftrl, Lion, Momentum, Nadam, RMSprop
from xpnet.training.replay import Replay

BACKEND = os.environ.get("XPNET_BACKEND") or "numpy"
MACHINES = [module for module, names in kernels.TWINS.get(BACKEND, {}).items() if "update" in names]
needs_machines = pytest.mark.skipif(not MACHINES, reason="formulas run on arrays there")


def twin_of(module):
    if module == "host.numba":
        pytest.importorskip("numba")
    return importlib.import_module(f"xpnet.kernels.{module}").update


class Formula(optimizers.Optimizer):
    """An optimizer with a given formula and numbers."""

    def __init__(self, make, slots=(), numbers=None, sure=False):
        super().__init__(0.1)
        self.make, self.names, self.given, self.sure = make, slots, numbers, sure

    @property
    def slots(self):
        return self.names

    @property
    def never_overflows(self):
        return self.sure

    def numbers(self, xp, lr, age):
        return (lr,) if self.given is None else self.given(xp, lr, age)

    def formula(self, xp):
        return self.make(xp)


def run(op, optimizer, dtype, arrays, lr=0.3, age=3.0, decay=0.0, factor=None):
    """Return the result of an update of host arrays (w, g, *slots)."""
    backend = get_backend(dtype=dtype)
    ctx = Context(backend, True, None, Arena(backend.xp, backend.device))
    w, g, *slots = (backend.array(a, dtype) for a in arrays)
    lr, age = backend.scalar(lr), backend.scalar(age)
    factor = None if factor is None else backend.scalar(factor)
    with np.errstate(all="ignore"):
        new, kept = op(ctx, optimizer, w, g, tuple(slots), lr, age, decay, factor)
        make(ctx.finish)
    return [np.array(backend.host(a)) for a in (new, *kept)]


def same(optimizer, module, dtype, arrays, **more):
    """Compare a machine with the definition, in place and in separate memory."""
    for optimizer.sure in (False, True):
        found = run(twin_of(module), optimizer, dtype, arrays, **more)
        for a, wanted in zip(found, run(ops.update, optimizer, dtype, arrays, **more), strict=True):
            # numbers near the smallest normal number are flushed to 0 in decaying slots
            tolerance = {"rtol": 3e-6, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-13, "atol": 1e-14}
            np.testing.assert_allclose(a, wanted, **tolerance)


# Each operation -----------------------------------------------------------------------------------------------

ODD = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3e-3, -7.0, 20.0, np.inf, -np.inf, np.nan])
W, G = (a.ravel() for a in np.meshgrid(ODD, ODD))
OPERATIONS = {
    "add": lambda xp, a, b: a + b,
    "subtract": lambda xp, a, b: 2.0 - a - b,
    "multiply": lambda xp, a, b: a * b * 3.0,
    "divide": lambda xp, a, b: 1.0 / a + a / b,
    "negative": lambda xp, a, b: -a,
    "abs": lambda xp, a, b: abs(a) + xp.abs(b),
    "sign": lambda xp, a, b: xp.sign(a),
    "sqrt": lambda xp, a, b: xp.sqrt(a),
    "square": lambda xp, a, b: xp.square(a) + b**2,
    "exp": lambda xp, a, b: xp.exp(a),
    "expm1": lambda xp, a, b: xp.expm1(a),
    "log": lambda xp, a, b: xp.log(a),
    "log1p": lambda xp, a, b: xp.log1p(a),
    "cos": lambda xp, a, b: xp.cos(a),
    "tanh": lambda xp, a, b: xp.tanh(a),
    "erf": lambda xp, a, b: erf(xp, a),
    "floor": lambda xp, a, b: xp.floor(a * 1.5),
    "pow": lambda xp, a, b: xp.abs(a) ** 1.5 + 1.5**b,
    "maximum": lambda xp, a, b: xp.maximum(a, b),
    "minimum": lambda xp, a, b: xp.minimum(a, b),
    "greater": lambda xp, a, b: xp.where(a > b, a, 1.0 - b),
    "greater_equal": lambda xp, a, b: xp.where(a >= b, a, b),
    "less": lambda xp, a, b: xp.where(a > 0.5, a, b),
    "less_equal": lambda xp, a, b: xp.where(a <= b, b, a),
    "equal": lambda xp, a, b: xp.where(a == b, xp.ones_like(a), a),
    "not_equal": lambda xp, a, b: xp.where(a != 0, a, xp.full_like(a, 7.0)),
    "logical_and": lambda xp, a, b: xp.where((a > 0) & (b > 0), a, xp.zeros_like(a)),
    "logical_or": lambda xp, a, b: xp.where((a > 0) | (b > 0), a, b * b),
    "logical_not": lambda xp, a, b: xp.where(~(a > 0), a, b),
    "where": lambda xp, a, b: xp.where(a > b, b, a) + xp.where(b > 0, a, a),
    "isfinite": lambda xp, a, b: xp.where(xp.isfinite(a), a, b),
    "isnan": lambda xp, a, b: xp.where(xp.isnan(a), b, a),
    "astype": lambda xp, a, b: xp.astype(a > b, a.dtype) * b,
}


def test_every_operation_has_a_formula():
    assert set(ARITY) <= set(OPERATIONS)


@needs_machines
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("module", MACHINES)
def test_operations(module, op, dtype):
    formula = Formula(lambda xp: lambda w, g, lr: OPERATIONS[op](xp, w, g))
    assert update_graph(formula, 0) is not None
    same(formula, module, dtype, (W, G))


@needs_machines
@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("module", MACHINES)
def test_operations_on_numbers(module, op):
    """Computed once, on the host, in double precision; where Python raises, as in IEEE arithmetic."""

    class Plain:  # NumPy numbers have no `astype` that takes their dtype
        def __getattr__(self, name):
            return getattr(np, name)

        def astype(self, a, dtype):
            return np.float64(a)

    formula = Formula(lambda xp: lambda w, g, n: w + n, numbers=lambda xp, lr, age: (OPERATIONS[op](xp, lr, age),))
    graph = update_graph(formula, 0)
    work_out = numbers_of(graph).work_out
    for a, b in zip(W.tolist(), G.tolist()):
        with np.errstate(all="ignore"):
            wanted = OPERATIONS[op](Plain(), np.float64(a), np.float64(b))
        np.testing.assert_allclose(work_out(a, b, math.nan), [wanted], rtol=1e-15)
    with np.errstate(all="ignore"):
        finite = np.isfinite(OPERATIONS[op](Plain(), np.float64(0.3), np.float64(3.0)))
    if finite:
        same(formula, module, "float64", (W, G))


@needs_machines
@pytest.mark.parametrize("module", MACHINES)
def test_numbers_in_a_formula(module):
    """Products and sums of numbers alone, before and after the terms they are added to."""

    def formula(at):
        return Formula(lambda xp: at, numbers=lambda xp, lr, age: (age, lr))

    for at in (
        lambda w, g, n, lr: (w - lr * n) + (n * n + g),
        lambda w, g, n, lr: lr * (n + 1.0) - w * n,
        lambda w, g, n, lr: (lr + n * 2.0) + n * (w / n),
    ):
        same(formula(at), module, "float64", np.random.default_rng(0).standard_normal((2, 9)))
    # a result that is a number gets the weights' shape, which it would not have on arrays
    (found,) = run(twin_of(module), formula(lambda w, g, n, lr: lr + n), "float64", np.ones((2, 9)))
    np.testing.assert_allclose(found, np.full(9, 3.3))


@needs_machines
@pytest.mark.parametrize("module", MACHINES)
def test_booleans_that_are_numbers(module):
    def make(xp):
        def at(w, g, early, lr):
            return xp.where(early & (g > 0), g, xp.where(early, -w, lr)) * xp.astype(early, g.dtype)

        return at

    formula = Formula(make, numbers=lambda xp, lr, age: (age < 3, lr))
    for age in (2.0, 3.0):
        same(formula, module, "float32", np.random.default_rng(0).standard_normal((2, 9)), age=age)


# Any formula ----------------------------------------------------------------------------------------------------


def random_formula(seed, slots):
    """Return a formula of random operations, whose results may be any of its values."""

    def make(xp):
        def at(*given):
            rng = np.random.default_rng(seed)
            real, true = list(given), []
            for _ in range(rng.integers(1, 14)):
                a, b = (real[i] for i in rng.integers(0, len(real), 2))
                kind = rng.integers(0, 9)
                if kind == 0:
                    true.append(a > b)
                elif kind == 1 and len(true) > 1:
                    true.append(true[-1] & ~true[0])
                elif kind < 4 and true:
                    real.append(xp.where(true[rng.integers(0, len(true))], a, b))
                else:
                    c = float(rng.random())
                    real.append(
                        (a + c * b, a - b, a * b, xp.maximum(a, b), xp.tanh(a), a - c * (b * a), c - a)[kind % 7]
                    )
            picked = [real[i] for i in rng.integers(0, len(real), 1 + slots)]
            return tuple(a if a is not given[-1] else a + 0.0 * given[0] for a in picked)

        return at

    return make


@needs_machines
@pytest.mark.parametrize("module", MACHINES)
def test_registers(module):
    """Results overwrite arrays that other results still read, or are other results; one value is two results."""
    count = 20 if module == "host.numba" else 150  # each is compiled
    for seed in range(count):
        slots = seed % 4
        formula = Formula(random_formula(seed, slots), [f"s{i}" for i in range(slots)])
        arrays = np.random.default_rng(seed).standard_normal((2 + slots, 11))
        assert update_graph(formula, slots) is not None
        same(formula, module, "float64", arrays, decay=(seed % 2) * 0.5, factor=None if seed % 3 else 0.5)


@needs_machines
@pytest.mark.parametrize("module", MACHINES)
def test_arrays_that_change_places(module):
    swap = Formula(lambda xp: lambda w, g, a, b, lr: (a, b, w), ["a", "b"])
    same(swap, module, "float64", np.random.default_rng(0).standard_normal((4, 5)))
    copies = Formula(lambda xp: lambda w, g, a, b, lr: (w + g, w + g, lr), ["a", "b"])
    graph = update_graph(copies, 2)
    assert plan(graph, (0, 2, 3)).calls[-1].op == "copy"
    arrays = np.random.default_rng(0).standard_normal((4, 5))
    for copies.sure in (False, True):
        found = run(twin_of(module), copies, "float64", arrays)
        for a, wanted in zip(found, (arrays[0] + arrays[1], arrays[0] + arrays[1], np.full(5, 0.3)), strict=True):
            np.testing.assert_allclose(a, wanted)


@pytest.mark.parametrize(
    ("optimizer", "calls", "scratch"),
    [
        (SGD(), 2, 1), (SGD(momentum=0.9), 4, 1), (SGD(momentum=0.9, nesterov=True), 6, 1), (Momentum(), 5, 1),
        (RMSprop(), 9, 1), (Adagrad(), 7, 1), (Adam(), 12, 1), (Adam(epsilon_on="corrected"), 12, 1),
        (Adam(amsgrad=True), 13, 1),
    ],
    ids=repr,
)  # fmt: skip
def test_as_few_calls_as_by_hand(optimizer, calls, scratch):
    graph = update_graph(optimizer, len(optimizer.slots))
    found = plan(graph, (0, *range(2, graph.arrays)))
    assert (len(found.calls), found.reals, found.bools) == (calls, scratch, 0)
    own = plan(graph, (None,) * len(graph.outputs))  # the memory of the results serves as scratch memory
    spare = optimizer.nesterov if isinstance(optimizer, SGD) else 0
    assert (len(own.calls), own.reals) == (calls + spare, spare)


def test_a_sign_is_never_in_place():
    """NumPy takes thirty times as long for one that is."""
    formula = Formula(lambda xp: lambda w, g, s, lr: (xp.sign(w - g), xp.sign(s) + w), ["s"])
    for graph, homes in ((update_graph(Lion(), 1), (0, 2)), (update_graph(formula, 1), (0, 2))):
        for places in (homes, (None, None)):
            signs = [call for call in plan(graph, places).calls if call.op == "sign"]
            assert signs
            assert all(call.out not in call.args for call in signs)


@pytest.mark.parametrize(
    ("optimizer", "calls"), [(Adamax(), 10), (Nadam(), 14), (Adadelta(), 15), (Lion(), 9), (Ftrl(), 14)], ids=repr
)
def test_calls_of_other_optimizers(optimizer, calls):
    """Of Adam's there are 12; so many more or fewer passes over memory take the others."""
    graph = update_graph(optimizer, len(optimizer.slots))
    assert len(plan(graph, (0, *range(2, graph.arrays))).calls) <= calls


def test_sums_and_products_in_one_call():
    ops_of = {}
    for optimizer in (SGD(), SGD(momentum=0.9, nesterov=True), Momentum(), RMSprop(), Adagrad()):
        graph = contract(update_graph(optimizer, len(optimizer.slots)))
        ops_of[repr(optimizer)] = [call.op for call in plan(graph, (0, *range(2, graph.arrays))).calls]
    assert list(ops_of.values()) == [
        ["subtract_scaled"],
        ["subtract_scaled", "multiply", "subtract_scaled", "add_scaled"],
        ["multiply", "add_scaled", "subtract_scaled"],
        ["multiply", "add_product", "add", "sqrt", "subtract_quotient"],
        ["add_product", "add", "sqrt", "subtract_quotient"],
    ]


def test_a_quotient_with_another_use_is_computed_once():
    graph = trace(lambda xp: lambda w, g, lr: (w - lr * (g / w), g / w), 2, 1)
    assert [node.op for node in contract(graph).nodes if node.is_operation] == ["divide", "subtract_scaled"]


# Tracing --------------------------------------------------------------------------------------------------------


def test_a_graph():
    def make(xp):
        return lambda w, g, unused, lr: (w - lr * xp.where(g > 0, g, 0.5), xp.zeros_like(w))

    graph = trace(make, 3, 1)
    assert [node.op for node in graph.nodes] == [
        "array", "number", "array", "constant", "greater", "constant", "where", "multiply", "subtract", "constant",
    ]  # fmt: skip
    assert graph.nodes[4] == Node("greater", (2, 3), 1, True)
    assert [node.rank for node in graph.nodes] == [1, 0, 1, 0, 1, 0, 1, 1, 1, 0]
    assert (graph.outputs, graph.constants, graph.reads) == ((8, 9), (0.0, 0.5, 0.0), {0, 1})


def test_what_is_computed_twice_is_one_node():
    graph = trace(lambda xp: lambda a, b: xp.tanh(a * b) + xp.tanh(a * b), 2)
    assert [node.op for node in graph.nodes] == ["array", "array", "multiply", "tanh", "add"]


def test_values_decide_nothing():
    """Constants are never merged, so that graphs with other settings have the same structure."""
    made = []
    for a, b, n in ((0.5, 0.5, 2.0), (0.5, 0.25, 0.5), (0.0, 1.0, 1.0)):
        made.append(trace(lambda xp, a=a, b=b, n=n: lambda w: (a * w + b * w + a) ** n, 1))
    assert len({graph.key for graph in made}) == 1
    assert [graph.constants for graph in made] == [
        (0.5, 0.5, 0.5, 2.0), (0.5, 0.25, 0.5, 0.5), (0.0, 1.0, 0.0, 1.0)
    ]  # fmt: skip
    graphs = [
        update_graph(Adam(beta_1=b, beta_2=b, epsilon=e), 2, d) for b, e, d in ((0.9, 1e-7, 0.1), (0.5, 0.5, 1.0))
    ]
    assert graphs[0].key == graphs[1].key
    assert graphs[0].constants != graphs[1].constants


@pytest.mark.parametrize(
    "formula",
    [
        lambda xp: lambda a: xp.sum(a),
        lambda xp: lambda a: a.sum(),
        lambda xp: lambda a: a / a.shape[0],
        lambda xp: lambda a: a[0] * a,
        lambda xp: lambda a: a @ a,
        lambda xp: lambda a: a if a > 0 else -a,
        lambda xp: lambda a: max(a, 0.0),
        lambda xp: lambda a: a * float(a),
        lambda xp: lambda a: math.exp(a),
        lambda xp: lambda a: a // 2,
        lambda xp: lambda a: a % 2,
        lambda xp: lambda a: a * np.ones(3),
        lambda xp: lambda a: np.ones(3) * a,
        lambda xp: lambda a: np.add.reduce(a),
        lambda xp: lambda a: np.cumsum(a),
        lambda xp: lambda a: np.fmod(a, a),
        lambda xp: lambda a: a * (a > 0),
        lambda xp: lambda a: a > 0,
        lambda xp: lambda a: ~a,
        lambda xp: lambda a: a & True,
        lambda xp: lambda a: xp.where(a, a, 0.0),
        lambda xp: lambda a: xp.maximum(a),
        lambda xp: lambda a: xp.maximum(a, a, out=a),
        lambda xp: lambda a: xp.astype(a, xp.int32),
        lambda xp: lambda a: xp.astype(a, "float16"),
        lambda xp: lambda a: a + 1j,
        lambda xp: lambda a: a + None,
        lambda xp: lambda a: sum(a),
        lambda xp: lambda a: len(a) * a,
        lambda xp: lambda a: a.undefined,
        lambda xp: lambda a: undefined,  # noqa: F821
        lambda xp: None,
    ],
)
def test_what_is_not_elementwise(formula):
    with pytest.raises(NotElementwise):
        trace(formula, 1)


def test_numpys_numbers_are_constants():
    graph = trace(lambda xp: lambda a: np.float32(0.5) * a - np.float64(2.0) + np.int64(3), 1)
    assert graph.constants == (0.5, 2.0, 3.0)


def test_an_update_is_its_definition():
    graph = update_graph(SGD(), 0, decay=0.5, scaled=True)
    assert {node.args[0] for node in graph.nodes if node.op == "number"} == {LR, FACTOR}
    assert {node.args[0] for node in update_graph(Adam(), 2).nodes if node.op == "number"} == {LR, AGE}
    assert sorted(numbers_of(graph).work_out(0.1, 1.0, 0.25)) == pytest.approx([0.05, 0.1, 0.25], rel=1e-15)


def test_settings_that_change_count_from_the_next_update_on():
    opt = Adam(epsilon=0.25)
    first = update_graph(opt, 2)
    assert update_graph(opt, 2) is first
    opt.epsilon = 0.5
    second = update_graph(opt, 2)
    assert (0.25 in first.constants, 0.5 in second.constants) == (True, True)
    assert second.key == first.key
    opt.amsgrad = True
    assert update_graph(opt, 3).arrays == 5


def test_what_can_not_be_fused():
    norm = Formula(lambda xp: lambda w, g, lr: w - lr * g / xp.max(g))
    one = type("One", (Formula,), {"scalar_slots": ("n",)})(lambda xp: lambda w, g, n, lr: (w, n + lr), ["n"])
    assert update_graph(norm, 0) is None
    assert update_graph(one, 1) is None
    looks = Formula(lambda xp: lambda w, g, lr: w, numbers=lambda xp, lr, age: (lr if age > 1 else 0.0,))
    assert update_graph(looks, 0) is None


def test_slots_that_decay():
    found = {
        repr(opt): fading(update_graph(opt, len(opt.slots)))
        for opt in (SGD(), SGD(momentum=0.9), Momentum(), RMSprop(momentum=0.9, centered=True), Adagrad(),
                    Adam(amsgrad=True), Adamax(), Lion(), SGD(use_ema=True))
    }  # fmt: skip
    assert list(found.values()) == [(), (1,), (1,), (1, 2, 3), (), (1, 2), (1, 2), (1,), ()]
    for at in (
        lambda w, g, s, lr: (w, s * g + w),
        lambda w, g, s, lr: (w, s * s - g),
        lambda w, g, s, lr: (w, lr * s),
    ):
        assert fading(update_graph(Formula(lambda xp, at=at: at, ["s"]), 1)) == ()


@needs_machines
@pytest.mark.parametrize("optimizer", [SGD(momentum=0.9), Momentum(), RMSprop(), Adam(), Adagrad()], ids=repr)
@pytest.mark.parametrize("module", MACHINES)
def test_averages_too_small_to_matter_become_0(module, optimizer):
    """In place, by the 64th update at the latest, in decaying slots; sums of squares do not change."""
    twin, count = twin_of(module), len(optimizer.slots)
    arrays = [np.ones(8), np.zeros(8), *np.full((count, 8), 1e-36)]
    for slot in arrays[2:]:
        slot[0] = 1.0
    for epsilon, kept in ((1e-7, isinstance(optimizer, Adagrad)), (0.0, True)):
        if hasattr(optimizer, "epsilon"):
            optimizer.epsilon = epsilon  # with 0 it may overflow
        found = run(twin, optimizer, "float32", arrays, age=64.0)[1:]
        if optimizer.never_overflows:
            assert [bool(slot[5] != 0) for slot in found] == [kept and hasattr(optimizer, "epsilon")] * count
        else:
            assert all(slot[5] != 0 for slot in found)
        assert all(slot[0] > 0.8 for slot in found)


# Recording and the guard ----------------------------------------------------------------------------------------


class Signs(optimizers.Optimizer):
    """A user-defined optimizer: it does not declare whether it overflows."""

    slots = {"trust": 0.5}

    def __init__(self, learning_rate=0.01, top=1e3):
        super().__init__(learning_rate)
        self.top = top

    def formula(self, xp):
        def at(w, g, t, lr):
            t = 0.5 * t + xp.abs(g)
            return w - lr * xp.sign(g) * xp.minimum(t, self.top), t

        return at


class Sure(Signs):
    never_overflows = True


def trained(optimizer, graph=True):
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((40, 6)), rng.standard_normal((40, 2))
    model = xn.Sequential([xn.layers.Dense(5, activation="tanh"), xn.layers.Dense(2)], seed=2)
    model.compile(optimizer, "mse", graph=graph)
    model.fit(x, y, batch_size=10, epochs=3, verbose=0)
    return model


@pytest.mark.skipif(BACKEND != "numpy", reason="steps are recorded on NumPy")
@pytest.mark.parametrize("kernel", ["numpy", "fast"])
@pytest.mark.parametrize("cls", [Signs, Sure])
def test_a_users_formula_is_recorded(monkeypatch, cls, kernel):
    if kernel == "fast":
        pytest.importorskip("numba")
    monkeypatch.delenv("XPNET_GRAPH", raising=False)
    monkeypatch.setenv("XPNET_KERNELS", kernel)
    recorded, plain = trained(cls()), trained(cls(), graph=False)
    assert isinstance(recorded.session.program().run, Replay)
    assert recorded.session.program().run.recordings
    for a, b in zip(recorded.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    monkeypatch.setenv("XPNET_KERNELS", "bodies")
    for a, b in zip(recorded.get_weights(), trained(cls()).get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", ["numpy", "fast"])
@pytest.mark.parametrize("factor", [1e30, math.inf])
def test_the_guard_holds_a_users_update_back(monkeypatch, kernel, factor):
    """Also finite weights beyond the limits; from the third step on in a recording."""
    if kernel == "fast":
        pytest.importorskip("numba")
    monkeypatch.setenv("XPNET_KERNELS", kernel)

    class Bursting(Signs):
        def numbers(self, xp, lr, age):
            return (xp.where(age < 5, lr, lr * factor),)

    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((10, 6)), rng.standard_normal((10, 2))
    model = xn.Sequential([xn.layers.Dense(5, activation="tanh"), xn.layers.Dense(2)], seed=2)
    model.build((6,))
    model.compile(Bursting(), "mse")
    for _ in range(4):
        before = [*model.get_weights(), *map(np.array, map(model.backend.host, model.state.slots))]
        model.train_on_batch(x, y)
        after = [*model.get_weights(), *map(np.array, map(model.backend.host, model.state.slots))]
        assert all((a != b).any() for a, b in zip(before, after))
    with pytest.raises(xn.errors.NonFiniteError):
        model.train_on_batch(x, y)
    held = [*model.get_weights(), *map(np.array, map(model.backend.host, model.state.slots))]
    for a, b in zip(held, after, strict=True):
        np.testing.assert_array_equal(a, b)


# Loops on disk --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(monkeypatch, tmp_path):
    pytest.importorskip("numba")
    monkeypatch.setenv("XPNET_CACHE", str(tmp_path))
    loops._loop.cache_clear()
    loops.loop_of.cache_clear()
    yield tmp_path
    loops._loop.cache_clear()
    loops.loop_of.cache_clear()


def loop_of(optimizer):
    from xpnet.kernels.host.jit import loop

    graph = update_graph(optimizer, len(optimizer.slots))
    made = loops.loop_of(loop, loops.update_source, graph, (0, *range(2, graph.arrays)), fading(graph))
    numbers = [*numbers_of(graph).work_out(0.1, 1.0, 1.0), *numbers_of(graph).fixed.values(), 1e-30]
    arrays = np.ones((graph.arrays, 16))
    made(np.array(numbers), *arrays)
    return made, arrays


def test_a_new_value_compiles_nothing(folder):
    first, _ = loop_of(Adam())
    second, _ = loop_of(Adam(0.5, beta_1=0.25, beta_2=0.25, epsilon=0.25))
    assert second is first
    assert len(first.signatures) == 1
    assert len(list(folder.glob("loops/*.py"))) == 1
    assert loop_of(SGD())[0] is not first


SCRIPT = """
import numpy as np
from xpnet.fusion import loops
from xpnet.fusion.update import update_graph
from xpnet.kernels.host.jit import loop
from xpnet.optimizers import SGD
made = loops.loop_of(loop, loops.update_source, update_graph(SGD(), 0), (0,))
made(np.ones(2), *np.ones((2, 16)))
print(sum(made.stats.cache_hits.values()), sum(made.stats.cache_misses.values()))
"""


def test_a_machine_compiles_a_loop_once(folder):
    environment = {**os.environ, "XPNET_CACHE": str(folder)}
    environment.pop("NUMBA_CACHE_DIR", None)
    found = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT], env=environment, capture_output=True, text=True
        )
        for _ in range(2)
    ]
    assert [(p.returncode, p.stdout.split()) for p in found] == [(0, ["0", "1"]), (0, ["1", "0"])], found
    assert not list(folder.glob("loops/*.tmp"))


@pytest.mark.parametrize("damage", [b"", b"raise SystemExit", b"\xff\xfe"])
def test_a_damaged_file_is_not_trusted(folder, damage):
    _, wanted = loop_of(SGD())
    (path,) = folder.glob("loops/*.py")
    source = path.read_bytes()
    path.write_bytes(damage)
    loops._loop.cache_clear()
    loops.loop_of.cache_clear()
    np.testing.assert_array_equal(loop_of(SGD())[1], wanted)
    assert path.read_bytes() == source


def test_without_a_folder_loops_are_compiled_in_memory(folder, monkeypatch):
    from xpnet.kernels.host import jit

    wanted = loop_of(SGD())[1]
    (folder / "file").write_text("")
    for missing in (str(folder / "file"), str(folder / "file" / "below")):
        monkeypatch.setenv("XPNET_CACHE", missing)
        monkeypatch.setattr(jit, "_told", False)
        loops._loop.cache_clear()
        loops.loop_of.cache_clear()
        with pytest.warns(RuntimeWarning, match="each process compiles them again"):
            np.testing.assert_array_equal(loop_of(SGD())[1], wanted)


@pytest.mark.parametrize(
    ("platform", "environment", "parts"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, ("/x", "xpnet")),
        ("linux", {"HOME": "/home/me"}, ("/home/me", ".cache", "xpnet")),
        ("darwin", {"HOME": "/Users/me"}, ("/Users/me", "Library", "Caches", "xpnet")),
        ("win32", {"LOCALAPPDATA": "/L"}, ("/L", "xpnet")),
        ("linux", {"XPNET_CACHE": "/own", "XDG_CACHE_HOME": "/x"}, ("/own",)),
    ],
)
def test_the_cache_folder(monkeypatch, platform, environment, parts):
    for name in ("XPNET_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert loops.cache_folder() == loops.Path(*parts)


def test_without_a_home_there_is_no_cache_folder(monkeypatch):
    for name in ("XPNET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(loops.Path, "home", homeless)
    monkeypatch.setattr(sys, "platform", "linux")
    assert loops.cache_folder() is None
