"""The relay over a real mount, trap by trap (DESIGN.md 5.1), and plain pyfuse3 beside it."""

import ctypes
import errno
import hashlib
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cachefs.kernel import mounting
from cachefs.kernel.mountinfo import mount_device
from cachefs.kernel.mounting import MountOptions
from cachefs.transport.probe import probe
from tests.support.mounted import LIMIT, ROOT, Mounted, eventually, limited, mounted, result

MIB = 1 << 20
HOLD = "f = open(sys.argv[1], 'rb'); print('open', flush=True); sys.stdin.readline(); print('end')"


@pytest.fixture(params=["relay", "plain"])
def either(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    files: dict[str, bytes | int] = {
        "img": 5 * MIB + 77,
        "plain": 5 * MIB + 77,
        "here": 3 * MIB + 5,
    }
    with mounted(request.param, files) as made:
        yield made


def same(mount: Mounted, name: str) -> bool:
    return limited((mount / name).read_bytes) == (mount.source / name).read_bytes()


# --- either transport -----------------------------------------------------------------------------


def test_files_read_right(either: Mounted) -> None:
    assert all(same(either, name) for name in ("img", "plain", "here"))


def test_files_map_right(either: Mounted) -> None:
    def digest(path: Path) -> str:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            return hashlib.sha256(mapped).hexdigest()

    for name in ("img", "plain"):
        assert limited(lambda name=name: digest(either / name)) == digest(either.source / name)


def test_the_mount_is_listed_as_fuse_cachefs(either: Mounted) -> None:
    table = Path("/proc/self/mountinfo").read_text()
    (line,) = [line for line in table.splitlines() if str(either.path) in line]
    assert line.split(" - ")[1].split()[:2] == ["fuse.cachefs", "cachefs"]
    assert {"nosuid", "nodev"} <= set(line.split()[5].split(","))


def test_readahead_is_set(either: Mounted) -> None:
    path = Path(f"/sys/class/bdi/{mount_device(either.path)}/read_ahead_kb")
    assert int(path.read_text()) == MountOptions().read_ahead_kib


def test_unmounting_ends_the_server(either: Mounted) -> None:
    mounting.unmount(either.path)
    assert either.server.wait(LIMIT) == 0


def test_many_readers_at_once_read_right(either: Mounted) -> None:
    with ThreadPoolExecutor(40) as pool:
        work = [pool.submit(same, either, name) for name in ("img", "plain", "here") * 20]
        assert all(future.result(60) for future in work)


def test_large_direct_reads_at_once_are_all_answered(either: Mounted) -> None:
    """The socket has room for every answer there can be."""
    want = (either.source / "plain").read_bytes()[: 4 * MIB]

    def read(_: int) -> bool:
        fd = os.open(either / "plain", os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, 4 * MIB) as buffer:
                assert os.preadv(fd, [buffer], 0) == 4 * MIB
                return buffer[:] == want
        finally:
            os.close(fd)

    with ThreadPoolExecutor(100) as pool:
        assert all(limited(lambda: list(pool.map(read, range(300))), 60))


# --- passthrough ----------------------------------------------------------------------------------


def test_a_passthrough_file_is_read_without_the_daemon() -> None:
    with mounted("relay", {"img": 5 * MIB}) as mount:
        assert same(mount, "img")
        assert mount.stats().get("read", 0) <= 2, "its own stats file only"
        eventually(lambda: len(mount.stats()["open_nodes"]) == 1)


def test_trap_io_mode_cached_open_first() -> None:
    """A passthrough open while a cached one exists would be EIO: it follows the first."""
    with mounted("relay", {"later-img": MIB, "img": MIB}) as mount:
        with limited((mount / "later-img").open, 5) as _, limited((mount / "later-img").open):
            mount.command("back later-img")
            assert same(mount, "later-img")
        eventually(lambda: len(mount.stats()["open_nodes"]) == 1)
        before = mount.stats()["read"]
        with limited((mount / "later-img").open):
            assert same(mount, "later-img")
            assert mount.stats()["read"] <= before + 2, "passthrough once nothing else was open"


def test_trap_io_mode_passthrough_open_first() -> None:
    """A cached open while a passthrough one exists would be EIO: it follows the first."""
    with mounted("relay", {"img": MIB}) as mount, limited((mount / "img").open):
        mount.command("unback img")
        assert same(mount, "img")


def test_trap_one_backing_id_for_concurrent_opens() -> None:
    with mounted("relay", {"img": MIB}) as mount:
        files = [limited((mount / "img").open) for _ in range(200)]
        try:
            assert same(mount, "img")
        finally:
            for file in files:
                file.close()
        eventually(lambda: len(mount.stats()["open_nodes"]) == 1)
        assert same(mount, "img")


def test_trap_notification_that_blocks_does_not_hold_up_answers() -> None:
    """An invalidation waits for the lock of a directory in which a lookup waits for us."""
    with mounted("relay", {"later-one": 10, "plain": MIB}) as mount:
        fd = os.open(mount / "plain", os.O_RDONLY | os.O_DIRECT)
        control = os.open(mount / "stats", os.O_WRONLY)
        try:
            with mmap.mmap(-1, 4096) as buffer:
                looker = mount.spawn("print(os.stat(sys.argv[1]).st_size)", "later-one")
                mount.wait_for_waiting("later-one")
                for word in (b"entry nothing", b"pyfuse3-entry nothing", b"inode 2"):
                    os.write(control, word)
                assert limited(lambda: os.preadv(fd, [buffer], 0)) == 4096
                assert looker.poll() is None, "the lookup was under way all the time"
                mount.go()
                assert result(looker) == "10"
        finally:
            os.close(fd)
            os.close(control)


def test_trap_inode_number_of_a_released_file_keeps_no_backing_file(tmp_path: Path) -> None:
    """Thousands of opens leave no descriptor, and the space of unlinked files is back."""
    files: dict[str, bytes | int] = {f"img{n}": 2 * MIB for n in range(20)}
    with mounted("relay", files) as mount:
        before = mount.stats()["fds"]
        for _ in range(100):
            for name in files:
                with (mount / name).open("rb") as file:
                    file.read(1)
        eventually(lambda: len(mount.stats()["open_nodes"]) == 1)
        assert mount.stats()["fds"] <= before
        assert mount.stats()["open"] - mount.stats()["release"] <= 2


def test_a_file_that_the_kernel_refuses_as_backing_is_read_all_the_same(tmp_path: Path) -> None:
    with mounted("relay", {"img": MIB}, "--no-passthrough") as mount:
        assert same(mount, "img")
        assert mount.stats()["read"] > 0


def test_reads_of_handles_with_a_read_fd_are_answered_by_the_relay() -> None:
    with mounted("relay", {"here": 8 * MIB + 5}) as mount:
        assert same(mount, "here")
        stats = mount.stats()
        assert stats["reads_here"] > 0


# --- interrupts -----------------------------------------------------------------------------------

STUCK = {
    "stuckopen": "open(sys.argv[1])",
    "stucklookup": "os.stat(sys.argv[1])",
    "stuckattr": "os.stat(sys.argv[1])",
    "stuckread": "open(sys.argv[1]).read()",
}


@pytest.mark.parametrize("name", list(STUCK))
def test_a_process_that_waits_for_an_answer_can_be_killed(name: str) -> None:
    with mounted("relay", {name: 4096}) as mount:
        process = mount.spawn(STUCK[name], name)
        mount.wait_for_waiting(name)
        process.kill()
        assert process.wait(LIMIT) == -signal.SIGKILL


def test_ctrl_c_reaches_a_python_program_that_waits() -> None:
    with mounted("relay", {"stuckopen": 4096}) as mount:
        process = mount.spawn(STUCK["stuckopen"], "stuckopen")
        mount.wait_for_waiting("stuckopen")
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in result(process)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGALRM, signal.SIGURG])
def test_a_signal_that_ends_nothing_breaks_no_request(number: signal.Signals) -> None:
    code = "import signal; signal.signal(signal.SIGALRM, lambda *_: None);"
    code += (
        "signal.signal(signal.SIGURG, lambda *_: None); signal.siginterrupt(signal.SIGALRM, True);"
    )
    code += "import ctypes; libc = ctypes.CDLL(None, use_errno=True); print('go', flush=True);"
    code += "fd = libc.open(sys.argv[1].encode(), 0); print(fd >= 0, ctypes.get_errno())"
    with mounted("relay", {"lateopen": 4096}) as mount:
        process = mount.spawn(code, "lateopen")
        assert process.stdout is not None
        assert process.stdout.readline() == b"go\n"
        mount.wait_for_waiting("lateopen")
        process.send_signal(number)
        time.sleep(0.1)
        process.send_signal(signal.SIGCONT)
        mount.go()
        assert result(process) == "True 0"


