"""The settings of a mount: one table, and everything that is made of it.

:mod:`~cachefs.settings.table` declares each setting once; :mod:`~cachefs.settings.load` reads them,
:mod:`~cachefs.settings.document` hands them to another process, :mod:`~cachefs.settings.running`
keeps what is changed while the mount lives. Nothing here knows what a setting does."""

from cachefs.settings.load import load
from cachefs.settings.running import RunningSettings
from cachefs.settings.setting import Given, Setting
from cachefs.settings.table import Settings

__all__ = ["Given", "RunningSettings", "Setting", "Settings", "load"]
