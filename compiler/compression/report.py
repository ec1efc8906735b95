"""The report of a compression step: changed layers, accuracy, size and time."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compiler.errors import OptionError, storage_errors
from compiler.reports.charts import Bar, BarChart, Column, Table
from compiler.reports.formatting import format_bytes, format_percent, format_seconds
from compiler.reports.page import Fact, Page, Section, render
from compiler.support.notebook import table_html

_KINDS = ("changed", "as it was")


@dataclass(frozen=True)
class LayerChange:
    """One layer.

    Attributes:
        change: the change as text; "" if there is none.
        before, after: numbers of nonzero weights, or of units for structured pruning.
        reason: the reason for leaving it unchanged, or a remark.
    """

    name: str
    change: str
    before: int
    after: int
    reason: str = ""


@dataclass(frozen=True)
class Measure:
    """Measurements of a model.

    Attributes:
        score: the result of `evaluate`, or the mean cosine similarity with the original outputs; None if not measured.
        bytes: bytes of the parameters as stored in a module.
        seconds: median processor time of a run, on the first calibration sample or on random inputs.
        kernels: number of kernels that each schedule rule serves.
    """

    score: float | None
    bytes: int
    seconds: float
    kernels: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CompressionReport:
    """Report of a technique.

    Attributes:
        technique: its name with the most important settings.
        drop: the relative loss of score; None if not measured. `max_drop` was its limit.
        notes: remarks, one sentence each.
    """

    technique: str
    target: str
    settings: dict[str, Any]
    before: Measure
    after: Measure
    drop: float | None
    max_drop: float
    layers: tuple[LayerChange, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write a page (.html) or the numbers (.json). Raises OptionError or StorageError."""
        save_report(path, lambda: compression_page(self), self.to_dict)

    def __repr__(self) -> str:
        return f"<CompressionReport {str(self).splitlines()[0]}>"

    def _repr_html_(self) -> str:
        first, *facts = str(self).splitlines()
        rows = [(each.name, each.change or "-", each.reason) for each in self.layers]
        return table_html(". ".join([first, *map(str.strip, facts)]), ("layer", "change", "note"), rows)

    def __str__(self) -> str:
        score = "score not measured (no evaluate= and no calibration=)"
        if self.before.score is not None and self.after.score is not None and self.drop is not None:
            score = (
                f"score {self.before.score:.6g}, then {self.after.score:.6g} (drop {self.drop:.3%}, limit"
                f" {self.max_drop:.3%})"
            )
        changed = sum(bool(layer.change) for layer in self.layers)
        lines = [
            f"{self.technique}: {changed} of {len(self.layers)} layers changed; {score}",
            *size_lines((self.before.bytes, self.after.bytes), (self.before.seconds, self.after.seconds)),
        ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def size_lines(sizes: tuple[int, int], seconds: tuple[float, float]) -> list[str]:
    """Two lines about bytes of parameters and seconds per run, measured here, before and after."""
    before, after = sizes
    share = f" ({after / before:.2f} times)" if before else ""
    return [
        f"parameters {before:,} bytes before, {after:,} after{share}",
        f"{time_text(*seconds)} (measured on this machine)",
    ]


def time_text(before: float, after: float) -> str:
    """Seconds per run of a model or a layer, measured or predicted."""
    share = f", {after / before:.2f} times" if before > 0 else ""
    return f"time per run {format_seconds(before)} before, {format_seconds(after)} after{share}"


def save_report(path: str | Path, page: Any, numbers: Any) -> None:
    """Write `page()` to an .html file or `numbers()` to a .json one. Raises OptionError or StorageError."""
    path = Path(path)
    if path.suffix not in (".html", ".json"):
        raise OptionError(f"{path}: a report is .html or .json")
    text = page() if path.suffix == ".html" else json.dumps(numbers(), indent=1)
    with storage_errors(path, "written"):
        path.write_text(text, encoding="utf-8")


def compression_page(report: CompressionReport) -> str:
    """The page as HTML text."""
    bars = [
        Bar(layer.name, layer.after / max(layer.before, 1), _kind(layer.change), f"{layer.after} of {layer.before}")
        for layer in report.layers
    ]
    sections = [Section("What is left of each layer", BarChart(bars))] if bars else []
    columns = [
        Column("name", "layer"),
        Column("kind", "kind"),
        Column("change", "what was done"),
        Column("before", "before", number=True),
        Column("after", "after", number=True),
        Column("reason", "reason"),
    ]
    rows = [{**vars(layer), "kind": _kind(layer.change)} for layer in report.layers]
    sections.append(Section("All layers", Table(columns, rows, category_key="kind")))
    settings = "; ".join(f"{name} {value}" for name, value in report.settings.items())
    return render(
        Page(
            title=f"{report.technique} for {report.target}",
            subtitle=". ".join([settings, *report.notes]),
            facts=_facts(report),
            sections=sections,
            categories=_KINDS,
        )
    )


def _kind(change: str) -> str:
    return _KINDS[0] if change else _KINDS[1]


def _facts(report: CompressionReport) -> list[Fact]:
    before, after = report.before, report.after
    facts = []
    if before.score is not None and after.score is not None and report.drop is not None:
        facts.append(Fact("score", f"{after.score:.6g}", f"before {before.score:.6g}"))
        facts.append(Fact("drop", format_percent(report.drop), f"limit {format_percent(report.max_drop)}"))
    facts.append(Fact("parameters", format_bytes(after.bytes), f"before {format_bytes(before.bytes)}"))
    facts.append(Fact("time per run", format_seconds(after.seconds), f"before {format_seconds(before.seconds)}"))
    return facts
