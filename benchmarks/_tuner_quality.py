"""What a fresh search finds in few trials, against the best on record."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import schedules.engine  # noqa: F401  (first, so that the engine loads without torch)
import targets
from benchmarks._models import task_of
from benchmarks._tuner_ranking import load_samples
from compiler.frontends.source import import_model
from compiler.tuning.cost_models import CostModel
from compiler.tuning.cost_models.xgboost import XgboostModel
from compiler.tuning.identity import target_description
from compiler.tuning.library import read_current
from compiler.tuning.measuring.lab import Lab
from compiler.tuning.records import RecordWriter
from compiler.tuning.search import searches
from compiler.tuning.session import Limits, Session
from compiler.tuning.tasks import Task, extract_tasks

_NEAR = 0.95


@dataclass(frozen=True)
class Row:
    """One task; times in seconds. `cold` and `pretrained` are the trials until 95 % of the best, None if never."""

    kind: str
    task: str
    default: float
    found: float
    best: float
    cold: int | None
    pretrained: int | None


def measure(options: Any, console: Console) -> list[Row]:
    """Search each chosen task twice, with a cold cost model and with one trained on the other tasks' records."""
    target = targets.get(options.target)
    records = [each for each in read_current(options.records).records if each.seconds is not None]
    method = _method(options, records)
    best: dict[str, float] = {}
    for record in records:
        if record.method == method:
            best[record.task] = min(best.get(record.task, math.inf), record.seconds or math.inf)
    samples = load_samples([options.records])
    rows: list[Row] = []
    with Lab(target, serial=method == "serial") as lab:
        for task in _chosen(options, target, best):
            console.print(f"[dim]{len(rows) + 1}: {task.rule.name} {task.names[0]}")
            others = [sample for sample in samples if sample.subject.task != task.key]
            trained = XgboostModel()
            trained.update(others)
            with tempfile.TemporaryDirectory() as folder:
                trained.save(Path(folder) / "model.json")
                warm = _search(task, target, lab, XgboostModel(Path(folder) / "model.json"), options.trials)
            cold = _search(task, target, lab, XgboostModel(), options.trials)
            known = min(best[task.key], warm.found, cold.found)
            rows.append(
                Row(
                    task.rule.name,
                    task.names[0],
                    warm.default,
                    warm.found,
                    known,
                    cold.reached(known / _NEAR),
                    warm.reached(known / _NEAR),
                )
            )
            console.print(f"[dim]   {rows[-1].best / rows[-1].found:.0%} of the best")
    return rows


def _method(options: Any, records: Any) -> str:
    if options.timing != "auto":
        return str(options.timing)
    methods = [record.method for record in records]
    return max(set(methods), key=methods.count)


def _chosen(options: Any, target: targets.Target, best: dict[str, float]) -> list[Task]:
    """The tasks with the most time of each kind in turn, until there are enough."""
    kinds: dict[str, dict[str, Task]] = {}
    for name in options.models:
        model = task_of(name)
        mod = import_model(str(model.path), shapes=model.shapes).mod
        for task in extract_tasks(mod, target).tasks:
            if task.tunable and task.key in best:
                kinds.setdefault(task.rule.name, {})[task.key] = task
    queues = [sorted(each.values(), key=lambda task: -task.count * best[task.key]) for each in kinds.values()]
    chosen: list[Task] = []
    while any(queues) and len(chosen) < options.tasks:
        for queue in queues:
            if queue and len(chosen) < options.tasks:
                chosen.append(queue.pop(0))
    return sorted(chosen, key=lambda task: task.rule.name)


@dataclass(frozen=True)
class _Found:
    default: float
    found: float
    curve: list[tuple[int, float]]

    def reached(self, seconds: float) -> int | None:
        return next((trials for trials, best in self.curve if best <= seconds), None)


def _search(task: Task, target: targets.Target, lab: Lab, model: CostModel, trials: int) -> _Found:
    with (
        tempfile.TemporaryDirectory() as folder,
        RecordWriter.in_folder(folder, target_description(target)) as writer,
    ):
        session = Session(target, [task], lab, writer, model, searches.make("evolutionary", seed=7))
        session.run(Limits(trials=trials))
        (state,) = session.states
        return _Found(state.default_seconds or math.inf, state.best_seconds, list(state.curve))
