"""Waiting for queued images: progress bars on a terminal, plain lines elsewhere.

Reads records only; ending the wait leaves the images as they are.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

from cachefs.cli.control import Control
from cachefs.cli.output import complain, one_line
from cachefs.image import State
from cachefs.units import human_size

POLL_SECONDS = 0.25
GONE = "is no longer queued, nor cached: evicted again since, or taken out of the queue"
ABSENT_POLLS = 3
"""So many looks in a row must find an image nowhere before it counts as gone: a look at four
directories can miss an image that moves between them."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far one image is: bytes that have arrived, of how many (0 while unknown)."""

    image_id: str
    state: State
    progress: int = 0
    size: int = 0
    error: str | None = None

    @property
    def ended(self) -> bool:
        """Whether waiting for it is over."""
        return self.state not in (State.QUEUED, State.INCOMPLETE)


class Display(Protocol):
    """Where the steps are shown."""

    def show(self, step: Step) -> None:
        """Show the latest step of an image."""

    def close(self) -> None:
        """Leave the terminal as it was found."""


def look(control: Control, image_id: str) -> Step:
    """Where the image is now."""
    record = control.find(image_id)
    if record is None:
        return Step(image_id, State.ABSENT, error=GONE)
    size, progress, error = (record.get(name) for name in ("size", "progress", "error"))
    return Step(
        image_id,
        State(str(record["state"])),
        progress if isinstance(progress, int) else 0,
        size if isinstance(size, int) else 0,
        str(error) if error else None,
    )


def wait(
    control: Control,
    image_ids: Iterable[str],
    *,
    console: Console | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait until each image is cached or has failed; True when all are cached.

    Failures are told on stderr, a line each. KeyboardInterrupt leaves everything queued.
    """
    console = console or Console(stderr=True)
    display: Display = ProgressBars(console) if console.is_terminal else PlainProgress()
    failed: list[Step] = []
    waiting = dict.fromkeys(image_ids, 0)
    try:
        while waiting:
            for image_id, absent in list(waiting.items()):
                step = look(control, image_id)
                if step.state is State.ABSENT and absent + 1 < ABSENT_POLLS:
                    waiting[image_id] = absent + 1
                    continue
                waiting[image_id] = 0
                display.show(step)
                if step.ended:
                    del waiting[image_id]
                    if step.state is not State.CACHED:
                        failed.append(step)
            if waiting:
                sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        display.close()
        complain(f"interrupted; still queued: {', '.join(waiting)}")
        raise
    finally:
        display.close()
    for step in failed:
        complain(f"{step.image_id}: {step.error or 'failed'}")
    return not failed


class PlainProgress:
    """A line at each change of state, on stdout: for logs and pipes."""

    def __init__(self) -> None:
        self._last: dict[str, State] = {}

    def show(self, step: Step) -> None:
        """Tell of a change; failures are left to the caller."""
        if self._last.get(step.image_id) is step.state:
            return
        self._last[step.image_id] = step.state
        if step.state is State.INCOMPLETE:
            size = f", {human_size(step.size)}" if step.size else ""
            click.echo(f"{step.image_id} is being fetched{size}")
        elif step.state is State.CACHED:
            click.echo(f"{step.image_id} is cached, {human_size(step.size)}")

    def close(self) -> None:
        """Nothing to put back."""


class ProgressBars:
    """A bar for each image, with bytes, speed and time left."""

    def __init__(self, console: Console) -> None:
        # No markup: an ID may hold square brackets.
        name = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
        self._progress = Progress(
            name,
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._progress.start()

    def show(self, step: Step) -> None:
        """Move the image's bar; it pulses while the size is not known."""
        task = self._tasks.get(step.image_id)
        if task is None:
            task = self._progress.add_task(one_line(step.image_id), total=None)
            self._tasks[step.image_id] = task
        if step.state is State.INCOMPLETE:
            self._progress.update(task, total=step.size or None, completed=step.progress)
        elif step.state is State.CACHED:
            self._progress.update(task, total=step.size, completed=step.size)
        elif step.ended:
            self._progress.stop_task(task)

    def close(self) -> None:
        """Stop drawing; the bars stay as they are."""
        self._progress.stop()
