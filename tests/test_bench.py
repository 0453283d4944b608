"""The benchmark's mechanics; what it measures is never asserted."""

import json

import pytest

from xpnet import cli
from xpnet.backend import np
from xpnet.bench import NETWORKS, Case, measure
from xpnet.bench.peers import CONTESTANTS
from xpnet.errors import XpnetError

CASE = Case((6, 8, 3), 16, rate=1e-2)


def test_the_cases():
    assert CASE.flops == 2 * 16 * (3 * (6 * 8 + 8 * 3) - 6 * 8)
    x, y = CASE.data(3)
    assert x.shape == (48, 6)
    assert x.dtype == np.float32
    assert set(y) <= {0, 1, 2}
    assert [case.layers[0] for case in NETWORKS] == [20, 784, 784, 1024]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("name", [name for name in CONTESTANTS if name not in ("keras", "torch compiled")])
def test_every_contestant_trains(name, optimizer):
    try:
        run, loss = CONTESTANTS[name](CASE._replace(optimizer=optimizer))
    except ImportError as error:
        pytest.skip(f"{error}: this contestant's library is not part of this environment")
    before = loss() if loss else None
    run(100)
    if loss:
        assert loss() < before


def test_a_table_of_results():
    results = measure(CASE, ["sklearn fit"], rounds=2, seconds=0.001, threads=1)
    assert [r.contestant for r in results][:2] == ["products only", "xpnet numpy"]
    base = results[1]
    assert base.ratio == 1.0
    for r in results:
        assert 0 < r.low <= r.median <= r.high
        assert r.ratio == pytest.approx(base.median / r.median)
        assert r.gflops == pytest.approx(CASE.flops / r.median / 1e3)


def test_what_does_not_learn_is_not_timed(monkeypatch):
    def idle(case):
        return (lambda n: None), (lambda: 1.0)

    monkeypatch.setitem(CONTESTANTS, "idle", idle)
    with pytest.raises(XpnetError, match=r"idle .* its loss did not fall; got"):
        measure(CASE, ["idle"], rounds=1, seconds=0.0)


def test_a_peer_that_is_missing_is_left_out(monkeypatch, capsys):
    def missing(case):
        raise ImportError("No module named 'peer'")

    monkeypatch.setitem(CONTESTANTS, "peer", missing)
    results = measure(CASE, ["peer"], rounds=1, seconds=0.0)
    assert "peer" not in [r.contestant for r in results]
    assert "left out: peer (No module named 'peer')" in capsys.readouterr().err


def test_the_command(tmp_path, capfd):
    path = tmp_path / "bench.json"
    options = {"layers": "6,8,3", "batch": 16, "threads": 1, "rounds": 1, "seconds": 0.001, "json": path}
    options["contestants"] = "xpnet numpy"
    assert cli.main(["bench", *(str(a) for name, value in options.items() for a in (f"--{name}", value))]) == 0
    out = capfd.readouterr().out
    assert "6-8-3, 16, 1 thread" in out
    report = json.loads(path.read_text())
    assert [r["contestant"] for r in report["results"]] == ["products only", "xpnet numpy"]
    assert "numpy" in report["machine"]
