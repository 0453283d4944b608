"""Files: loading refuses what safetensors' own reader refuses, and saving preserves what it must."""

import json
import os
import random
import socket
import stat
import subprocess
import sys
import textwrap
import tracemalloc

import numpy as np
import pytest
import safetensors

import xpnet as xn
from xpnet.core.params import Layout
from xpnet.errors import FileFormatError, InvalidTypeError, InvalidValueError
from xpnet.layers import Dense, Input

X = np.random.default_rng(0).standard_normal((8, 3))


def make(units=2, seed=1):
    model = xn.Sequential([Input((3,)), Dense(units), Dense(1)], seed=seed)
    model.compile("adam", "mse")
    return model


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A model's file as bytes."""
    model, path = make(), tmp_path_factory.mktemp("content") / "model"
    model.fit(X, X[:, :1], verbose=0)
    model.save(path)
    return path.read_bytes()


def split(data):
    """Return the header as text, and the bytes of the tensors."""
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length].decode(), data[8 + length :]


def joined(text, rest):
    text = text if isinstance(text, bytes) else text.encode()
    return len(text).to_bytes(8, "little") + text + rest


# Strict -----------------------------------------------------------------------------------------------------


def changed(random, content):
    """Return a file with a random change: bytes, characters or values of the header."""
    text, rest = split(content)
    kind = random.randrange(4)
    if kind == 0:  # bytes
        data = bytearray(joined(text, rest))
        for _ in range(random.randint(1, 3)):
            data[random.randrange(8 + len(text) if random.random() < 0.9 else len(data))] = random.randrange(256)
        return bytes(data)
    if kind == 1:  # a part removed, repeated or replaced
        first, last = sorted(random.choices(range(len(text)), k=2))
        last = min(last, first + 40)
        part = random.choice(
            ["", text[first:last] * 2, "-", "true", "NaN", "1e3", "\ufeff", "\\ud800", " ", ",", "{}"]
        )
        return joined(text[:first] + part + text[last:], rest)
    header = json.loads(text)
    entry = header[random.choice(list(header))]
    key = random.choice(list(entry))
    if kind == 2 or not isinstance(entry[key], list):
        odd = [
            None,
            True,
            -1,
            2**64,
            1.0,
            "1",
            [],
            {},
            [True],
            [1.0],
            [-1],
            [2**63, 2, 0],
            [[1]],
            "F64",
            "U8",
            "?",
        ]
        entry[random.choice([key, key, "more"])] = random.choice(odd)
    else:
        place = random.randrange(len(entry[key]) + 1)
        entry[key][place : place + random.randint(0, 1)] = [random.choice([0, 1, 4, 8, 10**6, -0.0, True])]
    text = json.dumps(header)
    return joined(random.choice([text, text, text.encode("utf-16"), "\ufeff" + text, text + "\0"]), rest)


def test_what_safetensors_refuses_is_refused(content, tmp_path):
    chance, path, refused = random.Random(0), tmp_path / "changed", 0
    for _ in range(600):
        data = changed(chance, content)
        path.write_bytes(data)
        try:
            safetensors.deserialize(data)
            with safetensors.safe_open(path, "np") as file:
                file.metadata()
        except Exception:  # noqa: BLE001 (of any kind)
            refused += 1
            with pytest.raises(FileFormatError, match="changed"):
                pytest.fail(f"{xn.load_model(path)} of {data[8:]!r}")
    assert refused > 300


def replaced(old, new, times=-1):
    return lambda text, rest: (text.replace(old, new, times), rest)


def hole(text, rest):
    header = json.loads(text)
    first, last = header["dense_1/kernel"]["data_offsets"]
    header["dense_1/kernel"]["data_offsets"] = [first + 4, last + 4]
    return json.dumps(header), rest[:first] + bytes(4) + rest[first:]


