"""What every test stands on."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.disks import without_xattrs

# A shell starts what runs in the background with SIGINT ignored, and children inherit that: those
# of tests would not hear of a Ctrl-C. A handler is not inherited; with one, they start as usual.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def no_xattrs(tmp_path: Path) -> Iterator[Path]:
    """A directory on a filesystem without user attributes; needs root."""
    with without_xattrs(tmp_path / "ramfs") as path:
        yield path
