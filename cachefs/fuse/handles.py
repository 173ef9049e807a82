"""Open files and directories by the numbers that the kernel knows them by."""

from dataclasses import dataclass

from cachefs.vfs.inodes import Serials
from cachefs.vfs.nodes import Directory, Listing, OpenFile


@dataclass(slots=True)
class _Open:
    file: OpenFile
    opens: int = 0


@dataclass(frozen=True, slots=True)
class OpenDirectory:
    """A directory being listed."""

    directory: Directory
    listing: Listing


class Handles:
    """The handle numbers in use. An :class:`OpenFile` with a number of its own is shared by all its
    opens, and closed with the last."""

    def __init__(self, serials: Serials) -> None:
        self._serials = serials
        self._files: dict[int, _Open] = {}
        self._directories: dict[int, OpenDirectory] = {}

    def __len__(self) -> int:
        return len(self._files) + len(self._directories)

    def add(self, file: OpenFile) -> int:
        """Count one open of *file*; its number."""
        number = file.handle or self._serials.next()
        self._files.setdefault(number, _Open(file)).opens += 1
        return number

    def file(self, number: int) -> OpenFile:
        """The open file of a number."""
        return self._files[number].file

    def release(self, number: int) -> None:
        """One open less; the last closes the file."""
        opened = self._files[number]
        opened.opens -= 1
        if opened.opens == 0:
            del self._files[number]
            opened.file.close()

    def add_directory(self, directory: OpenDirectory) -> int:
        """Remember an open directory; its number."""
        number = self._serials.next()
        self._directories[number] = directory
        return number

    def directory(self, number: int) -> OpenDirectory:
        """The open directory of a number."""
        return self._directories[number]

    def release_directory(self, number: int) -> None:
        """Forget an open directory."""
        del self._directories[number]

    def close(self) -> None:
        """Close everything, at the end of the mount."""
        while self._files:
            self._files.popitem()[1].file.close()
        self._directories.clear()
