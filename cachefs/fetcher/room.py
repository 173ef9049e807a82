"""Waiting for room in the cache: who waits hears when there may be some.

Knows nothing of how much there is: whoever is woken tries again, and may wait again."""

import trio

ROOM_POLL = 0.5
"""Seconds after which it is tried again at the latest: another process may have made room."""


class Room:
    """For one event loop."""

    def __init__(self) -> None:
        self._change = trio.Event()

    @property
    def next_change(self) -> trio.Event:
        """Set at the next :meth:`changed`. Take it before looking for room, so that nothing that
        happens meanwhile is missed."""
        return self._change

    def changed(self) -> None:
        """There may be room: an image was published, closed, evicted or unpinned, a fetch has
        ended, a limit was raised."""
        change, self._change = self._change, trio.Event()
        change.set()
