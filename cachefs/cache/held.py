"""Files that must stay readable for a mount's open handles, whatever becomes of their names.

``.cachefs/held/NUMBER`` is a hard link to an image's file, ``.cachefs/held/NUMBER.json`` what its
owner wrote of it; the number is the owner's. They outlive the process, not the mount: the first
daemon of a mount clears what an earlier one left, those that take over from a dead one take it up.
Disk space comes back with the last link and the last descriptor."""

import contextlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any


class Held:
    """The held files of one cache directory; they must be on its filesystem. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, number: int) -> Path:
        """Where the file with this number is, if it is held."""
        return self._directory / str(number)

    def keep(self, path: Path, number: int) -> None:
        """Hold the file *path* under *number*, instead of another one; nothing happens where the
        file has gone already."""
        link = self.path(number)
        link.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            link.hardlink_to(path)

    def keep_open(self, fd: int, number: int) -> None:
        """Hold the file that is open as *fd*, as :meth:`keep` does."""
        link = self.path(number)
        link.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            # The descriptor makes os.link use linkat(2), which alone follows the link in /proc.
            os.link(f"/proc/self/fd/{fd}", link, src_dir_fd=fd, follow_symlinks=True)

    def note(self, number: int, members: dict[str, Any]) -> None:
        """Write down what the next process needs to know of *number*: whole, or not at all."""
        path, scratch = self._note(number), self._directory / f"{number}.new"
        scratch.write_text(json.dumps(members), encoding="utf-8")
        scratch.rename(path)

    def noted(self, number: int) -> dict[str, Any] | None:
        """What was written down, or None."""
        try:
            members: dict[str, Any] = json.loads(self._note(number).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return members

    def release(self, number: int) -> None:
        """Hold the file no longer."""
        self.path(number).unlink(missing_ok=True)
        self._note(number).unlink(missing_ok=True)

    def keep_only(self, numbers: Collection[int]) -> None:
        """Release everything else."""
        names = {str(number) for number in numbers}
        for path in list(self._directory.iterdir()):
            if path.name.partition(".")[0] not in names:
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Release everything."""
        self.keep_only(())

    def _note(self, number: int) -> Path:
        return self._directory / f"{number}.json"
