"""The kernel's public ABI, as far as cachefs needs it: FUSE messages, ``/dev/fuse``, mounting,
``/proc``.

No policy, no state, and neither pyfuse3 nor trio. Sources: ``include/uapi/linux/fuse.h`` and
``fs/fuse/`` of Linux 6.18, the kernel's Documentation/filesystems/fuse.rst and
fuse-passthrough.rst, proc(5)."""
