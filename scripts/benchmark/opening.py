"""Opening cached images on both transports, against rclone: how many a second, and how long one
takes while another image is fetched."""

import contextlib
import itertools
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmark.lab import Lab
from benchmark.measure import TIMEOUT, Row, against, interleaved, read_through, seconds

OPENS = 1000
"""Opens in one sample."""

PERCENTILE = 99


def one_file(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``opens``: open, read 4 KiB, close of the same image again and again."""
    yield from _rows(lab, "opens", lab.small[:1], ">= 7")


def round_robin(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``opens-64``: the same, 64 images in turn."""
    yield from _rows(lab, "opens-64", lab.small, ">= 5")


def while_fetching(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``open-busy``: milliseconds that an open(2) of a cached image takes, with
    nothing else to do, and while another image is fetched as fast as the origin sends it: the
    median, and what only one in a hundred exceeds."""
    for who in ("relay", "plain", "rclone"):
        idle: list[float] = []
        busy: list[float] = []
        for _ in range(lab.rounds):
            with _mount(lab, who) as (cached, missing):
                idle += _open_times(cached, 0.5, lambda: True)
                with subprocess.Popen(["cat", missing], stdout=subprocess.DEVNULL) as reader:
                    busy += _open_times(cached, TIMEOUT, lambda: reader.poll() is None)
        yield Row(f"open-idle.{who}", statistics.median(idle), "ms")
        yield Row(f"open-busy.{who}", statistics.median(busy), "ms")
        percentile = statistics.quantiles(busy, n=100)[PERCENTILE - 1]
        yield Row(f"open-busy-p{PERCENTILE}.{who}", percentile, "ms")


def _rows(lab: Lab, panel: str, names: list[str], target: str) -> Iterator[Row]:
    places = [lab.read_at(name) for name in names]
    samples = interleaved(
        lab.rounds,
        {who: partial(_opens, [p[who] for p in places]) for who in ("relay", "plain", "rclone")},
    )
    yield against(f"{panel}.relay.rclone", "/s", samples, "rclone", target, ours="relay")
    yield against(f"{panel}.plain.rclone", "/s", samples, "rclone", ours="plain")
    # Opening may cost 1.3 times the plain open.
    yield against(f"{panel}.relay.plain", "/s", samples, "plain", ">= 0.77", ours="relay")


def _opens(paths: list[Path]) -> float:
    """How many opens a second."""
    names = [str(path) for path in itertools.islice(itertools.cycle(paths), OPENS)]

    def opens() -> None:
        for name in names:
            fd = os.open(name, os.O_RDONLY)
            os.read(fd, 4096)
            os.close(fd)

    return OPENS / seconds(opens)


@contextlib.contextmanager
def _mount(lab: Lab, who: str) -> Iterator[tuple[Path, Path]]:
    """A cached image, and one that has to be fetched, through the same mount."""
    if who == "rclone":
        with lab.fresh_rclone() as mountpoint:
            read_through(mountpoint / lab.small[0])
            yield mountpoint / lab.small[0], mountpoint / lab.big
        return
    mountpoint = {"relay": lab.cachefs, "plain": lab.plain}[who]
    images = mountpoint / "images"
    read_through(images / lab.small[0])
    lab.uncache(mountpoint, lab.big)
    yield images / lab.small[0], images / lab.big


def _open_times(path: Path, limit: float, go_on: Callable[[], bool]) -> list[float]:
    """Milliseconds of each open(2), one every 2 ms, for *limit* seconds at most."""
    taken = []
    until = time.monotonic() + limit
    while go_on() and time.monotonic() < until:
        begun = time.perf_counter()
        fd = os.open(path, os.O_RDONLY)
        taken.append((time.perf_counter() - begun) * 1e3)
        os.close(fd)
        time.sleep(0.002)
    return taken
