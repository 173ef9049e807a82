"""What can be no image's ID and no value is refused with its errno, and changes nothing."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cachefs_mount import Mounted
from support.processes import failure, run

BAD_NAMES = {
    "newline": b"a\nb",
    "control character": b"a\x01b",
    "delete": b"a\x7fb",
    "leading dot": b".hidden",
    "256 bytes": b"x" * 256,
    "not UTF-8": b"\xff\xfe",
    "half a character": "é".encode()[:1],
    "queue": b"queue",
    "incomplete": b"incomplete",
    "invalid": b"invalid",
    "cache.db": b"cache.db",
    "cache.db-wal": b"cache.db-wal",
}
PLACES = ["images", "control/queue", "control/cached", "control/incomplete", "control/pinned"]
PLACES += ["control/invalid"]

every_bad_name = pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES.keys())
every_place = pytest.mark.parametrize("place", PLACES)


@pytest.fixture(autouse=True)
def unchanged(mount: Mounted) -> Iterator[None]:
    """Nothing is queued, failed, cached or left lying that was not so before."""
    before = mount.kept(), mount.show("enqueue")
    yield
    assert (mount.kept(), mount.show("enqueue")) == before
    assert not [each for each in mount.status()["sources"] if each["error"]]
    assert mount.listed("invalid") == mount.listed("incomplete") == []


def path(mount: Mounted, place: str, name: bytes) -> bytes:
    return os.fsencode(mount.mountpoint / place) + b"/" + name


@every_place
@every_bad_name
def test_a_bad_id_is_EINVAL_wherever_it_is_looked_up(
    mount: Mounted, place: str, name: bytes
) -> None:
    assert failure(os.stat, path(mount, place, name)) == "EINVAL"


@every_place
@every_bad_name
def test_a_bad_id_is_EINVAL_wherever_it_is_made(mount: Mounted, place: str, name: bytes) -> None:
    made = failure(os.open, path(mount, place, name), os.O_WRONLY | os.O_CREAT)
    assert made == "EINVAL"


@every_place
@every_bad_name
def test_a_bad_id_is_EINVAL_wherever_it_is_removed(mount: Mounted, place: str, name: bytes) -> None:
    assert failure(os.unlink, path(mount, place, name)) == "EINVAL"


@every_bad_name
def test_a_bad_id_is_EINVAL_in_enqueue(mount: Mounted, name: bytes) -> None:
    if b"\n" in name:
        pytest.skip("a newline ends an ID here")
    fd = os.open(mount.control / "enqueue", os.O_WRONLY)
    try:
        assert failure(os.write, fd, name) == "EINVAL"
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", ["..", ".", "../../etc/passwd", "/etc/passwd", "a/b", "a\0b"])
def test_enqueue_refuses_what_would_be_a_path(mount: Mounted, name: str) -> None:
    assert failure(mount.write, "enqueue", name) == "EINVAL"


def test_enqueue_takes_none_of_a_list_with_a_bad_id_in_it(mount: Mounted) -> None:
    names = [mount.origin.new()[0] for _ in range(2)]
    assert failure(mount.write, "enqueue", f"{names[0]}\n.bad\n{names[1]}") == "EINVAL"


@every_place
def test_a_path_with_a_slash_leads_nowhere(mount: Mounted, place: str) -> None:
    assert failure(os.stat, path(mount, place, b"a/b")) in ("ENOENT", "ENOTDIR")
    assert failure(os.stat, path(mount, place, b"../../../nothing-here")) == "ENOENT"


@every_place
def test_a_name_with_nul_does_not_reach_the_kernel(mount: Mounted, place: str) -> None:
    with pytest.raises(ValueError, match="null"):
        os.open(path(mount, place, b"a\0b"), os.O_RDONLY)


def test_a_name_longer_than_the_kernel_takes_is_ENAMETOOLONG(mount: Mounted) -> None:
    assert failure(os.stat, path(mount, "images", b"x" * 2000)) in ("ENAMETOOLONG", "EINVAL")


SETTINGS = ["max_size", "min_free", "stall_time"]
BAD_VALUES = {
    "blank": b"\n",
    "word": b"lots\n",
    "negative": b"-1\n",
    "unit": b"10X\n",
    "ambiguous unit": b"10GB\n",
    "exponent": b"1e9\n",
    "not a number": b"nan\n",
    "infinite": b"inf\n",
    "over 100%": b"101%\n",
    "over 2^63": b"9223372036854775808\n",
    "two lines": b"1G\n2G\n",
    "binary": bytes(range(256)),
    "NUL": b"1G\0",
    "one page of zeros": b"0" * 4096,
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("value", BAD_VALUES.values(), ids=BAD_VALUES.keys())
def test_a_bad_value_is_EINVAL_and_the_old_one_stays(
    mount: Mounted, name: str, value: bytes
) -> None:
    if name == "stall_time" and value.startswith(b"92233"):
        pytest.skip("no size")
    before = mount.show(name)
    fd = os.open(mount.control / name, os.O_WRONLY | os.O_TRUNC)
    try:
        assert failure(os.write, fd, value) == "EINVAL"
    finally:
        os.close(fd)
    assert mount.show(name) == before


@pytest.mark.parametrize("name", [*SETTINGS, "enqueue", "clean"])
@pytest.mark.parametrize("byte", [b"A", b"\0", b"\xff"])
def test_a_mebibyte_of_garbage_is_EINVAL(mount: Mounted, name: str, byte: bytes) -> None:
    before = mount.show(name)
    garbage = mount.home / "garbage"
    garbage.write_bytes(byte * 2**20)
    refused = run(
        "dd", f"if={garbage}", f"of={mount.control}/{name}", "bs=1M", "status=none", check=False
    )
    assert "Invalid argument" in refused.stderr
    assert mount.show(name) == before


@pytest.mark.parametrize("name", SETTINGS)
def test_emptying_a_setting_leaves_it_as_it_is(mount: Mounted, name: str) -> None:
    before = mount.show(name)
    run("truncate", "-s", "0", str(mount.control / name))
    run("cp", "/dev/null", str(mount.control / name))
    assert mount.show(name) == before


def test_text_written_to_a_record_is_EINVAL(mount: Mounted) -> None:
    name, _ = mount.origin.new()
    mount.fetch(name)
    mount.touch(f"pinned/{name}")
    assert failure(mount.write, f"pinned/{name}", "text") == "EINVAL"
    mount.remove(f"pinned/{name}")
    mount.remove(f"cached/{name}")


def test_the_origin_is_never_asked_for_a_bad_id(mount: Mounted) -> None:
    outside = Path(mount.origin.directory).parent / "outside"
    outside.write_text("secret")
    for name in (b"../outside", b"..%2foutside", b"%2e%2e/outside"):
        assert failure(os.stat, path(mount, "images", name)) in ("ENOENT", "EINVAL", "ENOTDIR")
