"""The incomplete file as the threads of its downloads write it, until it is shut.

A thread that waits for the network cannot be ended, only left behind. So whatever it does to the
file goes through here, where it finds the door closed however late it wakes up."""

import contextlib
import os
import threading
from collections.abc import Iterator

from cachefs.cache import PartialMap, begin_writeback
from cachefs.errors import ImageBusyError


class Sink:
    """The file *fd* and its map. Thread-safe.

    INVARIANT: after :meth:`shut` has returned, nothing is written or marked any more; the
    descriptor and the map may be closed, and the file be published or another writer's.
    """

    def __init__(self, fd: int, partial: PartialMap) -> None:
        self._fd = fd
        self._length = os.fstat(fd).st_size
        self._partial = partial
        self._changed = threading.Condition()
        self._open = True
        self._inside = 0

    def write(self, data: bytes | memoryview, offset: int, *, to_disk: bool = False) -> bool:
        """Write all of *data* at *offset* bytes; with *to_disk* have it written back at once,
        without waiting for that. False, and nothing is done, once shut. Raises OSError as
        write(2), ImageBusyError where the file is shorter than at first, as another program makes
        it that opens it for writing: what was written before is lost."""
        view, position = memoryview(data), offset
        with self._enter() as may:
            if may and os.fstat(self._fd).st_size < self._length:
                raise ImageBusyError("another program has emptied the incomplete file")
            while view and may:
                count = os.pwrite(self._fd, view, position)
                view, position = view[count:], position + count
            if may and to_disk:
                begin_writeback(self._fd, offset, len(data))
        return may

    def agrees(self, data: bytes | memoryview, offset: int) -> bool:
        """Whether the file has *data* at *offset* already; so it does once shut."""
        with self._enter() as may:
            return not may or os.pread(self._fd, len(data), offset) == data

    def mark(self, first: int, stop: int) -> bool:
        """Chunks [*first*, *stop*) are written; False, and nothing is done, once shut."""
        with self._enter() as may:
            if may:
                self._partial.mark_written(first, stop)
        return may

    def shut(self) -> None:
        """Let nobody in any more. Blocks while a write is under way."""
        with self._changed:
            self._open = False
            self._changed.wait_for(lambda: not self._inside)

    @contextlib.contextmanager
    def _enter(self) -> Iterator[bool]:
        """Whether the block may use the descriptor and the map. Several may at once: the lock is
        not held while they do."""
        with self._changed:
            may = self._open
            self._inside += may
        try:
            yield may
        finally:
            with self._changed:
                self._inside -= may
                self._changed.notify_all()
