"""What must outlive a worker, in a memory file that the supervisor keeps and each worker maps.

Owns the layout of that file: the INIT handshake, one slot per node that is open (how often, in
which I/O mode, under which backing id) and a journal of one entry. Does no I/O on the device and
decides nothing; :mod:`.opens` does. Only the worker that serves writes to it, one at a time.

The writer may be killed between any two instructions. Stores to shared memory survive that, each
word whole and in program order (one process, one writer at a time), so a journal is enough:

    commit:  write the journal's entry - set JOURNAL - apply the entry to the slot
    then:    the reply is written to the kernel - clear JOURNAL

The entry holds absolute values, so that applying it twice is applying it once, and the reply
itself: the worker after a kill applies and writes it again, and the kernel says ENOENT to a
reply that it already has. So there is no point at which an open is known to the kernel and not
counted here, or counted here and never to be known to the kernel.

A backing id is made by an ioctl and recorded by a store, and a kill may come between. INTENTS is
raised before each ioctl and goes back to 0 when an entry that records a fresh id is applied. The
kernel numbers backing ids in one rising cycle (``idr_alloc_cyclic``) and nobody else makes any on
this connection, so the ids that may have leaked are the INTENTS numbers after the last recorded
one, and no others: :meth:`OpenTable.orphans`. Closing them is safe: no reply has named them. Having
closed them changes nothing here, because whether they existed cannot be known after a kill in
between.
"""

import mmap
import os
from enum import IntEnum
from typing import Final, NamedTuple

_MAGIC: Final = 0x0001_6361_6368_6566
_WORDS_PER_SLOT: Final = 4  # nodeid opens backing_id mode
_FIRST_SLOT: Final = 256
_MAX_BACKING_ID: Final = (1 << 31) - 1  # idr ids are ints

# Words of the header.
_MAGIC_AT, _INIT_LEN, _INIT_ANSWERED, _WORKERS, _HIGH, _LAST_ID, _INTENTS = range(7)
_JOURNAL, _J_SLOT, _J_NODE, _J_OPENS, _J_BACKING, _J_MODE, _J_REPLY_LEN, _J_FRESH = range(8, 16)
_J_REPLY: Final = 16  # 48 words
_INIT: Final = 64  # 128 words
_JOURNAL_REPLY_MAX: Final = 48 * 8
_INIT_MAX: Final = 128 * 8


class IOMode(IntEnum):
    """How the kernel does I/O on a node while it is open (``fs/fuse/iomode.c``)."""

    NEUTRAL = 0
    """Only FOPEN_DIRECT_IO opens so far, which go with either of the others."""
    CACHED = 1
    PASSTHROUGH = 2


class Slot(NamedTuple):
    """An open node. *backing_id* is 0 unless *mode* is PASSTHROUGH."""

    opens: int
    backing_id: int
    mode: IOMode


class TableFullError(Exception):
    """More nodes are open at once than the table has slots for."""


