"""Measure the tuner: its trial rate, its results with few trials, and the ranking of its cost model.

    python -m benchmarks.tuner rate resnet18 --seconds 60
    python -m benchmarks.tuner quality resnet18 mobilenet_v2 --records logs
    python -m benchmarks.tuner ranking
    python -m benchmarks.tuner transfer
    python -m benchmarks.tuner modelled
    python -m benchmarks.tuner graph --json benchmarks/results/graph-zen5.json
    python -m benchmarks.tuner choices --json benchmarks/results/choices-zen5.json
    python -m benchmarks.tuner metaschedule resnet18 --seconds 600
    python -m benchmarks.tuner collect resnet18 minilm-128 --records logs
    python -m benchmarks.tuner ethos-u --output benchmarks/results/ethos-u-cycles.json
    python -m benchmarks.tuner pretrain --records tuning_logs/training logs --output tuning_logs

`quality` compares the result of a fresh search of 32 trials with the best on record, task by task, and the number of
trials that a cold and a pre-trained cost model need to reach 95 % of it. `ranking` trains on some tasks (or on one
machine) and ranks the trials of others. `transfer` replays records: the number of trials until 95 % of the best,
without and with a model trained on the other tasks. `modelled` orders timed configs by the target's processor model.
`graph` tunes and times whole models, `choices` bounds the gain of choices that are fixed by rules. `metaschedule` gives
TVM's own tuner and ours the same time. Records come from `tensorwright tune --records DIR` or, with many configs per
task, from `collect`, like those in tuning_logs/training.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import (
    _tuner_choices,
    _tuner_collect,
    _tuner_ethos_u,
    _tuner_graph,
    _tuner_metaschedule,
    _tuner_modelled,
    _tuner_quality,
    _tuner_ranking,
    _tuner_transfer,
)
from benchmarks._models import task_of

_TRAINING = ["tuning_logs/training"]


def main() -> int:
    """Parse the arguments and run one of the measurements."""
    options = _parser().parse_args()
    console = Console()
    console.width = max(console.width, 120)
    commands = {
        "rate": _rate,
        "quality": _quality,
        "ranking": _ranking,
        "transfer": _transfer,
        "metaschedule": _tuner_metaschedule.compare,
        "pretrain": _pretrain,
        "collect": _tuner_collect.collect,
        "modelled": _tuner_modelled.compare,
        "ethos-u": _tuner_ethos_u.compare,
        "graph": _tuner_graph.compare,
        "choices": _tuner_choices.compare,
    }
    commands[options.command](options, console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuner", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    rate = commands.add_parser("rate", help="trials per second of the whole loop")
    quality = commands.add_parser("quality", help="32 trials against the best on record")
    ranking = commands.add_parser("ranking", help="ranking of unseen tasks by the cost model")
    pretrain = commands.add_parser("pretrain", help="train the cost model of each architecture on its records")
    transfer = commands.add_parser("transfer", help="trials saved by a pre-trained cost model")
    metaschedule = commands.add_parser("metaschedule", help="TVM's own tuner with the same time")
    _tuner_ethos_u.add_options(commands.add_parser("ethos-u", help="cycles on Ethos-U, untuned and tuned"))
    _tuner_graph.add_options(
        commands.add_parser("graph", help="whole models untuned and tuned, compared with other runtimes")
    )
    _tuner_choices.add_options(commands.add_parser("choices", help="what rules fix: prefetching, threads, fusion"))
    collect = commands.add_parser("collect", help="measure and record configs for the cost model to learn from")
    collect.add_argument("--configs", type=int, default=64, help="of a task")
    collect.add_argument("--tasks", type=int, default=16, help="how many: the largest of each kind")
    collect.add_argument("--measure", default="auto", choices=("auto", "timed", "modelled"))
    collect.add_argument("--seed", type=int, default=0)
    for command in (rate, quality, metaschedule, collect):
        command.add_argument("models", nargs="+")
        command.add_argument("--target", default="host")
        command.add_argument("--timing", default="auto", choices=("auto", "parallel", "serial"))
    rate.add_argument("--seconds", type=float, default=60.0)
    metaschedule.add_argument("--seconds", type=float, default=600.0, help="for each tuner and model")
    metaschedule.add_argument(
        "--peer-trials",
        type=int,
        default=448,
        help="trials of MetaSchedule; its records at the end of the time are used",
    )
    metaschedule.add_argument("--keep", help="a folder for results, to resume from")
    metaschedule.add_argument(
        "--step", default="all", choices=("all", "ours", "metaschedule", "race"), help="one alone; needs --keep"
    )
    transfer.add_argument("--new-machines", action="store_true", help="hold out each machine with modelled records")
    transfer.add_argument("--least", type=int, default=30, help="minimum recorded configs per task")
    transfer.add_argument("--seeds", type=int, default=5, help="runs to average over")
    quality.add_argument("--trials", type=int, default=32)
    quality.add_argument("--tasks", type=int, default=12, help="how many: the largest of each kind")
    modelled = commands.add_parser("modelled", help="the processor model against recorded times")
    modelled.add_argument("models", nargs="*", default=["resnet18", "mobilenet_v2", "minilm-128"])
    modelled.add_argument("--target", default="host")
    modelled.add_argument("--tasks", type=int, default=15, help="number of tasks, round-robin by kind")
    modelled.add_argument("--configs", type=int, default=24, help="of a task")
    modelled.add_argument("--records", default=_TRAINING, nargs="+", help="record files or folders")
    for command in (modelled, ranking, transfer):
        command.add_argument("--json", type=Path, help="write the table there")
    for command in (quality, collect):
        command.add_argument("--records", required=True, help="a record file or folder")
    for command in (ranking, transfer, pretrain):
        command.add_argument("--records", default=_TRAINING, nargs="+", help="record files or folders")
    pretrain.add_argument("--output", required=True, help="a folder")
    return parser


def _rate(options: Any, console: Console) -> None:
    import tempfile

    import compiler

    parts = ("search", "build", "measure")
    table = Table(title="the search loop: propose, build, check, measure, record, learn; without start and end")
    for heading in ("model", "timing", "trials", "seconds", "trials/s", "processor s per trial", *parts, "failed"):
        table.add_column(heading, justify="left" if heading in ("model", "timing") else "right")
    for name in options.models:
        task = task_of(name)
        with tempfile.TemporaryDirectory() as folder:
            result = compiler.tune(
                task.path,
                options.target,
                shapes=task.shapes,
                time_budget=options.seconds,
                records=folder,
                timing=options.timing,
            )
        cost = result.cost
        used = [cost.processor[part] / max(cost.trials, 1) for part in parts]
        failed = sum(each.failed for each in result.tasks)
        numbers = (f"{cost.trials}", f"{cost.seconds:.0f}", f"{cost.trials / cost.seconds:.1f}")
        table.add_row(name, result.method, *numbers, f"{sum(used):.2f}", *(f"{part:.3f}" for part in used), str(failed))
    console.print(table)


def _quality(options: Any, console: Console) -> None:
    rows = _tuner_quality.measure(options, console)
    table = Table(title=f"{options.trials} trials of a fresh search against the best on record")
    for heading in (
        "kind",
        "task",
        "default us",
        "found us",
        "best us",
        "of best",
        "cold to 95 %",
        "pre-trained to 95 %",
    ):
        table.add_column(heading, justify="left" if heading in ("kind", "task") else "right")
    for row in rows:
        table.add_row(
            row.kind,
            row.task,
            f"{row.default * 1e6:.1f}",
            f"{row.found * 1e6:.1f}",
            f"{row.best * 1e6:.1f}",
            f"{row.best / row.found:.0%}",
            _count(row.cold, options.trials),
            _count(row.pretrained, options.trials),
        )
    console.print(table)
    reached = sum(row.best / row.found >= 0.9 for row in rows)
    console.print(f"90 % of the best within {options.trials} trials: {reached} of {len(rows)} tasks")


def _count(trials: int | None, most: int) -> str:
    return f"> {most}" if trials is None else str(trials)


def _ranking(options: Any, console: Console) -> None:
    table = Table(title="ranking of trials the model was not trained on; averages over tasks")
    for heading in (
        "model",
        "held out",
        "tasks",
        "trials",
        "pairs in order",
        "apart",
        "top-1 recall",
        "top-5 recall",
        "regret",
    ):
        table.add_column(heading, justify="left" if heading in ("model", "held out") else "right")
    found = _tuner_ranking.scores(options.records)
    _save(options, [asdict(score) for score in found])
    for score in found:
        table.add_row(
            score.model,
            score.held_out,
            str(score.tasks),
            str(score.trials),
            f"{score.pairs:.1%}",
            f"{score.apart:.1%}",
            f"{score.top1:.0%}",
            f"{score.top5:.0%}",
            f"{score.regret:.1%}",
        )
    console.print(table)
    console.print(
        "apart: pairs that differ by more than 5 %; top-k recall: the best trial is among the k ranked first;"
    )
    console.print("regret: how much slower than the best the first one is")


def _transfer(options: Any, console: Console) -> None:
    import tempfile

    import numpy as np

    table = Table(title="trials until 95 % of the best on record, mean over the seeds")
    measure = _tuner_transfer.measure_new_machines if options.new_machines else _tuner_transfer.measure
    for heading in (
        "machine",
        "rule",
        "workload",
        "configs",
        "of them so good",
        "chance",
        "cold",
        "analytic",
        "pre-trained",
    ):
        table.add_column(heading, justify="left" if heading in ("machine", "rule", "workload") else "right")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(options.records, options.least, options.seeds, Path(folder)):
            numbers = (f"{each:.1f}" for each in (row.chance, row.cold, row.analytic, row.pretrained))
            table.add_row(row.machine, row.rule, row.workload, str(row.configs), str(row.near), *numbers)
            rows.append(row)
    console.print(table)
    if rows:
        trials = [(row.chance, row.cold, row.analytic, row.pretrained) for row in rows]
        means = ", ".join(f"{each:.1f}" for each in np.mean(trials, axis=0))
        console.print(f"{len(rows)} tasks, mean trials: {means}")
        summary = {"all": _over_cold(rows), "not_all_configs_near": _over_cold([r for r in rows if r.near < r.configs])}
        for name, values in summary.items():
            console.print(f"{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in values.items()))
        _save(options, {**summary, "rows": [asdict(row) for row in rows]})


def _over_cold(rows: Sequence[_tuner_transfer.Row]) -> dict[str, float]:
    """Return trials relative to those of an untrained model, geometric means. If every config is near the best, any
    first trial suffices."""
    import numpy as np

    def mean(ratios: Sequence[float]) -> float:
        return float(np.exp(np.mean(np.log(ratios))))

    pretrained = mean([row.pretrained / row.cold for row in rows])
    analytic = mean([row.analytic / row.cold for row in rows])
    return {"tasks": len(rows), "pretrained_over_cold": pretrained, "analytic_over_cold": analytic}


def _save(options: Any, table: Any) -> None:
    if options.json is not None:
        options.json.write_text(json.dumps(table, indent=1) + "\n")


def _pretrain(options: Any, console: Console) -> None:
    for path, trials, tasks in _tuner_ranking.pretrain(options.records, Path(options.output)):
        size = path.stat().st_size
        console.print(f"trained on {trials} trials of {tasks} tasks: {path}, {size / 1e3:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
