"""Compare nets of families that the catalog lacks with ONNX Runtime and OpenVINO, each verified first.

    python -m benchmarks.families                        # all nets
    python -m benchmarks.families gcn tabular --threads 2
    python -m benchmarks.families --json families.json --markdown docs/measured.md
    python -m benchmarks.families recurrent --json families.json --keep --markdown docs/measured.md

A name is a net or a family. Each contestant runs in its own process, which is stopped while another one runs, after
warm-up; times are medians over rounds of the median in a round. A ratio is the time of the faster other runtime over
ours, above 1 if ours is faster, with the lowest and the highest of the rounds. Sizes that are dynamic in the file are
dynamic for all. Exit status: 1 if a net fails or its results differ, else 0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks._models import cache_folder
from benchmarks._race import Entry, Result, race
from benchmarks.families.registry import Net, Sizes, nets
from benchmarks.families.report import Row, print_table, write_markdown


def main() -> int:
    """Parse the arguments, time the contestants, print the table."""
    options = _parser().parse_args()
    console = Console()
    console.width = max(console.width, 140)
    if options.keep and not options.json:
        raise SystemExit("--keep is of --json FILE: name the file")
    rows = _read(options.from_json) if options.from_json else _measured(options, console)
    print_table(rows, options.threads, console)
    if options.json:
        _write(rows, options.json)
    if options.markdown:
        write_markdown(rows, options.threads, Path(options.markdown))
    return 1 if any(row.failure for row in rows) else 0


def _measured(options: Any, console: Console) -> list[Row]:
    """Measure the chosen nets, and write the rows after each net; with `--keep` together with the file's rows of other
    nets, all in the order of the registry."""
    rows = _read(options.json) if options.keep and Path(options.json).exists() else []
    places = {name: place for place, name in enumerate(nets())}
    for entry in _chosen(options.names):
        rows = [row for row in rows if row.net != entry.name] + _rows(entry, options, console)
        rows.sort(key=lambda row: places.get(row.net, len(places)))
        if options.json:
            _write(rows, options.json)
    return rows


def _read(file: str) -> list[Row]:
    return [Row(**each) for each in json.loads(Path(file).read_text())]


def _write(rows: Sequence[Row], file: str) -> None:
    Path(file).write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.families",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="nets or families; all when none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, default=0.4, help="length of a turn")
    parser.add_argument(
        "--statistic",
        choices=("median", "best", "cpu"),
        default="median",
        help="for a machine with other load: best run, or processor time (one thread)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows to this file, after each net")
    parser.add_argument("--keep", action="store_true", help="keep this file's rows of other nets")
    parser.add_argument("--from-json", metavar="FILE", help="print the rows of this file without timing anything")
    parser.add_argument("--markdown", metavar="FILE", help="replace the table in this file, between its two markers")
    return parser


def _chosen(names: Sequence[str]) -> list[Net]:
    known = nets()
    families = {each.family for each in known.values()}
    if unknown := set(names) - known.keys() - families:
        raise SystemExit(f"no net or family {', '.join(sorted(unknown))}; nets: {', '.join(known)}")
    return [each for each in known.values() if not names or each.name in names or each.family in names]


def _rows(entry: Net, options: Any, console: Console) -> list[Row]:
    """Return the rows of a net, one for each of its sizes, or one row with the reason if it cannot be compared."""
    console.print(f"[dim]{entry.name}: compiling", highlight=False)
    module = cache_folder() / "families" / f"{entry.name}-{options.threads}.twm"
    try:
        facts = _checked(entry, module, options.threads)
        rows = [_raced(entry, sizes, module, facts, options, console) for sizes in entry.sizes]
    except (RuntimeError, ModuleNotFoundError) as error:
        rows = [Row(entry.family, entry.name, {}, failure=str(error))]
    for row in rows:
        text = row.failure or f"{row.ours:.3f} ms, {row.peers}, ratio {row.ratio:.2f}"
        console.print(f"{entry.name} {dict(row.sizes)}: {text}", highlight=False, markup=False, style="dim")
    return rows


def _checked(entry: Net, module: Path, threads: int) -> dict[str, float]:
    entry.path()
    command = [sys.executable, "-m", "benchmarks.families.check", entry.name, str(module), str(threads)]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError((finished.stderr.strip().splitlines() or ["the compiler died"])[-1])
    facts: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return facts


def _raced(entry: Net, sizes: Sizes, module: Path, facts: dict[str, float], options: Any, console: Console) -> Row:
    task = entry.task(sizes)
    peers = [Entry("onnxruntime", task.path), Entry("openvino-dynamic" if entry.dynamic else "openvino", task.path)]
    entries = [Entry("tensorwright", module), *peers]
    ours, *rivals = race(task, entries, options.threads, options.rounds, options.seconds, report=console.print)
    if ours.label != "tensorwright" or not rivals:
        raise RuntimeError("a contestant could not run the net")
    statistic = options.statistic
    fastest = min(rivals, key=lambda each: each.seconds(statistic))
    pairs = [theirs / mine for theirs, mine in zip(fastest.medians(statistic), ours.medians(statistic), strict=True)]
    wrong = facts["difference"] > entry.tolerance
    return Row(
        entry.family,
        entry.name,
        dict(sizes),
        ours=ours.seconds(statistic) * 1e3,
        peers={_peer_name(each): each.seconds(statistic) * 1e3 for each in rivals},
        ratio=fastest.seconds(statistic) / ours.seconds(statistic),
        lowest=min(pairs),
        highest=max(pairs),
        difference=facts["difference"],
        compile_seconds=facts["processor_seconds"],
        failure=f"differs from ONNX Runtime by {facts['difference']:.1e}" if wrong else "",
    )


def _peer_name(result: Result) -> str:
    return result.label.removesuffix("-dynamic")


if __name__ == "__main__":
    sys.exit(main())
