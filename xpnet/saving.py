"""One safetensors file for a model: weights, architecture, optimizer state, counters and seed. Never pickle.

The tensors are the parameters by path ("dense_1/kernel") and the optimizer's flat slots ("optimizer/0", ...);
the header's metadata hold the rest as JSON. Readers: any safetensors library, for the tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import losses, metrics, optimizers
from .backend import np
from .errors import FileFormatError, XpnetError, number
from .layers import registry
from .model import Sequential
from .network import Network

__all__ = ["load_model", "save_model"]

FORMAT, VERSION = "xpnet", 1
MAX_HEADER = 100 * 2**20  # safetensors' own bound
WIDTHS = {  # by precision: safetensors' name of the weights' dtype, bytes
    "float32": ("F32", 4),
    "float64": ("F64", 8),
    "mixed_float16": ("F32", 4),
    "mixed_bfloat16": ("F32", 4),
}


class Entry(NamedTuple):
    """What a header states about a tensor: type, shape, and where its bytes lie behind the header."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int

    @classmethod
    def read(cls, entry: dict[str, Any]) -> Entry:
        """Return the entry of the header, of the right types."""
        first, last = map(operator.index, entry["data_offsets"])
        if not 0 <= first <= last:
            raise ValueError(f"offsets {first} and {last}")
        return cls(str(entry["dtype"]), tuple(map(operator.index, entry["shape"])), first, last)


def save_model(model: Sequential, path: str | os.PathLike[str]) -> None:
    """Write a built model to a file; a former file of that name is replaced only when all is written.

    Args:
        model: the model. path: where to; `.safetensors` by custom.

    Raises:
        NotBuiltError: the model has no weights yet. OSError: the file can't be written.
    """
    from safetensors.numpy import save

    state, backend, network = model.state, model.backend, model.network
    tensors = network.host_values(backend, state.weights, state.stats)
    for i, slot in enumerate(state.slots[: len(model.optimizer.slots) if model.optimizer else 0]):
        tensors[f"optimizer/{i}"] = np.array(backend.host(slot))
    description = {
        "model": _architecture(model),
        "compile": _compile_config(model),
        "counters": {
            "step": model.step,
            "epoch": model.epoch,
            "age": float(backend.host(state.age)),
            "scale": [float(backend.host(a)) for a in state.scale],
        },
        "seed": model.seed,
        "dtype": backend.policy,
    }
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "description": json.dumps(description, sort_keys=True),
    }
    metadata["sha256"] = _checksum(tensors, metadata["description"])
    _write(Path(path), save(tensors, metadata=metadata))


def load_model(
    path: str | os.PathLike[str],
    *,
    backend: Any = None,
    device: str | None = None,
    dtype: str | None = None,
    custom_objects: Mapping[str, type] | None = None,
) -> Sequential:
    """Return the model of a file, ready to predict and to go on training.

    Args:
        path: a file that `save` wrote. backend, device: where to compute, as for `Sequential`.
        dtype: the precision, or None for the file's.
        custom_objects: classes of one's own by name.

    Raises:
        FileFormatError: the file is truncated, altered, of another format, or of a newer version.
        UnknownNameError: it needs a class that is not in `custom_objects`.
    """
    path = Path(path)
    metadata, entries, start = _read_header(path)
    if metadata.get("format") != FORMAT:
        raise FileFormatError(f"{path.name} is not a model file of xpnet; got format {metadata.get('format')!r}")
    version = metadata.get("version")
    if version not in [str(v) for v in range(1, VERSION + 1)]:
        raise FileFormatError(
            f"{path.name} was written by a newer xpnet: this one reads versions 1 to {VERSION}; got {version!r}"
        )
    try:
        description = json.loads(metadata["description"])
        model, slots = _make_model(description, backend, device, dtype, dict(custom_objects or {}))
        kind, width = WIDTHS[description["dtype"]]
        counters = description["counters"]
        step, epoch = (number(name, counters[name], 0, integer=True) for name in ("step", "epoch"))
        age = float(number("age", counters["age"], 0))
        scale = [float(number("scale", a, least)) for a, least in zip(counters.get("scale", ()), (1, 0))]
    except XpnetError as error:
        error.args = (f"{path.name}: {error}",)
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"the description in {path.name} can't be read; got {error!r}") from error
    tensors = _read_tensors(path, entries, start, _wanted(model.network, slots, entries), kind, width)
    if _checksum(tensors, metadata["description"]) != metadata.get("sha256"):
        raise FileFormatError(
            f"{path.name} was altered: its checksum does not fit; got {metadata.get('sha256')!r}"
        )
    model.restore(
        {key: value for key, value in tensors.items() if not key.startswith("optimizer/")},
        [tensors[f"optimizer/{i}"] for i in range(slots) if "optimizer/0" in tensors],
        step=step,
        epoch=epoch,
        scale=scale,
        age=age,
    )
    return model


