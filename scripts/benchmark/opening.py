"""Opens per second: open, read 4 KiB, close of cached images, against rclone."""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmark.lab import Lab
from benchmark.measure import Row, against, interleaved, read_through, seconds

OPENS = 3000


def one_file(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``opens``: the same image again and again."""
    yield from _rows(lab, "opens", lab.small[:1])


def round_robin(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``opens-64``: 64 images in turn."""
    yield from _rows(lab, "opens-64", lab.small)


def _rows(lab: Lab, row: str, names: list[str]) -> Iterator[Row]:
    places = {"cachefs": lab.cachefs / "images", "rclone": lab.rclone, "backing file": lab.root}
    paths = {who: [place / name for name in names] for who, place in places.items()}
    for path in itertools.chain(*paths.values()):
        read_through(path)  # caches it
    samples = interleaved(lab.rounds, {who: opening(paths[who], OPENS // 3) for who in paths})
    yield against(f"{row}.rclone", "/s", samples, "rclone", ">= 5")
    yield against(f"{row}.native", "/s", samples, "backing file")


def opening(paths: list[Path], count: int) -> Callable[[], float]:
    """What opens *paths* in turn, *count* times in all, and returns how many that is a second."""
    names = [str(path) for path in itertools.islice(itertools.cycle(paths), count)]

    def opens() -> None:
        for name in names:
            fd = os.open(name, os.O_RDONLY)
            os.read(fd, 4096)
            os.close(fd)

    return lambda: count / seconds(opens)
