"""The kinds of values that a setting may have: how each is read, written and shown.

A value comes as text (from an option, a variable, a control file) or plain, as TOML and JSON have
it (a text, a number, true, a list of texts). Knows no setting by name.
"""

import grp
import pwd
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from cachefs.errors import InvalidValueError
from cachefs.redaction import hide_secrets
from cachefs.settings.paths import absolute, absolute_source
from cachefs.units import (
    Amount,
    format_seconds,
    format_size,
    parse_rate,
    parse_seconds,
    quoted,
)

T = TypeVar("T")
Choice = TypeVar("Choice", bound=str)
Plain = str | int | bool | list[str] | None
"""What TOML and JSON can both hold of a value; None stands for a setting that has none."""


@dataclass(frozen=True)
class Kind(Generic[T]):
    """A kind of value. *parse* reads one text and raises InvalidValueError; *write* gives a text
    that it reads back as an equal value. *metavar* stands for the value in ``--help``, *syntax*
    shows in Markdown what may be written.

    *plain* are the types that a file may have it in, and *wrong* says what is wanted where it has
    another. *several* is a kind of tuples of texts: an option may be repeated, a file may have a
    list, and *split* makes texts of one variable. *rebase* gives what a text in a file means, told
    the file's directory; *hide* takes the secrets out of a text that is shown."""

    parse: Callable[[str], T]
    write: Callable[[T], str] = str
    metavar: str = "TEXT"
    syntax: str = ""
    choices: tuple[str, ...] = ()
    plain: tuple[type, ...] = (str,)
    wrong: str = "not a text, or empty"
    several: bool = False
    split: Callable[[str], Sequence[str]] = str.split
    rebase: Callable[[str, Path], str] = lambda text, _: text
    hide: Callable[[str], str] = str

    @property
    def is_flag(self) -> bool:
        """Whether the option takes no value."""
        return self.plain == (bool,)

    def from_texts(self, texts: Sequence[str]) -> T:
        """The value that *texts* give together, or the last one where there can be one only."""
        if not self.several:
            return self.parse(texts[-1])
        values: Any = (each for text in texts for each in self._parse_several(text))
        several: Any = tuple(values)
        return several  # type: ignore[no-any-return] # T is a tuple of texts, by `several`

    def from_text(self, text: str) -> T:
        """The value of one text that may hold several: an environment variable's."""
        return self.from_texts(list(self.split(text)) if self.several else [text])

    def from_plain(self, value: object, home: Path) -> T:
        """The value of what a file in the directory *home* has. Raises InvalidValueError."""
        items = value if self.several and isinstance(value, list) else [value]
        return self.from_texts([self.rebase(self._text(item), home) for item in items])

    def to_plain(self, value: T | None) -> Plain:
        """What :meth:`from_plain` reads back as an equal value."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, tuple):
            return [str(each) for each in value]
        if isinstance(value, int) and str not in self.plain:
            return value
        return self.write(value)

    def shown_text(self, value: T | None) -> str:
        """*value* as one text, without any secret; several have a line each."""
        plain = self.shown(value)
        if isinstance(plain, list):
            return "\n".join(plain)
        return "" if plain is None else str(plain)

    def shown(self, value: T | None) -> Plain:
        """*value* as :meth:`to_plain` gives it, without any secret: for people and logs."""
        plain = self.to_plain(value)
        if isinstance(plain, list):
            return [self.hide(text) for text in plain]
        return self.hide(plain) if isinstance(plain, str) else plain

    def _parse_several(self, text: str) -> Sequence[str]:
        parsed: Any = self.parse(text)
        return tuple(parsed)

    def _text(self, value: object) -> str:
        if isinstance(value, bool):  # which is an int to Python
            if bool in self.plain:
                return str(value).lower()
        elif isinstance(value, str) and not self.choices:
            if str in self.plain and value:
                return value
        elif isinstance(value, self.plain):
            return str(value)
        raise InvalidValueError(self.wrong)


def choice(names: Sequence[Choice]) -> Kind[Choice]:
    """One of *names*."""

    def parse(text: str) -> Choice:
        for name in names:
            if name == text:
                return name
        raise InvalidValueError(wrong)

    wrong = f"not one of {', '.join(names)}"
    syntax = ", ".join(f"`{name}`" for name in names)
    return Kind(parse, choices=tuple(names), wrong=wrong, syntax=syntax)


def maybe(kind: Kind[T]) -> Kind[T | None]:
    """*kind*, for a setting whose default is None."""
    # What a Kind writes is never None: to_plain has seen to that. Its types are one-way only.
    either: Any = kind
    return either  # type: ignore[no-any-return]


def _text(text: str) -> str:
    if not text:
        raise InvalidValueError("empty")
    return text


def _flag(text: str) -> bool:
    word = text.strip().lower()
    if word in _FLAGS:
        return _FLAGS[word]
    raise InvalidValueError(f"{quoted(text)} is none of {', '.join(_FLAGS)}")


_FLAGS: Final = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


def _count(text: str) -> int:
    digits = text.strip()
    if digits.isascii() and digits.isdigit() and 0 < len(digits) <= 9 and int(digits) >= 1:
        return int(digits)
    raise InvalidValueError(f"{quoted(text)} is not a whole number from 1 up")


def _number_of(text: str, what: str, named: Callable[[str], int]) -> int:
    """The number of a user or group. 2**32 - 1 means "unchanged" to the kernel, and nobody."""
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 2**32 - 1:
        return int(text)
    try:
        return named(text)
    except (KeyError, ValueError):
        raise InvalidValueError(f"there is no {what} {quoted(text)}") from None


def _mode(text: str) -> int:
    digits = text.strip().removeprefix("0o")
    try:
        mode = int(digits, 8) if digits.isascii() and digits.isdigit() else -1
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise InvalidValueError(f"{quoted(text)} is no octal mode up to 0777")
    if mode & 0o222:
        raise InvalidValueError(f"{quoted(text)} lets writers in: images are read-only")
    return mode


def _absolute_only(text: str, _: Path) -> str:
    """Unlike a cache directory's, a local source's path is refused in a file unless it is absolute:
    the command line's SOURCE beside it would be meant from another directory."""
    if "://" not in text and not text.startswith("/"):
        # Not quoted: a URL that lacks its scheme may have a password.
        raise InvalidValueError("a source is neither a URL nor an absolute path")
    return text


