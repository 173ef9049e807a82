"""The settings of a mount that is served, and what is written to its control files.

Contract: values written at run time hold for the life of the mount, over crash, upgrade and the
supervisor's death; a new mount starts from its options and configuration, and says what it no
longer honours. So they are kept in the cache directory, with the ID of the mount that they were
written for. Knows nothing of what a setting does: who acts on one listens.
"""

import json
import logging
import os
import secrets
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cachefs.cache.layout import Layout
from cachefs.errors import CacheFSError, InvalidValueError, NotPermittedError
from cachefs.settings.setting import Setting
from cachefs.settings.table import Settings

log = logging.getLogger(__name__)

LARGEST: Final = 2**20
"""Bytes of the file; what we write is far smaller."""


def new_mount_id() -> str:
    """The ID of a mount that is being made."""
    return secrets.token_hex(16)


class RunningSettings:
    """The settings of the mount *mount_id* of one cache directory. Thread-safe; methods block.

    *given* are those that it was mounted with; :meth:`take_up` brings in what was changed since.
    """

    def __init__(self, given: Settings, mount_id: str, layout: Layout) -> None:
        self._settings = given
        self._mount_id = mount_id
        self._layout = layout
        self._file = layout.private_dir / "settings"
        self._changed: dict[str, object] = {}
        self._listeners: list[Callable[[Settings], None]] = []
        self._lock = threading.Lock()

    @property
    def current(self) -> Settings:
        """The settings now."""
        return self._settings

    def on_change(self, listener: Callable[[Settings], None]) -> None:
        """Have *listener* told the settings after each change, in the order of changes. It is
        called under a lock, so it sets what it sets and waits for nothing."""
        self._listeners.append(listener)

    def change(self, setting: Setting[Any], text: str) -> None:
        """Set what *text* says, for the life of the mount.

        It is on the disk before any listener hears of it. Raises InvalidValueError for a bad value
        and OSError where it cannot be kept, and then nothing has changed."""
        if not setting.runtime:
            raise NotPermittedError(f"{setting.name} cannot be changed while mounted")
        value = setting.kind.from_text(text)
        with self._lock:
            changed = {**self._changed, setting.name: setting.kind.to_plain(value)}
            document = json.dumps({"mount": self._mount_id, "settings": changed})
            self._layout.write_atomically(self._file, document.encode())
            self._changed = changed
            self._set(self._settings.replace(setting, value, f"control/{setting.control}"))

    def take_up(self) -> None:
        """Bring in what was written to control files in this mount's life before, and tell
        listeners; drop what was written to another mount's, and say so.

        Call it when no other worker of the mount can change anything any more. A file that makes no
        sense is set aside with a warning, as one of a stranger's; raises nothing."""
        with self._lock:
            try:
                mount_id, written = self._read()
                values = {each: _value(each, written[each.name]) for each in _known(written)}
            except FileNotFoundError:
                return
            except (OSError, CacheFSError) as error:
                self._set_aside(error)
                return
            if mount_id != self._mount_id:
                self._forget(values)
                return
            self._changed = {each.name: written[each.name] for each in values}
            settings = self._settings
            for each, value in values.items():
                settings = settings.replace(each, value, f"control/{each.control}")
            self._set(settings)

    def _set(self, settings: Settings) -> None:
        self._settings = settings
        for listener in self._listeners:
            listener(settings)

    def _read(self) -> tuple[str, dict[str, object]]:
        """The file: the mount's ID, and plain values by the names of settings."""
        try:
            content = json.loads(_bytes_of(self._file, self._layout.private_dir))
        except (
            ValueError,
            RecursionError,
        ) as error:  # JSON's errors are ValueErrors, and bad UTF-8
            raise InvalidValueError(f"not JSON: {error}") from error
        match content:
            case {"mount": str(mount_id), "settings": dict(written)}:
                return mount_id, written
        raise InvalidValueError("not what cachefs has written")

    def _set_aside(self, error: Exception) -> None:
        aside = self._file.with_suffix(".bad")
        log.warning("%s is set aside, what it kept is lost: %s", self._file, error)
        try:
            self._file.rename(aside)
        except OSError as also:
            log.warning("%s cannot be set aside: %s", self._file, also)

    def _forget(self, values: dict[Setting[Any], Any]) -> None:
        """Said once, by the first worker of the new mount."""
        names = ", ".join(
            f"{each.name} {each.kind.shown_text(value)}" for each, value in values.items()
        )
        log.info("no longer honoured, since it was written to an earlier mount: %s", names)
        try:
            self._file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s", self._file, error)


def _known(written: dict[str, object]) -> list[Setting[Any]]:
    """The settings that *written* names; what a newer version has written beside them is left
    out."""
    return [each for each in Settings.all() if each.runtime and each.name in written]


def _value(setting: Setting[Any], written: object) -> Any:
    return setting.kind.from_plain(written, Path("/"))


def _bytes_of(path: Path, owned_with: Path) -> bytes:
    """What the file has, if it can be one of ours: a plain file of root, of this user or of the
    owner of *owned_with*. Raises OSError, InvalidValueError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidValueError("not a plain file")
        if status.st_uid not in {0, os.geteuid(), owned_with.stat().st_uid}:
            raise InvalidValueError(f"it belongs to user {status.st_uid}")
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise InvalidValueError(f"over {LARGEST} bytes")
    return content
