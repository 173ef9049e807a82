"""Which queued images wait, for what, and until when.

Pure bookkeeping: no I/O, no tasks; the clock comes through the constructor. One event loop owns
it. An image that is not here may be tried at once."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum

from cachefs.errors import ImageBusyError, ImageChangedError, NoRoomError, SourceError
from cachefs.fetcher.retry import pause_after, retry_after

LEAST_PAUSE = 0.25
"""Seconds between two tries of one image, whatever has happened meanwhile."""


class WaitsFor(StrEnum):
    """What a queued image waits for."""

    SOURCE = "source"
    ROOM = "room"
    WRITER = "writer"
    CACHE = "cache"


LONGEST_PAUSES = {
    WaitsFor.SOURCE: 300.0,
    WaitsFor.ROOM: 5.0,
    WaitsFor.WRITER: 5.0,
    WaitsFor.CACHE: 300.0,
}
"""Seconds between two tries, at most. Whether there is room, or another writer has ended, is found
out here, and costs the source nothing."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One image's wait, as others see it: *error* is why, *seconds* are left until the next try."""

    waits_for: WaitsFor
    error: str
    seconds: float


@dataclass(slots=True)
class _Wait:
    waits_for: WaitsFor
    error: str
    failures: int
    tried: float
    due: float
    size: int | None


class Waits:
    """The waits of one queue.

    INVARIANT: an image that has failed is not tried again before :data:`LEAST_PAUSE` has passed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waits: dict[str, _Wait] = {}
        self._by_kind: dict[WaitsFor, set[str]] = {kind: set() for kind in WaitsFor}

    def put(self, image_id: str, error: Exception, size: int | None = None) -> float:
        """The image has failed of *error*: the seconds until it is due again, which grow from one
        failure to the next. *size* is in bytes, where it is known."""
        now, waits_for = self._clock(), waits_for_what(error)
        earlier = self._waits.get(image_id)
        failures = 1
        if earlier is not None and earlier.waits_for is waits_for:
            failures += earlier.failures
        asked = retry_after(error)
        pause = pause_after(failures, LONGEST_PAUSES[waits_for])
        due = now + max(LEAST_PAUSE, pause, asked)
        text = str(error) or type(error).__name__
        self.forget(image_id)
        self._by_kind[waits_for].add(image_id)
        self._waits[image_id] = _Wait(waits_for, text, failures, now, due, size)
        return due - now

    def again(self, image_id: str) -> None:
        """What the image waits for is not there yet: it is due later."""
        wait, now = self._waits.get(image_id), self._clock()
        if wait is not None:
            wait.failures, wait.tried = wait.failures + 1, now
            wait.due = now + max(
                LEAST_PAUSE, pause_after(wait.failures, LONGEST_PAUSES[wait.waits_for])
            )

    def is_due(self, image_id: str) -> bool:
        """Whether the image may be tried now."""
        wait = self._waits.get(image_id)
        return wait is None or wait.due <= self._clock()

    def wanted_room(self, image_id: str) -> int | None:
        """The bytes that an image waits for room for; None where it does not, or they are not
        known."""
        wait = self._waits.get(image_id)
        return wait.size if wait is not None and wait.waits_for is WaitsFor.ROOM else None

    def reason(self, image_id: str) -> str | None:
        """Why the image waits; None where it does not."""
        wait = self._waits.get(image_id)
        return wait.error if wait is not None else None

    def get(self, image_id: str) -> Waiting | None:
        """The image's wait; None where it does not wait."""
        wait = self._waits.get(image_id)
        if wait is None:
            return None
        return Waiting(wait.waits_for, wait.error, max(0.0, wait.due - self._clock()))

    def wake(self, waits_for: WaitsFor) -> bool:
        """What these wait for may be there: they are due now, but for those just tried. Whether any
        is due sooner thereby; costs nothing where nobody waits."""
        sooner, now = False, self._clock()
        for image_id in self._by_kind[waits_for]:
            wait = self._waits[image_id]
            due = max(now, wait.tried + LEAST_PAUSE)
            if due < wait.due:
                wait.due, sooner = due, True
        return sooner

    def forget(self, image_id: str) -> None:
        """The image does not wait any more, and may be tried at once."""
        wait = self._waits.pop(image_id, None)
        if wait is not None:
            self._by_kind[wait.waits_for].remove(image_id)

    def keep_only(self, image_ids: Collection[str]) -> None:
        """Forget all others: they have left the queue."""
        for image_id in self._waits.keys() - image_ids:
            self.forget(image_id)


def waits_for_what(error: Exception) -> WaitsFor:
    """What must come to pass before it is worth while to try again after *error*."""
    if isinstance(error, NoRoomError):
        return WaitsFor.ROOM
    if isinstance(error, ImageBusyError):
        return WaitsFor.WRITER
    if isinstance(error, SourceError | ImageChangedError):
        return WaitsFor.SOURCE
    return WaitsFor.CACHE
