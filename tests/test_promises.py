"""What ``cachefs help contributing`` promises of an addition: its examples, applied to a copy of
the checkout, take as many files as its table says, and are the whole of the addition."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
DOCUMENT = (CHECKOUT / "cachefs" / "docs" / "contributing.md").read_text(encoding="utf-8")
PARTS = ("cachefs", "tests", "scripts")
KINDS = ("setting", "control file", "source", "driver", "command")


def row(kind: str) -> tuple[int, int, bool]:
    """What the table promises: files of the package, files of the tests, README written anew."""
    [found] = re.findall(rf"^\| {kind} \| (\d+) \| (\d+) \| (yes|no) \|$", DOCUMENT, re.MULTILINE)
    package, tests, readme = found
    return int(package), int(tests), readme == "yes"


def blocks(kind: str) -> list[tuple[str, str, str]]:
    """The examples of a section: ``python`` (a new file) or ``diff``, the file's path, the text."""
    _, _, rest = DOCUMENT.partition(f"\n## A {kind}\n")
    section, _, _ = rest.partition("\n## ")
    return re.findall(r"^```(python|diff) (\S+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


class Copy:
    """A copy of the checkout, to which an example is applied."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for part in PARTS:
            ignored = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(CHECKOUT / part, root / part, ignore=ignored)
        for name in ("README.md", "pyproject.toml"):
            shutil.copy(CHECKOUT / name, root / name)

    def add(self, kind: str) -> None:
        """Apply the examples of a kind, and write the README anew."""
        for language, name, text in blocks(kind):
            path = self.root / name
            if language == "python":
                assert not path.exists()
                path.write_text(text, encoding="utf-8")
            else:
                self._patch(path, text.splitlines(keepends=True))
        self.python("scripts/lib/readme.py", "README.md")

    def changed(self, part: str) -> list[str]:
        """The files below *part* that are not those of the checkout."""
        ours, theirs = self.root / part, CHECKOUT / part
        files = [path for path in ours.rglob("*") if path.is_file()]
        return [
            str(path.relative_to(ours))
            for path in files
            if not (original := theirs / path.relative_to(ours)).exists()
            or path.read_bytes() != original.read_bytes()
        ]

    def python(self, *args: str) -> str:
        """What a Python that imports the copy prints."""
        environ = {name: text for name, text in os.environ.items() if "CACHEFS" not in name}
        done = subprocess.run(
            [sys.executable, *args],
            cwd=self.root,
            env={**environ, "PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, code: str) -> str:
        """What *code* prints, having imported the copy."""
        seen = f"import cachefs; assert cachefs.__file__.startswith({str(self.root)!r})\n"
        return self.python("-c", seen + textwrap.dedent(code))

    def test(self, *args: str) -> int:
        """Run tests of the copy, which have to pass; how many did."""
        output = self.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *args)
        [passed] = re.findall(r"^(\d+) passed", output, re.MULTILINE)
        return int(passed)

    @staticmethod
    def _patch(path: Path, lines: list[str]) -> None:
        """Replace the lines without a plus, which stand in the file once, by those without a
        minus."""
        text = path.read_text(encoding="utf-8")
        before = "".join(line[1:] for line in lines if line[0] != "+")
        after = "".join(line[1:] for line in lines if line[0] != "-")
        assert text.count(before) == 1, f"{path} has not once:\n{before}"
        path.write_text(text.replace(before, after), encoding="utf-8")


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path / "checkout")


@pytest.mark.parametrize("kind", KINDS)
def test_an_addition_takes_the_files_that_are_promised(copy: Copy, kind: str) -> None:
    copy.add(kind)
    readme = (copy.root / "README.md").read_bytes() != (CHECKOUT / "README.md").read_bytes()
    counted = len(copy.changed("cachefs")), len(copy.changed("tests")), readme
    assert counted == row(kind)


def test_the_examples_go_together_and_are_in_the_house_style(copy: Copy) -> None:
    for kind in KINDS:
        copy.add(kind)
    copy.python("-m", "ruff", "check", "--no-cache", "cachefs", "tests")
    copy.python("-m", "ruff", "format", "--check", "--no-cache", "cachefs", "tests")


def test_a_toy_driver_passes_the_suite_of_all_drivers(copy: Copy) -> None:
    copy.add("driver")
    assert copy.test("tests/drivers/test_conformance.py", "-k", "toy") > 40


def test_the_library_keeps_its_index_in_a_toy_driver(copy: Copy) -> None:
    copy.add("driver")
    printed = copy.run(
        """
        from cachefs import ImageCache

        cache = ImageCache("cache", driver="toy")
        cache.cache_image_iter("a", [b"12345"])
        other = ImageCache("cache", driver="toy")
        print(cache.driver_name, cache.is_cached("a"), other.get_image_size("a"))
        """
    )
    assert printed == "toy True 5\n"
    assert (copy.root / "cache" / ".cachefs" / "toy.db").exists()


def test_a_toy_source_passes_the_suite_of_all_sources(copy: Copy) -> None:
    copy.add("source")
    assert copy.test("tests/sources/test_conformance.py", "-k", "toy") > 40


def test_an_image_is_fetched_from_a_toy_source(copy: Copy) -> None:
    copy.add("source")
    (copy.root / "images").mkdir()
    (copy.root / "images" / "a").write_bytes(b"12345")
    printed = copy.run(
        """
        from pathlib import Path

        import trio
        from cachefs.cache import Limits, Store
        from cachefs.fetcher import Fetcher, FetchSettings
        from cachefs.sources import open_source
        from cachefs.units import Amount

        async def main():
            store = Store(Path("cache"), Limits(Amount(size=2**20)))
            store.enqueue("a")
            source = open_source(f"toy://{Path('images').absolute()}")
            fetcher = Fetcher(store, source, FetchSettings())
            ended = trio.Event()
            fetcher.on_ended(lambda flight: ended.set())
            async with trio.open_nursery() as nursery:
                await nursery.start(fetcher.run)
                await ended.wait()
                nursery.cancel_scope.cancel()
            assert store.is_cached("a")
            store.close()

        trio.run(main)
        print(Path("cache/a").read_text())
        """
    )
    assert printed == "12345\n"


def test_the_help_of_mount_names_a_toy_source(copy: Copy) -> None:
    copy.add("source")
    assert "toy:///DIRECTORY" in copy.python("-m", "cachefs", "mount", "--help")


def test_a_toy_setting_passes_the_tests_of_all_settings(copy: Copy) -> None:
    copy.add("setting")
    tests = "tests/test_settings.py", "tests/test_readme.py"
    assert copy.test(*tests, "-k", "toy_pace or control or readme") >= 10


def test_the_control_file_of_a_toy_setting_shows_it_and_changes_it(copy: Copy) -> None:
    copy.add("setting")
    printed = copy.run(
        """
        from pathlib import Path
        from types import SimpleNamespace

        import trio
        from cachefs.cache import Layout
        from cachefs.cache.claim import claim
        from cachefs.control import build
        from cachefs.settings import RunningSettings, Settings, load
        from cachefs.vfs.inodes import Serials
        from cachefs.vfs.nodes import NOBODY
        from cachefs.vfs.shown import Shown

        layout = Layout(Path("cache"))
        claim(layout)
        running = RunningSettings(load("/src", "/mnt", {}, environ={}), "id", layout)
        operator = SimpleNamespace(
            setting=lambda each: each.kind.shown_text(running.current.given[each.name].value),
            change=running.change,
        )

        async def main():
            node = await build(operator, Serials(), None, Shown())[0].lookup(b"toy_pace", NOBODY)
            file = await node.open(NOBODY, writing=True)
            before = await file.read(0, 4096)
            await file.write(0, b"2m\\n")
            print(before, await file.read(0, 4096), running.current.toy_pace)

        trio.run(main)
        """
    )
    assert printed == "b'7\\n' b'120\\n' 120.0\n"


def test_a_toy_control_file_is_in_the_tree_and_answers_a_read(copy: Copy) -> None:
    copy.add("control file")
    printed = copy.run(
        """
        from types import SimpleNamespace

        import trio
        from cachefs.control import build
        from cachefs.vfs.inodes import Serials
        from cachefs.vfs.nodes import NOBODY
        from cachefs.vfs.shown import Shown

        async def main():
            operator = SimpleNamespace(queued=lambda: ["a", "b"], quick=None)
            node = await build(operator, Serials(), None, Shown())[0].lookup(b"toy", NOBODY)
            file = await node.open(NOBODY, writing=False)
            print(await file.read(0, 4096))

        trio.run(main)
        """
    )
    assert printed == "b'2\\n'\n"


def test_a_toy_control_file_passes_the_tests_of_the_readme(copy: Copy) -> None:
    copy.add("control file")
    copy.test("tests/test_readme.py")
    assert "| `toy` | How many images wait" in (copy.root / "README.md").read_text(encoding="utf-8")


def test_a_toy_command_is_listed_and_runs(copy: Copy) -> None:
    copy.add("command")
    control = copy.root / "mnt" / "control"
    control.mkdir(parents=True)
    (control / "status").write_text('{"images": 3}')
    assert re.search(r"^  toy +Tell how many", copy.python("-m", "cachefs", "--help"), re.MULTILINE)
    assert copy.python("-m", "cachefs", "toy", "--mount", "mnt") == "3 images are cached\n"
    shown = copy.python("-m", "cachefs", "toy", "--mount", "mnt", "--json")
    assert json.loads(shown) == {"images": 3}
