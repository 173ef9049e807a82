"""When to try again: growing pauses with jitter, and which errors are worth another try."""

import random
from collections.abc import Iterator

from cachefs.errors import (
    ChecksumError,
    ImageNotFoundError,
    ImageTooLargeError,
    InvalidImageIDError,
    SourceError,
)
from cachefs.sources import is_passing

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 15.0


def pause_after(failures: int, longest: float = LONGEST_PAUSE) -> float:
    """The seconds to wait after so many failures in a row (1: the first): doubling, each anywhere
    between half and the whole of its turn ("equal jitter"), so that many caches do not knock in
    step."""
    # The power is bounded: an image may wait in the queue for months.
    longest = min(longest, FIRST_PAUSE * 2 ** min(failures - 1, 30))
    return random.uniform(longest / 2, longest)


def pauses(tries: int) -> Iterator[float]:
    """The seconds to wait before each of *tries* further tries."""
    for number in range(tries):
        yield pause_after(number + 1)


def is_final(error: Exception) -> bool:
    """Whether *error* is an authoritative no, after which an image is not wanted any more: the
    source lacks it, its bytes are wrong, or it can never fit. All else passes, or may be put right:
    what was refused, changed on the way, found no room, or met a fault of ours."""
    return isinstance(
        error, ImageNotFoundError | ImageTooLargeError | ChecksumError | InvalidImageIDError
    )


def retry_after(error: Exception) -> float:
    """The seconds for which the source has asked to be left alone; 0 where it has not."""
    return error.retry_after or 0.0 if isinstance(error, SourceError) else 0.0


class RetryPolicy:
    """When one worker tries again: up to *tries* failures in a row pass, each after a longer pause.
    Any progress, of whichever worker, starts the count anew. A source that asks for longer than
    :data:`LONGEST_PAUSE` is not waited for."""

    def __init__(self, tries: int) -> None:
        self._tries = tries
        self._pauses = pauses(tries)
        self._progress = 0

    def pause(self, error: Exception, progress: int) -> float | None:
        """The seconds to wait before another try, or None to give up; *progress* is any number that
        grows with it."""
        if progress != self._progress:
            self._progress, self._pauses = progress, pauses(self._tries)
        if not is_passing(error) or retry_after(error) > LONGEST_PAUSE:
            return None
        pause = next(self._pauses, None)
        return None if pause is None else max(pause, retry_after(error))
