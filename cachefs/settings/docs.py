"""The README's table of settings, made of the declarations so that it cannot lie."""

from typing import Any

from cachefs.settings.setting import Setting
from cachefs.settings.table import Settings


def markdown() -> str:
    """The table in Markdown, one row for each option, with a newline at its end."""
    rows = ["| option | variable | | takes | default |", "|---|---|---|---|---|"]
    rows += [_row(each) for each in Settings.all() if not each.positional]
    return "\n".join(rows) + "\n"


def _row(setting: Setting[Any]) -> str:
    option = f"`{setting.short}`, `{setting.option}`" if setting.short else f"`{setting.option}`"
    text = setting.help
    if setting.runtime:
        text += f" Also `control/{setting.control}`."
    # `|` would end the cell.
    cells = (option, f"`{setting.variable}`", text, setting.kind.syntax, setting.shown_default)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