def _mount_options(text: str) -> tuple[str, ...]:
    """The single options of a ``mount -o`` list: ``a,b`` is a and b."""
    return tuple(option for option in text.split(",") if option)


TEXT: Final = Kind(_text)
PATH: Final = Kind(
    absolute,
    metavar="PATH",
    syntax="a path, in a file from the file's directory",
    rebase=lambda text, home: str(home / text),
)
SOURCE: Final = Kind(
    absolute_source, metavar="URL", rebase=_absolute_only, hide=hide_secrets, syntax="URL or path"
)
SOURCES: Final[Kind[tuple[str, ...]]] = Kind(
    lambda text: (absolute_source(text),),
    metavar="URL",
    syntax="URL or path, repeatable",
    several=True,
    rebase=_absolute_only,
    hide=hide_secrets,
)
MOUNT_OPTIONS: Final = Kind(
    _mount_options,
    metavar="OPTS",
    syntax="`a,b`, repeatable",
    several=True,
    split=lambda text: [text],
)
AMOUNT: Final = Kind(
    Amount.parse,
    metavar="SIZE",
    syntax="`512M`, `10G`, `10GiB`, `5%` of the filesystem",
    plain=(str, int, float),
)
SECONDS: Final = Kind(
    parse_seconds,
    format_seconds,
    metavar="TIME",
    syntax="`86400`, `90s`, `1h`, `1d`",
    plain=(str, int, float),
)
RATE: Final = Kind(
    parse_rate,
    format_size,
    metavar="SIZE",
    syntax="`512K`, `100M`, a second",
    plain=(str, int, float),
)
COUNT: Final = Kind(
    _count,
    metavar="N",
    syntax="a whole number from 1 up",
    plain=(int,),
    wrong="not a whole number from 1 up",
)
USER: Final = Kind(
    lambda text: _number_of(text, "user", lambda name: pwd.getpwnam(name).pw_uid),
    metavar="USER",
    syntax="a user's name or number",
    plain=(str, int),
    wrong="neither a user's name nor a number",
)
GROUP: Final = Kind(
    lambda text: _number_of(text, "group", lambda name: grp.getgrnam(name).gr_gid),
    metavar="GROUP",
    syntax="a group's name or number",
    plain=(str, int),
    wrong="neither a group's name nor a number",
)
MODE: Final = Kind(
    _mode,
    lambda mode: f"{mode:04o}",
    metavar="MODE",
    syntax="`0444`, `440`: octal, without a right to write",
    wrong='not a text like "0444"',
)
FLAG: Final = Kind(_flag, syntax="`true`, `false`", plain=(bool,), wrong="neither true nor false")
