"""How the command line speaks: one-line errors, times and JSON.

Knows no command.
"""

import json
import time
from collections.abc import Iterable

import click

from cachefs.redaction import without_secrets


def one_line(text: str) -> str:
    """*text* as one printable line: an origin's words may hold newlines and terminal escapes."""
    words = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in words)


def error_text(error: Exception) -> str:
    """What a user is told of *error*: for a failed system call, the file and the reason."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def complain(text: str) -> None:
    """Write one line of error to stderr, without any secret."""
    click.echo(f"cachefs: {one_line(without_secrets(text))}", err=True)


def show_json(document: object) -> None:
    """Write *document* to stdout, indented for people; programs do not mind."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=2))


def show_json_lines(documents: Iterable[object]) -> None:
    """Write a JSON array with an element a line, each as soon as it is there."""
    before = "["
    for document in documents:
        click.echo(f"{before}{json.dumps(document, ensure_ascii=False)}", nl=False)
        before = ",\n "
    click.echo("[]" if before == "[" else "]")


def local_time(seconds: object) -> str:
    """*seconds* since the epoch as local date and time; ``-`` for never or nonsense."""
    if not isinstance(seconds, int | float) or seconds <= 0:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
