"""Record a step once for each batch shape, on permanent arrays, and replay it.

The recorder depends on the library (`kernels.recorder_for`): a list of calls on NumPy, a CUDA graph on CuPy. This
module has what they share: state and batch live in arrays that are never replaced, and a step that can't be
recorded runs directly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..backend.tree import Stack, Tree, leaves, tree_map
from .step import MAX_SHAPES

__all__ = ["Replay"]

MAX_ATTEMPTS = 5  # batches of a shape after which recording is no longer attempted
Step = Callable[..., Tree]
Commit = Callable[[Tree, Any], None]


class Replay:
    """Run steps from recordings: `run(state, batches, commit)` takes one step per batch (see `Backend.compile`).

    The first batch of a shape runs directly, because many shapes occur only once (a short last batch, a single
    `train_on_batch`). The second is recorded, later ones are replayed. If `recorder.records_stacks`, a `Stack` of
    batches is one recording.

    Args:
        step: (state, batch, finish) -> state, see `training.step.make_step`.
        recorder: `record(step, state, batch)` returns a `play` or raises `CannotRecord`; `play()` takes the step
            again and returns the calls that end it, `play.finish`. `adopt`, `new` and `copy` handle permanent
            arrays. `step_context()` is a context in which steps run; `release()` is called when a batch has been
            read.
    """

    def __init__(self, step: Step, recorder: Any) -> None:
        self.step, self.recorder = step, recorder
        self.state: Tree = None  # the permanent arrays
        self.seen: dict[Any, int] = {}  # by shapes: number of batches not replayed
        self.recordings: dict[Any, tuple[Any, list[Any]]] = {}  # by shapes: play, the arrays of its batch

    def __call__(self, state: Tree, batches: Sequence[Tree], commit: Commit) -> None:
        """Take one step per batch and commit each state."""
        with self.recorder.step_context():
            if self.recorder.records_stacks and isinstance(batches, Stack):
                self._take(state, batches.tree, commit, len(batches))
                return
            for batch in batches:
                state = self._take(state, batch, commit)

    def _take(self, state: Tree, batch: Tree, commit: Commit, count: int = 0) -> Tree:
        """Take one step, or `count` steps on a stack of batches."""
        given = leaves(batch)
        key = (count, *[a.shape for a in given])
        recording = self.recordings.get(key)
        if recording is None:
            state, finish = self._without(key, state, batch)
            commit(state, finish)
            self.recorder.release()
            return state
        play, buffers = recording
        state = self._settle(state)
        for place, a in zip(buffers, given):
            self.recorder.copy(place, a)
        self.recorder.release()
        commit(state, play())
        return state

    def _without(self, key: Any, state: Tree, batch: Tree) -> tuple[Tree, Any]:
        """Take a step without a recording, recording it if due; return the state and the calls that end it."""
        step = self.step if key[0] == 0 else partial(_steps, self.step, key[0])
        if len(self.seen) >= 256 * MAX_SHAPES:
            self.seen.clear()
        seen = self.seen[key] = self.seen.get(key, 0) + 1
        if 1 < seen < MAX_ATTEMPTS:
            settled, buffers = self._settle(state), tree_map(self.recorder.new, batch)
            try:
                play = self.recorder.record(step, settled, buffers)
            except self.recorder.CannotRecord:
                state = settled
            else:
                while len(self.recordings) >= MAX_SHAPES:  # drop the oldest
                    del self.recordings[next(iter(self.recordings))]
                self.recordings[key] = (play, leaves(buffers))
                return settled, play.finish
        finish: list[Any] = []
        return step(state, batch, finish), finish

    def _settle(self, state: Tree) -> Tree:
        """Copy the state to the permanent arrays and return them; the first state's arrays become permanent."""
        if state is self.state:
            return state
        if self.state is None:
            self.state = tree_map(self.recorder.adopt, state)
        else:
            tree_map(self._keep, self.state, state)
        return self.state

    def _keep(self, place: Any, a: Any) -> None:
        if a is not place:
            self.recorder.copy(place, a)


def _steps(step: Step, count: int, state: Tree, stacked: Tree, finish: list[Any] | None = None) -> Tree:
    for batch in Stack(stacked, count):
        state = step(state, batch)
    return state
