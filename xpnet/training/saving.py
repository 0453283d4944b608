"""Save a model to one safetensors file: weights, architecture, optimizer state, counters, seed. No pickle.

A file saved during `fit`, or after `fit` was interrupted, also holds its position and the callbacks' state: the
next `fit` after `load_model` resumes there.

The tensors are the parameters by path ("dense_1/kernel") and the optimizer's flat slots ("optimizer.0", ...; paths
of parameters always contain "/"). The rest is JSON in the header's metadata. Any safetensors library can read the
tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .. import losses, metrics, optimizers
from ..backend import LARGEST_COUNT, np
from ..core.config import custom_object_scope, plain
from ..errors import FileFormatError, InvalidTypeError, InvalidValueError, XpnetError, number
from .description import as_type, describe_layers, make_layers
from .run import Run, Unfinished
from .state import HostState, Progress
from .tensorfile import NUMPY_TYPES, TensorFile, raw, read_json, reading, type_of, write

__all__ = ["read_model", "save_model"]

FORMAT, VERSION = "xpnet", "2"
SLOT_NAMES = {"1": "optimizer/{}", "2": "optimizer.{}"}  # tensor names of the optimizer's slots, by version
TENSOR_DTYPES = {  # of the tensors, by policy
    "float32": "float32",
    "float64": "float64",
    "mixed_float16": "float32",
    "mixed_bfloat16": "float32",
}
ARRAY_KEY = "__array__"  # in a callback's state, {ARRAY_KEY: name} stands for a tensor


# Saving -----------------------------------------------------------------------------------------------------


def save_model(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a built model to a file; an existing file is replaced only when everything is written.

    Args:
        model: the model. path: the file, usually `*.safetensors`; "~" is not expanded.

    Raises:
        NotBuiltError: the model has no weights yet. OSError: the file can't be written. InvalidValueError,
            InvalidTypeError: a config can't be represented in JSON.
    """
    model.session.refresh()  # the slots depend on the optimizer's settings
    host = model.session.snapshot()
    tensors = _tensors(model, host)
    description = _as_json(lambda: _describe(model, host, tensors))
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "description": description,
        "sha256": _checksum(tensors, description),
    }
    write(path, metadata, tensors)


def _tensors(model: Any, host: HostState) -> dict[str, np.ndarray]:
    """Return the state's arrays by name, as views."""
    tensors = {}
    for layout, flat in zip(model.network.layouts, (host.weights, host.stats)):
        tensors.update(layout.views(np, flat))
    count = len(model.optimizer.slots) if model.optimizer is not None else 0
    tensors.update((SLOT_NAMES[VERSION].format(i), slot) for i, slot in enumerate(host.slots[:count]))
    return tensors