class OpenTable:
    """A mapped table. Creating one from a descriptor reads what an earlier worker left."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, 0)
        self._bytes = memoryview(self._map)
        self._words = self._bytes.cast("Q")
        self._capacity = (len(self._words) - _FIRST_SLOT) // _WORDS_PER_SLOT
        if self._words[_MAGIC_AT] not in (0, _MAGIC):
            raise ValueError("the state left by the last worker is of another kind")
        self._words[_MAGIC_AT] = _MAGIC
        self._load()

    @staticmethod
    def create(slots: int = 1 << 16) -> int:
        """An empty table's descriptor; memory is taken as slots are used."""
        fd = os.memfd_create("cachefs-opens", os.MFD_CLOEXEC)
        os.ftruncate(fd, (_FIRST_SLOT + slots * _WORDS_PER_SLOT) * 8)
        return fd

    def _load(self) -> None:
        self._index: dict[int, int] = {}
        self._free: list[int] = []
        for slot in range(self._words[_HIGH]):
            nodeid = self._words[self._at(slot)]
            if nodeid:
                self._index[nodeid] = slot
            else:
                self._free.append(slot)

    def reload(self) -> None:
        """Read again what another process has written since."""
        self._load()

    def close(self) -> None:
        """Unmap it; the descriptor stays the caller's."""
        self._words.release()
        self._bytes.release()
        self._map.close()

    # --- the handshake ------------------------------------------------------------------------

    @property
    def init_request(self) -> bytes:
        """The kernel's INIT as it came, or nothing if none has come yet."""
        length = self._words[_INIT_LEN]
        return bytes(self._bytes[_INIT * 8 : _INIT * 8 + length])

    def save_init(self, message: bytes) -> None:
        """Keep the kernel's INIT for the workers to come."""
        if len(message) > _INIT_MAX:
            raise ValueError(f"an INIT of {len(message)} bytes")
        self._bytes[_INIT * 8 : _INIT * 8 + len(message)] = message
        self._words[_INIT_LEN] = len(message)

    @property
    def init_answered(self) -> bool:
        """Whether the kernel has the answer to INIT."""
        return bool(self._words[_INIT_ANSWERED])

    @init_answered.setter
    def init_answered(self, value: bool) -> None:
        self._words[_INIT_ANSWERED] = int(value)

    @property
    def workers(self) -> int:
        """How many workers have served this mount, this one included once it has begun."""
        return self._words[_WORKERS]

    @workers.setter
    def workers(self, value: int) -> None:
        self._words[_WORKERS] = value

    # --- slots --------------------------------------------------------------------------------

    def get(self, nodeid: int) -> Slot | None:
        """The open node, or None."""
        slot = self._index.get(nodeid)
        if slot is None:
            return None
        at = self._at(slot)
        words = self._words
        return Slot(words[at + 1], words[at + 2], IOMode(words[at + 3]))

    def nodes(self) -> dict[int, Slot]:
        """Every open node."""
        found = {}
        for nodeid in list(self._index):
            slot = self.get(nodeid)
            assert slot is not None
            found[nodeid] = slot
        return found

    def drop(self, nodeid: int) -> None:
        """Free the slot of a node that is not open any more and has no backing id."""
        slot = self._index.pop(nodeid)
        self._words[self._at(slot)] = 0
        self._free.append(slot)

    # --- the journal --------------------------------------------------------------------------

    def commit(
        self, nodeid: int, value: Slot, reply: bytes | memoryview, *, fresh: bool = False
    ) -> None:
        """Record *value* for *nodeid* and remember *reply* until :meth:`delivered`. *fresh* says
        that its backing id has just been made.

        Raises :class:`TableFullError`, then nothing has changed.
        """
        if len(reply) > _JOURNAL_REPLY_MAX:
            raise ValueError(f"a reply of {len(reply)} bytes")
        slot = self._index.get(nodeid)
        if slot is None:
            slot = self._allocate()
            self._index[nodeid] = slot
        words = self._words
        words[_J_SLOT] = slot
        words[_J_NODE] = nodeid
        words[_J_OPENS] = value.opens
        words[_J_BACKING] = value.backing_id
        words[_J_MODE] = value.mode
        self._bytes[_J_REPLY * 8 : _J_REPLY * 8 + len(reply)] = reply
        words[_J_REPLY_LEN] = len(reply)
        words[_J_FRESH] = int(fresh)
        words[_JOURNAL] = 1
        self._apply()

    def _apply(self) -> None:
        words = self._words
        at = self._at(words[_J_SLOT])
        words[at + 1] = words[_J_OPENS]
        words[at + 2] = words[_J_BACKING]
        words[at + 3] = words[_J_MODE]
        words[at] = words[_J_NODE]
        if words[_J_FRESH]:
            self.made(words[_J_BACKING])

    def delivered(self) -> None:
        """The kernel has the reply of the last commit, or will never want it."""
        self._words[_JOURNAL] = 0

    def redo(self) -> bytes | None:
        """Apply what a killed worker had committed; the reply to write again, or None."""
        if not self._words[_JOURNAL]:
            return None
        self._apply()
        self._load()
        length = self._words[_J_REPLY_LEN]
        return bytes(self._bytes[_J_REPLY * 8 : _J_REPLY * 8 + length])

    @property
    def journal_node(self) -> int:
        """The node that the last commit was about."""
        return self._words[_J_NODE]

    # --- backing ids --------------------------------------------------------------------------

    def intend(self) -> None:
        """A backing id is about to be made; a commit that calls it fresh records it."""
        self._words[_INTENTS] = self._words[_INTENTS] + 1

    def refrain(self) -> None:
        """None was made after all."""
        self._words[_INTENTS] = self._words[_INTENTS] - 1

    def made(self, backing_id: int) -> None:
        """*backing_id* is the last that the kernel made; all before it are recorded or closed."""
        self._words[_LAST_ID] = backing_id
        self._words[_INTENTS] = 0

    def orphans(self) -> list[int]:
        """After :meth:`redo`: the backing ids that killed workers may have made and not recorded.
        Some or all of them do not exist."""
        taken = {slot.backing_id for slot in self.nodes().values()}
        found: list[int] = []
        candidate = self._words[_LAST_ID]
        while len(found) < self._words[_INTENTS]:
            candidate = candidate % _MAX_BACKING_ID + 1
            if candidate not in taken:
                found.append(candidate)
        return found

    def _allocate(self) -> int:
        if self._free:
            return self._free.pop()
        slot = self._words[_HIGH]
        if slot >= self._capacity:
            raise TableFullError(f"{self._capacity} nodes are open at once")
        self._words[_HIGH] = slot + 1
        return slot

    @staticmethod
    def _at(slot: int) -> int:
        return _FIRST_SLOT + slot * _WORDS_PER_SLOT
