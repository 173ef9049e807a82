"""What sources need of Python's own files is there before they are asked for anything."""

import subprocess
import sys

PROGRAM = """
import sys
import cachefs.sources.lists, cachefs.sources.web
sys.path.clear()          # no file can be read any more
sys.path_importer_cache.clear()
sys.meta_path.clear()
assert "host.example".encode("idna") == b"host.example"
text = "0" * 64 + "  name\\n"
[found] = cachefs.sources.lists.entries(iter([text.encode("utf-16")]), "sha256")
assert found.name == "name", found
"""


def test_a_codec_that_could_not_be_read_later_is_known() -> None:
    """Not known then, it would be unknown for good, and every source would fail until the next
    worker."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
