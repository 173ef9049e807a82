"""Hits of cached images: counted when an image is opened, written a moment after the answer.

Writing one costs the index a transaction, for which neither the reader that opens need wait nor the
next one: after a write the next waits for :data:`PAUSE`, and those of the same image are one. What
shows hits writes the pending ones first (:meth:`Hits.write`), so that a reader finds its own open
counted. A worker that is killed loses those of its last moment."""

import threading
from collections import Counter

import trio

from cachefs.cache import QuickStore

PAUSE = 0.002
"""Seconds between two writes, in which hits are gathered: what a ``kill -9`` costs, at most."""

DELAY = 0.0005
"""Seconds between an open and the write of its hit: the reader that is woken by the answer may have
to wait for this processor."""


class Hits:
    """The hits of one worker; *total* since its start. :meth:`count` is for the event loop,
    :meth:`write` for any thread."""

    def __init__(self, store: QuickStore) -> None:
        self._store = store
        self._pending: Counter[str] = Counter()
        self._adding = threading.Lock()  # never held while anything is written
        self._writing = threading.Lock()
        self._counted = trio.Event()
        self.total = 0

    def count(self, image_id: str) -> None:
        """An image has been opened."""
        self.total += 1
        with self._adding:
            self._pending[image_id] += 1
        self._counted.set()

    def closed(self, image_id: str) -> None:
        """An image has been closed for the last time: a use of it, and no hit."""
        with self._adding:
            self._pending[image_id] += 0
        self._counted.set()

    def write(self) -> None:
        """Write what is counted so far. All of it is in the index when this returns, also what
        another thread was just writing: the lock is held for as long as that takes."""
        with self._writing:
            with self._adding:
                pending, self._pending = self._pending, Counter()
            for image_id, count in pending.items():
                self._store.hit(image_id, count)

    async def run(self) -> None:
        """Write until cancelled, and once more then. In the event loop: a thread costs the next
        open more, which waits for the interpreter with it while an image is fetched."""
        try:
            while True:
                await self._counted.wait()
                await trio.sleep(DELAY)
                self._counted = trio.Event()
                self.write()
                await trio.sleep(PAUSE - DELAY)
        finally:
            self.write()
