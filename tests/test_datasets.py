"""The data sets: those shipped, read and downloaded, and invalid ones."""

import gzip
import hashlib
import io
import lzma
import os
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from xpnet import datasets
from xpnet.datasets import files as source
from xpnet.datasets import readers, sets
from xpnet.errors import DownloadError, FileFormatError, InvalidValueError, MissingExtraError, UnknownNameError

REAL = os.environ.get("XPNET_DATA")  # before the fixture below hides it
NAMES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz")
NAMES = (*NAMES, "t10k-labels-idx1-ubyte.gz")
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in ("XPNET_DATA", "XPNET_CACHE", "XPNET_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty XPNET_DATA folder; data("mnist") makes and returns one of its folders."""
    monkeypatch.setenv("XPNET_DATA", str(tmp_path / "data"))

    def folder(name):
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        return tmp_path / "data" / name

    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XPNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def real(monkeypatch, name, *files):
    """Use the real files of a data set, or skip."""
    if not REAL:
        pytest.skip("XPNET_DATA is not set")
    lacking = [file for file in files if not (Path(REAL) / name / file).is_file()]
    if lacking:
        pytest.skip(f"XPNET_DATA/{name} lacks {', '.join(lacking)}")
    monkeypatch.setenv("XPNET_DATA", REAL)


def refusal(call, *expected, error=FileFormatError):
    """Return the message of the error that `call` raises, after checking that it contains some texts, in order."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    at = 0
    for text in expected:
        assert text in message[at:], message
        at = message.index(text, at)
    return message


@pytest.mark.parametrize("variable", ["XPNET_DATA", "XPNET_CACHE"])
def test_a_home_that_nobody_has(monkeypatch, variable):
    monkeypatch.setenv(variable, "~no-such-user-of-this-machine/x")
    message = refusal(datasets.mnist, f"{variable} must name a folder", error=InvalidValueError)
    assert message.endswith("got '~no-such-user-of-this-machine/x'")


@pytest.mark.parametrize(("word", "forbidden"), [("true", True), ("No", False), ("off", False), ("1", True)])
def test_the_words_of_xpnet_offline(monkeypatch, cache, word, forbidden):
    class Pooch:
        @staticmethod
        def retrieve(*args, **kwargs):
            raise OSError("it has tried")

    monkeypatch.setattr(source, "_pooch", lambda: Pooch)
    monkeypatch.setenv("XPNET_OFFLINE", word)
    refusal(datasets.mnist, "forbids downloading" if forbidden else "it has tried", error=DownloadError)
    monkeypatch.setenv("XPNET_OFFLINE", "fasle")
    refusal(datasets.mnist, "XPNET_OFFLINE", "'false'", "got 'fasle'", error=UnknownNameError)


# ---------------------------------------------------------------- digits


def test_digits_shapes_ranges_and_classes():
    (x, y), (xt, yt) = datasets.digits()
    assert (x.shape, y.shape, xt.shape, yt.shape) == ((1437, 64), (1437,), (360, 64), (360,))
    for a, b in ((x, y), (xt, yt)):
        assert a.dtype == np.float32
        assert b.dtype == np.int64
        assert a.min() == 0
        assert a.max() == 1
        assert (a * 16 == np.rint(a * 16)).all()
        assert set(b) == set(range(10))
        assert a.flags.c_contiguous
        assert a.flags.writeable


def test_digits_split_is_the_documented_permutation():
    original = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.Generator(np.random.Philox(0)).permutation(1797)
    (x, y), (xt, yt) = datasets.digits()
    np.testing.assert_array_equal(np.concatenate([x, xt]) * 16, original.data[order])
    np.testing.assert_array_equal(np.concatenate([y, yt]), original.target[order])


def test_digits_gives_new_arrays_with_the_same_values():
    (x, _), _ = datasets.digits()
    first = x.copy()
    x[:] = -1
    np.testing.assert_array_equal(datasets.digits()[0][0], first)


def test_digits_refuses_an_altered_file(tmp_path, monkeypatch):
    shipped = Path(datasets.__file__).parent / "resources" / "digits.csv.gz"
    (tmp_path / "resources").mkdir()
    copy = tmp_path / "resources" / "digits.csv.gz"
    monkeypatch.setattr(sets, "files", lambda package: tmp_path)
    copy.write_bytes(shipped.read_bytes())
    assert datasets.digits()[0][0].shape == (1437, 64)
    altered = bytearray(shipped.read_bytes())
    altered[9] ^= 1  # the operating system in the gzip header; the content is unchanged
    copy.write_bytes(altered)
    message = refusal(datasets.digits, "digits.csv.gz", sets.DIGITS_SHA256)
    assert message.endswith("got " + hashlib.sha256(altered).hexdigest())


def test_the_notice_names_origin_and_licence():
    notice = (Path(datasets.__file__).parent / "resources" / "NOTICE.txt").read_text()
    for text in ("Alpaydin", "Kaynak", "10.24432/C50P49", "CC BY 4.0", "Changes:", "Philox(0)"):
        assert text in notice


# ---------------------------------------------------------------- admissions


def write_admissions(folder, header="admit,gre,gpa,rank", rows=400, last="1,700,3.5,4"):
    lines = [header, *["0,600,3.1,2"] * (rows - 1), last]
    (folder / "student_data.csv").write_text("\n".join(lines) + "\n")


def test_admissions_made(data):
    write_admissions(data("admissions"))
    x, y = datasets.admissions()
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((400, 3), np.float64, (400,), np.int64)
    assert x[-1].tolist() == [700, 3.5, 4]
    assert (y.sum(), y[-1]) == (1, 1)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        ({"header": "gre,admit,gpa,rank"}, "got 'gre,admit,gpa,rank'"),
        ({"rows": 399}, "got 399 rows"),
        ({"last": "1,700,3.5"}, "number of columns changed from 4 to 3"),
        ({"last": "1,700,x,4"}, "could not convert string 'x'"),
        ({"last": "1,700,nan,4"}, "got 1,700,nan,4"),
        ({"last": "2,700,3.5,4"}, "got 2,700,3.5,4"),
        ({"last": "1,700,3.5,0"}, "got 1,700,3.5,0"),
        ({"last": ""}, "got (399, 4)"),
    ],
)
def test_admissions_refused(data, change, got):
    write_admissions(data("admissions"), **change)
    refusal(datasets.admissions, "student_data.csv", "expected", got)


def test_admissions_empty_file(data):
    (data("admissions") / "student_data.csv").write_bytes(b"")
    assert refusal(datasets.admissions, "student_data.csv").endswith("got ''")


def test_admissions_real(monkeypatch):
    real(monkeypatch, "admissions", "student_data.csv")
    x, y = datasets.admissions()
    assert np.bincount(y).tolist() == [273, 127]
    assert x[:, 0].mean() == pytest.approx(587.7, abs=1e-9)
    assert x[:, 1].mean() == pytest.approx(3.3899, abs=1e-9)
    assert x[:, 0].std(ddof=1) == pytest.approx(115.51653637, abs=1e-8)
    assert np.bincount(x[:, 2].astype(int)).tolist() == [0, 61, 151, 121, 67]


# ---------------------------------------------------------------- IDX


def idx(array, magic=None, dims=None, extra=b""):
    dims = array.shape if dims is None else dims
    magic = 0x800 + array.ndim if magic is None else magic
    return gzip.compress(struct.pack(f">{1 + len(dims)}I", magic, *dims) + array.tobytes() + extra)


def images(n, side=28):
    return RNG.integers(0, 256, (n, side, side)).astype(np.uint8)


def labels(n):
    return np.arange(n, dtype=np.uint8) % 10


def write_mnist(folder):
    arrays = images(5), labels(5), images(3), labels(3)
    for name, array in zip(NAMES, arrays):
        (folder / name).write_bytes(idx(array))
    return arrays


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_made(data, name):
    expected = write_mnist(data(name))
    (x, y), (xt, yt) = getattr(datasets, name)()
    for got, want in zip((x, y, xt, yt), expected):
        np.testing.assert_array_equal(got, want)
        assert got.flags.c_contiguous
        assert got.flags.writeable
    assert (x.dtype, y.dtype, xt.dtype, yt.dtype) == (np.uint8, np.int64, np.uint8, np.int64)


def flip(blob, at):
    return blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]


IMAGES = images(5)
DAMAGED_IMAGES = {
    "cut": (
        idx(IMAGES)[:-2000],
        "EOFError: Compressed file ended before the end-of-stream marker was reached",
    ),
    "short": (idx(IMAGES[:4], dims=(5, 28, 28)), "expected 3920 bytes after the header; got 3136"),
    "trailing": (idx(IMAGES, extra=b"ab"), "expected 3920 bytes after the header; got 3921 or more"),
    "second stream": (idx(IMAGES) + gzip.compress(b"a"), "got 3921 or more"),
    "crc": (flip(idx(IMAGES), -8), "CRC check failed"),
    "not gzip": (b"<html>no such page</html>", "BadGzipFile: Not a gzipped file (b'<h')"),
    "magic": (idx(IMAGES, magic=0x801), "begins 00000803; got '00000801"),
    "element type": (idx(IMAGES, magic=0xD03), "begins 00000803; got '00000d03"),
    "header": (
        gzip.compress(b"\0\0\x08\x03\0\0"),
        "a header of 16 bytes that begins 00000803; got '000008030000'",
    ),
    "empty": (gzip.compress(b""), "got ''"),
    "no rows": (idx(IMAGES[:0]), "got (0, 28, 28)"),
    "huge": (idx(IMAGES, dims=(2**32 - 1,) * 3), "got (4294967295, 4294967295, 4294967295)"),
    "over the limit": (
        idx(IMAGES, dims=(2**28 // 784 + 1, 28, 28)),
        "1 to 268435456 bytes in all; got (342393, 28, 28)",
    ),
    "size": (idx(images(5, 29)), "images of 28 x 28 pixels; got 29 x 29"),
}
DAMAGED_LABELS = {
    "label": (idx(np.array([0, 1, 10, 3, 4], np.uint8)), "labels from 0 to 9; got 10"),
    "count": (idx(labels(6)), "expected 5 labels, one for each image of train-images-idx3-ubyte.gz; got 6"),
    "magic": (idx(labels(5), magic=0x803), "begins 00000801; got '00000803"),
}


@pytest.mark.parametrize("case", DAMAGED_IMAGES)
def test_idx_images_refused(data, case):
    blob, got = DAMAGED_IMAGES[case]
    folder = data("mnist")
    write_mnist(folder)
    (folder / NAMES[0]).write_bytes(blob)
    refusal(datasets.mnist, str(folder / NAMES[0]), "expected", got)


@pytest.mark.parametrize("case", DAMAGED_LABELS)
def test_idx_labels_refused(data, case):
    blob, got = DAMAGED_LABELS[case]
    folder = data("mnist")
    write_mnist(folder)
    (folder / NAMES[1]).write_bytes(blob)
    refusal(datasets.mnist, str(folder / NAMES[1]), "expected", got)


def test_idx_bomb_is_read_no_further_than_declared(data, monkeypatch):
    """A small file that unpacks to far more than its header declares."""
    folder = data("mnist")
    write_mnist(folder)
    (folder / NAMES[0]).write_bytes(idx(IMAGES, extra=bytes(2**25)))
    sizes = []
    read = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, n=-1: sizes.append(n) or read(self, n))
    refusal(datasets.mnist, NAMES[0], "got 3921 or more")
    assert sizes == [16, 3921]


def test_mnist_lacks_a_file(data):
    folder = data("mnist")
    write_mnist(folder)
    (folder / NAMES[3]).unlink()
    message = refusal(datasets.mnist, str(folder), "XPNET_DATA", NAMES[3], error=DownloadError)
    assert message.endswith(f"got {NAMES[2]}, {NAMES[0]}, {NAMES[1]}")


def test_mnist_real(monkeypatch):
    real(monkeypatch, "mnist", *NAMES)
    (x, y), (xt, yt) = datasets.mnist()
    assert (x.shape, y.shape, xt.shape, yt.shape) == ((60000, 28, 28), (60000,), (10000, 28, 28), (10000,))
    assert y[:5].tolist() == [5, 0, 4, 1, 9]
    assert yt[:5].tolist() == [7, 2, 1, 0, 4]
    assert x.mean() / 255 == pytest.approx(0.1306604762738429, abs=1e-12)
    assert np.bincount(y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    for file, sha256 in source.SOURCES["mnist"].sha256.items():
        assert hashlib.sha256((Path(REAL) / "mnist" / file).read_bytes()).hexdigest() == sha256


# ---------------------------------------------------------------- CIFAR


def records(n, heads=1, top=10):
    rows = RNG.integers(0, 256, (n, heads + 3072)).astype(np.uint8)
    rows[:, :heads] %= top
    return rows


def decoded(rows, heads=1):
    """The images, one pixel at a time: independent of the reader's reshaping."""
    x = np.empty((len(rows), 32, 32, 3), np.uint8)
    for channel in range(3):
        for line in range(32):
            start = heads + 1024 * channel + 32 * line
            x[:, line, :, channel] = rows[:, start : start + 32]
    return x


def write_cifar10(folder, batches=range(1, 6), test="test_batch.bin", packed=False):
    parts = {f"data_batch_{i}.bin": records(2) for i in batches}
    if test:
        parts[test] = records(3)
    for name, rows in parts.items():
        if packed:
            (folder / f"{name}.xz").write_bytes(lzma.compress(rows.tobytes()))
        else:
            (folder / name).write_bytes(rows.tobytes())
    return np.concatenate(list(parts.values())[:-1]), parts.get(test)


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_made(data, packed):
    train, test = write_cifar10(data("cifar10"), packed=packed)
    pairs = datasets.cifar10()
    for (x, y), rows in zip(pairs, (train, test)):
        np.testing.assert_array_equal(x, decoded(rows))
        np.testing.assert_array_equal(y, rows[:, 0])
        assert (x.dtype, y.dtype) == (np.uint8, np.int64)
        assert x.flags.c_contiguous
        assert x.flags.writeable
    assert pairs[0][0].shape == (10, 32, 32, 3)


def test_cifar10_partial_warns_at_the_caller(data):
    folder = data("cifar10")
    train, test = write_cifar10(folder, batches=(1, 4), test="test_batch_first1000.bin", packed=True)
    lacks = "lacks data_batch_2.bin, data_batch_3.bin, data_batch_5.bin, test_batch.bin; got data_batch_1.bin.xz"
    with pytest.warns(UserWarning, match=lacks) as caught:
        (x, _), (xt, _) = datasets.cifar10()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(x, decoded(train))
    np.testing.assert_array_equal(xt, decoded(test))


@pytest.mark.parametrize(
    ("there", "lacks"),
    [
        (
            ["data_batch_2.bin"],
            "data_batch_1.bin, data_batch_3.bin, data_batch_4.bin, data_batch_5.bin, test_",
        ),
        (["test_batch.bin"], "data_batch_1.bin, data_batch_2.bin, data_batch_3.bin, data_batch_4.bin, data_"),
        ([], "data_batch_5.bin, test_batch.bin; got no file"),
    ],
)
def test_cifar10_without_training_or_test_rows(data, there, lacks):
    folder = data("cifar10")
    for name in there:
        (folder / name).write_bytes(records(2).tobytes())
    message = refusal(datasets.cifar10, str(folder), "lacks", lacks, error=DownloadError)
    assert message.endswith("got " + (there[0] if there else "no file"))


@pytest.mark.parametrize(
    ("name", "blob", "got"),
    [
        ("data_batch_3.bin", bytes(3073 + 3072), "records of 3073 bytes; got 6145 bytes"),
        ("test_batch.bin", b"", "records of 3073 bytes; got 0 bytes"),
        ("test_batch.bin", bytes([10]) + bytes(3072), "labels from 0 to 9; got 10"),
        ("data_batch_5.bin.xz", lzma.compress(bytes(3073))[:-9], "EOFError: Compressed file ended"),
        ("data_batch_5.bin.xz", flip(lzma.compress(bytes(3073)), 40), "LZMAError: Corrupt input data"),
        ("data_batch_5.bin.xz", b"x" * 3073, "LZMAError: Input format not supported by decoder"),
    ],
)
def test_cifar10_refused(data, name, blob, got):
    folder = data("cifar10")
    write_cifar10(folder)
    (folder / name.removesuffix(".xz")).unlink()
    (folder / name).write_bytes(blob)
    refusal(datasets.cifar10, str(folder / name), "expected", got)


def test_cifar10_is_read_no_further_than_the_limit(data, monkeypatch):
    folder = data("cifar10")
    write_cifar10(folder, packed=True)
    monkeypatch.setattr(readers, "MAX_BYTES", 3073 * 3)
    datasets.cifar10()
    (folder / "data_batch_1.bin.xz").write_bytes(lzma.compress(bytes(3073 * 4)))
    sizes = []
    read = lzma.LZMAFile.read
    monkeypatch.setattr(lzma.LZMAFile, "read", lambda self, n=-1: sizes.append(n) or read(self, n))
    assert refusal(datasets.cifar10, "data_batch_1.bin.xz", "at most 9219 bytes").endswith("got more")
    assert sizes == [9220]


def test_cifar100_has_two_labels_a_record(data):
    folder = data("cifar100")
    train, test = records(6, heads=2, top=20), records(4, heads=2, top=20)
    train[0, 1] = 99
    (folder / "train.bin").write_bytes(train.tobytes())
    (folder / "test.bin.xz").write_bytes(lzma.compress(test.tobytes()))
    for mode, column in (("coarse", 0), ("fine", 1)):
        (x, y), (xt, yt) = datasets.cifar100(label_mode=mode)
        np.testing.assert_array_equal(x, decoded(train, 2))
        np.testing.assert_array_equal(xt, decoded(test, 2))
        np.testing.assert_array_equal(y, train[:, column])
        np.testing.assert_array_equal(yt, test[:, column])
    assert datasets.cifar100()[0][1][0] == 99


@pytest.mark.parametrize(("column", "value", "top"), [(0, 20, 19), (1, 100, 99)])
def test_cifar100_labels_out_of_range(data, column, value, top):
    folder = data("cifar100")
    rows = records(3, heads=2, top=20)
    (folder / "train.bin").write_bytes(rows.tobytes())
    rows[1, column] = value
    (folder / "test.bin").write_bytes(rows.tobytes())
    refusal(datasets.cifar100, str(folder / "test.bin"), f"labels from 0 to {top}; got {value}")


def test_cifar100_label_mode():
    refusal(lambda: datasets.cifar100("fines"), "did you mean 'fine'", "got 'fines'", error=UnknownNameError)


def test_cifar10_real(monkeypatch):
    files = ("data_batch_1.bin.xz", "test_batch_first1000.bin.xz")
    real(monkeypatch, "cifar10", *files)
    if (Path(REAL) / "cifar10" / "test_batch.bin").is_file():
        pytest.skip("XPNET_DATA/cifar10 is complete; this test is of the partial one")
    with pytest.warns(UserWarning, match="lacks data_batch_2.bin"):
        (x, y), (xt, yt) = datasets.cifar10()
    assert (x.shape, y.shape, xt.shape, yt.shape) == (
        (10000, 32, 32, 3),
        (10000,),
        (1000, 32, 32, 3),
        (1000,),
    )
    assert yt[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert y[:5].tolist() == [6, 9, 9, 4, 1]
    # The published channel means of all five batches; one batch comes within a hundredth of them.
    np.testing.assert_allclose(x.mean(axis=(0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=0.01)
    # Neighbouring pixels of a photograph are alike: planes read in a wrong order are not.
    steps = np.abs(np.diff(x[:500].astype(int), axis=2)).mean(axis=(0, 1, 2))
    assert (steps < 15).all()


# ---------------------------------------------------------------- the cache and the network


class Network:
    """Replaces pooch's downloader: returns files from a dictionary and records requests."""

    def __init__(self, monkeypatch, files):
        pytest.importorskip("pooch")
        self.files, self.asked = files, []
        monkeypatch.setattr("pooch.core.choose_downloader", lambda url, progressbar=False: self)

    def __call__(self, url, output_file, pooch):
        self.asked.append(url)
        assert url.startswith("https://")
        Path(output_file).write_bytes(self.files[url.rsplit("/", 1)[1]])


def hashed(monkeypatch, name, files):
    """Register the hashes of `files` as those of a data set."""
    url = source.SOURCES[name].url
    hashes = {file: hashlib.sha256(blob).hexdigest() for file, blob in files.items()}
    monkeypatch.setitem(source.SOURCES, name, source.Source(url, hashes))


def found(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def mnist_files():
    return {name: idx(array) for name, array in zip(NAMES, (images(5), labels(5), images(3), labels(3)))}


def test_download_once_then_from_the_cache(cache, monkeypatch, mnist_files):
    hashed(monkeypatch, "mnist", mnist_files)
    network = Network(monkeypatch, mnist_files)
    (x, _), (_, yt) = datasets.mnist()
    assert network.asked == ["https://ossci-datasets.s3.amazonaws.com/mnist/" + name for name in NAMES]
    assert found(cache) == sorted(NAMES)
    assert x.shape == (5, 28, 28)
    assert yt.tolist() == [0, 1, 2]
    monkeypatch.setenv("XPNET_OFFLINE", "1")
    np.testing.assert_array_equal(datasets.mnist()[0][0], x)
    assert len(network.asked) == 4


def test_the_cache_is_the_users_without_xpnet_cache(tmp_path, monkeypatch, mnist_files):
    hashed(monkeypatch, "mnist", mnist_files)
    Network(monkeypatch, mnist_files)
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "users" / project)
    datasets.mnist()
    assert found(tmp_path / "users" / "xpnet" / "mnist") == sorted(NAMES)


def test_a_data_folder_without_the_data_set_leads_to_the_cache(data, cache, monkeypatch, mnist_files):
    data("admissions")
    hashed(monkeypatch, "mnist", mnist_files)
    network = Network(monkeypatch, mnist_files)
    datasets.mnist()
    assert len(network.asked) == 4


def test_a_wrong_hash_is_refused_and_leaves_nothing(cache, monkeypatch, mnist_files):
    hashed(monkeypatch, "mnist", mnist_files)
    Network(monkeypatch, {**mnist_files, NAMES[0]: b"<html>log in first</html>"})
    got = hashlib.sha256(b"<html>log in first</html>").hexdigest()
    refusal(datasets.mnist, source.SOURCES["mnist"].url + NAMES[0], "got ValueError", got, error=DownloadError)
    assert found(cache) == []


def test_an_altered_file_in_the_cache_is_fetched_again(cache, monkeypatch, mnist_files):
    hashed(monkeypatch, "mnist", mnist_files)
    network = Network(monkeypatch, mnist_files)
    datasets.mnist()
    (cache / "mnist" / NAMES[1]).write_bytes(idx(labels(4)))
    datasets.mnist()
    assert len(network.asked) == 5
    (cache / "mnist" / NAMES[1]).write_bytes(b"altered")
    monkeypatch.setenv("XPNET_OFFLINE", "1")
    message = refusal(datasets.mnist, str(cache / "mnist" / NAMES[1]), "XPNET_OFFLINE")
    assert message.endswith("got " + hashlib.sha256(b"altered").hexdigest())


@pytest.mark.parametrize("name", ["admissions", "mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_offline_forbids_downloading(cache, monkeypatch, name):
    network = Network(monkeypatch, {})
    monkeypatch.setenv("XPNET_OFFLINE", "1")
    url = source.SOURCES[name].url
    refusal(getattr(datasets, name), "XPNET_OFFLINE forbids", url, str(cache / name), error=DownloadError)
    assert network.asked == []
    monkeypatch.setenv("XPNET_OFFLINE", "0")
    with pytest.raises(KeyError):  # requests a file that the network does not have
        getattr(datasets, name)()
    assert len(network.asked) == 1


def test_without_a_network(cache, monkeypatch):
    pooch, requests = pytest.importorskip("pooch"), pytest.importorskip("requests")

    def get(url, **kwargs):
        raise requests.exceptions.ConnectionError("Failed to resolve the name")

    monkeypatch.setattr(requests, "get", get)
    assert pooch.HTTPDownloader
    message = refusal(datasets.cifar10, "https://www.cs.toronto.edu/", str(cache), error=DownloadError)
    assert message.endswith("got ConnectionError: Failed to resolve the name")
    assert found(cache) == []


def test_a_connection_that_breaks_leaves_nothing(cache, monkeypatch):
    requests = pytest.importorskip("requests")

    class Response:
        headers: dict = {}

        def raise_for_status(self):
            pass

        def iter_content(self, chunk_size):
            yield b"some bytes"
            raise requests.exceptions.ChunkedEncodingError("Connection broken")

    monkeypatch.setattr(requests, "get", lambda url, **kwargs: Response())
    refusal(datasets.cifar100, "got ChunkedEncodingError: Connection broken", error=DownloadError)
    assert found(cache) == []


@pytest.mark.parametrize("with_cache", [True, False])
def test_without_pooch(tmp_path, monkeypatch, with_cache):
    if with_cache:
        monkeypatch.setenv("XPNET_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pooch", None)
    refusal(datasets.mnist, "pip install 'xpnet[datasets]'", "got ", "pooch", error=MissingExtraError)


def archive(members):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def cifar10_members():
    parts = {f"data_batch_{i}.bin": records(2) for i in (3, 1, 5, 4, 2)}
    parts["test_batch.bin"] = records(3)
    return {f"cifar-10-batches-bin/{name}": rows for name, rows in parts.items()}


def test_cifar10_from_the_archive(cache, monkeypatch):
    rows = cifar10_members()
    blob = archive(
        {
            "cifar-10-batches-bin/readme.html": b"x",
            **{k: v.tobytes() for k, v in rows.items()},
            "../evil": b"x",
        }
    )
    hashed(monkeypatch, "cifar10", {"cifar-10-binary.tar.gz": blob})
    Network(monkeypatch, {"cifar-10-binary.tar.gz": blob})
    (x, y), (xt, yt) = datasets.cifar10()
    train = np.concatenate([rows[f"cifar-10-batches-bin/data_batch_{i}.bin"] for i in range(1, 6)])
    np.testing.assert_array_equal(x, decoded(train))
    np.testing.assert_array_equal(y, train[:, 0])
    np.testing.assert_array_equal(xt, decoded(rows["cifar-10-batches-bin/test_batch.bin"]))
    np.testing.assert_array_equal(yt, rows["cifar-10-batches-bin/test_batch.bin"][:, 0])
    assert found(cache.parent) == ["cifar-10-binary.tar.gz"]


def test_cifar100_from_the_archive(cache, monkeypatch):
    train, test = records(4, heads=2, top=20), records(2, heads=2, top=20)
    blob = archive({"cifar-100-binary/test.bin": test.tobytes(), "cifar-100-binary/train.bin": train.tobytes()})
    hashed(monkeypatch, "cifar100", {"cifar-100-binary.tar.gz": blob})
    Network(monkeypatch, {"cifar-100-binary.tar.gz": blob})
    (x, y), (xt, _) = datasets.cifar100("coarse")
    np.testing.assert_array_equal(x, decoded(train, 2))
    np.testing.assert_array_equal(y, train[:, 0])
    np.testing.assert_array_equal(xt, decoded(test, 2))


@pytest.mark.parametrize("case", ["missing", "too large", "a folder", "not a tar file"])
def test_cifar10_archive_refused(cache, monkeypatch, case):
    members = {name: rows.tobytes() for name, rows in cifar10_members().items()}
    wanted = "cifar-10-batches-bin/test_batch.bin"
    if case == "too large":
        monkeypatch.setattr(readers, "MAX_BYTES", len(members[wanted]) - 1)
    else:
        del members[wanted]
    blob = archive(members)
    if case == "a folder":
        blob = archive({**members, wanted + "/inside": b""})
    if case == "not a tar file":
        blob = gzip.compress(b"no archive" * 100)
    hashed(monkeypatch, "cifar10", {"cifar-10-binary.tar.gz": blob})
    Network(monkeypatch, {"cifar-10-binary.tar.gz": blob})
    refusal(datasets.cifar10, str(cache / "cifar10" / "cifar-10-binary.tar.gz"), "expected", "got ")


# ---------------------------------------------------------------- the table, the import


def test_every_source_is_https_with_sha256():
    for url, hashes in source.SOURCES.values():
        assert url.startswith("https://")
        assert url.endswith("/")
        for file, sha256 in hashes.items():
            assert "/" not in file
            assert len(bytes.fromhex(sha256)) == 32


def test_admissions_hash_is_the_originals(monkeypatch):
    real(monkeypatch, "admissions", "student_data.csv")
    blob = (Path(REAL) / "admissions" / "student_data.csv").read_bytes()
    assert source.SOURCES["admissions"].sha256["student_data.csv"] == hashlib.sha256(blob).hexdigest()


def test_importing_brings_no_optional_package():
    code = "import sys, xpnet.datasets; print({'pooch', 'requests', 'tarfile'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
