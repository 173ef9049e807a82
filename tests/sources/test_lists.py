"""The formats of checksum lists, and what a long one costs."""

import codecs
import gzip
import subprocess
import sys
from collections.abc import Iterable

import pytest

from cachefs.sources.lists import MAX_LINE, Digests

A, B = "a1" * 32, "b2" * 32


def digest(text: str | bytes, name: str = "img", algorithm: str | None = "sha256") -> str | None:
    """What the list says of *name*, in pieces of one byte to make it hard."""
    data = text.encode() if isinstance(text, str) else text
    pieces: Iterable[bytes] = (data[at : at + 1] for at in range(len(data)))
    digests = Digests.read(pieces, algorithm)
    found = digests.find(name) or digests.guess(name, "the list")
    return None if found is None else str(found)


CLEARSIGNED = f"""-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

# img: 100000 bytes
SHA256 (img) = {A}
# Fedora-Cloud-42.qcow2: 3 bytes
SHA256 (Fedora-Cloud-42.qcow2) = {B}
-----BEGIN PGP SIGNATURE-----

iQIzBAEBCAAdFiEEsPVX0QJJaeA7kJ9FAAAAAAAAAAAFAmgAAAAACgkQ
-----END PGP SIGNATURE-----
"""


@pytest.mark.parametrize(
    "text",
    [
        f"{A}  images/img",
        f"{A} */srv/pub/images/img",
        f"SHA256 (./pub/img) = {A}",
        f"{A}  100000 img",
        f"{A} 100000 img",
        f"{A}\t100000\timg",
        f" {A} 100000 main/img",
        f"100000 {A}  img",
        f"{A}  img  100000",
        f"img {A}",
        f"img: {A}",
        f"img 100000 {A}",
        CLEARSIGNED,
        CLEARSIGNED.replace("\n", "\r\n"),
    ],
)
def test_a_line_with_a_path_or_a_size_names_the_image(text: str) -> None:
    assert digest(text) == f"sha256:{A}"
    assert digest(text, "mg") is None
    assert digest(text, algorithm=None) == f"sha256:{A}"


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_list_in_utf_16_is_read(order: str) -> None:
    mark = codecs.BOM_UTF16_LE if order == "little" else codecs.BOM_UTF16_BE
    text = f"{A}  img é\r\n{B}  other\r\n".encode(f"utf-16-{order[0]}e")
    assert digest(mark + text, "img é") == f"sha256:{A}"
    assert digest(mark + text, "other") == f"sha256:{B}"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        gzip.compress(f"{A}  img\n".encode(), mtime=0),
        f"{A}  img\n".encode("utf-16-le"),
        b"\xff\xfe",
        b"<html>img</html>",
        f"{A[2:]}  img\n".encode(),
    ],
)
def test_what_holds_no_digest_is_known_to_hold_none(data: bytes) -> None:
    assert Digests.read([data], "sha256").count == 0


def test_a_name_that_begins_with_a_number_is_not_taken_for_a_size() -> None:
    text = f"{A}  2024 img\n{B}  img\n"
    assert digest(text, "2024 img") == f"sha256:{A}"
    assert digest(text, "img") == f"sha256:{B}"


def test_a_line_without_end_is_passed_over() -> None:
    text = f"{'x' * 3 * MAX_LINE}\n{A}  img\n{B} {'y' * 3 * MAX_LINE}\n"
    assert Digests.read([text.encode()], "sha256").find("img") is not None
    assert digest(text) == f"sha256:{A}"


@pytest.mark.timeout(180)  # five seconds of work, on a machine that is shared
def test_a_list_of_sixty_megabytes_costs_little_memory() -> None:
    program = """
import resource, sys
from cachefs.sources.lists import Digests
line = "%064x  directory/of/images/name-%012d.qcow2\\n"
def pieces():
    for start in range(0, 560_000, 1000):
        yield "".join(line % (n, n) for n in range(start, start + 1000)).encode()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
digests = Digests.read(pieces(), "sha256")
found = digests.guess("name-000000333333.qcow2", "")
assert found is not None and int(found.hex, 16) == 333333
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert int(done.stdout) < 300
