"""What a transport is: the values and protocols shared by the relay, plain pyfuse3 and their users.

Imports neither pyfuse3 nor trio at run time, so that the supervisor may import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    import pyfuse3
    import trio

SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; needs CAP_NET_ADMIN, ignores wmem_max
SO_RCVBUFFORCE: Final = 33
SOCKET_BUFFER: Final = (1 << 30) - 1
"""Bytes: the largest that the kernel takes. A limit, not memory: see :mod:`.relay`."""

Mode = Literal["relay", "plain"]
Choice = Literal["auto", "relay", "plain"]


@dataclass(frozen=True, slots=True)
class TransportInfo:
    """Which transport runs and, where it is not the best one, *why* not (empty otherwise)."""

    mode: Mode
    passthrough: bool
    why: str


class Transport(Protocol):
    """The kernel side of one mount. One in a process: pyfuse3's session is global."""

    info: TransportInfo

    async def serve(
        self,
        operations: pyfuse3.Operations,
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        """Answer requests with *operations*; ``started()`` once this process is the one that
        answers.

        Returns when the filesystem is unmounted, or after :meth:`drain`. Cancelling it abandons the
        requests under way: the next worker gets them again where the transport can resend."""

    async def drain(self, seconds: float) -> bool:
        """Take no more requests, finish those under way for at most so many *seconds*, and have
        :meth:`serve` return. False if some were left unanswered."""

    def invalidate_inode(self, nodeid: int, *, attr_only: bool = False) -> None:
        """Have the kernel forget attributes, and pages unless *attr_only*. Never blocks: it is done
        soon, in the order of the calls, by another process; an unknown node is nothing to complain
        about."""

    def invalidate_entry(self, parent: int, name: bytes, deleted: int = 0) -> None:
        """Have the kernel forget a name; with *deleted*, the node that stood there, inotify
        watchers hear of its deletion. Never blocks, as :meth:`invalidate_inode`."""
