"""Every file of ``control/``, declared once.

To add one, add an entry to :data:`TABLE` (a setting's is made of its own entry in
:mod:`cachefs.settings.table`); its mode, its node, its row in the README and its round
through the tests of all entries follow from it."""

import json
from collections.abc import Mapping
from typing import Any

from cachefs.control.files import ControlFile, Lines, Text
from cachefs.control.operator import Operator
from cachefs.control.records import RecordDirectory, Records
from cachefs.image import check_image_id
from cachefs.settings import Setting, Settings
from cachefs.units import parse_seconds
from cachefs.vfs.inodes import CONTROL_INODE, FIRST_CONTROL_FILE_INODE, NodeKind, Serials
from cachefs.vfs.nodes import FixedDirectory, Node
from cachefs.vfs.shown import Shown
from cachefs.vfs.tree import Nodes

Declaration = Text | Lines | Records


def _clean(operator: Operator, text: str) -> None:
    operator.clean(parse_seconds(text) if text and text[0].isdigit() else None)


def _json(document: Mapping[str, object]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _setting(setting: Setting[Any]) -> Text:
    """The control file of a setting."""
    return Text(
        setting.control,
        setting.help,
        show=lambda operator: f"{operator.setting(setting)}\n",
        store=(lambda operator, text: operator.change(setting, text)) if setting.runtime else None,
        syntax=setting.kind.syntax if setting.runtime else "",
    )


TABLE: tuple[Declaration, ...] = (
    Records(
        "queue",
        "Images waiting to be fetched.",
        ids=Operator.queued,
        record=Operator.queue_record,
        create=Operator.enqueue,
        remove=Operator.unqueue,
        store=Operator.set_priority,
        syntax="`touch ID` queues, `rm ID` unqueues, `cat ID` shows the record; a number written "
        "to ID is its priority, higher goes first",
    ),
    Lines(
        "enqueue",
        "The queue, one ID per line, in order.",
        show=lambda operator: "".join(f"{image_id}\n" for image_id in operator.queued()),
        check=check_image_id,
        store=Operator.enqueue_unless_there,
        syntax="write IDs, one per line",
    ),
    Records(
        "cached",
        "Complete, verified images.",
        page=lambda store, after, limit: store.page(after, limit),
        record=Operator.cached_record,
        remove=Operator.evict,
        syntax="`cat ID` shows the record, `rm ID` evicts (EBUSY if pinned)",
    ),
    Records(
        "incomplete",
        "Images being fetched, with their progress.",
        ids=Operator.incomplete,
        record=Operator.incomplete_record,
        remove=Operator.cancel,
        syntax="`cat ID` shows progress, `rm ID` cancels",
    ),
    Records(
        "invalid",
        "Images that could not be had, and why.",
        ids=Operator.invalid,
        record=Operator.invalid_record,
        remove=Operator.forget_failure,
        syntax="`cat ID` shows the `error`, `rm ID` forgets it, `touch queue/ID` tries again",
    ),
    Records(
        "pinned",
        "Images that are never evicted, and those that will not be once they are cached.",
        ids=Operator.pinned,
        record=Operator.pinned_record,
        create=Operator.pin,
        remove=Operator.unpin,
        syntax="`touch ID` pins an image, and queues one that is not cached; `rm ID` unpins",
    ),
    Text(
        "prune",
        "The last pruning: files and bytes dropped, JSON.",
        show=Operator.pruned,
        store=lambda operator, _: operator.prune(),
        syntax="write anything: evict what exceeds the limits, now",
    ),
    Text(
        "clean",
        "The last cleaning: invalid and stalled images removed, JSON.",
        show=Operator.cleaned,
        store=_clean,
        syntax="write anything, or a stall time in seconds: remove invalid and stalled images, now",
    ),
    *(_setting(each) for each in Settings.all() if each.control),
    Text(
        "size",
        "Bytes that count against `max_size`: cached, incomplete, invalid, removed and open still.",
        show=lambda operator: f"{operator.size()}\n",
    ),
    Text(
        "status",
        "Totals, limits, tasks, source health and transport, one JSON document.",
        show=lambda operator: _json(operator.status()),
    ),
    Text(
        "config",
        "The settings in effect and where each came from, secrets hidden, one JSON document.",
        # In ASCII: a path need not be UTF-8.
        show=lambda operator: json.dumps(operator.config(), indent=2) + "\n",
    ),
)


def build(
    operator: Operator, serials: Serials, gid: int | None, shown: Shown
) -> tuple[FixedDirectory, list[Node], dict[int, Nodes]]:
    """The directory ``control/``, its fixed nodes, and the nodes of its record directories by
    their kind.

    With *gid* the group may write what the owner may. *shown* keeps what is being read.
    """
    directory = FixedDirectory(CONTROL_INODE)
    nodes: list[Node] = [directory]
    kinds: dict[int, Nodes] = {}
    for number, declared in enumerate(TABLE):
        inode = FIRST_CONTROL_FILE_INODE + number
        node: Node
        if isinstance(declared, Records):
            kind = NodeKind.RECORD + len(kinds)
            node = RecordDirectory(
                declared, operator, inode=inode, kind=kind, serials=serials, gid=gid
            )
            kinds[kind] = Nodes(node.find, node.names.forget)
        else:
            node = ControlFile(declared, operator, inode, gid, shown)
        directory.add(declared.name, node)
        nodes.append(node)
    return directory, nodes, kinds
