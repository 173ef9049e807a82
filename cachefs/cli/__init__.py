"""The command line: parsing, progress bars and exit statuses.

Owns no behaviour: but for ``mount``, which calls :func:`cachefs.mount.run`, and ``help``, which
needs no mount, every command works through the files of a mount alone, so that whatever it does can
be done with ``cat`` and ``touch``.
Exit statuses: 0 done, 1 failed (one line, ``cachefs: ...``, on stderr), 2 usage, 130 interrupted.
"""

import errno

import click

from cachefs.cli.help import show_help
from cachefs.cli.images import pin, queue, rm, unpin
from cachefs.cli.listing import ls, status
from cachefs.cli.mount import mount, umount
from cachefs.cli.output import complain, error_text
from cachefs.cli.upgrade import upgrade
from cachefs.cli.upkeep import clean, prune
from cachefs.errors import CacheFSError
from cachefs.redaction import without_secrets

INTERRUPTED = 130
"""What a shell reports of a program that SIGINT ended: 128 and the signal's number."""


class _Main(click.Group):
    """Ends every failure in one line on stderr, whichever command it comes from."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            # It quotes what was typed. `from None`: so would the traceback of a caller.
            raise click.UsageError(without_secrets(error.format_message()), error.ctx) from None
        except (CacheFSError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # `cachefs ls | head`: click ends quietly
            complain(error_text(error))
            ctx.exit(1)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cachefs")
def main() -> None:
    """A bounded, verified, node-local cache of large immutable images behind a plain directory."""


for _command in (
    mount,
    umount,
    ls,
    status,
    queue,
    rm,
    pin,
    unpin,
    prune,
    clean,
    upgrade,
    show_help,
):
    main.add_command(_command)

__all__ = ["main"]
