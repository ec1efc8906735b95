"""Result of `search`, and its report: the front, the chosen net against the original, and the cost of each choice."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.compression.report import save_report
from compiler.compression.variants import VariantsReport, write_variants
from compiler.errors import OptionError
from compiler.frontends.imported_model import ImportedModel
from compiler.reports.charts import Column, LineChart, Mark, Series, Table
from compiler.reports.formatting import format_percent
from compiler.reports.page import Fact, Page, Section, render
from compiler.runtime import Module
from compiler.searching.explore import Explorer
from compiler.searching.finish import Finished, Finisher
from compiler.searching.front import Candidate, pareto
from compiler.searching.knobs import Option, steps_away
from compiler.searching.layer_table import Costs, excess
from compiler.searching.settings import check_budget
from compiler.support.accuracy import relative_drop
from compiler.support.notebook import table_html

_FAMILY = {"large": 1.0, "small": 0.0, "middle": 0.5}  # positions on the front within the limit


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        name: name of the searched model.
        report: the front, the chosen net compared with the original, and the cost of each choice.
        chosen: the candidate that was finished.
        model: the chosen net, for `tensorwright.compile` or another technique.
        module: the chosen net compiled for the target.
        candidates: all scored candidates.
    """

    name: str
    report: SearchReport
    chosen: Candidate
    model: ImportedModel
    module: Module
    _finisher: Finisher
    candidates: tuple[Candidate, ...]

    @property
    def front(self) -> list[Candidate]:
        """The candidates that no other beats in both score and the budget's first cost, the cheapest first."""
        return pareto(self.candidates, self.report.cost)

    def finish(self, candidate: Candidate) -> Finished:
        """Train, quantize, verify and compile another candidate. Raises UserError, like `search`."""
        return self._finisher.finish(candidate.config)

    def write_family(
        self,
        folder: str | os.PathLike[str],
        budgets: Mapping[str, Mapping[str, float]] | None = None,
        *,
        max_drop: float = 0.05,
    ) -> VariantsReport:
        """Write several sub-nets of the same shared weights as variants of one model, for a server.

        Args:
            folder: as in `tensorwright.write_variants`.
            budgets: budget of each variant, by its name; None: "small", "middle" and "large" are the cheapest net of
            the
                front that loses at most `max_drop`, the most expensive one, and the one halfway between, if they
                differ.
            max_drop: the fraction of the original net's score that a variant may lose.

        Raises:
            OptionError: a budget that no candidate meets.
            UserError: finishing or compiling failed.
        """
        chosen = self._family(max_drop) if budgets is None else self._within(budgets)
        models = {name: self.finish(candidate).model for name, candidate in chosen.items()}
        job = self._finisher.job
        return write_variants(
            job.model,
            folder,
            models,
            calibration=job.samples or None,
            evaluate=job.evaluate,
            max_drop=max_drop,
            target=job.target,
            threads=job.threads,
            progress=None,
        )

    def _family(self, max_drop: float) -> dict[str, Candidate]:
        original = self.report.original.score
        front = [each for each in self.front if original - each.score <= max_drop * abs(original)] or self.front[-1:]
        family: dict[str, Candidate] = {}
        for name, index in _FAMILY.items():  # the largest first: on a short front some are the same net
            candidate = front[round(index * (len(front) - 1))]
            if candidate not in family.values():
                family[name] = candidate
        return family

    def _within(self, budgets: Mapping[str, Mapping[str, float]]) -> dict[str, Candidate]:
        best = {}
        for name, given in budgets.items():
            limits = check_budget(given)
            if unknown := [limit for limit in limits if limit not in self.chosen.costs]:
                raise OptionError(f"budgets[{name!r}] has {unknown[0]!r}", "use what the search's own budget limits")
            fits = [each for each in self.candidates if excess(each.costs, limits) <= 0]
            if not fits:
                raise OptionError(f"no candidate meets budgets[{name!r}]", "allow more, or search with that budget")
            best[name] = max(fits, key=lambda each: (each.score, -each.costs[self.report.cost]))
        return best

    def __repr__(self) -> str:
        return f"<SearchResult {self.name!r}: {self.report!r}>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


SearchResult.__module__ = "tensorwright"  # public import path, for reprs, tracebacks and pickles


