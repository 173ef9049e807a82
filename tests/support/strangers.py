"""Processes that hold a lock which others need, for as long as a block runs."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 30
"""Seconds after which a holder ends by itself: who waits for it fails a test instead of hanging."""

_PRELUDE = f"""
import fcntl, signal, sqlite3, sys
signal.alarm({PATIENCE})
path = sys.argv[1]
"""
_POSTLUDE = """
print("held", flush=True)
sys.stdin.read()
"""
FLOCK = "file = open(path, 'rb+'); fcntl.flock(file, fcntl.LOCK_EX)"
WRITE_LOCK = "c = sqlite3.connect(path, isolation_level=None); c.execute('BEGIN IMMEDIATE')"
READ_TRANSACTION = """
c = sqlite3.connect(path, isolation_level=None)
c.execute('BEGIN'); c.execute('SELECT * FROM cached_images').fetchall()
"""


@contextmanager
def another_holds(path: Path, code: str) -> Iterator[None]:
    """Another process runs *code*, which takes a lock on *path*, and then waits for the end of the
    block. It is an error if it has not held it for as long."""
    with subprocess.Popen(
        [sys.executable, "-c", _PRELUDE + code + _POSTLUDE, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        try:
            yield
            assert holder.poll() is None, "it was waited for until it ended by itself"
        finally:
            assert holder.stdin is not None
            holder.stdin.close()
            holder.wait()
