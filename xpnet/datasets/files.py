"""Where the files of a data set lie: the folder in `XPNET_DATA`, or downloads in the user's cache."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DownloadError, FileFormatError, InvalidValueError, MissingExtraError, switch


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


def _folder(variable: str) -> Path | None:
    """Return the folder named by an environment variable, or None if it is not set."""
    root = os.environ.get(variable)
    try:
        return Path(root).expanduser() if root else None
    except RuntimeError as error:
        raise InvalidValueError(f"{variable} must name a folder; its ~ can't be expanded; got {root!r}") from error


def local(name: str) -> Path | None:
    """Return the folder of a data set in `XPNET_DATA`, or None if there is none."""
    root = _folder("XPNET_DATA")
    folder = root / name if root else None
    return folder if folder and folder.is_dir() else None


def missing(folder: Path, what: str) -> DownloadError:
    """Return the error for a folder of `XPNET_DATA` that lacks files."""
    names = ", ".join(sorted(path.name for path in folder.iterdir())) or "no file"
    return DownloadError(f"{folder}, a folder in XPNET_DATA, lacks {what}; got {names}")


def fetch(name: str) -> list[Path]:
    """Return the paths of a data set's files, from `XPNET_DATA` or the cache."""
    (url, hashes), folder = SOURCES[name], local(name)
    if folder is None:
        folder = (_folder("XPNET_CACHE") or Path(_pooch().os_cache("xpnet"))) / name
        return [_download(url + file, sha256, folder / file) for file, sha256 in hashes.items()]
    for file in hashes:
        if not (folder / file).is_file():
            raise missing(folder, file)
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
            raise refuse(path, f"the SHA-256 {sha256}, and XPNET_OFFLINE forbids downloading", got)
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


def refuse(path: object, expected: str, got: object) -> FileFormatError:
    """Return the error for a file that is not what was expected."""
    return FileFormatError(f"{path} is truncated, altered or another file: expected {expected}; got {got}")