def overlap(text, rest):
    """Let two biases overlap: both are zeros, so the checksum matches."""
    header = json.loads(text)
    first, last = header["dense_1/bias"]["data_offsets"]
    header["dense_1/bias"]["data_offsets"] = header["dense/bias"]["data_offsets"][:1] + [4]
    header["dense_1/kernel"]["data_offsets"] = [first, first + 8]
    return json.dumps(header), rest[:first] + rest[last:]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (hole, "leaves a hole before 'dense_1/kernel'"),
        (overlap, "overlaps"),
        (lambda text, rest: (text, rest + bytes(4)), "states another size"),
        (lambda text, rest: (text.encode("utf-16"), rest), "utf-8"),
        (lambda text, rest: (text.encode("utf-8-sig"), rest), "BOM"),
        (replaced("[1]", "[true]"), "lists of sizes"),
        (replaced("[1]", "[1.0]"), "lists of sizes"),
        (replaced("[0,", "[-0,"), "not a size"),
        (replaced("{", '{"__metadata__":{},', 1), "duplicate key"),
        (replaced('"dtype"', '"dtype":"F32","dtype"', 1), "duplicate key"),
        (replaced('"dtype"', '"more":1,"dtype"', 1), "needs dtype, shape and data_offsets"),
        (replaced('"format":"xpnet"', '"format":["xpnet"]'), "dictionary of strings"),
        (lambda text, rest: (json.dumps(json.loads(text) | {"__metadata__": [["a", "b"]]}), rest), "dictionary"),
        (replaced('"format"', '"\\ud800":"","format"'), "surrogates"),
    ],
)  # fmt: skip
def test_loose_headers(change, says, tmp_path):
    path = tmp_path / "loose"
    make().save(path)
    text, rest = split(path.read_bytes())
    new = change(text.rstrip(), rest)
    assert new != (text.rstrip(), rest)
    path.write_bytes(joined(*new))
    with pytest.raises(FileFormatError, match=f"loose.*{says}"):
        xn.load_model(path)


def test_the_longest_header_is_that_of_safetensors(tmp_path):
    path = tmp_path / "long"
    with open(path, "wb") as file:
        file.write((100_000_001).to_bytes(8, "little") + b"{}")
        file.truncate(100_000_009)
    with pytest.raises(
        FileFormatError, match=r"long is truncated or not a safetensors file; got 100000009 bytes$"
    ):
        xn.load_model(path)


def test_others_find_aligned_tensors(content, tmp_path):
    (tmp_path / "model").write_bytes(content)
    with safetensors.safe_open(tmp_path / "model", "np") as file:
        assert set(file.keys()) == {
            "dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias", "optimizer.0", "optimizer.1"
        }  # fmt: skip
        assert file.metadata()["version"] == "2"
    assert (8 + len(split(content)[0].encode())) % 8 == 0


# Memory -----------------------------------------------------------------------------------------------------


def test_no_weights_are_drawn_for_a_file(content, tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.write_bytes(content)
    monkeypatch.setattr(Layout, "initial", lambda *_: pytest.fail("weights were drawn"))
    xn.load_model(path)
    text, rest = split(content)
    path.write_bytes(joined(text.replace('\\"units\\": 2', f'\\"units\\": {2 * 10**8}'), rest))
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match="not those of its model"):
            xn.load_model(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_memory_of_a_save_and_a_load(dtype, tmp_path):
    model = xn.Sequential([Input((500,)), Dense(1000), Dense(1)], seed=1, dtype=dtype)
    model.compile("adam", "mse")
    model.fit(np.ones((2, 500)), np.ones((2, 1)), verbose=0)
    path = tmp_path / "large"

    def peak(call):
        tracemalloc.start()
        try:
            kept = call()
            return tracemalloc.get_traced_memory()[1], kept
        finally:
            tracemalloc.stop()

    saving, _ = peak(lambda: model.save(path))
    size, number = path.stat().st_size, 4 if dtype == "float32" else 8
    assert size > 3 * 500_000 * number
    moved = 0 if model.backend.device_name in (None, "cpu") else 502_000 * number  # one in transfer
    assert saving < size + moved + 2**20  # a copy of the state, which `fit` may modify meanwhile
    loading, again = peak(lambda: xn.load_model(path))
    assert loading < 2.1 * size  # once for the model
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])


# One file descriptor ----------------------------------------------------------------------------------------


def test_a_load_sees_one_whole_file(tmp_path, monkeypatch):
    path, other, real = tmp_path / "model", tmp_path / "other", json.loads
    make(2, seed=1).save(path)
    make(2, seed=2).save(other)

    def while_another_saves(*args, **kwargs):
        if other.exists():
            os.replace(other, path)
        return real(*args, **kwargs)

    monkeypatch.setattr(json, "loads", while_another_saves)
    assert xn.load_model(path).seed == 1
    assert xn.load_model(path).seed == 2


# Links and other files of that name -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_the_mode_stays(mode, tmp_path):
    path = tmp_path / "model"
    make().save(path)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(mode)
    make(3).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert xn.load_model(path).layers[1].units == 3


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can change a file's owner")
def test_the_owner_stays(tmp_path):
    path = tmp_path / "model"
    make().save(path)
    os.chown(path, 12345, 23456)
    path.chmod(0o660)
    make().save(path)
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 23456, 0o660)