_MAX_ABLATIONS = 24
# Names of costs on the page.
_UNITS = {
    "ms": "ms of a run",
    "cycles": "cycles",
    "mb": "MB of parameters",
    "peak_mb": "MB of activations",
    "sram_kb": "KiB of SRAM",
}


@dataclass(frozen=True)
class Original:
    """The original net."""

    score: float
    costs: Costs


@dataclass(frozen=True)
class Spent:
    """Duration of a part of a search: seconds, and processor time of this process and of its ended workers."""

    seconds: float
    cpu_seconds: float

    @classmethod
    def so_far(cls) -> Spent:
        """Duration since the process began."""
        return cls(time.perf_counter(), sum(os.times()[:4]))

    def since(self, before: Spent) -> Spent:
        """Difference between two moments."""
        return Spent(self.seconds - before.seconds, self.cpu_seconds - before.cpu_seconds)


@dataclass(frozen=True)
class Decision:
    """One choice of the chosen net, and its effect.

    Attributes:
        whole: the original net's option.
        score: score lost by the choice, before fine-tuning: that of the net without it minus the net's.
        saved: saving of the budget's first cost; None if not measured.
    """

    name: str
    option: Option
    whole: Option
    score: float | None
    saved: float | None


@dataclass(frozen=True)
class SearchReport:
    """Report of a search.

    Attributes:
        cost: the name of the budget's first limit.
        measure: the source of kernels' times; "" if none were needed.
        table: number of kernels in the table.
        table_errors: |table - run| / run of the modules that were run as a whole after their kernels were known.
        front: (cost, score) of the candidates that no other beats, before fine-tuning, the cheapest first.
        points: (cost, score) of all candidates.
        score, costs: score and costs of the chosen net, finished.
        score_before: score of the chosen net before it was fine-tuned and quantized.
        steps: steps that finished it.
        training_seconds, search_seconds, finish_seconds: duration of training the shared weights, of the search (over
        all
            of its runs), and of finishing the chosen net.
        search_cpu_seconds: processor time of the search, including its worker processes.
    """

    target: str
    budget: dict[str, float]
    cost: str
    measure: str
    original: Original
    score: float
    score_before: float
    costs: Costs
    decisions: tuple[Decision, ...]
    steps: tuple[str, ...]
    front: tuple[tuple[float, float], ...]
    points: tuple[tuple[float, float], ...]
    table: int
    table_errors: tuple[float, ...]
    training_seconds: float
    search_seconds: float
    search_cpu_seconds: float
    finish_seconds: float

    @property
    def drop(self) -> float:
        """The fraction of the score that the chosen net lost relative to the original one."""
        return relative_drop(self.original.score, self.score)

    @property
    def table_error(self) -> float | None:
        """The median of `table_errors`."""
        return float(np.median(self.table_errors)) if self.table_errors else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**asdict(self), "drop": self.drop, "table_error": self.table_error}

    def save(self, path: str | Path) -> None:
        """Write a page (.html) or the numbers (.json). Raises OptionError or StorageError."""
        save_report(path, lambda: search_page(self), self.to_dict)

    def __repr__(self) -> str:
        return f"<SearchReport {str(self).splitlines()[0]}>"

    def _repr_html_(self) -> str:
        rows = [
            (each.name, str(each.option), str(each.whole), _number(each.score), _number(each.saved))
            for each in self.decisions
        ]
        columns = ("choice", "now", "before", "score it costs", f"{self.cost} it saves")
        return table_html(str(self).splitlines()[0], columns, rows)

    def __str__(self) -> str:
        limits = ", ".join(f"{name} {limit:g}" for name, limit in self.budget.items())
        spent = ", ".join(f"{each:.4g} {name} ({self.original.costs[name]:.4g})" for name, each in self.costs.items())
        lines = [
            f"search for {self.target} within {limits}: score {self.score:.6g} (original {self.original.score:.6g},"
            f" drop {self.drop:.3%}); {spent}",
            f"{len(self.points)} candidates in {self.search_seconds:.1f} s, processor {self.search_cpu_seconds:.1f} s;"
            f" shared training {self.training_seconds:.1f} s; finished by: {', '.join(self.steps) or 'nothing'}",
        ]
        if self.measure:
            error = "no module was run whole" if self.table_error is None else f"off by {self.table_error:.1%} (median)"
            lines.append(f"table of {self.table} kernels, {self.measure}: {error}")
        lines.append(f"{'choice':<40}{'now':>10}{'before':>10}{'score it costs':>16}{self.cost + ' it saves':>16}")
        for decision in self.decisions:
            lines.append(
                f"{decision.name:<40}{decision.option!s:>10}{decision.whole!s:>10}{_number(decision.score):>16}{_number(decision.saved):>16}"
            )
        return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def make_report(
    explorer: Explorer, chosen: Candidate, finished: Finished, original: Original, training: float, searching: Spent
) -> SearchReport:
    """The report of a search that has ended. Raises UserError if scoring fails."""
    cost, table = explorer.main, explorer.costs.table

    def points(candidates: Sequence[Candidate]) -> tuple[tuple[float, float], ...]:
        return tuple((each.costs[cost], each.score) for each in candidates)

    return SearchReport(
        target=explorer.costs.target.name,
        budget=dict(explorer.budget),
        cost=cost,
        measure="" if table is None else table.measure,
        original=original,
        score=finished.score,
        score_before=chosen.score,
        costs=finished.costs,
        decisions=_decisions(explorer, chosen),
        steps=finished.steps,
        front=points(pareto(explorer.candidates, cost)),
        points=points(explorer.candidates),
        table=0 if table is None else table.kernels,
        table_errors=() if table is None else tuple(table.errors()),
        training_seconds=training,
        search_seconds=searching.seconds,
        search_cpu_seconds=searching.cpu_seconds,
        finish_seconds=finished.seconds,
    )


