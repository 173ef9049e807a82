"""Of a lasting fault one line is logged in a while, which tells of the others."""

from cachefs.throttle import QUIET, Throttle


def test_a_kind_is_logged_once_in_a_while_and_then_with_the_number_of_the_others() -> None:
    now = [100.0]
    throttle = Throttle(lambda: now[0])
    assert throttle.more("full") == ""
    assert throttle.more("other") == ""
    assert [throttle.more("full") for _ in range(3)] == [None, None, None]
    now[0] += QUIET
    assert throttle.more("full") == ", and 3 such failures since the last of these lines"
    now[0] += QUIET
    assert throttle.more("full") == ""
