"""The data sets."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

from ..backend import np
from ..errors import unknown_name
from .files import fetch, local, refuse
from .readers import Pair, archive_parts, check_labels, cifar_rows, find_parts, read_bytes, read_idx

# Of resources/digits.csv.gz; its origin and the seed of its row order are in NOTICE.txt beside it.
DIGITS_SHA256 = "45dad2042a8dfa1dff18cce66989ddeee726bbc1b49c32e016b08b5920cfa3f5"
DIGITS_TRAIN = 1437
ADMISSIONS = "admit,gre,gpa,rank"


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
        raise refuse(path, f"the SHA-256 {DIGITS_SHA256}; install xpnet again", got)
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
    (path,) = fetch("admissions")
    header, *lines = read_bytes(path).decode("ascii", "replace").splitlines() or [""]
    if header != ADMISSIONS:
        raise refuse(path, f"the first line {ADMISSIONS}", repr(header[:80]))
    if len(lines) != 400:
        raise refuse(path, "400 rows", f"{len(lines)} rows")
    try:
        table = np.loadtxt(lines, delimiter=",", comments=None, ndmin=2)
    except ValueError as error:
        raise refuse(path, "numbers separated by commas", error) from error
    if table.shape != (400, 4):
        raise refuse(path, "400 rows of 4 numbers", table.shape)
    right = np.isfinite(table).all(axis=1) & np.isin(table[:, 0], (0, 1)) & np.isin(table[:, 3], (1, 2, 3, 4))
    if not right.all():
        raise refuse(path, "finite numbers, admit 0 or 1, rank 1 to 4", lines[int(right.argmin())][:80])
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


def _idx_set(name: str) -> tuple[Pair, Pair]:
    paths = fetch(name)
    return _idx_pair(*paths[:2]), _idx_pair(*paths[2:])


def _idx_pair(x_path: Path, y_path: Path) -> Pair:
    x, y = read_idx(x_path, 3), read_idx(y_path, 1)
    if x.shape[1:] != (28, 28):
        raise refuse(x_path, "images of 28 x 28 pixels", f"{x.shape[1]} x {x.shape[2]}")
    if len(x) != len(y):
        raise refuse(y_path, f"{len(x)} labels, one for each image of {x_path.name}", len(y))
    check_labels(y_path, y, 10)
    return x, y.astype(np.int64)


def _cifar_set(
    name: str, inner: str, train: list[str], test: str, classes: tuple[int, ...], column: int = 0
) -> tuple[Pair, Pair]:
    """Read the training files and the test file; `inner` is their folder in the archive."""
    if (folder := local(name)) is None:
        parts = archive_parts(fetch(name)[0], [f"{inner}/{file}" for file in (*train, test)])
    else:
        parts = ((str(path), read_bytes(path)) for path in find_parts(folder, name, train, test))
    pairs = [cifar_rows(path, data, classes, column) for path, data in parts]
    x, y = (np.concatenate(arrays) for arrays in zip(*pairs[:-1]))
    return (x, y), pairs[-1]
