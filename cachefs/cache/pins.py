"""The images that are to be pinned once they are cached: files, so that the wish outlives a crash.

``.cachefs/pins/ID`` is an empty file. It is made and removed under the directory's lock, and is
removed only after the index has the pin: an image is never left with neither. Pins of cached
images are the index's."""

import contextlib

from cachefs.cache.layout import Layout, files_in, sync_directory
from cachefs.errors import InvalidImageIDError
from cachefs.image import check_image_id


class Pins:
    """The wishes of one cache directory. Durable, since each is a file."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def __contains__(self, image_id: str) -> bool:
        return self._layout.pin(image_id).exists()

    def add(self, image_id: str) -> None:
        """Have the image pinned when it is cached; durable."""
        with self._layout.replacing(self._layout.pin(image_id)):  # follows no link
            pass
        sync_directory(self._layout.pins_dir)

    def discard(self, image_id: str) -> bool:
        """Take the wish back; False where there was none."""
        try:
            self._layout.pin(image_id).unlink()
        except FileNotFoundError:
            return False
        return True

    def ids(self) -> list[str]:
        """The images that are to be pinned, sorted."""
        names = []
        for name, _ in files_in(self._layout.pins_dir):
            with contextlib.suppress(InvalidImageIDError):
                names.append(check_image_id(name))
        return sorted(names)
