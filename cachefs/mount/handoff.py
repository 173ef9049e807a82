"""The settings of a mount on their way from the supervisor to a worker: one argument, JSON.

After an upgrade the worker may be newer than the supervisor that starts it: what it does not know
it leaves out, what it misses has its default."""

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

from cachefs.config import Amount, Config


def to_text(config: Config) -> str:
    """*config* as one line of text."""
    texts = {name: str(getattr(config, name)) for name in _TEXTS}
    return json.dumps(asdict(config) | texts, default=str)


def from_text(text: str) -> Config:
    """The reverse of :func:`to_text`."""
    known = {field.name for field in fields(Config)}
    values = {name: value for name, value in json.loads(text).items() if name in known}
    for name, read in _TEXTS.items():
        if name in values:
            values[name] = read(values[name])
    for name in ("fallbacks", "options"):
        values[name] = tuple(values.get(name, ()))
    if values.get("log_file") is not None:
        values["log_file"] = Path(values["log_file"])
    return Config(**values)


_TEXTS: dict[str, Callable[[str], object]] = {
    "mountpoint": Path,
    "cache_dir": Path,
    "max_size": Amount.parse,
    "min_free": Amount.parse,
}
"""Fields that are written as text, and how they are read."""
