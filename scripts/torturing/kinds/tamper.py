"""Files of the cache directory changed by a stranger, mounted and not.

What is changed is another file: it is never served under the old record. An image may be fetched
anew, or be an error; it may not be wrong bytes, and others may not suffer.
"""

import contextlib
import json
import os
import random
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torturing.content import Image
from torturing.kind import COMBOS
from torturing.mount import Mount
from torturing.patience import HangError, run
from torturing.world import MIB, World

Fault = Callable[[Path, random.Random], None]


def truncate(path: Path, rng: random.Random) -> None:
    """Cut it."""
    os.truncate(path, rng.randrange(path.stat().st_size))


def empty(path: Path, _: random.Random) -> None:
    """Cut all of it."""
    os.truncate(path, 0)


def extend(path: Path, rng: random.Random) -> None:
    """Append to it."""
    with path.open("ab") as file:
        file.write(rng.randbytes(rng.randint(1, 5000)))


def overwrite(path: Path, rng: random.Random) -> None:
    """Change some bytes in place, with a later date."""
    with path.open("r+b") as file:
        file.seek(rng.randrange(path.stat().st_size))
        file.write(rng.randbytes(1) * 64)
    os.truncate(path, path.stat().st_size)


def replace(path: Path, rng: random.Random) -> None:
    """Put another file in its place, of the same size."""
    fresh = path.with_name(f".{path.name}.fresh")
    fresh.write_bytes(rng.randbytes(path.stat().st_size))
    fresh.rename(path)


def replace_by_directory(path: Path, _: random.Random) -> None:
    """A directory where a file was."""
    path.unlink()
    path.mkdir()


def replace_by_link(path: Path, _: random.Random) -> None:
    """A symbolic link to something that is not ours to show."""
    path.unlink()
    path.symlink_to("/etc/passwd")


def replace_by_socket(path: Path, _: random.Random) -> None:
    """A socket where a file was."""
    path.unlink()
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
        sock.bind(f"/proc/self/fd/{os.open(path.parent, os.O_DIRECTORY)}/{path.name}")


def hard_link(path: Path, _: random.Random) -> None:
    """A second name, outside."""
    path.parent.parent.joinpath(f"{path.name}-{time.monotonic_ns()}").hardlink_to(path)


def chmod(path: Path, rng: random.Random) -> None:
    """Other permissions."""
    path.chmod(rng.choice((0o000, 0o200, 0o777)))


def make_immutable(path: Path, _: random.Random) -> None:
    """Chattr +i, where the filesystem has it."""
    run(["chattr", "+i", path], 5, check=False)


def spoil_attributes(path: Path, rng: random.Random) -> None:
    """Garbage in extended attributes, known and unknown."""
    for name in ("user.hits", "user.last_accessed", "user.cachefs", "user.cachefs.record"):
        with contextlib.suppress(OSError):
            os.setxattr(path, name, rng.choice((b"", b"\xff\xfe", b"-1", b"9" * 400)))
    for name in os.listxattr(path):
        with contextlib.suppress(OSError):
            os.setxattr(path, name, rng.randbytes(rng.randrange(40)))


def delete(path: Path, _: random.Random) -> None:
    """Remove it."""
    path.unlink()


FAULTS: tuple[Fault, ...] = (
    *(truncate, empty, extend, overwrite, replace, replace_by_directory, replace_by_link),
    *(replace_by_socket, hard_link, chmod, make_immutable, spoil_attributes, delete),
)

ANSWERS = ("EIO", "ENOENT", "EACCES", "EPERM", "ENOSPC")
"""What may be said of an image that was tampered with and cannot be had anew."""


