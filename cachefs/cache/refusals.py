"""Images of which an open was refused as stale a moment ago, for the next process of a mount.

The kernel answers a refusal by a look-up and one more open, either perhaps through the next
process, which must not refuse it again. Owns ``.cachefs/refused``, which is as new as its mtime: a
JSON object of the IDs that were refused, and of what is kept for those looked up since."""

import json
import time
from dataclasses import dataclass
from typing import Any

from cachefs.cache.layout import Layout
from cachefs.cache.trust import read_trusted

RETRY_SECONDS = 30.0
"""Seconds after a refusal in which its open may be tried once more through the next process: as
long as one takes to come, also after one that fell silent."""

_LONGEST = 2**20  # bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """What the kernel is about to open: the number of its *inode*, and of an image that is not
    cached what the source has said of it, for :mod:`json`."""

    inode: int
    image: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """What was noted: *image_ids* were refused (None stands for an image whose ID nobody knows),
    and *kept* was looked up since."""

    image_ids: tuple[str | None, ...] = ()
    kept: tuple[Kept, ...] = ()


class Refusals:
    """The note of one cache directory. A few system calls each."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def note(self, refused: Refused) -> None:
        """Note *refused* instead of what was noted before. Raises OSError."""
        document = {
            "refused": refused.image_ids,
            "kept": [[each.inode, each.image] for each in refused.kept],
        }
        with self._layout.replacing(self._layout.refused_file) as file:
            file.write(json.dumps(document).encode())

    def recent(self) -> Refused:
        """What was noted in the last :data:`RETRY_SECONDS`; that nobody knows which images were
        refused, where it makes no sense."""
        path = self._layout.refused_file
        try:
            if not 0 <= time.time() - path.lstat().st_mtime < RETRY_SECONDS:
                return Refused()
            return _read(json.loads(read_trusted(path, _LONGEST)))
        except OSError:
            return Refused()
        except (ValueError, TypeError, KeyError, RecursionError):
            return Refused((None,))


def _read(document: Any) -> Refused:
    """Raises ValueError, TypeError or KeyError where it makes no sense."""
    image_ids = [_checked(each, str | None) for each in _checked(document["refused"], list)]
    kept = [
        Kept(_checked(inode, int), _checked(image, dict | None))
        for inode, image in _checked(document["kept"], list)
    ]
    return Refused(tuple(image_ids), tuple(kept))


def _checked(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind}")
    return value
