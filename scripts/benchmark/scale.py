"""Start-up, listing, eviction and memory with 1,000, 10,000 and 100,000 cached images.

The images are tiny files written straight into the cache directory: the first start adopts them,
the second finds them known. All three mounts are there at once, and measured in turn.

Glance's drivers, for comparison (one eviction, by sqlite and by xattr): 1 and 5 ms with 1,000
images, 3 and 125 ms with 20,000.
"""

import math
import os
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmark.lab import Lab, Served
from benchmark.measure import Row, Samples, against, anonymous_mb, interleaved, seconds

COUNTS = (1_000, 10_000, 100_000)
BYTES = 16
EVICTIONS = 10
"""Images evicted in one sample."""


def sqlite(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``scale-sqlite``."""
    yield from _rows(lab, "sqlite")


def xattr(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``scale-xattr``."""
    yield from _rows(lab, "xattr")


def _rows(lab: Lab, driver: str) -> Iterator[Row]:
    counts = COUNTS[:2] if lab.quick else COUNTS
    cells = {f"{count:,}": _Cell(lab, driver, count) for count in counts}
    name = f"scale-{driver}"
    for label, cell in cells.items():
        yield Row(f"{name}.start-adopting.{label}", cell.adopting, "s")
    starts = interleaved(lab.rounds, {label: cell.start for label, cell in cells.items()})
    yield from _times(f"{name}.start", starts, "s")
    scans = interleaved(lab.rounds, {label: cell.scan for label, cell in cells.items()})
    growth = _growth(starts) - _growth(scans)
    yield Row(f"{name}.start.beyond-scandir", growth, "s more at most images")
    with ExitStack() as stack:
        for cell in cells.values():
            stack.callback(cell.mount().stop)
        label, largest = list(cells.items())[-1]
        yield Row(f"{name}.anonymous.{label}", largest.memory(), "MB")
        for what, command in (("listdir", "ls -U"), ("ls-l", "ls -l")):
            yield from _listing(lab, f"{name}.{what}", command, cells)
        yield Row(f"{name}.anonymous-listed.{label}", largest.memory(), "MB", target="<= 100")
        for what, method in (("rm", _Cell.evict), ("prune", _Cell.prune)):
            samples = interleaved(lab.rounds, {n: _bound(method, c) for n, c in cells.items()})
            yield from _times(f"{name}.{what}", samples, "ms")
            yield _logarithmic(f"{name}.{what}", samples, counts)


def _times(name: str, samples: Samples, unit: str) -> Iterator[Row]:
    for label, values in samples.items():
        yield Row(f"{name}.{label}", statistics.median(values), unit)


def _growth(samples: Samples) -> float:
    medians = [statistics.median(values) for values in samples.values()]
    return medians[-1] - medians[0]


def _logarithmic(name: str, samples: Samples, counts: tuple[int, ...]) -> Row:
    medians = [statistics.median(values) for values in samples.values()]
    bound = math.log(counts[-1]) / math.log(counts[0])
    return Row(f"{name}.growth", medians[-1] / medians[0], "times", target=f"<= {bound:.2f}")


def _listing(lab: Lab, name: str, command: str, cells: "dict[str, _Cell]") -> Iterator[Row]:
    for label, cell in cells.items():
        places = {"cachefs": cell.mountpoint / "images", "backing directory": cell.cache}
        samples = interleaved(
            min(lab.rounds, 3) if cell.count <= 10_000 else 1,  # it may take a minute
            {who: _lister(command, place, cell.count) for who, place in places.items()},
        )
        yield against(f"{name}.{label}", "names/s", samples, "backing directory")


def _lister(command: str, place: Path, count: int) -> Callable[[], float]:
    def run() -> None:
        subprocess.run(
            [*command.split(), place], stdout=subprocess.DEVNULL, check=True, timeout=300
        )

    return lambda: count / seconds(run)


def _bound(method: "Callable[[_Cell], float]", cell: "_Cell") -> Callable[[], float]:
    return lambda: method(cell)


class _Cell:
    """A cache directory with *count* images, adopted by a first start."""

    def __init__(self, lab: Lab, driver: str, count: int) -> None:
        here = lab.here / f"scale-{driver}-{count}"
        self.count = count
        self.cache, self.mountpoint = here / "cache", here / "mnt"
        self._lab, self._driver = lab, driver
        self._served: Served | None = None
        self._next = 0
        for directory in (here, self.cache, self.mountpoint, here / "source"):
            directory.mkdir()
        for number in range(count):
            (self.cache / f"image-{number:06}").write_bytes(bytes(BYTES))
        self.adopting = self.start()

    def start(self) -> float:
        """Seconds from the start of the process until its mount answers; it is stopped again."""
        elapsed = seconds(self.mount)
        self._stop()
        return elapsed

    def scan(self) -> float:
        """Seconds that reading the directory, and stat of each file, takes by itself."""
        return seconds(lambda: [os.lstat(item.path) for item in os.scandir(self.cache)])

    def mount(self) -> Served:
        """Start it; the caller stops it."""
        source, more = str(self.cache.parent / "source"), ("--driver", self._driver)
        self._served = self._lab.start_cachefs(source, self.mountpoint, self.cache, *more)
        return self._served.wait_mounted("control/status")

    def memory(self) -> float:
        """The daemon's anonymous memory, in MB."""
        assert self._served is not None
        return anonymous_mb(self._served.pid)

    def evict(self) -> float:
        """Milliseconds for one ``rm control/cached/ID``, from the end of the names."""
        names = [f"image-{self.count - 1 - self._next - n:06}" for n in range(EVICTIONS)]
        self._next += EVICTIONS
        cached = self.mountpoint / "control" / "cached"
        return seconds(lambda: [(cached / name).unlink() for name in names]) * 1e3 / EVICTIONS

    def prune(self) -> float:
        """Milliseconds for one eviction that a lower max_size forces."""
        control = self.mountpoint / "control"
        size = int((control / "size").read_text())

        def lower() -> None:
            (control / "max_size").write_text(f"{size - 1}\n")
            (control / "prune").write_text("1\n")

        elapsed = seconds(lower) * 1e3
        left = int((control / "size").read_text())
        if left != size - BYTES:
            raise RuntimeError(f"a prune of one image left {left} of {size} bytes")
        return elapsed

    def _stop(self) -> None:
        assert self._served is not None
        self._served.stop()
