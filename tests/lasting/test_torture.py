"""A short run of `scripts/torture`: every kind of fault on some transport and driver, no error.

What fails here is had again with the line that is printed, ``--seed S --only NAME``, and without
anything else beside it.
"""

import faulthandler
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent.parent
PATH = f"{CHECKOUT / 'scripts'}:{CHECKOUT}"
SEED = 8
MINUTES = 1.0
LIMIT = 400
"""Seconds after which it hangs: a busy machine takes a multiple of the minute."""

WRONG = """
import sys
from pathlib import Path
from torturing.content import Image
from torturing.readers import Reader
root, image = Path(sys.argv[1]), Image("seed", "image", 300_000)
(root / "images").mkdir()
data = bytearray(image.read(0, image.size))
data[200_000] ^= int(sys.argv[2])
(root / "images" / "image").write_bytes(data)
reader = Reader("open", root, [image], "seed")
reader._open()
print(*reader.report.wrong)
"""

ORPHANS = """
import sys
from pathlib import Path
from torturing.check import check_directory
from torturing.figures import Figures
cache, figures = Path(sys.argv[1]), Figures()
for place in ("maps", "held", "priorities", "failed"):
    (cache / ".cachefs" / place).mkdir(parents=True)
    (cache / ".cachefs" / place / "image").touch()
(cache / "image").write_bytes(b"12345")
check_directory(cache, figures, max_size=4, driver="xattr")
print(*figures.errors, sep="|")
"""


def run(code: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": PATH},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    return done.stdout.strip()


def test_a_reader_of_the_harness_finds_a_wrong_byte(tmp_path: Path) -> None:
    """The run below could not fail otherwise."""
    assert "at byte 200000" in run(WRONG, str(tmp_path), "1")


def test_a_reader_of_the_harness_is_content_with_right_bytes(tmp_path: Path) -> None:
    assert run(WRONG, str(tmp_path), "0") == ""


def test_the_check_of_the_harness_finds_orphans_and_too_many_bytes(tmp_path: Path) -> None:
    found = run(ORPHANS, str(tmp_path)).split("|")
    assert len(found) == 5
    assert found[0] == "5 bytes are taken where 4 are allowed"


@pytest.mark.timeout(LIMIT + 20)
def test_a_minute_of_torture_finds_no_error() -> None:
    faulthandler.cancel_dump_traceback_later()  # it ends what lasts longer than most tests
    own = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    program = (sys.executable, "-m", "torturing", "--minutes", str(MINUTES), "--jobs", "3")
    done = subprocess.run(
        [*own, *program, "--seed", str(SEED)],  # not below tmp_path, which is closed to others
        env={**os.environ, "PYTHONPATH": PATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    print(done.stdout)  # noqa: T201 - the table, and how to have a failure again
    assert done.returncode == 0
    assert re.search(r"^0 errors$", done.stdout, re.MULTILINE)
