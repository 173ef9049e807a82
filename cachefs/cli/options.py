"""Arguments and options that several commands share.

A bad value is a usage error (exit status 2), a mount that is not there a failure (1).
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cachefs.cli.control import Control
from cachefs.cli.daemon import REMEDY, Named, has_lost_supervisor
from cachefs.cli.mounts import check_mount, mounted_at, mounts, only_mount
from cachefs.cli.output import complain
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


def _looked_after(ctx: click.Context, param: click.Parameter, value: Path | None) -> Control | None:
    """:func:`_control`, and a warning where the mount's supervisor is gone."""
    control = _control(ctx, param, value)
    if control is not None and mounted_at(control.mountpoint) is not None:
        with contextlib.suppress(OSError, CacheFSError):  # the command will say so
            named = Named.by(control.status())
            if has_lost_supervisor(named):
                complain(
                    f"warning: the supervisor of {control.mountpoint} is gone, its worker (pid "
                    f"{named.worker}) goes on alone: {REMEDY.format(control.mountpoint)}"
                )
    return control


def _option(callback: Callback) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--mount",
        "control",
        metavar="MOUNTPOINT",
        type=click.Path(path_type=Path),
        callback=callback,
        help="Which mount; may be left out where just one cachefs is mounted.",
    )


with_control = _option(_looked_after)
"""Gives the command a :class:`~cachefs.cli.control.Control` named *control*; where the mount's
supervisor is gone, a warning says so first."""

with_control_alone = _option(_control)
"""The same for a command that looks at the mount's processes itself."""

with_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

with_ids = click.argument(
    "image_ids", metavar="ID...", nargs=-1, required=True, callback=parsed(check_image_id)
)
