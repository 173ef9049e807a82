"""Work done over and over in a thread beside a kind, each step with its own limit."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torturing.figures import Figures
from torturing.patience import HangError


@contextmanager
def meanwhile(
    step: Callable[[], None], figures: Figures, pause: float, *, name: str, join: float = 60.0
) -> Iterator[None]:
    """Do *step* every *pause* seconds until the block ends. An OSError is an answer; a hang is an
    error, and ends it."""
    over = threading.Event()

    def body() -> None:
        while not over.wait(pause):
            try:
                step()
            except (OSError, ValueError):
                continue
            except HangError as error:
                figures.error(f"{name}: {error}")
                return
            except AssertionError as error:
                figures.error(f"{name}: {error}")

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(join)
        if thread.is_alive():
            figures.error(f"{name}: did not end")
