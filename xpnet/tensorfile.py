"""Safetensors files: read as strictly as safetensors' own reader does, written so that a crash loses nothing.

A file is 8 bytes (the header's length), the header (JSON: metadata, and each tensor's type, shape and place), and
the tensors' bytes, one after the other. Tensors are read and written one at a time, in the memory where they are.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import secrets
import stat
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from .backend import np
from .errors import FileFormatError, InvalidTypeError, InvalidValueError

__all__ = ["Entry", "TensorFile", "raw", "read_json", "reading", "type_of", "write"]

MAX_HEADER = 100_000_000  # bytes; safetensors' own bound, as is the next
MAX_SIZE = 2**64 - 1
TYPES = {  # safetensors' names -> NumPy's
    "F64": "<f8", "F32": "<f4", "F16": "<f2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "|b1",
}  # fmt: skip
KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class Entry(NamedTuple):
    """What a header states about a tensor: type, shape, and where its bytes lie behind the header."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int


def type_of(dtype: Any) -> str:
    """Return safetensors' name of a dtype.

    Raises:
        InvalidTypeError: it has none, or xpnet does not use it.

    >>> type_of(np.float32)
    'F32'
    """
    wanted = np.dtype(dtype).newbyteorder("<")
    for name, known in TYPES.items():
        if np.dtype(known) == wanted:
            return name
    raise InvalidTypeError(f"a file takes arrays of {', '.join(TYPES)}; got {dtype}")


# Reading ----------------------------------------------------------------------------------------------------


class TensorFile:
    """An open safetensors file whose header was checked.

    Attributes:
        name: the file's, for messages. metadata: strings by name. entries: the tensors' by name.

    Raises:
        FileFormatError: safetensors' own reader would not read it.
    """

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self.name, self._file = name, file
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise FileFormatError(f"{name} is truncated or not a safetensors file; got {size} bytes")
        try:
            header = read_json(file.read(length), parse_constant=_refuse, parse_int=_natural)
            self.metadata = _metadata(header.pop("__metadata__", {}))
            self.entries = {key: _entry(entry) for key, entry in header.items()}
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise FileFormatError(f"the header of {name} can't be read; got {error!r}") from error
        self._start = 8 + length
        end = 0
        for key, entry in sorted(self.entries.items(), key=lambda item: item[1][2:]):
            if entry.first != end:
                what = "leaves a hole before" if entry.first > end else "overlaps"
                raise FileFormatError(f"the header of {name} {what} {key!r}; got offset {entry.first}, not {end}")
            end = entry.last
            if _bytes(entry) != end - entry.first:
                raise FileFormatError(f"{key!r} in {name} has a wrong size; got {end - entry.first} bytes")
        if self._start + end != size:
            raise FileFormatError(
                f"{name} is truncated or altered: its header states another size; got {size} bytes"
            )

    def read_into(self, key: str, out: np.ndarray) -> None:
        """Fill an array, contiguous and little-endian, with a tensor of the same type and shape."""
        entry = self.entries[key]
        self._file.seek(self._start + entry.first)
        taken = self._file.readinto(raw(out))  # type: ignore[attr-defined]
        if taken != entry.last - entry.first:
            raise FileFormatError(f"{self.name} was truncated while it was read; got {taken} bytes of {key!r}")


