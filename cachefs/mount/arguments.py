"""The command line of ``cachefs mount``, rid of the secrets that were typed into it.

Everyone may read the argument vector of a process (proc(5), ``cmdline``), and the supervisor keeps
that of the command for its life. So a command whose arguments hold a secret executes itself anew,
with arguments that have none, and finds its settings in sealed memory. Until then, some tenths of
a second, the vector is what was typed: credentials that must never be seen belong into a file or a
variable.
"""

import os
import stat
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Final

from cachefs.errors import InvalidValueError
from cachefs.redaction import hide_secrets, secrets_of
from cachefs.settings import Settings
from cachefs.settings.document import from_document, to_document
from cachefs.supervise.protocol import seal, unseal

ENVIRONMENT: Final = "CACHEFS_DOCUMENT"
"""Names the descriptor of the settings to the command that is executed anew."""


def hide_arguments(settings: Settings) -> None:
    """Execute this command anew, in this process, if its argument vector holds a secret; else
    return. The settings are then what :func:`handed_over` gives."""
    masked = [_masked(word) for word in sys.argv[1:]]
    if masked == sys.argv[1:]:
        return
    fd = seal(to_document(settings, ""))
    os.set_inheritable(fd, True)
    os.environ[ENVIRONMENT] = str(fd)
    # -P: not from the working directory, where a user may keep a mountpoint `cachefs`.
    again = [sys.executable, "-P", "-m", "cachefs", *masked]
    os.execv(sys.executable, again)  # noqa: S606 - ourselves, with words that were parsed already


def _masked(word: str) -> str:
    """An argument without secrets, which is read as the same kind of argument."""
    option, separator, value = word.partition("=")
    if word.startswith("-") and separator:
        return f"{option}={hide_secrets(value)}"
    return hide_secrets(word)


def handed_over(environ: MutableMapping[str, str]) -> Settings | None:
    """The settings that :func:`hide_arguments` left, or None where it did not; call it once. Raises
    InvalidValueError for a variable that names nothing of the kind."""
    text = environ.pop(ENVIRONMENT, None)
    if text is None:
        return None
    try:
        fd = int(text)
        document = unseal(fd)
        os.close(fd)
    except (ValueError, OSError):
        raise InvalidValueError(f"{ENVIRONMENT} is not for users: unset it") from None
    return from_document(document)[0]


def exposed_files(settings: Settings) -> Iterator[Path]:
    """The configuration files that credentials came from, and that every user may read."""
    locations = {
        Settings.source.name: (settings.source,),
        Settings.fallbacks.name: settings.fallbacks,
    }
    for name, values in locations.items():
        origin = settings.given[name].origin
        if not origin.startswith("file ") or not any(map(secrets_of, values)):
            continue
        path = Path(origin.removeprefix("file "))
        try:
            mode = path.stat().st_mode
        except OSError:
            continue  # it has been taken away since
        if mode & stat.S_IROTH:
            yield path
