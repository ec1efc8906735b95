"""Size, time and accuracy after each step of a recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compiler.compression.report import Measure, save_report
from compiler.reports.charts import Column, LineChart, Series, Table
from compiler.reports.formatting import format_bytes, format_percent, format_seconds
from compiler.reports.page import Fact, Page, Section, render
from compiler.support.notebook import table_html


@dataclass(frozen=True)
class Row:
    """The model after a step; `drop` against the model as it came, None where accuracy was not measured."""

    step: str
    measure: Measure
    drop: float | None


@dataclass(frozen=True)
class RecipeReport:
    """Report of a recipe.

    Attributes:
        rows: the model as it came, and after each step.
        reports: of each step, as the technique gives it.
        skipped: steps that found nothing to make smaller or faster, and why; the recipe went on without them.
    """

    target: str
    max_drop: float
    rows: tuple[Row, ...]
    reports: tuple[Any, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def pareto(self) -> list[Row]:
        """The rows that no other row beats in time and score both."""
        return [row for row in self.rows if not any(_beats(other.measure, row.measure) for other in self.rows)]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "target": self.target,
            "max_drop": self.max_drop,
            "rows": [asdict(row) for row in self.rows],
            "reports": [report.to_dict() for report in self.reports],
            "skipped": [{"step": step, "reason": reason} for step, reason in self.skipped],
        }

    def save(self, path: str | Path) -> None:
        """Write a page (.html) or the numbers (.json). Raises OptionError or StorageError."""
        save_report(path, lambda: recipe_page(self), self.to_dict)

    def __repr__(self) -> str:
        steps = " -> ".join(row.step for row in self.rows[1:])
        first, last = self.rows[0].measure, self.rows[-1].measure
        return (
            f"<RecipeReport {steps}: {format_bytes(first.bytes)} and {format_seconds(first.seconds)} per run before, "
            f"{format_bytes(last.bytes)} and {format_seconds(last.seconds)} after>"
        )

    def _repr_html_(self) -> str:
        rows = [
            (
                row.step,
                "-" if row.measure.score is None else row.measure.score,
                "-" if row.drop is None else format_percent(row.drop),
                format_bytes(row.measure.bytes),
                format_seconds(row.measure.seconds),
            )
            for row in self.rows
        ]
        skipped = "".join(f". Skipped {step}: {reason}" for step, reason in self.skipped)
        return table_html(
            f"Recipe for {self.target}{skipped}", ("step", "score", "drop", "parameters", "time per run"), rows
        )

    def __str__(self) -> str:
        lines = [f"{'step':<16}{'score':>12}{'drop':>10}{'parameters':>14}{'ms per run':>12}"]
        for row in self.rows:
            score = "-" if row.measure.score is None else f"{row.measure.score:.6g}"
            drop = "-" if row.drop is None else f"{row.drop:.3%}"
            size, time = f"{row.measure.bytes / 1e6:.3f} MB", f"{row.measure.seconds * 1e3:.3f}"
            lines.append(f"{row.step:<16}{score:>12}{drop:>10}{size:>14}{time:>12}")
        return "\n".join([*lines, *(f"skipped {step}: {reason}" for step, reason in self.skipped)])


def _beats(left: Measure, right: Measure) -> bool:
    scores = (left.score or 0.0, right.score or 0.0)
    no_worse = left.seconds <= right.seconds and scores[0] >= scores[1]
    return no_worse and (left.seconds < right.seconds or scores[0] > scores[1])


def recipe_page(report: RecipeReport) -> str:
    """The page as HTML text."""
    first, last = report.rows[0].measure, report.rows[-1].measure
    facts = [
        Fact("time per run", format_seconds(last.seconds), f"before {format_seconds(first.seconds)}"),
        Fact("parameters", format_bytes(last.bytes), f"before {format_bytes(first.bytes)}"),
    ]
    if last.score is not None and report.rows[-1].drop is not None:
        facts.append(Fact("score", f"{last.score:.6g}", f"before {first.score:.6g}"))
        facts.append(Fact("drop", format_percent(report.rows[-1].drop), f"limit {format_percent(report.max_drop)}"))
    sections = [Section("After each step", _table(report))]
    if last.score is not None:
        note = "Up and to the left is better; the front is what nothing beats in both."
        sections.insert(0, Section("Time and score", _pareto(report), note))
    subtitle = "; then ".join(row.step for row in report.rows[1:])
    return render(Page(f"Compression for {report.target}", subtitle, facts, sections, ("all", "best")))


def _pareto(report: RecipeReport) -> LineChart:
    def point(row: Row) -> tuple[float, float]:
        return row.measure.seconds * 1e3, row.measure.score or 0.0

    rows = sorted(report.rows, key=point)
    best = sorted(point(row) for row in report.pareto())
    return LineChart(
        [Series("every step", [point(row) for row in rows]), Series("Pareto front", best, line=True)],
        x_label="milliseconds per run",
        y_label="score",
        points=True,
        y_from_zero=False,
        labels=[row.step for row in rows],
    )


def _table(report: RecipeReport) -> Table:
    columns = [
        Column("step", "step"),
        Column("score", "score", number=True),
        Column("drop", "drop %", number=True),
        Column("bytes", "parameters", "B", number=True),
        Column("seconds", "time per run", "s", number=True),
        Column("best", "on the front"),
    ]
    front = report.pareto()
    rows = [
        {
            "step": row.step,
            "score": row.measure.score,
            "drop": None if row.drop is None else round(row.drop * 100, 3),
            "bytes": row.measure.bytes,
            "seconds": row.measure.seconds,
            "best": "yes" if row in front else "",
        }
        for row in report.rows
    ]
    return Table(columns, rows)
