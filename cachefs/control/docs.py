"""The README's table of ``control/``, made of the declarations so that it cannot lie."""

from cachefs.control.records import Records
from cachefs.control.table import TABLE, Declaration


def markdown() -> str:
    """The table in Markdown, one row for each file or directory, with a newline at its end."""
    rows = ["| file | holds | to change it |", "|---|---|---|"]
    rows += [f"| `{_name(each)}` | {each.doc} | {each.syntax or 'read-only'} |" for each in TABLE]
    return "\n".join(rows) + "\n"


def _name(declared: Declaration) -> str:
    return declared.name + ("/" if isinstance(declared, Records) else "")
