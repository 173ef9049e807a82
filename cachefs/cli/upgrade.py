"""The command upgrade: newly installed code takes over a running mount."""

import os
import signal
import time

import click

from cachefs.cli.control import Control
from cachefs.cli.options import with_control
from cachefs.errors import MountError

HAND_OVER_SECONDS = 60.0
"""How long the new worker may take: it reads the cache's index first."""

_POLL_SECONDS = 0.1


@click.command()
@with_control
def upgrade(control: Control) -> None:
    """Let the code that is installed now take over; open files read on, no request fails.

    If the new code does not come up, the old one goes on.
    """
    old, supervisor = _worker(control)
    try:
        os.kill(supervisor, signal.SIGHUP)
    except PermissionError as error:
        raise MountError("only root, or who mounted it, may upgrade the mount") from error
    deadline = time.monotonic() + HAND_OVER_SECONDS
    while time.monotonic() < deadline:
        new, _ = _worker(control)
        if new != old:
            click.echo(f"process {new} has taken over from {old}")
            return
        time.sleep(_POLL_SECONDS)
    raise MountError("the new code did not take over; the old goes on (its log says why)")


def _worker(control: Control) -> tuple[int, int]:
    """The pids of the process that answers, and of the supervisor that holds the mount."""
    worker = control.status().get("worker")
    pids = (worker.get("pid"), worker.get("supervisor")) if isinstance(worker, dict) else ()
    match pids:
        case (int(pid), int(supervisor)) if supervisor > 1:
            return pid, supervisor
    raise MountError("this mount has no supervisor that could hand it over")
