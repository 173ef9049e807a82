"""The commands that make the daemon tidy up now: prune, clean."""

import click

from cachefs.cli.control import Control
from cachefs.cli.options import read_seconds, with_control, with_json
from cachefs.cli.output import show_json
from cachefs.units import human_size


@click.command()
@with_control
@with_json
def prune(control: Control, as_json: bool) -> None:
    """Evict the least recently used images until the cache is within its limits."""
    result = control.run("prune")
    if as_json:
        show_json(result)
        return
    size = result.get("bytes")
    shown = human_size(size) if isinstance(size, int) else size
    click.echo(f"evicted {result.get('files')} images, {shown}")


@click.command()
@click.option(
    "--stall-time",
    metavar="S",
    callback=read_seconds,
    help="Take fetches that have not moved for so long as dead: seconds, or 90s, 5m, 1h, 1d."
    " Default: the mount's own.",
)
@with_control
@with_json
def clean(control: Control, stall_time: float | None, as_json: bool) -> None:
    """Delete failed images and stalled fetches."""
    result = control.run("clean", "" if stall_time is None else f"{stall_time:.3f}")
    if as_json:
        show_json(result)
        return
    invalid, stalled = result.get("invalid"), result.get("stalled")
    click.echo(f"deleted {invalid} invalid and {stalled} stalled images")