def test_what_may_not_be_given_away_is_saved_all_the_same(tmp_path, monkeypatch):
    path = tmp_path / "model"
    make().save(path)
    path.chmod(0o600)

    def refuse(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    make(3).save(path)
    assert xn.load_model(path).layers[1].units == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_links_lead_where_they_led(tmp_path):
    (tmp_path / "runs").mkdir()
    real, link, chain = tmp_path / "runs" / "7", tmp_path / "latest", tmp_path / "chain"
    link.symlink_to("runs/7")
    chain.symlink_to(link)
    for units, path in enumerate((link, chain, real), start=2):  # at first, the link has no target
        make(units).save(path)
        assert link.is_symlink()
        assert chain.is_symlink()
        assert not real.is_symlink()
        assert xn.load_model(chain).layers[1].units == units
    assert sorted(os.listdir(tmp_path)) == ["chain", "latest", "runs"]
    assert os.listdir(tmp_path / "runs") == ["7"]
    link.unlink()
    link.symlink_to(chain)  # a loop
    with pytest.raises(OSError, match=r"symbolic links: .*latest'$"):
        make().save(link)


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "directory"])
def test_what_is_no_file_is_refused(kind, tmp_path):
    path = tmp_path / "odd"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))  # the absolute path may be too long
    elif kind == "device":
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root can make a device")
    else:
        path.mkdir()
    before = os.stat(path)
    with pytest.raises(OSError, match=f"(regular file can be .* got a {kind}|Is a directory): .*{path}'"):
        make().save(path)
    with pytest.raises(
        (OSError, FileFormatError), match=f"regular file; got a {kind}|Is a directory|No such device|Permission"
    ):
        xn.load_model(path)
    after = os.stat(path)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert os.listdir(tmp_path) == ["odd"]


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("", FileNotFoundError, "''"),
        (".", IsADirectoryError, "'.'"),
        ("..", IsADirectoryError, "'..'"),
        ("/", IsADirectoryError, "'/'"),
        ("model/", IsADirectoryError, "'model/'"),
        ("none/x", FileNotFoundError, "'none/x'"),
        ("~/x", FileNotFoundError, "'~/x'"),
        ("file/x", NotADirectoryError, "'file/x'"),
        ("a" * 256, OSError, "a'"),
        ("a\0b", InvalidValueError, "a\\x00b'"),
        ("\ud800", InvalidValueError, "\\ud800'"),
        (7, InvalidTypeError, "got 7"),
        (None, InvalidTypeError, "got None"),
    ],
    ids=[
        "empty",
        "dot",
        "dots",
        "root",
        "slash",
        "none",
        "home",
        "under a file",
        "long",
        "null",
        "half",
        "7",
        "None",
    ],
)
def test_names_that_can_not_be(name, error, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(error) as caught:
        make().save(name)
    assert str(caught.value).endswith(says)
    assert getattr(caught.value, "filename", name) == name
    assert ("expanduser" in str(getattr(caught.value, "__notes__", ""))) == (name == "~/x")
    with pytest.raises(error):
        xn.load_model(name if name != "model/" else ".")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "name",
    ["a" * 255, "ä" * 127, "模" * 85, "x" * 149 + "é" * 50, b"bytes", "\udcff"],
    ids=["long", "two bytes", "three bytes", "cut in a letter", "bytes", "no text"],
)
def test_names_that_can_be(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for units in (2, 3):
        make(units).save(name)
        assert os.listdir(tmp_path) == [os.fsdecode(name)]
        assert xn.load_model(name).layers[1].units == units


# Killed saves -----------------------------------------------------------------------------------------------


def killed_in(folder, name):
    """Kill a process at this point of a save."""
    code = f"""
        import os, signal
        import xpnet as xn
        from xpnet.layers import Dense, Input
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        xn.Sequential([Input((3,)), Dense(2)], seed=1, backend="numpy").save({os.path.join(folder, name)!r})
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode == -9


def test_leftovers_of_killed_saves_go(tmp_path):
    make().save(tmp_path / "model")
    killed_in(tmp_path, "model")
    killed_in(tmp_path, "other")
    assert len(os.listdir(tmp_path)) == 3
    assert xn.load_model(tmp_path / "model").layers[1].units == 2
    make(3).save(tmp_path / "model")
    left = sorted(os.listdir(tmp_path))
    assert len(left) == 2
    assert left[0].startswith(".other.")
    assert left[1] == "model"
    # a file of a living process stays
    digest, pid, token = left[0].removeprefix(".other.").split(".")
    alive = tmp_path / f".other.{digest}.{os.getpid()}.{token}"
    os.rename(tmp_path / left[0], alive)
    make().save(tmp_path / "other")
    assert alive.exists()
    os.rename(alive, tmp_path / f".other.{digest}.{pid}.{token}")
    make().save(tmp_path / "other")
    assert sorted(os.listdir(tmp_path)) == ["model", "other"]


def test_the_folder_is_brought_to_the_disk_after_the_renaming(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        fsync(descriptor)
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    def replaced(*args):
        replace(*args)
        done.append("renamed")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    make().save(tmp_path / "model")
    assert done == ["file", "renamed", "folder"]
