"""Settings from where users write them: the command line before the environment before a TOML file
before the defaults.

Owns the order and the words in which a bad value is told; what a value is, its kind knows.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cachefs.errors import InvalidValueError
from cachefs.redaction import hide_secrets, without_secrets
from cachefs.settings.setting import Given, Setting
from cachefs.settings.table import Settings
from cachefs.units import quoted

COMMAND_LINE: Final = "command line"


def load(
    source: str,
    mountpoint: str,
    options: Mapping[str, object],
    *,
    file: Path | None = None,
    environ: Mapping[str, str],
) -> Settings:
    """The settings of a mount of *source* at *mountpoint*, as typed.

    *options* are the values of the command line by the names of their settings; None and () stand
    for "not said". Raises :class:`~cachefs.errors.InvalidValueError`, in one line that names the
    file and the key, or the variable, for a bad value of those. No error has a secret.

    A file or a variable may say the source again, with its credentials, so that they need not stand
    on the command line: it counts where it is *source* but for what :func:`hide_secrets` hides.
    """
    given = {} if file is None else read_file(file)
    given |= read_environment(environ)
    given |= {
        name: Given(value, COMMAND_LINE)
        for name, value in options.items()
        if value is not None and value != ()
    }
    given["source"] = _source(Settings.source.kind.parse(source), given.get("source"))
    if not mountpoint:
        raise InvalidValueError("the mountpoint is empty: name a directory")
    given["mountpoint"] = Given(Settings.mountpoint.kind.parse(mountpoint), COMMAND_LINE)
    return Settings(given)


def _source(typed: str, said: Given | None) -> Given:
    """The source as *typed*, or as *said* elsewhere where that differs by its secrets alone."""
    if said is not None and typed in (said.value, hide_secrets(said.value)):
        return said
    return Given(typed, COMMAND_LINE)


def read_environment(environ: Mapping[str, str]) -> dict[str, Given]:
    """What variables such as ``CACHEFS_MAX_SIZE`` set, by the names of settings; an empty one sets
    nothing. Raises InvalidValueError, naming the variable."""
    given: dict[str, Given] = {}
    for setting in Settings.all():
        text = environ.get(setting.variable, "") if _may_be_said(setting) else ""
        if not text:
            continue
        try:
            value = setting.kind.from_text(text)
        except InvalidValueError as error:
            raise InvalidValueError(without_secrets(f"{setting.variable}: {error}")) from None
        given[setting.name] = Given(value, f"environment {setting.variable}")
    return given


def read_file(path: Path) -> dict[str, Given]:
    """What a TOML file sets, by the names of settings; its keys are the options without dashes.

    A relative path in it is meant from the file's own directory. Raises
    :class:`~cachefs.errors.InvalidValueError`, naming the file and the key, for a file that cannot
    be read, an unknown key or a bad value.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidValueError(
            f"cannot read the configuration file {path}: {error.strerror}"
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidValueError(f"{path}: not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        # Not its cause either: it has the whole file.
        raise InvalidValueError(without_secrets(f"{path}: not TOML: {error}")) from None
    known = {setting.key: setting for setting in Settings.all() if _may_be_said(setting)}
    unknown = sorted(document.keys() - known.keys())
    if unknown:
        names = without_secrets(", ".join(map(quoted, unknown)))
        raise InvalidValueError(f"{path}: unknown {names}; known are {', '.join(known)}")
    place = path.absolute()
    given: dict[str, Given] = {}
    for key, value in document.items():
        try:
            read = known[key].kind.from_plain(value, place.parent)
        except InvalidValueError as error:
            raise InvalidValueError(without_secrets(f"{path}: {key}: {error}")) from None
        given[known[key].name] = Given(read, f"file {place}")
    return given


def _may_be_said(setting: Setting[Any]) -> bool:
    """Whether a file or a variable may have it."""
    return not setting.positional or setting is Settings.source
