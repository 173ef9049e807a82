"""The commands mount and umount."""

import os
from pathlib import Path

import click

from cachefs.cli.options import parsed, read_amount, read_rate, read_seconds
from cachefs.cli.unmount import unmount
from cachefs.config import (
    DRIVERS,
    LOG_LEVELS,
    ON_LAST_CLOSE,
    ON_MISS,
    TRANSPORTS,
    Config,
    absolute_source,
    default_cache_dir,
    load_config,
    parse_options,
)


def build_config(
    source: str, mountpoint: str, file: Path | None, given: dict[str, object]
) -> Config:
    """What the command line asks for, else *file*, else the defaults.

    *given* holds fields of :class:`~cachefs.config.Config`; None and () stand for "not said".
    Raises :class:`~cachefs.errors.InvalidValueError` for a bad *file*.
    """
    source = absolute_source(source)
    values: dict[str, object] = {} if file is None else load_config(file)
    values |= {name: value for name, value in given.items() if value is not None and value != ()}
    if "cache_dir" not in values:
        values["cache_dir"] = default_cache_dir(source)
    # The values' types are those of the fields: click's and load_config's readers see to it.
    return Config(source=source, mountpoint=_absolute(mountpoint), **values)  # type: ignore[arg-type]


def _absolute(path: str | os.PathLike[str]) -> Path:
    """The daemon leaves the directory in which it was started."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute() keeps `..`


@click.command()
@click.argument("source")
@click.argument("mountpoint")
@click.option(
    "--cache-dir", metavar="DIR", callback=parsed(_absolute), help="Where the images are kept."
)
@click.option(
    "--max-size",
    metavar="SIZE",
    callback=read_amount,
    help="Most bytes to keep: 512M, 10G, 5%. Default 10G.",
)
@click.option(
    "--min-free",
    metavar="SIZE",
    callback=read_amount,
    help="Leave this free on its filesystem. Default 5%.",
)
@click.option(
    "--stall-time",
    metavar="TIME",
    callback=read_seconds,
    help="When a fetch counts as dead. Default 1d.",
)
@click.option("--driver", type=click.Choice(DRIVERS), help="The index. Default sqlite.")
@click.option(
    "--on-miss",
    type=click.Choice(ON_MISS),
    help="Ask the source for an image that is not cached, or say ENOENT. Default fetch.",
)
@click.option(
    "--fallback",
    "fallbacks",
    metavar="URL",
    multiple=True,
    callback=parsed(absolute_source),
    help="A source to ask when those before it fail; repeatable.",
)
@click.option("--max-fetches", type=click.IntRange(min=1), help="Fetches at a time. Default 3.")
@click.option(
    "--bandwidth",
    metavar="SIZE",
    callback=read_rate,
    help="Most bytes a second to fetch, in all: 100M. Default no limit.",
)
@click.option(
    "--prefetch-bandwidth",
    metavar="SIZE",
    callback=read_rate,
    help="Most bytes a second for fetches that nobody reads. Default no limit.",
)
@click.option(
    "--on-last-close",
    type=click.Choice(ON_LAST_CLOSE),
    help="Go on with a fetch that nobody reads any more, or cancel it. Default keep.",
)
@click.option(
    "--timeout",
    metavar="TIME",
    callback=read_seconds,
    help="When a source that says nothing has failed. Default 30s.",
)
@click.option(
    "--transport",
    type=click.Choice(TRANSPORTS),
    help="The kernel side: the relay (native reads, a mount that outlives its daemon), plain "
    "pyfuse3, or what works here. Default auto.",
)
@click.option("--control-group", metavar="GROUP", help="Who else may write to control/.")
@click.option("-o", "--options", metavar="OPTS", multiple=True, help="Options as of mount -o.")
@click.option("--log-file", metavar="FILE", callback=parsed(_absolute), help="Default: syslog.")
@click.option("--log-level", type=click.Choice(LOG_LEVELS), help="Default info.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML of these options.")
@click.option("--foreground", is_flag=True, default=None, help="Stay, and log to stderr.")
@click.pass_context
def mount(
    ctx: click.Context,
    /,
    source: str,
    mountpoint: str,
    file: Path | None,
    options: tuple[str, ...],
    **given: object,
) -> None:
    """Mount the images of SOURCE at MOUNTPOINT; returns once they can be read.

    SOURCE is a directory, file:///DIRECTORY, http://HOST/PREFIX/ or https://HOST/PREFIX/.
    """
    config = build_config(source, mountpoint, file, {**given, "options": parse_options(*options)})
    # Here, not above: `cachefs ls` in a loop must not pay for trio, pyfuse3 and obstore.
    from cachefs.mount import run  # noqa: PLC0415

    ctx.exit(run(config))


@click.command()
@click.argument("mountpoint")
def umount(mountpoint: str) -> None:
    """Unmount MOUNTPOINT; returns once its daemon has let go of the cache."""
    # A plain text: click.Path would stat it, and wait for ever for a daemon that hangs.
    unmount(Path(mountpoint))