def _describe(model: Any, host: HostState, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return everything but the tensors; arrays in callbacks' states are added to `tensors`."""
    return {
        "model": {
            "name": model.name,
            "input_shape": list(model.input_shape),
            "layers": describe_layers(model.layers, model.network.learns),
        },
        "compile": _compile_config(model),
        "counters": {
            "step": host.step,
            "epoch": host.progress.epoch,
            "age": host.age,
            "scale": host.scale,
        },
        "unfinished": _unfinished(model, host, tensors),
        "seed": model.seed,
        "dtype": model.backend.policy,
    }


def _compile_config(model: Any) -> dict[str, Any] | None:
    compiled = model.compiled
    if compiled is None:
        return None
    return {
        "optimizer": plain(compiled.optimizer),
        "loss": plain(compiled.loss),
        "metrics": plain(compiled.metrics),
        "weighted_metrics": plain(compiled.weighted_metrics),
        "steps_per_execution": compiled.steps_per_execution,
        "graph": compiled.graph,
    }


def _unfinished(model: Any, host: HostState, tensors: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """Describe the unfinished run of `fit`: that of the loaded file, else the running or interrupted one."""
    found = model.session.unfinished or _cut_off(model.session.run, host)
    if found is None:
        return None
    callbacks, told = _without_arrays([list(found.callbacks), found.told], tensors)
    return {**found._asdict(), "callbacks": callbacks, "told": told}


def _cut_off(run: Run | None, host: HostState) -> Unfinished | None:
    """Return the position of a run of `fit`, for the run that resumes it."""
    if run is None:
        return None
    first, rows, batch_size = host.progress[1:]
    callbacks = [(type(c).__name__, c.get_state()) for c in run.callbacks]
    if first is None:  # between two epochs
        return Unfinished(rows=rows, batch_size=batch_size, callbacks=callbacks, told=run.told)
    return Unfinished(host.step - first, rows, batch_size, host.sums, callbacks, run.told)


def _without_arrays(value: Any, tensors: dict[str, np.ndarray]) -> Any:
    """Return a value with each array replaced by the name under which it is added to `tensors`.

    Raises:
        InvalidTypeError: a dictionary has keys that are not strings; JSON would convert them.
    """
    if isinstance(value, np.ndarray):
        name = f"callback.{len(tensors)}"
        tensors[name] = value
        return {ARRAY_KEY: name}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise InvalidTypeError(f"the keys in a callback's state must be strings; got {list(value)!r:.300}")
        return {key: _without_arrays(v, tensors) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_arrays(v, tensors) for v in value]
    return value


def _as_json(describe: Callable[[], dict[str, Any]]) -> str:
    """Return a model's description as JSON that `load_model` can read.

    Raises:
        InvalidTypeError, InvalidValueError: JSON can't represent it; nothing has been written.
    """
    try:
        text = json.dumps(plain(describe()), sort_keys=True, default=_refuse)
        read_json(text)
    except XpnetError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidValueError(f"a config can't be written to a file; got {error!r:.300}") from error
    return text


def _refuse(value: Any) -> Any:
    raise InvalidTypeError(
        "a saved config must consist of numbers, strings, lists, dictionaries and parts of a model; got "
        f"{value!r:.300}"
    )


def _checksum(tensors: Mapping[str, np.ndarray], description: str) -> str:
    """Return the SHA-256 of the description and, sorted by name, each tensor's name, shape and bytes."""
    digest = hashlib.sha256(description.encode())
    for key in sorted(tensors):
        digest.update(f"{key}{tensors[key].shape}".encode(errors="surrogatepass"))  # rejected by `write`
        digest.update(raw(tensors[key]))
    return digest.hexdigest()


# Loading ----------------------------------------------------------------------------------------------------


def read_model(
    make: Callable[..., Any],
    path: str | os.PathLike[str],
    backend: Any,
    device: str | None,
    dtype: str | None,
    custom_objects: Mapping[str, type] | None,
) -> Any:
    """Return the model in a file. Args: make: `Sequential`. The others: those of `xpnet.load_model`."""
    with reading(path) as file:
        text, slot = _description(file)
        with _understood(file), custom_object_scope(custom_objects):
            description = read_json(text)
            counters = _counters(description["counters"])
            stored = np.dtype(TENSOR_DTYPES[description["dtype"]]).newbyteorder("<")
            model = _make_model(make, description, backend, device, dtype)
            arrays: dict[str, np.ndarray] = {}
            unfinished = _run(description.get("unfinished"), file, arrays)
        slots = _slots(model, file, slot)
        _compare(file, model, slots, stored, set(arrays))
        weights, stats = (np.empty(layout.size, stored) for layout in model.network.layouts)
        tensors = {name: np.empty(shape, stored) for name, shape in slots.items()}
        for layout, flat in zip(model.network.layouts, (weights, stats)):
            tensors.update(layout.views(np, flat))
        tensors.update(arrays)
        for key, out in tensors.items():
            file.read_into(key, out)
    if _checksum(tensors, text) != file.metadata.get("sha256"):
        raise FileFormatError(
            f"{file.name} was altered: its checksum does not match; got {file.metadata.get('sha256')!r}"
        )
    session = model.session
    session.progress = Progress(counters.pop("epoch"))
    session.place(HostState(weights, stats, tuple(tensors[name] for name in slots), **counters))
    session.unfinished = unfinished
    return model


def _description(file: TensorFile) -> tuple[str, str]:
    """Return the description in a file and the name pattern of its slots."""
    metadata = file.metadata
    if metadata.get("format") != FORMAT:
        raise FileFormatError(f"{file.name} is not a model file of xpnet; got format {metadata.get('format')!r}")
    version = metadata.get("version", "")
    if version not in SLOT_NAMES:
        raise FileFormatError(
            f"{file.name} was written by a newer xpnet: this one reads versions 1 to {VERSION}; got {version!r}"
        )
    if "description" not in metadata:
        raise FileFormatError(f"{file.name} must contain a description of its model; got {sorted(metadata)}")
    return metadata["description"], SLOT_NAMES[version]


@contextmanager
def _understood(file: TensorFile) -> Iterator[None]:
    """Name the file in errors about its description."""
    try:
        yield
    except XpnetError as error:
        error.args = (f"{file.name}: {error}",)
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise FileFormatError(f"the description in {file.name} can't be read; got {error!r}") from error


def _make_model(
    make: Callable[..., Any], description: dict[str, Any], backend: Any, device: str | None, dtype: str | None
) -> Any:
    """Return the model laid out but without weights: nothing of their size is allocated here."""
    layers, learns = make_layers(description["model"]["layers"])
    model = make(
        seed=description["seed"],
        dtype=dtype or description["dtype"],
        backend=backend,
        device=device,
        name=as_type(str, description["model"]["name"]),
    )
    model.session.layers += layers  # passed to the constructor, a leading `Input` would make it draw weights
    config = description["compile"]
    if config is not None:
        model.compile(
            optimizers.registry.get(config["optimizer"]),
            losses.registry.get(config["loss"]),
            [metrics.registry.get(m) for m in as_type(list, config["metrics"])],
            config["steps_per_execution"],
            as_type(bool, config.get("graph", True)),  # missing in older files
            [metrics.registry.get(m) for m in as_type(list, config.get("weighted_metrics", []))],
        )
    shape = tuple(as_type(int, n) for n in as_type(list, description["model"]["input_shape"]))
    if not all(0 < n <= LARGEST_COUNT for n in shape):
        raise ValueError(f"input_shape must be positive integers, not {list(shape)}")
    model.session.prepare(shape, learns)
    return model


def _counters(found: dict[str, Any]) -> dict[str, Any]:
    """Return the counters of a description, checked against the limits of the state."""
    counters = {name: number(name, found[name], 0, integer=True) for name in ("step", "epoch")}
    counters["age"] = float(number("age", found["age"], 0))
    for name, value in counters.items():
        if value > LARGEST_COUNT:
            raise FileFormatError(f"{name} must be at most {LARGEST_COUNT}; got {value}")
    scale = as_type(list, found.get("scale", []))
    if len(scale) not in (0, 2):
        raise FileFormatError(f"scale must have 0 or 2 numbers; got {scale}")
    counters["scale"] = [float(number("scale", a, least, 2.0**127)) for a, least in zip(scale, (1, 0))]
    return counters


def _run(found: Any, file: TensorFile, arrays: dict[str, np.ndarray]) -> Unfinished | None:
    """Return the unfinished run of `fit` in a description; allocate the arrays of its callbacks."""
    if found is None:
        return None
    counts = [
        number(name, found[name], 0, LARGEST_COUNT, integer=True) for name in ("steps", "rows", "batch_size")
    ]
    sums = None if found["sums"] is None else np.array(as_type(list, found["sums"]), np.float64)
    if sums is not None and sums.ndim > 1:  # an older file: pairs of a sum and its weight, or two arrays of such
        sums = (sums.sum(axis=0) if sums.ndim == 3 else sums).reshape(-1)
    callbacks = [
        (as_type(str, name), as_type(dict, _with_arrays(state, file, arrays)))
        for name, state in as_type(list, found["callbacks"])
    ]
    told = found["told"]
    if told is not None:
        epoch, logs, count = told
        logs = {as_type(str, k): _with_arrays(v, file, arrays) for k, v in as_type(dict, logs).items()}
        logs = {k: v if isinstance(v, np.ndarray) else float(v) for k, v in logs.items()}
        told = as_type(int, epoch), logs, as_type(int, count)
    steps, rows, batch_size = counts
    return Unfinished(steps, rows, batch_size, sums, callbacks, told)


def _with_arrays(value: Any, file: TensorFile, arrays: dict[str, np.ndarray]) -> Any:
    """Return a value with tensor names replaced by arrays, which are filled later."""
    if isinstance(value, dict) and set(value) == {ARRAY_KEY}:
        entry = file.entries[value[ARRAY_KEY]]
        return arrays.setdefault(value[ARRAY_KEY], np.empty(entry.shape, NUMPY_TYPES[entry.dtype]))
    if isinstance(value, dict):
        return {key: _with_arrays(v, file, arrays) for key, v in value.items()}
    return [_with_arrays(v, file, arrays) for v in value] if isinstance(value, list) else value


def _slots(model: Any, file: TensorFile, name: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the optimizer's slots by tensor name; empty before the first step, which makes them."""
    if model.optimizer is None or name.format(0) not in file.entries:
        return {}
    shapes = model.optimizer.slot_shapes((model.network.layout.size,))
    return {name.format(i): shape for i, shape in enumerate(shapes)}


def _compare(
    file: TensorFile,
    model: Any,
    slots: Mapping[str, tuple[int, ...]],
    dtype: Any,
    others: set[str],
) -> None:
    """Raise unless names, types and shapes of a file's tensors, without `others`, are those of its model."""
    wanted = {key: shape for layout in model.network.layouts for key, shape in layout.shapes.items()}
    wanted.update(slots)
    found = {(key, entry.dtype, entry.shape) for key, entry in file.entries.items() if key not in others}
    odd = sorted(found ^ {(key, type_of(dtype), shape) for key, shape in wanted.items()})
    if odd:
        raise FileFormatError(f"the tensors in {file.name} are not those of its model; got {odd[0]}")
