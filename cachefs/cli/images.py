"""The commands about single images: queue, rm, pin, unpin."""

from collections.abc import Callable, Iterable

import click

from cachefs.cli.control import Control
from cachefs.cli.options import with_control, with_ids
from cachefs.cli.output import complain, error_text
from cachefs.cli.progress import wait
from cachefs.errors import CacheFSError, ImageExistsError
from cachefs.image import State

_DONE = {
    State.CACHED: "evicted",
    State.INCOMPLETE: "cancelled",
    State.QUEUED: "unqueued",
    State.INVALID: "forgotten",
}


def _each(image_ids: Iterable[str], act: Callable[[str], str]) -> list[str]:
    """Act on every image, saying what was done or why not; returns those that failed.

    One failure does not keep the others from being done, as with rm(1).
    """
    failed = []
    for image_id in dict.fromkeys(image_ids):
        try:
            click.echo(act(image_id))
        except (CacheFSError, OSError) as error:
            complain(error_text(error))
            failed.append(image_id)
    return failed


def _finish(failed: bool) -> None:
    if failed:
        click.get_current_context().exit(1)


@click.command()
@with_ids
@click.option("--priority", type=int, help="Higher goes first. Default 0.")
@click.option("--wait", "waiting", is_flag=True, help="Return when all have been fetched.")
@with_control
def queue(
    control: Control, image_ids: tuple[str, ...], priority: int | None, waiting: bool
) -> None:
    """Fetch images ahead of their first use."""
    wanted = []

    def act(image_id: str) -> str:
        try:
            control.queue(image_id, priority)
        except ImageExistsError as error:
            if control.record(State.CACHED, image_id) is None:
                wanted.append(image_id)
            return str(error)
        wanted.append(image_id)
        return f"{image_id} is queued"

    failed = bool(_each(image_ids, act))
    if waiting and wanted:
        failed |= not wait(control, wanted)
    _finish(failed)


@click.command()
@with_ids
@with_control
def rm(control: Control, image_ids: tuple[str, ...]) -> None:
    """Evict cached images, cancel fetches, unqueue, or forget failed ones."""
    _finish(bool(_each(image_ids, lambda name: f"{name} is {_DONE[control.remove(name)]}")))


@click.command()
@with_ids
@with_control
def pin(control: Control, image_ids: tuple[str, ...]) -> None:
    """Keep images from ever being evicted; those that are not cached are queued first."""

    def act(image_id: str) -> str:
        if control.pin(image_id):
            return f"{image_id} is pinned"
        return f"{image_id} is queued, and pinned once it is cached"

    _finish(bool(_each(image_ids, act)))


@click.command()
@with_ids
@with_control
def unpin(control: Control, image_ids: tuple[str, ...]) -> None:
    """Let pinned images be evicted again."""

    def act(image_id: str) -> str:
        control.unpin(image_id)
        return f"{image_id} is not pinned any more"

    _finish(bool(_each(image_ids, act)))
