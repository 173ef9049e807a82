"""A daemon's birth: fork, wait until it says that it is ready or why it cannot be."""

import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from cachefs.errors import CacheFSError, MountError

log = logging.getLogger(__name__)

_READY = b"\0"


def in_background(serve: Callable[[Callable[[], None]], None]) -> int:
    """Run ``serve(ready)`` in a new session, without a terminal; its pid, once it has called
    *ready*.

    Raises MountError with what *serve* raised before that. No thread may run when this is called: a
    fork copies none, but their locks.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.read()
        if answer == _READY:
            return pid
        os.waitpid(pid, 0)
        raise MountError(answer.decode() or "the daemon died before the mount answered")
    os.close(reading)
    return _child(serve, writing)


def _child(serve: Callable[[Callable[[], None]], None], writing: int) -> NoReturn:
    """The daemon's whole life; never returns."""
    status = 1
    told = False

    def tell(answer: bytes) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(writing, answer)
            os.close(writing)

    try:
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)

        def ready() -> None:
            os.dup2(null, 2)  # until here libfuse may have to say on stderr why it cannot mount
            tell(_READY)

        serve(ready)
        status = 0
    except CacheFSError as error:
        log.error("%s", error)
        tell(str(error).encode())
    except BaseException as error:
        log.exception("the daemon ended by an error")
        tell(f"{type(error).__name__}: {error}".encode())
    finally:
        sys.stdout.flush()
        logging.shutdown()
        os._exit(status)
