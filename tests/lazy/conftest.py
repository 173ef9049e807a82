import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.cachefs_mount import NGINX, Mounted, mounted

MIB = 2**20
MakeMount = Callable[..., Mounted]


@pytest.fixture
def make_mount(tmp_path: Path) -> Iterator[MakeMount]:
    """Mounts before an nginx of the test's own; arguments as of
    :func:`support.cachefs_mount.mounted`."""
    numbers = itertools.count(1)
    with ExitStack() as stack:

        def make(**arguments: object) -> Mounted:
            home = tmp_path / f"mount-{next(numbers)}"
            return stack.enter_context(mounted(home, **{"source": NGINX, **arguments}))  # type: ignore[arg-type]

        yield make


def stamped(size: int, stamp: bytes = b"") -> bytes:
    """Bytes quickly made, of which no two chunks are the same; *stamp* makes them others."""
    block = bytearray(os.urandom(MIB))
    pieces = []
    for number in range(-(-size // MIB)):
        block[: 8 + len(stamp)] = number.to_bytes(8, "big") + stamp
        pieces.append(bytes(block))
    return b"".join(pieces)[:size]


def progress(mount: Mounted, image_id: str) -> int:
    """How many bytes of an image have arrived; AssertionError where it is not being fetched."""
    assert image_id in mount.listed("incomplete"), f"{image_id} is not being fetched"
    arrived = mount.record(f"incomplete/{image_id}")["progress"]
    assert isinstance(arrived, int)
    return arrived
