"""How `cachefs mount` becomes Settings."""

import re
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner

import cachefs.mount
from cachefs.cli import main
from cachefs.errors import MountError
from cachefs.settings import Settings
from cachefs.settings.paths import default_cache_dir
from cachefs.sources.locate import SCHEMES
from cachefs.units import Amount


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What was mounted, were it mounted."""
    configs: list[Settings] = []

    def run(settings: Settings) -> int:
        configs.append(settings)
        return 0

    monkeypatch.setattr(cachefs.mount, "run", run, raising=False)
    return configs


def _mount(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["mount", *args])
    return result.exit_code, result.stderr


def _values(settings: Settings) -> dict[str, object]:
    """The values, wherever they came from."""
    return {name: given.value for name, given in settings.given.items()}


def _expected(**expected: object) -> dict[str, object]:
    """The values that are *expected*, and the defaults of all others."""
    defaults = {each.name: each.default for each in Settings.all()}
    assert expected.keys() <= defaults.keys()
    return {**defaults, **expected}


def test_two_arguments_are_enough(
    mounted: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _mount("images", "mnt") == (0, "")
    source = str(tmp_path / "images")
    assert [_values(each) for each in mounted] == [
        _expected(source=source, mountpoint=tmp_path / "mnt", cache_dir=default_cache_dir(source))
    ]


def test_every_option_arrives(mounted: list[Settings], tmp_path: Path) -> None:
    args = "--max-size 5% --min-free 1G --stall-time 1h --driver xattr --on-miss enoent"
    args += " --fallback https://b/ --fallback /c --max-fetches 7 --control-group kvm"
    args += " -o allow_other,ro -o noatime --log-level debug --foreground"
    args += f" --cache-dir {tmp_path} --log-file {tmp_path}/log"
    assert _mount("https://a/", "/mnt", *args.split()) == (0, "")
    assert [_values(each) for each in mounted] == [
        _expected(
            source="https://a/",
            mountpoint=Path("/mnt"),
            cache_dir=tmp_path,
            max_size=Amount(percent=Decimal(5)),
            min_free=Amount(size=2**30),
            stall_time=3600,
            driver="xattr",
            on_miss="enoent",
            fallbacks=("https://b/", "/c"),
            foreground=True,
            control_group="kvm",
            options=("allow_other", "ro", "noatime"),
            max_fetches=7,
            log_file=tmp_path / "log",
            log_level="debug",
        )
    ]


def test_the_command_line_goes_before_the_file(mounted: list[Settings], tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('max-size = "1G"\ndriver = "xattr"\nforeground = true\noptions = "a,b"\n')
    assert _mount("/src", "/mnt", "--config", str(file), "--max-size", "2G") == (0, "")
    (config,) = mounted
    assert config.max_size == Amount(size=2 * 2**30)
    assert config.driver == "xattr"
    assert config.foreground
    assert config.options == ("a", "b")


def test_a_bad_file_is_one_line_and_ends_in_1(mounted: list[Settings], tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("nope = 1\n")
    status, error = _mount("/src", "/mnt", "--config", str(file))
    assert (status, error.count("\n"), mounted) == (1, 1, [])
    assert error.startswith(f"cachefs: {file}: unknown 'nope'")


@pytest.mark.parametrize("option", ["--max-size=10GB", "--driver=mysql", "--max-fetches=0"])
def test_a_bad_option_is_a_usage_error(mounted: list[Settings], option: str) -> None:
    assert _mount("/src", "/mnt", option)[0] == 2
    assert not mounted


def test_a_mount_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(settings: Settings) -> int:
        raise MountError(f"{settings.mountpoint} is not a directory")

    monkeypatch.setattr(cachefs.mount, "run", run, raising=False)
    assert _mount("/src", "/mnt") == (1, "cachefs: /mnt is not a directory\n")


def test_help_names_the_sources_that_there_are() -> None:
    shown = CliRunner().invoke(main, ["mount", "--help"]).stdout
    assert set(re.findall(r"([a-z0-9+]+)://", shown)) == set(SCHEMES)
