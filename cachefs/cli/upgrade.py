"""The command upgrade: newly installed code takes over a running mount."""

import signal
import time

import click

from cachefs.cli.control import Control
from cachefs.cli.daemon import Named, ask, fuse_mount, proven
from cachefs.cli.options import with_control_alone
from cachefs.errors import MountError

HAND_OVER_SECONDS = 60.0
"""How long the new worker may take: it reads the cache's index first."""

_POLL_SECONDS = 0.1

_COST = (
    "{0} is a plain mount, which cannot be handed over: an upgrade unmounts it and mounts it anew. "
    "What is open ends with an error, and for some seconds {0} is empty. Say --yes to do it."
)


@click.command()
@click.option("--yes", is_flag=True, help="Upgrade a plain mount, too, whose open files then end.")
@with_control_alone
def upgrade(control: Control, yes: bool) -> None:
    """Let the code that is installed now take over; open files read on, no request fails.

    If the new code does not come up, the old one goes on. A plain mount (see status) is made anew
    instead, and only with --yes: open files end.
    """
    mount = fuse_mount(control.mountpoint)
    status = control.status()
    named = Named.by(status)
    transport = status.get("transport")
    is_plain = isinstance(transport, dict) and transport.get("mode") == "plain"
    with proven(mount, named) as served:
        if served.supervisor is None:
            raise MountError(f"{mount.mountpoint} cannot be upgraded: {served.why}")
        if is_plain and not yes:
            raise click.UsageError(_COST.format(mount.mountpoint))
        try:
            served.supervisor.send(signal.SIGHUP)
        except PermissionError:
            raise MountError(
                f"only root, or the user who mounted {mount.mountpoint}, may upgrade it"
            ) from None
        new = _wait_for_another(control, named, may_vanish=is_plain)
    if new is None:
        goes_on = "" if is_plain else "; the old goes on"
        raise MountError(
            f"the new code did not take over {mount.mountpoint} within {HAND_OVER_SECONDS:.0f} s"
            f"{goes_on}: its log says why"
        )
    click.echo(f"process {new} has taken over from {named.worker}")


def _wait_for_another(control: Control, old: Named, *, may_vanish: bool) -> int | None:
    """The worker that answers instead of the *old* one, or None where none does in time."""
    deadline = time.monotonic() + HAND_OVER_SECONDS
    while time.monotonic() < deadline:
        # A read of ours that a plain worker takes with it as it leaves could not be given up.
        new = ask(control.mountpoint) if may_vanish else Named.by(control.status())
        if new.worker not in (0, old.worker):
            return new.worker
        time.sleep(_POLL_SECONDS)
    return None
