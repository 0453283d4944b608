"""Cache results that were derived from a part, until its settings change."""

from __future__ import annotations

from typing import Any

from ..core.config import fingerprint
from ..core.settings import changes

__all__ = ["Remembered"]

MAX_PARTS = 64  # largest number of parts with cached results


class _Entry:
    def __init__(self, part: Any, seen: int, settings: Any) -> None:
        self.part = part  # keeps the part alive, so no other object gets its id
        self.seen, self.settings = seen, settings
        self.results: dict[Any, Any] = {}


class Remembered:
    """Cached results by part and key.

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
        """Return the result for a part with its current settings; None if there is none yet."""
        entry = self._entries.get(id(part))
        return None if entry is None or entry.seen != changes.count else entry.results.get(key)

    def of(self, part: Any) -> dict[Any, Any]:
        """Return the dictionary of results for a part with its current settings."""
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
