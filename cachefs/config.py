"""The settings of a mount: their names, defaults and spellings.

Owns how a size, a share, a time and a cache directory are written, and the table of what
``cachefs mount`` and its configuration file take. Knows nothing of who uses the values.
"""

import hashlib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

from cachefs.errors import InvalidValueError

MAX_BYTES = 2**63 - 1
"""The longest file that Linux can have (``loff_t``), so the largest size that means anything."""

_UNITS = "KMGTP"
_NUMBER = r"(?P<number>[0-9]{1,30}(?:\.[0-9]{1,30})?)"
_SIZE = re.compile(rf"{_NUMBER} ?(?:(?P<unit>[{_UNITS}])(?P<suffix>iB|B)?|B)?", re.IGNORECASE)
_PERCENT = re.compile(rf"{_NUMBER} ?%")
_SECONDS = re.compile(rf"{_NUMBER} ?(?P<unit>[smhdw])?", re.IGNORECASE)
_SECONDS_IN = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

DRIVERS = ("sqlite", "xattr")
ON_MISS = ("fetch", "enoent")
ON_LAST_CLOSE = ("keep", "cancel")
TRANSPORTS = ("auto", "relay", "plain")
LOG_LEVELS = ("debug", "info", "warning", "error")


def parse_size(text: str) -> int:
    """Read a size, in bytes: ``512M``, ``10G``, ``10GiB``, ``1.5T``, or plain bytes.

    K, M, G, T and P are powers of 1024 in either case, as for qemu-img, rclone and mount's tmpfs;
    ``KiB`` and its like say the same. ``KB``, ``MB`` and ``GB`` are refused: half of the world
    means 1000 by them. A fraction of a byte is dropped. Raises
    :class:`~cachefs.errors.InvalidValueError` for anything else, and for more than
    :data:`MAX_BYTES`.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidValueError(f"{_quoted(text)} is not a size, such as 512M, 10G or 10GiB")
    unit, suffix = match["unit"], match["suffix"]
    if suffix is not None and suffix.upper() == "B":
        plain = f"{match['number']}{unit.upper()}"
        raise InvalidValueError(
            f"{_quoted(text)} may mean powers of 1000 or of 1024; write {plain} (1024)"
        )
    power = _UNITS.index(unit.upper()) + 1 if unit else 0
    size = int(Fraction(match["number"]) * 1024**power)
    if size > MAX_BYTES:
        raise InvalidValueError(f"{_quoted(text)} is more than any file can have (2^63 - 1 bytes)")
    return size


def parse_rate(text: str) -> int:
    """Read a bandwidth in bytes per second: a size, with ``/s`` after it or not, and not 0.

    Raises :class:`~cachefs.errors.InvalidValueError` for anything else.
    """
    rate = parse_size(text.strip().removesuffix("/s"))
    if rate == 0:
        raise InvalidValueError(f"{_quoted(text)} would let nothing through")
    return rate


def format_size(size: int) -> str:
    """Write *size* bytes exactly, as short as :func:`parse_size` reads it: ``10G``, or ``1025``."""
    power = 0
    while size and size % 1024 == 0 and power < len(_UNITS):
        size //= 1024
        power += 1
    return f"{size}{_UNITS[power - 1] if power else ''}"


def human_size(size: float) -> str:
    """Write *size* bytes for people, rounded to a decimal: ``1.5 GiB``, ``700 B``."""
    if abs(size) < 1024:
        return f"{size:.0f} B"
    size /= 1024
    power = 0
    # What would be rounded up to 1024.0 reads better in the next unit.
    while abs(size) >= 1023.95 and power < len(_UNITS) - 1:
        size /= 1024
        power += 1
    return f"{size:.1f} {_UNITS[power]}iB"


def parse_seconds(text: str) -> float:
    """Read a span of time, in seconds: ``86400``, ``90s``, ``5m``, ``1h``, ``1.5d``, ``2w``.

    Raises :class:`~cachefs.errors.InvalidValueError` for anything else.
    """
    match = _SECONDS.fullmatch(text.strip())
    if match is None:
        raise InvalidValueError(f"{_quoted(text)} is not a time, such as 90s, 5m, 1h or 1d")
    return float(Fraction(match["number"]) * _SECONDS_IN[(match["unit"] or "s").lower()])


@dataclass(frozen=True, slots=True)
class Amount:
    """So many bytes, or so many percent of a filesystem where *percent* is set."""

    size: int = 0
    percent: Decimal | None = None

    def __post_init__(self) -> None:
        if self.percent is not None and self.size:
            raise InvalidValueError("an amount is either a size or a percentage")
        if not 0 <= self.size <= MAX_BYTES:
            raise InvalidValueError(f"{self.size} is not a size in bytes")
        if self.percent is not None and not 0 <= self.percent <= 100:
            raise InvalidValueError(f"{self.percent}% is not between 0% and 100%")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``5%`` (at most 100), or what :func:`parse_size` reads; errors as there."""
        match = _PERCENT.fullmatch(text.strip())
        if match is not None:
            return cls(percent=Decimal(match["number"]))
        return cls(size=parse_size(text))

    def of(self, total: int) -> int:
        """The amount in bytes, on a filesystem of *total* bytes; rounded down."""
        if self.percent is None:
            return self.size
        return int(total * Fraction(self.percent) / 100)

    def __str__(self) -> str:
        """What :meth:`parse` reads back as an equal amount."""
        if self.percent is None:
            return format_size(self.size)
        digits = f"{self.percent:f}"
        return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits}%"


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that ``cachefs mount`` can be told.

    Paths are absolute: the daemon changes directory. A percentage of *max_size* or *min_free* is of
    the whole filesystem that *cache_dir* is on; *stall_time* is in seconds, as is *timeout*, after
    which a silent source has failed; the bandwidths are in
    bytes per second, None for no limit; *options* are those of ``mount -o``. Without *log_file* a
    daemon logs to syslog and a foreground process to its stderr."""

    source: str
    mountpoint: Path
    cache_dir: Path
    max_size: Amount = Amount(size=10 * 2**30)
    min_free: Amount = Amount(percent=Decimal(5))
    stall_time: float = 86400.0
    driver: str = "sqlite"
    on_miss: str = "fetch"
    fallbacks: tuple[str, ...] = ()
    foreground: bool = False
    control_group: str | None = None
    options: tuple[str, ...] = ()
    max_fetches: int = 3
    bandwidth: int | None = None
    prefetch_bandwidth: int | None = None
    on_last_close: str = "keep"
    timeout: float = 30.0
    transport: Literal["auto", "relay", "plain"] = "auto"
    log_file: Path | None = None
    log_level: str = "info"


def parse_options(*texts: str) -> tuple[str, ...]:
    """The single options of any number of ``mount -o`` lists: ``a,b`` and ``c`` are a, b and c."""
    return tuple(option for text in texts for option in text.split(",") if option)


def load_config(path: Path) -> dict[str, object]:
    """Read a TOML file of ``cachefs mount`` options, spelled as on the command line without dashes.

    Returns the values of :class:`Config` fields that it sets. A relative path in it is meant from
    the file's own directory. Raises :class:`~cachefs.errors.InvalidValueError`, naming the file
    and the key, for a file that cannot be read, an unknown key or a bad value.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidValueError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidValueError(f"{path}: not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidValueError(f"{path}: not TOML: {error}") from error
    unknown = sorted(document.keys() - _SETTINGS.keys())
    if unknown:
        names = ", ".join(map(_quoted, unknown))
        raise InvalidValueError(f"{path}: unknown {names}; known are {', '.join(_SETTINGS)}")
    values: dict[str, object] = {}
    for key, value in document.items():
        field, read = _SETTINGS[key]
        try:
            values[field] = read(value)
        except InvalidValueError as error:
            raise InvalidValueError(f"{path}: {key}: {error}") from None
    home = path.absolute().parent
    for field in ("cache_dir", "log_file"):
        if field in values:
            values[field] = home / str(values[field])
    return values


def absolute_source(source: str) -> str:
    """*source* with a local path made absolute, so that it means the same from any directory."""
    if "://" in source:
        return source
    # Not resolved: a symbolic link may point elsewhere tomorrow, and that is the source's affair.
    return os.path.abspath(source)  # noqa: PTH100 - Path.absolute() keeps `..`


def default_cache_dir(
    source: str, *, root: bool | None = None, environ: Mapping[str, str] = os.environ
) -> Path:
    """Where the images of *source* are kept when nobody says: a directory that no other source has.

    ``/var/cache/cachefs/NAME`` for root, else ``cachefs/NAME`` below ``$XDG_CACHE_HOME`` or
    ``~/.cache`` (XDG base directory specification: a relative ``$XDG_CACHE_HOME`` is ignored).
    NAME is what people recognise, the end of the source's path, and 8 digits of its SHA-256.
    Raises :class:`~cachefs.errors.InvalidValueError` for a URL that cannot be one.
    """
    whole = absolute_source(source).removeprefix("file://").rstrip("/") or "/"
    words = whole.split("/")
    if "://" in whole:
        # Only host and path are shown: a URL may carry a password or a signature.
        try:
            parts = urlsplit(whole)
        except ValueError as error:
            raise InvalidValueError(f"{_quoted(source)} is not a URL: {error}") from error
        words = [parts.hostname or "", *unquote(parts.path).split("/")]
    shown = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(word for word in words if word)[-40:])
    digest = hashlib.sha256(whole.encode(errors="surrogateescape")).hexdigest()[:8]
    name = f"{shown.strip('.-')}-{digest}".lstrip("-")
    if os.geteuid() == 0 if root is None else root:
        return Path("/var/cache/cachefs", name)
    base = environ.get("XDG_CACHE_HOME", "")
    home = Path(base) if base.startswith("/") else Path(environ.get("HOME", "~"), ".cache")
    return home.expanduser() / "cachefs" / name


