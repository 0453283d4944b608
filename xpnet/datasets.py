"""Small public data sets as NumPy arrays: `digits` is part of the package, the others are downloaded once.

The files of a data set are read from the first of these folders that applies:

* `$XPNET_DATA/<name>`, if it exists. Nothing is downloaded, and the files need not be the originals;
* `$XPNET_CACHE`, or the user's cache folder. The original files are downloaded there over HTTPS, and their
  SHA-256 is checked at every use. This needs `pip install 'xpnet[datasets]'`; `XPNET_OFFLINE=1` forbids
  downloads.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import IO, Any, NamedTuple

from .backend import np
from .errors import DownloadError, FileFormatError, InvalidValueError, MissingExtraError, switch, unknown_name

__all__ = ["admissions", "cifar10", "cifar100", "digits", "fashion_mnist", "mnist"]

Pair = tuple[np.ndarray, np.ndarray]

# Limit on the decompressed size of one file in bytes. The largest original has 154 MB.
MAX_BYTES = 256 * 2**20

# Of resources/digits.csv.gz; its origin and the seed of its row order are in NOTICE.txt beside it.
DIGITS_SHA256 = "45dad2042a8dfa1dff18cce66989ddeee726bbc1b49c32e016b08b5920cfa3f5"
DIGITS_TRAIN = 1437
ADMISSIONS = "admit,gre,gpa,rank"


class Source(NamedTuple):
    """The URL of a data set's original files, and the SHA-256 of each."""

    url: str
    sha256: dict[str, str]


