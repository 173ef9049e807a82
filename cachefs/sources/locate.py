"""From what a user writes to a source: the table of schemes."""

from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import unquote, urlsplit

from cachefs.errors import InvalidValueError
from cachefs.sources.base import Source
from cachefs.sources.chain import ChainSource
from cachefs.sources.directory import DirectorySource
from cachefs.sources.http import READ_TIMEOUT, http_source


def open_source(
    location: str, fallbacks: Sequence[str] = (), *, timeout: float = READ_TIMEOUT
) -> Source:
    """The source at *location*, and if there are *fallbacks*, the chain of it and them.

    A server that is silent for *timeout* seconds has timed out.

    A location is a directory's path, or a URL of one of :data:`SCHEMES`. Only directories are
    looked at now: a server that is down must not keep a mount from starting. Raises
    InvalidValueError for what is no location, SourceError for a directory that is missing or may
    not be read.
    """
    sources = [_open_one(each, timeout) for each in (location, *fallbacks)]
    return sources[0] if len(sources) == 1 else ChainSource(sources)


def _open_one(location: str, timeout: float) -> Source:
    scheme, separator, _ = location.partition("://")
    if not separator:
        return _directory(location)
    constructor = SCHEMES.get(scheme.lower())
    if constructor is None:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise InvalidValueError(f"unknown source scheme {scheme!r}: a directory, {known}")
    return constructor(location, timeout)


def _directory(path: str) -> Source:
    if not path or "\0" in path:
        raise InvalidValueError("the path of a source directory is empty or has a NUL in it")
    source = DirectorySource(path)
    source.check()
    return source


def _file(location: str, timeout: float) -> Source:
    del timeout  # a disk's are the kernel's
    parts = urlsplit(location)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise InvalidValueError("a file source is written file:///path, '#' and '?' as %23 and %3F")
    return _directory(unquote(parts.path))


def _http(location: str, timeout: float) -> Source:
    return http_source(location, read_timeout=timeout)


SCHEMES: Final[dict[str, Callable[[str, float], Source]]] = {
    "file": _file,
    "http": _http,
    "https": _http,
}
