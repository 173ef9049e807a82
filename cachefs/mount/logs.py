"""Where the daemon's log goes, and what never gets into it.

Every line loses the secrets of the mount's own sources, and whatever else looks like one
(:mod:`cachefs.redaction`): those who log say what is public, this is for what they overlook, a
traceback or a library's own words. A file that is made is its owner's alone."""

import errno
import io
import logging
import logging.handlers
import os
from collections.abc import Iterable
from pathlib import Path

from cachefs.redaction import secrets_of, without_secrets
from cachefs.settings import Settings

_SYSLOG = Path("/dev/log")
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to(settings: Settings) -> None:
    """Log to stderr in the foreground, else to the log file, else to syslog, else, where there is
    none, to ``.cachefs/log`` in the cache directory. Raises OSError where the file cannot be
    written."""
    handler: logging.Handler
    form = _FORMAT
    file = log_file(settings)
    if file is not None:
        if settings.log_file is None:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = PrivateFileHandler(file)
    elif settings.foreground:
        handler = logging.StreamHandler()
    else:
        handler = logging.handlers.SysLogHandler(
            str(_SYSLOG), logging.handlers.SysLogHandler.LOG_DAEMON
        )
        form = "cachefs: %(levelname)s %(message)s"
    handler.setFormatter(Formatter(form, known_secrets(settings)))
    handler.addFilter(is_news)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(settings.log_level.upper())


def is_news(record: logging.LogRecord) -> bool:
    """Not so: what pyfuse3 calls an error when the kernel waits for an answer no more, because the
    filesystem was unmounted or who asked was killed (ENOENT of write(2), fuse(4))."""
    gone = record.name == "pyfuse3" and "fuse_reply" in record.msg
    return not (gone and record.getMessage().endswith(os.strerror(errno.ENOENT)))


def log_file(settings: Settings) -> Path | None:
    """The file that is logged to, or None where it is stderr or syslog."""
    if settings.log_file is not None or settings.foreground or _SYSLOG.is_socket():
        return settings.log_file
    return settings.cache_dir / ".cachefs" / "log"


def more(settings: Settings) -> str:
    """For the end of an error: where the log says more; empty where the user sees it, or it goes
    with a cache directory that is not kept."""
    file = settings.log_file
    if file is None and (settings.foreground or not _SYSLOG.is_socket()):
        return ""
    return f"; the log ({file or 'syslog'}) says more"


def known_secrets(settings: Settings) -> list[str]:
    """Every secret of the mount's sources."""
    return [each for url in (settings.source, *settings.fallbacks) for each in secrets_of(url)]


class Formatter(logging.Formatter):
    """Formats a record, its traceback included, without any secret."""

    def __init__(self, form: str, known: Iterable[str] = ()) -> None:
        super().__init__(form)
        self._known = tuple(known)

    def format(self, record: logging.LogRecord) -> str:
        """See :meth:`logging.Formatter.format`."""
        return without_secrets(super().format(record), self._known)


class PrivateFileHandler(logging.handlers.WatchedFileHandler):
    """Appends to a file, made anew where logrotate(8) has taken it away; one that it makes is its
    owner's alone (mode 0600)."""

    def _open(self) -> io.TextIOWrapper:
        fd = os.open(
            self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        return os.fdopen(fd, "a", encoding="utf-8", errors="backslashreplace")
