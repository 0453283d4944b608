"""Names <-> classes, and objects <-> plain dictionaries, for everything that has a Keras name."""

from __future__ import annotations

import inspect
import numbers
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, Generic, TypeVar, dataclass_transform

from .errors import InvalidTypeError, InvalidValueError, UnknownNameError, unknown_name
from .settings import Setting, changes, constructor, part, setting, settings_of

__all__ = ["Configurable", "Registry", "custom_object_scope", "fingerprint", "overrides", "plain", "snake_case"]

T = TypeVar("T", bound="Configurable")


class _Custom(threading.local):
    """The classes that `custom_object_scope` has made known in this thread, by name."""

    classes: Mapping[str, type] = {}


_custom = _Custom()
_registries: list[Registry[Any]] = []  # of all kinds


@contextmanager
def custom_object_scope(classes: Mapping[str, type] | None) -> Iterator[None]:
    """While the block runs, let configs refer to these classes by name, in this thread only.

    Raises:
        InvalidTypeError: `classes` is no dictionary.

    >>> class Mine(Configurable):
    ...     pass
    >>> class Holder(Configurable):
    ...     def __init__(self, part=None):
    ...         self.part = part
    >>> with custom_object_scope({"Mine": Mine}):
    ...     type(Holder.from_config(Holder(Mine()).get_config()).part).__name__
    'Mine'
    """
    if not isinstance(classes, (Mapping, type(None))):
        raise InvalidTypeError(f"custom objects must be a dictionary of classes by name; got {classes!r}")
    before = _custom.classes
    _custom.classes = {**before, **(classes or {})}
    try:
        yield
    finally:
        _custom.classes = before


def snake_case(name: str) -> str:
    """Return a class name as an identifier.

    >>> snake_case("HeNormal"), snake_case("PReLU"), snake_case("L1L2"), snake_case("RMSprop")
    ('he_normal', 'prelu', 'l1l2', 'rmsprop')
    """
    words = re.sub(r"(?<=[a-z0-9])([A-Z])(?=[a-z])", r"_\1", name)
    return words.lower()


def overrides(part: Any, name: str, other: str) -> bool:
    """Return whether a class (or object) has `name` from a class below the one that it has `other` from.

    >>> class A: one = two = 1
    >>> class B(A): one = 2
    >>> overrides(B, "one", "two"), overrides(B, "two", "one"), overrides(A, "one", "two")
    (True, False, False)
    """
    places = part.__mro__ if isinstance(part, type) else (part, *type(part).__mro__)
    first, second = (next(i for i, p in enumerate(places) if key in vars(p)) for key in (name, other))
    return first < second


