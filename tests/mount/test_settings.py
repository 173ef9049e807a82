"""Settings of a mount: changed while it lives, shown, and kept from other users."""

import json
from pathlib import Path

import pytest
from support.cachefs_mount import Mounted
from support.disturb import KILLED, kill_worker
from support.processes import is_alive, run, wait_for

from cachefs.settings import Settings

from .conftest import MakeMount

RUNTIME = {"max_size": "3G", "min_free": "1M", "stall_time": "3600"}


def change(mount: Mounted) -> None:
    """Write another value to each control file of a setting."""
    for name, text in RUNTIME.items():
        mount.write(name, text)


def shown(mount: Mounted) -> dict[str, str]:
    return {name: mount.show(name).strip() for name in RUNTIME}


def config(mount: Mounted) -> dict[str, dict[str, object]]:
    document: dict[str, dict[str, object]] = json.loads(mount.show("config"))
    return document


def test_every_setting_that_may_change_is_changed_here() -> None:
    assert RUNTIME.keys() == {each.name for each in Settings.all() if each.runtime}


def test_what_is_written_holds_over_kill_9_of_the_worker(make_mount: MakeMount) -> None:
    mount = make_mount()
    change(mount)
    mount.expect(KILLED)
    kill_worker(mount)
    assert shown(mount) == RUNTIME
    assert mount.status()["max_size"] == 3 * 2**30
    assert config(mount)["max_size"] == {"value": "3G", "from": "control/max_size"}


def test_what_is_written_holds_over_an_upgrade(make_mount: MakeMount) -> None:
    mount = make_mount()
    change(mount)
    old = mount.worker()
    mount.cli("upgrade")
    assert mount.worker() != old
    assert shown(mount) == RUNTIME
    assert mount.status()["max_size"] == 3 * 2**30


def test_what_is_written_holds_over_the_supervisors_death(make_mount: MakeMount) -> None:
    mount = make_mount()
    change(mount)
    mount.expect("the supervisor is gone")
    worker, supervisor = mount.worker(), mount.process
    assert supervisor is not None
    supervisor.kill()
    supervisor.wait(10)
    mount.process = None
    wait_for(lambda: "the supervisor is gone" in mount.log.read_text(), "the worker to see it")
    assert mount.worker() == worker
    assert shown(mount) == RUNTIME
    assert mount.status()["max_size"] == 3 * 2**30
    mount.write("max_size", "4G")
    assert mount.status()["max_size"] == 4 * 2**30
    run("umount", str(mount.mountpoint))
    wait_for(lambda: not is_alive(worker), "the worker to end")


def test_a_new_mount_forgets_what_was_written_and_says_so(make_mount: MakeMount) -> None:
    mount = make_mount()
    before = shown(mount)
    change(mount)
    mount.restart()
    assert shown(mount) == before
    (line,) = [line for line in mount.new_lines() if "no longer honoured" in line]
    assert all(f"{name} {text}" in line for name, text in RUNTIME.items())
    mount.restart()
    assert sum("no longer honoured" in line for line in mount.new_lines()) == 1


def test_config_shows_where_each_setting_came_from(make_mount: MakeMount) -> None:
    mount = make_mount(options=["--max-size", "4G"])
    document = config(mount)
    assert document["max_size"] == {"value": "4G", "from": "command line"}
    assert document["timeout"]["from"] == "default"
    assert document["cache_dir"]["value"] == str(mount.cache_dir)
    assert document.keys() == {each.name for each in Settings.all()}


@pytest.fixture
def secretive(make_mount: MakeMount) -> Mounted:
    """A mount whose sources' URLs have secrets in them."""
    fallback = "http://user:hidden@localhost:9/images/?token=hidden"
    source = "http://user:hidden@localhost:9/?token=hidden"
    return make_mount(source=source, options=["--fallback", fallback])


def test_the_worker_has_no_setting_in_its_arguments(secretive: Mounted) -> None:
    words = Path(f"/proc/{secretive.worker()}/cmdline").read_bytes().split(b"\0")
    assert words[-3:] == [b"-m", b"cachefs.mount.worker", b""]


def test_no_secret_is_in_environment_control_files_or_log(secretive: Mounted) -> None:
    assert b"hidden" not in Path(f"/proc/{secretive.worker()}/environ").read_bytes()
    assert config(secretive)["source"]["value"] == "http://localhost:9/"
    for name in ("config", "status"):
        assert "hidden" not in secretive.show(name)
    assert "hidden" not in secretive.log.read_text()


def test_the_hand_over_can_be_opened_by_its_owner_alone(secretive: Mounted) -> None:
    files = list(Path(f"/proc/{secretive.worker()}/fd").iterdir())
    (document,) = [path for path in files if "memfd:document" in str(path.readlink())]
    assert document.stat().st_mode & 0o777 == 0o400
