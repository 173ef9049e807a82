"""A cached image read from start to end, against the backing file and rclone's cached read.

``cold``: the mount's pages dropped, the backing file's in the page cache. ``again``: read once
before, and opened anew, as programs do.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from benchmark.lab import Lab
from benchmark.measure import Row, against, drop_pages, interleaved, read_through, seconds


def sequential(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``read``, in GB/s."""
    name = lab.big
    paths = {
        "cachefs": lab.cachefs / "images" / name,
        "rclone": lab.rclone / name,
        "backing file": lab.root / name,
    }
    for path in paths.values():
        read_through(path)  # caches it
    for kind, drop in (("cold", True), ("again", False)):
        samples = interleaved(
            lab.rounds,
            {who: _reading(path, drop and who != "backing file") for who, path in paths.items()},
        )
        yield against(f"read.{kind}.native", "GB/s", samples, "backing file")
        yield against(f"read.{kind}.rclone", "GB/s", samples, "rclone", ">= 2.5")


def _reading(path: Path, drop: bool) -> Callable[[], float]:
    size = path.stat().st_size

    def read() -> float:
        if drop:
            drop_pages(path)
        return size / seconds(lambda: read_through(path)) / 1e9

    return read
