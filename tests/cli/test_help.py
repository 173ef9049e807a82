"""`cachefs help`: the documents that ship with the code."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import cachefs
from cachefs.cli import main

DOCUMENTS = {
    path.stem: path.read_text(encoding="utf-8")
    for path in (Path(cachefs.__file__).parent / "docs").glob("*.md")
}


def test_help_alone_lists_each_topic_with_its_first_line() -> None:
    result = CliRunner().invoke(main, ["help"])
    assert result.exit_code == 0
    shown = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert shown == {
        name: text.splitlines()[0].removeprefix("# ") for name, text in DOCUMENTS.items()
    }


@pytest.mark.parametrize("topic", sorted(DOCUMENTS))
def test_a_topic_is_shown_as_it_is(topic: str) -> None:
    result = CliRunner().invoke(main, ["help", topic])
    assert (result.exit_code, result.stdout) == (0, DOCUMENTS[topic])


def test_an_unknown_topic_is_a_usage_error_that_names_the_topics() -> None:
    result = CliRunner().invoke(main, ["help", "nope"])
    assert result.exit_code == 2
    for topic in DOCUMENTS:
        assert topic in result.stderr


def test_a_document_goes_through_the_pager_on_a_terminal() -> None:
    ours, terminal = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as reader:
        process = subprocess.Popen(
            [sys.executable, "-m", "cachefs", "help", "changes"],
            stdin=terminal,
            stdout=terminal,
            env={**os.environ, "PAGER": "wc -c", "TERM": "xterm"},
        )
        assert process.wait(timeout=30) == 0
        os.close(terminal)
        paged = int(reader.read(100).split()[0])
    assert abs(paged - len(DOCUMENTS["changes"].encode())) <= 1  # click ends it with a newline


def test_help_imports_nothing_that_only_a_mount_needs() -> None:
    code = (
        "import sys; from cachefs.cli import main\n"
        "main(['help', 'changes'], standalone_mode=False)\n"
        "print(sorted({'trio', 'pyfuse3', 'obstore'} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stderr == "[]\n"
