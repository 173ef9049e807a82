"""The small files beside the images of a web server, and what it says where it has none.

Owns what is believed of the server's answers to small requests; the requests themselves are
:class:`~cachefs.sources.web.Web`'s, and what a checksum list means is
:mod:`cachefs.sources.checksums`'s."""

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from html import unescape
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from cachefs.errors import CacheFSError, SourceError
from cachefs.sources.absence import Absence, Answer
from cachefs.sources.failures import of_status
from cachefs.sources.loading import SmallFile
from cachefs.sources.names import checksum_files
from cachefs.sources.web import Reply, Web, drop, retry_after

log = logging.getLogger(__name__)

LISTING_FRESH: Final = 60.0
"""Seconds for which a listing, or its absence, is not asked for again."""

LISTING_DEADLINE: Final = 5.0
"""Seconds that a listing may take: it only helps to find lists with unusual names."""

MAX_LISTING_BYTES: Final = 4 * 2**20

_LINK = re.compile(rb"""href\s*=\s*(?:"([^"]*)"|'([^']*)')""", re.IGNORECASE)

_HARMLESS_CODINGS: Final = frozenset({"", "identity", "none", "binary", "aws-chunked"})
_OWN_CODINGS: Final = {
    "gzip": (".gz", ".tgz"),
    "x-gzip": (".gz", ".tgz"),
    "compress": (".z",),
    "bzip2": (".bz2",),
    "x-bzip2": (".bz2",),
    "br": (".br",),
    "zstd": (".zst",),
    "xz": (".xz", ".txz"),
    "x-xz": (".xz", ".txz"),
}
"""Codings that servers give a file of such a name though they send it as it is."""


class Beside(Protocol):
    """What a store is asked of, other than images."""

    absence: Absence

    def read(self, name: str, known: str | None, limit: int) -> SmallFile | None:
        """See :data:`cachefs.sources.loading.ReadSmall`."""

    def listing(self) -> dict[str, str | None]:
        """:func:`cachefs.sources.names.checksum_files` of what the source lists."""

    def ask(self, name: str) -> Answer:
        """What the source answers to a request for *name*; raises where no answer comes."""

    def retry_after(self, name: str) -> float | None:
        """For how many seconds a source that has just refused *name* for now wants to be left
        alone, None where it does not say."""


