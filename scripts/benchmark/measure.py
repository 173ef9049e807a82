"""How things are measured: interleaved rounds, medians, ratios; readers, and dropping page cache.

A round measures every contender once, each round in another order, so that what else happens on the
machine, and what one leaves behind for the next, falls on all of them. A ratio is the median of the
rounds' ratios.
"""

import mmap
import operator
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

BUFFER = memoryview(mmap.mmap(-1, 2**20))
"""The reader reads into this one buffer, 1 MiB a time, so that its own cost is least."""

TIMEOUT = 300.0
"""Seconds that anything measured may take."""

Samples = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: our figure, perhaps a peer's, and ours to the peer's.

    Figures beside a peer are speeds, so that a greater *ratio* is better and *target* is ``>= X``;
    a growth has no peer and a *target* of ``<= X``.
    """

    name: str
    ours: float
    unit: str
    peer: str = ""
    peers: float | None = None
    ratio: float | None = None
    target: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if not self.target:
            return None
        relation, bound = self.target.split()
        value = self.ours if self.ratio is None else self.ratio
        return {">=": operator.ge, "<=": operator.le}[relation](value, float(bound))


def interleaved(rounds: int, contenders: dict[str, Callable[[], float]]) -> Samples:
    """What each contender's function returns, *rounds* times."""
    samples: Samples = {name: [] for name in contenders}
    order, chance = list(contenders), Random(0)
    for _ in range(rounds):
        chance.shuffle(order)
        for name in order:
            samples[name].append(contenders[name]())
    return samples


def against(
    name: str, unit: str, samples: Samples, peer: str, target: str = "", *, ours: str = "cachefs"
) -> Row:
    """The row that compares the speed of the contender *ours* with another's."""
    ratios = [one / other for one, other in zip(samples[ours], samples[peer], strict=True)]
    return Row(
        name,
        statistics.median(samples[ours]),
        unit,
        peer,
        statistics.median(samples[peer]),
        statistics.median(ratios),
        target,
    )


def seconds(action: Callable[[], object]) -> float:
    """How long *action* takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def read_through(path: Path) -> int:
    """Read a file from start to end; its bytes."""
    total = 0
    fd = os.open(path, os.O_RDONLY)
    try:
        while count := os.readv(fd, [BUFFER]):
            total += count
    finally:
        os.close(fd)
    return total


def drop_pages(path: Path) -> None:
    """Make the kernel forget the pages of this file, of a mount too; those of the file that a mount
    reads from stay. They have to be clean."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def cached_bytes() -> int:
    """Bytes in the page cache of the machine (proc_meminfo(5), ``Cached``)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Cached:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no line Cached")


def anonymous_mb(pid: int) -> float:
    """Anonymous memory of a process and all below it, in MB (proc_pid_status(5), ``RssAnon``)."""
    total = 0
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            total = int(line.split()[1]) * 1024 / 1e6
    for thread in Path(f"/proc/{pid}/task").iterdir():
        total += sum(anonymous_mb(int(p)) for p in (thread / "children").read_text().split())
    return total
