"""Collect training data for cost models: a number of configs per task, half of them random, half near the best."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)
import targets
from benchmarks._models import task_of
from compiler.frontends.source import import_model
from compiler.records.identity import target_description
from compiler.records.library import read_current
from compiler.records.records import RecordWriter
from compiler.tuning.cost_models.roofline import RandomModel
from compiler.tuning.measuring.estimating import EstimatingPool
from compiler.tuning.measuring.pool import MeasurementPool
from compiler.tuning.search.evolutionary import RandomSearch, neighbour
from compiler.tuning.session import Session
from compiler.tuning.settings import TuningOptions
from compiler.tuning.state import TaskState
from compiler.tuning.tasks import Task, extract_tasks
from compiler.tuning.tune import choose_measurer
from schedules.config import Config

_PARENTS = 8


def collect(options: Any, console: Console) -> None:
    """Measure and record; existing records in the folder count."""
    target = targets.get(options.target)
    tasks = _largest(options, target)
    with (
        RecordWriter.in_folder(options.records, target_description(target)) as writer,
        _pool(target, options) as pool,
    ):
        search = RandomSearch(options.seed)
        session = Session(target, tasks, pool, writer, RandomModel(options.seed), search)
        session.resume(read_current(writer.path).records)
        generator = random.Random(options.seed)

        def by_chance(configs: Sequence[Config]) -> NDArray[np.float64]:
            return np.zeros(len(configs))

        for number, state in enumerate(session.states):
            console.print(f"[dim]{number + 1} of {len(tasks)}: {state.task.names[0]}, {state.task.rule.name}")
            session.try_configs(state, [state.task.default])
            missing = options.configs - len(state.results)
            session.try_configs(state, search.propose(state, by_chance, max(0, missing // 2)))
            session.try_configs(state, _near_best(state, options.configs - len(state.results), generator))


def _pool(target: targets.Target, options: Any) -> MeasurementPool | EstimatingPool:
    measurer = choose_measurer(target, TuningOptions(measure=options.measure))
    if measurer is not None:
        return EstimatingPool(target, measurer)
    return MeasurementPool(target, serial=options.timing != "parallel")


def _near_best(state: TaskState, count: int, generator: random.Random) -> list[Config]:
    """Return configs that differ from one of the fastest in one or two knobs."""
    measured = sorted((seconds, config.values_) for config, seconds in state.results.items() if seconds is not None)
    parents = [Config(values) for _, values in measured[:_PARENTS]]
    configs: dict[Config, None] = {}
    for _ in range(20 * count if parents else 0):
        config = neighbour(state.task.space, generator.choice(parents), generator)
        if config is not None and config not in state.results:
            configs[config] = None
        if len(configs) == count:
            break
    return list(configs)


def _largest(options: Any, target: targets.Target) -> list[Task]:
    """Return the tasks with the most operations, round-robin by kind."""
    kinds: dict[str, dict[str, Task]] = {}
    for name in options.models:
        model = task_of(name)
        mod = import_model(str(model.path), shapes=model.shapes).mod
        for task in extract_tasks(mod, target).tasks:
            if task.tunable:
                kinds.setdefault(task.rule.name, {})[task.key] = task
    queues = [sorted(each.values(), key=lambda task: -task.count * task.operations) for each in kinds.values()]
    chosen: list[Task] = []
    while any(queues) and len(chosen) < options.tasks:
        for queue in queues:
            if queue and len(chosen) < options.tasks:
                chosen.append(queue.pop(0))
    return chosen
