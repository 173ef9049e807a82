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
from cachefs.redaction import without_secrets

_SLASHLESS = re.compile(r"(https?|file|ftp|s3|gs|az|hf|oci|glance\+https?):", re.IGNORECASE)


def absolute(path: str | os.PathLike[str]) -> Path:
    """*path* from the working directory. Raises InvalidValueError for an empty one."""
    if not os.fspath(path):
        raise InvalidValueError("empty")
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute() keeps `..`


def absolute_source(source: str) -> str:
    """*source* with a local path made absolute, so that it means the same from any directory.

    Raises InvalidValueError, which does not quote it, for an empty one and for a URL that lacks its
    slashes: it would be taken for a path, and a path is no secret."""
    if not source:
        raise InvalidValueError("the source is empty: say a directory or a URL")
    if "://" in source:
        return source
    if _SLASHLESS.match(source):
        raise InvalidValueError(
            "the source is no URL: after the scheme stands '://', as in https://HOST/PREFIX/"
        )
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
    words = without_secrets(whole).split("/")  # a mistyped URL is a path, too
    if "://" in whole:
        # Only host and path are shown: a URL may carry a password or a signature.
        try:
            parts = urlsplit(whole)
            _ = parts.port  # which a password with a slash in it is taken for
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
