"""A step that is recorded once for each shape of batch, over memory that stays, and then replayed.

How a step is recorded is the library's affair (`kernels.recorder_for`): a list of calls on NumPy, a CUDA graph on
CuPy. What a recording needs is the same everywhere and stands here: state and batch live in arrays that are never
exchanged, and what cannot be recorded runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .training import MOST
from .tree import Stack, Tree, leaves, tree_map

__all__ = ["Replay"]

ATTEMPTS = 5  # batches of a shape after which nobody tries to record it any more
Step = Callable[..., Tree]
Commit = Callable[[Tree, Any], None]


class Replay:
    """`run(state, batches, commit)`, by recordings: a step for each batch (see `Backend.compile`).

    The first batch of a shape runs as it is: many shapes (a short last batch, `train_on_batch` called once)
    come only once. The second is recorded, the others are replays. Where the recorder takes steps `together`, a
    `Stack` of batches is one recording.

    Args:
        step: (state, batch, finish) -> state, see `training.make_step`.
        recorder: `record(step, state, batch) -> play` or its `CannotRecord`; `play()` takes the step again and
            returns the calls that end it, `play.finish`. `own`, `new` and `copy` handle arrays that stay.
            `surroundings` is a context in which steps run, `release` is called when nobody will read a batch any
            more.
    """

    def __init__(self, step: Step, recorder: Any) -> None:
        self.step, self.recorder = step, recorder
        self.state: Tree = None  # the arrays that stay
        self.seen: dict[Any, int] = {}  # by shapes: batches that were not replayed
        self.recordings: dict[Any, tuple[Any, list[Any]]] = {}  # by shapes: play, its batch

    def __call__(self, state: Tree, batches: Sequence[Tree], commit: Commit) -> None:
        """Take one step per batch, and commit each state."""
        with self.recorder.surroundings():
            if self.recorder.together and isinstance(batches, Stack):
                self._take(state, batches.tree, commit, len(batches))
                return
            for batch in batches:
                state = self._take(state, batch, commit)

    def _take(self, state: Tree, batch: Tree, commit: Commit, count: int = 0) -> Tree:
        """Take one step, or with a `count` that many, on a stack of batches."""
        given = leaves(batch)
        key = (count, *[a.shape for a in given])
        recording = self.recordings.get(key)
        if recording is None:
            state, finish = self._without(key, state, batch)
            commit(state, finish)
            self.recorder.release()
            return state
        play, room = recording
        state = self._settle(state)
        for place, a in zip(room, given):
            self.recorder.copy(place, a)
        self.recorder.release()
        commit(state, play())
        return state

    def _without(self, key: Any, state: Tree, batch: Tree) -> tuple[Tree, Any]:
        """Take a step that was not recorded, and record it if it is time; return the state and the step's end."""
        step = self.step if key[0] == 0 else partial(_steps, self.step, key[0])
        if len(self.seen) >= 256 * MOST:
            self.seen.clear()
        seen = self.seen[key] = self.seen.get(key, 0) + 1
        if 1 < seen < ATTEMPTS:
            settled, room = self._settle(state), tree_map(self.recorder.new, batch)
            try:
                play = self.recorder.record(step, settled, room)
            except self.recorder.CannotRecord:
                state = settled
            else:
                while len(self.recordings) >= MOST:  # the oldest go
                    del self.recordings[next(iter(self.recordings))]
                self.recordings[key] = (play, leaves(room))
                return settled, play.finish
        finish: list[Any] = []
        return step(state, batch, finish), finish

    def _settle(self, state: Tree) -> Tree:
        """Copy the state into the permanent arrays and return these; the first state's own become permanent."""
        if state is self.state:
            return state
        if self.state is None:
            self.state = tree_map(self.recorder.own, state)
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
