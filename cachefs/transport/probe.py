"""Which transport can run here: found out by doing it once, never by a version string.

Mounts a filesystem of nothing on a temporary directory, answers the kernel's INIT by hand and
registers a file of the cache directory as a backing file. Imports neither pyfuse3 nor trio.
"""

import errno
import os
import select
import shutil
import socket
import struct
import tempfile
from contextlib import ExitStack
from typing import Final

from cachefs.kernel import device as fuse_device
from cachefs.kernel import mounting, wire
from cachefs.kernel.mounting import MountOptions

from .base import SO_SNDBUFFORCE, SOCKET_BUFFER, Choice, TransportInfo

_TIMEOUT_MS: Final = 5000
_OPTIONS: Final = MountOptions(source="cachefs-probe", subtype="cachefs-probe", allow_other=False)
# fuse_init_out: major minor max_readahead flags max_background congestion_threshold max_write
# time_gran max_pages map_alignment flags2 max_stack_depth unused
_INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")


class UnavailableError(Exception):
    """The transport that was asked for cannot run here; the text says why."""


def probe(cache_dir: str | os.PathLike[str], choice: Choice = "auto") -> TransportInfo:
    """The best transport that works here and may be chosen.

    Takes some milliseconds; leaves nothing behind. Raises :class:`UnavailableError` where *choice*
    is ``relay`` and it cannot be; with ``auto`` that is ``plain`` and a *why*.
    """
    if choice == "plain":
        return TransportInfo("plain", False, "plain was asked for")
    try:
        _check_buffers()
        why = _try_mount(cache_dir)
    except UnavailableError as error:
        if choice == "relay":
            raise
        return TransportInfo("plain", False, str(error))
    return TransportInfo("relay", not why, why)


def _check_buffers() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        try:
            ours.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BUFFER)
        except OSError as error:
            raise UnavailableError(f"no right to large socket buffers: {error.strerror}") from error


def _try_mount(cache_dir: str | os.PathLike[str]) -> str:
    """Why passthrough does not work, or nothing if it does; raises if there can be no relay."""
    with ExitStack() as stack:
        try:
            device = fuse_device.open_device()
        except OSError as error:
            raise UnavailableError(f"cannot open /dev/fuse: {error.strerror}") from error
        stack.callback(os.close, device)
        directory = tempfile.mkdtemp(prefix="cachefs-probe-")
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        try:
            mounting.mount(device, directory, _OPTIONS)
        except OSError as error:
            raise UnavailableError(f"{error.strerror}") from error
        stack.callback(mounting.unmount, directory)
        offered = _shake_hands(device)
        if not offered & wire.InitFlag.HAS_RESEND:
            raise UnavailableError("the kernel cannot resend requests (Linux 6.9 can)")
        if not offered & wire.InitFlag.PASSTHROUGH:
            return "the kernel has no FUSE passthrough (Linux 6.9, CONFIG_FUSE_PASSTHROUGH)"
        return _try_backing(device, cache_dir)


def _shake_hands(device: int) -> int:
    """Answer INIT, asking for all that we want; what the kernel offered."""
    poller = select.poll()
    poller.register(device, select.POLLIN)
    if not poller.poll(_TIMEOUT_MS):
        raise UnavailableError("the kernel sends no INIT")
    message = os.read(device, wire.MIN_READ_BUFFER + (1 << 16))
    request = wire.parse_request(message)
    offered = wire.init_in_flags(message)
    body = _INIT_OUT.pack(7, 40, 0, 0, 0, 0, 4096, 1, 0, 0, 0, 0)
    header = wire.OUT_HEADER.pack(wire.OUT_HEADER_SIZE + len(body), 0, request.unique)
    reply = bytearray(header + body)
    wire.amend_init(reply, offered, passthrough=True, max_io=1 << 16, background=1)
    os.write(device, reply)
    return offered


def _try_backing(device: int, cache_dir: str | os.PathLike[str]) -> str:
    connection = fuse_device.Connection(device)
    try:
        with tempfile.TemporaryFile(dir=cache_dir) as file:
            backing_id = connection.open_backing(file.fileno())
            connection.close_backing(backing_id)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "the cache directory lies on a filesystem that is stacked on another"
        return f"the kernel refuses passthrough to the cache directory: {error.strerror}"
    return ""