# The hash of admissions was computed from the original file. The others are those of TensorFlow Datasets
# (github.com/tensorflow/datasets, tensorflow_datasets/url_checksums/, the .txt files of the same names); the
# original files of mnist agree.
SOURCES = {
    "admissions": Source(
        "https://raw.githubusercontent.com/udacity/deep-learning-v2-pytorch/"
        "c9404fc86181fc3f0906b368697268257f348535/intro-neural-networks/student-admissions/",
        {"student_data.csv": "2f5dcda0e455631215709575cc2eede4e5fb4e94cda9c37dab54e26d79dcf8c2"},
    ),
    "mnist": Source(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion_mnist": Source(
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
    "cifar10": Source(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    ),
    "cifar100": Source(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"},
    ),
}


# ---------------------------------------------------------------- the data sets


def digits() -> tuple[Pair, Pair]:
    """Return the UCI handwritten digits (part of the package): 8 x 8 grey pixels, 10 classes.

    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, CC BY 4.0; see resources/NOTICE.txt.

    Returns:
        `(x, y), (xt, yt)`: 1,437 training and 360 test rows, always the same. The pixels `x` are float32
        in [0, 1], shape (n, 64); the digits `y` are int64, shape (n,).

    Raises:
        FileFormatError: the file in the installed package has been altered.

    >>> (x, y), (xt, yt) = digits()
    >>> x.shape, y.shape, xt.shape, yt.shape
    ((1437, 64), (1437,), (360, 64), (360,))
    >>> float(x.min()), float(x.max()), str(x.dtype)
    (0.0, 1.0, 'float32')
    """
    import gzip

    path = files(__package__) / "resources" / "digits.csv.gz"
    packed = path.read_bytes()
    got = hashlib.sha256(packed).hexdigest()
    if got != DIGITS_SHA256:
        raise _refuse(path, f"the SHA-256 {DIGITS_SHA256}; install xpnet again", got)
    lines = gzip.decompress(packed).decode("ascii").splitlines()
    table = np.loadtxt(lines, np.uint8, delimiter=",")
    x, y = table[:, :64].astype(np.float32) / np.float32(16), table[:, 64].astype(np.int64)
    return (x[:DIGITS_TRAIN], y[:DIGITS_TRAIN]), (x[DIGITS_TRAIN:], y[DIGITS_TRAIN:])


def admissions() -> Pair:
    """Return the graduate admissions table (UCLA statistics consulting, as in Udacity's courses), unsplit.

    Returns:
        `(x, y)`: `x` is float64, shape (400, 3), with the columns gre (test score, 220 to 800), gpa (grade point
        average, at most 4) and rank (of the college, 1 is best, 4 is worst); `y` is int64, shape (400,), 1 if the
        student was admitted. The values are not scaled.

    Raises:
        FileFormatError: the file is truncated or altered. DownloadError, MissingExtraError: there is no file.
    """
    (path,) = _fetch("admissions")
    header, *lines = _read_bytes(path).decode("ascii", "replace").splitlines() or [""]
    if header != ADMISSIONS:
        raise _refuse(path, f"the first line {ADMISSIONS}", repr(header[:80]))
    if len(lines) != 400:
        raise _refuse(path, "400 rows", f"{len(lines)} rows")
    try:
        table = np.loadtxt(lines, delimiter=",", comments=None, ndmin=2)
    except ValueError as error:
        raise _refuse(path, "numbers separated by commas", error) from error
    if table.shape != (400, 4):
        raise _refuse(path, "400 rows of 4 numbers", table.shape)
    right = np.isfinite(table).all(axis=1) & np.isin(table[:, 0], (0, 1)) & np.isin(table[:, 3], (1, 2, 3, 4))
    if not right.all():
        raise _refuse(path, "finite numbers, admit 0 or 1, rank 1 to 4", lines[int(right.argmin())][:80])
    return table[:, 1:].copy(), table[:, 0].astype(np.int64)


def mnist() -> tuple[Pair, Pair]:
    """Return MNIST, handwritten digits in 28 x 28 grey pixels (Y. LeCun, C. Cortes, C. Burges).

    Returns:
        `(x, y), (xt, yt)`: 60,000 training and 10,000 test rows. The pixels `x` are uint8, shape (n, 28, 28);
        the digits `y` are int64, shape (n,).

    Raises:
        FileFormatError: a file is truncated or altered. DownloadError, MissingExtraError: there is no file.
    """
    return _idx_set("mnist")


def fashion_mnist() -> tuple[Pair, Pair]:
    """Return Fashion-MNIST, 10 kinds of clothing in 28 x 28 grey pixels (Zalando Research, MIT licence).

    Returns:
        `(x, y), (xt, yt)` like `mnist`: uint8 of shape (n, 28, 28) and int64 of shape (n,).

    Raises:
        FileFormatError, DownloadError, MissingExtraError: see `mnist`.
    """
    return _idx_set("fashion_mnist")


def cifar10() -> tuple[Pair, Pair]:
    """Return CIFAR-10, 32 x 32 colour photographs of 10 classes (A. Krizhevsky, 2009).

    In `XPNET_DATA` the binary version is read, plain or compressed (`.bin`, `.bin.xz`): `data_batch_1` to
    `data_batch_5` and `test_batch`. Some of the training batches, and `test_batch_first1000` instead of
    `test_batch`, suffice; a warning names the missing files.

    Returns:
        `(x, y), (xt, yt)`: 50,000 training and 10,000 test rows. The pixels `x` are uint8, shape
        (n, 32, 32, 3), red, green, blue; the classes `y` are int64, shape (n,).

    Raises:
        FileFormatError: a file is truncated or altered. DownloadError, MissingExtraError: there is no file.
    """
    train = [f"data_batch_{i}.bin" for i in range(1, 6)]
    return _cifar_set("cifar10", "cifar-10-batches-bin", train, "test_batch.bin", (10,))


def cifar100(label_mode: str = "fine") -> tuple[Pair, Pair]:
    """Return CIFAR-100, 32 x 32 colour photographs of 100 classes in 20 groups (A. Krizhevsky, 2009).

    In `XPNET_DATA` the binary version is read, plain or compressed: `train` and `test` (`.bin`, `.bin.xz`).

    Args:
        label_mode: `"fine"` for the 100 classes, `"coarse"` for the 20 groups.

    Returns:
        `(x, y), (xt, yt)`: 50,000 training and 10,000 test rows. The pixels `x` are uint8, shape
        (n, 32, 32, 3), red, green, blue; the classes `y` are int64, shape (n,).

    Raises:
        UnknownNameError: unknown `label_mode`. FileFormatError: a file is truncated or altered.
        DownloadError, MissingExtraError: there is no file.
    """
    modes = ("coarse", "fine")
    if label_mode not in modes:
        raise unknown_name("label_mode", label_mode, modes)
    column = modes.index(label_mode)
    return _cifar_set("cifar100", "cifar-100-binary", ["train.bin"], "test.bin", (20, 100), column)


# ---------------------------------------------------------------- finding files


def _folder(variable: str) -> Path | None:
    """Return the folder named by an environment variable, or None if it is not set."""
    root = os.environ.get(variable)
    try:
        return Path(root).expanduser() if root else None
    except RuntimeError as error:
        raise InvalidValueError(f"{variable} must name a folder; its ~ can't be expanded; got {root!r}") from error


def _local(name: str) -> Path | None:
    """Return the folder of a data set in `XPNET_DATA`, or None if there is none."""
    root = _folder("XPNET_DATA")
    folder = root / name if root else None
    return folder if folder and folder.is_dir() else None


def _missing(folder: Path, what: str) -> DownloadError:
    names = ", ".join(sorted(path.name for path in folder.iterdir())) or "no file"
    return DownloadError(f"{folder}, a folder in XPNET_DATA, lacks {what}; got {names}")


def _fetch(name: str) -> list[Path]:
    """Return the paths of a data set's files, from `XPNET_DATA` or the cache."""
    (url, hashes), folder = SOURCES[name], _local(name)
    if folder is None:
        folder = (_folder("XPNET_CACHE") or Path(_pooch().os_cache("xpnet"))) / name
        return [_download(url + file, sha256, folder / file) for file, sha256 in hashes.items()]
    for file in hashes:
        if not (folder / file).is_file():
            raise _missing(folder, file)
    return [folder / file for file in hashes]


def _pooch() -> Any:
    try:
        import pooch
    except ImportError as error:
        what = "to download a data set, run pip install 'xpnet[datasets]' (or see XPNET_DATA)"
        raise MissingExtraError(f"{what}; got {error}") from error
    return pooch


def _download(url: str, sha256: str, path: Path) -> Path:
    """Return `path`, downloaded from `url` if missing; check its SHA-256 in any case."""
    got = None
    if path.is_file():
        with path.open("rb") as stream:
            got = hashlib.file_digest(stream, "sha256").hexdigest()
        if got == sha256:
            return path
    if switch("XPNET_OFFLINE", False):
        if got:
            raise _refuse(path, f"the SHA-256 {sha256}, and XPNET_OFFLINE forbids downloading", got)
        raise DownloadError(f"XPNET_OFFLINE forbids downloading {url}; expected {path}; got no such file")
    pooch = _pooch()
    try:
        # pooch writes a temporary file beside `path` and renames it once its hash matches. Network errors
        # (requests) are OSErrors, a wrong hash is a ValueError.
        pooch.retrieve(url, f"sha256:{sha256}", fname=path.name, path=path.parent)
    except (OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DownloadError(f"{url} could not be downloaded to {path.parent}; got {reason}") from error
    return path


# ---------------------------------------------------------------- reading files


def _refuse(path: object, expected: str, got: object) -> FileFormatError:
    return FileFormatError(f"{path} is truncated, altered or another file: expected {expected}; got {got}")


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a plain, .gz or .xz file; damage found while reading raises FileFormatError."""
    import gzip
    import lzma
    import tarfile
    import zlib

    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    damage = (gzip.BadGzipFile, zlib.error, lzma.LZMAError, tarfile.TarError, EOFError)
    try:
        with openers.get(path.suffix, open)(path, "rb") as stream:
            yield stream
    except damage as error:
        raise _refuse(path, f"a complete {path.suffix} file", f"{type(error).__name__}: {error}") from error


def _read_bytes(path: Path) -> bytes:
    """Return the decompressed content of a file, at most MAX_BYTES."""
    with _opened(path) as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise _refuse(path, f"at most {MAX_BYTES} bytes", "more")
    return data


def _check_labels(path: object, labels: np.ndarray, classes: int) -> None:
    if labels.max() >= classes:
        raise _refuse(path, f"labels from 0 to {classes - 1}", labels.max())


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """Return the array of an IDX file of unsigned bytes with `ndim` dimensions, at most MAX_BYTES."""
    magic, length = bytes((0, 0, 8, ndim)), 4 + 4 * ndim
    with _opened(path) as stream:
        header = stream.read(length)
        if header[:4] != magic or len(header) < length:
            raise _refuse(path, f"a header of {length} bytes that begins {magic.hex()}", f"{header.hex()!r}")
        shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(4, length, 4))
        size = math.prod(shape)
        if not 0 < size <= MAX_BYTES:
            raise _refuse(path, f"dimensions of 1 to {MAX_BYTES} bytes in all", shape)
        data = stream.read(size + 1)  # one more byte detects trailing data and makes gzip check its CRC
    if len(data) != size:
        raise _refuse(path, f"{size} bytes after the header", f"{len(data)}{' or more' * (len(data) > size)}")
    return np.frombuffer(data, np.uint8).reshape(shape).copy()


def _idx_set(name: str) -> tuple[Pair, Pair]:
    paths = _fetch(name)
    return _idx_pair(*paths[:2]), _idx_pair(*paths[2:])


def _idx_pair(x_path: Path, y_path: Path) -> Pair:
    x, y = _read_idx(x_path, 3), _read_idx(y_path, 1)
    if x.shape[1:] != (28, 28):
        raise _refuse(x_path, "images of 28 x 28 pixels", f"{x.shape[1]} x {x.shape[2]}")
    if len(x) != len(y):
        raise _refuse(y_path, f"{len(x)} labels, one for each image of {x_path.name}", len(y))
    _check_labels(y_path, y, 10)
    return x, y.astype(np.int64)


def _cifar_set(
    name: str, inner: str, train: list[str], test: str, classes: tuple[int, ...], column: int = 0
) -> tuple[Pair, Pair]:
    """Read the training files and the test file; `inner` is their folder in the archive."""
    if (folder := _local(name)) is None:
        parts = _archive_parts(_fetch(name)[0], [f"{inner}/{file}" for file in (*train, test)])
    else:
        parts = ((str(path), _read_bytes(path)) for path in _find_parts(folder, name, train, test))
    pairs = [_cifar_rows(path, data, classes, column) for path, data in parts]
    x, y = (np.concatenate(arrays) for arrays in zip(*pairs[:-1]))
    return (x, y), pairs[-1]


def _archive_parts(archive: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the named members of a .tar.gz, in the order of `names`."""
    import tarfile

    found = {}
    with _opened(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.name in names and member.size <= MAX_BYTES else None
            if content:  # None also for members that are not files
                found[member.name] = content.read()
    for name in names:
        if name not in found:
            raise _refuse(archive, f"a file {name} of at most {MAX_BYTES} bytes", ", ".join(found) or "none")
        yield f"{name} in {archive}", found.pop(name)


def _find_parts(folder: Path, name: str, train: list[str], test: str) -> list[Path]:
    """Return the paths of the existing training files, then of the test file."""

    def find(file: str) -> list[Path]:
        return [path for path in (folder / file, folder / f"{file}.xz") if path.is_file()][:1]

    found = [path for file in train for path in find(file)]
    tests = find(test) or find(test.replace(".bin", "_first1000.bin"))
    lacking = ", ".join(file for file in (*train, test) if not find(file))
    if not (found and tests):
        raise _missing(folder, lacking)
    if lacking:
        got = ", ".join(path.name for path in found + tests)
        warnings.warn(f"{name} in {folder} lacks {lacking}; got {got}", UserWarning, stacklevel=4)
    return found + tests


def _cifar_rows(path: str, data: bytes, classes: tuple[int, ...], column: int) -> Pair:
    """Return the images and labels of CIFAR records: one or two label bytes, then 3 planes of 32 x 32."""
    record = len(classes) + 3 * 32 * 32
    if not data or len(data) % record:
        raise _refuse(path, f"records of {record} bytes", f"{len(data)} bytes")
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    for i, n in enumerate(classes):
        _check_labels(path, rows[:, i], n)
    planes = rows[:, len(classes) :].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), rows[:, column].astype(np.int64)
