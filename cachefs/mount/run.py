"""``cachefs mount`` from the checks to the exit status: in the foreground, or in a process of its
own."""

import functools
import logging
from collections.abc import Callable

import trio

from cachefs.config import Config
from cachefs.errors import CacheFSError, MountError
from cachefs.mount.background import in_background
from cachefs.mount.checks import check
from cachefs.mount.daemon import serve
from cachefs.mount.logs import log_to

log = logging.getLogger(__name__)


def run(config: Config) -> int:
    """Mount and serve. Returns the exit status: in the foreground when it is unmounted, else as
    soon as the mount answers. Raises :class:`~cachefs.errors.CacheFSError` when it cannot be
    mounted."""
    check(config)
    try:
        log_to(config)  # before the fork, while what goes wrong can still be said plainly
    except OSError as error:
        raise MountError(f"cannot write the log: {error}") from error
    if config.foreground:
        _serve(config, lambda: None)
    else:
        in_background(functools.partial(_serve, config))
    return 0


def _serve(config: Config, ready: Callable[[], None]) -> None:
    try:
        trio.run(serve, config, ready, strict_exception_groups=True)
    except* CacheFSError as group:
        raise _first(group) from None
    except* OSError as group:
        error = _first(group)
        raise MountError(f"cannot mount {config.mountpoint}: {error}") from error


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error that is no group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
