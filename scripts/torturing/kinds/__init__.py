"""Every kind of fault, one module each. A new one is a module and a line here."""

from torturing.kind import Kind
from torturing.kinds.index import Index
from torturing.kinds.kills import Kills
from torturing.kinds.limits import LimitsByMeasure
from torturing.kinds.notify import Notify
from torturing.kinds.tamper import Tamper

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (Kills(), Notify(), LimitsByMeasure(), Tamper(), Index())
}
"""By name, in the order of the table."""
