"""The one place that speaks pyfuse3's requests: a thin adapter from them to nodes."""

from cachefs.fuse.operations import Operations

__all__ = ["Operations"]