class Tamper:
    """One image after the other is tampered with."""

    name = "tamper"
    disturbs = (
        "images cut, extended, overwritten, replaced, linked, locked, removed; mounted and not"
    )
    least = 5.0
    combos = COMBOS

    def run(self, world: World, rng: random.Random, deadline: float) -> None:
        """Rounds of a fresh directory, so that one fault does not hide behind another."""
        faults: list[tuple[Fault, bool]] = [(fault, on) for fault in FAULTS for on in (True, False)]
        rng.shuffle(faults)
        turn = 0
        while turn == 0 or time.monotonic() < deadline:
            chosen = [faults[(turn * 4 + number) % len(faults)] for number in range(4)]
            self._round(world, rng, chosen)
            turn += 1

    def _round(self, world: World, rng: random.Random, faults: list[tuple[Fault, bool]]) -> None:
        images = world.images(rng, 8, 5_000, MIB)
        mount = world.mount(max_size=64 * MIB)
        mount.fetch(*(image.name for image in images))
        victims = dict(zip((image.name for image in images), faults, strict=False))
        mounted = {name: fault for name, (fault, online) in victims.items() if online}
        offline = {name: fault for name, (fault, online) in victims.items() if not online}
        self._do(world, mount, mounted, rng)
        self._read_all(world, mount, images, victims, "mounted")
        mount.stop()
        self._do(world, mount, offline, rng)
        littered = self._litter(world, mount, rng)
        mount.start()
        self._read_all(world, mount, images, victims, "not mounted")
        self._forget(mount, images, littered)
        run(["chattr", "-R", "-f", "-i", mount.cache_dir], 10, check=False)
        world.check(mount, 64 * MIB)
        mount.destroy()

    def _litter(self, world: World, mount: Mount, rng: random.Random) -> list[Path]:
        """What makes no sense where a mount reads its state at its start; the files."""
        littered: list[Path] = []
        private = mount.cache_dir / ".cachefs"
        for place in ("maps", "held", "failed", "priorities"):
            garbage = rng.choice((b"", b"\xff" * 50, b"[" * 100_000, b'{"size": -1}', b"null"))
            path = private / place / rng.choice(("1", "1.json", "image-x", "\udcff"))
            with contextlib.suppress(OSError):
                path.write_bytes(garbage)
                littered.append(path)
                world.figures.fault()
        for place in ("queue", "incomplete", "invalid", ".cachefs/failed"):
            litter = mount.cache_dir / place / f"litter-{rng.randrange(3)}"
            with contextlib.suppress(OSError):
                rng.choice((litter.mkdir, litter.touch, partial(os.mkfifo, litter)))()
                littered.append(litter)
                world.figures.fault()
        return littered

    def _do(self, world: World, mount: Mount, faults: dict[str, Fault], rng: random.Random) -> None:
        for name, fault in faults.items():
            with contextlib.suppress(FileNotFoundError):
                fault(mount.cache_dir / name, rng)
                world.figures.fault()

    def _read_all(
        self,
        world: World,
        mount: Mount,
        images: list[Image],
        victims: dict[str, tuple[Fault, bool]],
        when: str,
    ) -> None:
        for image in images:
            fault = victims[image.name][0].__name__ if image.name in victims else ""
            try:
                data = mount.read(image.name)
            except OSError as error:
                if not fault:
                    world.figures.error(f"an image beside others tampered with: {error}")
                continue
            except HangError as error:
                world.figures.error(f"{fault} ({when}): {error}")
                raise
            world.figures.operation()
            if data != image.read(0, image.size) and not self._is_adopted(
                world, mount, image, fault
            ):
                world.figures.error(f"wrong bytes after {fault or 'nothing'} ({when})")

    def _is_adopted(self, world: World, mount: Mount, image: Image, fault: str) -> bool:
        """Whether it is taken for a file that Glance has put there, and said to be unverified: all
        that the xattr driver knew of the old one was on the old one. It is evicted."""
        if world.combo.driver != "xattr" or fault != "replace":
            return False
        with contextlib.suppress(OSError, ValueError):
            record = json.loads(mount.show(f"cached/{image.name}"))
            mount.remove(f"cached/{image.name}")
            return record["verified"] is False
        return False

    def _forget(self, mount: Mount, images: list[Image], littered: list[Path]) -> None:
        """What was found wrong is thrown away, and what is left can be told to be right."""
        for path in littered:
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        for place in ("queue", "invalid"):
            for name in {image.name for image in images} | set(mount.listed(place)):
                with contextlib.suppress(OSError):
                    mount.remove(f"{place}/{name}")
