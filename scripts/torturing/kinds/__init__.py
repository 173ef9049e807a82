"""Every kind of fault, one module each. A new one is a module and a line here."""

from torturing.kind import Kind
from torturing.kinds.disk import Disk
from torturing.kinds.glance import Glance
from torturing.kinds.index import Index
from torturing.kinds.kills import Kills
from torturing.kinds.limits import LimitsByMeasure
from torturing.kinds.notify import Notify
from torturing.kinds.origins import Origins
from torturing.kinds.power import Power
from torturing.kinds.steps import Steps
from torturing.kinds.tamper import Tamper
from torturing.kinds.user import User

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kills(),
        Steps(),
        Notify(),
        Disk(),
        LimitsByMeasure(),
        Tamper(),
        Index(),
        Origins(),
        User(),
        Glance(),
        Power(),
    )
}
"""By name, in the order of the table."""
