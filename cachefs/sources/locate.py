"""From what a user writes to a source: the table of schemes.

A scheme's module is imported only when a location asks for it, so that the command line can name
all schemes without their libraries, and one whose library is missing harms no other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final

from cachefs.errors import InvalidValueError, SourceError
from cachefs.sources.base import READ_TIMEOUT, Source
from cachefs.sources.chain import ChainSource
from cachefs.sources.directory import directory_source, file_source


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the locations of one scheme are opened: *constructor* is ``module:function``, which takes
    the location and the seconds after which a silent server has timed out; *example* shows how one
    is written."""

    constructor: str
    example: str


SCHEMES: Final[dict[str, Scheme]] = {
    "file": Scheme("cachefs.sources.directory:file_source", "file:///DIRECTORY"),
    "http": Scheme("cachefs.sources.http:open_http", "http://HOST/PREFIX/"),
    "https": Scheme("cachefs.sources.http:open_http", "https://HOST/PREFIX/"),
}
"""The schemes of URLs, by what stands before ``://``."""


def open_source(
    location: str,
    fallbacks: Sequence[str] = (),
    *,
    timeout: float = READ_TIMEOUT,
) -> Source:
    """The source at *location*, and if there are *fallbacks*, the chain of it and them.

    A server that is silent for *timeout* seconds has timed out.

    A location is a directory's path, or a URL of one of :data:`SCHEMES`. Only directories are
    looked at now: a server that is down must not keep a mount from starting. Raises
    InvalidValueError for what is no location, SourceError for a directory that is missing or may
    not be read, and for a scheme whose library is missing.
    """
    sources = [_open_one(each, timeout) for each in (location, *fallbacks)]
    return sources[0] if len(sources) == 1 else ChainSource(sources)


def _open_one(location: str, timeout: float) -> Source:
    name, separator, _ = location.partition("://")
    if not separator:
        return directory_source(location)
    if name.lower() == "file":
        return file_source(location, timeout)
    scheme = SCHEMES.get(name.lower())
    if scheme is None:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise InvalidValueError(f"unknown source scheme {name!r}: a directory, {known}")
    module, _, attribute = scheme.constructor.partition(":")
    try:
        construct: Callable[[str, float], Source] = getattr(import_module(module), attribute)
    except ImportError as error:
        raise SourceError(f"sources of {name}:// cannot be loaded: {error}") from error
    return construct(location, timeout)
