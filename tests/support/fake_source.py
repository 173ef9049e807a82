"""A source in memory, which a test holds back, has fail, and asks what it was asked."""

import threading
from collections.abc import Generator
from dataclasses import dataclass, field

from cachefs.errors import ImageNotFoundError
from cachefs.image import Digest
from cachefs.sources import SourceImage

MIB = 2**20
PATIENCE = 20.0


@dataclass(eq=False)
class FakeSource:
    """Images in memory. *gate* holds back what lies behind its first *free* bytes of a read, until
    it is set; *errors* are raised one after another, *read_errors* by one read after another, where
    None lets one pass; *stats* and *reads* are what was asked, *waiting* is how many stand at the
    gate."""

    images: dict[str, bytes] = field(default_factory=dict)
    url: str = "fake:///"
    ranges: bool = True
    versions: dict[str, str | None] = field(default_factory=dict)
    digests: dict[str, Digest | None] = field(default_factory=dict)
    stats: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    reads: list[tuple[str, int, int]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    read_errors: list[Exception | None] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    answer: threading.Event = field(default_factory=threading.Event)
    free: int = 2**62
    sent: int = 0
    waiting: int = 0
    counting: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.gate.set()
        self.answer.set()

    def check(self) -> None:
        pass

    def stat(self, image_id: str) -> SourceImage:
        self.stats.append(image_id)
        assert self.answer.wait(PATIENCE)
        if self.errors:
            raise self.errors.pop(0)
        if image_id not in self.images:
            raise ImageNotFoundError(image_id)
        return SourceImage(
            image_id,
            len(self.images[image_id]),
            self.versions.get(image_id, '"v1"'),
            self.digests.get(image_id),
            self.ranges,
            self.url,
        )

    def forget_digest(self, image_id: str) -> None:
        self.forgotten.append(image_id)

    def read(self, image: SourceImage, start: int, stop: int) -> Generator[bytes]:
        self.reads.append((image.image_id, start, stop))
        error = self.read_errors.pop(0) if self.read_errors else None
        if error is not None:
            raise error
        data = self.images[image.image_id]
        for position in range(start, stop, MIB):
            if position - start >= self.free:
                gate = self.gate
                with self.counting:
                    self.waiting += 1
                assert gate.wait(PATIENCE)
                with self.counting:
                    self.waiting -= 1
            piece = data[position : min(stop, position + MIB)]
            with self.counting:
                self.sent += len(piece)
            yield piece
