"""Starting to write a file's dirty pages to the disk without waiting for them.

The kernel begins by itself after 30 s, or when a tenth of all memory is dirty
(``dirty_background_ratio``, proc_sys_vm(5)). An image that is synced when its last byte has come
would so be written after it was downloaded, not meanwhile."""

import ctypes

_WRITE = 2
"""``SYNC_FILE_RANGE_WRITE`` of sync_file_range(2): start write-out, wait for none."""


def _find() -> "ctypes._NamedFuncPointer | None":
    try:
        function = ctypes.CDLL(None, use_errno=True).sync_file_range
    except (OSError, AttributeError):  # a C library without it
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function


_sync_file_range = _find()


def begin_writeback(fd: int, offset: int, count: int) -> None:
    """Start writing *count* bytes from *offset* to the disk. Makes nothing durable, and fails
    silently: errors stay for fsync(2) to tell. May block a little while the disk's queue is
    full."""
    if count and _sync_file_range is not None:
        _sync_file_range(fd, offset, count, _WRITE)
