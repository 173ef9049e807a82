"""Between the kernel and pyfuse3: the relay with passthrough, and plain pyfuse3.

What each module owns stands in its docstring. The supervisor uses :mod:`.probe`, :mod:`.open_table`
and :mod:`.base`, which import neither pyfuse3 nor trio, and so neither does this file.

Sources: those of :mod:`cachefs.kernel`, libfuse 3.14's lib/fuse_lowlevel.c, pyfuse3 3.5's
internal.pxi.
"""
