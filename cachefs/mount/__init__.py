"""Mounting: the one place that puts all parts together."""

from cachefs.mount.arguments import exposed_files, handed_over, hide_arguments
from cachefs.mount.run import run

__all__ = ["exposed_files", "handed_over", "hide_arguments", "run"]
