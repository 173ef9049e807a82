"""IDs that look odd and are good work everywhere, from each kind of source."""

import hashlib
import os

import pytest
from support.cachefs_mount import DIRECTORY, NGINX, Mounted

from .conftest import MakeMount

pytestmark = pytest.mark.parametrize(
    "kind", [("sqlite", DIRECTORY), ("xattr", NGINX)], ids=["directory", "nginx"], scope="module"
)

IDS = {
    "spaces": " two  spaces ",
    "tilde": "~",
    "percent": "100%",
    "encoded": "%41%2F%00",
    "encoded dots": "%2e%2e",
    "hash": "#1",
    "plus": "a+b",
    "question": "what?",
    "query": "a?b=c&d",
    "quotes": "'\"`",
    "brackets": "[x]{y}*",
    "backslash": "a\\b",
    "dollar": "$HOME;ls",
    "dash": "-rf",
    "colon": "http:x",
    "accents": "café",
    "combining": "cafe\u0301",
    "Chinese": "镜像",
    "Arabic": "صورة",
    "emoji": "💿",
    "format character": "a\u200db",
    "255 bytes": "x" * 255,
    "255 bytes of Greek": "ω" * 127 + "x",
    "database-like": "cache.db2",
    "trailing dot": "image.",
}


def put(mount: Mounted, image_id: str) -> bytes:
    """The image with the same bytes in every test: a list of checksums is believed for seconds."""
    return mount.origin.put(image_id, hashlib.sha512(image_id.encode()).digest())


@pytest.mark.parametrize("image_id", IDS.values(), ids=IDS.keys())
def test_an_odd_id_is_read_listed_recorded_and_evicted(mount: Mounted, image_id: str) -> None:
    data = put(mount, image_id)
    assert mount.cat(image_id) == data
    mount.wait_listed("cached", image_id)
    assert image_id in mount.listed()
    record = mount.record(f"cached/{image_id}")
    assert record["image_id"] == image_id
    mount.remove(f"cached/{image_id}")
    assert image_id not in mount.listed()


@pytest.mark.parametrize("image_id", IDS.values(), ids=IDS.keys())
def test_an_odd_id_is_queued_by_touch_pinned_and_looked_at(mount: Mounted, image_id: str) -> None:
    put(mount, image_id)
    mount.fetch(image_id)
    mount.touch(f"pinned/{image_id}")
    assert os.getxattr(mount.image(image_id), "user.cachefs.pinned") == b"1"
    mount.remove(f"pinned/{image_id}")
    mount.remove(f"cached/{image_id}")


def test_every_odd_id_can_be_enqueued(mount: Mounted) -> None:
    # But for those with white space at their ends, which a line does not keep.
    names = [name for name in IDS.values() if name == name.strip()]
    for name in names:
        put(mount, name)
    mount.write("enqueue", "\n".join(names))
    mount.wait_listed("cached", *names)


def test_every_odd_id_is_found_in_the_list_of_checksums(
    make_mount: MakeMount, kind: tuple[str, str]
) -> None:
    driver, source = kind
    mount = make_mount(driver=driver, source=source, running=False)
    for name in IDS.values():
        mount.origin.put(name, 100)
    mount.start()
    mount.fetch(*IDS.values())
    assert [name for name in IDS.values() if not mount.record(f"cached/{name}")["verified"]] == []


def test_names_that_differ_in_normal_form_are_two_images(mount: Mounted) -> None:
    composed, combining = mount.origin.put("é", 100), mount.origin.put("e\u0301", 100)
    assert mount.cat("é") == composed
    assert mount.cat("e\u0301") == combining
