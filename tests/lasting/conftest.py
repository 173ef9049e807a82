import faulthandler
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.cachefs_mount import Mounted, mounted
from support.disturb import LONG, PATIENCE

MakeMount = Callable[..., Mounted]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(PATIENCE + 40))


@pytest.fixture(autouse=True)
def long_runs_are_not_ended_by_faulthandler() -> None:
    """Its limit (pyproject.toml) is for tests of ordinary length; pytest-timeout's stands."""
    if LONG:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def make_mount(tmp_path: Path) -> Iterator[MakeMount]:
    """A mount of the test's own, through the relay unless told otherwise; arguments as of
    :func:`support.cachefs_mount.mounted`."""
    with ExitStack() as stack:

        def make(*, options: tuple[str, ...] = ("--transport", "relay"), **more: object) -> Mounted:
            more.setdefault("patience", PATIENCE)
            home = tmp_path / "mount"
            return stack.enter_context(mounted(home, options=options, **more))  # type: ignore[arg-type]

        yield make
