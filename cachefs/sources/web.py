"""Small requests over HTTP whose answers are wanted with all their headers.

obstore moves the images, but shows neither the headers of a refusal (``Retry-After``) nor a file
without ``Content-Length``, as lists and pages that a program makes often are. Owns one pool of
connections, where a name's URL is, redirects and proxies; knows nothing of checksums or images.

Credentials go to the source's own host only (urllib3 drops them from a redirect to another). The
proxy is that of the environment, and trusted authorities are the system's or ``SSL_CERT_FILE``'s,
both as obstore has it.
"""

import codecs
import logging
import ssl
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import (
    HTTPError,
    LocationParseError,
    MaxRetryError,
    NewConnectionError,
    ResponseError,
    SSLError,
    TimeoutError,  # noqa: A004 urllib3's name for it
)

from cachefs.errors import SourceError, SourceTimeoutError, SourceUnreachableError
from cachefs.sources.failures import bad_certificate

# Of a host's name. A codec is a module, and one that cannot be read when it is first wanted, for
# want of a descriptor say, is unknown for the life of the process (`encodings` remembers that).
codecs.lookup("idna")

PIECE: Final = 64 * 2**10

LONGEST_RETRY_AFTER: Final = 24 * 3600.0
"""Seconds; a server that wants to be left alone for longer is asked again after these."""

_KEPT: Final = 128
"""Connections that are kept for the next request: more than can be asked for at once, since each
that is more is a warning in the log."""

_MAX_LEFT: Final = 64 * 2**10
"""Bytes of a body that is not wanted which are read so that the connection can be kept."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: *headers* by name in lower case, *pieces* its body as it comes. The body is to be
    exhausted or closed: either ends the use of the connection."""

    status: int
    headers: Mapping[str, str]
    pieces: Generator[bytes]

    @property
    def content_type(self) -> str:
        """The media type alone, in lower case; empty where there is none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class Web:
    """Files below one URL; thread-safe. *base* has no slash at its end; *public* is what messages
    may say. *headers* go with each request, credentials among them."""

    def __init__(
        self,
        base: str,
        query: str,
        headers: Mapping[str, str],
        *,
        public: str,
        connect_timeout: float,
        read_timeout: float,
    ) -> None:
        self._base = base
        self._query = f"?{query}" if query else ""
        self._headers = dict(headers)
        self._public = public
        self._timeout = urllib3.Timeout(connect=connect_timeout, read=read_timeout)
        self._pool: urllib3.PoolManager | None = None
        self._lock = threading.Lock()

    def get(self, name: str, headers: Mapping[str, str] | None = None) -> Reply:
        """Ask for a file, or with an empty *name* for the listing. Redirects are followed. Whatever
        the server says is a reply; raises SourceUnreachableError and SourceTimeoutError where it
        says nothing."""
        what = f"{name!r} at {self._public}" if name else self._public
        url = f"{self._base}/{quote(name, safe='')}{self._query}"
        # One further try is for a kept connection that the server has closed as we used it.
        retries = urllib3.Retry(
            total=None, connect=0, read=1, redirect=10, status=0, other=0, backoff_factor=0
        )
        try:
            response = self._connections().request(
                "GET",
                url,
                headers={**self._headers, **(headers or {})},
                preload_content=False,
                decode_content=False,
                timeout=self._timeout,
                retries=retries,
            )
        except HTTPError as error:
            raise _translate(error, what) from None  # its text has the URL, and that a query
        known = {key.lower(): value for key, value in response.headers.items()}
        return Reply(response.status, known, _body(response, what))

    def look(self, name: str) -> Reply:
        """:meth:`get` of the first byte; the body is thrown away."""
        reply = self.get(name, {"Range": "bytes=0-0"})
        drop(reply)
        return reply

    def _connections(self) -> urllib3.PoolManager:
        """Made when they are first needed: reading all authorities takes some milliseconds."""
        with self._lock:
            if self._pool is None:
                self._pool = _pool(self._base)
            return self._pool


def drop(reply: Reply) -> None:
    """Have done with a body. A short one is read to its end, for the connection's sake."""
    count = 0
    try:
        for piece in reply.pieces:
            count += len(piece)
            if count > _MAX_LEFT:
                break
    except SourceError:
        pass  # what was wanted of it has come
    finally:
        reply.pieces.close()


def retry_after(headers: Mapping[str, str]) -> float | None:
    """For how many seconds from now a server asks to be left alone (RFC 9110, 10.2.3)."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), LONGEST_RETRY_AFTER)
    try:
        then = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, then - time.time()), LONGEST_RETRY_AFTER)


def _pool(base: str) -> urllib3.PoolManager:
    # What it logs has URLs with their queries, which may be secret; what fails is raised.
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)
    parts = urlsplit(base)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    context = ssl.create_default_context() if parts.scheme == "https" or proxy else None
    if proxy and not proxy_bypass(parts.netloc.rpartition("@")[2]):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        headers = None
        if address.username:
            secret = f"{address.username}:{address.password or ''}"
            headers = urllib3.make_headers(proxy_basic_auth=secret)
        plain = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()
        return urllib3.ProxyManager(
            plain, proxy_headers=headers, ssl_context=context, maxsize=_KEPT
        )
    return urllib3.PoolManager(ssl_context=context, maxsize=_KEPT)


def _body(response: urllib3.BaseHTTPResponse, what: str) -> Generator[bytes]:
    try:
        while piece := response.read1(PIECE, decode_content=False):
            yield piece
    except HTTPError as error:
        response.close()
        raise _while_streaming(error, what) from None
    except GeneratorExit:
        response.close()  # with bytes under way the connection is of no further use
        raise
    response.release_conn()


def _while_streaming(error: HTTPError, what: str) -> SourceError:
    if isinstance(error, TimeoutError):
        return SourceTimeoutError(f"{what}: timed out")
    return SourceError(f"{what}: the connection broke")


def _translate(error: HTTPError, what: str) -> SourceError:
    reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    if isinstance(reason, NewConnectionError):  # a TimeoutError by inheritance, which it is not
        cause = reason.__cause__ or reason.__context__
        text = cause.strerror if isinstance(cause, OSError) and cause.strerror else "no connection"
        return SourceUnreachableError(f"{what}: cannot connect: {text}")
    if isinstance(reason, TimeoutError):
        return SourceTimeoutError(f"{what}: timed out")
    if isinstance(reason, SSLError):
        return SourceUnreachableError(f"{what}: cannot connect: {_certificate(reason)}")
    if isinstance(reason, ResponseError):
        return SourceError(f"{what}: {reason}")
    if isinstance(reason, LocationParseError):
        return SourceError(f"{what}: redirected to what is no URL")
    return SourceUnreachableError(f"{what}: the connection broke")


def _certificate(error: SSLError) -> str:
    cause = error.args[0] if error.args else None
    if not isinstance(cause, ssl.SSLCertVerificationError):
        return "no TLS connection comes about"
    # OpenSSL's x509_vfy.h: self-signed at depth zero, in the chain, and no issuer to be found.
    foreign = cause.verify_code in (18, 19, 20, 21)
    return bad_certificate("UnknownIssuer" if foreign else cause.verify_message)
