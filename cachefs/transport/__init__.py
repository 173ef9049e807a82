"""The kernel side of FUSE below pyfuse3: mounting, relay, passthrough, reattach.

What each module owns stands in its docstring. The supervisor's half (:mod:`.supervisor`,
:mod:`.probe`, :mod:`.device`, :mod:`.table`, :mod:`.handover`, :mod:`.wire`, :mod:`.base`) imports
neither pyfuse3 nor trio, and so neither does this file; the worker's half is :mod:`.worker`,
:mod:`.relay`, :mod:`.plain`.

Sources for all of it: ``include/uapi/linux/fuse.h`` and ``fs/fuse/`` of Linux 6.18, the kernel's
Documentation/filesystems/fuse.rst and fuse-passthrough.rst, libfuse 3.14's lib/fuse_lowlevel.c,
pyfuse3 3.5's internal.pxi.
"""
