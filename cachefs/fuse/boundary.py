"""Where errors become errnos: no request handler lets anything but FUSEError out.

pyfuse3 ends the daemon when a handler raises anything else, so a bug answers EIO and is logged.
"""

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import pyfuse3

from cachefs.errors import CacheFSError, errno_of
from cachefs.throttle import Throttle

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

_throttle = Throttle()


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
            elif (more := _throttle.more((handler.__name__, number))) is not None:
                name = errno.errorcode.get(number)
                log.warning("%s: %s (%s)%s", handler.__name__, error, name, more)
            raise pyfuse3.FUSEError(number) from error
        except Exception as error:
            log.exception("%s failed", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return answer
