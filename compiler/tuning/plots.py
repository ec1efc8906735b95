"""The report page of a tuning run: latency over time and trials, the best of each task, predicted against measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from compiler.reports.charts import Bar, BarChart, LineChart, Series
from compiler.reports.formatting import format_cost, format_seconds
from compiler.reports.page import Fact, Page, Section, render

if TYPE_CHECKING:
    from compiler.tuning.result import TaskResult, TuneResult

_CURVES = 8  # number of tasks with curves: those with the largest share of the time


def tuning_page(result: TuneResult, name: str) -> str:
    """The page as HTML text."""
    gain = result.before / result.after if result.after else 1.0
    unit = result.measure.unit
    facts = [
        Fact("kernels, untuned", format_cost(result.before, unit)),
        Fact("kernels, tuned", format_cost(result.after, unit), f"{gain:.2f} times as fast"),
        Fact("trials", str(result.trials), f"{result.trials / max(result.seconds, 1e-9):.1f} per second"),
        Fact("time", format_seconds(result.seconds)),
    ]
    drawn = (*_latency(result), _curves(result), _gains(result), _limits(result), _predictions(result))
    sections = [each for each in drawn if each]
    return render(Page(f"Tuning of {name}", f"records: {result.records.name}", facts, sections))


def _latency(result: TuneResult) -> list[Section]:
    if not result.history:
        return []
    unit = result.measure.unit
    end = (result.seconds, result.trials, result.history[-1][2])
    points = [*result.history, end]
    by_time = Series("kernels of a run", [(seconds, latency) for seconds, _, latency in points])
    by_trials = Series("kernels of a run", [(float(trials), latency) for _, trials, latency in points])
    options = {
        "y_label": f"{'seconds' if unit == 's' else unit} of a run in kernels",
        "y_unit": "s" if unit == "s" else "",
        "steps": True,
        "y_from_zero": False,
    }
    return [
        Section("Latency against time", LineChart([by_time], x_label="time", x_unit="s", **options), narrow=True),  # type: ignore[arg-type]
        Section("Latency against trials", LineChart([by_trials], x_label="trials", **options), narrow=True),  # type: ignore[arg-type]
    ]


def _by_share(result: TuneResult) -> list[TaskResult]:
    tunable = [task for task in result.tasks if task.default_seconds and task.best_seconds and task.trials]
    return sorted(tunable, key=lambda task: -task.count * (task.default_seconds or 0.0))


def _curves(result: TuneResult) -> Section | None:
    series = []
    for task in _by_share(result)[:_CURVES]:
        default = task.default_seconds or 1.0
        points = [(float(trials), seconds / default) for trials, seconds in task.curve]
        last = points[-1][1] if points else 1.0
        series.append(Series(task.layer, [*points, (float(task.trials), last)]))
    if not series:
        return None
    chart = LineChart(series, "trials", "best over default", "", "%", steps=True, y_from_zero=False)
    return Section("Best of each task against its trials", chart, "The tasks with the largest share of the time.")


def _gains(result: TuneResult) -> Section | None:
    bars = []
    for task in _by_share(result):
        if task.instead_of:
            continue
        won = task.count * ((task.default_seconds or 0.0) - (task.fastest_seconds or 0.0))
        knobs = ", ".join(f"{name}={value}" for name, value in task.config.items())
        bars.append(
            Bar(task.layer, max(won, 0.0), text=f"{task.gain:.2f} x", details=(task.rule, knobs, task.finished))
        )
    return Section("Won in a run of the model", BarChart(bars, "s")) if bars else None


def _limits(result: TuneResult) -> Section | None:
    bars = [
        Bar(task.layer, 100 * task.of_limit, text=f"{task.of_limit:.0%}", details=(task.rule, task.finished))
        for task in _by_share(result)
        if task.of_limit is not None
    ]
    note = "Multiply-adds, or bytes from memory, at the rate of kernels that do nothing else."
    return Section("Share of the machine's limit", BarChart(bars, "%"), note) if bars else None


def _predictions(result: TuneResult) -> Section | None:
    best: dict[str, float] = {}
    for task, _, seconds in result.predictions:
        best[task] = min(best.get(task, math.inf), seconds)
    points = [(score, math.log2(best[task] / seconds)) for task, score, seconds in result.predictions]
    if not points:
        return None
    chart = LineChart(
        [Series("a config", points)],
        "predicted score",
        "measured: log2(best of the task / seconds)",
        points=True,
        y_from_zero=False,
    )
    return Section("Predicted against measured", chart, "Each config as it was scored before it was measured.")
