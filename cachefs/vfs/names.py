"""Telling the kernel that a name in ``images/`` means something else now.

A look-up holds the directory's lock in the kernel until it is answered, shared with all others
(``lookup_slow`` in ``fs/namei.c``); to have a name forgotten takes that lock alone
(``fuse_reverse_inval_entry`` in ``fs/fuse/dir.c``), and who comes after that waits behind it. So
while a look-up waits for the source, one eviction would stop the whole directory for as long as
the source takes. What there is to tell waits instead, no longer than the kernel believes a name by
itself: then there is nothing to tell any more.

Owns what waits, and how many look-ups do."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NAME_TIMEOUT = 1.0
"""Seconds for which the kernel believes a name: as long may go by until it is seen that another
process evicted the image. What this daemon evicts it tells the kernel at once, if it may."""

Tell = Callable[[str, int], None]
"""Has the kernel forget an image's name, and with another number than 0 the node that had it."""


class Names:
    """What is told of names; :meth:`changed` for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looking = 0
        self._waiting: deque[tuple[float, str, int]] = deque()
        self._tell: Tell = lambda _name, _inode: None

    def connect(self, tell: Tell) -> None:
        """The kernel is told by *tell*, which must not wait."""
        self._tell = tell

    def changed(self, image_id: str, inode: int = 0) -> None:
        """The name means another node now, or none; *inode* is the one that is gone for good."""
        with self._lock:
            if self._looking:
                now = time.monotonic()
                self._waiting.append((now + NAME_TIMEOUT, image_id, inode))
                while self._waiting and self._waiting[0][0] <= now:
                    self._waiting.popleft()
                return
        self._tell(image_id, inode)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """A look-up waits while the block runs."""
        with self._lock:
            self._looking += 1
        try:
            yield
        finally:
            with self._lock:
                self._looking -= 1
                waiting: list[tuple[float, str, int]] = []
                if not self._looking:
                    waiting += self._waiting
                    self._waiting.clear()
            now = time.monotonic()
            for until, image_id, inode in waiting:
                if until > now:
                    self._tell(image_id, inode)
