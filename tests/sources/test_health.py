"""The health of one source, and when it is asked: a circuit breaker on a clock of its own."""

import pytest
from support.clock import Clock

from cachefs.errors import (
    ImageChangedError,
    ImageNotFoundError,
    SourceError,
    SourceRefusedError,
    SourceUnavailableError,
    SourceUnreachableError,
)
from cachefs.sources.health import FAILURES, FIRST_REST, LONGEST_REST, Breaker, Health


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock)


def fail(breaker: Breaker, clock: Clock, times: int = 1, error: SourceError | None = None) -> None:
    """So many requests in a row fail, each in a tenth of a second."""
    for _ in range(times):
        began = breaker.begin()
        clock.now += 0.1
        breaker.failed(error or SourceUnreachableError("down"), began)


def rest_out(breaker: Breaker, clock: Clock) -> None:
    clock.now += breaker.rest() + 0.001


def asked_to_wait(seconds: float) -> SourceError:
    error = SourceError("too many requests")
    error.retry_after = seconds
    return error


def test_nothing_is_healthy_that_was_not_asked(breaker: Breaker) -> None:
    assert breaker.health == Health(None, None)
    assert breaker.admits()


def test_health_is_that_of_the_last_answer(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, clock)
    assert breaker.health == Health(False, "down")
    breaker.failed(ImageNotFoundError("missing"), breaker.begin())
    assert breaker.health == Health(True)
    fail(breaker, clock, error=SourceUnavailableError("broken"))
    assert breaker.health == Health(False, "broken")
    breaker.answered(breaker.begin())
    assert breaker.health == Health(True)


@pytest.mark.parametrize(
    "error",
    [
        SourceRefusedError("no"),
        ImageNotFoundError("no"),
        ImageChangedError("other"),
        SourceError("ended after 5 of 9 bytes"),
    ],
)
def test_what_is_wrong_with_one_image_is_an_answer(breaker: Breaker, error: SourceError) -> None:
    for _ in range(10):
        breaker.failed(error, breaker.begin())
    assert breaker.health.healthy
    assert breaker.admits()


def test_after_some_failures_in_a_row_a_source_is_left_alone(
    breaker: Breaker, clock: Clock
) -> None:
    fail(breaker, clock, FAILURES - 1)
    assert breaker.admits()
    fail(breaker, clock)
    assert not breaker.admits()
    assert FIRST_REST / 2 <= breaker.rest() <= FIRST_REST
    assert str(breaker.last_error()) == "down"


def test_failures_of_one_outage_count_once_however_many_requests_it_cut(
    breaker: Breaker, clock: Clock
) -> None:
    began = [breaker.begin() for _ in range(10)]
    clock.now += 1
    for each in began:
        breaker.failed(SourceUnreachableError("cut"), each)
    assert breaker.admits()


def test_an_answer_in_between_starts_the_count_anew(breaker: Breaker, clock: Clock) -> None:
    for _ in range(5):
        fail(breaker, clock, FAILURES - 1)
        breaker.answered(breaker.begin())
    assert breaker.admits()


def test_when_the_rest_is_over_one_probe_is_let_through(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, clock, FAILURES)
    rest_out(breaker, clock)
    assert breaker.admits()
    assert not breaker.admits()
    breaker.answered(breaker.begin())
    assert breaker.admits()
    assert breaker.admits()


def test_the_rest_grows_with_each_probe_that_fails_up_to_a_limit(
    breaker: Breaker, clock: Clock
) -> None:
    fail(breaker, clock, FAILURES)
    longest = FIRST_REST
    for _ in range(12):
        rest_out(breaker, clock)
        assert breaker.admits()
        fail(breaker, clock)
        longest = min(LONGEST_REST, 2 * longest)
        assert longest / 2 <= breaker.rest() <= longest


def test_a_probe_that_nobody_answers_is_made_again(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, clock, FAILURES)
    rest_out(breaker, clock)
    assert breaker.admits()
    clock.now += 2 * FIRST_REST
    assert breaker.admits()


def test_a_source_that_fails_again_soon_is_left_alone_for_longer(
    breaker: Breaker, clock: Clock
) -> None:
    fail(breaker, clock, FAILURES)
    rest_out(breaker, clock)
    breaker.answered(breaker.begin())
    fail(breaker, clock, FAILURES)
    assert breaker.rest() >= FIRST_REST
    rest_out(breaker, clock)
    clock.now += 10 * LONGEST_REST
    breaker.answered(breaker.begin())
    fail(breaker, clock, FAILURES)
    assert breaker.rest() <= FIRST_REST


def test_a_probe_that_is_answered_is_no_proof_that_images_are_served(
    breaker: Breaker, clock: Clock
) -> None:
    fail(breaker, clock, FAILURES)
    rest_out(breaker, clock)
    breaker.answered(breaker.begin(), probe=True)
    assert breaker.admits()
    fail(breaker, clock)
    assert not breaker.admits()


def test_retry_after_is_obeyed_at_once_and_told_to_who_asks(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, clock, error=asked_to_wait(25))
    assert breaker.rest() >= 25
    clock.now += 20
    refusal = breaker.refusal()
    assert refusal is not None
    assert refusal.retry_after == pytest.approx(5)
    assert not breaker.admits()
    clock.now += 5.001
    assert breaker.refusal() is None
    assert breaker.admits()


def test_a_retry_after_without_end_has_one(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, clock, error=asked_to_wait(1e12))
    clock.now += 3601
    assert breaker.admits()


def test_listeners_hear_when_a_source_is_left_alone_and_when_it_is_back(clock: Clock) -> None:
    heard: list[bool] = []
    breaker = Breaker(clock, lambda: heard.append(breaker.is_open))
    fail(breaker, clock, FAILURES)
    fail(breaker, clock, FAILURES)
    breaker.answered(breaker.begin())
    breaker.answered(breaker.begin())
    assert heard == [True, False]


@pytest.mark.parametrize("failed", [0, FAILURES])
@pytest.mark.parametrize("answer", ["right", "missing"])
def test_what_was_under_way_does_not_take_back_a_request_to_be_left_alone(
    breaker: Breaker, clock: Clock, answer: str, failed: int
) -> None:
    fail(breaker, clock, failed)
    clock.now += 0.001
    before = breaker.begin()
    fail(breaker, clock, error=asked_to_wait(600))
    if answer == "right":
        breaker.answered(before)
    else:
        breaker.failed(ImageNotFoundError("missing"), before)
    assert not breaker.admits()
    assert breaker.rest() == pytest.approx(600, abs=1)
    rest_out(breaker, clock)
    assert breaker.admits()
    breaker.answered(breaker.begin())
    assert not breaker.is_open
