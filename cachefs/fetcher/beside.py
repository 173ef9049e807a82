"""A fetch while another program caches the same image in the same directory: a Glance, say, which
takes no lock, or the library.

Owns one decision: who reads the image is served, whatever the other one does. Where it is already
at it, where it has taken our file away, or where it was faster, the fetch starts over, in a file
that nobody else knows. What is only queued waits for the other one instead."""

from collections.abc import Awaitable, Callable

from cachefs.drivers import Entry
from cachefs.errors import ImageBusyError, ImageExistsError

TRIES = 3
"""How often a fetch starts over; a file of its own can only be taken away on purpose."""


async def despite_others(
    fetch: Callable[[], Awaitable[Entry]],
    *,
    is_read: Callable[[], bool],
    has_begun: Callable[[], bool],
    start_over: Callable[[], None],
) -> Entry:
    """The record that *fetch* returns, started over where another program was in its way.

    *start_over* makes everything ready for another try. An image that another program has cached
    before the first byte (not *has_begun*) is not fetched: raises ImageExistsError. Raises
    ImageBusyError where nobody reads, else as *fetch*."""
    for _ in range(TRIES):
        try:
            return await fetch()
        except ImageBusyError:
            if not is_read():
                raise
        except ImageExistsError:
            if not (is_read() and has_begun()):
                raise
        start_over()
    return await fetch()
