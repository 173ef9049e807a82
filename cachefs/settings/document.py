"""The settings of a mount on their way to a worker: one JSON document.

Owns its format; knows nothing of how it travels. After an upgrade the worker may be newer than the
process that wrote it: what it does not know it leaves out, what it misses has its default."""

import json
from pathlib import Path

from cachefs.errors import InvalidValueError
from cachefs.settings.setting import Given
from cachefs.settings.table import Settings


def to_document(settings: Settings, mount_id: str) -> bytes:
    """*settings* and the ID of the mount that they are for, secrets included."""
    values = {
        each.name: {
            "value": each.kind.to_plain(settings.given[each.name].value),
            "from": settings.given[each.name].origin,
        }
        for each in Settings.all()
    }
    return json.dumps({"mount": mount_id, "settings": values}).encode()


def from_document(document: bytes) -> tuple[Settings, str]:
    """The reverse of :func:`to_document`. Raises InvalidValueError for what is none."""
    try:
        content = json.loads(document)
        mount_id, values = str(content["mount"]), content["settings"]
        given = {
            each.name: _read(each.name, values[each.name])
            for each in Settings.all()
            if each.name in values
        }
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidValueError(f"the supervisor's settings cannot be read: {error}") from error
    return Settings(given), mount_id


def _read(name: str, entry: dict[str, object]) -> Given:
    kind = next(each.kind for each in Settings.all() if each.name == name)
    value = entry["value"]
    read = None if value is None else kind.from_plain(value, Path("/"))
    return Given(read, str(entry["from"]))
