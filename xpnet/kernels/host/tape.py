"""Record a NumPy step once and replay it as a flat list of calls, like a CUDA graph on the host.

While a step is recorded, its arrays are `Traced`. Each call on one of them is executed, and recorded with the
memory it reads and writes. Repeating the calls on the same memory is the next step, without the Python code
between them (layers, closures, views, buffer look-ups).

The calls must not depend on values. There are two exceptions: `launch` records a kernel, a function that writes to
its array arguments and may read their values; `when` records a block that runs only if a flag is set.

The state is overwritten only at the end of a step, by calls recorded separately (see `finish`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np

from ...backend.tree import tree_map
from ..finish import Branch, End
from .threads import single_threaded_blas

__all__ = [
    "CannotRecord",
    "Tape",
    "Traced",
    "adopt",
    "begin_feeding",
    "copy",
    "feeding",
    "new",
    "record",
    "records_stacks",
    "records_user_code",
    "release",
    "step_context",
]

Call = Callable[[], Any]


class CannotRecord(Exception):
    """The step is not certain to be the same list of calls each time."""


class Tape:
    """The calls of one step, in order, and those that overwrite its state."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.finish: list[Any] = []

    def trace(self, array: np.ndarray) -> Traced:
        """Return a view of persistent memory that records operations on it."""
        traced = array.view(Traced)
        traced.tape = self
        return traced

    def note(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Record a call on plain arrays."""
        self.calls.append(partial(function, *args, **kwargs) if args or kwargs else function)

    def launch(self, kernel: Callable[..., None], *args: Any) -> None:
        """Call and record a kernel, which writes to its array arguments and returns nothing."""
        plain = [_plain(a) for a in args]
        kernel(*plain)
        self.note(kernel, *plain)

    def when(self, ok: Traced, update: Callable[[Any], Any], kept: Any) -> Any:
        """Record `update(kept)` as a block that runs if `ok` is set; its results overwrite `kept`."""
        flag = _plain(ok)
        if not flag:
            raise CannotRecord("a step that the guard rejects")
        before = self.calls, self.finish
        self.calls, self.finish = [], []
        try:
            tree_map(self.store, kept, update(kept))
            block, finish = self.calls, self.finish
        finally:
            self.calls, self.finish = before
        if block:
            self.note(_play_if, flag, block)
        self.finish.append(Branch(flag, finish))
        return kept

    def defer(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Defer a call to the end of the step, see `Context.defer`."""
        self.finish.append(partial(function, *_plain(args), **_plain(kwargs)))

    def plain(self, values: Any) -> Any:
        """Replace traced arrays with plain ones, also inside lists, tuples and dictionaries."""
        return _plain(values)

    def store(self, place: np.ndarray, value: Any) -> None:
        """Defer copying a result to persistent memory to the end of the step, unless it is already there."""
        target, source = _plain(place), _plain(value)
        if isinstance(source, np.ndarray) and source.__array_interface__ == target.__array_interface__:
            return
        self.finish.append(partial(operator.setitem, target, ..., source))


def _play_if(flag: np.ndarray, block: Sequence[Call]) -> None:
    if flag:
        for call in block:
            call()


class Play:
    """The calls of a recorded step with their memory; `finish` has those that end it.

    It does not refer to the tape: traced arrays do, and Python's garbage collector can't see references from NumPy
    views, so the cycle would never be freed.
    """

    def __init__(self, calls: Sequence[Call], finish: End) -> None:
        self.calls, self.finish = calls, finish

    def __call__(self) -> End:
        """Repeat all calls but those that end the step; return the latter."""
        for call in self.calls:
            call()
        return self.finish


step_context = single_threaded_blas  # the context in which steps run, recorded or not
records_user_code = False  # whether user-defined parts may be recorded: on the host their code runs at every step
records_stacks = False  # whether several steps may be one recording: on the host it would only be a longer list
feeding = nullcontext  # the context in which batches are made
new = np.array  # makes a permanent array


def copy(place: np.ndarray, a: np.ndarray) -> None:
    """Copy an array to permanent memory (`copyto` takes twice as long)."""
    place[...] = a


def begin_feeding() -> None:
    """Begin an epoch: nothing to do."""


def release() -> None:
    """Release a batch that has been read: nothing to do, its memory is the caller's."""


def adopt(a: Any) -> np.ndarray:
    """Return an array that may become permanent: the given one if it owns its memory, else a copy."""
    return a if isinstance(a, np.ndarray) and a.flags.writeable and a.base is None else np.array(a)


def record(step: Callable[[Any, Any], Any], state: Any, batch: Any) -> Play:
    """Take a step on persistent memory up to its end, and return the recording.

    Args:
        step: (state, batch) -> state, see `training.step.make_step`. state: writeable arrays; the calls that end a
            step overwrite them. batch: arrays to which later batches are copied.

    Raises:
        CannotRecord: the step can't be recorded; the state is unchanged.
    """
    tape = Tape()
    try:
        traced = tree_map(tape.trace, state)
        tree_map(tape.store, traced, step(traced, tree_map(tape.trace, batch)))
        return Play(tape.calls, End(tape.finish))
    finally:
        tape.calls, tape.finish = [], []


# NumPy functions implemented in C without a ufunc; all others reduce to ufuncs or to these.
_REDUCTIONS = {
    np.sum: np.add.reduce,
    np.max: np.maximum.reduce,
    np.min: np.minimum.reduce,
    np.all: np.logical_and.reduce,
    np.any: np.logical_or.reduce,
}
_FILLED = {np.zeros_like: 0, np.ones_like: 1}
_INTO = {np.argmax, np.argmin, np.concatenate, np.dot, np.mean, np.stack, np.take}
_KEYWORD_OUT = {np.maximum, np.minimum}  # NumPy deprecates a positional `out` for these


class Traced(np.ndarray):
    """Persistent memory during a recording; to the step, an ordinary array."""

    tape: Tape

    def __array_finalize__(self, parent: Any) -> None:
        """Pass the tape on to views; reject memory that no recorded call has written."""
        if parent is None or not hasattr(parent, "tape"):
            return
        self.tape = parent.tape
        if self.base is None:
            raise CannotRecord("an array method that allocates memory")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **kwargs: Any) -> Any:
        """Execute and record a ufunc; the result goes to new memory or to `out`."""
        function = ufunc if method == "__call__" else getattr(ufunc, method)
        plain = _constants(inputs)
        kwargs = {name: _plain(value) for name, value in kwargs.items()}
        targets = tuple(_plain(o) for o in out)
        if not targets:
            result = function(*plain, **kwargs)
            if result is None:  # `ufunc.at`
                self.tape.note(function, *plain, **kwargs)
                return None
            results = result if isinstance(result, tuple) else (result,)
            targets = tuple(np.asarray(r) for r in results)
        else:
            function(*plain, out=targets if method == "__call__" else targets[0], **kwargs)
        if method == "__call__" and not kwargs and ufunc not in _KEYWORD_OUT:
            self.tape.note(function, *plain, *targets)
        else:
            self.tape.note(function, *plain, out=targets if len(targets) > 1 else targets[0], **kwargs)
        traced = tuple(o if type(o) is Traced else self.tape.trace(t) for o, t in zip(out or targets, targets))
        return traced if len(traced) > 1 else traced[0]

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Execute and record any other NumPy function; a result that is a view needs no record."""
        if func in _REDUCTIONS:
            axis = args[1:] or (kwargs.pop("axis", None),)
            return _REDUCTIONS[func](args[0], *axis, **kwargs)
        given = kwargs.get("out")
        args, kwargs = _plain(args), _plain(kwargs)
        result = func(*args, **kwargs)
        if result is None or given is not None:
            self.tape.note(func, *args, **kwargs)
            return given if given is None or type(given) is Traced else self.tape.trace(given)
        if not isinstance(result, (np.ndarray, np.generic)):
            raise CannotRecord(f"numpy.{func.__name__}, which returns {type(result).__name__}")
        if isinstance(result, np.ndarray) and result.base is not None and _of(result, args):
            return self.tape.trace(result)
        result = np.asarray(result)
        if func in _INTO:
            self.tape.note(func, *args, **kwargs, out=result)
        elif func in _FILLED or func is np.full_like:
            self.tape.note(result.fill, _FILLED.get(func, args[-1]))
        elif func is np.astype:
            self.tape.note(np.copyto, result, args[0], casting="unsafe")
        else:
            self.tape.note(_fill, result, func, args, kwargs)
        return self.tape.trace(result)

    def __getitem__(self, index: Any) -> Any:
        """Return a view, or record the look-up and return its result."""
        plain, index = _plain(self), _plain(index)
        result = plain[index]
        if isinstance(result, np.ndarray) and result.base is not None and np.may_share_memory(result, plain):
            return self.tape.trace(result)
        result = np.asarray(result)
        self.tape.note(_fill, result, operator.getitem, (plain, index), {})
        return self.tape.trace(result)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Execute and record an assignment."""
        call = (_plain(self), _plain(index), _plain(value))
        operator.setitem(*call)
        self.tape.note(operator.setitem, *call)

    def _value(self, *args: Any) -> Any:
        raise CannotRecord("reading a value on the host")

    __bool__ = __float__ = __int__ = __index__ = __complex__ = item = tolist = tobytes = _value  # type: ignore[assignment]


