"""A step that is recorded once for each shape of batch, over memory that stays, and then replayed.

How a step is recorded is the library's affair (`kernels.recorder_for`): a list of calls on NumPy, a CUDA graph on
CuPy. What a recording needs is the same everywhere and stands here: state and batch live in arrays that are never
exchanged, and what cannot be recorded runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .backend import Tree, leaves, tree_map
from .training import MOST

__all__ = ["Replay"]

ATTEMPTS = 5  # batches of a shape after which nobody tries to record it any more
Step = Callable[[Tree, Tree], Tree]


class Replay:
    """`run(state, batches) -> state`, by recordings.

    The first batch of a shape runs as it is: many shapes (a short last batch, `train_on_batch` called once)
    come only once. The second is recorded, the others are replays.

    Args:
        step: a pure function (state, batch) -> state.
        recorder: `record(step, state, batch) -> play` or its `CannotRecord`; `own`, `new` and `copy`, which handle
            arrays that stay; `surroundings`, a context in which steps run.
    """

    def __init__(self, step: Step, recorder: Any) -> None:
        self.step, self.recorder = step, recorder
        self.state: Tree = None  # the arrays that stay
        self.seen: dict[Any, int] = {}  # by shapes: batches that were not replayed
        self.recordings: dict[Any, tuple[Callable[[], None], list[Any]]] = {}  # by shapes: play, its batch

    def __call__(self, state: Tree, batches: Sequence[Tree]) -> Tree:
        """Take one step per batch. The state is donated."""
        with self.recorder.surroundings():
            for batch in batches:
                state = self._one(state, batch)
        return state

    def _one(self, state: Tree, batch: Tree) -> Tree:
        given = leaves(batch)
        key = tuple([a.shape for a in given])
        recording = self.recordings.get(key)
        if recording is None:
            return self._without(key, state, batch)
        play, room = recording
        state = self._settle(state)
        for place, a in zip(room, given):
            self.recorder.copy(place, a)
        play()
        return state

    def _without(self, key: Any, state: Tree, batch: Tree) -> Tree:
        seen = self.seen[key] = self.seen.get(key, 0) + 1
        if 1 < seen < ATTEMPTS:
            state, room = self._settle(state), tree_map(self.recorder.new, batch)
            try:
                play = self.recorder.record(self.step, state, room)
            except self.recorder.CannotRecord:
                return self.step(state, batch)
            while len(self.recordings) >= MOST:  # the oldest go
                del self.recordings[next(iter(self.recordings))]
            self.recordings[key] = (play, leaves(room))
            return state
        return self.step(state, batch)

    def _settle(self, state: Tree) -> Tree:
        """Return the state in the arrays that stay; at first, those that it comes in (it is donated)."""
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
