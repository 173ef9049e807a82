"""What a kind of fault is: the small protocol, and the combinations that each is run on."""

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # a world knows the combination that it is of
    from torturing.world import World


@dataclass(frozen=True, slots=True)
class Combo:
    """A transport and a driver."""

    transport: str
    driver: str

    def __str__(self) -> str:
        return f"{self.transport}/{self.driver}"


COMBOS = tuple(
    Combo(transport, driver) for transport in ("relay", "plain") for driver in ("sqlite", "xattr")
)


class LeftOutError(Exception):
    """What the kind needs is not there on this machine; the message says what."""


class Kind(Protocol):
    """One kind of fault; it keeps nothing between two runs, which may be at the same time. *name*
    is for ``--only``, *disturbs* one line for the table; *least* are the seconds that one round
    takes, *combos* those it makes sense on."""

    name: str
    disturbs: str
    least: float
    combos: tuple[Combo, ...]

    def run(self, world: "World", rng: random.Random, deadline: float) -> None:
        """Do faults until *deadline* (``time.monotonic()``), at least one round, and count in
        ``world.figures`` what was done and what is wrong. Every wait has a limit. Raises
        LeftOutError where it cannot run; any other exception is an error that is counted, so a
        plain AssertionError will do. The world is torn down by the caller, however this ends."""
