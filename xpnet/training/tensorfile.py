"""Read and write safetensors files: as strict as safetensors' own reader, and safe against crashes.

A file consists of the header's length (8 bytes), the header (JSON: metadata, and the type, shape and offsets of
each tensor), and the tensors' bytes, one after the other. Tensors are read and written in place, one at a time.
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

from ..backend import np
from ..errors import FileFormatError, InvalidTypeError, InvalidValueError

__all__ = ["Entry", "TensorFile", "raw", "read_json", "reading", "type_of", "write"]

MAX_HEADER = 100_000_000  # bytes; this and MAX_SIZE are safetensors' own limits
MAX_SIZE = 2**64 - 1
NUMPY_TYPES = {  # safetensors' names -> NumPy's
    "F64": "<f8", "F32": "<f4", "F16": "<f2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "|b1",
}  # fmt: skip
FILE_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class Entry(NamedTuple):
    """A tensor's entry in the header: type, shape, and the offsets of its bytes after the header."""

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
    for name, known in NUMPY_TYPES.items():
        if np.dtype(known) == wanted:
            return name
    raise InvalidTypeError(f"a file takes arrays of {', '.join(NUMPY_TYPES)}; got {dtype}")


# Reading ----------------------------------------------------------------------------------------------------


class TensorFile:
    """An open safetensors file with a checked header.

    Attributes:
        name: the file's name, for messages. metadata: strings by name. entries: tensor entries by name.

    Raises:
        FileFormatError: not a file that safetensors' own reader accepts.
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
        """Read a tensor into `out`, a contiguous little-endian array of its type and shape."""
        entry = self.entries[key]
        self._file.seek(self._start + entry.first)
        taken = self._file.readinto(raw(out))  # type: ignore[attr-defined]
        if taken != entry.last - entry.first:
            raise FileFormatError(f"{self.name} was truncated while it was read; got {taken} bytes of {key!r}")


def read_json(text: bytes | str, **hooks: Any) -> Any:
    """Parse JSON strictly.

    Args:
        text: bytes must be UTF-8 without a byte order mark. hooks: arguments of `json.loads`.

    Raises:
        ValueError: invalid JSON, a duplicate key, or a string with lone surrogates. RecursionError: nested too
            deeply.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    found = json.loads(text, object_pairs_hook=_unique, **hooks)
    json.dumps(found, ensure_ascii=False).encode()  # raises for lone surrogates
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a duplicate key among {[key for key, _ in pairs][:10]}")
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
    if dtype not in NUMPY_TYPES or first > last:
        raise ValueError(f"a tensor of dtype {dtype!r} at offsets {first} to {last}")
    return Entry(dtype, tuple(shape), first, last)


def _bytes(entry: Entry) -> int:
    """Return the size in bytes of a tensor of this type and shape; -1 if it exceeds 64 bits."""
    size = 1
    for n in (*entry.shape, np.dtype(NUMPY_TYPES[entry.dtype]).itemsize * 8):
        size *= n
        if size > MAX_SIZE:
            return -1
    return size // 8


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[TensorFile]:
    """Open a safetensors file for reading; header and tensors come from one descriptor.

    Raises:
        FileFormatError: not a safetensors file, or a FIFO, device or socket. OSError: can't be opened, or is a
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
    """Open without blocking on a FIFO that has no writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


# Writing ----------------------------------------------------------------------------------------------------


def write(path: str | os.PathLike[str], metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file; an existing file is replaced only when everything is written.

    The mode and, if the system allows it, the owner of the existing file are kept. A symbolic link is followed,
    not replaced.

    Args:
        path: the file. metadata: strings by name. tensors: host arrays by name.

    Raises:
        InvalidValueError: names are not text, or the header is too long. OSError: the file can't be written.
    """
    # largest item size first, so that all tensors are aligned when the file is mapped to memory
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
        raise InvalidValueError(f"names in a file must be valid Unicode; got {error.object!r:.100}") from error
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise InvalidValueError(f"a file's header must have at most {MAX_HEADER} bytes; got {len(text)}")
    return len(text).to_bytes(8, "little") + text


def raw(array: np.ndarray) -> memoryview:
    """Return an array's bytes, little-endian: a view if the array is contiguous and little-endian, else a copy."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` once it is complete and on the disk.

    Errors of the system name `path`, not the temporary file.
    """
    try:
        target, former = _target(path)
        folder, name = os.path.split(target)
        prefix = _prefix(name)
        _remove_leftovers(folder, prefix)
        temporary = os.path.join(folder, f"{prefix}{os.getpid()}.{secrets.token_hex(4)}")
        mode = 0o666 if former is None else 0o600  # a private file must stay private meanwhile
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
        named = OSError(error.errno, error.strerror, path)  # the errno determines the subclass
        if path.startswith("~") and isinstance(named, FileNotFoundError):
            named.add_note("'~' is not expanded: os.path.expanduser does that")
        raise named from None


def _checked(path: str | os.PathLike[str]) -> str:
    """Return a path as a string, after checking that it can be a file name."""
    try:
        name = os.fsdecode(path)
        os.fsencode(name)
    except TypeError as error:
        raise InvalidTypeError(f"a path must be a string or os.PathLike; got {path!r}") from error
    except UnicodeError as error:
        raise InvalidValueError(f"a path must be a valid file name; got {path!r}") from error
    if "\0" in name:
        raise InvalidValueError(f"a path must be a valid file name; got {path!r}")
    return name


def _target(path: str) -> tuple[str, os.stat_result | None]:
    """Return the path with links followed, and the status of the existing file or None."""
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
        raise OSError(errno.EINVAL, f"only a regular file can be overwritten; got {_kind(found.st_mode)}")
    return target, found


def _kind(mode: int) -> str:
    return FILE_KINDS.get(stat.S_IFMT(mode), "something else")


def _take_over(descriptor: int, former: os.stat_result) -> None:
    """Copy owner, group and mode of the former file to an open file, as far as the system allows."""
    if not hasattr(os, "fchown"):
        return
    for owner in (former.st_uid, -1):  # only root may change the owner; anyone may set a group they belong to
        try:
            os.fchown(descriptor, owner, former.st_gid)
            break
        except OSError:
            continue
    with contextlib.suppress(PermissionError):  # file systems without modes
        os.fchmod(descriptor, stat.S_IMODE(former.st_mode))


def _prefix(name: str) -> str:
    """Return the prefix of temporary files for `name` on this host, truncated to a valid length."""
    start = os.fsencode(name)[:150].decode(errors="ignore")
    digest = hashlib.sha256(os.fsencode(f"{platform.node()}/{name}")).hexdigest()
    return f".{start}.{digest[:8]}."


def _remove_leftovers(folder: str, prefix: str) -> None:
    """Remove temporary files left by killed saves on this host: those whose process no longer exists."""
    if os.name != "posix":
        return  # elsewhere signal 0 does not just test for a process
    try:
        names = [name for name in os.listdir(folder) if name.startswith(prefix)]
    except OSError:  # missing or unreadable folder: writing will raise
        return
    for name in names:
        pid = name.removeprefix(prefix).partition(".")[0]
        if pid.isdecimal() and _gone(int(pid)):
            with contextlib.suppress(OSError):  # another user's, or already removed
                os.unlink(os.path.join(folder, name))


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's process, or not a process id
        return False
    return False


def _sync_folder(folder: str) -> None:
    """Flush a renaming to the disk, if the system can open folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not supported by the file system
            raise
    finally:
        os.close(descriptor)
