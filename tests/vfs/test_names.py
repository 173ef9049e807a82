"""When the kernel is told that a name means something else."""

import pytest

from cachefs.vfs import names
from cachefs.vfs.names import Names


@pytest.fixture
def told() -> list[tuple[str, int]]:
    return []


@pytest.fixture
def changes(told: list[tuple[str, int]]) -> Names:
    changes = Names()
    changes.connect(lambda name, inode: told.append((name, inode)))
    return changes


def test_it_is_told_at_once(changes: Names, told: list[tuple[str, int]]) -> None:
    changes.changed("a", 5)
    with changes.looking():
        pass
    changes.changed("b")
    assert told == [("a", 5), ("b", 0)]


def test_not_while_a_look_up_waits(changes: Names, told: list[tuple[str, int]]) -> None:
    with changes.looking():
        with changes.looking():
            changes.changed("a", 5)
        changes.changed("b")
        assert told == []
    assert told == [("a", 5), ("b", 0)]
    with changes.looking():
        pass
    assert len(told) == 2


def test_nor_when_the_kernel_has_forgotten_it_by_itself(
    changes: Names, told: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "NAME_TIMEOUT", 0.0)
    with changes.looking():
        for number in range(1000):
            changes.changed(str(number))
        assert len(changes._waiting) <= 1
    assert told == []
    assert not changes._waiting
