"""The command line of `scripts/torture`: what is run, for how long, and what is shown of it."""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from torturing.figures import Figures, Run, write_readme
from torturing.kind import COMBOS, Combo, Kind, LeftOutError
from torturing.kinds import KINDS
from torturing.patience import HangError, limited
from torturing.processes import leftovers
from torturing.world import Options, World

GRACE = 240.0
"""Seconds that a kind may take beyond its share before it is given up as hanging."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A kind on a combination, and its share of the time in seconds; 0 where none is left."""

    kind: Kind
    combo: Combo
    seconds: float

    def __str__(self) -> str:
        return f"{self.kind.name}:{self.combo}"


def main() -> int:
    """Run what is asked for; 1 where there is an error, 2 for wrong usage."""
    arguments = _parser().parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    cells = plan(_chosen(arguments.only), arguments.minutes * 60 * arguments.jobs, seed)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: sys.exit(128 + got))
    print(f"seed {seed}, {len(cells)} cells, {arguments.minutes:g} minutes", flush=True)
    options = Options(arguments.kills, arguments.glance, install=arguments.minutes >= 5)
    rows = run_cells(cells, seed, options, arguments)
    run = Run(seed, arguments.minutes, arguments.jobs, rows)
    disturbs = {name: kind.disturbs for name, kind in KINDS.items() if _ran(name, rows)}
    print(f"\n{run.markdown(disturbs)}\n{run.errors} errors")
    if arguments.json:
        arguments.json.write_text(json.dumps(run.document(), indent=2))
    if arguments.write_readme:
        write_readme(arguments.write_readme, run.markdown(disturbs))
    return 1 if run.errors else 0


def plan(chosen: list[tuple[Kind, Combo]], seconds: float, seed: int) -> list[Cell]:
    """Divide the time: where it is too short for all, each kind gets its least time on as many
    combinations as fit, others in another run (by the seed); what is left is divided by need."""
    dice = random.Random(seed)
    turns: dict[tuple[Kind, Combo], int] = {}
    for kind in {kind.name: kind for kind, _ in chosen}.values():
        combos = [combo for other, combo in chosen if other is kind]
        dice.shuffle(combos)
        turns |= {(kind, combo): turn for turn, combo in enumerate(combos)}
    order = list(turns)
    dice.shuffle(order)
    order.sort(key=lambda pair: turns[pair])
    fits: set[tuple[Kind, Combo]] = set()
    left = seconds
    for kind, combo in order:
        if kind.least <= left or not fits:
            left -= kind.least
            fits.add((kind, combo))
    share = max(1.0, seconds / sum(kind.least for kind, _ in fits))
    return [
        Cell(kind, combo, kind.least * share if (kind, combo) in fits else 0.0)
        for kind, combo in chosen
    ]


