"""A plain directory in the shape of a mount's control tree.

It shows honestly how records are read and printed and which files are touched or unlinked; what a
daemon answers to that is tested on a real mount.
"""

import json
from pathlib import Path

from cachefs.cli.control import PLACES
from cachefs.image import ImageRecord, State


class FakeMount:
    """The directory, and what a daemon would do in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.control = root / "control"
        for place in (*PLACES.values(), "pinned"):
            (self.control / place).mkdir(parents=True)

    def put(self, image_id: str, state: State = State.CACHED, **members: object) -> None:
        """Bring the image into *state*, out of any other."""
        self.drop(image_id)
        record = ImageRecord(image_id, **{"size": 2**20, **members}, state=state)
        (self.control / PLACES[state] / image_id).write_text(record.as_json())
        queued = sorted(path.name for path in (self.control / "queue").iterdir())
        (self.control / "enqueue").write_text("".join(f"{name}\n" for name in queued))

    def drop(self, image_id: str) -> None:
        """Forget the image."""
        for place in PLACES.values():
            (self.control / place / image_id).unlink(missing_ok=True)

    def write_status(self, document: object) -> None:
        """Make `control/status` show *document*."""
        (self.control / "status").write_text(json.dumps(document))
