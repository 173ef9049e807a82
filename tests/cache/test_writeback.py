"""Starting write-out changes nothing that a program could see, and never fails."""

import os
from pathlib import Path

from cachefs.cache import begin_writeback


def test_bytes_and_length_stay(tmp_path: Path) -> None:
    data = os.urandom(2**20)
    with (tmp_path / "image").open("w+b", buffering=0) as file:
        os.truncate(file.fileno(), 2**21)
        file.write(data)
        begin_writeback(file.fileno(), 0, len(data))
        begin_writeback(file.fileno(), 2**20, 2**20)  # a hole
        begin_writeback(file.fileno(), 2**30, 4096)  # past the end
        assert os.pread(file.fileno(), 2**21, 0) == data + bytes(2**20)


def test_what_has_no_pages_is_left_alone() -> None:
    reader, writer = os.pipe()
    begin_writeback(reader, 0, 4096)
    os.close(reader)
    os.close(writer)
    begin_writeback(reader, 0, 4096)  # closed by now
