"""Choosing a driver by name, and falling back to sqlite where the one asked for cannot work.

Owns the table of names. A driver's module is imported only when it is asked for, so that one
whose dependencies are missing harms nobody else.
"""

import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from cachefs.drivers.base import Driver
from cachefs.errors import DriverError, InvalidValueError

log = logging.getLogger(__name__)

DEFAULT = "sqlite"

DRIVERS = {
    "sqlite": "cachefs.drivers.sqlite:SqliteDriver",
    "xattr": "cachefs.drivers.xattr:XattrDriver",
}
"""What a driver is called, and ``module:class``; the class takes the cache directory."""


def open_driver(name: str, cache_dir: Path) -> Driver:
    """Load and configure the driver *name* for *cache_dir*.

    Where it cannot be loaded or configured, the answer is the sqlite driver, and one warning says
    why. Raises :class:`InvalidValueError` for a name that is not in :data:`DRIVERS`, and
    :class:`DriverError` where sqlite cannot be configured either.
    """
    if name not in DRIVERS:
        raise InvalidValueError(f"no driver is called {name!r}; there are {', '.join(DRIVERS)}")
    try:
        return _open(name, cache_dir)
    except DriverError as error:
        if name == DEFAULT:
            raise
        log.warning("driver %s cannot be used in %s, using %s: %s", name, cache_dir, DEFAULT, error)
    return _open(DEFAULT, cache_dir)


def _open(name: str, cache_dir: Path) -> Driver:
    module, _, attribute = DRIVERS[name].partition(":")
    try:
        factory: Callable[[Path], Driver] = getattr(import_module(module), attribute)
    except ImportError as error:
        raise DriverError(f"the {name} driver cannot be loaded: {error}") from error
    driver = factory(cache_dir)
    driver.configure()
    return driver