@dataclass_transform(eq_default=False, field_specifiers=(setting, part))
class Configurable:
    """An object that its constructor's arguments, kept under the same names, describe completely.

    A class declares its arguments as settings (`xpnet.setting`) and gets its constructor from them. A class with
    an `__init__` of its own keeps its arguments as attributes of the same names.
    """

    _settings: ClassVar[Mapping[str, Setting]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the constructor of a class, unless it has its own."""
        super().__init_subclass__(**kwargs)
        before, cls._settings = cls._settings, settings_of(cls)
        if "__init__" not in vars(cls) and list(cls._settings.items()) != list(before.items()):
            setattr(cls, "__init__", constructor(cls))  # noqa: B010 - a method

    def __post_init__(self) -> None:
        """Prepare what is no setting, when the settings are there."""

    def check_settings(self) -> None:
        """Raise if settings do not go together; called after the constructor and after each assignment."""

    def check_change(self, name: str, value: Any) -> None:
        """Raise if a `fixed` setting can't change any more."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Check a setting whenever it is assigned; if that fails, it keeps its value."""
        declared = self._settings.get(name)
        if declared is None:
            object.__setattr__(self, name, value)
        else:
            self._assign(name, declared, value)
        changes.count += 1

    def _assign(self, name: str, declared: Setting, value: Any) -> None:
        value, kept = declared.checked(name, value), vars(self)
        if declared.fixed:
            self.check_change(name, value)
        before = dict(kept)
        kept[name] = value
        try:
            self.check_settings()
        except Exception:
            kept.clear()
            kept.update(before)
            raise

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values (numbers, strings, lists, dictionaries)."""
        return {name: plain(value) for name, value in _given(self).items()}

    @classmethod
    def from_config(cls: type[T], config: dict[str, Any]) -> T:
        """Return a new object of this class from what `get_config` gave, its parts made first.

        Raises:
            UnknownNameError: a part's class is not known (see `custom_object_scope`).
        """
        return cls(**{name: _made(value) for name, value in config.items()})

    def __repr__(self) -> str:
        """Return the constructor's call, without what is left at its default."""
        parameters = inspect.signature(type(self).__init__).parameters
        shown = [f"{name}={value!r}" for name, value in _given(self).items()
                 if not _is_default(value, parameters[name].default)]  # fmt: skip
        return f"{type(self).__name__}({', '.join(shown)})"


def _given(part: Any) -> dict[str, Any]:
    """Return the constructor's arguments that a part keeps as attributes."""
    cls: Any = type(part)
    values = {name: getattr(part, name) for name in _arguments(cls) if hasattr(part, name)}
    return {name: value for name, value in values.items() if not isinstance(value, Setting)}


def fingerprint(value: Any, leave_out: Collection[str] = ()) -> Any:
    """Return something that compares equal as long as the settings of a part, and of its parts, do not change.

    Args:
        value: a part, or a list of parts. leave_out: names of settings that do not count.
    """
    return _own(value, leave_out, ()) if isinstance(value, Configurable) else _mark(value, leave_out, ())


def _own(value: Configurable, leave_out: Collection[str], around: tuple[int, ...]) -> Any:
    around = (*around, id(value))
    return type(value), [(k, _mark(v, leave_out, around)) for k, v in _given(value).items() if k not in leave_out]


def _mark(value: Any, leave_out: Collection[str], around: tuple[int, ...]) -> Any:
    """Return what stands for a value. Args: around: what it is in (something may contain itself)."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return type(value), value
    if id(value) in around:
        return _Same(value)
    if isinstance(value, Configurable):  # another object may hide another state
        return _Same(value), _own(value, leave_out, around)
    around = (*around, id(value))
    if isinstance(value, Mapping):
        return type(value), [(k, _mark(v, leave_out, around)) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [_mark(v, leave_out, around) for v in value]
    return _Same(value)


class _Same:
    """Equal to another of the same object, which it keeps alive."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def _is_default(value: Any, default: Any) -> bool:
    """Return whether a setting is what the constructor makes of its default."""
    if isinstance(value, Configurable) and isinstance(default, str):
        return snake_case(repr(value)) == f"{default}()"
    return (
        type(value) is type(default)
        and isinstance(value, (int, float, str, tuple, type(None)))
        and value == default
    )


def plain(value: Any) -> Any:
    """Return a value of a config as numbers, strings, lists and dictionaries; what can't be so stays as it is.

    >>> import fractions
    >>> plain({"shape": (2, 3), "rate": fractions.Fraction(1, 4)})
    {'shape': [2, 3], 'rate': 0.25}
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Configurable):
        return {"class_name": type(value).__name__, "config": plain(value.get_config())}
    if isinstance(value, dict):
        return {plain(key): plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):  # numbers and arrays of NumPy, PyTorch, JAX
        return value.tolist()
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _is_config(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"class_name", "config"} and isinstance(value["config"], dict)


def _made(value: Any) -> Any:
    """Undo `plain`: make the parts that a value of a config describes.

    Where kinds share a class name (the layer `Tanh`, the activation `Tanh`), the arguments in the config decide,
    and a class of one's own comes first; where that is not enough, the constructor gets the dictionary.
    """
    if isinstance(value, list):
        return [_made(v) for v in value]
    if _is_config(value):
        found = _classes(value["class_name"])
        if not found:
            raise UnknownNameError(
                "unknown class of a part: a class of one's own must be in `custom_objects`; got "
                f"{value['class_name']!r}"
            )
        if len(found) > 1:
            found = [cls for cls in found if set(_arguments(cls)) == set(value["config"])]
        if len(found) == 1 or (found and found[0] is _lookup(_custom.classes, value["class_name"])):
            return found[0].from_config(value["config"])
    if isinstance(value, dict):
        return {key: _made(v) for key, v in value.items()}
    return value


@cache
def _arguments(cls: Any) -> tuple[str, ...]:
    """Return the names of the constructor's arguments."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return tuple(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))


def _classes(name: Any) -> list[Any]:
    """Return the classes of that name: one's own, and those of every kind that has one."""
    found = [_lookup(classes, name) for classes in (_custom.classes, *(r.classes for r in _registries))]
    return list(dict.fromkeys(cls for cls in found if cls is not None))


def _lookup(classes: Mapping[str, Any], name: Any) -> Any:
    """Return the class of that name, also where it is in lower case; None without such."""
    return classes.get(name, classes.get(name.lower())) if isinstance(name, str) else None


class Registry(Generic[T]):
    """The classes of one kind, by class name, snake-case name and aliases.

    Args:
        kind: what an error calls them, such as `"activation"`.
        base: the class they all derive from.
    """

    def __init__(self, kind: str, base: type[T]) -> None:
        self.kind, self.base = kind, base
        self.classes: dict[str, type[T]] = {}
        _registries.append(self)

    def add(self, *classes: type[T], **aliases: type[T]) -> None:
        """Register classes under their own names, and under aliases."""
        for cls in classes:
            self.classes[cls.__name__] = self.classes[snake_case(cls.__name__)] = cls
        self.classes.update(aliases)

    def find(self, name: object, custom_objects: Mapping[str, type] | None = None) -> type[T]:
        """Return the class of that name: of `custom_objects` and `custom_object_scope`, then of xpnet's own.

        Raises:
            UnknownNameError: nobody has registered it; the message names the nearest ones.
        """
        known = self._known(custom_objects)
        found = _lookup(known, name)
        if found is None:
            raise unknown_name(self.kind, name, {n for n in known if n == n.lower()} or known)
        return found

    def __contains__(self, name: object) -> bool:
        """Return whether a class has that name."""
        return _lookup(self._known(), name) is not None

    def _known(self, custom_objects: Mapping[str, type] | None = None) -> dict[str, type[T]]:
        custom = {**_custom.classes, **(custom_objects or {})}
        ours = {n: cls for n, cls in custom.items() if isinstance(cls, type) and issubclass(cls, self.base)}
        return {**self.classes, **ours}

    def get(self, identifier: Any, custom_objects: Mapping[str, type] | None = None) -> T:
        """Return an object: itself, or made from a name, a class or a `{"class_name", "config"}` pair.

        Args:
            custom_objects: classes of one's own by name, for the object and for all its parts.

        Raises:
            UnknownNameError: no such name. InvalidTypeError: nothing of this kind.
        """
        if isinstance(identifier, self.base):
            return identifier
        if isinstance(identifier, str):
            return self.find(identifier, custom_objects)()
        if isinstance(identifier, type) and issubclass(identifier, self.base):
            return identifier()
        if _is_config(identifier):
            cls = self.find(identifier["class_name"], custom_objects)
            config = identifier["config"]
            try:
                with custom_object_scope(custom_objects):
                    return cls.from_config(config)
            except InvalidTypeError:
                raise
            except TypeError as error:
                raise InvalidValueError(
                    f"{self.kind} {cls.__name__} can't be made ({error}); got {config}"
                ) from error
        raise InvalidTypeError(
            f"a {self.kind} must be a name or an object of {self.base.__name__}; got {identifier!r}"
        )
