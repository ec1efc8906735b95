"""Our tuner and the engine's MetaSchedule, one after the other with the same time, then what both made in turns."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
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
_BUILD_SECONDS = 900.0


def compare(options: Any, console: Console) -> None:
    """Tune each model by both and print one table. A tuner that made nothing is said to, and left out."""
    table = Table(title=f"after {options.seconds:.0f} s of search each; all cores, median of the rounds' medians")
    for heading in ("model", "tuner", "trials", "ms", "shortest ms", "times as slow as ours", "largest difference"):
        table.add_column(heading, justify="left" if heading in ("model", "tuner") else "right")
    for name in options.models:
        task = task_of(name)
        with tempfile.TemporaryDirectory(prefix="tensorwright-race-") as folder:
            for row in _rows(task, Path(folder), options, console):
                table.add_row(*row)
    console.print(table)


def _rows(task: Task, folder: Path, options: Any, console: Console) -> list[tuple[str, ...]]:
    trials = {"untuned": "0"}
    entries = [Entry("tensorwright", _compiled(task, folder / "untuned.twm", options, False), variant="untuned")]
    console.print(f"[dim]{task.name}: our tuner")
    tuned = compiler.tune(
        str(task.path),
        options.target,
        shapes=task.shapes,
        time_budget=options.seconds,
        records=folder / "records",
        timing=options.timing,
    )
    trials["tuned"] = str(tuned.trials)
    entries.append(Entry("tensorwright", _compiled(task, folder / "tuned.twm", options, True), variant="tuned"))
    console.print(f"[dim]{task.name}: MetaSchedule")
    library, records, problem = _metaschedule(task, folder, options)
    if problem:
        console.print(f"{task.name}: MetaSchedule: {problem}; left out")
    else:
        entries.append(Entry("metaschedule", library))
        trials[""] = str(records)
    threads = targets.get(options.target).machine.cores
    results = race(task, entries, threads, _ROUNDS, _ROUND_SECONDS)
    ours = results[1]
    return [_row(task, entry, trials, result, ours) for entry, result in zip(entries, results, strict=True)]


def _row(task: Task, entry: Entry, trials: dict[str, str], result: Result, ours: Result) -> tuple[str, ...]:
    seconds = result.seconds("median")
    difference = max(
        float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max() / max(np.abs(b).max(), 1e-30))
        for a, b in zip(result.outputs, ours.outputs, strict=True)
    )
    times = (f"{seconds * 1e3:.2f}", f"{result.seconds('best') * 1e3:.2f}", f"{seconds / ours.seconds('median'):.2f}")
    return (task.name, entry.label, trials[entry.variant], *times, f"{difference:.1e}")


def _compiled(task: Task, path: Path, options: Any, tuned: bool) -> Path:
    records: Any = path.parent / "records" if tuned else False
    module = compiler.compile(str(task.path), options.target, shapes=task.shapes, records=records)
    module.export(path)
    return path


def _metaschedule(task: Task, folder: Path, options: Any) -> tuple[Path, int, str]:
    """The library it made, its number of records, and what went wrong ("" if nothing)."""
    database, library, log = folder / "metaschedule", folder / "metaschedule.so", folder / "metaschedule.log"
    database.mkdir()
    shapes = json.dumps({name: list(shape) for name, shape in (task.shapes or {}).items()})
    command = [sys.executable, "-m", "benchmarks._metaschedule"]
    rest = [str(task.path), str(database), "--shapes", shapes, "--target", options.target]
    with log.open("wb") as output:
        running = subprocess.Popen([*command, "tune", *rest], stdout=output, stderr=output, start_new_session=True)
        try:
            status = running.wait(options.seconds)
            return library, 0, f"its tuner ended by itself with status {status}: {_last_line(log)}"
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end_all(running.pid)
            running.wait()
    built = subprocess.run(
        [*command, "build", *rest, "--output", str(library)],
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    if built.returncode:
        return library, 0, f"its records could not be built: {(built.stderr.strip().splitlines() or [''])[-1][:200]}"
    records = int(json.loads(built.stdout.strip().splitlines()[-1])["records"])
    return library, records, "" if records else "it recorded nothing in that time"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


def _end_all(pid: int) -> None:
    """End a process and all that it started: the engine's workers outlive it otherwise."""
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
