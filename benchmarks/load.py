"""Cold start of a compiled module: file size, load and first inference, against ONNX Runtime on the same model.

`python -m benchmarks.load MODEL...` compiles each model once, then starts the contestants alternately, each in a new
process, with all files in the page cache; a time is the minimum of all repetitions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks._load_contestant import IMPORTS
from benchmarks._models import Task, task_of
from benchmarks.catalog import CATALOG
from compiler.reports.formatting import plural

_TIMES = ("import", "load", "first", "steady")


@dataclass(frozen=True)
class Start:
    """Minimum times of one contestant's cold starts on one model, in seconds, and its size on disk and in memory."""

    model: str
    version: str
    file_bytes: int
    peak_bytes: int
    times: dict[str, float]

    @property
    def to_first_result(self) -> float:
        """Seconds from the loader's call to the first result, without importing the package."""
        return self.times["load"] + self.times["first"]


def compiled(task: Task, target: str, folder: Path) -> Path:
    """Compile a model and export it. Raises the compiler's own errors."""
    import compiler

    catalog = CATALOG.get(task.name)
    constants = dict(catalog.constants) if catalog is not None and catalog.constants else None
    module = compiler.compile(str(task.path), target, shapes=task.shapes, constants=constants)
    path = folder / f"{task.name}.twm"
    module.export(path)
    return path


def start(contestant: str, task: Task, path: Path, threads: int, repeat: int) -> Start:
    """Start one contestant `repeat` times; return the minimum of each time. Raises RuntimeError with its output."""
    command = [sys.executable, "-m", "benchmarks._load_contestant", contestant, str(path), str(task.arrays)]
    samples = []
    for _ in range(repeat):
        result = subprocess.run([*command, f"--threads={threads}"], capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{contestant} failed on {task.name}:\n{result.stderr}")
        samples.append(json.loads(result.stdout.splitlines()[-1]))
    times = {name: min(sample[name] for sample in samples) for name in _TIMES}
    peak = min(sample["peak_bytes"] for sample in samples)
    return Start(task.name, samples[0]["version"], _size(path), peak, times)


def _size(path: Path) -> int:
    """Return the bytes of a model with its external data files, which are named after it."""
    return sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*"))


def table_of(starts: Sequence[Start], threads: int) -> Table:
    """Create one row per model and contestant; ratios are relative to the row above of the same model."""
    table = Table(title=f"cold start, {plural(threads, 'thread')}, files in the page cache, least of all repetitions")
    table.add_column("model")
    table.add_column("contestant")
    headings = ("file MB", "import ms", "load ms", "first run", "load+first", "ratio", "steady ms", "peak MB")
    for heading in headings:
        table.add_column(heading, justify="right")
    ours: dict[str, float] = {}
    for each in starts:
        first = ours.setdefault(each.model, each.to_first_result)
        values = [each.times["import"], each.times["load"], each.times["first"], each.to_first_result]
        table.add_row(
            each.model,
            each.version,
            f"{each.file_bytes / 1e6:.2f}",
            *(f"{1e3 * value:.1f}" for value in values),
            f"{each.to_first_result / first:.2f}",
            f"{1e3 * each.times['steady']:.2f}",
            f"{each.peak_bytes / 1e6:.0f}",
        )
    return table


def main() -> int:
    """Compile, start, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help=f"an .onnx file, or one of {', '.join(CATALOG)}")
    parser.add_argument("--target", default="host")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    starts: list[Start] = []
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(options.models) * (len(IMPORTS) + 1))
        for name in options.models:
            progress.update(bar, description=f"{name}: compile")
            task = task_of(name)
            module = compiled(task, options.target, Path(folder))
            progress.advance(bar)
            for contestant in IMPORTS:
                progress.update(bar, description=f"{task.name}: {contestant}")
                path = module if contestant == "tensorwright" else task.path
                starts.append(start(contestant, task, path, options.threads, options.repeat))
                progress.advance(bar)
    console.print(table_of(starts, options.threads))
    return 0


if __name__ == "__main__":
    sys.exit(main())
