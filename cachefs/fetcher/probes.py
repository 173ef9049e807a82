"""Asks the sources that are left alone whether they are back, so that no reader has to find out."""

import contextlib
import logging

import trio

from cachefs.errors import CacheFSError
from cachefs.sources import ChainSource, Member

log = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds for which a real request may be the next probe, after one of ours has failed: there are
servers that answer for their images and not for themselves."""


class Probes:
    """One task for each source of *chain*. For one event loop; :meth:`changed` is for any thread
    while it runs."""

    def __init__(self, chain: ChainSource) -> None:
        self._chain = chain
        self._limiter = trio.CapacityLimiter(len(chain.members))
        self._change = trio.Event()

    def changed(self) -> None:
        """A source has begun to be left alone, or is back."""
        change, self._change = self._change, trio.Event()
        change.set()

    async def run(self) -> None:
        """Probe until cancelled; a thread that waits for a silent source is left behind."""
        async with trio.open_nursery() as nursery:
            for member in self._chain.members:
                nursery.start_soon(self._watch, member)

    async def _watch(self, member: Member) -> None:
        breaker, told, grace = member.breaker, False, 0.0
        while True:
            change = self._change
            if breaker.is_open and not told:
                log.warning(
                    "source %s fails, and is left alone for %.1f s: %s",
                    member.url,
                    breaker.rest(),
                    breaker.health.error,
                )
            elif told and not breaker.is_open:
                log.info("source %s is back", member.url)
            told = breaker.is_open
            if not told:
                grace = 0.0
                await change.wait()
            elif (rest := breaker.rest()) > 0:
                with trio.move_on_after(rest + grace):
                    await change.wait()
            elif breaker.admits():
                grace = GRACE
                with contextlib.suppress(CacheFSError):  # its breaker knows
                    await trio.to_thread.run_sync(
                        member.check, limiter=self._limiter, abandon_on_cancel=True
                    )
