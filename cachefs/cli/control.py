"""The client of a mount's control files (``MOUNTPOINT/control``).

Owns their names and what their errnos mean to a user. Whatever it does is one of open, read,
write, unlink and listing a directory.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cachefs.errors import (
    CacheFSError,
    ImageBusyError,
    ImageExistsError,
    ImageNotFoundError,
    InvalidValueError,
)
from cachefs.image import State

Record = dict[str, object]
"""A record as its file shows it; later versions may add members."""

PLACES: Final = {
    State.CACHED: "cached",
    State.INCOMPLETE: "incomplete",
    State.QUEUED: "queue",
    State.INVALID: "invalid",
}
"""The directory of each state, in the order in which an image is looked for."""


class Control:
    """The control files of the mount at *mountpoint*.

    Every method blocks as its system calls do, and raises OSError for what is not told below.
    Image IDs are taken as checked (:func:`cachefs.image.check_image_id`).
    """

    def __init__(self, mountpoint: Path) -> None:
        self.mountpoint = mountpoint
        self._root = mountpoint / "control"

    def record(self, state: State, image_id: str) -> Record | None:
        """The image's record if it is in that *state*, else None."""
        try:
            return self._read(f"{PLACES[state]}/{image_id}")
        except FileNotFoundError:
            return None

    def find(self, image_id: str) -> Record | None:
        """The image's record, with its ``state``, or None where it is in no state at all."""
        for state in PLACES:
            record = self.record(state, image_id)
            if record is not None:
                return {**record, "state": state}
        return None

    def records(self, state: State) -> Iterator[Record]:
        """The records of all images in *state*, read one by one as they are asked for.

        Images that leave the state meanwhile are left out. Queued ones come in queue order.
        """
        for image_id in self._queued() if state is State.QUEUED else self._names(PLACES[state]):
            record = self.record(state, image_id)
            if record is not None:
                yield {**record, "state": state}

    def queue(self, image_id: str, priority: int | None = None) -> None:
        """Queue the image; ImageExistsError when it is cached or being fetched already."""
        try:
            self._touch(f"queue/{image_id}", "" if priority is None else str(priority))
        except FileExistsError as error:
            if self.record(State.INCOMPLETE, image_id) is not None:
                raise ImageExistsError(f"{image_id} is being fetched already") from error
            raise ImageExistsError(f"{image_id} is cached already") from error

    def remove(self, image_id: str) -> State:
        """Evict, unqueue, cancel or forget the image, wherever it stands; returns what it was.

        Raises ImageBusyError for a pinned one, ImageNotFoundError for one that is nowhere.
        """
        for state, place in PLACES.items():
            try:
                (self._root / place / image_id).unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno == ImageBusyError.errno:
                    raise ImageBusyError(f"{image_id} is pinned; unpin it first") from error
                raise
            return state
        raise ImageNotFoundError(f"{image_id} is neither cached nor queued")

    def pin(self, image_id: str) -> bool:
        """Pin an image, or leave it pinned. False where it is not cached yet: then it is queued,
        and pinned when it is."""
        with contextlib.suppress(FileExistsError):
            self._touch(f"pinned/{image_id}")
        coming = (self._root / place / image_id for place in ("queue", "incomplete"))
        return not any(path.exists() for path in coming)

    def unpin(self, image_id: str) -> None:
        """Unpin an image; ImageNotFoundError when it is not pinned."""
        try:
            (self._root / "pinned" / image_id).unlink()
        except FileNotFoundError as error:
            raise ImageNotFoundError(f"{image_id} is not pinned") from error

    def status(self) -> Record:
        """The status document."""
        return self._read("status")

    def run(self, task: str, value: str = "") -> Record:
        """Do the *task* (``prune``, ``clean``) now; returns its result once it is done.

        InvalidValueError for a *value* that the task refuses.
        """
        path = self._root / task
        # Opened as it is: there is nothing to truncate or to create.
        control = os.open(path, os.O_WRONLY)
        try:
            os.write(control, f"{value}\n".encode())
        except OSError as error:
            if error.errno == InvalidValueError.errno:
                raise InvalidValueError(f"{task} does not take {value!r}") from error
            raise
        finally:
            os.close(control)
        return self._read(task)

    def _names(self, place: str) -> Iterator[str]:
        with os.scandir(self._root / place) as entries:
            for entry in entries:
                yield entry.name

    def _queued(self) -> Iterator[str]:
        text = (self._root / "enqueue").read_text(encoding="utf-8")
        return (line for line in text.split("\n") if line)

    def _read(self, name: str) -> Record:
        path = self._root / name
        content = path.read_bytes()
        try:
            document = json.loads(content)
        except ValueError as error:
            raise CacheFSError(f"{path}: not JSON: {error}") from error
        if not isinstance(document, dict):
            raise CacheFSError(f"{path}: not a JSON object")
        return document

    def _touch(self, name: str, text: str = "") -> None:
        fd = os.open(self._root / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if text:
                os.write(fd, text.encode())
        finally:
            os.close(fd)
