"""The README says what the code says."""

from pathlib import Path

from cachefs.control import docs as control
from cachefs.settings import docs as settings

README = Path(__file__).parent.parent / "README.md"


def _between(start: str, end: str) -> str:
    _, _, after = README.read_text(encoding="utf-8").partition(start)
    table, _, _ = after.partition(end)
    return table


def test_the_control_table_is_the_one_made_of_the_declarations() -> None:
    start = "made by cachefs.control.docs, held equal by a test -->\n"
    assert _between(start, "<!-- end of control table -->") == control.markdown()


def test_the_settings_table_is_the_one_made_of_the_declarations() -> None:
    start = "made by cachefs.settings.docs, held equal by a test -->\n"
    assert _between(start, "<!-- end of settings table -->") == settings.markdown()
