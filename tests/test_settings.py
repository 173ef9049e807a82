"""Every setting, from each place that it may come from to each that shows it; the configuration
file, and the default cache directory.

An entry of the table is tested by being there: :data:`EXAMPLES` has a value for each.
"""

import json
import logging
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import cachefs.mount
from cachefs.cache.claim import claim
from cachefs.cache.layout import Layout
from cachefs.cli import main
from cachefs.control.table import TABLE
from cachefs.errors import InvalidValueError, NotPermittedError
from cachefs.settings import RunningSettings, Setting, Settings, load
from cachefs.settings.document import from_document, to_document
from cachefs.settings.load import read_file
from cachefs.settings.paths import absolute_source, default_cache_dir
from cachefs.supervise.protocol import seal, unseal
from cachefs.units import Amount

OPTIONS = [each for each in Settings.all() if not each.positional]
RUNTIME = [each for each in OPTIONS if each.runtime]
EXAMPLES: dict[str, tuple[str, str, object]] = {
    "cache_dir": ("/some/where", '"/some/where"', Path("/some/where")),
    "max_size": ("7M", '"7M"', Amount(size=7 * 2**20)),
    "min_free": ("7.5%", '"7.5%"', Amount(percent=Decimal("7.5"))),
    "stall_time": ("90.5s", "90.5", 90.5),
    "driver": ("xattr", '"xattr"', "xattr"),
    "on_miss": ("enoent", '"enoent"', "enoent"),
    "fallbacks": ("https://u:secret@b/x/?t=secret", '["https://u:secret@b/x/?t=secret"]', None),
    "max_fetches": ("7", "7", 7),
    "bandwidth": ("7K", '"7K/s"', 7 * 1024),
    "prefetch_bandwidth": ("7K", "7168", 7 * 1024),
    "on_last_close": ("cancel", '"cancel"', "cancel"),
    "timeout": ("7s", "7", 7.0),
    "transport": ("plain", '"plain"', "plain"),
    "control_group": ("kvm", '"kvm"', "kvm"),
    "uid": ("daemon", '"daemon"', 1),
    "gid": ("7", "7", 7),
    "mode": ("440", '"0440"', 0o440),
    "options": ("allow_other,ro", '["allow_other", "ro"]', ("allow_other", "ro")),
    "log_file": ("/some/log", '"/some/log"', Path("/some/log")),
    "log_level": ("debug", '"debug"', "debug"),
    "adopt": ("true", "true", True),
    "foreground": ("true", "true", True),
}
"""For each setting: its value as text, as TOML, and as it is. None: a tuple of the text."""

every_option = pytest.mark.parametrize("setting", OPTIONS, ids=lambda each: each.name)


def example(setting: Setting[Any]) -> object:
    text, _, value = EXAMPLES[setting.name]
    return (text,) if value is None else value


def from_environment(setting: Setting[Any]) -> Settings:
    environ = {setting.variable: EXAMPLES[setting.name][0]}
    return load("/src", "/mnt", {}, environ=environ)


