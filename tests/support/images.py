"""A directory of images as an origin has one: random bytes and a SHA256SUMS. Knows no server."""

import hashlib
import itertools
import random
from pathlib import Path


class Images:
    """The directory, and what is in it. Bytes are random, but the same in every run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._random = random.Random(20)
        self._digests: dict[str, str] = {}
        self._numbers = itertools.count(1)

    def put(self, image_id: str, content: int | bytes, *, digest: str | None = None) -> bytes:
        """Put an image there, or another in its place: so many random bytes, or these. *digest*
        is what SHA256SUMS says instead of the truth; ``""`` leaves the image out."""
        data = self._random.randbytes(content) if isinstance(content, int) else content
        true = hashlib.sha256(data).hexdigest()
        self._digests[image_id] = true if digest is None else digest
        self._replace(image_id, data)
        self._write_digests()
        return data

    def new(self, content: int | bytes = 100_000) -> tuple[str, bytes]:
        """Put an image there under a name never used before: name and bytes."""
        image_id = f"image-{next(self._numbers)}"
        return image_id, self.put(image_id, content)

    def remove(self, image_id: str) -> None:
        """Take an image away."""
        (self.directory / image_id).unlink()
        del self._digests[image_id]
        self._write_digests()

    def _write_digests(self) -> None:
        # As sha256sum(1) writes it: a name with a backslash is escaped, and its line says so.
        lines = [
            ("\\" if "\\" in name else "") + f"{digest}  " + name.replace("\\", "\\\\") + "\n"
            for name, digest in self._digests.items()
            if digest
        ]
        # A list without a digest in it would be an error.
        nothing = f"{hashlib.sha256().hexdigest()}  an image that is not there\n"
        self._replace("SHA256SUMS", "".join(lines or [nothing]).encode())

    def _replace(self, name: str, data: bytes) -> None:
        """By rename, as a careful origin does."""
        fresh = self.directory / ".fresh"
        fresh.write_bytes(data)
        fresh.rename(self.directory / name)
