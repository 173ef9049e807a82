"""The tables of a README, made anew of the declarations: what scripts/readme runs."""

import sys
from pathlib import Path

from cachefs.control import docs as control
from cachefs.settings import docs as settings

_TABLES = {"control": control.markdown, "settings": settings.markdown}


def main(readme: Path) -> None:
    """Replace what stands between the comments that begin and end each table in *readme*."""
    text = readme.read_text(encoding="utf-8")
    for name, markdown in _TABLES.items():
        begin = f"made by cachefs.{name}.docs, held equal by a test -->\n"
        before, _, rest = text.partition(begin)
        _, end, after = rest.partition(f"<!-- end of {name} table -->")
        if not end:
            sys.exit(f"{readme}: the comments around the table of {name} are not there")
        text = f"{before}{begin}{markdown()}{end}{after}"
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
