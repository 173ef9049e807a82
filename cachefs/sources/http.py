"""An HTTP server as a source: its URL, credentials, time limits; the rest is ``ObjectSource``."""

import base64
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

from obstore.store import HTTPStore

from cachefs.errors import InvalidValueError
from cachefs.sources.base import READ_TIMEOUT
from cachefs.sources.beside import WebFiles
from cachefs.sources.objects import ObjectSource
from cachefs.sources.web import Web

CONNECT_TIMEOUT: Final = 10.0
"""Seconds to connect, names looked up and TLS agreed on."""


def open_http(location: str, timeout: float) -> ObjectSource:
    """:func:`http_source` as the table of schemes calls it; *timeout* is the server's silence."""
    return http_source(location, read_timeout=timeout)


def http_source(
    location: str,
    *,
    connect_timeout: float = CONNECT_TIMEOUT,
    read_timeout: float = READ_TIMEOUT,
    clock: Callable[[], float] = time.monotonic,
) -> ObjectSource:
    """The images directly below ``http(s)://[user:password@]host[:port]/prefix/[?query]``.

    User and password are sent as HTTP Basic, a query (a token, say) is sent with every request;
    neither is in the source's ``url`` or in any message. Does no I/O. Raises InvalidValueError.
    """
    try:
        parts = urlsplit(location)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InvalidValueError("the source's URL has a bad host or port") from None
    if not host:
        raise InvalidValueError(f"a {parts.scheme} source needs a host, as in http://host/images/")
    if parts.fragment:
        raise InvalidValueError("the URL of a source has no '#...' part")
    netloc = f"[{host}]" if ":" in host else host
    if port is not None:
        netloc = f"{netloc}:{port}"
    path = parts.path if parts.path.endswith("/") else parts.path + "/"
    public = urlunsplit((parts.scheme, netloc, path, "", ""))
    # RFC 9110, 12.5.3: without the header any coding will do, and then sizes and ranges are not
    # those of the image.
    headers = {"Accept-Encoding": "identity"}
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(secret.encode()).decode()
    try:
        store = HTTPStore(
            # Without the last slash: obstore puts one of its own between URL and name, and a server
            # need not take two for one.
            urlunsplit((parts.scheme, netloc, path.rstrip("/"), parts.query, "")),
            client_options={
                "allow_http": True,
                "connect_timeout": timedelta(seconds=connect_timeout),
                "read_timeout": timedelta(seconds=read_timeout),
                # obstore's own limit of 30 s is for the whole download.
                "timeout": timedelta(days=365),
                "default_headers": headers,
                "user_agent": "cachefs",
            },
            # The fetcher retries, and knows for how long the server wants to be left alone.
            retry_config={"max_retries": 0},
        )
    except Exception as error:  # obstore has no common class for what a constructor raises
        raise InvalidValueError(f"{public} is no URL that obstore takes") from error
    web = Web(
        urlunsplit((parts.scheme, netloc, path.rstrip("/"), "", "")),
        parts.query,
        {**headers, "User-Agent": "cachefs"},
        public=public,
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
    )
    return ObjectSource(store, public, WebFiles(web, public, clock), clock)
