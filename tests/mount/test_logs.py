"""What is left out of the log."""

import logging

import pytest

from cachefs.mount.logs import is_news


@pytest.mark.parametrize(
    ("name", "message", "expected"),
    [
        ("pyfuse3", "fuse_release(): fuse_reply_* failed with No such file or directory", False),
        ("pyfuse3", "fuse_read(): fuse_reply_* failed with Invalid argument", True),
        ("pyfuse3", "No such file or directory", True),
        ("cachefs", "fuse_reply: No such file or directory", True),
    ],
)
def test_an_answer_that_nobody_waits_for_is_no_news(
    name: str, message: str, expected: bool
) -> None:
    text, _, rest = message.partition(" failed with ")
    form, args = (text + " failed with %s", (rest,)) if rest else (message, ())
    record = logging.LogRecord(name, logging.ERROR, "x.py", 1, form, args, None)
    assert is_news(record) is expected
