"""Trees: nested tuples, named tuples and dictionaries of arrays, such as the state of a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Stack", "Tree", "leaves", "tree_map"]

Tree = Any  # an array, or a tuple / NamedTuple / dict of trees; None is an empty tree


def tree_map(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply `fn` to every array of a tree (and to the corresponding arrays of `rest`).

    >>> tree_map(lambda a, b: a + b, (1, {"x": 2}), (10, {"x": 20}))
    (11, {'x': 22})
    """
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: tree_map(fn, value, *(r[key] for r in rest)) for key, value in tree.items()}
    if isinstance(tree, tuple):
        branches = [tree_map(fn, *parts) for parts in zip(tree, *rest)]
        return type(tree)(*branches) if hasattr(tree, "_fields") else tuple(branches)
    return fn(tree, *rest)


def leaves(tree: Tree) -> list[Any]:
    """Return the arrays of a tree, in order.

    >>> leaves((1, {"x": (2, None)}))
    [1, 2]
    """
    found: list[Any] = []
    for part in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(part, (tuple, dict)):
            found += leaves(part)
        elif part is not None:
            found.append(part)
    return found


class Stack(Sequence[Tree]):
    """A sequence of trees of the same structure, stored as one tree whose arrays have a leading axis.

    >>> import numpy as np
    >>> Stack((np.arange(6).reshape(3, 2),), 3)[1][0].tolist()
    [2, 3]
    """

    def __init__(self, tree: Tree, length: int) -> None:
        self.tree, self.length = tree, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Tree:
        return tree_map(lambda a: a[index, ...], self.tree)
