"""The command help: the documents that ship with the code, in ``cachefs/docs``.

Owns how they are found and shown. Needs no mount, and imports nothing that a mount needs."""

import sys
from importlib.resources import files
from importlib.resources.abc import Traversable

import click

_TITLE = "# "
"""What the first line of a document begins with, in Markdown."""


def _documents() -> dict[str, Traversable]:
    """The documents by topic, in the order of their names."""
    found = sorted(files("cachefs").joinpath("docs").iterdir(), key=lambda each: each.name)
    return {each.name.removesuffix(".md"): each for each in found if each.name.endswith(".md")}


@click.command("help")
@click.argument("topic", required=False)
def show_help(topic: str | None) -> None:
    """Show the document on TOPIC; without one, list the topics.

    On a terminal it is shown by the pager ($PAGER).
    """
    documents = _documents()
    if topic is None:
        width = max(map(len, documents))
        for name, document in documents.items():
            title, _, _ = document.read_text(encoding="utf-8").partition("\n")
            click.echo(f"{name:<{width}}  {title.removeprefix(_TITLE)}")
        return
    if topic not in documents:
        raise click.BadParameter(
            f"there is no {topic!r}; topics are {', '.join(documents)}", param_hint="TOPIC"
        )
    text = documents[topic].read_text(encoding="utf-8")
    if sys.stdout.isatty():
        click.echo_via_pager(text)
    else:
        click.echo(text, nl=False)
