"""Mounting: the one place that puts all parts together."""

from cachefs.mount.run import run

__all__ = ["run"]
