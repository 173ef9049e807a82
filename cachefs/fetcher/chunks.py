"""Which chunks of an image have arrived, which are on their way, and which to ask for next.

Pure bookkeeping: no I/O, no clock, no locks (one task owns it). Offsets are bytes; a chunk is
:data:`~cachefs.cache.CHUNK` bytes but for the last.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from cachefs.cache import CHUNK

READ_AHEAD = 64 * 2**20
"""Bytes that the background fill gets next where a reader reads on in order, before it goes back to
the first gap."""

_MISSING, _CLAIMED, _HAVE = 0, 1, 2

_READERS = 64
"""Sequential readers told apart; the one that stood still for longest is forgotten first."""


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes [*start*, *stop*), to be got with one request; whole chunks."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class ChunkMap:
    """The chunks of an image of *size* bytes.

    INVARIANT: a chunk that has arrived is never asked for again, and none is on its way twice.
    """

    def __init__(self, size: int, chunk: int = CHUNK, *, present: Iterable[int] = ()) -> None:
        self.size = size
        self.chunk = chunk
        self._states = bytearray(-(-size // chunk))
        self._demanded: dict[int, None] = {}
        self._ends: dict[int, None] = {}
        self._ahead = range(0)
        self._cursor = 0
        self._prefix = 0
        self._last: int | None = None
        self.arrived_bytes = 0
        for number in present:
            self.arrived(number * chunk, min((number + 1) * chunk, size))
        self._last = None

    @property
    def complete(self) -> bool:
        """Whether every chunk has arrived."""
        return self.arrived_bytes == self.size

    @property
    def prefix(self) -> int:
        """How many bytes have arrived without a gap from the start."""
        return min(self._prefix * self.chunk, self.size)

    def covers(self, start: int, stop: int) -> bool:
        """Whether all of [*start*, *stop*), cut to the image, has arrived."""
        stop = min(stop, self.size)
        if start >= stop:
            return True
        first, last = start // self.chunk, (stop - 1) // self.chunk
        return all(state == _HAVE for state in self._states[first : last + 1])

    def completes(self, start: int, stop: int) -> bool:
        """Whether all has arrived, and [*start*, *stop*) has some of the chunk that came last:
        a reader that has read everything has read that too. All are last that were here from the
        start."""
        if not self.complete or start >= min(stop, self.size):
            return False
        if self._last is None:
            return True
        return start // self.chunk <= self._last <= (min(stop, self.size) - 1) // self.chunk

    def demand(self, start: int, stop: int) -> bool:
        """Ask for [*start*, *stop*) before all else; whether any of it is neither on its way nor
        asked for already: many readers who wait would wake each other without an end."""
        first, last = start // self.chunk, (min(stop, self.size) - 1) // self.chunk
        before = len(self._demanded)
        for number in range(first, last + 1):
            if self._states[number] == _MISSING:
                self._demanded.setdefault(number)
        return len(self._demanded) > before

    def claim_demanded(self, most: int) -> Span | None:
        """The span to get for the oldest demand, with what follows it up to *most* bytes; or
        None. A demand that goes on where an earlier span ended is a sequential reader's."""
        while self._demanded:
            number = next(iter(self._demanded))
            del self._demanded[number]
            if self._states[number] == _MISSING:
                sequential = number in self._ends
                self._ends.pop(number, None)
                span = self._claim(number, most)
                end = self._remember_end(span)
                if sequential:
                    self._ahead = range(end, end + max(1, READ_AHEAD // self.chunk))
                return span
        return None

    def claim_next(self, most: int) -> Span | None:
        """The first span that nobody is getting, ahead of a sequential reader if there is one, up
        to *most* bytes; None when there is none."""
        if self._ahead:
            found = self._states.find(_MISSING, self._ahead.start, self._ahead.stop)
            if found >= 0:
                span = self._claim(found, most)
                self._remember_end(span)
                return span
            self._ahead = range(0)
        found = self._states.find(_MISSING, self._cursor)
        if found < 0:
            self._cursor = len(self._states)
            return None
        self._cursor = found
        return self._claim(found, most)

    def arrived(self, start: int, stop: int) -> None:
        """Bytes [*start*, *stop*) of a claimed span are written. Chunks that are whole thereby
        count; *start* is on a chunk's boundary, *stop* too or the image's end."""
        for number in range(start // self.chunk, -(-stop // self.chunk)):
            if self._states[number] != _HAVE:
                self._states[number] = _HAVE
                self._last = number
                self.arrived_bytes += min(self.chunk, self.size - number * self.chunk)
        while self._prefix < len(self._states) and self._states[self._prefix] == _HAVE:
            self._prefix += 1

    def release(self, span: Span) -> None:
        """The worker that got *span* has stopped: what has not arrived is to be asked for again."""
        for number in range(span.start // self.chunk, -(-span.stop // self.chunk)):
            if self._states[number] == _CLAIMED:
                self._states[number] = _MISSING
                self._cursor = min(self._cursor, number)

    def _claim(self, first: int, most: int) -> Span:
        end = min(len(self._states), first + max(1, most // self.chunk))
        number = first
        while number < end and self._states[number] == _MISSING:
            self._states[number] = _CLAIMED
            self._demanded.pop(number, None)
            number += 1
        return Span(first * self.chunk, min(number * self.chunk, self.size))

    def _remember_end(self, span: Span) -> int:
        """A reader may come to the end of *span*: the number of the chunk there."""
        end = -(-span.stop // self.chunk)
        self._ends[end] = None
        if len(self._ends) > _READERS:
            del self._ends[next(iter(self._ends))]
        return end
