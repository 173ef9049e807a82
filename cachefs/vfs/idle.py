"""Files of cached images that nobody has open just now, kept for the next open.

Owns their descriptors and the time they stay. A third of what an open costs is opening the file,
locking it and finding its record; an image that is opened often is opened again soon.

INVARIANT: an idle file protects nothing: its lock is given back, so any process may evict its
image, and the open that takes it up looks whether one did. Eviction by this process drops it; what
another evicts gives its space back 1.5 :data:`IDLE_SECONDS` after its last close at the latest.
"""

import threading
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
        self._changing = threading.Lock()  # never held while a file is closed
        self._filled = trio.Event()

    def keep(self, inode: int, image: OpenImage) -> None:
        """Keep the file of an image that is closed, instead of another one of that number: of opens
        that overlap in threads each may have one."""
        image.rest()
        with self._changing:
            leaving = [self._files.pop(inode, None)]
            self._files[inode] = image, time.monotonic()
            if len(self._files) > IDLE_FILES:
                leaving.append(self._files.popitem(last=False)[1])
        for left in leaving:
            if left is not None:
                left[0].close()
        self._filled.set()

    def take(self, inode: int) -> OpenImage | None:
        """The image, held open again; None where it is not here, or not the cached one any more."""
        image = self._pop(inode)
        if image is not None and not image.resume():
            image.close()
            return None
        return image

    def drop(self, inode: int) -> None:
        """Close the file, if it is here: in any thread."""
        image = self._pop(inode)
        if image is not None:
            image.close()

    def close(self) -> None:
        """Close all of them, at the end of the mount."""
        for inode, _ in self._since():
            self.drop(inode)

    async def close_old(self) -> None:
        """Close what no open has taken for a while, until cancelled."""
        while True:
            await self._filled.wait()
            self._filled = trio.Event()
            while self._files:
                await trio.sleep(IDLE_SECONDS / 2)
                limit = time.monotonic() - IDLE_SECONDS
                for inode, since in self._since():
                    if since < limit:
                        self.drop(inode)

    # Inside

    def _pop(self, inode: int) -> OpenImage | None:
        with self._changing:
            return self._files.pop(inode, (None, 0))[0]

    def _since(self) -> list[tuple[int, float]]:
        """The numbers, each with when its file was closed."""
        with self._changing:
            return [(inode, since) for inode, (_, since) in self._files.items()]
