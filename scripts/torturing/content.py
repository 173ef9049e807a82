"""What the bytes of an image are: pseudo-random, and told from the seed, the ID and the version, so
that any process can check any byte without a copy.

Owns that function and the catalogue of what an origin has. Knows neither files nor servers.

A block of 4 KiB begins with its own number: bytes that stand in the wrong place are wrong.
"""

import hashlib
import random
from dataclasses import dataclass

BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Image:
    """An image as the origin has it: *size* in bytes, *version* counted from 1."""

    seed: str
    name: str
    size: int
    version: int = 1

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [*start*, *stop*), cut at the end."""
        stop = min(stop, self.size)
        if start >= stop:
            return b""
        noise = _noise(f"{self.seed}/{self.name}/{self.version}")
        first = start // BLOCK
        blocks = [
            number.to_bytes(8, "little") + noise[number % BLOCK :][: BLOCK - 8]
            for number in range(first, -(-stop // BLOCK))
        ]
        return b"".join(blocks)[start - first * BLOCK : stop - first * BLOCK]

    def digest(self, algorithm: str = "sha256") -> str:
        """The digest of all of it, in hex."""
        state = hashlib.new(algorithm, usedforsecurity=False)
        for start in range(0, self.size, 2**20):
            state.update(self.read(start, start + 2**20))
        return state.hexdigest()


_known: dict[str, bytes] = {}


def _noise(key: str) -> bytes:
    if key not in _known:
        if len(_known) > 256:
            _known.clear()
        _known[key] = random.Random(key).randbytes(2 * BLOCK)
    return _known[key]
