"""What holds the room that an image would need, in words for an operator. Looks; decides nothing.

The caller holds the directory's lock."""

from cachefs.cache.capacity import Usage, is_open
from cachefs.cache.held import held_files
from cachefs.cache.layout import Layout, files_in
from cachefs.cache.lock import is_held
from cachefs.drivers import Driver
from cachefs.units import human_size

MOST_NAMED = 4
"""Holders that are named, the largest; of the others only the number is told."""


def describe_shortage(
    layout: Layout, driver: Driver, image_id: str, size: int, usage: Usage
) -> str:
    """Why there is no room for an image of *size* bytes, where *usage* is what would be left to be
    done once all had gone that may go."""
    limit, disk = max(0, usage.over_limit), max(0, usage.over_disk)
    short = [f"{human_size(limit)} over max_size"] if limit else []
    short += [f"{human_size(disk)} over what min_free leaves of the disk"] if disk else []
    text = f"no room for image {image_id!r} ({human_size(size)}): {', '.join(short)}"
    holders = sorted(_holders(layout, driver, image_id), reverse=True)
    named = [f"{why} {name!r} ({human_size(taken)})" for taken, why, name in holders[:MOST_NAMED]]
    if len(holders) > MOST_NAMED:
        named.append(f"{len(holders) - MOST_NAMED} more")
    if usage.held:
        named.append(f"images removed and open still ({human_size(usage.held)})")
    if not named:
        return f"{text}; nothing in the cache can go"
    return f"{text}; held by {', '.join(named)}"


def _holders(layout: Layout, driver: Driver, image_id: str) -> list[tuple[int, str, str]]:
    """Bytes, reason and name of each image that may not go."""
    found = [
        (status.st_size, "being fetched", name)
        for name, status in files_in(layout.incomplete_dir)
        if name != image_id and status.st_size and is_held(layout.incomplete(name))
    ]
    held = held_files(layout)
    found += [
        (entry.size, "open", entry.image_id)
        for entry in driver.lru()
        if is_open(layout.image(entry.image_id), held)
    ]
    found += [(entry.size, "pinned", entry.image_id) for entry in driver.pinned()]
    return found
