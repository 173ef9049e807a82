"""Reading an image that is not cached: the first bytes, all of it, and what it costs.

``rclone``'s first read is through a mount of its own with an empty cache, made anew for each round.
The processor's time is that of the daemon and its workers, from /proc/PID/stat.
"""

import os
import statistics
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmark.lab import Lab
from benchmark.measure import TIMEOUT, Row, against, interleaved, read_through, seconds

_TICKS = os.sysconf("SC_CLK_TCK")


def first_bytes(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``first-byte``: from open(2) to the first 4 KiB, in answers a second."""
    name = lab.big
    samples = interleaved(
        lab.rounds,
        {
            "cachefs": lambda: 1 / _fresh(lab, name, _first_page),
            "curl": lambda: 1 / seconds(lambda: _curl_range(lab.url + name)),
        },
    )
    yield against("first-byte.curl", "/s", samples, "curl")


def sequential(lab: Lab) -> Iterator[Row]:
    """The rows of subject ``miss``: a sequential read of an uncached image."""
    name = lab.big
    size = (lab.root / name).stat().st_size
    output = lab.here / "curl.out"
    spent: list[float] = []

    def ours() -> float:
        before = _cpu_seconds(lab.cachefs_pid)
        taken = _fresh(lab, name, read_through)
        spent.append((_cpu_seconds(lab.cachefs_pid) - before) / size * 2**30)
        return size / taken / 1e9

    def curl() -> float:
        output.unlink(missing_ok=True)
        os.sync()
        command = ["curl", "-sSf", "-o", output, lab.url + name]
        return size / seconds(lambda: subprocess.run(command, check=True, timeout=TIMEOUT)) / 1e9

    def rclone() -> float:
        with lab.fresh_rclone() as mountpoint:
            os.sync()
            return size / seconds(lambda: read_through(mountpoint / name)) / 1e9

    samples = interleaved(lab.rounds, {"cachefs": ours, "curl": curl, "rclone": rclone})
    output.unlink(missing_ok=True)
    yield against("miss.curl", "GB/s", samples, "curl", ">= 0.8")
    yield against("miss.rclone", "GB/s", samples, "rclone", ">= 3")
    yield Row("miss.cpu", statistics.median(spent), "s/GiB")


def _fresh(lab: Lab, name: str, read: Callable[[Path], object]) -> float:
    """How long *read* takes of an image that is not there at all before."""
    lab.uncache(lab.cachefs, name)
    return seconds(lambda: read(lab.cachefs / "images" / name))


def _first_page(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        return file.read(4096)


def _curl_range(url: str) -> None:
    command = ["curl", "-sSf", "-r", "0-4095", "-o", os.devnull, url]
    subprocess.run(command, check=True, timeout=TIMEOUT)


def _cpu_seconds(pid: int) -> float:
    """Processor time of a process and all below it (proc_pid_stat(5): utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    total = (int(fields[11]) + int(fields[12])) / _TICKS
    for thread in Path(f"/proc/{pid}/task").iterdir():
        total += sum(_cpu_seconds(int(p)) for p in (thread / "children").read_text().split())
    return total
