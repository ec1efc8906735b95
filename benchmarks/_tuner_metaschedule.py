"""Our tuner and TVM's MetaSchedule, one after another with the same time; then their modules, timed alternately.

With a folder, steps with existing results are skipped; `--step` runs only one, at a quiet time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import compiler
import targets
from benchmarks._models import Task, task_of
from benchmarks._race import Entry, Result, race

_ROUNDS = 5
_ROUND_SECONDS = 2.0
_OVERTIME = 1.25  # fraction of the time for its trials
_BUILD_SECONDS = 900.0
_LIBRARY, _NOTES = "metaschedule.so", "steps.json"


def compare(options: Any, console: Console) -> None:
    """Tune each model with both and print one table. A tuner that failed is reported and left out."""
    table = Table(title="all cores, median of the rounds' medians")
    for heading in (
        "model",
        "tuner",
        "trials",
        "seconds",
        "ms",
        "shortest ms",
        "times as slow as ours",
        "largest difference",
    ):
        table.add_column(heading, justify="left" if heading in ("model", "tuner") else "right")
    for name in options.models:
        task = task_of(name)
        with tempfile.TemporaryDirectory(prefix="tensorwright-race-") as temporary:
            folder = Path(temporary) if options.keep is None else Path(options.keep) / task.name
            folder.mkdir(parents=True, exist_ok=True)
            for row in _rows(task, folder, options, console):
                table.add_row(*row)
    if table.row_count:
        console.print(table)


def _rows(task: Task, folder: Path, options: Any, console: Console) -> list[tuple[str, ...]]:
    """Return the table's rows; none if only a step was requested."""
    if options.step in ("all", "ours"):
        console.print(f"[dim]{task.name}: our tuner")
        _ours(task, folder, options)
    if options.step in ("all", "metaschedule"):
        console.print(f"[dim]{task.name}: MetaSchedule")
        problem = _metaschedule(task, folder, options)
        if problem:
            console.print(f"{task.name}: MetaSchedule: {problem}; left out")
    if options.step not in ("all", "race"):
        return []
    notes = _notes(folder)
    entries = [
        Entry("tensorwright", _compiled(task, folder / "untuned.twm", options, False), variant="untuned"),
        Entry("tensorwright", _compiled(task, folder / "tuned.twm", options, True), variant="tuned"),
    ]
    if (folder / _LIBRARY).exists():
        entries.append(Entry("metaschedule", folder / _LIBRARY))
    threads = targets.get(options.target).machine.cores
    results = race(task, entries, threads, _ROUNDS, _ROUND_SECONDS)
    return [_row(task, entry, notes, result, results[1]) for entry, result in zip(entries, results, strict=True)]


def _ours(task: Task, folder: Path, options: Any) -> None:
    if "tuned" in _notes(folder):
        return
    tuned = compiler.tune(
        str(task.path),
        options.target,
        shapes=task.shapes,
        time_budget=options.seconds,
        records=folder / "records",
        timing=options.timing,
    )
    _note(folder, "tuned", trials=tuned.trials, seconds=tuned.seconds)


def _notes(folder: Path) -> dict[str, dict[str, float]]:
    """Return trials and seconds by variant, for the completed steps."""
    path = folder / _NOTES
    return json.loads(path.read_text()) if path.exists() else {}


def _note(folder: Path, variant: str, **numbers: float) -> None:
    notes = _notes(folder)
    (folder / _NOTES).write_text(json.dumps({**notes, variant: {**notes.get(variant, {}), **numbers}}))


def _row(task: Task, entry: Entry, notes: dict[str, dict[str, float]], result: Result, ours: Result) -> tuple[str, ...]:
    seconds = result.seconds("median")
    difference = max(
        float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max() / max(np.abs(b).max(), 1e-30))
        for a, b in zip(result.outputs, ours.outputs, strict=True)
    )
    times = (f"{seconds * 1e3:.2f}", f"{result.seconds('best') * 1e3:.2f}", f"{seconds / ours.seconds('median'):.2f}")
    made = notes.get(entry.variant, {})
    spent = (f"{made.get('trials', 0):.0f}", f"{made.get('seconds', 0):.0f}")
    return (task.name, entry.label, *spent, *times, f"{difference:.1e}")


def _compiled(task: Task, path: Path, options: Any, tuned: bool) -> Path:
    records: Any = path.parent / "records" if tuned else False
    module = compiler.compile(str(task.path), options.target, shapes=task.shapes, records=records)
    module.export(path)
    return path


def _metaschedule(task: Task, folder: Path, options: Any) -> str:
    """Run its steps in the folder. Returns the error, "" if there was none."""
    database, library, log = folder / "metaschedule", folder / _LIBRARY, folder / "metaschedule.log"
    if library.exists():
        return ""
    database.mkdir(exist_ok=True)
    shapes = json.dumps({name: list(shape) for name, shape in (task.shapes or {}).items()})
    command = [sys.executable, "-m", "benchmarks._metaschedule"]
    rest = [str(task.path), str(database), "--shapes", shapes, "--target", options.target]
    with log.open("wb") as output:
        began = time.monotonic()
        tuning = [*command, "tune", *rest, "--trials", str(options.peer_trials)]
        running = subprocess.Popen(tuning, stdout=output, stderr=output, start_new_session=True)
        try:
            status = running.wait(_OVERTIME * options.seconds)
            if status:
                return f"its tuner ended with status {status}: {_last_line(log)}"
        except subprocess.TimeoutExpired:  # the records so far are used
            pass
        finally:
            _end_all(running.pid)
            running.wait()
        _note(folder, "", seconds=time.monotonic() - began)
    built = subprocess.run(
        [*command, "build", *rest, "--output", str(library)],
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    if built.returncode:
        return f"its records could not be built: {(built.stderr.strip().splitlines() or [''])[-1][:200]}"
    records = int(json.loads(built.stdout.strip().splitlines()[-1])["records"])
    if not records:
        library.unlink()
        return "it recorded nothing in that time"
    _note(folder, "", trials=records)
    return ""


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


def _end_all(pid: int) -> None:
    """End a process and its children: otherwise TVM's workers outlive it."""
    import psutil

    try:
        root = psutil.Process(pid)
        family = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
