"""Every setting of a mount, declared once.

To add one, add an entry to :class:`Settings`: its option and line in ``--help``, its key in the
configuration file, its environment variable, its way to the worker, its place in ``control/config``
and the README, its control file if it has one, and its round through the tests of all entries
follow from it."""

from decimal import Decimal
from pathlib import Path
from typing import Final, Literal

from cachefs.drivers import DEFAULT, DRIVERS
from cachefs.settings.kinds import (
    AMOUNT,
    COUNT,
    FLAG,
    GROUP,
    MODE,
    MOUNT_OPTIONS,
    PATH,
    RATE,
    SECONDS,
    SOURCE,
    SOURCES,
    TEXT,
    USER,
    Kind,
    choice,
    maybe,
)
from cachefs.settings.paths import default_cache_dir
from cachefs.settings.setting import Setting, SettingsTable
from cachefs.units import Amount

TransportChoice = Literal["auto", "relay", "plain"]
_TRANSPORTS: Final[tuple[TransportChoice, ...]] = ("auto", "relay", "plain")
_TRANSPORT: Final[Kind[TransportChoice]] = choice(_TRANSPORTS)


def _cache_dir(settings: SettingsTable) -> Path:
    return default_cache_dir(settings.given["source"].value)


class Settings(SettingsTable):
    """Everything that ``cachefs mount`` can be told. Paths are absolute, times in seconds,
    bandwidths in bytes per second; a percentage is of the whole filesystem that *cache_dir* is
    on."""

    __slots__ = ()

    source = Setting(SOURCE, help="Where images come from.", positional=True)
    mountpoint = Setting(PATH, help="Where they can be read.", positional=True)
    cache_dir = Setting(
        PATH,
        help="Where the images are kept.",
        compute=_cache_dir,
        default_text="one for each source, in /var/cache/cachefs or ~/.cache/cachefs",
    )
    adopt = Setting(
        FLAG, False, "Take a directory that has files and is no cache; they count as cached images."
    )
    max_size = Setting(
        AMOUNT,
        Amount(size=10 * 2**30),
        "Most bytes of images to keep; a hard limit.",
        runtime=True,
        control="max_size",
    )
    min_free = Setting(
        AMOUNT,
        Amount(percent=Decimal(5)),
        "Bytes to leave free on the cache's filesystem.",
        runtime=True,
        control="min_free",
    )
    stall_time = Setting(
        SECONDS,
        86400.0,
        "Seconds after which a partial file that nobody writes is removed.",
        runtime=True,
        control="stall_time",
    )
    driver = Setting(choice(tuple(DRIVERS)), DEFAULT, "The index.")
    on_miss = Setting(
        choice(("fetch", "enoent")),
        "fetch",
        "Ask the source for an image that is not cached, or say ENOENT.",
    )
    fallbacks = Setting(
        SOURCES, (), "A source to ask when those before it fail; repeatable.", key="fallback"
    )
    max_fetches = Setting(COUNT, 3, "Fetches at a time.")
    bandwidth = Setting(
        maybe(RATE), None, "Most bytes a second to fetch, in all.", default_text="no limit"
    )
    prefetch_bandwidth = Setting(
        maybe(RATE),
        None,
        "Most bytes a second for fetches that nobody reads.",
        default_text="no limit",
    )
    on_last_close = Setting(
        choice(("keep", "cancel")),
        "keep",
        "Go on with a fetch that nobody reads any more, or cancel it.",
    )
    timeout = Setting(
        SECONDS,
        30.0,
        "When a source that says nothing has failed; a reader waits as long for room.",
    )
    transport = Setting(
        _TRANSPORT,
        "auto",
        "The kernel side: the relay (native reads, a mount that outlives its daemon), plain "
        "pyfuse3, or what works here.",
    )
    control_group = Setting(maybe(TEXT), None, "The group that may write to control/, too.")
    uid = Setting(
        maybe(USER), None, "Whose the image files are.", default_text="root, or the daemon's user"
    )
    gid = Setting(
        maybe(GROUP), None, "Their group.", default_text="root's, or that of the daemon's user"
    )
    mode = Setting(MODE, 0o444, "Their permissions, which the kernel holds readers to.")
    options = Setting(MOUNT_OPTIONS, (), "Options as of mount -o.", short="-o")
    log_file = Setting(
        maybe(PATH), None, "Where to log.", default_text="syslog; in the foreground, stderr"
    )
    log_level = Setting(
        choice(("debug", "info", "warning", "error")), "info", "The least that is logged."
    )
    foreground = Setting(FLAG, False, "Stay, and log to stderr.")
