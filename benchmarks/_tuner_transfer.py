"""Number of trials of a search with an untrained cost model, and with one trained on other models' tasks.

Nothing is measured: the search chooses among recorded configs, and gets their recorded times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)
from benchmarks._tuner_ranking import by_task, description_of, load_samples, of_the_same_architecture
from compiler.tuning.cost_models import CostModel, Sample
from compiler.tuning.cost_models.roofline import RandomModel
from compiler.tuning.cost_models.xgboost import XgboostModel
from compiler.tuning.session import FIRST_BATCHES

_SHOWN = ("channels", "filters", "spatial", "kernel", "rows", "columns", "depth", "queries", "keys")
_NEAR = 0.95
_CHANCE = 0.12  # probability of a random trial, as in the evolutionary search


@dataclass(frozen=True)
class Row:
    """Trials until 95 % of the best recorded speed, mean over the seeds. `near`: number of configs that reach it.

    `cold` learns only from the task's own trials; `analytic` too, but starts with the analytic model's ranking.
    """

    machine: str
    rule: str
    workload: str
    configs: int
    near: int
    chance: float
    cold: float
    analytic: float
    pretrained: float


def measure(paths: Sequence[str | Path], least: int, seeds: int, folder: Path) -> Iterator[Row]:
    """Return one row per task with at least `least` recorded configs; the rule's default has no special role.

    The pre-trained model is trained on the other tasks in the records, and stored in `folder`.
    """
    groups = by_task(load_samples(paths))
    for key, group in sorted(groups.items()):
        if len(group) >= least:
            others = [sample for other, samples in groups.items() if other[0] != key[0] for sample in samples]
            yield _row(group, others, seeds, folder)


def measure_new_machines(paths: Sequence[str | Path], least: int, seeds: int, folder: Path) -> Iterator[Row]:
    """Like `measure` for each machine with modelled costs, as if it were new: the trained model has seen trials of
    other machines with its architecture, but none of this one."""
    groups = by_task(load_samples(paths))
    for key, group in sorted(groups.items(), key=lambda each: (each[0][1], each[0][0])):
        if len(group) >= least and group[0].measure.deterministic:
            others = of_the_same_architecture(groups, {key: group})
            yield _row(group, others, seeds, folder)


def _row(group: Sequence[Sample], training: Sequence[Sample], seeds: int, folder: Path) -> Row:
    """Return the row of one task; the trained model has learned from other samples."""
    stored = folder / "trained.ubj"
    target_seconds = min(sample.seconds or np.inf for sample in group) / _NEAR
    trained = XgboostModel()
    trained.update(training)
    trained.save(stored)
    subject = group[0].subject
    return Row(
        description_of(group[0]),
        subject.rule,
        _sizes(subject.workload),
        len(group),
        sum((sample.seconds or np.inf) <= target_seconds for sample in group),
        _mean(group, target_seconds, seeds, lambda seed: RandomModel(seed)),
        _mean(group, target_seconds, seeds, lambda seed: XgboostModel(seed=seed, start=RandomModel(seed))),
        _mean(group, target_seconds, seeds, lambda seed: XgboostModel(seed=seed)),
        _mean(group, target_seconds, seeds, lambda seed: XgboostModel(stored, seed=seed)),
    )


def _sizes(workload: object) -> str:
    """Return a short name of a workload."""
    found = {name: getattr(workload, name) for name in _SHOWN if hasattr(workload, name)}
    return " ".join(f"{name}={value}".replace(" ", "") for name, value in found.items())


def _mean(group: Sequence[Sample], wanted: float, seeds: int, make: Callable[[int], CostModel]) -> float:
    return float(np.mean([_trials_until(group, wanted, make(seed), seed) for seed in range(seeds)]))


def _trials_until(group: Sequence[Sample], target_seconds: float, model: CostModel, seed: int) -> int:
    """Return the number of configs tried, in batches, until one is fast enough."""
    generator = np.random.default_rng(seed)
    remaining, seen = list(group), list[Sample]()
    while remaining:
        scores = model.predict(group[0].subject, [sample.config for sample in remaining])
        ranked = [remaining[i] for i in np.lexsort((generator.random(len(remaining)), -scores))]
        for _ in range(min(FIRST_BATCHES, len(ranked))):
            place = generator.integers(len(ranked)) if generator.random() < _CHANCE else 0
            seen.append(ranked.pop(int(place)))
            if (seen[-1].seconds or np.inf) <= target_seconds:
                return len(seen)
        remaining = ranked
        model.update(seen)
    return len(seen)
