"""Hits of cached images: counted when an image is opened, written right after the answer.

Writing one costs the index a transaction, for which the reader that opens need not wait. What shows
hits writes the pending ones first (:meth:`Hits.write`), so that a reader finds its own open
counted. Of a worker that is killed in the turn of the event loop between the two, the hit is
lost."""

from collections import deque

import trio

from cachefs.cache import QuickStore


class Hits:
    """The hits of one worker; *total* since its start. :meth:`write` is for any thread."""

    def __init__(self, store: QuickStore) -> None:
        self._store = store
        self._pending: deque[str] = deque()
        self._counted = trio.Event()
        self.total = 0

    def count(self, image_id: str) -> None:
        """An image has been opened."""
        self.total += 1
        self._pending.append(image_id)
        self._counted.set()

    def write(self) -> None:
        """Write what is counted so far; a few system calls for each."""
        while self._pending:
            try:
                image_id = self._pending.popleft()
            except IndexError:  # another thread took it
                return
            self._store.hit(image_id)

    async def run(self) -> None:
        """Write each at the next turn of the event loop, until cancelled."""
        try:
            while True:
                await self._counted.wait()
                self._counted = trio.Event()
                self.write()
        finally:
            self.write()
