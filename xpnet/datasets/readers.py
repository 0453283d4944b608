"""Reading the files of data sets: IDX, CIFAR's records, .gz, .xz, .tar.gz; damaged ones are refused."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..backend import np
from .files import missing, refuse

Pair = tuple[np.ndarray, np.ndarray]

# Limit on the decompressed size of one file in bytes. The largest original has 154 MB.
MAX_BYTES = 256 * 2**20


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
        raise refuse(path, f"a complete {path.suffix} file", f"{type(error).__name__}: {error}") from error


def read_bytes(path: Path) -> bytes:
    """Return the decompressed content of a file, at most MAX_BYTES."""
    with _opened(path) as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise refuse(path, f"at most {MAX_BYTES} bytes", "more")
    return data


def check_labels(path: object, labels: np.ndarray, classes: int) -> None:
    """Raise if a label is not below the number of classes."""
    if labels.max() >= classes:
        raise refuse(path, f"labels from 0 to {classes - 1}", labels.max())


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Return the array of an IDX file of unsigned bytes with `ndim` dimensions, at most MAX_BYTES."""
    magic, length = bytes((0, 0, 8, ndim)), 4 + 4 * ndim
    with _opened(path) as stream:
        header = stream.read(length)
        if header[:4] != magic or len(header) < length:
            raise refuse(path, f"a header of {length} bytes that begins {magic.hex()}", f"{header.hex()!r}")
        shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(4, length, 4))
        size = math.prod(shape)
        if not 0 < size <= MAX_BYTES:
            raise refuse(path, f"dimensions of 1 to {MAX_BYTES} bytes in all", shape)
        data = stream.read(size + 1)  # one more byte detects trailing data and makes gzip check its CRC
    if len(data) != size:
        raise refuse(path, f"{size} bytes after the header", f"{len(data)}{' or more' * (len(data) > size)}")
    return np.frombuffer(data, np.uint8).reshape(shape).copy()


def archive_parts(archive: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
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
            raise refuse(archive, f"a file {name} of at most {MAX_BYTES} bytes", ", ".join(found) or "none")
        yield f"{name} in {archive}", found.pop(name)


def find_parts(folder: Path, name: str, train: list[str], test: str) -> list[Path]:
    """Return the paths of the existing training files, then of the test file."""

    def find(file: str) -> list[Path]:
        return [path for path in (folder / file, folder / f"{file}.xz") if path.is_file()][:1]

    found = [path for file in train for path in find(file)]
    tests = find(test) or find(test.replace(".bin", "_first1000.bin"))
    lacking = ", ".join(file for file in (*train, test) if not find(file))
    if not (found and tests):
        raise missing(folder, lacking)
    if lacking:
        got = ", ".join(path.name for path in found + tests)
        warnings.warn(f"{name} in {folder} lacks {lacking}; got {got}", UserWarning, stacklevel=4)
    return found + tests


def cifar_rows(path: str, data: bytes, classes: tuple[int, ...], column: int) -> Pair:
    """Return the images and labels of CIFAR records: one or two label bytes, then 3 planes of 32 x 32."""
    record = len(classes) + 3 * 32 * 32
    if not data or len(data) % record:
        raise refuse(path, f"records of {record} bytes", f"{len(data)} bytes")
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    for i, n in enumerate(classes):
        check_labels(path, rows[:, i], n)
    planes = rows[:, len(classes) :].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), rows[:, column].astype(np.int64)
