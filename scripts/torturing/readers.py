"""Processes that read images over and over, and check every byte.

Owns the program that reads (``python -m torturing.readers``), how it reports, and how it is
started, ended and judged. It writes what it has seen to a file twice a second, from a thread, so
that one that hangs in the kernel has reported, too.
"""

import contextlib
import errno
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torturing.content import Image
from torturing.processes import MARK

PAUSE = 0.004
KEPT = 6


@dataclass(slots=True)
class Report:
    """What a reader has seen: *longest* and *silent* are seconds, between two answers and since the
    last one; *failures* counts by errno's name, *wrong* are sentences."""

    operations: int = 0
    longest: float = 0.0
    silent: float = 0.0
    doing: str = ""
    failures: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Reader:
    """The program: reads what *mode* says until it is told to end."""

    def __init__(self, mode: str, root: Path, images: list[Image], seed: str) -> None:
        self.mode = mode
        self.root = root
        self.images = images
        self.report = Report()
        self.dice = random.Random(seed)
        self.over = False
        self.last = time.monotonic()
        self.opened: list[tuple[Image, int]] = []

    def loop(self) -> None:
        """Read on; an error of the mount is counted, and ends nothing."""
        step = getattr(self, f"_{self.mode}")
        while not self.is_over():
            try:
                step()
            except OSError as error:
                if self.is_over():
                    return  # the signal that ends it has interrupted a request
                name = errno.errorcode.get(error.errno or 0, str(error.errno))
                self.report.failures[name] += 1
                self._drop_one()
                time.sleep(0.05)
            else:
                now = time.monotonic()
                self.report.longest = max(self.report.longest, now - self.last)
                self.last = now
                self.report.operations += 1
                time.sleep(PAUSE if self.mode != "ls" else PAUSE / 10)

    def is_over(self) -> bool:
        """Whether it was told to end."""
        return self.over

    def _drop_one(self) -> None:
        if self.opened:
            os.close(self.opened.pop(self.dice.randrange(len(self.opened)))[1])

    def _choose(self) -> tuple[Image, Path]:
        image = self.dice.choice(self.images)
        return image, self.root / "images" / image.name

    def _compare(self, image: Image, start: int, wanted: int, got: bytes) -> None:
        true = image.read(start, start + wanted)
        if got == true:
            return
        first = next((i for i, (a, b) in enumerate(zip(got, true, strict=False)) if a != b), None)
        zeros = " (zeros)" if got and not any(got[first or 0 :][:64]) else ""
        where = f"{len(got)} of {len(true)} bytes" if first is None else f"at byte {start + first}"
        if len(self.report.wrong) < 10:
            text = f"wrong bytes: {image.name} [{start}, {start + wanted}) {where}{zeros}"
            self.report.wrong.append(f"{text}, {self.mode}")

    def _keep(self) -> None:
        """Random pieces through descriptors that stay open."""
        if len(self.opened) < KEPT:
            image, path = self._choose()
            self.report.doing = f"open {image.name}"
            self.opened.append((image, os.open(path, os.O_RDONLY)))
        elif self.dice.random() < 0.05:
            self.report.doing = "close"
            self._drop_one()
            return
        image, fd = self.dice.choice(self.opened)
        start = self.dice.randrange(max(1, image.size))
        size = self.dice.randrange(1, 100_000)
        self.report.doing = f"read {image.name} at {start}"
        self._compare(image, start, size, _pread(fd, size, start))

    def _open(self) -> None:
        """A whole image, opened for it."""
        image, path = self._choose()
        self.report.doing = f"cat {image.name}"
        with path.open("rb", buffering=0) as file:
            start = 0
            while piece := file.read(2**18):
                self._compare(image, start, len(piece), piece)
                start += len(piece)
            if start != image.size:
                self._compare(image, start, image.size - start, b"")

    def _mmap(self) -> None:
        """A page here and there of a mapping."""
        image, path = self._choose()
        self.report.doing = f"mmap {image.name}"
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                return
            start = self.dice.randrange(size)
            # A fault that fails is SIGBUS, which would end the reader: it is read beforehand.
            os.pread(file.fileno(), 50_000, start)
            with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as view:
                self._compare(image, start, 50_000, view[start : start + 50_000])

    def _ls(self) -> None:
        """The images, as fast as they are listed."""
        self.report.doing = "ls images"
        os.listdir(self.root / "images")  # noqa: PTH208 - names
        image, path = self._choose()
        self.report.doing = f"access {image.name}"
        path.exists()

    def _list(self) -> None:
        """The listings, as `ls` does."""
        for name in ("images", "control/cached", "control/queue"):
            self.report.doing = f"ls {name}"
            os.listdir(self.root / name)  # noqa: PTH208 - names
        image, path = self._choose()
        self.report.doing = f"stat {image.name}"
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            if size != image.size:
                self.report.wrong.append(f"stat {image.name} says {size}, not {image.size}")


