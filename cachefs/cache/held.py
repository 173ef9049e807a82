"""Files that must stay readable for a mount's open handles, whatever becomes of their names.

``.cachefs/held/NUMBER`` is a hard link to an image's file, ``.cachefs/held/NUMBER.json`` what its
owner wrote of it; the number is the owner's. They outlive the process, not the mount: the first
daemon of a mount clears what an earlier one left, those that take over from a dead one take it up.
Disk space comes back with the last link and the last descriptor.

A file that has no other name than those here is of an image that was evicted, or whose fetch has
failed, while it was open. It takes room still (:func:`only_held`), whichever process asks."""

import contextlib
import json
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachefs.cache.layout import Layout, files_in
from cachefs.cache.lock import open_shared
from cachefs.cache.trust import read_trusted
from cachefs.errors import InvalidValueError

log = logging.getLogger(__name__)

_LONGEST_NOTE = 2**16


class Held:
    """The held files of one cache directory, which a :class:`~cachefs.cache.store.Store` has made.
    Thread-safe; each method is a few system calls."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._directory = layout.held_dir

    def keep(self, image_id: str, number: int) -> bool:
        """Hold the published image under *number*, instead of another file; False where the image
        has gone already and is not held."""
        link = self._link(number)
        link.unlink(missing_ok=True)
        with contextlib.suppress(*_HELD_OR_GONE):
            link.hardlink_to(self._layout.image(image_id))
        return link.exists()

    def keep_open(self, fd: int, number: int) -> bool:
        """Hold the file that is open as *fd*, as :meth:`keep` does; False where it has no name any
        more and is not held."""
        link = self._link(number)
        link.unlink(missing_ok=True)
        with contextlib.suppress(*_HELD_OR_GONE):
            # The descriptor makes os.link use linkat(2), which alone follows the link in /proc.
            os.link(f"/proc/self/fd/{fd}", link, src_dir_fd=fd, follow_symlinks=True)
        return link.exists()

    def open(self, number: int) -> int | None:
        """Open the held file for reading and share its lock, as a cached image's reader does; the
        caller closes the descriptor. None where no file is held. Raises BlockingIOError where a
        writer owns it."""
        try:
            return open_shared(self._link(number))
        except FileNotFoundError:
            return None

    def is_incomplete(self, number: int, image_id: str) -> bool:
        """Whether the held file is the one that is ``incomplete/ID`` now, or beside it."""
        writing = (self._layout.incomplete(image_id), self._layout.beside(image_id))
        return any(_is_same(self._link(number), path) for path in writing)

    def is_published(self, number: int, image_id: str) -> bool:
        """Whether the held file is the one that is the cached image now."""
        return _is_same(self._link(number), self._layout.image(image_id))

    def note(self, number: int, members: dict[str, Any]) -> None:
        """Write down what the next process needs to know of *number*: whole, or not at all."""
        with self._layout.replacing(self._note(number)) as file:
            file.write(json.dumps(members).encode())

    def noted(self, number: int) -> dict[str, Any] | None:
        """What was written down, or None. Raises InvalidValueError for what cannot have been."""
        try:
            members = json.loads(read_trusted(self._note(number), _LONGEST_NOTE))
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise InvalidValueError(f"the note of {number} is none of ours: {error}") from error
        except (ValueError, RecursionError) as error:  # JSON's errors are ValueErrors
            raise InvalidValueError(f"the note of {number} is not JSON: {error}") from error
        if not isinstance(members, dict):
            raise InvalidValueError(f"the note of {number} is not what cachefs has written")
        return members

    def release(self, number: int) -> None:
        """Hold the file no longer. What cannot be removed is logged: the reader has closed it all
        the same, and the mount's next first worker tries again."""
        for path in (self._link(number), self._note(number)):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.error("cannot remove %s: %s", path, error)

    def keep_only(self, numbers: Collection[int]) -> None:
        """Release everything else."""
        names = {str(number) for number in numbers}
        for path in list(self._directory.iterdir()):
            if path.name.partition(".")[0] not in names:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:  # a directory, say: no file of ours, and in nobody's way
                    log.warning("cannot remove %s: %s", path, error)

    def clear(self) -> None:
        """Release everything."""
        self.keep_only(())

    # Inside

    def _link(self, number: int) -> Path:
        return self._directory / str(number)

    def _note(self, number: int) -> Path:
        return self._directory / f"{number}.json"


def held_files(layout: Layout) -> dict[int, "HeldFile"]:
    """The held files by inode. A name may vanish at any time, with its reader."""
    found: dict[int, HeldFile] = {}
    for name, status in files_in(layout.held_dir):
        if name.isdecimal():
            earlier = found.get(status.st_ino)
            names = earlier.names + 1 if earlier else 1
            found[status.st_ino] = HeldFile(layout.held_dir / name, names, status)
    return found


@dataclass(frozen=True, slots=True)
class HeldFile:
    """A file that is held by so many *names*, one of which is *path*."""

    path: Path
    names: int
    status: os.stat_result

    def is_only_held(self) -> bool:
        """Whether no other name leads to it."""
        if self.status.st_nlink <= self.names:
            return True
        try:  # or another of its held names has vanished between two looks
            return self.path.lstat().st_nlink <= self.names
        except FileNotFoundError:
            return False


def only_held(layout: Layout, counted: Collection[int]) -> int:
    """Bytes of the files that no name but those in ``.cachefs/held`` leads to, without the inodes
    that are *counted* already: they may have lost their other name since."""
    return sum(
        file.status.st_size
        for inode, file in held_files(layout).items()
        if inode not in counted and file.is_only_held()
    )


_HELD_OR_GONE = (FileExistsError, FileNotFoundError)
"""What a link meets when another thread has just held the file under this number, which never means
another file meanwhile, or when the file has no name any more."""


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except FileNotFoundError:
        return False
