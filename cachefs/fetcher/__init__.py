"""Fetching: the queue, one flight per image, ranges, retries, verification. Trio; no FUSE."""

from cachefs.fetcher.fetcher import Fetcher
from cachefs.fetcher.flight import Flight, Progress
from cachefs.fetcher.transfer import Settings

__all__ = ["Fetcher", "Flight", "Progress", "Settings"]
