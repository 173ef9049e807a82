"""Becoming a daemon: fork, wait until the child says that it is ready or why it cannot be."""

import logging
import os
import signal
from collections.abc import Callable
from typing import NoReturn

from cachefs.errors import CacheFSError, MountError

log = logging.getLogger(__name__)

_READY = b"\0"


def in_background(serve: Callable[[Callable[[], None]], int]) -> None:
    """Run ``serve(ready)`` in a new session, without a terminal; returns once it has called
    *ready*.

    Raises MountError with what *serve* raised before that, or with the last line that it, or a
    child of its, has written to stderr. No thread may run when this is called: a fork copies their
    locks."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _live(serve, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    if answer != _READY:
        _, status = os.waitpid(pid, 0)
        raise MountError(answer.decode(errors="replace") or _how_it_ended(pid, status))


def _live(serve: Callable[[Callable[[], None]], int], writing: int) -> NoReturn:
    """The daemon's whole life."""
    os.set_inheritable(writing, False)
    os.setsid()
    os.chdir("/")
    null, said = os.open(os.devnull, os.O_RDWR), os.memfd_create("stderr")
    for fd, target in ((null, 0), (null, 1), (said, 2)):
        os.dup2(fd, target)
    told = False

    def tell(answer: bytes) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(writing, answer)
            os.close(writing)

    def ready() -> None:
        os.dup2(null, 2)
        tell(_READY)

    status = 1
    try:
        status = serve(ready)
        tell(_last_line(said) or b"a signal ended it before the mount answered")
    except CacheFSError as error:
        log.error("%s", error)
        line = _last_line(said)  # of a worker that died, say
        tell(str(error).encode() + (b" (" + line + b")" if line else b""))
    except BaseException as error:
        log.exception("ended by an error")
        tell(f"{type(error).__name__}: {error}".encode())
    finally:
        logging.shutdown()
        os._exit(status)


def _how_it_ended(pid: int, status: int) -> str:
    """Of a daemon that could not say why."""
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return f"the daemon (pid {pid}) died of {name} before the mount answered: try again"
    return f"the daemon (pid {pid}) ended before the mount answered: the log says more"


def _last_line(fd: int) -> bytes:
    lines = os.pread(fd, 2**16, 0).strip().splitlines()
    return lines[-1].removeprefix(b"cachefs: ") if lines else b""
