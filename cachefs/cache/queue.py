"""The queue and the failures of a cache directory: files that any process may add or remove.

``queue/ID`` is an empty file whose mtime is its place, as Glance has it. A failure is a JSON record
of ours, with the rejected bytes, if there were any, in ``invalid/ID``."""

import contextlib
import json
import os
import stat
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

from cachefs.cache.layout import Layout, files_in
from cachefs.cache.trust import read_trusted, remove
from cachefs.errors import InvalidImageIDError
from cachefs.image import check_image_id

LARGEST_RECORD = 2**20
"""Bytes of a failure's record; what we write is far smaller."""

GLANCE_ERROR = "user.error"
"""Where ``glance.image_cache.drivers.xattr`` writes why an image is invalid, on its file."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image is invalid: *error* in words; *when* in seconds since the epoch, *size* the
    bytes in ``invalid/``. *version* names the bytes that were wrong, in the fetcher's words."""

    image_id: str
    error: str
    when: float
    size: int = 0
    source: str | None = None
    version: str | None = None


class Queue:
    """The IDs that wait to be fetched, oldest first. Durable, since each is a file."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._last_ns = 0

    def __contains__(self, image_id: str) -> bool:
        return self.since(image_id) is not None

    def add(self, image_id: str) -> bool:
        """Put the image at the end of the queue; False where it is queued already."""
        if image_id in self:
            return False
        path = self._layout.queued(image_id)
        # It gets its name with its place: a process that lists the queue would see the time of its
        # creation first, which is the last tick of a clock, and so may be before its predecessor's.
        with self._layout.replacing(path) as file:
            os.fchmod(file.fileno(), 0o640)
            self._last_ns = max(time.time_ns(), self._last_ns + 1)
            os.utime(file.fileno(), ns=(self._last_ns, self._last_ns))
        return True

    def set_priority(self, image_id: str, priority: int) -> None:
        """Have the image fetched before those of lower priority; 0 is what all have at first."""
        if priority:
            content = str(priority).encode()
            self._layout.write_atomically(self._layout.priority(image_id), content)
        else:
            remove(self._layout.priority(image_id))

    def priority(self, image_id: str) -> int:
        """The priority of a queued image."""
        try:
            return int(read_trusted(self._layout.priority(image_id), 32))
        except (OSError, ValueError):  # none, or what cannot be ours
            return 0

    def discard(self, image_id: str) -> bool:
        """Take the image out of the queue; False where it was not in it."""
        remove(self._layout.priority(image_id))
        try:
            self._layout.queued(image_id).unlink()
        except FileNotFoundError:
            return False
        return True

    def since(self, image_id: str) -> float | None:
        """When the image was queued, in seconds since the epoch; None where it is not queued."""
        try:
            status = self._layout.queued(image_id).lstat()
        except FileNotFoundError:
            return None
        return status.st_mtime if stat.S_ISREG(status.st_mode) else None

    def ids(self) -> list[str]:
        """The queued IDs, higher priority first, then in queue order. Files that can be no image
        are left alone, and left out."""
        urgent = {name: self.priority(name) for name, _ in files_in(self._layout.priorities_dir)}
        waiting = []
        for name, status in files_in(self._layout.queue_dir):
            with contextlib.suppress(InvalidImageIDError):
                place = -urgent.get(name, 0), status.st_mtime_ns
                waiting.append((place, check_image_id(name)))
        return [image_id for _, image_id in sorted(waiting)]


class Failures:
    """The images that failed, and why; they survive a restart."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def add(self, failure: Failure) -> None:
        """Remember *failure*, instead of an earlier one of the same image."""
        members = {name: getattr(failure, name) for name in failure.__slots__}
        content = json.dumps(members, ensure_ascii=False).encode()
        self._layout.write_atomically(self._layout.failed(failure.image_id), content)

    def get(self, image_id: str) -> Failure | None:
        """The failure of an image, or None. Bytes in ``invalid/`` without a record of ours,
        Glance's for one, count as a failure whose reason nobody wrote down."""
        try:
            members = json.loads(read_trusted(self._layout.failed(image_id), LARGEST_RECORD))
            # Other members than ours are another version's.
            ours = {name: members[name] for name in Failure.__slots__ if name in members}
            return _checked(Failure(**ours))
        except OSError:  # none, or what cannot be ours
            pass
        except (ValueError, TypeError, RecursionError):
            return Failure(image_id, "the record of this failure is damaged", 0.0)
        try:
            status = self._layout.invalid(image_id).lstat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        error = _glance_error(self._layout.invalid(image_id)) or "failed verification"
        return Failure(image_id, error, status.st_mtime, status.st_size)

    def discard(self, image_id: str) -> bool:
        """Forget the failure and remove its bytes; False where there was none."""
        known = False
        for path in (self._layout.failed(image_id), self._layout.invalid(image_id)):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                known = True
        return known

    def ids(self) -> list[str]:
        """The IDs that failed, sorted."""
        names = set()
        for directory in (self._layout.failed_dir, self._layout.invalid_dir):
            for name, _ in files_in(directory):
                with contextlib.suppress(InvalidImageIDError):
                    names.add(check_image_id(name))
        return sorted(names)


def _checked(failure: Failure) -> Failure:
    """*failure*, read from a file, if each member has its type; else raises TypeError."""
    for each in fields(failure):
        if not isinstance(getattr(failure, each.name), cast("type", each.type)):
            raise TypeError(f"{each.name} is no {each.type}")
    return failure


def _glance_error(path: Path) -> str | None:
    """What Glance has written down on a file in ``invalid/``, on one line; None where it has
    not."""
    try:
        text = os.getxattr(path, GLANCE_ERROR, follow_symlinks=False).decode(errors="replace")
    except OSError:
        return None
    return " ".join(text.split()) or None
