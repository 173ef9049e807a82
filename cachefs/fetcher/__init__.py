"""Fetching: the queue, one flight per image, ranges, retries, verification. Trio; no FUSE."""

from cachefs.fetcher.fetcher import Fetcher
from cachefs.fetcher.flight import Flight, Progress
from cachefs.fetcher.portal import FetcherPortal
from cachefs.fetcher.transfer import FetchSettings

__all__ = ["FetchSettings", "Fetcher", "FetcherPortal", "Flight", "Progress"]
