"""Holding the files of open images in ``.cachefs/held``, as the mount needs it.

Where a mount outlives its worker (*lasting*), what the next worker needs must be there, or an open
fails; else files are held for their bytes to be counted, which may fail. Owns that difference;
links and notes are :mod:`cachefs.cache.held`'s."""

import dataclasses
import logging

from cachefs.cache import Held
from cachefs.sources import SourceImage

log = logging.getLogger(__name__)

COMPLETE = "complete"
"""The member of an image's note that says that it was published."""


class Holding:
    """Holds the files of one mount; the numbers are those of their inodes. Thread-safe."""

    def __init__(self, held: Held, *, lasting: bool) -> None:
        self._held = held
        self.lasting = lasting

    def keep(self, image_id: str, inode: int) -> bool:
        """Hold the published image. False where it has gone already and is not held. Raises OSError
        where the next worker would miss it."""
        try:
            return self._held.keep(image_id, inode)
        except OSError as error:
            return self._do_without(error)

    def keep_open(self, fd: int, inode: int) -> bool:
        """Hold the file that is open as *fd*; as :meth:`keep`."""
        try:
            return self._held.keep_open(fd, inode)
        except OSError as error:
            return self._do_without(error)

    def note(self, image: SourceImage, inode: int, *, complete: bool) -> None:
        """Write down for the next worker what is open as *inode*, and whether it was published."""
        self._held.note(inode, dataclasses.asdict(image) | {COMPLETE: complete})

    def open(self, inode: int) -> int | None:
        """Open the held file; see :meth:`cachefs.cache.held.Held.open`."""
        return self._held.open(inode)

    def release(self, inode: int) -> None:
        """Hold the file no longer."""
        self._held.release(inode)

    def _do_without(self, error: OSError) -> bool:
        """A mount that does not last can do without on a filesystem that refuses: the bytes of this
        file are not counted once its name has gone."""
        if self.lasting:
            raise error
        log.warning("bytes of an open image are not counted any more: %s", error)
        return True
