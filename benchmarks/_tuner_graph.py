"""Untuned and tuned latency of whole models that were not used to design the defaults."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import compiler
from benchmarks._models import Task, task_of
from benchmarks._race import Entry, Result, race
from benchmarks.compare import measured_peak
from benchmarks.families.registry import nets
from compiler.reports.formatting import plural
from compiler.tuning.result import TaskResult, TuneResult

NETS = (
    "mobilenet_v3_large",
    "efficientnet_v2_s",
    "regnet_y_400mf",
    "swin_t",
    "convnext_tiny",
    "yolov8n",
    "whisper-encoder",
    "unet",
)
_UNTUNED, _TUNED, _OTHER = "untuned", "tuned", "other"


@dataclass(frozen=True)
class Row:
    """One net; times are milliseconds of the best run.

    Attributes:
        other: time of a module built by another version, if given.
        tuned: None if tuning found nothing faster in the model: the tuned module is the untuned one.
        gain: untuned over tuned, the geometric mean over turns; 1 if they are the same module.
        spread: relative value of two standard errors of that mean.
        improvement: other over untuned, computed like `gain`.
        bound: time of the model's arithmetic at the machine's peak; Winograd convolutions need less.
        peers: times of other runtimes.
        trials: number of measured configurations.
        kernels: the sum over kernels, each in isolation with its default.
        fastest_kernels: the sum with each kernel's fastest measured configuration of any algorithm; `kernels` over this
            bounds the gain of joint choices, except for conversions between layouts.
    """

    model: str
    other: float | None
    untuned: float
    tuned: float | None
    gain: float
    spread: float
    improvement: float | None
    bound: float
    peers: dict[str, float]
    trials: int
    kernels: float | None = None
    fastest_kernels: float | None = None

    @property
    def most(self) -> float | None:
        """The gain if each kernel were as fast as its fastest configuration."""
        return self.kernels / self.fastest_kernels if self.kernels and self.fastest_kernels else None


class _Budget:
    """Divides the remaining time evenly among the remaining nets; work other than tuning is estimated by its last
    duration."""

    def __init__(self, options: Any) -> None:
        self._left, self._fixed = len(options.models), options.seconds
        self._end = time.monotonic() + options.budget if options.budget else None
        self._others, self._began, self._given = 40.0, 0.0, 0.0

    def seconds(self) -> float:
        """Return the seconds for tuning the next net; 0 to skip tuning."""
        now = time.monotonic()
        if self._began:
            self._others = max(now - self._began - self._given, 1.0)
        left, self._left = self._left, self._left - 1
        share = self._fixed if self._end is None else (self._end - now) / left - self._others
        self._began, self._given = now, max(0.0, min(share, self._fixed))
        return self._given


def add_options(parser: Any) -> None:
    """Add command-line options."""
    parser.add_argument("models", nargs="*", default=list(NETS), help="nets of the catalog or of families")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="seconds to tune each net; 0: only use existing records"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=900.0,
        help="seconds for all nets including comparisons, which may shorten the tuning of each; 0: no limit",
    )
    parser.add_argument("--records", help="a folder of records to continue from and append to")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6, help="turns of each contestant")
    parser.add_argument("--turn", type=float, default=0.7, help="seconds of a turn")
    parser.add_argument("--timing", default="auto", choices=("auto", "parallel", "serial"))
    parser.add_argument("--against", type=Path, help="a folder of modules NAME.twm, built by another version")
    parser.add_argument("--keep", type=Path, help="a folder to write the untuned modules to")
    parser.add_argument("--no-peers", action="store_true", help="time only our own modules")
    parser.add_argument("--json", type=Path, help="write the table to this file; rows of other nets in it are kept")


def compare(options: Any, console: Console) -> None:
    """Tune, time, print and write. A failing net only loses its row; the exit code is then 1."""
    peak = measured_peak(options.threads, "host")
    budget, rows, failed = _Budget(options), list[Row](), list[str]()
    for task in tasks_named(options.models):
        try:
            rows.append(_row(task, options, peak, budget.seconds(), console))
        except compiler.TensorwrightError as error:
            failed.append(task.name)
            console.print(f"[red]{task.name}: {error}")
        if options.json:
            _store(rows, options)
    _print(rows, console)
    if failed:
        console.print(f"[red]no result: {', '.join(failed)}")
        raise SystemExit(1)


def _store(rows: Sequence[Row], options: Any) -> None:
    """Write the rows; rows of other nets in the file are kept."""
    stored = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    fresh = {row.model for row in rows}
    every = [*(each for each in stored if each["model"] not in fresh), *(asdict(row) for row in rows)]
    summary = {
        "gain": _mean([each["gain"] for each in every]),
        "slower": [each["model"] for each in every if _slower(each)],
    }
    options.json.write_text(json.dumps({"threads": options.threads, **summary, "rows": every}, indent=1) + "\n")


def _slower(row: Mapping[str, Any]) -> bool:
    """True if a tuned module is slower than the untuned one beyond noise."""
    return bool(row["gain"] * (1 + row["spread"]) < 1)


def _mean(ratios: Sequence[float]) -> float | None:
    """Return the geometric mean."""
    return math.exp(statistics.fmean(math.log(each) for each in ratios)) if ratios else None


def tasks_named(names: Sequence[str]) -> Iterator[Task]:
    """Return the tasks of nets in the catalog or in families."""
    families = nets()
    for name in names:
        if name not in families:
            yield task_of(name)
            continue
        net = families[name]
        shapes = {key: array.shape for key, array in net.sample(0, net.sizes[0]).items()}
        yield replace(net.task(net.sizes[0]), name=name, shapes=shapes)


def _row(task: Task, options: Any, peak: float, seconds: float, console: Console) -> Row:
    console.print(f"[dim]{task.name}: {seconds:.0f} s to tune")
    with tempfile.TemporaryDirectory() as folder:
        records = options.records or folder
        result = _tune(task, options, seconds, records, console) if seconds else None
        untuned = _compiled(task, options, False, (options.keep or Path(folder)) / f"{task.name}.twm")
        unchanged = result is not None and result.latency is None and not options.records
        tuned = None if unchanged else _tuned(task, options, records, folder)
        results = _race(task, options, untuned, tuned, console)
    baseline = results[f"tensorwright {_UNTUNED}"]
    other, chosen = results.get(f"tensorwright {_OTHER}"), results.get(f"tensorwright {_TUNED}")
    gain, spread = (1.0, 0.0) if chosen is None else _ratio(baseline, chosen)
    return Row(
        task.name,
        None if other is None else _milliseconds(other),
        _milliseconds(baseline),
        None if chosen is None else _milliseconds(chosen),
        gain,
        spread,
        None if other is None else _ratio(other, baseline)[0],
        1e3 * task.operations / peak,
        {label: _milliseconds(each) for label, each in results.items() if not label.startswith("tensorwright")},
        0 if result is None else result.trials,
        None if result is None else 1e3 * result.before,
        None if result is None else 1e3 * fastest_seconds(result.tasks),
    )


def fastest_seconds(tasks: Sequence[TaskResult]) -> float:
    """Return the seconds of a run in kernels, each with the fastest measured configuration of any algorithm."""
    alone: dict[str, list[float]] = {}
    for task in tasks:
        alone.setdefault(task.instead_of or task.key, []).extend(seconds for _, seconds in task.curve)
    own = [task for task in tasks if not task.instead_of]
    return sum(task.count * min(alone[task.key], default=0.0) for task in own)


def _tune(task: Task, options: Any, seconds: float, records: str, console: Console) -> TuneResult:
    result = compiler.tune(
        task.path,
        "host",
        shapes=task.shapes,
        threads=options.threads,
        time_budget=seconds,
        records=records,
        timing=options.timing,
        progress=None,
    )
    for problem in result.problems:
        console.print(f"[dim]{task.name}: {problem}")
    return result


def _compiled(task: Task, options: Any, records: str | bool, path: Path) -> Path:
    module = compiler.compile(task.path, "host", shapes=task.shapes, threads=options.threads, records=records)
    module.export(path)
    return path


def _tuned(task: Task, options: Any, records: str, folder: str) -> Path | None:
    """Return the tuned module; None if it is the untuned one."""
    path = _compiled(task, options, records, Path(folder) / "tuned.twm")
    return path if _uses_records(path) else None


def _uses_records(path: Path) -> bool:
    return any(kernel.source == "record" for kernel in compiler.load(path).manifest.kernels)


def _race(task: Task, options: Any, untuned: Path, tuned: Path | None, console: Console) -> dict[str, Result]:
    entries = [Entry("tensorwright", untuned, variant=_UNTUNED)]
    if tuned is not None:
        entries.append(Entry("tensorwright", tuned, variant=_TUNED))
    other = None if options.against is None else options.against / f"{task.name}.twm"
    if other is not None and other.exists():
        entries.append(Entry("tensorwright", other, variant=_OTHER))
    if not options.no_peers:
        entries += [Entry("onnxruntime", task.path), Entry("openvino", task.path)]
    results = race(task, entries, options.threads, options.rounds, options.turn, report=console.print)
    return {result.label: result for result in results}


def _milliseconds(result: Result) -> float:
    return 1e3 * result.seconds("best")


def _ratio(first: Result, second: Result) -> tuple[float, float]:
    """Return the speedup of the second over turns, and its relative uncertainty."""
    logarithms = [math.log(a / b) for a, b in zip(_best_of_turns(first), _best_of_turns(second), strict=True)]
    error = statistics.stdev(logarithms) / math.sqrt(len(logarithms)) if len(logarithms) > 1 else 0.0
    return math.exp(statistics.fmean(logarithms)), math.expm1(2 * error)


def _best_of_turns(result: Result) -> list[float]:
    return [min(elapsed for elapsed, _ in turn) for turn in result.rounds]


def _print(rows: Sequence[Row], console: Console) -> None:
    table = Table(title="whole models, best runs in ms; gain: untuned over tuned, interleaved")
    peers = list(dict.fromkeys(peer for row in rows for peer in row.peers))
    for heading in (
        "model",
        "other",
        "untuned",
        "tuned",
        "gain",
        "+-",
        "other/untuned",
        "bound",
        *peers,
        "trials",
        "at most",
    ):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        same = "same module" if row.tuned is None else f"{row.tuned:.3f}"
        optional = [None if each is None else f"{each:.3f}" for each in (row.other, row.improvement)]
        peer_cells = [f"{row.peers[peer]:.3f}" if peer in row.peers else "-" for peer in peers]
        numbers = [optional[0] or "-", f"{row.untuned:.3f}", same, f"{row.gain:.3f}", f"{row.spread:.1%}"]
        last = (str(row.trials), "-" if row.most is None else f"{row.most:.3f}")
        table.add_row(row.model, *numbers, optional[1] or "-", f"{row.bound:.3f}", *peer_cells, *last)
    console.print(table)
    for label, ratios in (
        ("untuned over tuned", [row.gain for row in rows]),
        ("at most, with the fastest measured configuration of each kernel", [row.most for row in rows]),
        ("other over untuned", [row.improvement for row in rows]),
    ):
        known = [each for each in ratios if each is not None]
        if (mean := _mean(known)) is not None:
            console.print(f"{label}, geometric mean of {plural(len(known), 'net')}: {mean:.3f}")
    slower = [row.model for row in rows if _slower(asdict(row))]
    chosen = sum(row.tuned is not None for row in rows)
    verdict = "none is slower" if not slower else f"slower by more than chance: {', '.join(slower)}"
    console.print(f"{chosen} of {plural(len(rows), 'net')} changed by tuning; {verdict}")
