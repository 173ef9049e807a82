"""A cached image on both transports: read in order, read at random, and what one read leaves in the
page cache.

``http`` is a hit of a cache like Glance's: nginx sends the file, ``curl -o /dev/null`` takes it.
The files below the mounts are in memory. The mounts' own pages are dropped before each measurement,
but for ``read-again``: read once before, and opened anew, as programs do.
"""

import json
import os
import statistics
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmark.lab import Lab
from benchmark.measure import (
    TIMEOUT,
    Row,
    Samples,
    against,
    cached_bytes,
    drop_pages,
    interleaved,
    read_through,
    seconds,
)

FIO = ["fio", "--name=random", "--readonly", "--rw=randread", "--ioengine=psync", "--invalidate=0"]
FIO += ["--time_based", "--runtime=1", "--norandommap", "--output-format=json"]


def sequential(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``read``, in GB/s."""
    paths = lab.read_at(lab.big)
    size = paths["native"].stat().st_size

    def speed(who: str, *, drop: bool) -> float:
        if drop and who != "native":
            drop_pages(paths[who])
        return size / seconds(lambda: read_through(paths[who])) / 1e9

    def http() -> float:
        command = ["curl", "-sSf", "-o", os.devnull, lab.url + lab.big]
        return size / seconds(lambda: subprocess.run(command, check=True, timeout=TIMEOUT)) / 1e9

    for panel, drop in (("read", True), ("read-again", False)):
        contenders: dict[str, Callable[[], float]] = {
            who: partial(speed, who, drop=drop) for who in paths
        }
        if drop:
            contenders["http"] = http
        yield from _compared(panel, "GB/s", interleaved(lab.rounds, contenders))


def at_random(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``random``: fio, one read at a time; GB/s of 1 MiB, thousands of 4 KiB a
    second."""
    paths = lab.read_at(lab.big)
    for size, unit in (("4k", "k/s"), ("1m", "GB/s")):
        contenders = {
            who: partial(_fio, path, size, drop=who != "native") for who, path in paths.items()
        }
        yield from _compared(f"random-{size}", unit, interleaved(lab.rounds, contenders))


def page_cache(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``page-cache``: bytes in the page cache for each byte of an image that
    was read once through a mount; 1 is once."""
    paths = lab.read_at(lab.big)
    below = {
        "relay": lab.here / "cachefs.cache" / lab.big,
        "plain": lab.here / "plain.cache" / lab.big,
        "rclone": next((lab.here / "rclone.cache" / "vfs").rglob(lab.big)),
    }
    for who, stored in below.items():
        taken = []
        for _ in range(lab.rounds):
            os.sync()
            drop_pages(paths[who])
            drop_pages(stored)
            before = cached_bytes()
            size = read_through(paths[who])
            taken.append((cached_bytes() - before) / size)
        target = "<= 1.05" if who == "relay" else ""
        yield Row(f"page-cache.{who}", statistics.median(taken), "x", target=target)


def _compared(panel: str, unit: str, samples: Samples) -> Iterator[Row]:
    yield against(f"{panel}.relay.native", unit, samples, "native", ">= 0.95", ours="relay")
    yield against(f"{panel}.plain.native", unit, samples, "native", ours="plain")
    yield against(f"{panel}.relay.rclone", unit, samples, "rclone", ">= 2.5", ours="relay")
    yield against(f"{panel}.plain.rclone", unit, samples, "rclone", ">= 3", ours="plain")
    if "http" in samples:
        yield against(f"{panel}.relay.http", unit, samples, "http", ours="relay")
        yield against(f"{panel}.plain.http", unit, samples, "http", ours="plain")


def _fio(path: Path, size: str, *, drop: bool) -> float:
    """GB/s where *size* is ``1m``, thousands of reads a second otherwise."""
    if drop:
        drop_pages(path)
    command = [*FIO, f"--filename={path}", f"--bs={size}", f"--size={path.stat().st_size}"]
    ran = subprocess.run(command, check=True, timeout=TIMEOUT, stdout=subprocess.PIPE)
    read = json.loads(ran.stdout)["jobs"][0]["read"]
    return float(read["bw_bytes"]) / 1e9 if size == "1m" else float(read["iops"]) / 1e3
