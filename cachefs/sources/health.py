"""How a source is, and whether it is asked: one circuit breaker for each source.

========= ==============================================================================
closed    it is asked
open      it has failed several times in a row, or has asked to be left alone: it is not
          asked for a while, which grows from one time to the next
half-open the while is over: the first to ask is the probe, whose answer closes or opens
========= ==============================================================================

Knows nothing of images or of what is asked. The clock comes through the constructor."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cachefs.errors import (
    CacheFSError,
    ImageChangedError,
    ImageNotFoundError,
    SourceError,
    SourceRefusedError,
    SourceTimeoutError,
    SourceUnavailableError,
    SourceUnreachableError,
    is_shortage_of_files,
    without_traceback,
)

FAILURES: Final = 3
"""Failures in a row after which a source is left alone."""

FIRST_REST: Final = 1.0
LONGEST_REST: Final = 60.0
"""Seconds for which it is left alone: the first time, and at most; doubled each time."""

LONGEST_RETRY_AFTER: Final = 3600.0
"""Seconds for which a source's own ``Retry-After`` is obeyed, at most."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the source answered when it was last asked, and if not, why; *healthy* is None before
    it was asked."""

    healthy: bool | None = None
    error: str | None = None


def is_passing(error: BaseException) -> bool:
    """Whether the same request may well succeed a little later: 429, 5xx, a connection that broke,
    a server that is away or slow; or files that this process cannot open now. What a source
    refuses, lacks or has changed is an answer."""
    if is_shortage_of_files(error):
        return True
    return isinstance(error, SourceError) and not isinstance(
        error, SourceRefusedError | ImageNotFoundError | ImageChangedError
    )


def is_outage(error: BaseException) -> bool:
    """Whether *error* is the source's trouble, whatever image it was asked for. One image that it
    sends wrong, short, coded or without end is no reason to keep the others waiting."""
    if isinstance(error, SourceError) and error.retry_after is not None:
        return True
    return isinstance(error, SourceUnreachableError | SourceTimeoutError | SourceUnavailableError)


class Breaker:
    """The health of one source, from what the threads that ask it report. Thread-safe.

    *on_change* is called, in the reporting thread and without a lock, whenever the source begins or
    ends to be left alone.

    INVARIANT: a source that is left alone begins to be asked again with one probe; a source that
    fails again soon after it came back is left alone for longer than before."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._on_change = on_change
        self._lock = threading.Lock()
        self._health = Health()
        self._last_error: SourceError | None = None
        self._failures = 0
        self._failed_at = float("-inf")
        self._open = False
        self._opened_at = float("-inf")
        self._until = float("-inf")
        self._rest = 0.0
        self._told_to_wait = False
        self._probing = False

    @property
    def health(self) -> Health:
        """How the source was when last asked."""
        return self._health

    @property
    def is_open(self) -> bool:
        """Whether the source is left alone, or waits for its probe."""
        return self._open

    def rest(self) -> float:
        """Seconds for which the source is still left alone; 0 where it may be asked."""
        with self._lock:
            return max(0.0, self._until - self._clock()) if self._open else 0.0

    def admits(self) -> bool:
        """Whether the caller may ask the source now. Where it is half-open the caller is the probe,
        and others are refused until it has reported, or as long again has passed."""
        with self._lock:
            if not self._open:
                return True
            now = self._clock()
            if now < self._until:
                return False
            self._until, self._told_to_wait = now + max(self._rest, FIRST_REST), False
            self._probing = True
            return True

    def refusal(self) -> SourceError | None:
        """The error for a caller that must not ask, because the source has asked to be left alone;
        None where asking in vain is the worst that can happen."""
        with self._lock:
            rest = self._until - self._clock()
            asked_for = self._open and self._told_to_wait and rest > 0
            return self._last_with(rest) if asked_for else None

    def last_error(self) -> SourceError:
        """Why the source is left alone; ``retry_after`` is for how long, where it asked for it."""
        with self._lock:
            rest = self._until - self._clock()
            return self._last_with(rest if self._told_to_wait and rest > 0 else None)

    def begin(self) -> float:
        """The moment a request begins, for :meth:`answered` and :meth:`failed`."""
        return self._clock()

    def answered(self, began: float, *, probe: bool = False) -> None:
        """The source has answered, whatever it said, a request that *began* then. Of a mere *probe*
        (the source is there) it is not believed for long: one failure, and the source is left alone
        again. What was under way when it began to be left alone changes nothing of that."""
        with self._lock:
            if self._open and began < self._opened_at:
                return
            closed, self._open, self._probing = self._open, False, False
            self._health = Health(True)
            now = self._clock()
            self._failures = FAILURES - 1 if probe else 0
            if not probe and now - self._failed_at > 2 * self._rest:
                self._rest = 0.0
        if closed:
            self._on_change()

    def failed(self, error: CacheFSError, began: float) -> None:
        """A request that *began* then has failed. What is no outage counts as an answer."""
        if not isinstance(error, SourceError) or not is_outage(error):
            self.answered(began)
            return
        with self._lock:
            changed = self._note_failure(error, began)
        if changed:
            self._on_change()

    # Inside the lock

    def _note_failure(self, error: SourceError, began: float) -> bool:
        """Whether the source is left alone from now on, or for longer."""
        now = self._clock()
        self._health = Health(False, str(error))
        self._last_error = without_traceback(error)
        asked = error.retry_after
        if began >= self._failed_at or self._failures == 0:  # else it is of the same outage
            self._failures += 1
            self._failed_at = now
        elif asked is None:
            return False
        probing, self._probing = self._probing, False
        if asked is None and not (probing if self._open else self._failures >= FAILURES):
            return False
        self._rest = min(LONGEST_REST, max(FIRST_REST, 2 * self._rest))
        until = now + random.uniform(self._rest / 2, self._rest)
        self._told_to_wait = asked is not None
        if asked is not None:
            until = max(until, now + min(asked, LONGEST_RETRY_AFTER))
        changed = not self._open or until > self._until
        if not self._open or asked is not None:
            self._opened_at = now
        self._open, self._until = True, max(self._until, until)
        return changed

    def _last_with(self, retry_after: float | None) -> SourceError:
        last = self._last_error
        assert last is not None
        copy = without_traceback(last)
        copy.retry_after = retry_after
        return copy