def _decisions(explorer: Explorer, chosen: Candidate) -> tuple[Decision, ...]:
    """Each choice reverted separately; only the first ones if there are many."""
    full_config: Mapping[str, Option] = {knob.name: knob.options[-1] for knob in explorer.net.knobs}
    changed = list(steps_away(explorer.net.knobs, chosen.config).items())
    without = [{**chosen.config, name: full_config[name]} for name, _ in changed[:_MAX_ABLATIONS]]
    candidates = explorer.looked_up(without)
    return tuple(
        Decision(
            name,
            option,
            full_config[name],
            candidates[index].score - chosen.score if index < len(candidates) else None,
            candidates[index].costs[explorer.main] - chosen.costs[explorer.main] if index < len(candidates) else None,
        )
        for index, (name, option) in enumerate(changed)
    )


def search_page(report: SearchReport) -> str:
    """The page as HTML text."""
    facts = [Fact("score", f"{report.score:.6g}", f"original {report.original.score:.6g}")]
    facts.append(Fact("drop", format_percent(report.drop), f"{report.score_before:.6g} before it was finished"))
    for name, value in report.costs.items():
        limit = report.budget.get(name)
        facts.append(Fact(_UNITS[name], f"{value:.4g}", f"limit {limit:g}, original {report.original.costs[name]:.4g}"))
    if report.table_error is not None:
        facts.append(Fact("table of layers", format_percent(report.table_error), "median error against whole runs"))
    sections = [
        Section(
            "Front",
            _chart(report),
            "Scores before fine-tuning, except the original net's. Up and to the left is better.",
        ),
        Section("What each choice cost", _table(report), "Each choice reverted on its own, before fine-tuning."),
    ]
    steps = f"the chosen net was finished by: {', '.join(report.steps) or 'nothing'}"
    return render(Page(f"Search for {report.target}", steps, facts, sections, ("all", "best")))


def _chart(report: SearchReport) -> LineChart:
    chosen = (report.costs[report.cost], report.score)
    original = (report.original.costs[report.cost], report.original.score)
    return LineChart(
        [
            Series("every candidate", sorted(report.points)),
            Series("Pareto front", list(report.front), line=True),
            Series("chosen, finished", [chosen]),
            Series("original", [original]),
        ],
        x_label=_UNITS[report.cost],
        y_label="score",
        marks=[Mark("limit", report.budget[report.cost])],
        points=True,
        y_from_zero=False,
    )


def _table(report: SearchReport) -> Table:
    columns = [
        Column("name", "choice"),
        Column("option", "now"),
        Column("whole", "before"),
        Column("score", "score it costs", number=True),
        Column("saved", f"{_UNITS[report.cost]} it saves", number=True),
    ]
    rows = [
        {
            "name": decision.name,
            "option": str(decision.option),
            "whole": str(decision.whole),
            "score": decision.score,
            "saved": decision.saved,
        }
        for decision in report.decisions
    ]
    return Table(columns, rows)
