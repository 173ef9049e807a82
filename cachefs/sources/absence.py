"""What a source answers for a name that it does not have.

"Not there" is 404 at most servers. A bucket that may be read but not listed says 403, other sites a
page of HTML with 200. Owns how that is found out: the source is asked for a name that cannot exist,
once in a while; knows nothing of HTTP but a status, and of digests nothing.
"""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cachefs.errors import CacheFSError

REMEMBERED: Final = 600.0
"""Seconds for which the answer to the impossible name is remembered."""

TRUSTED: Final = 2.0
"""Seconds for which a source that has served an image is known to serve images."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a source answered, as far as it tells one that has the file from one that has not."""

    status: int
    content_type: str = ""

    @property
    def is_page(self) -> bool:
        """Whether it is a page of HTML."""
        return self.content_type in ("text/html", "application/xhtml+xml")

    @property
    def is_there(self) -> bool:
        """Whether it brings the file, or says that there is one."""
        return self.status in (200, 206, 304, 416)


_NEVER_ABSENT: Final = frozenset({407, 408, 412, 425, 429})
"""Refusals that are not of the file: of the proxy, the moment, a precondition, the rate."""


class Absence:
    """Tells the answers of one source that mean "not there"; thread-safe.

    *ask* asks the source for a name and raises what :meth:`cachefs.sources.base.Source.stat` does
    where no answer comes."""

    def __init__(
        self, ask: Callable[[str], Answer], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._impossible = f"cachefs-no-such-file-{secrets.token_hex(8)}"
        self._lock = threading.Lock()
        self._usual: Answer | None = None
        self._asked = float("-inf")
        self._served: str | None = None
        self._served_at = float("-inf")

    def served(self, name: str) -> None:
        """The source has just shown that it has the file *name*, and gives it to us."""
        self._served, self._served_at = name, self._clock()

    def means(self, answer: Answer) -> bool:
        """Whether *answer* means that the file is not there; asks the source a few times.

        404 and 410 do. Any other does that is the answer to the impossible name, too, while the
        source serves other files: one that refuses all alike, for want of a password say, tells
        nothing by it. Raises nothing: where the source cannot be asked, the answer is what it is.
        """
        if answer.status in (404, 410):
            return True
        doubtful = 400 <= answer.status < 500 or answer.status == 200
        if not doubtful or answer.status in _NEVER_ABSENT:
            return False
        try:
            return self._like_the_impossible(answer) and self._serves(TRUSTED)
        except CacheFSError:
            return False

    def _like_the_impossible(self, answer: Answer) -> bool:
        with self._lock:  # of many who wonder at once, one asks
            if self._usual is None or self._clock() - self._asked >= REMEMBERED:
                usual = self._ask(self._impossible)
                # One that has just begun to refuse everything has not said what is usual.
                if not self._serves(trusted=0.0):
                    return False
                self._usual, self._asked = usual, self._clock()
            usual = self._usual
        if answer.status != usual.status:
            return False
        return answer.status != 200 or answer.content_type == usual.content_type

    def _serves(self, trusted: float) -> bool:
        """Whether the source serves the image that it served last, seen so within *trusted* s."""
        name = self._served
        if name is None:
            return False
        if self._clock() - self._served_at >= trusted:
            again = self._ask(name)
            if not again.is_there or again.is_page:
                return False
            self.served(name)
        return True