def run_cells(
    cells: list[Cell], seed: int, options: Options, arguments: argparse.Namespace
) -> list[Figures]:
    """Run all, ``--jobs`` at a time; their figures, in order."""
    rows: dict[int, Figures] = {}
    waiting = iter(list(enumerate(cells)))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number, cell = next(waiting, (-1, None))
            if cell is None:
                return
            try:
                row = run_cell(cell, seed, options, arguments.dir, keep=arguments.keep)
            except Exception as error:  # noqa: BLE001 - the harness's own fault is none of success
                row = Figures(cell.kind.name, str(cell.combo))
                row.error(f"the harness: {type(error).__name__}: {error}")
                traceback.print_exc()
            with lock:
                rows[number] = row
                _say(row)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(arguments.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [rows[number] for number in range(len(cells))]
    if os.getpid() == 1:  # of a namespace of its own: whatever is left is of this run
        for text in leftovers():
            done[-1].error(f"a process stays: {text}")
    return done


def run_cell(cell: Cell, seed: int, options: Options, directory: Path, *, keep: bool) -> Figures:
    """Run a kind on a combination; every failure of it is in the figures, with how to have it
    again."""
    figures = Figures(cell.kind.name, str(cell.combo))
    if not cell.seconds:
        figures.left_out = "no time"
        return figures
    name = f"{cell.kind.name}-{cell.combo.transport}-{cell.combo.driver}"
    home = Path(tempfile.mkdtemp(prefix=f"torture-{name}-", dir=directory))
    began = time.monotonic()
    world = World(home / "world", cell.combo, f"{seed}/{cell}", figures, options)
    try:
        limited(
            lambda: cell.kind.run(world, random.Random(f"{seed}/{cell}"), began + cell.seconds),
            f"the kind {cell.kind.name}",
            cell.seconds + GRACE + options.kills * 15,
        )
    except LeftOutError as reason:
        figures.left_out = str(reason)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is counted, and the run goes on
        where = "".join(traceback.format_exception(error)[-3:])
        (home / "error.txt").write_text(where)
        short = str(error).splitlines()[0][:400] if str(error) else ""
        figures.error(f"{type(error).__name__}: {short}")
    finally:
        try:
            limited(world.close, "the teardown", 120)
        except HangError as error:
            figures.error(str(error))
    figures.seconds = time.monotonic() - began
    if figures.errors or keep:
        text = "\n".join(figures.errors)
        (home / "errors.txt").write_text(f"--seed {seed} --only {cell}\n{text}\n")
        if figures.errors:
            said = "".join(f"\n  {line}" for line in figures.errors)
            print(f"\nFAILED: --seed {seed} --only {cell}\n  evidence: {home}{said}", flush=True)
    else:
        world.remove()
        shutil.rmtree(home, ignore_errors=True)
    return figures


def _say(row: Figures) -> None:
    what = f"left out: {row.left_out}" if row.left_out else f"{len(row.errors)} errors"
    print(
        f"{row.kind:9} {row.combo:13} {row.seconds:6.1f} s {row.operations:8,} operations "
        f"{row.faults:6,} faults {row.checked:6,} images  longest {row.longest:5.1f} s  {what}",
        flush=True,
    )


def _ran(name: str, rows: list[Figures]) -> bool:
    return any(row.kind == name for row in rows)


def _chosen(only: list[str] | None) -> list[tuple[Kind, Combo]]:
    """The kinds and combinations that ``--only`` names: NAME, or NAME:TRANSPORT/DRIVER."""
    every = [(kind, combo) for kind in KINDS.values() for combo in kind.combos]
    if not only:
        return every
    names = {word for text in only for word in text.split(",")}
    chosen = [
        (kind, combo)
        for kind, combo in every
        if kind.name in names or f"{kind.name}:{combo}" in names
    ]
    known = {kind.name for kind, _ in chosen} | {f"{kind.name}:{combo}" for kind, combo in chosen}
    if unknown := names - known:
        _parser().error(f"no kind is called {', '.join(sorted(unknown))}")
    return chosen


def _parser() -> argparse.ArgumentParser:
    kinds = "\n".join(f"  {kind.name:9} {kind.disturbs}" for kind in KINDS.values())
    parser = argparse.ArgumentParser(
        "scripts/torture",
        description="Does faults of every kind to cachefs on real mounts; checks that it holds.",
        epilog=f"kinds, each on {', '.join(map(str, COMBOS))}:\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="how long, in all")
    parser.add_argument("--seed", type=int, help="have a run again; one is chosen and printed")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="a kind, or kind:transport/driver"
    )
    parser.add_argument("--jobs", type=int, default=1, help="so many at a time, each in its world")
    parser.add_argument("--kills", type=int, default=0, help="notify: so many kills, no time")
    parser.add_argument("--glance", type=Path, help="a virtual environment with Glance in it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument(
        "--write-readme", type=Path, metavar="README", help="put the table between its comments"
    )
    parser.add_argument("--keep", action="store_true", help="keep directories without errors, too")
    parser.add_argument("--dir", type=Path, default=Path(os.environ.get("TMPDIR", "/var/tmp")))  # noqa: S108 - a disk, as /tmp may not be
    return parser


if __name__ == "__main__":
    sys.exit(main())
