"""What an obstore exception means to us: the one place that knows how obstore words its errors.

obstore has classes for not found, refused and failed preconditions. Everything else, a refused
connection and a timeout alike, is a ``GenericError`` whose text is a Rust debug dump of many lines;
two of its members, ``HttpError.kind`` (object_store's ``HttpErrorKind``) and ``Status.status``,
say what happened. The dump may hold URLs with credentials and the server's own words, so none of it
goes into our messages but what the patterns below pick out.
"""

import re
from typing import Final

import obstore.exceptions as obstore_errors

from cachefs.errors import (
    CacheFSError,
    ImageChangedError,
    ImageNotFoundError,
    SourceError,
    SourceRefusedError,
    SourceTimeoutError,
    SourceUnavailableError,
    SourceUnreachableError,
)

STORE_ERRORS: Final = (obstore_errors.BaseError, OSError, ValueError)
"""What obstore raises on purpose: its own classes, and some of Python's."""

_BY_CLASS: Final[tuple[tuple[type[Exception], type[CacheFSError], str], ...]] = (
    (FileNotFoundError, ImageNotFoundError, "not found"),
    (obstore_errors.UnauthenticatedError, SourceRefusedError, "the source wants other credentials"),
    (obstore_errors.PermissionDeniedError, SourceRefusedError, "the source refuses it"),
    (PermissionError, SourceRefusedError, "the source refuses it"),
    (obstore_errors.PreconditionError, ImageChangedError, "changed at the source"),
    (obstore_errors.NotSupportedError, SourceError, "the source does not serve ranges of it"),
    (obstore_errors.InvalidPathError, SourceError, "the store cannot hold such a name"),
)

_BY_STATUS: Final[dict[int, tuple[type[CacheFSError], str]]] = {
    401: (SourceRefusedError, "the source wants other credentials"),
    403: (SourceRefusedError, "the source refuses it"),
    404: (ImageNotFoundError, "not found"),
    405: (SourceError, "the source does not allow such a request"),
    407: (SourceRefusedError, "the proxy wants credentials"),
    408: (SourceTimeoutError, "the source timed out"),
    410: (ImageNotFoundError, "gone"),
    412: (ImageChangedError, "changed at the source"),
    416: (ImageChangedError, "shrank at the source"),
    429: (SourceUnavailableError, "the source wants fewer requests"),
    503: (SourceUnavailableError, "the source cannot serve it now"),
    504: (SourceTimeoutError, "the source's gateway timed out"),
}

_BY_KIND: Final[dict[str, tuple[type[CacheFSError], str]]] = {
    "Connect": (SourceUnreachableError, "cannot connect"),
    "Timeout": (SourceTimeoutError, "timed out"),
    "Request": (SourceUnreachableError, "the connection broke"),
    "Interrupted": (SourceUnreachableError, "the connection broke"),
}

# Anchored to whole lines: a server's body stands in the dump escaped, on one line of its own that
# starts with a quote, and so can imitate none of these.
_STATUS = re.compile(r"^\s*status: (\d{3}),$", re.MULTILINE)
_KIND = re.compile(r"^\s*(?:\w+: )?HttpError \{\n\s*kind: (\w+),$", re.MULTILINE)
_CAUSE = re.compile(r'^\s*(?:message|error): "([^"\\]{1,120})",?$', re.MULTILINE)
_CERTIFICATE = re.compile(r"^\s*(?:\w+: )?InvalidCertificate\(\n\s*(\w+)", re.MULTILINE)


_METHOD_NOT_ALLOWED: Final = 405
_SERVER_ERROR: Final = 500  # and above (RFC 9110, 15.6)
"""obstore takes it for "not found"."""

_FOREIGN_AUTHORITY: Final = frozenset({"UnknownIssuer", "CaUsedAsEndEntity"})


def status_of(error: Exception) -> int | None:
    """The HTTP status that *error* reports; None if there was no answer, or a good one."""
    found = _STATUS.search(_dump(error))
    return int(found[1]) if found else None


def broke(error: Exception) -> bool:
    """Whether *error* means that no answer came: the connection failed, broke or timed out."""
    return _KIND.search(_dump(error)) is not None


def was_cut(error: Exception) -> bool:
    """Whether *error* means that a connection was there and broke before the answer came."""
    found = _KIND.search(_dump(error))
    return found is not None and found[1] in ("Request", "Interrupted")


def translate(error: Exception, what: str) -> CacheFSError:
    """The error of ours that *error* means, its text one line that begins with *what*.

    To be raised ``from`` *error*.
    """
    status = status_of(error)
    for kind, ours, reason in _BY_CLASS:
        if isinstance(error, kind) and status != _METHOD_NOT_ALLOWED:
            return ours(f"{what}: {reason}")
    dump = _dump(error)
    if status is not None:
        return of_status(status, what)
    if broken := _KIND.search(dump):
        ours, reason = _BY_KIND.get(broken[1], (SourceError, "the connection failed"))
        if ours is SourceUnreachableError:
            if cause := _CAUSE.search(dump):
                reason = f"{reason}: {cause[1]}"
            elif certificate := _CERTIFICATE.search(dump):
                reason = f"{reason}: {bad_certificate(certificate[1])}"
        return ours(f"{what}: {reason}")
    return SourceError(f"{what}: {_first_words(error)}")


def of_status(status: int, what: str) -> CacheFSError:
    """The error of ours that an HTTP status means, its text one line that begins with *what*."""
    other = SourceUnavailableError if status >= _SERVER_ERROR else SourceError
    ours, reason = _BY_STATUS.get(status, (other, "the source failed"))
    return ours(f"{what}: {reason} (HTTP status {status})")


def bad_certificate(reason: str) -> str:
    """What to say of a server's certificate that is not accepted, and what to do."""
    if reason in _FOREIGN_AUTHORITY:
        return (
            f"bad certificate ({reason}): none of the trusted authorities has issued it; if it is"
            " of an authority of your own, name its PEM file in SSL_CERT_FILE"
        )
    return f"bad certificate ({reason})"


def _dump(error: Exception) -> str:
    """The debug dump at the end of obstore's text; empty if it has none."""
    _, marker, dump = str(error).rpartition("\nDebug source:\n")
    return dump if marker else ""


def _first_words(error: Exception) -> str:
    """The first line of an unforeseen text, without any URL, not too long."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\S+://\S+", "...", lines[0])[:200]
