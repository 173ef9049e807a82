"""The commands that only look: ls, status."""

from collections.abc import Iterator

import click

from cachefs.cli.control import PLACES, Control, Record
from cachefs.cli.options import with_control, with_json
from cachefs.cli.output import local_time, one_line, show_json, show_json_lines
from cachefs.image import State
from cachefs.units import human_size


@click.command()
@click.option("--all", "everything", is_flag=True, help="Also what is queued, fetched or failed.")
@with_control
@with_json
def ls(control: Control, everything: bool, as_json: bool) -> None:
    """List the cached images."""
    states = tuple(PLACES) if everything else (State.CACHED,)
    records = (record for state in states for record in control.records(state))
    if as_json:
        show_json_lines(records)
        return
    for line in _table(records, everything):
        click.echo(line)


def _table(records: Iterator[Record], with_state: bool) -> Iterator[str]:
    """A line for each record as it comes.

    The ID is last, so that no column's width waits for the hundred thousandth image.
    """
    state = f"{'STATE':<11}" if with_state else ""
    yield f"{'SIZE':>11} {'HITS':>8}  {'LAST USED':<17}{'PINNED':<8}{state}ID"
    for record in records:
        size, hits = record.get("size"), record.get("hits")
        shown = human_size(size) if isinstance(size, int) else "-"
        pinned = "yes" if record.get("pinned") else "-"
        state = f"{record['state']!s:<11}" if with_state else ""
        error = record.get("error")
        yield (
            f"{shown:>11} {hits if isinstance(hits, int) else '-':>8}"
            f"  {local_time(record.get('last_accessed')):<17}{pinned:<8}{state}{record['image_id']}"
            + (f" ({one_line(str(error))})" if error else "")
        )


@click.command()
@with_control
@with_json
def status(control: Control, as_json: bool) -> None:
    """Show totals, limits, the sources' health and how the kernel is served."""
    document = control.status()
    if as_json:
        show_json(document)
        return
    for name, text in _summary(document):
        click.echo(f"{name:<10} {one_line(text)}")


def _summary(document: Record) -> Iterator[tuple[str, str]]:
    """The lines of ``status`` for people; what a daemon of another version lacks reads ``?``."""

    def shown(name: str) -> str:
        return str(document.get(name, "?"))

    yield "images", f"{shown('images')}, {_size(document.get('cached', document.get('size')))}"
    yield "max size", _size(document.get("max_size")) + _share(document)
    yield "min free", _size(document.get("min_free"))
    yield "hits", f"{shown('hits')}, misses {shown('misses')}, evictions {shown('evictions')}"
    queue = f"{shown('queued')} queued, {shown('fetching')} being fetched"
    yield "queue", f"{queue}, {shown('invalid')} failed"
    sources = document.get("sources")
    for source in sources if isinstance(sources, list) else []:
        if isinstance(source, dict):
            health = "healthy" if source.get("healthy") else f"failing: {source.get('error')}"
            if source.get("healthy") is None:
                health = "not asked yet"
            yield "source", f"{source.get('url')} ({health})"
    transport = document.get("transport")
    if isinstance(transport, dict):
        reads = "passthrough" if transport.get("passthrough") else "no passthrough"
        why = transport.get("why")
        yield "transport", f"{transport.get('mode')}, {reads}" + (f" ({why})" if why else "")
    worker = document.get("worker")
    if isinstance(worker, dict):
        since, restarts = local_time(worker.get("started")), worker.get("restarts")
        yield "worker", f"pid {worker.get('pid')}, since {since}, {restarts} restarts"


def _size(value: object) -> str:
    """A limit for people: bytes in units, a percentage as it is."""
    return human_size(value) if isinstance(value, int) else str("?" if value is None else value)


def _share(document: Record) -> str:
    size, limit = document.get("size"), document.get("max_size")
    if isinstance(size, int) and isinstance(limit, int) and limit > 0:
        return f" ({100 * size / limit:.0f}% used)"
    return ""
