"""Where errors become errnos: no request handler lets anything but FUSEError out.

pyfuse3 ends the daemon when a handler raises anything else, so a bug answers EIO and is logged.
"""

import errno
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import pyfuse3

from cachefs.errors import CacheFSError, errno_of

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_EXPECTED = frozenset(
    {
        errno.ENOENT,
        errno.EINVAL,
        errno.EROFS,
        errno.EPERM,
        errno.EEXIST,
        errno.EBUSY,  # `rm` of a pinned image
        errno.EINTR,  # Ctrl-C
        errno.ESTALE,  # the kernel looks the name up again; nobody sees it
    }
)
"""Answers to everyday questions, not worth a line in the log."""


_QUIET = 5.0
"""Seconds in which a failure of one kind is logged once: a full disk fails thousands of requests
a second."""


class _Complaints:
    """What was logged when, by handler and errno, and how often it was not."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, int], float] = {}
        self._more: Counter[tuple[str, int]] = Counter()

    def log(self, handler: str, number: int, error: Exception) -> None:
        key, now = (handler, number), time.monotonic()
        if now - self._last.get(key, -_QUIET) < _QUIET:
            self._more[key] += 1
            return
        self._last[key] = now
        more = self._more.pop(key, 0)
        log.warning(
            "%s: %s (%s)%s",
            handler,
            error,
            errno.errorcode.get(number),
            f", and {more} such failures since the last of these lines" if more else "",
        )


_complaints = _Complaints()


def answers(handler: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """A request handler whose errors are the kernel's: an exception becomes its errno, and a line
    in the log where an operator would want one."""

    @functools.wraps(handler)
    async def answer(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except (CacheFSError, OSError) as error:
            number = errno_of(error)
            if number in _EXPECTED:
                log.debug("%s: %s (%s)", handler.__name__, error, errno.errorcode.get(number))
            else:
                _complaints.log(handler.__name__, number, error)
            raise pyfuse3.FUSEError(number) from error
        except Exception as error:
            log.exception("%s failed", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return answer
