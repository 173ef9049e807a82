"""What counts as a secret in a text, and what does not."""

import logging

import pytest

from cachefs.mount.logs import Formatter
from cachefs.redaction import hide_secrets, secrets_of, without_secrets
from cachefs.units import quoted

SECRET = "s3cr3tpw"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"GET http://user:{SECRET}@host/x/ failed", "GET http://host/x/ failed"),
        (f"'https://{SECRET}@host:8443/x'", "'https://host:8443/x'"),
        (f"http://user:p@{SECRET}@host/", "http://host/"),
        (f"http://user:p/{SECRET}@host/x", "http://host/x"),
        (f"http://user:{SECRET}'@host/x", "http://host/x"),
        (f"http://host/x?token={SECRET}&a=b, then", "http://host/x, then"),
        (f"http://host/x#{SECRET}", "http://host/x"),
        (f"http:user:{SECRET}@host/x", "***@host/x"),
        (f"https:/user:{SECRET}@host/x", "https:/host/x"),
        (f"directory /a/user:{SECRET}@host/x", "directory /a/***@host/x"),
        (f"Authorization: Basic {SECRET}", "Authorization: ***"),
        (f"{{'Authorization': 'Bearer {SECRET}'}}", "{'Authorization': '***'}"),
        (f"X-Auth-Token: {SECRET}", "X-Auth-Token: ***"),
        (f"X-Amz-Signature={SECRET}&Expires=9", "X-Amz-Signature=***&Expires=9"),
    ],
)
def test_a_secret_is_taken_out_of_a_text(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://host:8080/images/alma@9.qcow2",
        "/srv/images/alma@9.qcow2",
        "alpine:3.19@sha256:0123456789abcdef",
        "2026-11-25 08:25:55,982 INFO cachefs.fetcher: asking for 'foo' again in 0.2 s: why?",
        "http://[::1]:8080/x/: cannot connect",
        "is that http://host/x/?",
        "no authorization was asked for",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_a_long_value_loses_its_secret_before_it_is_cut() -> None:
    shown = quoted(f"http://user:{SECRET * 20}@host/")
    assert shown == "'http://host/'"


@pytest.mark.parametrize("location", ["http://u:p/w@host/", f"http:u:{SECRET}@h", "http://h:x:y/"])
def test_a_mistyped_location_is_shown_without_what_may_be_a_secret(location: str) -> None:
    assert not {"p/w", SECRET, "x:y"} & set(hide_secrets(location).split("@"))


def test_the_log_has_none_of_the_mounts_own_secrets_in_whatever_spelling() -> None:
    known = secrets_of("https://us%65r:s3cr3t%21pw@host/x/?sig=0123456789")
    form = Formatter("%(message)s", known)
    try:
        raise OSError("b'dXNlcjpzM2NyM3QhcHc=' and user:s3cr3t!pw and s3cr3t%21pw and 0123456789")
    except OSError as error:
        failure = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "s3cr3t!pw: %s", ("y",), failure)
    lines = form.format(record).splitlines()
    assert lines[0] == "***: y"
    assert lines[-1] == "OSError: b'***' and *** and *** and ***"
