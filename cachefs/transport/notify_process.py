"""The program that writes notifications to the kernel: ``python -I -S`` runs this file by itself.

A notification takes locks in the kernel that a reader may hold who waits for an answer of the
worker (``fuse_reverse_inval_entry``: the directory's), and nothing ends that wait but the answer,
not even SIGKILL. INVARIANT: so whoever writes one holds nothing that another process may need: the
device, the pipe that messages come from, and the lifeline, and no more.

Standard library only, and nothing of cachefs: it starts in some milliseconds and is small. Owns no
decision: every message is written as it came, and what the kernel says of it is ignored.

Usage: ``notify_process.py DEVICE MESSAGES LIFELINE``, all descriptors. *MESSAGES* is a pipe; at its
end, the worker's, this ends too. *LIFELINE* is a pipe that hangs up when nobody is left to serve
the mount; -1 where that cannot be known. If a notification is still under way then, it waits for an
answer that nobody would ever give: so all that the kernel asks is answered ENOTCONN, which is what
a dead mount answers.
"""

import contextlib
import errno
import os
import select
import signal
import struct
import sys
import threading

_LENGTH = struct.Struct("=I")
_IN_HEADER = struct.Struct("=IIQ")  # fuse_in_header: len opcode unique, and more
_OUT_HEADER = struct.Struct("=IiQ")  # fuse_out_header: len error unique
_NO_REPLY = frozenset({2, 36, 41, 42})  # FORGET, INTERRUPT, NOTIFY_REPLY, BATCH_FORGET
_RESEND = _OUT_HEADER.pack(_OUT_HEADER.size, 7, 0)  # FUSE_NOTIFY_RESEND
_LARGEST = (1 << 20) + 8192  # bytes of a message from the kernel
_LOOK = 100  # milliseconds


def main() -> None:
    """Serve until the messages end, whatever signals a whole service is ended with."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    device, messages, lifeline = (int(word) for word in sys.argv[1:])
    threading.Thread(target=_write, args=(device, messages), daemon=True).start()
    over = select.poll()
    if lifeline >= 0:
        over.register(lifeline, 0)  # POLLHUP
    over.poll()
    _answer_all(device)
    os._exit(0)


def _write(device: int, messages: int) -> None:
    """Pass on every message; at their end the process ends."""
    buffer = b""
    while data := os.read(messages, 1 << 16):
        buffer += data
        while len(buffer) >= _LENGTH.size and len(buffer) >= _LENGTH.unpack_from(buffer)[0]:
            (length,) = _LENGTH.unpack_from(buffer)
            message, buffer = buffer[:length], buffer[length:]
            with contextlib.suppress(OSError):  # ENOENT: unknown to the kernel; ENODEV: unmounted
                os.write(device, message)
    os._exit(0)


def _answer_all(device: int) -> None:
    """Answer ENOTCONN to all that is asked, until the filesystem is gone. Requests that a worker
    has read and left are handed out again first, where the kernel can (Linux 6.9)."""
    poller = select.poll()
    poller.register(device, select.POLLIN)
    while True:
        try:
            os.write(device, _RESEND)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
        for _, event in poller.poll(_LOOK):
            if event & (select.POLLERR | select.POLLHUP):
                return
            try:
                message = os.read(device, _LARGEST)
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    return
                continue  # EAGAIN, ENOENT: withdrawn meanwhile
            _, opcode, unique = _IN_HEADER.unpack_from(message)
            if opcode not in _NO_REPLY:
                with contextlib.suppress(OSError):  # ENOENT: nobody waits for it any more
                    os.write(device, _OUT_HEADER.pack(_OUT_HEADER.size, -errno.ENOTCONN, unique))


if __name__ == "__main__":
    main()
