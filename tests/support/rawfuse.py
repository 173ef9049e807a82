"""A FUSE server by hand, to ask the kernel questions: the test itself reads and answers requests.

Whoever uses the mount must be another process (:func:`run`), or it waits for itself.
"""

import errno
import os
import select
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cachefs.kernel import device as fuse_device
from cachefs.kernel import mounting, wire
from cachefs.kernel.mounting import MountOptions
from cachefs.kernel.wire import Opcode
from tests.support.mounted import LIMIT

NODE = 2
SIZE = 1 << 20
_ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
_INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")


def attributes(nodeid: int, mode: int, size: int) -> bytes:
    return _ATTR.pack(nodeid, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def entry(nodeid: int, size: int = SIZE) -> bytes:
    mode = stat.S_IFREG | 0o444
    return struct.pack("=QQQQII", nodeid, 0, 300, 300, 0, 0) + attributes(nodeid, mode, size)


def open_out(fh: int = 0, flags: int = 0, backing_id: int = 0) -> bytes:
    return struct.pack("=QIi", fh, flags, backing_id)


class Message:
    """A request, its header parsed."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        header = wire.parse_request(data)
        self.opcode, self.unique, self.nodeid = header.opcode, header.unique, header.nodeid
        self.body = data[wire.IN_HEADER_SIZE :]

    def __repr__(self) -> str:
        return f"<{Opcode(self.opcode).name} {self.unique:#x} node {self.nodeid}>"


class RawServer:
    """One mount; *fd* is its device."""

    def __init__(self, mountpoint: str) -> None:
        self.mountpoint = mountpoint
        self.fd = fuse_device.open_device()
        self.kept: Message | None = None
        self.connection = fuse_device.Connection(self.fd)
        mounting.mount(self.fd, mountpoint, MountOptions(source="raw", subtype="raw"))

    def next(self, *wanted: Opcode, timeout: float = 5, fd: int | None = None) -> Message:
        """The next request, which must be one of *wanted* (any, if none is named); LOOKUPs of names
        and GETATTRs are answered on the way unless wanted."""
        while True:
            message = self.poll(timeout, fd)
            assert message is not None, f"no {wanted} came"
            if not wanted or message.opcode in wanted:
                return message
            self.answer_usual(message)

    def poll(self, timeout: float = 0, fd: int | None = None) -> Message | None:
        fd = self.fd if fd is None else fd
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        if not poller.poll(timeout * 1000):
            return None
        return Message(os.read(fd, 1 << 21))

    def answer_usual(self, message: Message) -> None:
        if message.opcode == Opcode.LOOKUP:
            name = message.body.rstrip(b"\0")
            if name.startswith(b"f"):
                self.reply(message, entry(NODE + len(name) - 1))
            else:
                self.fail(message, errno.ENOENT)
        elif message.opcode == Opcode.GETATTR:
            mode = stat.S_IFDIR | 0o755 if message.nodeid == 1 else stat.S_IFREG | 0o444
            self.reply(
                message, struct.pack("=QII", 300, 0, 0) + attributes(message.nodeid, mode, SIZE)
            )
        elif message.opcode in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT):
            pass
        elif message.opcode in (Opcode.RELEASE, 25):
            self.reply(message)
        elif message.opcode == Opcode.OPEN:
            self.reply(message, open_out())
        elif message.opcode == Opcode.READ:
            self.reply(message, b"x" * wire.read_in(message.data).size)
        else:
            self.fail(message, errno.ENOSYS)

    def usual_until_idle(self, timeout: float = 0.3) -> list[Message]:
        seen = []
        while (message := self.poll(timeout)) is not None:
            seen.append(message)
            self.answer_usual(message)
        return seen

    def finish(self, process: subprocess.Popen[str], *, until: Opcode | None = None) -> str:
        """Let a process of :func:`run` end (or come as far as *until*), answering what it asks;
        what it printed."""
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write("\n")
            process.stdin.flush()
        deadline = time.monotonic() + LIMIT
        # A RELEASE may come after its process has ended.
        while (until or process.poll() is None) and time.monotonic() < deadline:
            message = self.poll(0.02)
            if message is None:
                continue
            if message.opcode == until:
                self.kept = message
                break
            self.answer_usual(message)
        self.usual_until_idle(0.1)
        assert until is not None or process.poll() is not None
        return process.stdout.read().strip() if until is None else ""

    def reply(self, message: Message, body: bytes = b"", *, unique: int | None = None) -> None:
        unique = message.unique if unique is None else unique
        header = wire.OUT_HEADER.pack(wire.OUT_HEADER_SIZE + len(body), 0, unique)
        os.write(self.fd, header + body)

    def fail(self, message: Message, error: int) -> None:
        os.write(self.fd, wire.error_reply(message.unique, error))

    def resend(self) -> None:
        os.write(self.fd, wire.resend())

    def answer_init(self, message: Message) -> int:
        body = _INIT_OUT.pack(7, 40, 1 << 17, 0, 0, 0, 1 << 20, 1, 0, 0, 0, 0)
        header = wire.OUT_HEADER.pack(wire.OUT_HEADER_SIZE + len(body), 0, message.unique)
        reply = bytearray(header + body)
        offered = wire.init_in_flags(message.data)
        wire.amend_init(reply, offered, passthrough=True, max_io=1 << 20, background=12)
        os.write(self.fd, reply)
        return offered

    def close(self) -> None:
        with suppress(OSError):
            mounting.unmount(self.mountpoint)
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def path(server: RawServer, name: str = "f") -> str:
    return str(Path(server.mountpoint, name))


@contextmanager
def raw_server(*, init: bool = True) -> Iterator[RawServer]:
    """A mounted server, INIT answered."""
    directory = tempfile.mkdtemp(prefix="rawfuse-")
    server = RawServer(directory)
    try:
        if init:
            server.answer_init(server.next(Opcode.INIT))
        yield server
    finally:
        server.close()
        Path(directory).rmdir()


@contextmanager
def run(server: RawServer, code: str) -> Iterator[subprocess.Popen[str]]:
    """Python *code* in another process, ``sys.argv[1]`` being a file of the mount. It is killed at
    the end and the server closed, if it has to be for the process to die."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import os, sys, signal, errno\n" + code, path(server)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        try:
            process.communicate(timeout=0.3)
        except subprocess.TimeoutExpired:
            server.close()
            process.communicate(timeout=5)
