"""The process that answers requests: ``python -m cachefs.mount.worker CONFIG``, started by the
supervisor."""

import logging
import os
import sys

import trio

from cachefs.errors import CacheFSError, MountError
from cachefs.mount.attachment import Attachment
from cachefs.mount.daemon import serve
from cachefs.mount.handoff import from_text
from cachefs.mount.logs import log_to
from cachefs.supervise.protocol import TOLD_WHY

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
    except (CacheFSError, OSError, BaseExceptionGroup) as error:
        text = str(_first(error))
        if not config.foreground or config.log_file is not None:
            log.error("%s", text)
        sys.stderr.write(f"cachefs: {text}\n")
        return TOLD_WHY
    return 0


def _hush() -> None:
    """From now on there is a log; stderr was for whoever waits for the mount."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def _first(error: BaseException) -> BaseException:
    """The first error that is no group, in words of ours."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, CacheFSError) else MountError(f"cannot serve: {error!r}")


if __name__ == "__main__":
    sys.exit(main())
