"""A cached image on both transports: read in order and at random, opened, opened while a fetch runs
at full speed, and what one read leaves in the page cache.

``relay`` is a mount as root gets it (passthrough), ``plain`` the same with ``--transport plain``.
``http`` is a hit of a cache like Glance's: nginx sends the file, ``curl -o /dev/null`` takes it.
Pages of the mounts are dropped before each measurement; the files below them stay in memory.
"""

import contextlib
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmark.fetching import TIMEOUT
from benchmark.lab import Lab
from benchmark.measure import (
    Row,
    Samples,
    against,
    cached_bytes,
    drop_pages,
    interleaved,
    read_through,
    seconds,
)
from benchmark.opening import opening

FIO_SECONDS = 1.0
"""How long one measurement of random reads goes on."""

FIO = ["fio", "--name=random", "--readonly", "--rw=randread", "--ioengine=psync", "--invalidate=0"]
FIO += ["--time_based", f"--runtime={FIO_SECONDS}", "--norandommap", "--output-format=json"]

PERCENTILE = 99


def sequential(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``sequential``, in GB/s."""
    paths = _places(lab, lab.big)

    size = paths["native"].stat().st_size

    def speed(who: str) -> float:
        if who != "native":
            drop_pages(paths[who])
        return size / seconds(lambda: read_through(paths[who])) / 1e9

    def http() -> float:
        command = ["curl", "-sSf", "-o", os.devnull, lab.url + lab.big]
        return size / seconds(lambda: subprocess.run(command, check=True, timeout=TIMEOUT)) / 1e9

    contenders: dict[str, Callable[[], float]] = {who: partial(speed, who) for who in paths}
    contenders["http"] = http
    yield from _compared("sequential", "GB/s", interleaved(lab.rounds, contenders))


def random_reads(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``random``: fio, one read at a time; GB/s of 1 MiB, thousands of 4 KiB a
    second."""
    for size, unit in (("4k", "k/s"), ("1m", "GB/s")):
        paths = _places(lab, lab.big)
        contenders = {
            who: partial(_fio, path, size, unit, drop=who != "native")
            for who, path in paths.items()
        }
        yield from _compared(f"random-{size}", unit, interleaved(lab.rounds, contenders))


def opens(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``opens-transports``: open, read 4 KiB, close."""
    paths = _places(lab, lab.small[0])
    samples = interleaved(lab.rounds, {who: opening([path], 1000) for who, path in paths.items()})
    yield against("open-read-close.relay.rclone", "/s", samples, "rclone", ">= 7", ours="relay")
    yield against("open-read-close.plain.rclone", "/s", samples, "rclone", ours="plain")
    # Opening may cost 1.3 times the plain open.
    yield against("open-read-close.relay.plain", "/s", samples, "plain", ">= 0.77", ours="relay")


def busy_opens(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``busy-opens``: milliseconds that an open(2) of a cached image takes,
    with nothing else to do, and while another image is fetched as fast as the origin sends it: the
    median, and what only one in a hundred exceeds."""
    for who in ("relay", "plain", "rclone"):
        idle: list[float] = []
        busy: list[float] = []
        for _ in range(lab.rounds):
            with _busy_mount(lab, who) as (cached, missing):
                idle += _open_times(cached, 0.5, lambda: True)
                with subprocess.Popen(["cat", missing], stdout=subprocess.DEVNULL) as reader:
                    busy += _open_times(cached, TIMEOUT, lambda: reader.poll() is None)
        yield Row(f"open-idle.{who}", statistics.median(idle), "ms")
        yield Row(f"open-busy.{who}", statistics.median(busy), "ms")
        yield Row(f"open-busy-p{PERCENTILE}.{who}", _percentile(busy), "ms")


def page_cache(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``page-cache``: bytes in the page cache for each byte of an image that
    was read once through a mount; 1 is once."""
    stored = {
        "relay": lab.here / "cachefs.cache" / lab.big,
        "plain": lab.here / "plain.cache" / lab.big,
        "rclone": next((lab.here / "rclone.cache" / "vfs").rglob(lab.big)),
    }
    paths = _places(lab, lab.big)
    for who, below in stored.items():
        taken = []
        for _ in range(lab.rounds):
            os.sync()
            drop_pages(paths[who])
            drop_pages(below)
            before = cached_bytes()
            size = read_through(paths[who])
            taken.append((cached_bytes() - before) / size)
        target = "<= 1.05" if who == "relay" else ""
        yield Row(f"page-cache.{who}", statistics.median(taken), "x", target=target)


def _places(lab: Lab, name: str) -> dict[str, Path]:
    """Where the image *name* can be read, and has been."""
    places = {
        "relay": lab.cachefs / "images" / name,
        "plain": lab.plain / "images" / name,
        "rclone": lab.rclone / name,
        "native": lab.root / name,
    }
    for path in places.values():
        read_through(path)  # caches it
    return places


def _compared(panel: str, unit: str, samples: Samples) -> Iterator[Row]:
    yield against(f"{panel}.relay.native", unit, samples, "native", ">= 0.95", ours="relay")
    yield against(f"{panel}.plain.native", unit, samples, "native", ours="plain")
    yield against(f"{panel}.relay.rclone", unit, samples, "rclone", ours="relay")
    yield against(f"{panel}.plain.rclone", unit, samples, "rclone", ">= 3", ours="plain")
    if "http" in samples:
        yield against(f"{panel}.relay.http", unit, samples, "http", ours="relay")
        yield against(f"{panel}.plain.http", unit, samples, "http", ours="plain")


def _fio(path: Path, size: str, unit: str, *, drop: bool) -> float:
    if drop:
        drop_pages(path)
    command = [*FIO, f"--filename={path}", f"--bs={size}", f"--size={path.stat().st_size}"]
    ran = subprocess.run(command, check=True, timeout=TIMEOUT, stdout=subprocess.PIPE)
    read = json.loads(ran.stdout)["jobs"][0]["read"]
    return float(read["bw_bytes"]) / 1e9 if unit == "GB/s" else float(read["iops"]) / 1e3


@contextlib.contextmanager
def _busy_mount(lab: Lab, who: str) -> Iterator[tuple[Path, Path]]:
    """A cached image, and one that has to be fetched, through the same mount."""
    if who == "rclone":
        with lab.fresh_rclone() as mountpoint:
            read_through(mountpoint / lab.small[0])
            yield mountpoint / lab.small[0], mountpoint / lab.big
        return
    mountpoint = {"relay": lab.cachefs, "plain": lab.plain}[who]
    read_through(mountpoint / "images" / lab.small[0])
    (mountpoint / "control" / "cached" / lab.big).unlink(missing_ok=True)
    os.sync()
    yield mountpoint / "images" / lab.small[0], mountpoint / "images" / lab.big


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


def _percentile(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[PERCENTILE - 1]
