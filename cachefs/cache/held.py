"""Files that must stay readable for a mount's open handles, whatever becomes of their names.

``.cachefs/held/NUMBER`` is a hard link to an image's file, ``.cachefs/held/NUMBER.json`` what its
owner wrote of it; the number is the owner's. They outlive the process, not the mount: the first
daemon of a mount clears what an earlier one left, those that take over from a dead one take it up.
Disk space comes back with the last link and the last descriptor."""

import contextlib
import json
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cachefs.cache.layout import Layout
from cachefs.cache.lock import open_shared
from cachefs.errors import InvalidValueError

log = logging.getLogger(__name__)


class Held:
    """The held files of one cache directory, which a :class:`~cachefs.cache.store.Store` has made.
    Thread-safe; each method is a few system calls."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._directory = layout.held_dir

    def keep(self, image_id: str, number: int) -> None:
        """Hold the published image under *number*, instead of another file; nothing is held where
        the image has gone already."""
        link = self._link(number)
        link.unlink(missing_ok=True)
        with contextlib.suppress(*_HELD_OR_GONE):
            link.hardlink_to(self._layout.image(image_id))

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
        """Whether the held file is the one that is ``incomplete/ID`` now."""
        return _is_same(self._link(number), self._layout.incomplete(image_id))

    def is_published(self, number: int, image_id: str) -> bool:
        """Whether the held file is the one that is the cached image now."""
        return _is_same(self._link(number), self._layout.image(image_id))

    def note(self, number: int, members: dict[str, Any]) -> None:
        """Write down what the next process needs to know of *number*: whole, or not at all."""
        path, scratch = self._note(number), self._directory / f"{number}.new"
        try:
            scratch.write_text(json.dumps(members), encoding="utf-8")
            scratch.rename(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise

    def noted(self, number: int) -> dict[str, Any] | None:
        """What was written down, or None. Raises InvalidValueError for what cannot have been."""
        try:
            members = json.loads(self._note(number).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:  # JSON's errors are ValueErrors
            raise InvalidValueError(f"the note of {number} is not JSON: {error}") from error
        if not isinstance(members, dict):
            raise InvalidValueError(f"the note of {number} is not what cachefs has written")
        return members

    def release(self, number: int) -> None:
        """Hold the file no longer."""
        self._link(number).unlink(missing_ok=True)
        self._note(number).unlink(missing_ok=True)

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


_HELD_OR_GONE = (FileExistsError, FileNotFoundError)
"""What a link meets when another thread has just held the file under this number, which never means
another file meanwhile, or when the file has no name any more."""


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except FileNotFoundError:
        return False
