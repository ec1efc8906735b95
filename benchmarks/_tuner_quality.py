"""Results of a fresh search with few trials, against the best on record."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)
import targets
from benchmarks._models import task_of
from benchmarks._tuner_ranking import load_samples
from compiler.frontends.source import import_model
from compiler.records.identity import target_description
from compiler.records.library import read_current
from compiler.records.records import Record, RecordWriter
from compiler.tuning.cost_models import CostModel
from compiler.tuning.cost_models.xgboost import XgboostModel
from compiler.tuning.measuring.messages import Effort
from compiler.tuning.measuring.pool import MeasurementPool, Trial
from compiler.tuning.search import searches
from compiler.tuning.session import Session
from compiler.tuning.state import Limits
from compiler.tuning.tasks import Task, extract_tasks
from schedules.config import Config

_NEAR = 0.95
_ROUNDS = 9
_EFFORT = Effort(0.02)


@dataclass(frozen=True)
class Row:
    """One task; seconds of the default, the found and the best recorded config, measured alternately.

    `cold` and `pretrained` are the trials until 95 % of the best, None if never.
    """

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
    best: dict[str, Record] = {}
    for record in records:
        if record.method == method and not record.in_model:
            known = best.get(record.task, record)
            best[record.task] = min(known, record, key=_seconds)
    samples = load_samples([options.records])
    rows: list[Row] = []
    with MeasurementPool(target, serial=method == "serial") as pool:
        for task in _chosen(options, target, best):
            console.print(f"[dim]{len(rows) + 1}: {task.rule.name} {task.names[0]}")
            others = [sample for sample in samples if sample.subject.task != task.key]
            trained = XgboostModel()
            trained.update(others)
            with tempfile.TemporaryDirectory() as folder:
                trained.save(Path(folder) / "model.json")
                warm = _search(task, target, pool, XgboostModel(Path(folder) / "model.json"), options.trials)
            cold = _search(task, target, pool, XgboostModel(), options.trials)
            configs = (task.default, warm.config, cold.config, Config.of(best[task.key].config))
            default, found, found_cold, recorded = _in_turns(pool, task, configs)
            fastest = min(default, found, found_cold, recorded)
            rows.append(
                Row(
                    task.rule.name,
                    task.names[0],
                    default,
                    found,
                    fastest,
                    # A search's own times differ from interleaved ones by other load on the machine.
                    cold.reached(cold.seconds * fastest / found_cold / _NEAR),
                    warm.reached(warm.seconds * fastest / found / _NEAR),
                )
            )
            console.print(f"[dim]   {rows[-1].best / rows[-1].found:.0%} of the best")
    return rows


def _method(options: Any, records: Any) -> str:
    if options.timing != "auto":
        return str(options.timing)
    methods = [record.method for record in records]
    return max(set(methods), key=methods.count)


def _seconds(record: Record) -> float:
    return math.inf if record.seconds is None else record.seconds


def _chosen(options: Any, target: targets.Target, best: dict[str, Record]) -> list[Task]:
    """Return the tasks with the most time, round-robin by kind, until there are enough."""
    kinds: dict[str, dict[str, Task]] = {}
    for name in options.models:
        model = task_of(name)
        mod = import_model(str(model.path), shapes=model.shapes).mod
        for task in extract_tasks(mod, target).tasks:
            if task.tunable and task.key in best:
                kinds.setdefault(task.rule.name, {})[task.key] = task
    queues = [sorted(each.values(), key=lambda task: -task.count * _seconds(best[task.key])) for each in kinds.values()]
    chosen: list[Task] = []
    while any(queues) and len(chosen) < options.tasks:
        for queue in queues:
            if queue and len(chosen) < options.tasks:
                chosen.append(queue.pop(0))
    return sorted(chosen, key=lambda task: task.rule.name)


def _in_turns(pool: MeasurementPool, task: Task, configs: Sequence[Config]) -> list[float]:
    """Return seconds of each config, interleaved: times of different minutes differ by the contents of the shared
    cache."""
    different = list(dict.fromkeys(configs))
    built = pool.trials([Trial(task.key, config) for config in different], lambda _trial, _outcome: None)
    outcomes = pool.compare(task.key, built, _EFFORT, _ROUNDS)
    seconds = {outcome.config: outcome.seconds or math.inf for outcome in outcomes}
    return [seconds[config] for config in configs]


@dataclass(frozen=True)
class _Found:
    """The fastest config of a search, its seconds, and (trials, best seconds so far)."""

    config: Config
    seconds: float
    curve: list[tuple[int, float]]

    def reached(self, seconds: float) -> int | None:
        return next((trials for trials, best in self.curve if best <= seconds), None)


def _search(task: Task, target: targets.Target, pool: MeasurementPool, model: CostModel, trials: int) -> _Found:
    with (
        tempfile.TemporaryDirectory() as folder,
        RecordWriter.in_folder(folder, target_description(target)) as writer,
    ):
        session = Session(target, [task], pool, writer, model, searches.make("evolutionary", seed=7))
        session.run(Limits(trials=trials))
        (state,) = session.states
        config, seconds = state.best or (task.default, math.inf)
        return _Found(config, seconds, list(state.curve))
