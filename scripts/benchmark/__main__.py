"""The command line of `scripts/bench`: which subjects, how many repetitions, table and JSON."""

import argparse
import fnmatch
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from benchmark import fetching, missing, opening, reading, scale
from benchmark.draw import draw
from benchmark.lab import Lab
from benchmark.measure import Row

SUBJECTS: dict[str, tuple[Callable[[Lab], Iterator[Row]], str]] = {
    "read": (reading.sequential, "a cached image from start to end, on both transports"),
    "random": (reading.at_random, "1 MiB and 4 KiB of it at random"),
    "page-cache": (reading.page_cache, "memory taken by one read image"),
    "opens": (opening.one_file, "open, read 4 KiB, close of one cached image"),
    "opens-64": (opening.round_robin, "the same, round 64 images"),
    "open-busy": (opening.while_fetching, "opening while another image is fetched"),
    "fetch": (fetching.unsummed, "touch queue/ID until cached/ID is there"),
    "fetch-sums": (fetching.summed, "the same, verified by a SHA256SUMS"),
    "first-byte": (missing.first_bytes, "the first 4 KiB of an image that is not cached"),
    "miss": (missing.sequential, "a sequential read of an image that is not cached"),
    "scale-sqlite": (scale.sqlite, "start, ls, eviction, memory with many cached images"),
    "scale-xattr": (scale.xattr, "the same with the xattr driver"),
}


def main() -> int:
    """Run the subjects asked for; 1 where a target is missed and ``--strict`` is given."""
    arguments = _parser().parse_args()
    chosen = [
        name
        for name in SUBJECTS
        if not arguments.subjects or any(fnmatch.fnmatch(name, p) for p in arguments.subjects)
    ]
    if not chosen:
        _parser().error(f"no subject is called so; there are: {' '.join(SUBJECTS)}")
    # Told to end, or left by its terminal, it takes its mounts and files with it.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: sys.exit(128 + got))
    rows: list[Row] = []
    print(HEAD)
    with (
        tempfile.TemporaryDirectory(prefix="cachefs-bench.", dir=arguments.dir) as directory,
        Lab(Path(directory), quick=arguments.quick, rounds=arguments.rounds) as lab,
    ):
        for name in chosen:
            for row in SUBJECTS[name][0](lab):
                rows.append(row)
                print(_line(row), flush=True)
    missed = [row.name for row in rows if row.met is False]
    print(f"\n{len(rows)} rows; missed: {' '.join(missed) or 'none'}")
    if arguments.svg:
        draw(rows, arguments.svg)
    if arguments.json:
        arguments.json.write_text(json.dumps(_document(rows, quick=arguments.quick), indent=2))
    return 1 if missed and arguments.strict else 0


HEAD = f"{'':34} {'cachefs':>14}   {'peer':30} {'ratio':>7}   target"


def _line(row: Row) -> str:
    ours = f"{row.ours:,.4g} {row.unit}"
    peer = "" if row.peers is None else f"{row.peers:,.4g} {row.peer}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    verdict = {None: "", True: "reached", False: "MISSED"}[row.met]
    return f"{row.name:34} {ours:>14}   {peer:30} {ratio:>7}   {row.target} {verdict}".rstrip()


def _document(rows: list[Row], *, quick: bool) -> dict[str, object]:
    return {
        "when": time.time(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "quick": quick,
        "rows": [asdict(row) | {"met": row.met} for row in rows],
    }


def _parser() -> argparse.ArgumentParser:
    subjects = "\n".join(f"  {name:14} {text}" for name, (_, text) in SUBJECTS.items())
    parser = argparse.ArgumentParser(
        "scripts/bench",
        description="Measures cachefs beside its peers.",
        epilog=f"subjects:\n{subjects}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "subjects", nargs="*", metavar="SUBJECT", help="shell patterns; default all"
    )
    parser.add_argument("--quick", action="store_true", help="smaller images, fewer rounds")
    parser.add_argument("--rounds", type=int, help="repetitions of each measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    parser.add_argument(
        "--svg", type=Path, metavar="FILE", help="draw them there: reading, opening"
    )
    parser.add_argument("--dir", default="/var/tmp", help="where to work; on a disk, 6 GB free")  # noqa: S108
    parser.add_argument("--strict", action="store_true", help="exit 1 where a target is missed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
