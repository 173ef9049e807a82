"""The commands mount and umount. The options of mount are made of the table of settings."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cachefs.cli.options import Callback, Value
from cachefs.cli.output import complain
from cachefs.cli.unmount import unmount
from cachefs.errors import CacheFSError
from cachefs.settings import Setting, Settings, load
from cachefs.sources.locate import SCHEMES

_HELP = f"""Mount the images of SOURCE at MOUNTPOINT; returns once they can be read.

SOURCE is a directory or one of {", ".join(each.example for each in SCHEMES.values())}."""

_EPILOG = """SIZE is 512M, 10G or, of the filesystem, 5%; TIME is 90s, 1h, 1d. Each option is also a
key of the TOML file, without its dashes, and an environment variable: --max-size is max-size and
CACHEFS_MAX_SIZE. The command line goes before the environment, and that before the file."""


def _given(setting: Setting[Any]) -> Callback:
    """A callback that gives the command the setting's value, or None where it was left out."""

    def callback(ctx: click.Context, param: click.Parameter, value: Value | bool) -> object:
        if value is None or isinstance(value, bool) or value == ():
            return value
        try:
            return setting.kind.from_texts([value] if isinstance(value, str) else value)
        except CacheFSError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return callback


def _setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give *command* an option for each setting, in the order of the table."""
    for each in reversed([each for each in Settings.all() if not each.positional]):
        kind, default = each.kind, each.shown_default
        command = click.option(
            *([each.short] if each.short else []),
            each.option,
            each.name,
            metavar=None if kind.is_flag or kind.choices else kind.metavar,
            type=click.Choice(kind.choices) if kind.choices else None,
            multiple=kind.several,
            is_flag=kind.is_flag,
            default=None,
            callback=_given(each),
            help=f"{each.help} Default {default}." if default else each.help,
        )(command)
    return command


@click.command(help=_HELP, epilog=_EPILOG)
@click.argument("source")
@click.argument("mountpoint")
@_setting_options
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML of these options.")
@click.pass_context
def mount(
    ctx: click.Context,
    /,
    source: str,
    mountpoint: str,
    file: Path | None,
    **options: object,
) -> None:
    """Mount what :data:`_HELP` says."""
    # Here, not above: `cachefs ls` in a loop must not pay for what only a mount needs.
    from cachefs.mount import exposed_files, handed_over, hide_arguments, run  # noqa: PLC0415

    settings = handed_over(os.environ)
    if settings is None:
        settings = load(source, mountpoint, options, file=file, environ=os.environ)
        hide_arguments(settings)
    for path in exposed_files(settings):
        complain(f"warning: {path} has credentials and every user may read it: chmod 600 {path}")
    ctx.exit(run(settings))


@click.command()
@click.argument("mountpoint")
@click.option("--lazy", is_flag=True, help="Detach it even while it is in use; waits for nothing.")
def umount(mountpoint: str, lazy: bool) -> None:
    """Unmount MOUNTPOINT; returns once its daemon has let go of the cache."""
    # A plain text: click.Path would stat it, and wait for ever for a daemon that hangs.
    unmount(Path(mountpoint), lazy=lazy)
