"""No kill leaves anything stuck, whatever notifications to the kernel are under way."""

from pathlib import Path

import pytest
from support.disturb import LONG
from support.notify_kills import NotifyKills

KILLS = 300 if LONG else 6


@pytest.mark.timeout(240 + 8 * KILLS)
@pytest.mark.parametrize(
    ("transport", "driver"), [("relay", "sqlite"), ("relay", "xattr"), ("plain", "sqlite")]
)
def test_kills_while_names_are_listed_and_evicted_hang_nobody(
    tmp_path: Path, transport: str, driver: str
) -> None:
    found = NotifyKills(tmp_path, transport=transport, driver=driver, kills=KILLS).run()
    print(found)  # noqa: T201 - figures, shown by pytest -s
    assert found.troubles == []
    assert found.kills == KILLS
    if transport == "relay":
        assert set(found.errors) <= {"ESTALE"}, found.errors