def _architecture(model: Sequential) -> dict[str, Any]:
    """Describe the layers; one that is used again is the number of its first place."""
    places: dict[int, int] = {}
    layers: list[Any] = []
    for i, (layer, learns) in enumerate(zip(model.layers, model.network.learns)):
        if id(layer) in places:
            layers.append(places[id(layer)])
        else:
            places[id(layer)] = i
            layers.append({"class_name": type(layer).__name__, "config": layer.get_config()})
            if not learns:  # as laid out; the config has what it is now
                layers[-1]["trainable"] = False
    return {"name": model.name, "input_shape": list(model.input_shape), "layers": layers}


def _compile_config(model: Sequential) -> dict[str, Any] | None:
    compiled = model.compiled
    if compiled is None:
        return None
    parts = (compiled.optimizer, compiled.loss, *compiled.metrics)
    configs = [{"class_name": type(p).__name__, "config": p.get_config()} for p in parts]
    return {
        "optimizer": configs[0],
        "loss": configs[1],
        "metrics": configs[2:],
        "steps_per_execution": compiled.steps_per_execution,
    }


def _make_model(
    description: dict[str, Any], backend: Any, device: str | None, dtype: str | None, custom: dict[str, type]
) -> tuple[Sequential, int]:
    """Return the built model, without its weights, and the number of the optimizer's slots."""
    layers: list[Any] = []
    learns: list[bool] = []
    for entry in description["model"]["layers"]:
        if isinstance(entry, int):
            layers.append(layers[entry])
            learns.append(learns[entry])
        else:
            layers.append(registry.get({k: entry[k] for k in ("class_name", "config")}, custom))
            learns.append(bool(entry.get("trainable", True)))
            if "trainable" not in entry["config"] and not learns[-1]:  # an older file
                layers[-1].trainable = False
    model = Sequential(
        layers,
        seed=description["seed"],
        dtype=dtype or description["dtype"],
        backend=backend,
        device=device,
        name=description["model"]["name"],
    )
    config = description["compile"]
    if config is not None:
        model.compile(
            optimizers.registry.get(config["optimizer"], custom),
            losses.registry.get(config["loss"], custom),
            [metrics.registry.get(m, custom) for m in config["metrics"]],
            config["steps_per_execution"],
        )
    model.prepare(tuple(description["model"]["input_shape"]), learns)
    return model, len(model.optimizer.slots) if model.optimizer is not None else 0


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, Entry], int]:
    """Return the metadata, the tensors' entries, compared with the file's size, and where the data begin."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise FileFormatError(f"{path.name} is truncated or not a safetensors file; got {size} bytes")
        try:
            header = json.loads(file.read(length))
            metadata = dict(header.pop("__metadata__", {}))
            entries = {key: Entry.read(entry) for key, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FileFormatError(f"the header of {path.name} can't be read; got {error!r}") from error
    if 8 + length + max((entry.last for entry in entries.values()), default=0) != size:
        raise FileFormatError(
            f"{path.name} is truncated or altered: its header states another size; got {size} bytes"
        )
    return metadata, entries, 8 + length


def _wanted(network: Network, slots: int, entries: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors that a model's file must have."""
    shapes = {**network.layout.shapes, **network.stats_layout.shapes}
    wanted = {path: shapes[path] for path in network.paths()}
    # slots appear once the optimizer has made them, at the first step
    wanted.update({f"optimizer/{i}": (network.layout.size,) for i in range(slots) if "optimizer/0" in entries})
    return wanted


def _read_tensors(
    path: Path, entries: dict[str, Entry], start: int, wanted: dict[str, tuple[int, ...]], kind: str, width: int
) -> dict[str, np.ndarray]:
    """Return the tensors, their names, types and shapes compared with the model's before any is read."""
    found = {(key, kind_, shape) for key, (kind_, shape, _, _) in entries.items()}
    odd = sorted(found ^ {(key, kind, shape) for key, shape in wanted.items()})
    if odd:
        raise FileFormatError(f"the tensors in {path.name} are not those of its model; got {odd[0]}")
    tensors = {}
    with open(path, "rb") as file:
        for key, shape in wanted.items():
            _, _, first, last = entries[key]
            if last - first != math.prod(shape) * width:
                raise FileFormatError(f"{key} in {path.name} has a wrong size; got {last - first} bytes")
            file.seek(start + first)
            data = file.read(last - first)
            tensors[key] = np.frombuffer(data, dtype=f"<f{width}").reshape(shape)
    return tensors


def _checksum(tensors: Mapping[str, np.ndarray], description: str) -> str:
    """SHA-256 over the description and, by name, each tensor's shape and bytes."""
    digest = hashlib.sha256(description.encode())
    for key in sorted(tensors):
        digest.update(f"{key}{tensors[key].shape}".encode())
        digest.update(tensors[key].tobytes())
    return digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Write to a temporary name beside the file and rename it: a crash leaves the former file whole."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
