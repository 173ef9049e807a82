"""The file that a flight's readers read from: another one, once the flight has started over.

Another program may take the file that a fetch is written to, and the fetch goes on in another.
Readers may be reading from the first at that moment, so it stays open to the end. Owns these
descriptors; which bytes may be read is the flight's."""

import os
from collections.abc import Callable


class FlightFile:
    """No file at first. *fd* is that of the present one, -1 where there is none. For the event
    loop."""

    def __init__(self) -> None:
        self.fd = -1
        self.on_another: dict[int, Callable[[], None]] = {}
        """Each is called when the flight goes on in another file than before; by what the caller
        knows it by."""
        self._given_up: list[int] = []

    def open(self, writer: int) -> None:
        """Open what *writer* writes to, as a description of its own, without the writer's lock:
        readers may keep it after a failure. Raises OSError."""
        self.fd = os.open(f"/proc/self/fd/{writer}", os.O_RDONLY | os.O_CLOEXEC)
        if self._given_up:
            for listener in list(self.on_another.values()):
                listener()

    def give_up(self) -> None:
        """Another program has the file."""
        if self.fd >= 0:
            self._given_up.append(self.fd)
            self.fd = -1

    def has_length(self, size: int) -> bool:
        """Whether there is a file of at least *size* bytes, as it was made: one that is shorter is
        another program's by now."""
        return self.fd >= 0 and os.fstat(self.fd).st_size >= size

    def close(self) -> None:
        """Close all of them."""
        for fd in (*self._given_up, self.fd):
            if fd >= 0:
                os.close(fd)
        self._given_up, self.fd = [], -1