def read_json(text: bytes | str, **hooks: Any) -> Any:
    """Return what a JSON text says.

    Args:
        text: in UTF-8 without a byte order mark, if it is bytes. hooks: of `json.loads`.

    Raises:
        ValueError: it is no such text, a key comes twice, or a string is not text. RecursionError: it is too deep.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    found = json.loads(text, object_pairs_hook=_unique, **hooks)
    json.dumps(found, ensure_ascii=False).encode()  # raises for halves of surrogate pairs
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key that comes twice among {[key for key, _ in pairs][:10]}")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number in JSON")


def _natural(digits: str) -> int:
    if digits.startswith("-"):  # -0 too
        raise ValueError(f"{digits:.100} is not a size")
    return int(digits)


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"__metadata__ must be a dictionary of strings, not {str(found)[:100]}")
    return found


def _entry(found: dict[str, Any]) -> Entry:
    if set(found) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"a tensor needs dtype, shape and data_offsets, not {sorted(found)}")
    dtype, shape, offsets = found["dtype"], found["shape"], found["data_offsets"]
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n <= MAX_SIZE for n in numbers):
            raise ValueError(f"shape and data_offsets must be lists of sizes, not {str(numbers)[:100]}")
    first, last = offsets
    if dtype not in TYPES or first > last:
        raise ValueError(f"a tensor of dtype {dtype!r} at offsets {first} to {last}")
    return Entry(dtype, tuple(shape), first, last)


def _bytes(entry: Entry) -> int:
    """Return the bytes that a tensor of this type and shape has; -1 where they can't be counted in 64 bits."""
    size = 1
    for n in (*entry.shape, np.dtype(TYPES[entry.dtype]).itemsize * 8):
        size *= n
        if size > MAX_SIZE:
            return -1
    return size // 8


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[TensorFile]:
    """Open a safetensors file: one descriptor from its header to its last byte.

    Raises:
        FileFormatError: it is not such a file, or a FIFO, device or socket. OSError: it can't be opened, or is a
            directory.
    """
    path = _checked(path)
    name = os.path.basename(path)
    with open(path, "rb", opener=_open_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise FileFormatError(f"{name} must be a regular file; got {_kind(found.st_mode)}")
        yield TensorFile(file, name, found.st_size)


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for somebody to write to a FIFO."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


# Writing ----------------------------------------------------------------------------------------------------


def write(path: str | os.PathLike[str], metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file; a former file of that name is replaced only when all is written.

    Mode and owner of the former file stay (the owner as far as the system allows it), and a symbolic link still
    leads to where it led.

    Args:
        path: where to. metadata: strings by name. tensors: host arrays by name.

    Raises:
        InvalidValueError: names are not text, or too long in all. OSError: the file can't be written.
    """
    # the largest numbers first, so that all are aligned in memory that maps the file
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    head = _header(metadata, ordered)
    with _replacing(_checked(path)) as file:
        file.write(head)
        for _, tensor in ordered:
            file.write(raw(tensor))


def _header(metadata: Mapping[str, str], tensors: list[tuple[str, np.ndarray]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for key, tensor in tensors:
        first, end = end, end + tensor.nbytes
        header[key] = {"dtype": type_of(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [first, end]}
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise InvalidValueError(f"names in a file must be text in Unicode; got {error.object!r:.100}") from error
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise InvalidValueError(f"a file's description has at most {MAX_HEADER} bytes; got {len(text)}")
    return len(text).to_bytes(8, "little") + text


def raw(array: np.ndarray) -> memoryview:
    """Return an array's bytes, little-endian: a view where it lies in memory like that, else of a copy."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[BinaryIO]:
    """Open a temporary file, which takes the place of `path` when it is whole and on the disk.

    Whatever the system objects to, the error names `path`.
    """
    try:
        target, former = _target(path)
        folder, name = os.path.split(target)
        prefix = _prefix(name)
        _remove_leftovers(folder, prefix)
        temporary = os.path.join(folder, f"{prefix}{os.getpid()}.{secrets.token_hex(4)}")
        mode = 0o666 if former is None else 0o600  # nobody may read meanwhile what is private
        try:
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                yield file
                if former is not None:
                    _take_over(file.fileno(), former)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        _sync_folder(folder)
    except OSError as error:
        if error.errno is None:
            raise
        named = OSError(error.errno, error.strerror, path)  # of the same class, by its number
        if path.startswith("~") and isinstance(named, FileNotFoundError):
            named.add_note("'~' is not expanded: os.path.expanduser does that")
        raise named from None


def _checked(path: str | os.PathLike[str]) -> str:
    """Return a path as a string that a file can be called."""
    try:
        name = os.fsdecode(path)
        os.fsencode(name)
    except TypeError as error:
        raise InvalidTypeError(f"a path must be a string or os.PathLike; got {path!r}") from error
    except UnicodeError as error:
        raise InvalidValueError(f"no file can have this name; got {path!r}") from error
    if "\0" in name:
        raise InvalidValueError(f"no file can have this name; got {path!r}")
    return name


def _target(path: str) -> tuple[str, os.stat_result | None]:
    """Return where the file of that name lies or is to lie, links followed, and what is there now."""
    if not path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if os.path.basename(path) in ("", os.curdir, os.pardir):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    target = os.path.realpath(path)
    try:
        found = os.stat(target)
    except FileNotFoundError:
        return target, None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, f"only a regular file can be written over; got {_kind(found.st_mode)}")
    return target, found


def _kind(mode: int) -> str:
    return KINDS.get(stat.S_IFMT(mode), "something else")


def _take_over(descriptor: int, former: os.stat_result) -> None:
    """Give a file the owner, the group and the mode of a former one, as far as the system allows it."""
    if not hasattr(os, "fchown"):
        return
    for owner in (former.st_uid, -1):  # only root may give files away, but anybody to a group of one's own
        try:
            os.fchown(descriptor, owner, former.st_gid)
            break
        except OSError:
            continue
    with contextlib.suppress(PermissionError):  # file systems that know no modes
        os.fchmod(descriptor, stat.S_IMODE(former.st_mode))


def _prefix(name: str) -> str:
    """Return how the temporary files for `name` begin on this host: short enough for any name."""
    start = os.fsencode(name)[:150].decode(errors="ignore")
    digest = hashlib.sha256(os.fsencode(f"{platform.node()}/{name}")).hexdigest()
    return f".{start}.{digest[:8]}."


def _remove_leftovers(folder: str, prefix: str) -> None:
    """Remove the temporary files of saves that were killed: those of this host whose process is gone."""
    if os.name != "posix":
        return  # where signal 0 is not a question
    try:
        names = [name for name in os.listdir(folder) if name.startswith(prefix)]
    except OSError:  # no such folder, or one that can't be listed: writing will tell
        return
    for name in names:
        pid = name.removeprefix(prefix).partition(".")[0]
        if pid.isdecimal() and _gone(int(pid)):
            with contextlib.suppress(OSError):  # somebody else's, or removed meanwhile
                os.unlink(os.path.join(folder, name))


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # somebody else's, or no such number
        return False
    return False


def _sync_folder(folder: str) -> None:
    """Bring a renaming to the disk, where the system lets one open a folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that can't
            raise
    finally:
        os.close(descriptor)
