"""The incomplete file as the threads of its downloads write it, until it is shut.

A thread that waits for the network cannot be ended, only left behind. So whatever it does to the
file goes through here, where it finds the door closed however late it wakes up."""

import os
import threading

from cachefs.cache import PartialMap


class Sink:
    """The file *fd* and its map. Thread-safe.

    INVARIANT: after :meth:`shut` has returned, nothing is written or marked any more; the
    descriptor and the map may be closed, and the file be published or somebody else's.
    """

    def __init__(self, fd: int, partial: PartialMap) -> None:
        self._fd = fd
        self._partial = partial
        self._lock = threading.Lock()
        self._open = True

    def write(self, data: bytes | memoryview, offset: int) -> bool:
        """Write all of *data* at *offset* bytes; False, and nothing is done, once shut. Raises
        OSError as write(2)."""
        view = memoryview(data)
        with self._lock:
            while view and self._open:
                count = os.pwrite(self._fd, view, offset)
                view, offset = view[count:], offset + count
            return self._open

    def agrees(self, data: bytes | memoryview, offset: int) -> bool:
        """Whether the file has *data* at *offset* already; so it does once shut."""
        with self._lock:
            return not self._open or os.pread(self._fd, len(data), offset) == data

    def mark(self, first: int, stop: int) -> bool:
        """Chunks [*first*, *stop*) are written; False, and nothing is done, once shut."""
        with self._lock:
            if self._open:
                self._partial.mark_written(first, stop)
            return self._open

    def shut(self) -> None:
        """Let nobody write any more. Blocks while a write is under way."""
        with self._lock:
            self._open = False