@every_option
def test_an_option_is_read_from_the_command_line(
    setting: Setting[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted: list[Settings] = []
    monkeypatch.setattr(cachefs.mount, "run", lambda each: mounted.append(each) or 0)
    words = [setting.option]
    if not setting.kind.is_flag:
        words.append(EXAMPLES[setting.name][0])
    result = CliRunner().invoke(main, ["mount", "/src", "/mnt", *words])
    assert result.exit_code == 0, result.output
    (settings,) = mounted
    assert settings.given[setting.name].value == example(setting)
    assert settings.given[setting.name].origin == "command line"


@every_option
def test_an_option_is_read_from_the_environment(setting: Setting[Any]) -> None:
    given = from_environment(setting).given[setting.name]
    assert given.value == example(setting)
    assert given.origin == f"environment {setting.variable}"


@every_option
def test_an_option_is_read_from_a_file(setting: Setting[Any], tmp_path: Path) -> None:
    path = _config_file(tmp_path, f"{setting.key} = {EXAMPLES[setting.name][1]}\n")
    given = load("/src", "/mnt", {}, file=path, environ={}).given[setting.name]
    assert given.value == example(setting)
    assert given.origin == f"file {path}"


@every_option
def test_an_empty_variable_counts_as_not_set(setting: Setting[Any]) -> None:
    settings = load("/src", "/mnt", {}, environ={setting.variable: ""})
    assert settings == load("/src", "/mnt", {}, environ={})


@every_option
def test_a_setting_comes_through_the_hand_over_with_its_origin(setting: Setting[Any]) -> None:
    settings = from_environment(setting)
    fd = seal(to_document(settings, "id"))
    try:
        assert from_document(unseal(fd)) == (settings, "id")
        assert from_document(unseal(fd)) == (settings, "id")  # as each worker does
    finally:
        os.close(fd)


@every_option
def test_config_shows_a_setting_and_no_secret(setting: Setting[Any]) -> None:
    shown = from_environment(setting).shown()
    assert shown.keys() == {each.name for each in Settings.all()}
    assert shown[setting.name]["from"] == f"environment {setting.variable}"
    assert shown[setting.name]["value"] == setting.kind.shown(example(setting))
    assert "secret" not in json.dumps(shown)


@every_option
def test_help_shows_an_option_with_its_default(setting: Setting[Any]) -> None:
    shown = " ".join(CliRunner().invoke(main, ["mount", "--help"]).stdout.split())
    assert setting.option in shown
    assert f"{setting.help} Default {setting.shown_default}".removesuffix(" Default ") in shown


def test_every_setting_with_a_control_file_has_it() -> None:
    files = {each.name: each for each in TABLE}
    for setting in Settings.all():
        if setting.control:
            assert files[setting.control].doc == setting.help


def test_a_bad_variable_is_named() -> None:
    with pytest.raises(InvalidValueError, match=r"^CACHEFS_MAX_SIZE: '10GB'"):
        load("/src", "/mnt", {}, environ={"CACHEFS_MAX_SIZE": "10GB"})


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(
    tmp_path: Path,
) -> None:
    path = _config_file(tmp_path, "max-fetches = 1\ntimeout = 1\nstall-time = 1\n")
    environ = {"CACHEFS_MAX_FETCHES": "2", "CACHEFS_TIMEOUT": "2", "CACHEFS_WORKER": "x"}
    settings = load("/src", "/mnt", {"max_fetches": 3}, file=path, environ=environ)
    assert (settings.max_fetches, settings.timeout, settings.stall_time) == (3, 2, 1)


def test_settings_cannot_be_changed_but_replaced() -> None:
    settings = load("/src", "/mnt", {}, environ={})
    with pytest.raises(AttributeError):
        settings.max_fetches = 7  # type: ignore[misc]
    other = settings.replace(Settings.max_fetches, 7, "control/max_fetches")
    assert (settings.max_fetches, other.max_fetches) == (3, 7)
    assert other != settings


def test_a_newer_worker_leaves_out_what_it_does_not_know_and_fills_in_what_it_misses() -> None:
    settings = load("/src", "/mnt", {}, environ={})
    document = json.loads(to_document(settings, "id"))
    document["settings"]["from_the_future"] = {"value": 1, "from": "default"}
    del document["settings"]["on_miss"]
    assert from_document(json.dumps(document).encode()) == (settings, "id")


def test_a_sealed_document_is_for_its_owner_and_can_not_be_changed() -> None:
    fd = seal(b"text")
    try:
        assert os.fstat(fd).st_mode & 0o777 == 0o400
        assert not os.get_inheritable(fd)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
    finally:
        os.close(fd)


def running(tmp_path: Path, mount_id: str = "id") -> RunningSettings:
    layout = Layout(tmp_path)
    claim(layout)
    settings = load("/src", "/mnt", {}, environ={})
    return RunningSettings(settings, mount_id, layout)


@pytest.mark.parametrize("setting", RUNTIME, ids=lambda each: each.name)
def test_what_is_changed_holds_for_the_next_worker_of_the_mount(
    setting: Setting[Any], tmp_path: Path
) -> None:
    running(tmp_path).change(setting, EXAMPLES[setting.name][0])
    later = running(tmp_path)
    told: list[Settings] = []
    later.on_change(told.append)
    later.take_up()
    given = later.current.given[setting.name]
    assert (given.value, given.origin) == (example(setting), f"control/{setting.control}")
    assert told == [later.current]
    assert (tmp_path / ".cachefs/settings").stat().st_mode & 0o777 == 0o600


def test_a_new_mount_forgets_what_was_changed_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running(tmp_path).change(Settings.max_size, "7M")
    later = running(tmp_path, "another")
    with caplog.at_level(logging.INFO):
        later.take_up()
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert "max_size 7M" in record.getMessage()
    assert later.current.max_size == Amount(size=10 * 2**30)
    assert not (tmp_path / ".cachefs/settings").exists()


def test_a_bad_value_changes_nothing(tmp_path: Path) -> None:
    settings = running(tmp_path)
    before = settings.current
    with pytest.raises(InvalidValueError):
        settings.change(Settings.max_size, "10GB")
    with pytest.raises(NotPermittedError):
        settings.change(Settings.driver, "xattr")
    assert settings.current == before
    assert not (tmp_path / ".cachefs/settings").exists()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff", b"[]", b"{}", b"[" * 100000, b'{"mount": 1, "settings": {}}'),
        *(b'{"mount": "id", "settings": []}', b"x" * 2**21),
        b'{"mount": "id", "settings": {"max_size": "lots"}}',
        b'{"mount": "id", "settings": {"max_size": {}}}',
    ],
    ids=range(10),
)
def test_garbage_is_set_aside_with_one_warning(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = running(tmp_path)
    before = settings.current
    (tmp_path / ".cachefs/settings").write_bytes(content)
    settings.take_up()
    assert settings.current == before
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert (tmp_path / ".cachefs/settings.bad").read_bytes() == content


def test_a_link_is_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = running(tmp_path)
    (tmp_path / "target").write_text('{"mount": "id", "settings": {"max_size": "1M"}}')
    (tmp_path / ".cachefs/settings").symlink_to(tmp_path / "target")
    settings.take_up()
    assert settings.current.max_size == Amount(size=10 * 2**30)
    assert len(caplog.records) == 1


def _config_file(directory: Path, text: str) -> Path:
    path = directory / "cachefs.toml"
    path.write_text(text)
    return path


def test_a_file_sets_the_fields_that_it_names(tmp_path: Path) -> None:
    path = _config_file(
        tmp_path,
        'max-size = "10%"\nmin-free = 1048576\nfallback = ["https://a/", "https://b/"]\n'
        'cache-dir = "cache"\nforeground = true\nstall-time = "1h"\nmax-fetches = 2\n',
    )
    assert {name: given.value for name, given in read_file(path).items()} == {
        "max_size": Amount(percent=Decimal(10)),
        "min_free": Amount(size=2**20),
        "fallbacks": ("https://a/", "https://b/"),
        "cache_dir": tmp_path / "cache",
        "foreground": True,
        "stall_time": 3600.0,
        "max_fetches": 2,
    }


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("max_size = 1\n", "max_size"),
        ("source = 'x'\n", "source"),
        ("max-size = true\n", "max-size"),
        ("max-size = '10GB'\n", "max-size"),
        ("driver = 'mysql'\n", "sqlite, xattr"),
        ("on-miss = []\n", "on-miss"),
        ("fallback = [1]\n", "fallback"),
        ("max-fetches = 0\n", "max-fetches"),
        ("foreground = 1\n", "foreground"),
        ("[mount]\n", "mount"),
        ("= 1\n", "not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_together_with_it(
    tmp_path: Path, text: str, named: str
) -> None:
    path = _config_file(tmp_path, text)
    with pytest.raises(InvalidValueError) as caught:
        read_file(path)
    assert str(path) in str(caught.value)
    assert named in str(caught.value)


def test_a_file_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="No such file"):
        read_file(tmp_path / "missing.toml")


def test_two_sources_never_share_a_cache_directory() -> None:
    sources = ["/srv/images", "/srv/images2", "https://h/images", "https://h:81/images", "s3://b/x"]
    assert len({default_cache_dir(source, root=True) for source in sources}) == len(sources)


@pytest.mark.parametrize("same", ["/srv/images/", "file:///srv/images", "/srv/../srv/images"])
def test_spellings_of_one_source_share_a_cache_directory(same: str) -> None:
    assert default_cache_dir(same) == default_cache_dir("/srv/images")


def test_a_relative_source_depends_on_where_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_source("images") == str(tmp_path / "images")
    assert default_cache_dir("images") == default_cache_dir(f"{tmp_path}/images")


def test_a_password_in_a_url_is_not_in_the_directory_name() -> None:
    path = default_cache_dir("https://user:secret@host.example/a/images/?sig=hidden", root=True)
    assert path.parent == Path("/var/cache/cachefs")
    assert path.name.startswith("host.example-a-images-")
    assert "secret" not in path.name
    assert "hidden" not in path.name


@pytest.mark.parametrize(
    ("environ", "parent"),
    [
        ({"HOME": "/home/u"}, "/home/u/.cache/cachefs"),
        ({"HOME": "/home/u", "XDG_CACHE_HOME": "/fast"}, "/fast/cachefs"),
        ({"HOME": "/home/u", "XDG_CACHE_HOME": "fast"}, "/home/u/.cache/cachefs"),
    ],
)
def test_a_user_has_his_own_cache_directory(environ: dict[str, str], parent: str) -> None:
    assert default_cache_dir("/srv/images", root=False, environ=environ).parent == Path(parent)


@given(st.text(min_size=1))
def test_any_source_has_a_plain_directory_name(source: str) -> None:
    if "\0" in source:
        return
    try:
        name = default_cache_dir(source, root=True).name
    except InvalidValueError:
        return
    assert name.isascii()
    assert not name.startswith((".", "-"))


def test_a_source_without_its_scheme_is_refused_without_its_password(tmp_path: Path) -> None:
    file = tmp_path / "cachefs.toml"
    file.write_text('fallback = ["alice:s3cret@host/path"]')
    with pytest.raises(InvalidValueError, match="fallback: a source is neither") as caught:
        read_file(file)
    assert "s3cret" not in str(caught.value)
