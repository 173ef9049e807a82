"""Secrets in locations and in other texts, and how they are kept out of what is shown.

Owns what counts as a secret: user and password of a URL, its query and fragment (a token, a
signature), and credentials in the words of HTTP. Knows no setting by name. Two lines of defence:
:func:`hide_secrets` for a value that is known to be a location, :func:`without_secrets` for a text
that may hold anything (an error, a line of a log).
"""

import base64
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

HIDDEN: Final = "***"
"""What stands for a secret where leaving it out would make another text of it."""

SHORTEST: Final = 6
"""A password or value of fewer characters is not looked for by itself: words of the language would
be hidden with it."""

_RULES: Final = (
    # user:password@ after a scheme, with as many slashes as were typed; the last @ before the path.
    (re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*:/{1,3})[^\s/?#]*@"), r"\1"),
    # The same, where the password has a slash: then what follows the colon is no port.
    (re.compile(r"(://)[^\s/?#:@]+:(?!\d{1,5}(?:[/?#\s'\"]|$))[^\s@]*@"), r"\1"),
    # user:password@ without any scheme. An image's digest is none: name:tag@sha256:...
    (re.compile(r"(?<![\w.%~+-])[^\s/@:'\"=]+:[^\s/@'\"]+@(?!sha\d|md5|blake)"), f"{HIDDEN}@"),
    # The query and the fragment of a URL.
    (re.compile(r"(://[^\s?#<>]*)[?#][^\s<>]+?(?=['\")\],;:.]*(?:\s|$))"), r"\1"),
    # A header of HTTP, or a value by its name.
    (
        re.compile(
            r"\b((?:proxy-)?authorization|(?:set-)?cookie|x-[a-z-]*token|x-api-key)"
            r"(['\"]?\s*[:=]\s*(?:b?['\"])?)(?:(?:basic|bearer|digest|token)\s+)?[^\s'\",;]+",
            re.IGNORECASE,
        ),
        rf"\1\2{HIDDEN}",
    ),
    (
        re.compile(
            r"\b([\w-]*(?:token|passw(?:or)?d|secret|signature|credential|api[_-]?key))="
            r"[^\s&'\",;]+",
            re.IGNORECASE,
        ),
        rf"\1={HIDDEN}",
    ),
)


def hide_secrets(location: str) -> str:
    """A source's URL without user, password, query and fragment; a path as it is, unless it is a
    URL that was mistyped."""
    scheme, separator, _ = location.partition("://")
    if not separator:
        return without_secrets(location)
    try:
        parts = urlsplit(location)
        _ = parts.port  # which a password with a slash is taken for
    except ValueError:
        return f"{scheme}://{HIDDEN}"
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def without_secrets(text: str, known: Iterable[str] = ()) -> str:
    """*text* without what looks like a secret, and without the *known* ones of
    :func:`secrets_of`."""
    for secret in known:
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def secrets_of(location: str) -> list[str]:
    """The secrets that a location has, in each spelling in which a server or a library may repeat
    them, the longest first; none for a path."""
    if "://" not in location:
        return []
    try:
        parts = urlsplit(location)
    except ValueError:
        return []
    user_info, _, _ = parts.netloc.rpartition("@")
    user, _, password = user_info.partition(":")
    login = f"{unquote(user)}:{unquote(password)}"
    found = {parts.query, parts.fragment, password, unquote(password)}
    found |= {value for part in parts.query.split("&") for value in part.partition("=")[2:]}
    found = {each for each in found if len(each) >= SHORTEST}
    if password:
        found |= {user_info, login, base64.b64encode(login.encode()).decode()}
    return sorted(found, key=len, reverse=True)
