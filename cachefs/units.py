"""How sizes, shares of a filesystem, rates and times are written and read.

Owns the spellings only; knows nothing of who uses the values.
"""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Self

from cachefs.errors import InvalidValueError
from cachefs.redaction import without_secrets

MAX_BYTES = 2**63 - 1
"""The longest file that Linux can have (``loff_t``), so the largest size that means anything."""

MAX_SECONDS = 2**63 / 10**9
"""The longest span that the kernel's clocks can count (``ktime_t``: nanoseconds)."""

_UNITS = "KMGTP"
_NUMBER = r"(?P<number>[0-9]{1,30}(?:\.[0-9]{1,30})?)"
_SIZE = re.compile(rf"{_NUMBER} ?(?:(?P<unit>[{_UNITS}])(?P<suffix>iB|B)?|B)?", re.IGNORECASE)
_PERCENT = re.compile(rf"{_NUMBER} ?%")
_SECONDS = re.compile(rf"{_NUMBER} ?(?P<unit>[smhdw])?", re.IGNORECASE)
_SECONDS_IN = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


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
        raise InvalidValueError(f"{quoted(text)} is not a size, such as 512M, 10G or 10GiB")
    unit, suffix = match["unit"], match["suffix"]
    if suffix is not None and suffix.upper() == "B":
        plain = f"{match['number']}{unit.upper()}"
        raise InvalidValueError(
            f"{quoted(text)} may mean powers of 1000 or of 1024; write {plain} (1024)"
        )
    power = _UNITS.index(unit.upper()) + 1 if unit else 0
    size = int(Fraction(match["number"]) * 1024**power)
    if size > MAX_BYTES:
        raise InvalidValueError(f"{quoted(text)} is more than any file can have (2^63 - 1 bytes)")
    return size


def parse_rate(text: str) -> int:
    """Read a bandwidth in bytes per second: a size, with ``/s`` after it or not, and not 0.

    Raises :class:`~cachefs.errors.InvalidValueError` for anything else.
    """
    rate = parse_size(text.strip().removesuffix("/s"))
    if rate == 0:
        raise InvalidValueError(f"{quoted(text)} would let nothing through")
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
        raise InvalidValueError(f"{quoted(text)} is not a time, such as 90s, 5m, 1h or 1d")
    seconds = float(Fraction(match["number"]) * _SECONDS_IN[(match["unit"] or "s").lower()])
    if seconds > MAX_SECONDS:
        raise InvalidValueError(f"{quoted(text)} is longer than Linux can wait (292 years)")
    return seconds


def format_seconds(seconds: float) -> str:
    """Write *seconds* exactly, as :func:`parse_seconds` reads it: ``86400``, or ``0.5``."""
    digits = f"{Decimal(repr(seconds)):f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def to_ns(seconds: float) -> int:
    """Whole nanoseconds, from which the filesystem gives back the very same float: multiplying the
    whole by 1e9 would round it to 256 ns."""
    whole = math.floor(seconds)
    return whole * 10**9 + round((seconds - whole) * 1e9)


def quoted(text: str) -> str:
    """*text* fit for one line of an error: short, and without what looks like a secret."""
    text = without_secrets(text)
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


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