def _quoted(text: str) -> str:
    """*text* fit for one line of an error."""
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def _text(value: object) -> str:
    if isinstance(value, str) and value:
        return value
    raise InvalidValueError("not a text, or empty")


def _number_or_text(value: object) -> str:
    """TOML's plain numbers are bytes or seconds; a bool is an int to Python only."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return _text(value)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(_text, value)) if isinstance(value, list) else (_text(value),)


def _sources(value: object) -> tuple[str, ...]:
    """Unlike a cache directory's, a local source's path is refused unless it is absolute: the
    command line's SOURCE beside it would be meant from another directory."""
    sources = _texts(value)
    for source in sources:
        if "://" not in source and not source.startswith("/"):
            raise InvalidValueError(f"{_quoted(source)} is neither a URL nor an absolute path")
    return sources


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise InvalidValueError("neither true nor false")


def _count(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise InvalidValueError("not a whole number from 1 up")


def _one_of(names: tuple[str, ...]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value in names:
            return str(value)
        raise InvalidValueError(f"not one of {', '.join(names)}")

    return read


_SETTINGS: Mapping[str, tuple[str, Callable[[object], object]]] = {
    "cache-dir": ("cache_dir", _text),
    "max-size": ("max_size", lambda value: Amount.parse(_number_or_text(value))),
    "min-free": ("min_free", lambda value: Amount.parse(_number_or_text(value))),
    "stall-time": ("stall_time", lambda value: parse_seconds(_number_or_text(value))),
    "driver": ("driver", _one_of(DRIVERS)),
    "on-miss": ("on_miss", _one_of(ON_MISS)),
    "fallback": ("fallbacks", _sources),
    "foreground": ("foreground", _flag),
    "control-group": ("control_group", _text),
    "options": ("options", lambda value: parse_options(*_texts(value))),
    "max-fetches": ("max_fetches", _count),
    "bandwidth": ("bandwidth", lambda value: parse_rate(_number_or_text(value))),
    "prefetch-bandwidth": (
        "prefetch_bandwidth",
        lambda value: parse_rate(_number_or_text(value)),
    ),
    "on-last-close": ("on_last_close", _one_of(ON_LAST_CLOSE)),
    "timeout": ("timeout", lambda value: parse_seconds(_number_or_text(value))),
    "transport": ("transport", _one_of(TRANSPORTS)),
    "log-file": ("log_file", _text),
    "log-level": ("log_level", _one_of(LOG_LEVELS)),
}
"""For each key of the file: the field of :class:`Config`, and how its TOML value is read."""