def test_what_an_interrupted_open_was_granted_is_given_back() -> None:
    with mounted("relay", {"lateopen": 4096}) as mount:
        process = mount.spawn(STUCK["stuckopen"], "lateopen")
        mount.wait_for_waiting("lateopen")
        process.kill()
        process.wait(LIMIT)
        mount.go()
        eventually(lambda: not mount.stats()["waiting"])
        eventually(lambda: (s := mount.stats())["open"] - s.get("release", 0) <= 2)


# --- choosing -------------------------------------------------------------------------------------


def test_the_probe_finds_passthrough_here(tmp_path: Path) -> None:
    assert probe(tmp_path).mode == "relay"
    assert probe(tmp_path) == probe(tmp_path)
    assert not [m for m in Path("/proc/self/mountinfo").read_text().splitlines() if "probe" in m]


def test_the_probe_says_that_plain_was_asked_for(tmp_path: Path) -> None:
    info = probe(tmp_path, "plain")
    assert (info.mode, info.passthrough) == ("plain", False)
    assert info.why


def test_the_probe_finds_that_a_stacked_filesystem_backs_nothing(tmp_path: Path) -> None:
    with Overlay(tmp_path) as merged:
        info = probe(merged)
    assert (info.mode, info.passthrough) == ("relay", False)
    assert "stacked" in info.why


class Overlay:
    """An overlayfs on *directory*."""

    def __init__(self, directory: Path) -> None:
        self.merged = directory / "merged"
        words = []
        for name in ("lower", "upper", "work", "merged"):
            (directory / name).mkdir()
            words.append(f"{name}dir={directory / name}")
        libc = ctypes.CDLL(None, use_errno=True)
        options = ",".join(words[:3]).encode()
        if libc.mount(b"overlay", bytes(self.merged), b"overlay", 0, options):
            code = ctypes.get_errno()
            if code in (errno.ENODEV, errno.EINVAL):
                pytest.skip("no overlayfs here")
            raise OSError(code, os.strerror(code))

    def __enter__(self) -> Path:
        return self.merged

    def __exit__(self, *_: object) -> None:
        mounting.unmount(self.merged)


def test_an_ordinary_user_is_told_why_it_is_plain(tmp_path: Path) -> None:
    code = (
        "import os; from cachefs.transport.probe import probe;"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "i = probe('/tmp'); print(i.mode, i.why)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=20,
        cwd=ROOT,
        check=False,
    )
    assert done.stdout.startswith("plain ")
    assert len(done.stdout) > 10
