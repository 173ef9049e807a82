"""A source that fails in the middle of an image, and another that goes on at the same byte."""

from collections.abc import Generator
from random import Random

import pytest
from support.fake_source import MIB, FakeSource

from cachefs.errors import (
    ImageChangedError,
    SourceError,
    SourceUnavailableError,
    SourceUnreachableError,
)
from cachefs.image import Digest
from cachefs.sources import ChainSource, SourceImage
from cachefs.sources.health import FAILURES

DATA = Random(7).randbytes(4 * MIB)
DIGEST = Digest("sha256", "0" * 64)
OTHER = Digest("sha256", "1" * 64)


class Breaking(FakeSource):
    """Sends a MiB of each read, and breaks, *breaks* times."""

    breaks = 10**9

    def read(self, image: SourceImage, start: int, stop: int) -> Generator[bytes]:
        pieces = super().read(image, start, stop)
        yield next(pieces)
        if self.breaks > 0:
            self.breaks -= 1
            raise SourceUnavailableError("broke")
        yield from pieces


def source(kind: type[FakeSource], name: str, **rest: object) -> FakeSource:
    return kind({"img": DATA}, url=f"{name}:///", **rest)  # type: ignore[arg-type]


def pair(
    digests: tuple[Digest | None, Digest | None] = (None, None),
    versions: tuple[str | None, str | None] = ('"v1"', '"v1"'),
    data: bytes = DATA,
    **rest: object,
) -> tuple[FakeSource, FakeSource, ChainSource]:
    """A first source that breaks, another, and the chain of them."""
    first = source(Breaking, "a", digests={"img": digests[0]}, versions={"img": versions[0]})
    other = source(
        FakeSource, "b", digests={"img": digests[1]}, versions={"img": versions[1]}, **rest
    )
    other.images["img"] = data
    return first, other, ChainSource([first, other])


def read(chain: ChainSource, start: int = 0, stop: int = len(DATA)) -> bytes:
    return b"".join(chain.read(chain.stat("img"), start, stop))


@pytest.mark.parametrize(
    ("digests", "versions"),
    [
        ((DIGEST, DIGEST), ('"v1"', '"another"')),
        ((DIGEST, DIGEST), (None, None)),
        ((None, None), ('"v1"', '"v1"')),
    ],
    ids=["by digest", "by digest alone", "by etag"],
)
def test_another_source_of_the_same_bytes_goes_on_at_the_same_byte(
    digests: tuple[Digest | None, Digest | None], versions: tuple[str | None, str | None]
) -> None:
    first, other, chain = pair(digests, versions)
    assert read(chain) == DATA
    assert first.reads == [("img", 0, len(DATA))]
    assert other.reads == [("img", MIB, len(DATA))]


@pytest.mark.parametrize(
    ("digests", "versions"),
    [
        ((DIGEST, OTHER), ('"v1"', '"v1"')),
        ((DIGEST, None), ('"v1"', '"v1"')),
        ((None, DIGEST), ('"v1"', '"v1"')),
        ((None, None), ('"v1"', '"v2"')),
        ((None, None), ('W/"v1"', 'W/"v1"')),
        ((None, None), (None, None)),
    ],
    ids=["digest", "no digest", "digest of one", "etag", "weak etag", "nothing"],
)
def test_bytes_of_what_may_be_another_version_are_never_mixed(
    digests: tuple[Digest | None, Digest | None], versions: tuple[str | None, str | None]
) -> None:
    _, other, chain = pair(digests, versions)
    with pytest.raises(SourceError, match="broke"):
        read(chain)
    assert other.reads == []


def test_another_size_is_another_version() -> None:
    _, other, chain = pair((DIGEST, DIGEST), data=DATA[:-1])
    with pytest.raises(SourceError, match="broke"):
        read(chain)
    assert other.reads == []


def test_a_source_without_ranges_cannot_go_on_in_the_middle() -> None:
    _, other, chain = pair((DIGEST, DIGEST), ranges=False)
    with pytest.raises(SourceError, match="broke"):
        read(chain)
    assert other.reads == []


def test_the_first_of_the_failures_is_told_where_all_fail() -> None:
    _, other, chain = pair((DIGEST, DIGEST))
    other.read_errors = [SourceUnreachableError("away")]
    with pytest.raises(SourceError, match="broke"):
        read(chain)


def test_a_change_at_the_source_is_no_failure_that_another_makes_good() -> None:
    first, other, chain = pair((DIGEST, DIGEST))
    first.read_errors = [ImageChangedError("another")]
    with pytest.raises(ImageChangedError):
        read(chain)
    assert other.reads == []


def test_a_source_that_is_left_alone_is_not_asked_while_another_can_go_on() -> None:
    first, other, chain = pair((DIGEST, DIGEST))
    image = chain.stat("img")
    for _ in range(FAILURES):
        b"".join(chain.read(image, 0, len(DATA)))
    asked = len(first.reads)
    assert b"".join(chain.read(image, MIB, len(DATA))) == DATA[MIB:]
    assert len(first.reads) == asked
    assert other.stats == ["img"]  # what it has is remembered


def test_each_source_has_a_health_of_its_own() -> None:
    first, _, chain = pair()
    assert [member.breaker.health.healthy for member in chain.members] == [None, None]
    chain.stat("img")
    assert [member.breaker.health.healthy for member in chain.members] == [True, None]
    first.errors = [SourceUnreachableError("away")]
    chain.stat("img")
    assert [member.breaker.health.healthy for member in chain.members] == [False, True]
    assert chain.members[0].breaker.health.error == "away"


def test_a_source_that_came_back_is_the_first_again() -> None:
    first, other, chain = pair()
    first.errors = [SourceUnreachableError("away")] * FAILURES
    for _ in range(FAILURES + 1):
        assert chain.stat("img").source == other.url
    assert len(first.stats) == FAILURES
    chain.members[0].check()
    assert chain.stat("img").source == first.url


def test_where_all_are_left_alone_they_are_asked_all_the_same() -> None:
    first, other, chain = pair()
    for each in (first, other):
        each.errors = [SourceUnreachableError("away")] * FAILURES
    for _ in range(FAILURES):
        with pytest.raises(SourceUnreachableError):
            chain.stat("img")
    assert chain.rest() > 0
    assert chain.stat("img").source == first.url
    assert chain.rest() == 0


def test_a_source_that_asked_to_be_left_alone_is() -> None:
    first = source(FakeSource, "a")
    chain = ChainSource([first])
    error = SourceError("too many requests")
    error.retry_after = 60
    first.errors = [error]
    for _ in range(3):
        with pytest.raises(SourceError, match="too many") as caught:
            chain.stat("img")
        assert 59 < (caught.value.retry_after or 0) <= 66
    assert first.stats == ["img"]


def test_an_image_is_not_called_absent_while_a_source_that_may_have_it_is_left_alone() -> None:
    first, other, chain = pair()
    other.images.clear()
    first.errors = [SourceUnreachableError("away")] * FAILURES
    for _ in range(FAILURES + 1):
        with pytest.raises(SourceUnreachableError):
            chain.stat("img")
