"""What was made from a part, for as long as its settings stay as they are."""

from __future__ import annotations

from typing import Any

from ..core.config import fingerprint
from ..core.settings import changes

__all__ = ["Remembered"]

MAX_PARTS = 64  # parts whose results are kept


class _Entry:
    def __init__(self, part: Any, seen: int, settings: Any) -> None:
        self.part = part  # kept, so that no other object gets its id
        self.seen, self.settings = seen, settings
        self.results: dict[Any, Any] = {}


class Remembered:
    """Results by part and key.

    >>> from xpnet.activations import LeakyReLU
    >>> known, part = Remembered(), LeakyReLU(0.1)
    >>> known.of(part)["key"] = "result"
    >>> known.get(part, "key")
    'result'
    >>> part.negative_slope = 0.2
    >>> known.get(part, "key")
    """

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}

    def get(self, part: Any, key: Any) -> Any:
        """Return the result for a part with the settings that it has now; None if there is none yet."""
        entry = self._entries.get(id(part))
        return None if entry is None or entry.seen != changes.count else entry.results.get(key)

    def of(self, part: Any) -> dict[Any, Any]:
        """Return the results for a part with the settings that it has now, to look up and to add to."""
        entry, seen = self._entries.get(id(part)), changes.count
        if entry is not None and entry.seen == seen:
            return entry.results
        settings = fingerprint(dict(vars(part)))
        if entry is None or entry.settings != settings:
            while len(self._entries) >= MAX_PARTS:
                self._entries.pop(next(iter(self._entries)), None)
            entry = self._entries[id(part)] = _Entry(part, seen, settings)
        entry.seen = seen
        return entry.results
