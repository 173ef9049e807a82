"""When to try again: growing pauses with jitter, and which errors are worth another try."""

import random
from collections.abc import Iterator

from cachefs.errors import (
    ImageChangedError,
    ImageNotFoundError,
    SourceError,
    SourceRefusedError,
)

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 15.0


def pauses(tries: int) -> Iterator[float]:
    """The seconds to wait before each of *tries* further tries: doubling, each anywhere between
    half and the whole of its turn ("equal jitter"), so that many caches do not knock in step."""
    for number in range(tries):
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2**number)
        yield random.uniform(longest / 2, longest)


def is_passing(error: Exception) -> bool:
    """Whether the same request may well succeed a little later."""
    return isinstance(error, SourceError) and not isinstance(
        error, SourceRefusedError | ImageNotFoundError | ImageChangedError
    )


class RetryPolicy:
    """When one worker tries again: up to *tries* failures in a row pass, each after a longer pause.
    Any progress, of whichever worker, starts the count anew."""

    def __init__(self, tries: int) -> None:
        self._tries = tries
        self._pauses = pauses(tries)
        self._progress = 0

    def pause(self, error: Exception, progress: int) -> float | None:
        """The seconds to wait before another try, or None to give up; *progress* is any number that
        grows with it."""
        if progress != self._progress:
            self._progress, self._pauses = progress, pauses(self._tries)
        return next(self._pauses, None) if is_passing(error) else None
