"""What a run has counted: a row for each kind and each combination of transport and driver.

Owns the counting, the table and the JSON; knows nothing of what is counted.
"""

import platform
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

BEGIN = "<!-- torture table: written by scripts/torture --write-readme -->\n"
END = "<!-- end of torture table -->"


@dataclass(slots=True)
class Figures:
    """One kind on one combination. *longest* is the longest time, in seconds, between two answers
    that a reader got; *left_out* says why the kind was not run."""

    kind: str = ""
    combo: str = ""
    operations: int = 0
    faults: int = 0
    checked: int = 0
    longest: float = 0.0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)
    left_out: str = ""
    _known: set[str] = field(default_factory=set, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def operation(self, count: int = 1) -> None:
        """Something was asked of the mount or the library, and answered as it may be."""
        with self._lock:
            self.operations += count

    def fault(self, count: int = 1) -> None:
        """A fault was injected."""
        with self._lock:
            self.faults += count

    def images(self, count: int = 1) -> None:
        """All bytes of an image that the cache calls right were compared."""
        with self._lock:
            self.checked += count

    def gap(self, seconds: float) -> None:
        """A reader has waited this long."""
        with self._lock:
            self.longest = max(self.longest, seconds)

    def error(self, text: str) -> None:
        """Something is not as promised; *text* says what. What differs in numbers only counts
        once."""
        text = text.encode(errors="backslashreplace").decode()  # names of files need be no UTF-8
        kind = re.sub(r"[0-9]+", "#", text)
        with self._lock:
            if kind not in self._known:
                self._known.add(kind)
                self.errors.append(text)

    def as_dict(self) -> dict[str, object]:
        """The members for JSON."""
        names = [name for name in self.__slots__ if not name.startswith("_")]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Run:
    """All of a run."""

    seed: int
    minutes: float
    jobs: int
    rows: list[Figures]

    @property
    def errors(self) -> int:
        """How many there were."""
        return sum(len(row.errors) for row in self.rows)

    def document(self) -> dict[str, object]:
        """What is written as JSON."""
        return {
            "when": time.time(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "seed": self.seed,
            "minutes": self.minutes,
            "jobs": self.jobs,
            "rows": [row.as_dict() for row in self.rows],
        }

    def markdown(self, disturbs: dict[str, str]) -> str:
        """The table, one row for each kind, over all combinations; *disturbs* says what each
        does."""
        lines = [
            f"| {' | '.join(_HEAD)} |",
            "|---|---|---|--:|--:|--:|--:|--:|",
        ]
        lines += [
            _line(name, text, [row for row in self.rows if row.kind == name])
            for name, text in disturbs.items()
        ]
        lines.append(_line("**all**", "", self.rows))
        when = time.strftime("%Y-%m-%d")
        lines.append("")
        lines.append(
            f"`scripts/torture --minutes {self.minutes:g} --jobs {self.jobs} --seed {self.seed}` "
            f"on {when}, "
            f"Linux {platform.release().partition('-')[0]}."
        )
        return "\n".join(lines) + "\n"


_HEAD = (
    *("kind", "what is done", "on", "operations", "faults"),
    *("images checked", "longest wait, s", "errors"),
)


def _line(name: str, text: str, rows: Iterable[Figures]) -> str:
    rows = list(rows)
    ran = [row for row in rows if not row.left_out]
    reasons = sorted({row.left_out for row in rows if row.left_out}) if not ran else []
    where = f"{len(ran)} of {len(rows)}" if text else ""
    if reasons:
        where = f"left out: {', '.join(reasons)}"
    gap = max((row.longest for row in ran), default=0.0)
    cells = [
        name,
        text,
        where,
        f"{sum(row.operations for row in ran):,}",
        f"{sum(row.faults for row in ran):,}",
        f"{sum(row.checked for row in ran):,}",
        f"{gap:.1f}" if gap else "",
        str(sum(len(row.errors) for row in ran)),
    ]
    return "| " + " | ".join(cells) + " |"


def write_readme(readme: Path, table: str) -> None:
    """Put the table between its comments. Raises ValueError where they are not there."""
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme}: the comments around the torture table are not there")
    readme.write_text(f"{before}{begin}{table}{end}{after}", encoding="utf-8")
