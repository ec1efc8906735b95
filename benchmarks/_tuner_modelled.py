"""Rank configs by a target's cost model and compare with recorded times, to validate the model of a processor on a
machine that can time kernels."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)
import targets
from benchmarks._models import task_of
from compiler.frontends.source import import_model
from compiler.records.identity import fingerprint, target_description
from compiler.records.library import read_current
from compiler.records.record_set import deduplicated
from compiler.records.records import Record
from compiler.tuning.measuring.estimating import EstimatingPool
from compiler.tuning.measuring.pool import Trial
from compiler.tuning.tasks import Task, extract_tasks
from schedules.config import Config
from targets.measure import TIMED, Measurer

_APART = 0.05
_MIN_CONFIGS = 8  # minimum configs per task for a meaningful order


@dataclass(frozen=True)
class Row:
    """One task.

    Attributes:
        pairs: fraction of pairs with times more than 5 % apart that the model orders correctly.
        correlation: rank correlation (Spearman).
        spread: slowdown of the median config relative to the fastest.
        loss: slowdown of the model's first choice relative to the fastest.
        default: slowdown of the default; None if it was not timed.
        factor: median of modelled over timed.
        gain: modelled gain of the model's fastest over the default; it is chosen beyond the measurer's margin.
    """

    kind: str
    kernel: str
    configs: int
    pairs: float
    correlation: float
    spread: float
    loss: float
    default: float | None
    factor: float
    gain: float | None


def compare(options: Any, console: Console) -> None:
    """Print the table, and write it as JSON."""
    target = targets.get(options.target)
    measurer = target.measurer()
    if measurer is None:
        raise SystemExit(f"target {target.name!r} has no measurer")
    rows = list(_rows(options, target, measurer, console))
    _print(rows, console, measurer)
    measure = measurer.measure()
    summary = {
        "target": target.describe()["engine_target"].get("mcpu", target.name),
        "measure": asdict(measure),
        "tasks": len(rows),
        "kinds": len({row.kind for row in rows}),
        "configs": sum(row.configs for row in rows),
        "pairs_in_order": float(np.mean([row.pairs for row in rows])),
        "median_loss": float(np.median([row.loss for row in rows])),
        "largest_loss": max(row.loss for row in rows),
        "rows": [asdict(row) for row in rows],
    }
    if options.json is not None:
        options.json.write_text(json.dumps(summary, indent=1) + "\n")


def _rows(options: Any, target: targets.Target, measurer: Measurer, console: Console) -> Iterator[Row]:
    timed = _timed(options.records, fingerprint(target_description(target)))
    tasks = {task.key: task for name in options.models for task in _tasks(name, target) if task.key in timed}
    chosen = _of_each_kind(list(tasks.values()), options.tasks)
    with EstimatingPool(target, measurer) as pool:
        for number, task in enumerate(chosen):
            console.print(f"[dim]{number + 1} of {len(chosen)}: {task.rule.name}, {task.names[0]}")
            pool.define(task.kernel)
            records = _some(timed[task.key], task, options.configs)
            trials = [Trial(task.key, Config.of(record.config)) for record in records]
            outcomes = pool.trials(trials, lambda _trial, _outcome: None)
            pairs = [
                (record.seconds, outcome.seconds, record)
                for record, outcome in zip(records, outcomes, strict=True)
                if record.seconds is not None and outcome.seconds is not None
            ]
            if len(pairs) >= _MIN_CONFIGS:
                yield _row(task, pairs)


def _timed(paths: Sequence[str], target: str) -> dict[str, list[Record]]:
    """Return a target's timed trials by task."""
    by_task: dict[str, list[Record]] = {}
    for path in paths:
        for record in deduplicated(read_current(path).records):
            if record.target == target and record.measure == TIMED and record.status == "ok" and not record.in_model:
                by_task.setdefault(record.task, []).append(record)
    return by_task


def _tasks(name: str, target: targets.Target) -> list[Task]:
    model = task_of(name)
    return extract_tasks(import_model(str(model.path), shapes=model.shapes).mod, target).tasks


def _of_each_kind(tasks: Sequence[Task], most: int) -> list[Task]:
    """Return a number of tasks, taken round-robin from each kind."""
    kinds: dict[str, list[Task]] = {}
    for task in tasks:
        kinds.setdefault(task.rule.name, []).append(task)
    chosen: list[Task] = []
    while len(chosen) < min(most, len(tasks)):
        for queue in kinds.values():
            if queue and len(chosen) < most:
                chosen.append(queue.pop(0))
    return sorted(chosen, key=lambda task: task.rule.name)


def _some(records: Sequence[Record], task: Task, most: int) -> list[Record]:
    """Return the record of the default config and randomly chosen others, among configs still in the space."""
    usable = [record for record in records if Config.of(record.config) in task.space]
    random.Random(0).shuffle(usable)
    usable.sort(key=lambda record: record.config != dict(task.default))
    return usable[:most]


def _row(task: Task, pairs: Sequence[tuple[float, float, Record]]) -> Row:
    times = np.array([seconds for seconds, _, _ in pairs])
    modelled = np.array([estimate for _, estimate, _ in pairs])
    default = [seconds for seconds, _, record in pairs if record.config == dict(task.default)]
    beside = [estimate for _, estimate, record in pairs if record.config == dict(task.default)]
    best = times.min()
    return Row(
        task.rule.name,
        task.names[0],
        len(pairs),
        _in_order(times, modelled),
        float(np.corrcoef(_ranks(times), _ranks(modelled))[0, 1]),
        float(np.median(times) / best - 1),
        float(times[np.argmin(modelled)] / best - 1),
        float(default[0] / best - 1) if default else None,
        float(np.median(modelled / times)),
        float(beside[0] / modelled.min()) if beside else None,
    )


def _in_order(times: NDArray[np.float64], modelled: NDArray[np.float64]) -> float:
    faster = times[:, None] * (1 + _APART) < times[None, :]
    if not faster.any():
        return 1.0
    return float((modelled[:, None] < modelled[None, :])[faster].mean())


def _ranks(values: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable")


def _print(rows: Sequence[Row], console: Console, measurer: Measurer) -> None:
    table = Table(title=f"{measurer.measure()} against times on record")
    headings = ("kind", "kernel", "configs", "pairs in order", "rank correlation", "median config", "model's best")
    for heading in (*headings, "default", "modelled / timed"):
        table.add_column(heading, justify="left" if heading in ("kind", "kernel") else "right")
    for row in rows:
        slower = ("" if each is None else f"+{each:.1%}" for each in (row.spread, row.loss, row.default))
        numbers = (str(row.configs), f"{row.pairs:.0%}", f"{row.correlation:.2f}", *slower, f"{row.factor:.2f}")
        table.add_row(row.kind, row.kernel, *numbers)
    console.print(table)
    pairs, losses = [row.pairs for row in rows], [row.loss for row in rows]
    console.print(
        f"{len(rows)} tasks of {len({row.kind for row in rows})} kinds, {sum(row.configs for row in rows)} configs: "
        f"{np.mean(pairs):.1%} of pairs in order (more than 5 % apart); the model's best is slower than the fastest by "
        f"{np.median(losses):.1%} (median), {max(losses):.1%} (most)"
    )
