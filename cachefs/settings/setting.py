"""What a setting is, and what a set of settings is: values, each with where it came from.

Owns the declaration (:class:`Setting`) and the immutable instance of a table of them
(:class:`SettingsTable`). Knows no setting by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NoReturn, Self, TypeVar, overload

from cachefs.errors import InvalidValueError
from cachefs.settings.kinds import Kind, Plain

T = TypeVar("T")

DEFAULT: Final = "default"
"""Where a value came from that nobody gave."""


@dataclass(frozen=True, slots=True)
class Given:
    """A value and its *origin*: ``default``, ``file /PATH``, ``environment CACHEFS_X``,
    ``command line`` or ``control/NAME``."""

    value: Any
    origin: str = DEFAULT


@dataclass(frozen=True, eq=False)
class Setting(Generic[T]):
    """One entry of a table, and the attribute that reads it: of an instance the value, of the class
    the entry itself.

    *help* is one line, the same in ``--help``, the README and the documentation of its control
    file. *default* is its value where nobody gives one, or *compute* gives that, told all settings
    without a computed default; *default_text* says in ``--help`` what neither shows. *key* is its
    name in a file; the option and the variable are named after it, or *short* is the option, too.
    A *positional* one is an argument of the command, and neither option, key nor variable.
    *control* is the control file that shows it, and that changes it where *runtime* is set."""

    kind: Kind[T]
    default: T | None = None
    help: str = ""
    compute: Callable[[Any], T] | None = field(default=None, kw_only=True)
    default_text: str | None = field(default=None, kw_only=True)
    key: str = field(default="", kw_only=True)
    short: str = field(default="", kw_only=True)
    positional: bool = field(default=False, kw_only=True)
    runtime: bool = field(default=False, kw_only=True)
    control: str = field(default="", kw_only=True)
    name: str = field(default="", init=False)

    def __set_name__(self, owner: type, name: str) -> None:
        object.__setattr__(self, "name", name)
        if not self.key:
            object.__setattr__(self, "key", name.replace("_", "-"))

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: "SettingsTable", owner: type) -> T: ...
    def __get__(self, instance: "SettingsTable | None", owner: type) -> Self | T:
        if instance is None:
            return self
        value: T = instance.given[self.name].value
        return value

    def __set__(self, instance: object, value: object) -> NoReturn:
        raise AttributeError(f"{self.name} cannot be set: settings are replaced, not changed")

    @property
    def option(self) -> str:
        """Its long option."""
        return f"--{self.key}"

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"CACHEFS_{self.key.upper().replace('-', '_')}"

    @property
    def shown_default(self) -> str:
        """Its default in words; empty where it has none."""
        if self.default_text is not None:
            return self.default_text
        if self.default is None or self.kind.is_flag or self.kind.several:
            return ""
        return self.kind.write(self.default)


class SettingsTable:
    """The base of a table: an immutable set of values, one for each :class:`Setting` of the class.

    What *given* leaves out has its default. Raises InvalidValueError where something without a
    default is missing, or a default cannot be computed; TypeError for what is no setting. Two are
    equal when all values and their origins are."""

    __slots__ = ("given",)

    given: Mapping[str, Given]
    """Every setting's value and origin, by name, in the order of the table."""

    def __init__(self, given: Mapping[str, Given]) -> None:
        entries = self.all()
        unknown = given.keys() - {setting.name for setting in entries}
        if unknown:
            raise TypeError(f"no settings: {', '.join(sorted(unknown))}")
        values = {
            each.name: given.get(each.name, Given(each.default))
            for each in entries
            if each.name in given or each.compute is None
        }
        missing = [each for each in entries if each.positional and values[each.name].value is None]
        if missing:
            raise InvalidValueError(f"{missing[0].name} is missing")
        object.__setattr__(self, "given", values)
        for each in entries:
            if each.name not in values and each.compute is not None:
                values[each.name] = Given(each.compute(self))
        object.__setattr__(self, "given", {each.name: values[each.name] for each in entries})

    @classmethod
    def all(cls) -> tuple[Setting[Any], ...]:
        """Every setting, in the order of the table."""
        return tuple(each for each in vars(cls).values() if isinstance(each, Setting))

    def replace(self, setting: Setting[T], value: T, origin: str) -> Self:
        """These, with another value of *setting*."""
        return type(self)({**self.given, setting.name: Given(value, origin)})

    def shown(self) -> dict[str, dict[str, Plain]]:
        """For people: of each setting its ``value``, without secrets, and where it is ``from``."""
        return {
            each.name: {
                "value": each.kind.shown(self.given[each.name].value),
                "from": self.given[each.name].origin,
            }
            for each in self.all()
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SettingsTable):
            return NotImplemented
        return type(self) is type(other) and self.given == other.given

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shown()})"  # which is what a traceback may show

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name} cannot be set: settings are replaced, not changed")
