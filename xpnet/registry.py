"""Names <-> classes, and objects <-> plain dictionaries, for everything that has a Keras name."""

from __future__ import annotations

import inspect
import re
from typing import Any, Generic, TypeVar

from .errors import InvalidTypeError, InvalidValueError, unknown_name

__all__ = ["Configurable", "Registry", "snake_case"]

T = TypeVar("T", bound="Configurable")


def snake_case(name: str) -> str:
    """Return a class name as an identifier.

    >>> snake_case("HeNormal"), snake_case("PReLU"), snake_case("L1L2"), snake_case("RMSprop")
    ('he_normal', 'prelu', 'l1l2', 'rmsprop')
    """
    words = re.sub(r"(?<=[a-z0-9])([A-Z])(?=[a-z])", r"_\1", name)
    return words.lower()


class Configurable:
    """An object that its constructor's arguments, kept under the same names, describe completely."""

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values (numbers, strings, lists, dictionaries)."""
        names = [n for n in inspect.signature(type(self).__init__).parameters if n != "self"]
        return {name: _plain(getattr(self, name)) for name in names if hasattr(self, name)}

    @classmethod
    def from_config(cls: type[T], config: dict[str, Any]) -> T:
        """Return a new object of this class from what `get_config` gave."""
        return cls(**config)

    def __repr__(self) -> str:
        """Return the constructor's call, without what is left at its default."""
        parameters = inspect.signature(type(self).__init__).parameters.values()
        given = {p.name: getattr(self, p.name, p.default) for p in parameters if hasattr(self, p.name)}
        shown = [f"{p.name}={given[p.name]!r}" for p in parameters
                 if p.name in given and not _is_default(given[p.name], p.default)]  # fmt: skip
        return f"{type(self).__name__}({', '.join(shown)})"


def _is_default(value: Any, default: Any) -> bool:
    """Return whether a setting is what the constructor makes of its default."""
    if isinstance(value, Configurable) and isinstance(default, str):
        return snake_case(repr(value)) == f"{default}()"
    return (
        type(value) is type(default)
        and isinstance(value, (int, float, str, tuple, type(None)))
        and value == default
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Configurable):
        return {"class_name": type(value).__name__, "config": value.get_config()}
    return list(value) if isinstance(value, tuple) else value


class Registry(Generic[T]):
    """The classes of one kind, by class name, snake-case name and aliases.

    Args:
        kind: what an error calls them, such as `"activation"`.
        base: the class they all derive from.
    """

    def __init__(self, kind: str, base: type[T]) -> None:
        self.kind, self.base = kind, base
        self.classes: dict[str, type[T]] = {}

    def add(self, *classes: type[T], **aliases: type[T]) -> None:
        """Register classes under their own names, and under aliases."""
        for cls in classes:
            self.classes[cls.__name__] = self.classes[snake_case(cls.__name__)] = cls
        self.classes.update(aliases)

    def find(self, name: object, custom_objects: dict[str, type] | None = None) -> type[T]:
        """Return the class of that name.

        Raises:
            UnknownNameError: nobody has registered it; the message names the nearest ones.
        """
        known = {**self.classes, **(custom_objects or {})}
        if not isinstance(name, str) or (name not in known and name.lower() not in known):
            raise unknown_name(self.kind, name, {n for n in known if n == n.lower()} or known)
        return known[name] if name in known else known[name.lower()]

    def get(self, identifier: Any, custom_objects: dict[str, type] | None = None) -> T:
        """Return an object: itself, or made from a name, a class or a `{"class_name", "config"}` pair.

        Raises:
            UnknownNameError: no such name. InvalidTypeError: nothing of this kind.
        """
        if isinstance(identifier, self.base):
            return identifier
        if isinstance(identifier, str):
            return self.find(identifier, custom_objects)()
        if isinstance(identifier, type) and issubclass(identifier, self.base):
            return identifier()
        if isinstance(identifier, dict) and set(identifier) == {"class_name", "config"}:
            cls = self.find(identifier["class_name"], custom_objects)
            config = identifier["config"]
            try:
                return cls.from_config(config)
            except TypeError as error:
                raise InvalidValueError(
                    f"{self.kind} {cls.__name__} can't be made ({error}); got {config}"
                ) from error
        raise InvalidTypeError(
            f"a {self.kind} must be a name or an object of {self.base.__name__}; got {identifier!r}"
        )
