"""Paths that a mount is told: made absolute, since the daemon leaves the directory in which it was
started; and where a source's images are kept when nobody says.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cachefs.errors import InvalidValueError


def absolute(path: str | os.PathLike[str]) -> Path:
    """*path* from the working directory. Raises InvalidValueError for an empty one."""
    if not os.fspath(path):
        raise InvalidValueError("empty")
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute() keeps `..`


def absolute_source(source: str) -> str:
    """*source* with a local path made absolute, so that it means the same from any directory."""
    if "://" in source:
        return source
    # Not resolved: a symbolic link may point elsewhere tomorrow, and that is the source's affair.
    return os.path.abspath(source)  # noqa: PTH100 - Path.absolute() keeps `..`


def default_cache_dir(
    source: str, *, root: bool | None = None, environ: Mapping[str, str] = os.environ
) -> Path:
    """Where the images of *source* are kept when nobody says: a directory that no other source has.

    ``/var/cache/cachefs/NAME`` for root, else ``cachefs/NAME`` below ``$XDG_CACHE_HOME`` or
    ``~/.cache`` (XDG base directory specification: a relative ``$XDG_CACHE_HOME`` is ignored).
    NAME is what people recognise, the end of the source's path, and 8 digits of its SHA-256.
    Raises :class:`~cachefs.errors.InvalidValueError` for a URL that cannot be one.
    """
    whole = absolute_source(source).removeprefix("file://").rstrip("/") or "/"
    words = whole.split("/")
    if "://" in whole:
        # Only host and path are shown: a URL may carry a password or a signature.
        try:
            parts = urlsplit(whole)
        except ValueError:
            # Neither is quoted in an error, urlsplit's own included.
            raise InvalidValueError("the source is no URL: a bad host or port") from None
        words = [parts.hostname or "", *unquote(parts.path).split("/")]
    shown = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(word for word in words if word)[-40:])
    digest = hashlib.sha256(whole.encode(errors="surrogateescape")).hexdigest()[:8]
    name = f"{shown.strip('.-')}-{digest}".lstrip("-")
    if os.geteuid() == 0 if root is None else root:
        return Path("/var/cache/cachefs", name)
    base = environ.get("XDG_CACHE_HOME", "")
    home = Path(base) if base.startswith("/") else Path(environ.get("HOME", "~"), ".cache")
    return home.expanduser() / "cachefs" / name
