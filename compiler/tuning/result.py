"""Result of `tune`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compiler.profiling.attribution import layer_label
from compiler.reports.formatting import format_cost
from compiler.support.notebook import table_html
from compiler.tuning.session import Session
from compiler.tuning.state import SearchCost, TaskState
from compiler.tuning.tasks import Extracted
from targets.measure import TIMED, Measure, NetworkCost, Setting


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task: seconds per call with the rule's default and with the best config, and why it ended.

    Attributes:
        nodes: names of the model's nodes that the kernel computes, the main one first.
        of_limit: the lower bound relative to the best (1 is optimal); None if unknown.
        instead_of: the key of the task for which this one is an alternative; "" for the untuned one.
        fastest_seconds: `best_seconds` of the fastest alternative.
    """

    kernel: str
    rule: str
    key: str
    count: int
    default_seconds: float | None
    best_seconds: float | None
    config: Mapping[str, Any]
    trials: int
    failed: int
    curve: tuple[tuple[int, float], ...]
    finished: str
    of_limit: float | None = None
    instead_of: str = ""
    fastest_seconds: float | None = None
    nodes: tuple[str, ...] = ()

    @property
    def layer(self) -> str:
        """Name of the task in tables: the main node and the number of others, otherwise the kernel."""
        label = layer_label(self.nodes, self.kernel)
        return f"{label} by {self.rule}" if self.instead_of and self.nodes else label

    @property
    def gain(self) -> float:
        """Default over best."""
        return self.default_seconds / self.best_seconds if self.default_seconds and self.best_seconds else 1.0


@dataclass(frozen=True)
class NetworkResult:
    """Choices for a whole network: settings other than the defaults, and the costs of a run."""

    settings: Mapping[str, Setting]
    before: NetworkCost
    after: NetworkCost


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """Result of `tune`.

    Attributes:
        before, after: cost per run in kernels, untuned and tuned, in the unit of the measure.
        records: the file that was appended to.
        resumed: number of trials found in the records.
        network: settings chosen for the whole model, if an accelerator runs it; otherwise None.
        measure: the source of the times: a clock, or the model that computed them.
        method: "parallel" or "serial": see `compiler.records.records.Record`.
        history: (seconds since the start, trials, seconds of the model).
        predictions: (task, the cost model's score before measuring, seconds) of each proposed config.
        skipped: kernels that were not tuned, with reasons.
        interrupted: whether the user stopped it; measurements up to then are recorded.
        cost: trials, seconds and processor seconds of only the search.
        latency: seconds of a whole run of the model, untuned and tuned, measured alternately at the end; None if that
            was not done (on other devices) or nothing was gained.
    """

    tasks: tuple[TaskResult, ...]
    before: float
    after: float
    seconds: float
    trials: int
    resumed: int
    records: Path
    method: str
    measure: Measure = TIMED
    network: NetworkResult | None = None
    history: tuple[tuple[float, int, float], ...] = ()
    predictions: tuple[tuple[str, float, float], ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    interrupted: bool = False
    cost: SearchCost = field(default_factory=SearchCost)
    latency: tuple[float, float] | None = None

    def _cost(self, cost: float) -> str:
        return format_cost(cost, self.measure.unit)

    def __repr__(self) -> str:
        return (
            f"<TuneResult {len(self.tasks)} tasks, {self.trials} trials in {self.seconds:.0f} s: "
            f"{self._cost(self.before)} in kernels before, {self._cost(self.after)} after>"
        )

    def _repr_html_(self) -> str:
        rows = [(each.layer, each.rule, each.trials, f"{each.gain:.2f} times", each.finished) for each in self.tasks]
        title = f"{self.trials} trials: {self._cost(self.before)} in kernels, then {self._cost(self.after)}"
        return table_html(title, ("layer", "rule", "trials", "gain", "finished"), rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        tasks = [{**asdict(task), "gain": task.gain} for task in self.tasks]
        return {**asdict(self), "tasks": tasks, "records": str(self.records)}


class TuningInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a tuning. `result`: everything found so far; it is recorded."""

    def __init__(self, result: TuneResult) -> None:
        super().__init__()
        self.result = result


def result_of(session: Session, extracted: Extracted, path: Path, **ended: Any) -> TuneResult:
    """The result of a session; `ended` are the fields of `TuneResult` that describe how it ended."""
    tasks = tuple(_task_result(state) for state in session.states)
    progress = session.progress
    return TuneResult(
        tasks=tasks,
        before=sum(each.count * (each.default_seconds or 0.0) for each in tasks if not each.instead_of),
        after=sum(each.count * (each.fastest_seconds or 0.0) for each in tasks if not each.instead_of),
        seconds=progress.seconds,
        trials=progress.trials,
        records=path,
        method=session.method,
        measure=session.measure,
        history=tuple(progress.history),
        predictions=tuple(session.predictions),
        skipped=extracted.skipped,
        problems=tuple(session.problems),
        cost=session.cost,
        **ended,
    )


def _task_result(state: TaskState) -> TaskResult:
    config, seconds = state.best if state.best is not None else ({}, None)
    return TaskResult(
        kernel=state.task.names[0],
        rule=state.task.rule.name,
        key=state.task.key,
        count=state.task.count,
        default_seconds=state.default_seconds,
        best_seconds=seconds,
        config=dict(config),
        trials=state.trials,
        failed=state.failed,
        curve=tuple(state.curve),
        finished=state.finished,
        of_limit=state.of_limit,
        instead_of=state.task.instead_of,
        fastest_seconds=state.fastest_seconds if seconds is not None else None,
        nodes=state.task.nodes,
    )
