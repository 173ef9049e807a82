"""Where the daemon's log goes."""

import logging
import logging.handlers
from pathlib import Path

from cachefs.settings import Settings

_SYSLOG = Path("/dev/log")
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to(settings: Settings) -> None:
    """Log to stderr in the foreground, else to the log file, else to syslog, else, where there is
    none, to ``.cachefs/log`` in the cache directory. Raises OSError where the file cannot be
    written."""
    handler: logging.Handler
    form = _FORMAT
    if settings.log_file is not None:
        handler = logging.handlers.WatchedFileHandler(settings.log_file)
    elif settings.foreground:
        handler = logging.StreamHandler()
    elif _SYSLOG.is_socket():
        handler = logging.handlers.SysLogHandler(
            str(_SYSLOG), logging.handlers.SysLogHandler.LOG_DAEMON
        )
        form = "cachefs: %(levelname)s %(message)s"
    else:
        private = settings.cache_dir / ".cachefs"
        private.mkdir(parents=True, exist_ok=True)
        handler = logging.handlers.WatchedFileHandler(private / "log")
    handler.setFormatter(logging.Formatter(form))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(settings.log_level.upper())
