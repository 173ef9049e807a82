"""The process that answers requests: ``python -m cachefs.mount.worker CONFIG``, started by the
supervisor."""

import logging
import os
import sys

import trio

from cachefs.errors import CacheFSError, MountError
from cachefs.mount.daemon import serve
from cachefs.mount.handoff import from_text
from cachefs.mount.logs import log_to
from cachefs.transport.worker import Attachment

log = logging.getLogger(__name__)


def main() -> int:
    """Serve until unmounted, or told to leave. Why it could not is one line on stderr."""
    attachment = Attachment.from_environment()
    if attachment is None or len(sys.argv) != 2:
        sys.stderr.write("cachefs: this is started by cachefs mount\n")
        return 2
    config = from_text(sys.argv[1])
    log_to(config)
    try:
        trio.run(serve, config, attachment, lambda: None if config.foreground else _hush())
    except BaseExceptionGroup as group:
        error = _first(group)
        log.error("%s", error)
        sys.stderr.write(f"cachefs: {error}\n")
        return 1
    return 0


def _hush() -> None:
    """From now on there is a log; stderr was for whoever waits for the mount."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error that is no group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, CacheFSError) else MountError(f"cannot serve: {error}")


if __name__ == "__main__":
    sys.exit(main())
