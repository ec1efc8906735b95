"""Ranking of trials by cost models that were not trained on their tasks or machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)
from benchmarks._tuner_samples import samples_of
from compiler.records.folders import PRETRAINED
from compiler.records.library import read_current
from compiler.records.record_set import deduplicated
from compiler.records.records import Loaded
from compiler.tuning.cost_models import CostModel, Sample, cost_models
from compiler.tuning.cost_models.xgboost import XgboostModel

_FOLDS = 4
_APART = 0.05
_MIN_TRIALS = 12  # minimum trials per task for a meaningful order


@dataclass(frozen=True)
class Score:
    """Averages over tasks.

    `apart` counts pairs that differ by more than `_APART`, beyond noise; `regret` is the slowdown of the config ranked
    first relative to the best of the task.
    """

    model: str
    held_out: str
    tasks: int
    trials: int
    pairs: float
    apart: float
    top1: float
    top5: float
    regret: float


def load_samples(paths: Sequence[str | Path]) -> list[Sample]:
    """Load the successful trials from record files and folders, each config once."""
    loaded = Loaded()
    for path in paths:
        loaded.extend(read_current(path))
    alone = [record for record in loaded.records if not record.in_model]
    records = [record for record in deduplicated(alone) if record.cost is not None]
    return samples_of(records, loaded.targets)


def by_task(samples: Sequence[Sample]) -> dict[tuple[str, str], list[Sample]]:
    """Samples by task, and by machine and measure in one text."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.subject.task, source_of(sample)), []).append(sample)
    return groups


def source_of(sample: Sample) -> str:
    """Return the machine and the measure of a sample."""
    return f"{sample.measure.name} on {sample.subject.machine}"


def scores(paths: Sequence[str | Path]) -> list[Score]:
    """Score each model with tasks held out in turn, then with each machine held out except the one with most trials."""
    groups = by_task(load_samples(paths))
    machines = sorted(
        {machine for _, machine in groups}, key=lambda each: -sum(len(g) for k, g in groups.items() if k[1] == each)
    )
    main = {key: group for key, group in groups.items() if key[1] == machines[0]}
    results = []
    for name in ("xgboost", "roofline", "random"):
        results.append(_over_tasks(name, main))
    for machine in machines[1:]:
        held_out_groups = {key: group for key, group in groups.items() if key[1] == machine}
        train = of_the_same_architecture(groups, held_out_groups)
        held_out = description_of(next(iter(held_out_groups.values()))[0])
        for name in ("xgboost", "roofline", "random"):
            model = _trained(name, train)
            results.append(_score(name, held_out, [(group, model) for group in held_out_groups.values()]))
    return results


def of_the_same_architecture(
    groups: Mapping[tuple[str, str], list[Sample]], held: Mapping[tuple[str, str], list[Sample]]
) -> list[Sample]:
    """Return the trials of other machines with the same architecture, from which the shipped models learn."""
    sources = {source for _, source in held}
    architectures = {group[0].subject.machine.architecture for group in held.values()}
    return [
        sample
        for key, group in groups.items()
        if key[1] not in sources
        for sample in group
        if sample.subject.machine.architecture in architectures
    ]


def description_of(sample: Sample) -> str:
    """Format a machine and its measure."""
    machine = sample.subject.machine
    kind = sample.measure.name if sample.measure.deterministic else f"{machine.architecture}, timed"
    return f"{kind}, {machine.vector_bits}-bit vectors"


def _over_tasks(name: str, groups: dict[tuple[str, str], list[Sample]]) -> Score:
    keys = sorted(groups)
    order = np.random.default_rng(0).permutation(len(keys))
    pairs = []
    for fold in range(_FOLDS):
        held = {keys[i] for i in order[fold::_FOLDS]}
        model = _trained(name, [sample for key in keys if key not in held for sample in groups[key]])
        pairs += [(groups[key], model) for key in sorted(held)]
    return _score(name, f"tasks, in {_FOLDS} folds", pairs)


def _trained(name: str, samples: Sequence[Sample]) -> CostModel:
    model = cost_models.make(name)
    model.update(samples)
    return model


def _score(name: str, held_out: str, groups: Sequence[tuple[list[Sample], CostModel]]) -> Score:
    results = [_ranked(group, model) for group, model in groups if len(group) >= _MIN_TRIALS]
    pairs, apart, top1, top5, regret = (float(np.mean(column)) for column in zip(*results, strict=True))
    trials = sum(len(group) for group, _ in groups if len(group) >= _MIN_TRIALS)
    return Score(name, held_out, len(results), trials, pairs, apart, top1, top5, regret)


def _ranked(group: list[Sample], model: CostModel) -> tuple[float, float, float, float, float]:
    times = np.array([sample.seconds for sample in group])
    predicted = model.predict(group[0].subject, [sample.config for sample in group])
    order = np.argsort(-predicted, kind="stable")
    best = int(np.argmin(times))
    regret = float(times[order[0]] / times[best] - 1)
    pairs, apart = _in_order(times, predicted, 0.0), _in_order(times, predicted, _APART)
    return pairs, apart, float(best == order[0]), float(best in order[:5]), regret


def _in_order(times: NDArray[np.float64], predicted: NDArray[np.float64], gap: float) -> float:
    """Return the fraction of pairs more than `gap` apart that are ranked in the right order; ties count half."""
    faster = times[:, None] * (1 + gap) < times[None, :]
    if not faster.any():
        return 1.0
    above = predicted[:, None] > predicted[None, :]
    ties = predicted[:, None] == predicted[None, :]
    return float((above[faster].sum() + 0.5 * ties[faster].sum()) / faster.sum())


def pretrain(paths: Sequence[str | Path], folder: Path) -> Iterator[tuple[Path, int, int]]:
    """Train a model for each architecture on all of its records and store it; (file, trials, tasks)."""
    samples = load_samples(paths)
    for architecture in sorted({sample.subject.machine.architecture for sample in samples}):
        matching = [sample for sample in samples if sample.subject.machine.architecture == architecture]
        path = folder / PRETRAINED.format(architecture=architecture)
        model = XgboostModel()
        model.update(matching)
        model.save(path)
        yield path, len(matching), len(by_task(matching))
