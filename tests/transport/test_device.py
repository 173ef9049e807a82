"""Mounting, dead mounts and their detachment, outside of any worker."""

import os
import select
from pathlib import Path

import pytest

from cachefs.kernel import device as fuse_device
from cachefs.kernel import mountinfo, mounting, wire
from cachefs.kernel.mounting import MountOptions
from cachefs.kernel.signals import status_wants_to_end
from cachefs.kernel.wire import Opcode
from cachefs.supervise.protocol import Inheritance
from cachefs.transport.base import TransportInfo


def test_fusermount_passes_a_device_that_the_kernel_sends_init_to(tmp_path: Path) -> None:
    device = mounting.mount_with_helper(tmp_path, MountOptions(subtype="helped"))
    try:
        poller = select.poll()
        poller.register(device, select.POLLIN)
        assert poller.poll(5000)
        assert wire.parse_request(os.read(device, 1 << 17)).opcode == Opcode.INIT
        assert not os.get_inheritable(device)
    finally:
        os.close(device)
        assert mounting.unmount(tmp_path)
    assert not mountinfo.is_mounted(tmp_path)


def test_a_refused_mount_says_why(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        mounting.mount(0, tmp_path / "missing", MountOptions())
    with pytest.raises(OSError, match="fusermount3: "):
        mounting.mount_with_helper(tmp_path / "missing", MountOptions())


def test_a_mount_without_a_daemon_is_dead_and_can_be_detached(tmp_path: Path) -> None:
    path = tmp_path / "with space"
    path.mkdir()
    device = fuse_device.open_device()
    mounting.mount(device, path, MountOptions())
    os.close(device)
    assert mountinfo.is_mounted(path)
    assert mounting.is_dead(path)
    assert mounting.unmount(path)
    assert not mounting.is_dead(path)
    assert not mounting.unmount(path)


def test_an_inheritance_survives_fields_of_another_version() -> None:
    info = TransportInfo("relay", True, "")
    options = MountOptions(extra=("ro",))
    made = Inheritance(info=info, mountpoint="/mnt", options=options, control=3, device=4, table=5)
    text = made.to_text().replace('"turn"', '"from_the_future": 1, "turn"')
    assert Inheritance.from_text(text) == made


@pytest.mark.parametrize(
    ("masks", "ends"),
    [
        ("SigPnd:\t0100 ShdPnd:\t0000 SigBlk:\t0000 SigCgt:\t0000", True),  # SIGKILL
        ("SigPnd:\t0000 ShdPnd:\t0002 SigBlk:\t0000 SigCgt:\t0002", True),  # SIGINT, caught
        ("SigPnd:\t0000 ShdPnd:\t0002 SigBlk:\t0002 SigCgt:\t0002", False),  # blocked
        ("SigPnd:\t0000 ShdPnd:\t80000 SigBlk:\t0000 SigCgt:\t0000", False),  # SIGTSTP
        ("SigPnd:\t2000 ShdPnd:\t0000 SigBlk:\t0000 SigCgt:\t2000", False),  # SIGALRM, caught
        ("nothing of the kind", False),
    ],
)
def test_only_signals_that_end_are_a_wish_to_end(masks: str, ends: bool) -> None:
    assert status_wants_to_end(masks.replace(" ", "\n") + "\n") is ends
