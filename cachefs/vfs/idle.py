"""Files of cached images that nobody has open just now, kept for the next open.

Owns their descriptors and the time they stay. A third of what an open costs is opening the file,
locking it and finding its record; an image that is opened often is opened again soon.

INVARIANT: an idle file protects nothing: its lock is given back, so any process may evict its
image, and the open that takes it up looks whether one did. Eviction by this process drops it; what
another evicts gives its space back 1.5 :data:`IDLE_SECONDS` after its last close at the latest.
"""

import time
from collections import OrderedDict

import trio

from cachefs.cache import OpenImage

IDLE_SECONDS = 1.0
"""How long a file is kept at least; at most half as long again."""

IDLE_FILES = 256
"""Files that are kept at most."""


class IdleFiles:
    """Idle files by the number of their inode. For the event loop, but for :meth:`drop`."""

    def __init__(self) -> None:
        self._files: OrderedDict[int, tuple[OpenImage, float]] = OrderedDict()
        self._filled = trio.Event()

    def keep(self, inode: int, image: OpenImage) -> None:
        """Keep the file of an image that is closed."""
        image.rest()
        self._files[inode] = image, time.monotonic()
        if len(self._files) > IDLE_FILES:
            self.drop(next(iter(self._files)))
        self._filled.set()

    def take(self, inode: int) -> OpenImage | None:
        """The image, held open again; None where it is not here, or not the cached one any more."""
        image, _ = self._files.pop(inode, (None, 0))
        if image is not None and not image.resume():
            image.close()
            return None
        return image

    def drop(self, inode: int) -> None:
        """Close the file, if it is here: in any thread."""
        image, _ = self._files.pop(inode, (None, 0))
        if image is not None:
            image.close()

    def close(self) -> None:
        """Close all of them, at the end of the mount."""
        for inode in list(self._files):
            self.drop(inode)

    async def close_old(self) -> None:
        """Close what no open has taken for a while, until cancelled."""
        while True:
            await self._filled.wait()
            self._filled = trio.Event()
            while self._files:
                await trio.sleep(IDLE_SECONDS / 2)
                limit = time.monotonic() - IDLE_SECONDS
                for inode, (_, since) in list(self._files.items()):
                    if since < limit:
                        self.drop(inode)
