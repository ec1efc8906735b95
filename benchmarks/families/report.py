"""The table of `benchmarks.families`: on the terminal, and in a Markdown file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from compiler.reports.formatting import plural

BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
PEERS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass
class Row:
    """A net at one of its sizes; times in milliseconds, `compile_seconds` of processor time.

    `ratio` is the time of the faster other runtime over ours; `lowest` and `highest` are ratios of single rounds.
    `failure` is the reason for a missing time, or that results differ.
    """

    family: str
    net: str
    sizes: Mapping[str, int]
    ours: float = math.nan
    peers: Mapping[str, float] = field(default_factory=dict)
    ratio: float = math.nan
    lowest: float = math.nan
    highest: float = math.nan
    difference: float = math.nan
    compile_seconds: float = math.nan
    failure: str = ""

    def cells(self) -> list[str]:
        """The columns of `HEADINGS`."""
        sizes = ", ".join(f"{key} {value}" for key, value in self.sizes.items())
        if math.isnan(self.ours):
            return [self.family, self.net, sizes, *[""] * (len(PEERS) + 1), self.failure, "", "", ""]
        times = [f"{self.peers[peer]:.3g}" if peer in self.peers else "cannot run it" for peer in PEERS]
        numbers = [f"{self.ratio:.2f}", f"{self.lowest:.2f} to {self.highest:.2f}", f"{self.difference:.0e}"]
        return [self.family, self.net, sizes, f"{self.ours:.3g}", *times, *numbers, f"{self.compile_seconds:.0f}"]


HEADINGS = ("family", "net", "sizes", "ours ms", *PEERS.values(), "ratio", "of rounds", "differs", "compile s")


def print_table(rows: Sequence[Row], threads: int, console: Console) -> None:
    """Print the rows and the geometric mean of their ratios."""
    table = Table(title=f"{plural(threads, 'thread')}, milliseconds; ratio to the faster peer")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in HEADINGS[:3] else "right")
    for row in rows:
        color = "red" if row.failure or row.ratio < 0.9 else "yellow" if row.ratio < 1 else "green"
        cells = row.cells()
        cells[6] = f"[{color}]{cells[6]}"
        table.add_row(*cells)
    console.print(table)
    console.print(summary(rows))


def summary(rows: Sequence[Row]) -> str:
    """Summarize counts and the geometric mean."""
    ratios = [row.ratio for row in rows if not math.isnan(row.ratio)]
    if not ratios:
        return "nothing was timed"
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    behind = sum(ratio < 1 for ratio in ratios)
    nets = len({row.net for row in rows})
    return (
        f"{nets} nets, {len(ratios)} rows: geometric mean {mean:.2f}, lowest {min(ratios):.2f}, {behind} below 1.0, "
        f"{sum(bool(row.failure) for row in rows)} failed"
    )


def write_markdown(rows: Sequence[Row], threads: int, path: Path) -> None:
    """Replace the text between the two markers in a file.

    Raises ValueError when the file does not have them.
    """
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path} has no lines {BEGIN} and {END} to put the table between")
    lines = [_line(HEADINGS), _line(["---"] * len(HEADINGS)), *(_line(row.cells()) for row in rows)]
    title = f"{threads} thread{'s' if threads > 1 else ''}. {summary(rows)}."
    table = "\n".join([BEGIN, "", title, "", *lines, "", END])
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    path.write_text(before + table + after)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
