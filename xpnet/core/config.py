"""Look up classes by Keras names, and convert objects to and from plain dictionaries."""

from __future__ import annotations

import inspect
import numbers
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, Generic, TypeVar, dataclass_transform, overload

from ..errors import InvalidTypeError, InvalidValueError, UnknownNameError, unknown_name
from .settings import REQUIRED, Setting, changes, constructor, part, setting, settings_of

__all__ = [
    "Configurable", "Registry", "custom_object_scope", "fingerprint", "is_described", "overrides", "plain",
    "snake_case",
]  # fmt: skip

T = TypeVar("T", bound="Configurable")
C = TypeVar("C", bound=type)


class _Custom(threading.local):
    """The classes of this thread's `custom_object_scope`, by name."""

    classes: Mapping[str, type] = {}


_custom = _Custom()
_registries: list[Registry[Any]] = []  # of all kinds


@contextmanager
def custom_object_scope(classes: Mapping[str, type] | None) -> Iterator[None]:
    """Let configs refer to these classes by name within the block, in this thread only.

    Raises:
        InvalidTypeError: `classes` is not a dictionary.

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
    """Return whether a class (or object) defines `name` in a more derived class than `other`.

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
    """Base class of parts: objects fully described by the arguments of their constructors.

    A class declares its arguments as settings (`xpnet.setting`), which generate its constructor. A class with its
    own `__init__` must store its arguments as attributes of the same names.
    """

    argument_order: ClassVar[tuple[str, ...]] = ()
    _settings: ClassVar[Mapping[str, Setting]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Generate the constructor of a class that does not define one."""
        super().__init_subclass__(**kwargs)
        before, cls._settings = cls._settings, settings_of(cls)
        if "__init__" not in vars(cls) and list(cls._settings.items()) != list(before.items()):
            setattr(cls, "__init__", constructor(cls))  # noqa: B010 - a method

    def __post_init__(self) -> None:
        """Initialize attributes that are not settings; called when the settings are set."""

    def check_settings(self) -> None:
        """Raise if settings are incompatible; called by the constructor and after each assignment."""

    def check_change(self, name: str, value: Any) -> None:
        """Raise if a `fixed` setting can no longer change."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Check a setting at each assignment; if the check fails, the old value remains."""
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
        before, kept[name] = kept.get(name), value
        try:
            self.check_settings()
        except BaseException:  # also on Ctrl-C: restore the setting, then re-raise
            kept[name] = before
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled part; settings that its version did not have get their defaults."""
        lacking = {name: declared for name, declared in self._settings.items() if name not in state}
        found = {k: s.checked(k, s.default) for k, s in lacking.items() if s.default is not REQUIRED}
        vars(self).update(found, **state)
        self.check_settings()

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values (numbers, strings, lists, dictionaries)."""
        return {name: plain(value) for name, value in _given(self).items()}

    @classmethod
    def from_config(cls: type[T], config: dict[str, Any]) -> T:
        """Return a new object from the result of `get_config`; its parts are made first.

        Raises:
            UnknownNameError: a part's class is unknown (see `custom_object_scope`).
        """
        return cls(**{name: _made(value) for name, value in config.items()})

    def __repr__(self) -> str:
        """Return the constructor call, without arguments that have their default."""
        parameters = inspect.signature(type(self).__init__).parameters
        shown = [f"{name}={value!r}" for name, value in _given(self).items()
                 if not _is_default(value, parameters[name].default)]  # fmt: skip
        return f"{type(self).__name__}({', '.join(shown)})"


def _given(part: Any, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the constructor arguments that a part stores as attributes, or the attributes of these names."""
    cls: Any = type(part)
    names = _arguments(cls) if names is None else names
    values = {name: getattr(part, name) for name in names if hasattr(part, name)}
    return {name: value for name, value in values.items() if not isinstance(value, Setting)}


def is_described(part: Configurable, *others: str) -> bool:
    """Return whether all attributes of a part are settings or arguments, so that a model notices changes.

    Args:
        others: further attributes that a model compares.
    """
    cls: Any = type(part)
    return set(vars(part)) <= {*_noticed(cls), "name", *others}


@cache
def _noticed(cls: Any) -> tuple[str, ...]:
    """Return the names of the arguments and settings; an `__init__` of the class need not take all settings."""
    return tuple(dict.fromkeys((*_arguments(cls), *cls._settings)))


def fingerprint(value: Any, leave_out: Collection[str] = ()) -> Any:
    """Return a value that compares equal until a setting of a part, or of its own parts, changes.

    Args:
        value: a part, or a list of parts. leave_out: names of settings to ignore.
    """
    return _own(value, leave_out, ()) if isinstance(value, Configurable) else _mark(value, leave_out, ())


def _own(value: Configurable, leave_out: Collection[str], around: tuple[int, ...]) -> Any:
    around = (*around, id(value))
    cls: Any = type(value)
    found = _given(value, [name for name in _noticed(cls) if name not in leave_out])
    return cls, [(k, _mark(v, leave_out, around)) for k, v in found.items()]


def _mark(value: Any, leave_out: Collection[str], around: tuple[int, ...]) -> Any:
    """Return a fingerprint of a value. Args: around: ids of its containers, to detect cycles."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return type(value), value
    if id(value) in around:
        return _Same(value)
    if isinstance(value, Configurable):  # compare identity too: objects may have hidden state
        return _Same(value), _own(value, leave_out, around)
    around = (*around, id(value))
    if isinstance(value, Mapping):
        return type(value), [(k, _mark(v, leave_out, around)) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [_mark(v, leave_out, around) for v in value]
    return _Same(value)


class _Same:
    """Compare equal if it wraps the same object; keeps the object alive."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def _is_default(value: Any, default: Any) -> bool:
    """Return whether a setting is the result of its default."""
    if isinstance(value, Configurable) and isinstance(default, str):
        return snake_case(repr(value)) == f"{default}()"
    return (
        type(value) is type(default)
        and isinstance(value, (int, float, str, tuple, type(None)))
        and value == default
    )


def config_of(part: Configurable) -> dict[str, Any]:
    """Return `get_config`, if the constructor can be called with it.

    Raises:
        InvalidValueError: it lacks an argument, which would be lost in a file.
    """
    config = part.get_config()
    cls: Any = type(part)
    lost = [name for name in _arguments(cls) if name not in config]
    if lost and not any(overrides(cls, name, "__init__") for name in ("get_config", "from_config")):
        raise InvalidValueError(
            f"{cls.__name__}.__init__ must keep its argument {lost[0]!r} as self.{lost[0]}, or get_config must "
            f"return it: a file can't describe the object otherwise; got a config of {sorted(config)}"
        )
    return config


def plain(value: Any) -> Any:
    """Convert a value to numbers, strings, lists and dictionaries; leave other values unchanged.

    >>> import fractions
    >>> plain({"shape": (2, 3), "rate": fractions.Fraction(1, 4)})
    {'shape': [2, 3], 'rate': 0.25}
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Configurable):
        return {"class_name": type(value).__name__, "config": plain(config_of(value))}
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
    """Undo `plain`: make the parts that a config value describes.

    If several kinds share a class name (the layer `Tanh`, the activation `Tanh`), the config's arguments decide,
    and user-defined classes come first. If still ambiguous, the constructor gets the dictionary.
    """
    if isinstance(value, list):
        return [_made(v) for v in value]
    if _is_config(value):
        found = _classes(value["class_name"])
        if not found:
            raise UnknownNameError(
                f"unknown class of a part: pass your own classes in `custom_objects`; got {value['class_name']!r}"
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
    """Return the names of the constructor arguments."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return tuple(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))


def _classes(name: Any) -> list[Any]:
    """Return the classes of that name: user-defined ones, then those of every kind."""
    found = [_described(classes, name) for classes in (_custom.classes, *(r.classes for r in _registries))]
    return list(dict.fromkeys(cls for cls in found if cls is not None))


def _described(classes: Mapping[str, Any], name: Any) -> Any:
    """Return the class that a config names: a user-defined `Swish` is not what xpnet calls "swish"."""
    cls = _lookup(classes, name)
    return cls if cls is not None and (name in classes or cls.__name__.lower() == name.lower()) else None


def _lookup(classes: Mapping[str, Any], name: Any) -> Any:
    """Return the class of that name, exact or in lower case; None if there is none."""
    return classes.get(name, classes.get(name.lower())) if isinstance(name, str) else None


class Registry(Generic[T]):
    """The classes of one kind, by class name, snake-case name and alias.

    Args:
        kind: their name in error messages, such as `"activation"`.
        base: their common base class.
    """

    def __init__(self, kind: str, base: type[T]) -> None:
        self.kind, self.base = kind, base
        self.classes: dict[str, type[T]] = {}
        _registries.append(self)

    def add(self, *classes: type[T], **aliases: type[T]) -> None:
        """Register classes under their own names and under aliases."""
        for cls in classes:
            self.classes[cls.__name__] = self.classes[snake_case(cls.__name__)] = cls
        self.classes.update(aliases)

    @overload
    def register(self, cls: C, /) -> C: ...
    @overload
    def register(self, *aliases: str) -> Callable[[C], C]: ...
    def register(self, *given: Any) -> Any:
        """Register the class that follows, under its own names and the given aliases.

        >>> from xpnet.activations import Activation
        >>> known = Registry("activation", Activation)
        >>> @known.register("id")
        ... class Identity(Activation):
        ...     pass
        >>> known.find("id").__name__, known.exports()
        ('Identity', ['Identity'])
        """
        if given and isinstance(given[0], type):
            self.add(given[0])
            return given[0]

        def registered(cls: Any) -> Any:
            self.add(cls, **dict.fromkeys(given, cls))
            return cls

        return registered

    def exports(self) -> list[str]:
        """Return the names of all registered classes, for `__all__`."""
        return sorted({cls.__name__ for cls in self.classes.values()})

    def find(self, name: object, custom_objects: Mapping[str, type] | None = None) -> type[T]:
        """Return the class of that name from `custom_objects`, `custom_object_scope` or xpnet, in this order.

        Raises:
            UnknownNameError: no such class is registered; the message suggests the closest names.
        """
        return self._find(_lookup, name, custom_objects)

    def _find(self, look_up: Callable[..., Any], name: object, custom_objects: Any) -> type[T]:
        known = self._known(custom_objects)
        found = look_up(known, name)
        if found is None:
            raise unknown_name(self.kind, name, {n for n in known if n == n.lower()} or known)
        return found

    def identifier(self, cls: type[T]) -> str:
        """Return the name of a class as an identifier: of those in use the one that separates most words.

        >>> from xpnet.losses import Huber, KLDivergence, registry
        >>> registry.identifier(Huber), registry.identifier(KLDivergence)
        ('huber', 'kl_divergence')
        """
        own = snake_case(cls.__name__)
        same = [name for name in self.classes if name.replace("_", "") == own.replace("_", "")]
        return max([own, *same], key=lambda name: name.count("_"))

    def __contains__(self, name: object) -> bool:
        """Return whether a class has that name."""
        return _lookup(self._known(), name) is not None

    def _known(self, custom_objects: Mapping[str, type] | None = None) -> dict[str, type[T]]:
        custom = {**_custom.classes, **(custom_objects or {})}
        ours = {n: cls for n, cls in custom.items() if isinstance(cls, type) and issubclass(cls, self.base)}
        return {**self.classes, **ours}

    def get(self, identifier: Any, custom_objects: Mapping[str, type] | None = None) -> T:
        """Return an object of this kind: the given one, or made from a name, a class or a config.

        Args:
            identifier: an object, name, class, or `{"class_name": ..., "config": ...}`.
            custom_objects: user-defined classes by name, for the object and all its parts.

        Raises:
            UnknownNameError: unknown name. InvalidTypeError: not an object of this kind.
        """
        if isinstance(identifier, self.base):
            absent = set(getattr(identifier, "_settings", ())) - set(vars(identifier))
            if absent:
                raise InvalidTypeError(
                    f"{type(identifier).__name__}.__init__ must call super().__init__(); "
                    f"got a {self.kind} without {', '.join(sorted(absent))}"
                )
            return identifier
        if isinstance(identifier, str):
            return self.find(identifier, custom_objects)()
        if isinstance(identifier, type) and issubclass(identifier, self.base):
            return identifier()
        if _is_config(identifier):
            cls = self._find(_described, identifier["class_name"], custom_objects)
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
