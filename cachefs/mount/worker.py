"""The process that answers requests: ``python -m cachefs.mount.worker``, started by the supervisor,
which hands it the settings."""

import logging
import os
import sys

import trio

from cachefs.cache.layout import Layout
from cachefs.errors import CacheFSError, MountError
from cachefs.kernel.descriptors import raise_limit
from cachefs.mount.attachment import Attachment
from cachefs.mount.daemon import serve
from cachefs.mount.logs import known_secrets, log_to, more
from cachefs.redaction import without_secrets
from cachefs.settings import RunningSettings, Settings
from cachefs.settings.document import from_document
from cachefs.supervise.protocol import TOLD_WHY

log = logging.getLogger(__name__)


class _UnforeseenError(MountError):
    """What is none of ours; where it came from is of use in the log."""


def main() -> int:
    """Serve until unmounted, or told to leave. Why it could not is one line on stderr."""
    attachment = Attachment.from_environment()
    if attachment is None or not attachment.document:
        sys.stderr.write("cachefs: this is started by cachefs mount\n")
        return 2
    try:
        settings, mount_id = from_document(attachment.document)
    except CacheFSError as error:
        sys.stderr.write(f"cachefs: {error}\n")
        return TOLD_WHY
    log_to(settings)
    _raise_limit()
    running = RunningSettings(settings, mount_id, Layout(settings.cache_dir))
    try:
        trio.run(serve, running, attachment, lambda: None if settings.foreground else _hush())
    except (CacheFSError, OSError, BaseExceptionGroup) as error:
        ours = _first(error, settings)
        text = " ".join(without_secrets(str(ours), known_secrets(settings)).split())
        if not settings.foreground or settings.log_file is not None:
            log.error("%s", text, exc_info=error if isinstance(ours, _UnforeseenError) else None)
        sys.stderr.write(f"cachefs: {text}\n")
        return TOLD_WHY
    return 0


def _raise_limit() -> None:
    """An image that is open takes a descriptor."""
    try:
        raise_limit()
    except (OSError, ValueError) as error:
        log.warning("the limit of open files stays as it is: %s", error)


def _hush() -> None:
    """From now on there is a log; stderr was for the command that waits for the mount."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def _first(error: BaseException, settings: Settings) -> CacheFSError:
    """The first error that is no group, in words of ours."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, CacheFSError):
        return error
    if isinstance(error, OSError) and error.strerror:
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        what = f"{type(error).__name__}: {error}"
    return _UnforeseenError(
        f"cannot serve {settings.mountpoint} from {settings.cache_dir}: {what}{more(settings)}"
    )


if __name__ == "__main__":
    sys.exit(main())
