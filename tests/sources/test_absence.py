"""What "not there" looks like at sources that do not say 404."""

import pytest

from cachefs.errors import SourceUnreachableError
from cachefs.sources.absence import REMEMBERED, Absence, Answer

PAGE = Answer(200, "text/html")
FORBIDDEN = Answer(403)
IMAGE = Answer(200, "application/octet-stream")


class Site:
    """Answers *usual* to all names but those it *has*."""

    def __init__(self, usual: Answer, **has: Answer) -> None:
        self.usual = usual
        self.has = has
        self.asked: list[str] = []
        self.now = 0.0
        self.down = False
        self.absence = Absence(self.ask, lambda: self.now)

    def ask(self, name: str) -> Answer:
        self.asked.append(name)
        if self.down:
            raise SourceUnreachableError("down")
        return self.has.get(name, self.usual)


def serving(usual: Answer) -> Site:
    site = Site(usual, img=IMAGE)
    site.absence.served("img")
    return site


@pytest.mark.parametrize("status", [404, 410])
def test_what_says_that_it_is_not_there_is_believed(status: int) -> None:
    site = Site(PAGE)
    assert site.absence.means(Answer(status))
    assert site.asked == []


@pytest.mark.parametrize("usual", [FORBIDDEN, PAGE, Answer(401), Answer(400), Answer(405)])
def test_what_is_answered_to_a_name_that_cannot_exist_means_not_there(usual: Answer) -> None:
    assert serving(usual).absence.means(usual)


@pytest.mark.parametrize("answer", [FORBIDDEN, PAGE, Answer(401)])
def test_where_a_name_that_cannot_exist_is_404_any_other_answer_means_what_it_says(
    answer: Answer,
) -> None:
    assert not serving(Answer(404)).absence.means(answer)


def test_a_source_that_refuses_everything_tells_nothing_by_it() -> None:
    assert not Site(FORBIDDEN).absence.means(FORBIDDEN)
    assert not Site(PAGE).absence.means(PAGE)


def test_a_source_that_has_begun_to_refuse_everything_tells_nothing_by_it() -> None:
    for remembered in (True, False):
        site = serving(FORBIDDEN)
        assert not remembered or site.absence.means(FORBIDDEN)
        site.has["img"] = FORBIDDEN
        site.now += 10
        assert not site.absence.means(FORBIDDEN)


def test_a_page_is_not_a_page_of_another_kind() -> None:
    assert not serving(PAGE).absence.means(IMAGE)


@pytest.mark.parametrize("status", [407, 408, 412, 429, 500, 502, 503])
def test_a_refusal_that_passes_is_never_an_absence(status: int) -> None:
    assert not serving(Answer(status)).absence.means(Answer(status))


def test_the_impossible_name_is_asked_for_once_in_a_while() -> None:
    site = serving(FORBIDDEN)
    for _ in range(5):
        assert site.absence.means(FORBIDDEN)
    impossible = [name for name in site.asked if name != "img"]
    assert len(impossible) == 1
    site.now += REMEMBERED
    site.usual = Answer(404)
    assert not site.absence.means(FORBIDDEN)


def test_a_source_that_cannot_be_asked_leaves_the_answer_what_it_is() -> None:
    site = serving(FORBIDDEN)
    site.down = True
    assert not site.absence.means(FORBIDDEN)
    site.down = False
    assert site.absence.means(FORBIDDEN)
