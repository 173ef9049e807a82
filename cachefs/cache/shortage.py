"""What holds the room that an image would need, in words for an operator. Looks; decides nothing.

The caller holds the directory's lock."""

from cachefs.cache.capacity import Usage, is_open
from cachefs.cache.held import held_files
from cachefs.cache.layout import Layout, files_in
from cachefs.cache.lease import is_being_written
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
    others = []
    if usage.held:
        others.append(f"images removed and open still ({human_size(usage.held)})")
    if usage.rejected:
        others.append(f"invalid/ ({human_size(usage.rejected)})")
    holders = sorted(_holders(layout, driver, image_id), reverse=True)
    named = [f"{why} {name!r} ({human_size(taken)})" for taken, why, name in holders[:MOST_NAMED]]
    more = len(holders) - len(named)
    named += ([f"{more} more"] if more else []) + others
    return f"{text}; held by {', '.join(named)}" if named else f"{text}; nothing in it can go"


def _holders(layout: Layout, driver: Driver, image_id: str) -> list[tuple[int, str, str]]:
    """Bytes, reason and name of each image that may not go."""
    held = held_files(layout)
    found = [
        (status.st_size, "being fetched", path.name)
        for directory in (layout.incomplete_dir, layout.beside_dir)
        for path, status in ((directory / name, status) for name, status in files_in(directory))
        if path.name != image_id and status.st_size and is_being_written(path)
    ]
    found += [
        (entry.size, "open", entry.image_id)
        for entry in driver.lru()
        if is_open(layout.image(entry.image_id), held)
    ]
    found += [(entry.size, "pinned", entry.image_id) for entry in driver.pinned()]
    return found
