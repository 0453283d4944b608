"""Settings: the constructor arguments of a part, each declared once.

    class Dropout(Layer):
        rate: float = setting(number, 0, 1, open_high=True)

This line defines the constructor's argument, the check at every assignment, and the entries in `get_config` and
`repr` (see `xpnet.core.config.Configurable`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["Setting", "changes", "constructor", "flag", "optional", "part", "setting", "settings_of"]

REQUIRED = inspect.Parameter.empty


class Setting:
    """A declared constructor argument (see `setting`)."""

    def __init__(self, check: Callable[[str, Any], Any] | None, default: Any, fixed: bool) -> None:
        self.check, self.default, self.fixed = check, default, fixed

    def checked(self, name: str, value: Any) -> Any:
        """Return the value to store, or raise."""
        return value if self.check is None else self.check(name, value)


def setting(
    check: Callable[..., Any] | None = None,
    *limits: Any,
    default: Any = REQUIRED,
    fixed: bool = False,
    kw_only: bool = False,
    **options: Any,
) -> Any:
    """Declare a constructor argument, as the value of an annotated class attribute.

    Args:
        check: `check(name, value, *limits, **options)` returns the value to store, or raises. It runs at every
            assignment; None accepts any value. `xpnet.errors.number` and `one_of` are such checks.
        default: makes the argument optional.
        fixed: whether the setting can't change once the layer is built.
        kw_only: for type checkers only, which would otherwise put a base class's arguments first.

    >>> from xpnet.errors import number
    >>> from xpnet.core.config import Configurable
    >>> class Ramp(Configurable):
    ...     start: float = setting(number, 0)
    ...     steps: int = setting(number, 1, integer=True, default=100)
    >>> Ramp(0.5, steps=10)
    Ramp(start=0.5, steps=10)
    >>> Ramp(0.5).steps = 0
    Traceback (most recent call last):
    ...
    xpnet.errors.InvalidValueError: steps must be an integer >= 1; got 0
    """
    if check is None:
        return Setting(None, default, fixed)
    return Setting(lambda name, value: check(name, value, *limits, **options), default, fixed)


def part(get: Callable[[Any], Any], *, default: Any = REQUIRED, fixed: bool = False, kw_only: bool = False) -> Any:
    """Declare an argument that is itself a part: `get` makes it from a name or an object.

    >>> from xpnet import activations
    >>> from xpnet.core.config import Configurable
    >>> class Unit(Configurable):
    ...     activation: activations.Activation = part(activations.get, default="tanh")
    >>> Unit("relu").activation
    ReLU()
    """
    return Setting(lambda name, value: get(value), default, fixed)


def optional(check: Callable[..., Any]) -> Callable[..., Any]:
    """Return a check that also accepts None.

    >>> from xpnet.errors import number
    >>> optional(number)("clipnorm", None, 0) is None
    True
    """
    return lambda name, value, *limits, **options: (
        None if value is None else check(name, value, *limits, **options)
    )


def flag(name: str, value: Any) -> bool:
    """Convert a setting to a bool."""
    return bool(value)


def settings_of(cls: type) -> dict[str, Setting]:
    """Return the settings of a class in the order of its constructor's arguments.

    The class's own settings precede those of its bases, as in Keras, and required ones precede all others. Where
    Keras has another order, `argument_order` names the first arguments. A plain class attribute replaces an
    inherited setting, which is then no longer an argument.
    """
    found: dict[str, Setting] = {}
    hidden: set[str] = set()
    for base in cls.__mro__:
        for name, value in vars(base).items():
            if not isinstance(value, Setting):
                hidden.add(name)
            elif name not in hidden:
                found.setdefault(name, value)
    first = [name for name in getattr(cls, "argument_order", ()) if name in found]
    ordered = {name: found[name] for name in (*first, *found)}
    return dict(sorted(ordered.items(), key=lambda item: item[1].default is not REQUIRED))


def constructor(cls: type) -> Callable[..., None]:
    """Return the `__init__` of a class that declares settings."""
    found = settings_of(cls)
    annotations = {
        name: kind for base in reversed(cls.__mro__) for name, kind in inspect.get_annotations(base).items()
    }
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    arguments = [
        inspect.Parameter(name, kind, default=declared.default, annotation=annotations.get(name, REQUIRED))
        for name, declared in found.items()
    ]
    signature = inspect.Signature([inspect.Parameter("self", kind), *arguments])

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}() {error}") from None
        bound.apply_defaults()
        given = bound.arguments
        vars(self).update((name, declared.checked(name, given[name])) for name, declared in found.items())
        self.check_settings()
        self.__post_init__()

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    return __init__


class Changes:
    """Counts assignments to attributes of parts: a model compares its settings only if the count has changed."""

    count = 0


changes = Changes()