def _pread(fd: int, size: int, start: int) -> bytes:
    """The bytes; a short answer is asked on from, as a request that fails in the middle of a
    read(2) makes it short, and the next one tells why."""
    got = b""
    while len(got) < size:
        piece = os.pread(fd, size - len(got), start + len(got))
        if not piece:
            break
        got += piece
    return got


def main() -> None:
    """Run by :class:`Readers`."""
    order = json.loads(sys.argv[1])
    out = Path(order["report"])
    images = [Image(**members) for members in order["images"]]
    reader = Reader(order["mode"], Path(order["root"]), images, order["seed"])

    def stop(*_: object) -> None:
        reader.over = True

    signal.signal(signal.SIGTERM, stop)

    def write() -> None:
        report = reader.report
        report.silent = time.monotonic() - reader.last
        members = {name: getattr(report, name) for name in report.__slots__}
        scratch = out.with_suffix(".new")
        scratch.write_text(json.dumps(members))
        scratch.rename(out)

    def tell() -> None:
        while True:
            write()
            time.sleep(0.5)

    threading.Thread(target=tell, daemon=True).start()
    try:
        reader.loop()
    finally:
        reader.last = time.monotonic()  # it has ended: it waits for nothing any more
        write()
        os._exit(0)  # the reports are written, and what is open is the kernel's to close


class Readers:
    """Readers of one mount, running from the start on; :meth:`finish` ends them."""

    def __init__(
        self, root: Path, images: Sequence[Image], modes: Sequence[str], home: Path, seed: str
    ) -> None:
        self._home = home
        self._processes: list[tuple[str, Path, subprocess.Popen[bytes]]] = []
        for number, mode in enumerate(modes):
            out = home / f"reader-{time.monotonic_ns()}-{number}.json"
            order = {
                "mode": mode,
                "root": str(root),
                "report": str(out),
                "seed": f"{seed}/{number}",
                "images": [
                    {name: getattr(image, name) for name in Image.__slots__} for image in images
                ],
            }
            process = subprocess.Popen(
                [sys.executable, "-m", "torturing.readers", json.dumps(order)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=(home / "readers.log").open("ab"),
                env={**os.environ, MARK: str(home)},
            )
            self._processes.append((mode, out, process))

    def reports(self) -> list[tuple[str, Report]]:
        """What each has seen so far, with its mode."""
        found = []
        for mode, out, _ in self._processes:
            with contextlib.suppress(OSError, ValueError):
                members: dict[str, Any] = json.loads(out.read_text())
                members["failures"] = Counter(members["failures"])
                found.append((mode, Report(**members)))
        return found

    def operations(self) -> int:
        """How much all of them have read so far."""
        return sum(report.operations for _, report in self.reports())

    def stop(self, seconds: float = 30.0) -> list[str]:
        """End them; the modes of those that did not end in time, and hang."""
        for _, _, process in self._processes:
            process.terminate()
        deadline = time.monotonic() + seconds
        hung = []
        for mode, _, process in self._processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                hung.append(mode)
                process.kill()
        return hung


if __name__ == "__main__":
    main()