def _fill(result: np.ndarray, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    np.copyto(result, function(*args, **kwargs))


def _of(result: np.ndarray, args: Any) -> bool:
    """Return whether a result shares memory with an argument."""
    return any(isinstance(a, np.ndarray) and np.may_share_memory(result, a) for a in args)


def _plain(value: Any) -> Any:
    """Replace traced arrays with plain ones, also inside lists, tuples and dictionaries."""
    if type(value) is Traced:
        return value.view(np.ndarray)
    if type(value) in (list, tuple):
        return type(value)(_plain(v) for v in value)
    return {k: _plain(v) for k, v in value.items()} if type(value) is dict else value


def _constants(inputs: Sequence[Any]) -> list[Any]:
    """Return a ufunc's inputs as plain arrays; Python numbers become 0-d arrays of the dtype NumPy would use.

    NumPy converts a Python number to the dtype of the other operands. Passing a 0-d array saves this, half a
    microsecond per call.
    """
    plain = [_plain(i) for i in inputs]
    dtypes = [p.dtype for p in plain if isinstance(p, (np.ndarray, np.generic))]
    beside = np.result_type(*dtypes) if dtypes else None
    for i, p in enumerate(plain):
        if isinstance(p, np.generic):
            plain[i] = np.asarray(p)
        elif beside is not None and (type(p), beside.kind) in ((float, "f"), (int, "f"), (int, "i")):
            plain[i] = np.asarray(p, beside)
    return plain
