"""The report of a step of compression as a page."""

from __future__ import annotations

from compiler.compression.report import CompressionReport
from compiler.reports import Bar, BarChart, Column, Fact, Page, Section, Table, render
from compiler.reports.formatting import format_bytes, format_percent, format_seconds

_KINDS = ("changed", "as it was")


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
    facts.append(Fact("a run", format_seconds(after.seconds), f"before {format_seconds(before.seconds)}"))
    return facts
