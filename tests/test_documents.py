"""The documents in ``cachefs/docs`` and the README speak of files and names that there are."""

import re
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
PACKAGE = CHECKOUT / "cachefs"
DOCUMENTS = sorted((PACKAGE / "docs").glob("*.md"))
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda each: each.stem)


def spans(path: Path) -> set[str]:
    """What stands between backquotes, outside of examples."""
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return set(re.findall(r"`([^`\n]+)`", text))


def packages(path: Path) -> list[str]:
    """The first column of the table of packages, in its order."""
    _, _, rest = path.read_text(encoding="utf-8").partition("\n| package | owns ")
    table, _, _ = rest.partition("\n\n")
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    return [name.removesuffix(".py") for cell in cells for name in re.findall(r"`(.*?)`", cell)]


def layers() -> list[str]:
    """The packages from the top down, as the linter holds them."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = project["tool"]["importlinter"]["contracts"][0]["layers"]
    names = [name.strip(" ()") for line in lines for name in line.split(":")]
    # Those in brackets need not exist.
    return [
        name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()
    ]


@every_document
def test_every_file_that_a_document_names_is_there(path: Path) -> None:
    named = {
        span
        for span in spans(path)
        if re.fullmatch(r"(?:cachefs|tests|scripts)(?:/[a-z_.]+)+|[a-z]+(?:/[a-z_]+)+\.py", span)
    }
    missing = {
        name for name in named if not (CHECKOUT / name).exists() and not (PACKAGE / name).exists()
    }
    assert not missing


@every_document
def test_every_class_and_method_that_a_document_names_is_there(path: Path) -> None:
    missing = set()
    for span in spans(path):
        if found := re.fullmatch(r"([A-Z][A-Za-z]+)\.([a-z_]+)", span):
            owner, name = found.groups()
            member = rf"def {name}\b|^    {name}\b.*[:=]|self\.{name}\b"
            if not re.search(rf"^class {owner}\b", SOURCE, re.MULTILINE) or not re.search(
                member, SOURCE, re.MULTILINE
            ):
                missing.add(span)
        elif re.fullmatch(r"(?:[A-Z][a-z]+){1,3}", span) and not re.search(
            rf"^(?:class )?{span}\b", SOURCE, re.MULTILINE
        ):
            missing.add(span)
    assert not missing


@pytest.mark.parametrize(
    "path",
    [CHECKOUT / "README.md", PACKAGE / "docs" / "architecture.md"],
    ids=lambda each: each.stem,
)
def test_the_table_of_packages_is_the_linters(path: Path) -> None:
    top_down = [name for name in layers() if name != "__main__"]
    assert packages(path) == top_down


def test_the_glossary_has_ten_terms_at_most() -> None:
    _, _, glossary = (PACKAGE / "docs" / "architecture.md").read_text("utf-8").partition("Glossary")
    assert 0 < len(re.findall(r"^\| (?!term|-)", glossary, re.MULTILINE)) <= 10
