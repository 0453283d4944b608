"""What was made from a part, for as long as its settings stay as they are."""

from __future__ import annotations

from operator import is_
from typing import Any, NamedTuple

__all__ = ["Remembered"]

MOST = 64  # parts whose results are kept


class _Entry(NamedTuple):
    part: Any  # kept, so that no other object gets its id
    settings: tuple[Any, ...]
    results: dict[Any, Any]


class Remembered:
    """Results by part and key.

    >>> from types import SimpleNamespace
    >>> known, part = Remembered(), SimpleNamespace(rate=0.1)
    >>> known.of(part)["key"] = "result"
    >>> known.of(part)
    {'key': 'result'}
    >>> part.rate = 0.2
    >>> known.of(part)
    {}
    """

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}

    def of(self, part: Any) -> dict[Any, Any]:
        """Return the results for a part with the settings that it has now, to look up and to add to."""
        settings = tuple(vars(part).values())
        entry = self._entries.get(id(part))
        if entry is None or len(entry.settings) != len(settings) or not all(map(is_, entry.settings, settings)):
            while len(self._entries) >= MOST:
                self._entries.pop(next(iter(self._entries)), None)
            entry = self._entries[id(part)] = _Entry(part, settings, {})
        return entry.results