class WebFiles:
    """:class:`Beside` of a web server; thread-safe. *url* is what messages may say."""

    def __init__(self, web: Web, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.absence = Absence(self.ask, clock)
        self._web = web
        self._url = url
        self._clock = clock
        self._listing: dict[str, str | None] = {}
        self._listed = float("-inf")
        self._lock = threading.Lock()

    def ask(self, name: str) -> Answer:
        """See :meth:`Beside.ask`."""
        answer = _answer(self._web.look(name))
        return replace(answer, status=200) if answer.status == 206 else answer

    def retry_after(self, name: str) -> float | None:
        """See :meth:`Beside.retry_after`. One further request: obstore does not show the headers of
        a refusal."""
        try:
            reply = self._web.look(name)
        except CacheFSError:
            return None
        return retry_after(reply.headers)

    def read(self, name: str, known: str | None, limit: int) -> SmallFile | None:
        """See :data:`cachefs.sources.loading.ReadSmall`."""
        what = f"{name!r} at {self._url}"
        reply = self._web.get(name, _validators(known))
        answer = _answer(reply)
        if reply.status == 200 and not (answer.is_page and not is_page_name(name)):
            try:
                check_coding(reply.headers.get("content-encoding"), name, what)
                _check_length(reply.headers.get("content-length", ""), limit, what)
            except SourceError:
                reply.pieces.close()
                raise
            pieces = _bounded(reply.pieces, limit, what)
            return SmallFile(_version(reply.headers), pieces, lambda: self.absence.means(answer))
        drop(reply)
        if reply.status == 304:
            return SmallFile(known, None)
        if self.absence.means(answer):
            return None
        if answer.is_page and reply.status == 200:
            raise SourceError(f"{what}: answered with an HTML page, not a checksum file")
        failure = of_status(reply.status, what)
        if isinstance(failure, SourceError):
            failure.retry_after = retry_after(reply.headers)
        raise failure

    def listing(self) -> dict[str, str | None]:
        """See :meth:`Beside.listing`. As nginx, Apache and their like write one, in HTML or JSON; a
        source that shows none is asked again in a minute, and nothing depends on it."""
        with self._lock:
            if self._clock() - self._listed >= LISTING_FRESH:
                try:
                    self._listing = self._list()
                except CacheFSError as error:
                    log.info("no listing to find checksum lists by: %s", error)
                    self._listing = {}
                self._listed = self._clock()
            return self._listing

    def _list(self) -> dict[str, str | None]:
        reply = self._web.get("")
        if reply.status != 200:
            drop(reply)
            return {}
        data, deadline = bytearray(), time.monotonic() + LISTING_DEADLINE
        for piece in reply.pieces:
            data += piece
            if len(data) > MAX_LISTING_BYTES or time.monotonic() > deadline:
                reply.pieces.close()
                raise SourceError(f"{self._url}: its listing is too long, or too slow to come")
        return checksum_files(_listed_names(reply, bytes(data), self._url))


def is_page_name(name: str) -> bool:
    """Whether *name* is of a page of HTML: as an image, that is what it is."""
    return name.lower().endswith((".html", ".htm"))


def check_coding(coding: str | None, name: str, what: str) -> None:
    """Raise SourceError for an answer whose Content-Encoding changes the bytes of the file."""
    for each in (coding or "").lower().split(","):
        word = each.strip()
        own = _OWN_CODINGS.get(word, ())
        if word not in _HARMLESS_CODINGS and not name.lower().endswith(tuple(own) or ("\0",)):
            raise SourceError(
                f"{what}: sent with Content-Encoding {word!r} though none was accepted, so the"
                " bytes are not the file's; turn that coding off at the source"
            )


def _answer(reply: Reply) -> Answer:
    return Answer(reply.status, reply.content_type)


def _check_length(length: str, limit: int, what: str) -> None:
    if length.isdigit() and int(length[:18]) > limit:
        raise _too_large(limit, what)


def _too_large(limit: int, what: str) -> SourceError:
    return SourceError(f"{what}: over {limit} bytes, too large for a checksum file")


def _bounded(pieces: Generator[bytes], limit: int, what: str) -> Generator[bytes]:
    count = 0
    try:
        for piece in pieces:
            count += len(piece)
            if count > limit:
                raise _too_large(limit, what)
            yield piece
    finally:
        pieces.close()


def _version(headers: Mapping[str, str]) -> str | None:
    """What to ask with whether the file has changed: its ETag, else its date."""
    if tag := headers.get("etag"):
        return f"If-None-Match: {tag}"
    if date := headers.get("last-modified"):
        return f"If-Modified-Since: {date}"
    return None


def _validators(known: str | None) -> dict[str, str]:
    name, _, value = (known or "").partition(": ")
    return {name: value} if value else {}


def _listed_names(reply: Reply, data: bytes, url: str) -> list[str]:
    if reply.content_type == "application/json":
        try:
            members = json.loads(data)
        except (ValueError, RecursionError):
            return []
        members = members if isinstance(members, list) else []
        found = [member.get("name") for member in members if isinstance(member, dict)]
        return [name for name in found if isinstance(name, str) and "/" not in name]
    if not _answer(reply).is_page:
        return []
    names: list[str] = []
    for double, single in _LINK.findall(data):
        link = urlsplit(unescape((double or single).decode(errors="replace")))
        path = link.path.removeprefix(urlsplit(url).path).removeprefix("./")
        if not link.netloc and "/" not in path:
            names.append(unquote(path))
    return names
