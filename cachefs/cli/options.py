"""Arguments and options that several commands share.

A bad value is a usage error (exit status 2), a mount that is not there a failure (1).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cachefs.cli.control import Control
from cachefs.cli.mounts import check_mount, mounts, only_mount
from cachefs.errors import CacheFSError
from cachefs.image import check_image_id
from cachefs.units import parse_seconds

Value = str | tuple[str, ...] | None
Callback = Callable[[click.Context, click.Parameter, Any], object]


def parsed(parse: Callable[[str], object]) -> Callback:
    """A click callback that gives the command what *parse* makes of the text, or of each text.

    The errors of *parse* are usage errors; an option that is left out stays None.
    """

    def callback(ctx: click.Context, param: click.Parameter, value: Value) -> object:
        try:
            if isinstance(value, tuple):
                return tuple(map(parse, value))
            return None if value is None else parse(value)
        except CacheFSError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return callback


read_seconds = parsed(parse_seconds)


def _control(ctx: click.Context, param: click.Parameter, value: Path | None) -> Control | None:
    del param
    if ctx.resilient_parsing:  # the shell asks for completions
        return None
    return Control(check_mount(only_mount(mounts()) if value is None else value))


with_control = click.option(
    "--mount",
    "control",
    metavar="MOUNTPOINT",
    type=click.Path(path_type=Path),
    callback=_control,
    help="Which mount; may be left out where just one cachefs is mounted.",
)
"""Gives the command a :class:`~cachefs.cli.control.Control` named *control*."""

with_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

with_ids = click.argument(
    "image_ids", metavar="ID...", nargs=-1, required=True, callback=parsed(check_image_id)
)
