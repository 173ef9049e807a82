"""Where one kind does its faults on one combination: a private directory, an origin, mounts,
readers, and the end of all of them.

Owns everything that is made below the directory: processes, mounts, loop devices. The teardown
frees all of it, whatever state it is in, and counts as an error what did not go by itself.
"""

import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cachefs.kernel import mountinfo
from torturing import check
from torturing.content import Image
from torturing.figures import Figures
from torturing.kind import Combo
from torturing.mount import Mount
from torturing.origin import Origin
from torturing.patience import HangError, run, until
from torturing.processes import describe, kill, marked
from torturing.readers import Readers

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says to the kinds: *kills* instead of a time, 0 for a time; *glance*
    is where a real Glance is installed, or to be, and *install* whether there is time for that."""

    kills: int = 0
    glance: Path | None = None
    install: bool = False


class World:
    """A world on *combo*, below *home*, which is made."""

    def __init__(
        self, home: Path, combo: Combo, seed: str, figures: Figures, options: Options
    ) -> None:
        home.mkdir(parents=True)
        self.home = home
        self.combo = combo
        self.seed = seed
        self.figures = figures
        self.options = options
        self.origin = Origin(seed)
        self.mounts: list[Mount] = []
        self.fusectl = home / "fusectl"
        self._cleanups: list[Callable[[], None]] = []
        self._numbers = 0
        self.fusectl.mkdir()
        run(["mount", "-t", "fusectl", "none", self.fusectl])

    # What there is

    def images(
        self, rng: random.Random, count: int, least: int, most: int, *, prefix: str = "image"
    ) -> list[Image]:
        """So many images at the origin, of *least* to *most* bytes."""
        made = []
        for _ in range(count):
            self._numbers += 1
            made.append(self.origin.put(f"{prefix}-{self._numbers}", rng.randint(least, most)))
        return made

    def directory(self, name: str) -> Path:
        """A fresh directory."""
        self._numbers += 1
        path = self.home / f"{name}-{self._numbers}"
        path.mkdir()
        return path

    def mount(
        self,
        *options: str,
        url: str | None = None,
        cache_dir: Path | None = None,
        combo: Combo | None = None,
        start: bool = True,
        **limits: object,
    ) -> Mount:
        """A mount of the origin, started unless told otherwise; *limits* are settings, ``max_size``
        say."""
        self._numbers += 1
        words = [*options]
        for name, value in limits.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        made = Mount(
            self.home / f"mount-{self._numbers}",
            url or self.origin.url,
            combo or self.combo,
            self.fusectl,
            cache_dir=cache_dir,
            options=words,
        )
        self.mounts.append(made)
        if start:
            made.start()
        return made

    def cleanup(self, call: Callable[[], None]) -> None:
        """Have *call* done at the teardown, the last one first, after the mounts have gone."""
        self._cleanups.append(call)

    @contextmanager
    def readers(
        self,
        mount: Mount,
        images: Sequence[Image],
        modes: Sequence[str] = ("keep", "open", "mmap", "list"),
        *,
        tolerate: Collection[str] = (),
        during: str = "",
    ) -> Iterator[Readers]:
        """Readers of the mount for as long as the block runs; then what they have seen is judged:
        an errno not among *tolerate* is an error, a wrong byte always is, and so is a hang.
        *during* is said with it."""
        self._numbers += 1
        group = Readers(mount.mountpoint, images, modes, self.home, f"{self.seed}/{self._numbers}")
        try:
            until(lambda: len(group.reports()) == len(modes), 20)
            yield group
        finally:
            hung = group.stop()
            if hung:
                self.figures.error(f"{during} readers hang: {', '.join(hung)}".strip())
                mount.abort()
            for mode, report in group.reports():
                self.figures.operation(report.operations)
                self.figures.gap(max(report.longest, report.silent))
                for text in report.wrong:
                    self.figures.error(f"{during} {text}".strip())
                for name, count in report.failures.items():
                    if name not in tolerate:
                        text = f"{during} a reader ({mode}) got {name}, {count} times"
                        self.figures.error(text.strip())

    def check(self, mount: Mount, max_size: int | None = None, *, wait: bool = True) -> None:
        """See that everything is as promised; the mount runs, or is started; it is stopped after.
        See :mod:`torturing.check`."""
        images = {image.name: image for image in self.origin.images.values()}
        check.check(mount, images, self.figures, max_size=max_size, wait=wait)

    @contextmanager
    def small_disk(self, kind: str, mib: int, *, inodes: int = 0) -> Iterator[Path]:
        """A filesystem of its own, *kind* ``ext4`` (on a loop device) or ``tmpfs``."""
        place = self.directory(kind)
        if kind == "tmpfs":
            words = f"size={mib}m" + (f",nr_inodes={inodes}" if inodes else "")
            run(["mount", "-t", "tmpfs", "-o", words, "torture", place])
        else:
            backing = place.with_suffix(".img")
            make_ext4(backing, mib, inodes=inodes)
            run(["mount", "-o", "loop", backing, place])
        try:
            yield place
        finally:
            for mount in self.mounts:
                if place in mount.cache_dir.parents or mount.cache_dir == place:
                    mount.destroy()
            self.unmount(place)

    # The end

    def close(self) -> None:
        """Free everything; what did not go by itself is an error."""
        for mount in self.mounts:
            with self._blamed("the end of a mount"):
                mount.stop(15)
        left = marked(self.home)
        if left and not until(lambda: not marked(self.home), 3):
            for pid in marked(self.home):
                self.figures.error(f"a process stays: {describe(pid)}")
        for mount in self.mounts:
            mount.destroy()
        for pid in marked(self.home):
            kill(pid)
        for call in reversed(self._cleanups):
            with self._blamed("cleaning up"):
                call()
        self.origin.close()
        for info in reversed(mountinfo.mounts()):
            if info.mountpoint != self.fusectl and self.home in info.mountpoint.parents:
                self.figures.error(f"a mount stays: {info.kind} at {info.mountpoint.name}")
                self.unmount(info.mountpoint)
        self.unmount(self.fusectl)
        until(lambda: not loop_devices(self.home), 10)  # they go with their mounts, a bit later
        for device in loop_devices(self.home):
            self.figures.error(f"a loop device stays: {device}")
            run(["losetup", "-d", device], 10, check=False)

    def remove(self) -> None:
        """Remove the directory."""
        run(["chattr", "-R", "-f", "-i", self.home], 20, check=False)
        shutil.rmtree(self.home, ignore_errors=True)

    @contextmanager
    def _blamed(self, what: str) -> Iterator[None]:
        try:
            yield
        except (HangError, OSError, RuntimeError, AssertionError) as error:
            self.figures.error(f"{what}: {error}")

    def unmount(self, place: Path) -> None:
        """Unmount, lazily where it is busy."""
        with contextlib.suppress(HangError):
            if run(["umount", place], 20, check=False).status != 0:
                time.sleep(0.3)
                if run(["umount", place], 20, check=False).status != 0:
                    run(["umount", "-l", place], 20, check=False)


def make_ext4(backing: Path, mib: int, *, inodes: int = 0) -> None:
    """An ext4 of *mib* MiB in the file *backing*."""
    with backing.open("wb") as file:
        file.truncate(mib * MIB)
    words = ["mkfs.ext4", "-q", "-F", "-m", "0", *(["-N", str(inodes)] if inodes else []), backing]
    run([str(word) for word in words])


def loop_devices(home: Path) -> list[str]:
    """The loop devices with a backing file below *home*."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if entry.read_text().startswith(f"{home}{os.sep}"):
                found.append(f"/dev/{entry.parts[3]}")
    return found


def have(program: str) -> bool:
    """Whether a program is installed."""
    return shutil.which(program) is not None


def quietly(call: Callable[[], object], errors: type[BaseException] = OSError) -> bool:
    """Whether *call* succeeds; one of *errors* is a no."""
    try:
        call()
    except errors:
        return False
    return True
