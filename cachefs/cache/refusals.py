"""Images of which an open was refused as stale a moment ago, for the next process of a mount.

The kernel answers a refusal by a look-up and one more open, perhaps through the next process, which
must not refuse it again. Owns ``.cachefs/refused``: a JSON list of IDs, as new as its mtime."""

import json
import time

from cachefs.cache.layout import Layout
from cachefs.cache.trust import read_trusted

RETRY_SECONDS = 30.0
"""Seconds after a refusal in which its open may be tried once more through the next process: as
long as one takes to come, also after one that fell silent."""

_LONGEST = 2**16  # bytes


class Refusals:
    """The note of one cache directory. A few system calls each."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def note(self, image_ids: list[str | None]) -> None:
        """Opens of these were refused a moment ago, instead of those noted before; None stands for
        an image whose ID nobody knows. Raises OSError."""
        with self._layout.replacing(self._layout.refused_file) as file:
            file.write(json.dumps(image_ids).encode())

    def recent(self) -> list[str | None]:
        """What was noted in the last :data:`RETRY_SECONDS`; [None] where it makes no sense."""
        path = self._layout.refused_file
        try:
            if not 0 <= time.time() - path.lstat().st_mtime < RETRY_SECONDS:
                return []
            image_ids = json.loads(read_trusted(path, _LONGEST))
        except OSError:
            return []
        except (ValueError, RecursionError):
            return [None]
        makes_sense = isinstance(image_ids, list) and all(
            image_id is None or isinstance(image_id, str) for image_id in image_ids
        )
        return image_ids if makes_sense else [None]
