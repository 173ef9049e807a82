"""Every kind of fault, one module each. A new one is a module and a line here."""

from torturing.kind import Kind
from torturing.kinds.kills import Kills

KINDS: dict[str, Kind] = {kind.name: kind for kind in (Kills(),)}
"""By name, in the order of the table."""
