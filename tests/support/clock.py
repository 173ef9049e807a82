"""A clock that a test sets on."""


class Clock:
    """Seconds, which pass only where :attr:`now` is set."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
