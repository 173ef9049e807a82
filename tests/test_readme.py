"""The README says what the code says."""

from pathlib import Path

from cachefs.control.docs import markdown

README = Path(__file__).parent.parent / "README.md"


def test_the_control_table_is_the_one_made_of_the_declarations() -> None:
    text = README.read_text(encoding="utf-8")
    _, _, after = text.partition("held equal by a test -->\n")
    table, _, _ = after.partition("<!-- end of control table -->")
    assert table == markdown()
