"""Commands run on a plain directory instead of a mount."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.control_tree import FakeMount

from cachefs.cli import main


@pytest.fixture
def fake(tmp_path: Path) -> FakeMount:
    return FakeMount(tmp_path / "mnt")


@pytest.fixture
def cachefs(fake: FakeMount) -> Callable[..., Result]:
    """Run a command on the fake mount."""

    def run(command: str, *args: str) -> Result:
        return CliRunner().invoke(main, [command, "--mount", str(fake.root), *args])

    return run
