"""fio verifies what it reads, while the worker is killed and images are evicted below it.

Images are written by fio beforehand, into the origin, each 4 KiB with its own checksum in it."""

import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.cachefs_mount import Mounted, Tool
from support.disturb import SECONDS, Disturbance
from support.processes import run

from .conftest import MakeMount

MIB = 1 << 20
VERIFY = (
    *("--name=fio", "--verify=crc32c", "--verify_interval=4k", "--verify_fatal=1"),
    "--verify_state_save=0",  # no file in the working directory
)
KINDS = {
    "seq": ("--rw=read", "--bs=64k", "--ioengine=psync"),
    "rand": ("--rw=randread", "--bs=4k", "--ioengine=psync"),
    "direct": ("--rw=randread", "--bs=128k", "--ioengine=psync", "--direct=1"),
    "mmap": ("--rw=randread", "--bs=16k", "--ioengine=mmap"),
}


def write_image(mount: Mounted, name: str, size: int) -> None:
    """An image as fio writes it, put into the origin."""
    scratch = mount.home / "scratch"
    seed = f"--randseed={sum(name.encode())}"  # images differ: one's block is wrong in another
    words = (*VERIFY, f"--filename={scratch}", f"--size={size}", seed)
    run("fio", *words, "--rw=write", "--bs=64k", "--do_verify=0")
    mount.origin.put(name, scratch.read_bytes())
    scratch.unlink()


def fio(path: str, size: int, kind: str, *words: str) -> tuple[str, ...]:
    return (
        *("fio", *VERIFY, f"--filename={path}", f"--size={size}", "--readonly"),
        *("--allow_file_create=0", *KINDS[kind], *words),
    )


def finish(readers: dict[str, Tool], timeout: float) -> None:
    for name, tool in readers.items():
        _, stderr = tool.process.communicate(timeout=timeout)
        assert tool.process.returncode == 0, f"{name}: {stderr.decode()}"


@pytest.fixture(scope="module", autouse=True)
def have_fio() -> None:
    assert shutil.which("fio"), "these tests need fio"


def test_fio_finds_a_wrong_byte(tmp_path: Path, make_mount: MakeMount) -> None:
    """The tests below could not fail otherwise."""
    mount = make_mount(running=False)
    write_image(mount, "a", MIB)
    image = mount.origin.directory / "a"
    assert run(*fio(str(image), MIB, "seq")).status == 0
    data = bytearray(image.read_bytes())
    data[MIB // 2] ^= 1
    image.write_bytes(data)
    assert run(*fio(str(image), MIB, "seq"), check=False).status != 0


def test_open_cached_images_read_on_over_kills_evictions_and_fetches(
    make_mount: MakeMount,
) -> None:
    size = 16 * MIB
    mount = make_mount()
    for kind in KINDS:
        write_image(mount, kind, size)
    mount.fetch(*KINDS)
    forever = ("--time_based", f"--runtime={SECONDS:.0f}")
    with ExitStack() as stack:
        readers = {
            kind: stack.enter_context(
                mount.start_tool(*fio(mount.image(kind), size, kind, *forever))
            )
            for kind in KINDS
        }
        with Disturbance(mount, evict=list(KINDS)) as disturbance:
            finish(readers, SECONDS + 20)
    assert disturbance.kills >= SECONDS / 4
    assert disturbance.evictions >= SECONDS / 4


def test_images_being_fetched_are_read_on_over_kills_and_evictions(make_mount: MakeMount) -> None:
    """Every reader opens its image anew, again and again: cached, absent or incomplete."""
    size = 16 * MIB
    mount = make_mount(source="nginx", limit_rate="3m")
    for kind in KINDS:
        write_image(mount, kind, size)
    deadline = time.monotonic() + SECONDS
    rounds = 0
    with Disturbance(mount, evict=list(KINDS), refetch=False) as disturbance:
        while rounds == 0 or time.monotonic() < deadline:
            with ExitStack() as stack:
                readers = {
                    kind: stack.enter_context(
                        mount.start_tool(*fio(mount.image(kind), size, kind, "--loops=2"))
                    )
                    for kind in KINDS
                }
                finish(readers, 30)
            rounds += 1
    print(f"{rounds} rounds, {mount.server.bytes_sent() / size:.2f} images fetched")  # noqa: T201
    assert disturbance.kills >= SECONDS / 4
