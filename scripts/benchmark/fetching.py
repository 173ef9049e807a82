"""Queue to cached, against ``curl -o`` of the same file onto the same filesystem.

cachefs has hashed the image and synced it to the disk by then, and curl neither: ``curl+fsync`` is
the fairer peer. The disk is idle, by sync(2), when each starts.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmark.lab import Lab
from benchmark.measure import TIMEOUT, Row, against, interleaved, seconds

POLL = 0.02
"""Seconds between two looks for the result; a look costs the busy daemon some 0.5 ms."""


def unsummed(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``fetch``: size and ETag are all that is known of the image."""
    yield from _rows(lab, "fetch", lab.big)


def summed(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``fetch-sums``: the image's digest is promised."""
    yield from _rows(lab, "fetch-sums", lab.big_summed)


def _rows(lab: Lab, row: str, name: str) -> Iterator[Row]:
    url, output, size = lab.url + name, lab.here / "curl.out", (lab.root / name).stat().st_size
    control = lab.cachefs / "control"

    def speed(action: Callable[[], object]) -> float:
        output.unlink(missing_ok=True)
        lab.uncache(lab.cachefs, name)
        return size / seconds(action) / 1e9

    samples = interleaved(
        lab.rounds,
        {
            "cachefs": lambda: speed(lambda: _queue(control, name)),
            "curl": lambda: speed(lambda: _curl(url, output)),
            "curl+fsync": lambda: speed(lambda: _sync(_curl(url, output))),
        },
    )
    output.unlink(missing_ok=True)
    yield against(f"{row}.curl", "GB/s", samples, "curl", ">= 1")
    yield against(f"{row}.curl+fsync", "GB/s", samples, "curl+fsync", ">= 1")


def _queue(control: Path, name: str) -> None:
    (control / "queue" / name).touch()
    cached, invalid = control / "cached" / name, control / "invalid" / name
    until = time.monotonic() + TIMEOUT
    while not cached.exists():
        time.sleep(POLL)
        if time.monotonic() > until or invalid.exists():
            raise RuntimeError(f"{name} was not fetched")


def _curl(url: str, output: Path) -> Path:
    subprocess.run(["curl", "-sSf", "-o", output, url], check=True, timeout=TIMEOUT)
    return output


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
