import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.cachefs_mount import DIRECTORY, NGINX, Mounted, mounted
from support.disks import overlay

KINDS = [
    pytest.param((driver, source), id=f"{driver}-{source}")
    for driver in ("sqlite", "xattr")
    for source in (DIRECTORY, NGINX)
]
MakeMount = Callable[..., Mounted]


@pytest.fixture(scope="module")
def kind() -> tuple[str, str]:
    """Driver and source; a module that is about either parametrises it by KINDS."""
    return "sqlite", DIRECTORY


@pytest.fixture(scope="module")
def stacked() -> bool:
    """Whether the cache directory lies on overlayfs, which the kernel refuses passthrough to."""
    return False


@pytest.fixture(scope="module")
def shared(
    kind: tuple[str, str], stacked: bool, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mounted]:
    """The module's mount."""
    driver, source = kind
    with ExitStack() as stack:
        # Not `mounted`'s own watch: that is for the life of one test.
        home = tmp_path_factory.mktemp("shared")
        if stacked:
            stack.enter_context(overlay(home / "cache"))
        yield stack.enter_context(mounted(home, driver=driver, source=source, patience=None))


@pytest.fixture
def mount(shared: Mounted) -> Iterator[Mounted]:
    """The module's mount, for one test: every test takes images of its own."""
    with shared.watched():
        yield shared
    shared.check_log()


@pytest.fixture
def make_mount(tmp_path: Path) -> Iterator[MakeMount]:
    """Mounts of the test's own; arguments as of :func:`support.cachefs_mount.mounted`."""
    numbers = itertools.count(1)
    with ExitStack() as stack:

        def make(**arguments: object) -> Mounted:
            home = tmp_path / f"mount-{next(numbers)}"
            return stack.enter_context(mounted(home, **arguments))  # type: ignore[arg-type]

        yield make


@pytest.fixture
def open_home() -> Iterator[Path]:
    """A directory that every user may get to, which pytest's own are not."""
    with TemporaryDirectory(prefix="cachefs-grants-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
